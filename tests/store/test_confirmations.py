"""Who is asked, how often, what a token is worth, and when an answer is in force; on both databases."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from forwarder.mail.address import parse_address
from forwarder.mail.reply import UNCONFIRMED_DESTINATION
from forwarder.mail.rules import Expansion, Trouble, refusal
from forwarder.store import accounts, aliases, confirmations, domains, rule_sets
from forwarder.store.confirmations import ASKS_A_DAY, Asked
from forwarder.store.directory import Directory
from forwarder.store.domains import Domain
from forwarder.store.engine import Database
from forwarder.store.tables import confirmations as table
from tests.harness import wait_until
from tests.store.conftest import NOON, Stage

DAY = timedelta(days=1)


async def host(database: Database, name: str, *, email: str = "owner@example.org", **leads: str) -> Domain:
    """A domain with aliases; its account is made when it is missing."""

    def work(conn: Any) -> Domain:
        owner = accounts.by_email(conn, email) or accounts.create(conn, email, "default", NOON)
        made = domains.add(conn, owner.id, name, name, NOON, dkim_selector="fwd")
        for pattern, forward in leads.items():
            aliases.add(conn, made, "*" if pattern == "all" else pattern, forward, NOON)
        return made

    return await database.write(work)


async def ask(database: Database, domain: Domain, *forwards: str, at: Any = NOON) -> list[Asked]:
    return list(await database.write(lambda conn: confirmations.ask(conn, domain, forwards, at)))


async def confirm(database: Database, token: str, at: Any = NOON) -> str | None:
    return await database.write(lambda conn: confirmations.confirm(conn, token, at))


async def reached(directory: Directory, address: str) -> tuple[list[str], Trouble | None]:
    found: Expansion = await directory.resolve(parse_address(address))
    return sorted(str(target.destination) for target in found.targets), found.trouble


async def test_a_destination_gets_nothing_until_its_token_came_back(stage: Stage) -> None:
    database = await stage.database()
    domain = await host(
        database, "pied.example", info="Rich@dest.example", both="rich@dest.example, b@dest.example"
    )
    strict = Directory(database, require_confirmed=True)
    plain = Directory(database)
    assert await reached(strict, "info@pied.example") == ([], Trouble.UNCONFIRMED)
    assert await reached(plain, "info@pied.example") == (["Rich@dest.example"], None)
    (asked,) = await ask(database, domain, "Rich@dest.example")
    assert str(asked.address) == "Rich@dest.example"
    assert await reached(strict, "info@pied.example") == ([], Trouble.UNCONFIRMED)
    assert await confirm(database, asked.token) == "rich@dest.example"
    # A refusal asks the store first: the answer is in force at once.
    assert await reached(strict, "info@pied.example") == (["Rich@dest.example"], None)
    assert await reached(strict, "both@pied.example") == (["rich@dest.example"], None)


async def test_another_process_hears_of_it_within_a_second(stage: Stage) -> None:
    database, elsewhere = await stage.database(), await stage.database()
    domain = await host(database, "pied.example", both="a@dest.example, b@dest.example")
    directory = Directory(elsewhere, require_confirmed=True)
    following = asyncio.create_task(directory.follow())
    try:
        first, second = await ask(database, domain, "a@dest.example, b@dest.example")
        assert await confirm(database, first.token)
        assert await reached(directory, "both@pied.example") == (["a@dest.example"], None)
        assert await confirm(database, second.token)

        async def both() -> bool:
            return len((await reached(directory, "both@pied.example"))[0]) == 2

        await wait_until(both, deadline=1)
    finally:
        following.cancel()
        await asyncio.wait({following})


async def test_a_token_works_once_and_for_a_week(database: Database) -> None:
    domain = await host(database, "pied.example")
    (asked,) = await ask(database, domain, "a@dest.example")
    week = timedelta(days=7)
    almost = NOON + week - timedelta(seconds=1)
    assert (
        await database.read(lambda conn: confirmations.asked_for(conn, asked.token, almost))
        == "a@dest.example"
    )
    assert await confirm(database, asked.token, NOON + week) is None
    assert await confirm(database, asked.token + "x") is None
    assert await confirm(database, "") is None
    assert await confirm(database, asked.token, almost) == "a@dest.example"
    assert await confirm(database, asked.token, almost) is None
    rows = await database.read(lambda conn: conn.execute(select(table)).all())
    assert [(row.address, row.token_digest, row.confirmed_at) for row in rows] == [
        ("a@dest.example", None, almost)
    ]


async def test_the_token_itself_is_not_stored(database: Database) -> None:
    domain = await host(database, "pied.example")
    (asked,) = await ask(database, domain, "a@dest.example")
    assert len(asked.token) == 43  # 256 bits
    rows = await database.read(lambda conn: conn.execute(select(table)).all())
    assert asked.token not in repr(rows)


async def test_an_address_is_asked_once_a_day_and_not_after_it_confirmed(database: Database) -> None:
    domain = await host(database, "pied.example")
    (first,) = await ask(database, domain, "a@dest.example, A@dest.example", "a@dest.example")
    assert await ask(database, domain, "a@dest.example", at=NOON + DAY - timedelta(seconds=1)) == []
    (second,) = await ask(database, domain, "a@dest.example", at=NOON + DAY)
    assert await confirm(database, first.token, NOON + DAY) is None  # the newer one voids it
    assert await confirm(database, second.token, NOON + DAY)
    assert await ask(database, domain, "a@dest.example", at=NOON + 9 * DAY) == []


async def test_an_address_that_a_wrong_clock_asked_is_asked_again(database: Database) -> None:
    domain = await host(database, "pied.example")
    [ahead] = await ask(database, domain, "a@dest.example", at=NOON + 3650 * DAY)
    [again] = await ask(database, domain, "a@dest.example", at=NOON)
    assert await confirm(database, ahead.token, NOON) is None  # the newer one voids it
    assert await ask(database, domain, "a@dest.example", at=NOON - DAY) == []
    assert await confirm(database, again.token, NOON)


async def test_two_processes_ask_an_address_once(stage: Stage) -> None:
    one, other = await stage.database(), await stage.database()
    domain = await host(one, "pied.example")
    asked = await asyncio.gather(*(ask(who, domain, "a@dest.example") for who in (one, other) * 4))
    assert sum(map(len, asked)) == 1


async def test_an_account_has_only_so_many_asked_in_a_day(database: Database) -> None:
    domain = await host(database, "pied.example")
    many = [f"p{n}@dest.example" for n in range(ASKS_A_DAY + 5)]
    assert len(await ask(database, domain, *many)) == ASKS_A_DAY
    assert await ask(database, domain, "q@dest.example") == []
    other = await host(database, "hooli.example", email="gavin@example.org")
    assert len(await ask(database, other, "q@dest.example")) == 1
    assert len(await ask(database, domain, *many, at=NOON + DAY)) == ASKS_A_DAY


async def test_urls_and_domains_of_the_same_account_need_no_confirmation(stage: Stage) -> None:
    database = await stage.database()
    domain = await host(
        database,
        "pied.example",
        hook="https://hook.example/x",
        own="x@own.example",
        theirs="x@theirs.example",
    )
    await host(database, "own.example", x="https://hook.example/own")
    other = await host(database, "theirs.example", email="gavin@example.org", x="https://hook.example/theirs")
    directory = Directory(database, require_confirmed=True)
    assert await reached(directory, "hook@pied.example") == (["https://hook.example/x"], None)
    assert await reached(directory, "own@pied.example") == (["https://hook.example/own"], None)
    assert await reached(directory, "theirs@pied.example") == ([], Trouble.UNCONFIRMED)
    forwards = ["https://hook.example/x", "x@own.example", "x@theirs.example", "$1@dest.example"]
    (asked,) = await ask(database, domain, *forwards)
    assert str(asked.address) == "x@theirs.example"
    assert await confirm(database, asked.token)
    # The address is confirmed; where its mail goes is another account's to say once its MX records lead here.
    assert await reached(directory, "theirs@pied.example") == (["x@theirs.example"], None)
    more: dict[str, Any] = {"sending_ready": False, "broken_since": None, "notified_at": None}
    await database.write(lambda conn: domains.record_check(conn, other, NOON, is_active=True, **more))
    await directory.catch_up()
    assert await reached(directory, "theirs@pied.example") == (["https://hook.example/theirs"], None)
    await database.write(lambda conn: domains.remove(conn, other, NOON))


async def test_a_label_that_came_with_the_recipient_needs_no_confirmation(stage: Stage) -> None:
    database = await stage.database()
    domain = await host(database, "pied.example", info="rich@gmail.com")
    directory = Directory(database, require_confirmed=True)
    (asked,) = await ask(database, domain, "rich@gmail.com")
    assert await confirm(database, asked.token)
    assert await reached(directory, "info+news@pied.example") == (["rich+news@gmail.com"], None)


@pytest.mark.parametrize("address", ["a_b%c@dest.example", "Ünï@dest.example", '"a b"@dest.example'])
async def test_odd_addresses_are_confirmed_as_any(stage: Stage, address: str) -> None:
    database, elsewhere = await stage.database(), await stage.database()
    domain = await host(database, "pied.example", info=f"{address}, https://hook.example/x")
    directory = Directory(elsewhere, require_confirmed=True)
    assert await reached(directory, "info@pied.example") == (["https://hook.example/x"], None)
    (asked,) = await ask(database, domain, address)
    assert await confirm(database, asked.token)
    await directory.catch_up()
    assert (await reached(directory, "info@pied.example"))[0] == sorted([address, "https://hook.example/x"])


async def test_an_address_a_capture_made_is_withheld(stage: Stage) -> None:
    database = await stage.database()
    await host(database, "pied.example", all="$1@dest.example")
    directory = Directory(database, require_confirmed=True)
    assert await reached(directory, "anybody@pied.example") == ([], Trouble.UNCONFIRMED)


@pytest.mark.parametrize("together", [256, 0])
async def test_an_address_a_capture_made_is_confirmed_where_another_alias_names_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """Also in a domain too large to be held, whose aliases are read one by one."""
    monkeypatch.setattr(rule_sets, "TOGETHER", together)
    database = await stage.database()
    domain = await host(database, "pied.example", all="$1@dest.example", one="ann@dest.example")
    directory = Directory(database, require_confirmed=True)
    asked = await ask(database, domain, "ann@dest.example", "bob@dest.example")
    for one in asked:
        assert await confirm(database, one.token)
    assert await reached(directory, "ann@pied.example") == (["ann@dest.example"], None)
    assert await reached(directory, "bob@pied.example") == ([], Trouble.UNCONFIRMED)
    assert await reached(directory, "one@pied.example") == (["ann@dest.example"], None)


async def test_requests_nobody_answered_are_purged(database: Database) -> None:
    domain = await host(database, "pied.example")
    first, _ = await ask(database, domain, "a@dest.example", "b@dest.example")
    assert await confirm(database, first.token)
    assert (
        await database.write(lambda conn: confirmations.purge(conn, NOON + 7 * DAY - timedelta(seconds=1)))
        == 0
    )
    assert await database.write(lambda conn: confirmations.purge(conn, NOON + 7 * DAY)) == 1
    left = await database.read(lambda conn: conn.execute(select(table.c.address)).scalars().all())
    assert left == ["a@dest.example"]


def test_the_refusal_is_temporary() -> None:
    assert refusal(Trouble.UNCONFIRMED) == UNCONFIRMED_DESTINATION
    assert (UNCONFIRMED_DESTINATION.code, UNCONFIRMED_DESTINATION.enhanced) == (450, "4.2.1")
