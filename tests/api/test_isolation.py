"""One account never sees, changes or learns of what belongs to another: tried on every route of our own document."""

from typing import Any

import pytest

from api.app import OPERATIONS
from api.operation import Operation
from forwarder.store.tables import accounts
from tests.api.desk import Desk

BODIES: dict[str, Any] = {
    "editDomain": {"whitelabel": "evil.com"},
    "addAlias": {"alias": "mine", "forward": "me@evil.com"},
    "addAliasesInBulk": {"aliases": [{"alias": "mine", "forward": "me@evil.com"}], "behavior": "update"},
    "editAlias": {"forward": "me@evil.com"},
    "addRule": {"type": "alias", "config": {"alias": "mine", "forward": "me@evil.com"}},
    "editRule": {"config": {"forward": "me@evil.com"}},
    "addCredential": {"username": "mine", "password": "abc123"},
    "editCredential": {"password": "abc456"},
    "addApiKey": {"name": "mine"},
    "addDomain": {"domain": "mine.com"},
}
OWNED = [operation for operation in OPERATIONS if "{" in operation.path]


def test_every_route_with_something_owned_in_its_path_is_tried() -> None:
    assert len(OWNED) >= 24
    assert {operation.name for operation in OPERATIONS if operation.body} == set(BODIES)


@pytest.mark.parametrize("operation", OWNED, ids=lambda operation: operation.name)
async def test_what_another_account_owns_is_not_found_and_stays_as_it_is(
    desk: Desk, operation: Operation
) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard@gmail.com"})
    await desk.post("/domains/piedpiper.com/credentials", {"username": "richard", "password": "abc123"})
    await desk.mail("piedpiper.com")
    (key,) = (await desk.get("/account/keys")).json()["keys"]
    (rule,) = (await desk.get("/domains/piedpiper.com/rules")).json()["rules"]
    before = await _everything(desk)
    values = {"domain": "piedpiper.com", "alias": "richard", "username": "richard", "key": str(key["id"])}
    values["rule"] = rule["id"]
    path = operation.path.format(**values).removeprefix("/v3")
    async with desk.client(await desk.account("stranger@evil.test")) as stranger:
        body = BODIES.get(operation.name)
        answer = await stranger.request(operation.method, path, json=body)
        absent = {"domain": "nowhere.com", "alias": "no", "username": "no", "key": "999", "rule": "999"}
        path = operation.path.format(**absent).removeprefix("/v3")
        nothing = await stranger.request(operation.method, path, json=body)
    assert answer.status_code == 404
    assert (answer.status_code, answer.json()) == (nothing.status_code, nothing.json())
    assert await _everything(desk) == before


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.method != "GET"], ids=lambda operation: operation.name
)
async def test_a_locked_account_changes_nothing(desk: Desk, operation: Operation) -> None:
    await desk.domain("piedpiper.com", {"richard": "richard@gmail.com"})
    await desk.post("/domains/piedpiper.com/credentials", {"username": "richard", "password": "abc123"})
    (key,) = (await desk.get("/account/keys")).json()["keys"]
    (rule,) = (await desk.get("/domains/piedpiper.com/rules")).json()["rules"]
    before = await _everything(desk)
    values = {"domain": "piedpiper.com", "alias": "richard", "username": "richard", "key": str(key["id"])}
    path = operation.path.format(**values, rule=rule["id"]).removeprefix("/v3")
    body = BODIES.get(operation.name)
    await desk.database.write(lambda conn: conn.execute(accounts.update().values(locked_at=desk.now)))
    assert (await desk.http.request(operation.method, path, json=body)).status_code == 403
    assert await _everything(desk) == before
    await desk.database.write(lambda conn: conn.execute(accounts.update().values(locked_at=None)))
    assert (await desk.http.request(operation.method, path, json=body)).status_code == 200


async def test_an_id_of_another_domain_is_not_found(desk: Desk) -> None:
    await desk.domain("one.com", {"a": "a@gmail.com"})
    await desk.domain("two.com", {})
    number = (await desk.get("/domains/one.com/aliases/a")).json()["alias"]["id"]
    assert (await desk.get(f"/domains/two.com/aliases/{number}")).status_code == 404
    assert (await desk.delete(f"/domains/two.com/aliases/{number}")).status_code == 404
    assert (await desk.get(f"/domains/two.com/rules/{number}")).status_code == 404
    assert (await desk.put(f"/domains/two.com/rules/{number}", {"active": False})).status_code == 404
    assert (await desk.delete(f"/domains/two.com/rules/{number}")).status_code == 404
    assert (await desk.delete("/domains/two.com/rules-all")).status_code == 200
    assert (await desk.get("/domains/one.com/aliases/a")).status_code == 200


async def test_a_cursor_of_another_domain_shows_nothing_of_it(desk: Desk) -> None:
    await desk.domain("one.com")
    await desk.mail("one.com", count=2, subject="secret")
    cursor = (await desk.get("/domains/one.com/logs")).json()["logs"][0]["id"]
    async with desk.client(await desk.account("stranger@evil.test")) as stranger:
        await stranger.post("/domains", json={"domain": "evil.com"})
        answer = await stranger.get(f"/domains/evil.com/logs?next_cursor={cursor}")
    assert answer.json() == {"logs": [], "success": True}


async def test_lists_show_the_account_s_own_only(desk: Desk) -> None:
    await desk.post("/domains", {"domain": "one.com", "whitelabel": "parent.com"})
    async with desk.client(await desk.account("stranger@evil.test")) as stranger:
        assert (await stranger.get("/domains")).json()["total"] == 0
        assert (await stranger.get("/account/whitelabels")).json()["whitelabels"] == []
        taken = await stranger.post("/domains", json={"domain": "one.com"})
    assert taken.status_code == 400
    assert desk.email not in taken.text


async def _everything(desk: Desk) -> list[Any]:
    paths = ("/domains", "/domains/piedpiper.com/aliases", "/domains/piedpiper.com/credentials")
    more = ("/domains/piedpiper.com/logs", "/domains/piedpiper.com/webhook")
    keys = [one | {"last_used": None} for one in (await desk.get("/account/keys")).json()["keys"]]
    return [*[(await desk.get(path)).json() for path in (*paths, *more)], keys]


async def test_nobody_learns_where_another_accounts_alias_leads(desk: Desk) -> None:
    """By a circle through the domain of its destination, which anybody may add."""
    await desk.domain("victim.org", {"hello": "very.private@mailbox.com,other.private@mailbox.com"})
    async with desk.client(await desk.account("stranger@evil.test")) as stranger:
        assert (await stranger.post("/domains", json={"domain": "mailbox.com"})).status_code == 200
        path = "/domains/mailbox.com/aliases"
        tried = [
            await stranger.put(f"{path}/*", json={"forward": "hello@victim.org"}),
            await stranger.post(path, json={"alias": "other.private", "forward": "hello@victim.org"}),
            await stranger.post(
                f"{path}/bulk", json={"aliases": [{"alias": "very.private", "forward": "hello@victim.org"}]}
            ),
        ]
    assert all("private@mailbox.com →" not in answer.text for answer in tried)
    assert [answer.status_code for answer in tried] == [200, 200, 200]


async def test_nobody_keeps_others_from_saving_by_adding_a_domain_that_is_not_theirs(desk: Desk) -> None:
    async with desk.client(await desk.account("stranger@evil.test")) as stranger:
        for name in ("gmail.com", "owner.example"):
            assert (await stranger.post("/domains", json={"domain": name})).status_code == 200
            everything = {"forward": "info@piedpiper.com"}
            answer = await stranger.put(f"/domains/{name}/aliases/*", json=everything)
            assert answer.status_code == 200
    async with desk.client(await desk.account("me@owner.example")) as mine:
        assert (await mine.post("/domains", json={"domain": "piedpiper.com"})).status_code == 200
        assert (await mine.get("/domains/piedpiper.com/aliases/*")).json()["alias"].get("is_active", True)
        answer = await mine.post(
            "/domains/piedpiper.com/aliases", json={"alias": "info", "forward": "owner@gmail.com"}
        )
        assert answer.status_code == 200


async def test_what_is_checked_of_one_request_is_bounded(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {})
    names = [f"k{number}@piedpiper.com" for number in range(100)]
    entries = [{"alias": f"a{number}", "forward": ",".join(names)} for number in range(100)]
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": entries})
    assert answer.status_code == 400
    (texts,) = answer.json()["errors"].values()
    assert texts == ["These aliases lead through too many others to be checked; send fewer at once."]
    some = [{"alias": f"b{number}", "forward": ",".join(names[:5])} for number in range(400)]
    assert (await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": some})).status_code == 200
