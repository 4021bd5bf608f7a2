"""Limits hold exactly, whoever asks at the same moment; on SQLite and on PostgreSQL."""

import asyncio
import re
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.app import HEAVY_AT_ONCE, OPERATIONS
from api.improvmx import credentials, domains
from api.limits import RateLimit, Standing
from forwarder.config import Settings
from forwarder.store import aliases
from forwarder.store.engine import Database
from tests.api.desk import Desk, together

PLAN = {"domains": 2, "aliases": 7, "credentials": 3, "api": 4}


@pytest.mark.usefixtures("unhurried")
async def test_fifty_parallel_creates_stop_at_the_limit(either_store_url: str) -> None:
    async with Desk(either_store_url, plans={"default": PLAN}) as desk:
        await desk.domain("one.com")

        async def outcomes(path: str, fields: Any) -> Counter[int]:
            answers = await together(*(desk.post(path, fields(number)) for number in range(50)))
            for answer in answers:
                assert answer.status_code in (200, 400), answer.text
                if answer.status_code == 400:
                    ((text,),) = answer.json()["errors"].values()
                    assert text.startswith(("Your account is limited to", "You have reached the limit"))
            return Counter(answer.status_code for answer in answers)

        aliases = await outcomes(
            "/domains/one.com/aliases", lambda n: {"alias": f"a{n}", "forward": "a@gmail.com"}
        )
        assert aliases == {200: 6, 400: 44}  # the domain's own * is the seventh
        assert (await desk.get("/domains/one.com/aliases")).json()["total"] == 7
        keys = await outcomes("/account/keys", lambda n: {"name": f"key {n}"})
        assert keys == {200: 3, 400: 47}  # the one in use is the fourth
        domains = await together(*(desk.post("/domains", {"domain": f"d{n}.com"}) for n in range(6)))
        assert Counter(answer.status_code for answer in domains) == {200: 1, 400: 5}


@pytest.mark.usefixtures("unhurried")
async def test_parallel_creates_of_the_same_name_have_one_winner(either_store_url: str) -> None:
    async with Desk(either_store_url) as desk:
        fields = {"domain": "one.com"}
        answers = await together(*(desk.post("/domains", fields) for _ in range(8)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 400: 7}
        alias = {"alias": "a", "forward": "a@gmail.com"}
        answers = await together(*(desk.post("/domains/one.com/aliases", alias) for _ in range(50)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 400: 49}
        losers = [answer.json()["errors"]["alias"][0] for answer in answers if answer.status_code == 400]
        assert all("already exists" in text for text in losers)


@pytest.mark.usefixtures("unhurried")
async def test_two_processes_that_create_at_once_stay_within_the_limit(either_store_url: str) -> None:
    plans = {"default": PLAN | {"aliases": 30}}
    async with Desk(either_store_url, plans=plans, api={"rate": 1000}) as desk:
        second = await Database.open(either_store_url)
        other = desk.client(desk.key, desk.another_app(second))
        try:
            for name in ("one.com", "two.com"):
                await desk.domain(name)
            answers = await together(
                *(
                    (other if number % 2 else desk.http).post(
                        f"/domains/{name}/aliases", json={"alias": f"a{number}", "forward": "a@gmail.com"}
                    )
                    for number in range(50)
                    for name in ("one.com", "two.com")
                )
            )
            assert Counter(answer.status_code for answer in answers) == {200: 58, 400: 42}
            for name in ("one.com", "two.com"):
                assert (await desk.get(f"/domains/{name}/aliases")).json()["total"] == 30
        finally:
            await other.aclose()
            await second.close()


async def test_credentials_of_a_domain_are_limited_with_the_known_text(store_url: str) -> None:
    async with Desk(store_url, plans={"default": PLAN}) as desk:
        await desk.domain("one.com")
        answers = await together(
            *(
                desk.post("/domains/one.com/credentials", {"username": f"u{n}", "password": "abc123"})
                for n in range(5)
            )
        )
        assert Counter(answer.status_code for answer in answers) == {200: 3, 400: 2}
        refused = next(answer for answer in answers if answer.status_code == 400)
        assert refused.json()["errors"] == {
            "username": ["You have reached the limit of account allowed for this domain."]
        }


async def test_a_bulk_beyond_the_limit_adds_nothing(store_url: str) -> None:
    async with Desk(store_url, plans={"default": PLAN}) as desk:
        await desk.domain("one.com")
        entries = [{"alias": f"a{n}", "forward": "a@gmail.com"} for n in range(7)]
        answer = await desk.post("/domains/one.com/aliases/bulk", {"aliases": entries})
        assert answer.json()["errors"]["alias"][0].startswith("Your account is limited to 7")
        assert (await desk.get("/domains/one.com/aliases")).json()["total"] == 1
        answer = await desk.post("/domains/one.com/aliases/bulk", {"aliases": entries[:6]})
        assert len(answer.json()["added"]) == 6


async def test_the_plan_of_the_account_decides(store_url: str) -> None:
    async with Desk(
        store_url, plans={"default": {"domains": 0}, "large": {"domains": 5, "price": 9}}
    ) as desk:
        answer = await desk.post("/domains", {"domain": "one.com"})
        assert answer.json()["errors"]["domain"][0].startswith("Your account is limited to 0 domains")
        async with desk.client(await desk.account("large@hooli.test", "large")) as client:
            assert (await client.post("/domains", json={"domain": "one.com"})).status_code == 200
            account = (await client.get("/account")).json()["account"]
        assert (account["plan"]["name"], account["plan"]["price"], account["limits"]["domains"]) == (
            "large",
            9,
            5,
        )


async def test_the_plan_of_the_account_limits_the_destinations_of_an_alias(store_url: str) -> None:
    plans = {"default": {"destinations": 1}, "large": {"destinations": 2}}
    async with Desk(store_url, plans=plans) as desk:
        for email, plan, statuses in (
            ("a@hooli.test", "default", [400, 400]),
            ("b@hooli.test", "large", [200, 400]),
        ):
            async with desk.client(await desk.account(email, plan)) as client:
                assert (await client.post("/domains", json={"domain": f"{plan}.com"})).status_code == 200
                for number, forward in enumerate(("a@x.test,b@x.test", "a@x.test,b@x.test,c@x.test")):
                    fields = {"alias": f"a{number}", "forward": forward}
                    answer = await client.post(f"/domains/{plan}.com/aliases", json=fields)
                    assert answer.status_code == statuses[number]


@pytest.mark.usefixtures("unhurried")
async def test_requests_beyond_the_rate_are_429_over_all_processes(either_store_url: str) -> None:
    async with Desk(either_store_url, api={"rate": 40}) as desk:
        others = [desk.client(desk.key, desk.another_app()) for _ in range(2)]
        clients: list[httpx.AsyncClient] = [desk.http, *others]
        answers = []
        for _ in range(20):
            answers += await together(*(client.get("/account") for client in clients))
        seen = Counter(answer.status_code for answer in answers)
        assert seen == {200: 40, 429: 20}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["code"] == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        desk.now += timedelta(minutes=1)
        assert (await desk.get("/account")).status_code == 200
        await asyncio.gather(*(client.aclose() for client in others))


async def test_remaining_counts_down_one_by_one(store_url: str) -> None:
    async with Desk(store_url, api={"rate": 100}) as desk:
        shown = [(await desk.get("/account")).headers["X-RateLimit-Remaining"] for _ in range(30)]
        assert shown == [str(99 - n) for n in range(30)]


async def test_one_account_s_requests_do_not_count_for_another(store_url: str) -> None:
    async with Desk(store_url, api={"rate": 2}) as desk:
        assert [(await desk.get("/account")).status_code for _ in range(3)] == [200, 200, 429]
        async with desk.client(await desk.account("other@hooli.test")) as other:
            assert (await other.get("/account")).status_code == 200


async def test_wrong_keys_are_429_after_a_while_and_right_ones_still_work(store_url: str) -> None:
    async with Desk(store_url, api={"failures_per_minute": 5}) as desk, desk.client("wrong") as stranger:
        assert [(await stranger.get("/account")).status_code for _ in range(7)] == [401] * 5 + [429] * 2
        assert (await desk.get("/account")).status_code == 200


async def test_who_shows_no_key_has_guessed_none(store_url: str) -> None:
    """A monitor, or a program that lost its key, hears what is missing, however often it asks."""
    async with Desk(store_url, api={"failures_per_minute": 5}) as desk, desk.client("wrong") as stranger:
        async with desk.client(None) as nobody:
            answers = [await nobody.get("/account") for _ in range(7)]
            malformed = [await nobody.get("/account", headers={"Authorization": "Basic !"}) for _ in range(7)]
        assert [answer.status_code for answer in [*answers, *malformed]] == [401] * 14
        assert {answer.headers["X-RateLimit-Remaining"] for answer in answers} == {"5"}
        assert [(await stranger.get("/account")).status_code for _ in range(6)] == [401] * 5 + [429]


async def test_every_operation_may_be_tried_with_several_wrong_keys(store_url: str) -> None:
    """What a program does in a minute that looks whether all of them are closed; the limit as it comes."""
    usual = Settings(hostname="mx.forwarder.test").api.failures_per_minute
    async with Desk(store_url, api={"failures_per_minute": usual}) as desk:
        for key in ("wrong", "revoked", "another's"):
            async with desk.client(key) as stranger:
                for operation in OPERATIONS:
                    path = re.sub(r"\{[a-z]+\}", "x", operation.path.removeprefix("/v3"))
                    assert (await stranger.request(operation.method, path)).status_code == 401


async def test_all_addresses_of_an_ipv6_network_are_one_client(store_url: str) -> None:
    async with Desk(store_url, api={"failures_per_minute": 5}) as desk:

        async def status(address: str, key: str) -> int:
            transport = httpx.ASGITransport(app=desk.app, client=(address, 40000))
            async with httpx.AsyncClient(transport=transport, auth=("api", key)) as client:
                return (await client.get("http://api.test/v3/account")).status_code

        seen = [await status(f"2001:db8:1:2::{number:x}", "wrong") for number in range(7)]
        assert seen == [401] * 5 + [429] * 2
        assert await status("2001:db8:1:3::1", "wrong") == 401
        assert await status("2001:db8:1:2::1", desk.key) == 200


async def test_a_large_body_counts_as_several_requests(store_url: str) -> None:
    async with Desk(store_url, api={"rate": 20}) as desk:
        await desk.domain("one.com")
        before = int((await desk.get("/account")).headers["X-RateLimit-Remaining"])

        def bulk(count: int) -> dict[str, Any]:
            return {
                "aliases": [
                    {"alias": f"a{n}-{count}", "forward": "x" * 40 + "@gmail.com"} for n in range(count)
                ]
            }

        small = await desk.post("/domains/one.com/aliases/bulk", bulk(10))
        assert small.status_code == 200
        assert int(small.headers["X-RateLimit-Remaining"]) == before - 1
        large = await desk.post("/domains/one.com/aliases/bulk", bulk(500))
        assert large.status_code == 200
        octets = int(large.request.headers["Content-Length"])
        assert 32 * 1024 < octets < 48 * 1024
        assert int(large.headers["X-RateLimit-Remaining"]) == before - 1 - 3
        padded = {"aliases": bulk(1)["aliases"], "pad": "x" * 150_000}
        refused = await desk.post("/domains/one.com/aliases/bulk", padded)
        refused = (
            refused
            if refused.status_code == 429
            else await desk.post("/domains/one.com/aliases/bulk", padded)
        )
        assert refused.status_code == 429
        assert "Retry-After" in refused.headers
        assert (await desk.get("/account")).status_code == 200  # one place is left for that


async def test_a_body_counts_as_half_of_what_is_allowed_at_most(store_url: str) -> None:
    """Else where few requests are allowed a long list could never be sent."""
    async with Desk(store_url, api={"rate": 6}) as desk:
        await desk.domain("one.com")
        desk.now += timedelta(minutes=1)
        fields = {"alias": "a", "forward": "a@gmail.com", "pad": "x" * 200_000}
        answer = await desk.post("/domains/one.com/aliases", fields)
        assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (200, "2")  # 6 - 1 - 3
        assert (await desk.post("/domains/one.com/aliases", fields)).status_code == 429


async def test_what_is_left_here_counts_before_more_is_taken(store_url: str) -> None:
    async with Desk(store_url) as desk:
        rate = RateLimit(desk.database, "test", 32, desk.clock)
        assert (await rate.hit("ann")).allowed  # of two that were taken one is left
        last = await rate.hit("ann", 31)
        assert (last.allowed, last.remaining) == (True, 0)
        assert not (await rate.hit("ann")).allowed


async def test_who_needs_several_places_gets_them_while_there_are_so_many(store_url: str) -> None:
    """Fewer than a block is left, since another process took most of them."""
    async with Desk(store_url) as desk:
        mine, theirs = (RateLimit(desk.database, "test", 320, desk.clock) for _ in range(2))
        assert (await mine.hit("ann")).allowed  # of twenty that were taken 19 are left
        assert (await theirs.hit("ann", 290)).allowed
        last = await mine.hit("ann", 25)
        assert (last.allowed, last.remaining) == (True, 4)  # 320 - 1 - 290 - 25


def test_who_is_refused_is_never_told_to_try_again_at_once() -> None:
    """The minute may be over by the time the answer is made."""
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    for left, told in ((timedelta(0), "1"), (timedelta(seconds=1.2), "2"), (-timedelta(seconds=3), "1")):
        standing = Standing(limit=6, remaining=0, resets_at=now + left, allowed=False)
        assert standing.headers(now)["Retry-After"] == told


async def test_the_destinations_that_domains_show_are_bounded(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "SHOWN_ROOM", 30)
    for name in ("a.example", "b.example"):
        await desk.domain(name, {"one": "123456789@dest.example", "two": "2@dest.example"})  # 22 and 14
    listed = (await desk.get("/domains")).json()["domains"]
    assert [[alias["alias"] for alias in domain["aliases"]] for domain in listed] == [["one"], []]
    for answer in (await desk.get("/domains/b.example"), await desk.put("/domains/b.example", {})):
        assert [alias["alias"] for alias in answer.json()["domain"]["aliases"]] == ["one"]
    assert (await desk.get("/domains/b.example/aliases")).json()["total"] == 2


async def test_one_looks_for_a_text_at_a_time_and_others_read_meanwhile(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Desk(store_url) as desk:
        await desk.domain("one.com")
        looking, go_on = threading.Semaphore(0), threading.Event()
        most = at_once = 0
        look = aliases.list_aliases

        def slow(conn: Any, domain_id: int, **wanted: Any) -> Any:
            nonlocal at_once, most
            if wanted.get("contains") or wanted.get("starts_with"):
                at_once += 1
                most = max(most, at_once)
                looking.release()
                assert go_on.wait(8)
                at_once -= 1
            return look(conn, domain_id, **wanted)

        monkeypatch.setattr(aliases, "list_aliases", slow)
        paths = ["rules?search=gmail", "aliases?q=gmail"] * 3  # twice as many as the store has readers
        searches = [asyncio.create_task(desk.get(f"/domains/one.com/{path}")) for path in paths]
        assert await asyncio.to_thread(looking.acquire, timeout=8)
        for path in ("rules", "aliases", "logs"):
            assert (await desk.get(f"/domains/one.com/{path}")).status_code == 200
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*searches)] == [200] * 6
        assert most == 1


async def test_an_account_that_keeps_us_busy_keeps_no_other_waiting(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go_on = threading.Semaphore(0), threading.Event()

    def hashed(password: str) -> str:
        if password == "of the busy one":
            busy.release()
            assert go_on.wait(8)
        return "a hash"

    monkeypatch.setattr(credentials, "hash_password", hashed)
    async with Desk(store_url) as desk:
        await desk.domain("one.com")
        async with desk.client(await desk.account("monica@raviga.test")) as other:
            assert (await other.post("/domains", json={"domain": "two.com"})).status_code == 200
            many = [
                {"username": f"u{number}", "password": "of the busy one"}
                for number in range(2 * HEAVY_AT_ONCE)
            ]
            waiting = [
                asyncio.create_task(desk.post("/domains/one.com/credentials", fields)) for fields in many
            ]
            assert await asyncio.to_thread(busy.acquire, timeout=8)
            one = {"username": "monica", "password": "of another"}
            answer = await other.post("/domains/two.com/credentials", json=one)
            go_on.set()
            assert answer.status_code == 200, answer.text
            assert [each.status_code for each in await asyncio.gather(*waiting)] == [200] * len(many)
