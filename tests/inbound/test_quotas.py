"""Quotas of forwarding and of submission, and the usage of credentials: what is counted, and what is given back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select

from forwarder.config import Plan
from forwarder.inbound import usage
from forwarder.inbound.forwarding_quota import ForwardingQuota
from forwarder.inbound.quotas import Quotas
from forwarder.inbound.usage import Usage
from forwarder.mail.reply import Reply
from forwarder.store import accounts, counters, credentials, domains
from forwarder.store.credentials import Login
from forwarder.store.engine import Database
from forwarder.store.tables import counters as counted
from forwarder.store.trouble import StoreUnavailable
from tests.outbound.house import open_store

NOON = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


class Shop:
    """A store with the log-in ``ann@here.test``, a clock and a plan that the test sets."""

    def __init__(self, database: Database, login: Login) -> None:
        self.database = database
        self.login = login
        self.account = login.domain.account_id
        self.now = NOON
        self.plan: dict[str, Any] = {}

    def plan_of(self, name: str) -> Plan:
        assert name == "default"
        return Plan.model_validate(self.plan)

    def forwarding(self) -> ForwardingQuota:
        """As another process has it."""
        return ForwardingQuota(self.database, self.plan_of, clock=lambda: self.now)

    def sending(self) -> Quotas:
        return Quotas(self.database, self.plan_of, clock=lambda: self.now)

    async def counted(self) -> int:
        """What is counted of forwarded messages in all."""
        values = await self.database.read(lambda conn: conn.execute(select(counted.c.value)).scalars().all())
        return sum(values)

    async def used(self) -> int:
        """How often the credential was used, as it is stored."""
        domain = self.login.domain
        found = await self.database.read(lambda conn: credentials.get(conn, domain.id, "ann"))
        assert found is not None
        return found.usage


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    database = await open_store(database_url)

    def set_up(conn: Connection) -> Login | None:
        owner = accounts.create(conn, "you@example.org", "default", NOON)
        domain = domains.add(conn, owner.id, "here.test", "here.test", NOON, dkim_selector="fwd")
        credentials.add(conn, domain, "ann", "no hash", NOON)
        return credentials.for_login(conn, "ann", "here.test")

    login = await database.write(set_up)
    assert login is not None
    yield Shop(database, login)
    await database.close()


async def test_a_process_takes_as_many_places_as_it_gave_out_and_a_thousandth_at_most(shop: Shop) -> None:
    shop.plan = {"daily_quota": 3999}
    quota = shop.forwarding()
    taken = []
    for _ in range(11):
        assert await quota.count([shop.account])
        taken.append(await shop.counted())
    #      1 and 1 more, then 2, then 3 at a time
    assert taken == [1, 2, 4, 4, 7, 7, 7, 10, 10, 10, 13]


async def test_places_that_another_process_has_are_not_given_out_twice(shop: Shop) -> None:
    shop.plan = {"daily_quota": 3}
    one, other = shop.forwarding(), shop.forwarding()
    took = [await quota.count([shop.account]) for quota in (one, other, one, other, one)]
    assert took == [True, True, True, False, False]
    assert one.used_up(shop.account)
    shop.now = NOON.replace(hour=0, minute=0, second=0) + DAY
    assert not one.used_up(shop.account)
    assert await one.count([shop.account])


async def test_a_message_for_one_account_without_a_place_takes_none_of_the_others(shop: Shop) -> None:
    def second(conn: Connection) -> int:
        return accounts.create(conn, "other@example.org", "default", NOON).id

    other = await shop.database.write(second)
    shop.plan = {"daily_quota": 1}
    quota = shop.forwarding()
    assert await quota.count([other])
    assert not await quota.count([shop.account, other])
    assert await quota.count([shop.account])
    assert not await quota.count([shop.account])


async def test_a_quota_that_is_used_up_is_asked_again_after_a_minute(shop: Shop) -> None:
    """The plan may be another by then."""
    shop.plan = {"daily_quota": 1}
    quota = shop.forwarding()
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]
    shop.plan = {"daily_quota": 2}
    shop.now += MINUTE - SECOND
    assert quota.used_up(shop.account)
    assert not await quota.count([shop.account])
    shop.now += SECOND
    assert not quota.used_up(shop.account)
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]


async def test_an_account_without_a_limit_is_looked_at_again_after_a_minute(shop: Shop) -> None:
    shop.plan = {"daily_quota": 0}
    quota = shop.forwarding()
    assert await quota.count([shop.account])
    shop.plan = {"daily_quota": 1}
    shop.now += MINUTE - SECOND
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, True]
    shop.now += SECOND
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]


async def test_what_was_not_stored_gives_its_place_back_on_its_own_day_only(shop: Shop) -> None:
    shop.plan = {"daily_quota": 1}
    quota = shop.forwarding()
    assert await quota.count([shop.account])
    quota.give_back([shop.account])
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]
    quota.give_back([shop.account])
    assert not quota.used_up(shop.account)  # RCPT takes the next one
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]
    shop.now += DAY
    assert not quota.used_up(shop.account)  # a block of this day, of which nothing was given out
    quota.give_back([shop.account])
    assert [await quota.count([shop.account]) for _ in range(2)] == [True, False]


async def test_a_place_goes_back_to_the_day_it_was_taken_of(shop: Shop) -> None:
    shop.plan = {"daily_send": 1, "ratelimit": 0}
    sending = shop.sending()
    yesterday = await sending.take(shop.login)
    assert not isinstance(yesterday, Reply)
    shop.now += DAY
    assert not isinstance(await sending.take(shop.login), Reply)
    await sending.give_back(yesterday)
    assert isinstance(await sending.take(shop.login), Reply)
    shop.now = NOON
    assert not isinstance(await sending.take(shop.login), Reply)


async def test_what_one_limit_refuses_is_counted_against_none(shop: Shop) -> None:
    shop.plan = {"ratelimit": 2, "daily_send_per_credential": 2, "daily_send": 1}
    sending = shop.sending()
    assert not isinstance(await sending.take(shop.login), Reply)
    for _ in range(3):
        refused = await sending.take(shop.login)
        assert isinstance(refused, Reply)
        assert "your account is used up until 2026-11-22 00:00 UTC" in refused.text
    shop.plan["daily_send"] = 9
    assert not isinstance(await sending.take(shop.login), Reply)
    refused = await sending.take(shop.login)
    assert isinstance(refused, Reply)
    assert "the sending rate of your account is used up until 2026-11-21 12:01 UTC" in refused.text
    shop.now += MINUTE
    refused = await sending.take(shop.login)
    assert isinstance(refused, Reply)
    assert "of this log-in is used up" in refused.text


async def test_a_place_that_cannot_be_given_back_is_no_trouble_of_the_sender(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.plan = {"daily_send": 1}
    sending = shop.sending()
    taken = await sending.take(shop.login)
    assert not isinstance(taken, Reply)

    async def away(*_arguments: Any, **_more: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(counters, "hit_all", away)
        await sending.give_back(taken)
    assert isinstance(await sending.take(shop.login), Reply)


async def test_usage_is_written_round_by_round(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "DELAY", 0.0)
    noted = Usage(shop.database, clock=lambda: shop.now)
    for times in (1, 3):
        for _ in range(times):
            noted.note(shop.login.credential.id)
        assert noted._writing is not None
        await noted._writing
    assert await shop.used() == 4
    await noted.close()
    assert await shop.used() == 4


async def test_what_is_used_while_usage_is_written_is_written_in_the_next_round(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "DELAY", 0.0)
    noted = Usage(shop.database, clock=lambda: shop.now)
    really, rounds = shop.database.change, []

    async def change(work: Any) -> Any:
        rounds.append(work)
        if len(rounds) == 1:
            noted.note(shop.login.credential.id)
        return await really(work)

    monkeypatch.setattr(shop.database, "change", change)
    noted.note(shop.login.credential.id)
    assert noted._writing is not None
    await noted._writing
    assert len(rounds) == 2
    assert await shop.used() == 2


async def test_usage_that_waits_is_written_at_the_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "DELAY", 3600.0)
    noted = Usage(shop.database, clock=lambda: shop.now)
    noted.note(shop.login.credential.id)
    await asyncio.sleep(0)  # it waits for its second
    async with asyncio.timeout(30):
        await noted.close()
    assert await shop.used() == 1


async def test_usage_that_cannot_be_written_is_lost_and_what_follows_is_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "DELAY", 0.0)
    noted = Usage(shop.database, clock=lambda: shop.now)

    async def away(_work: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(shop.database, "change", away)
        noted.note(shop.login.credential.id)
        assert noted._writing is not None
        await noted._writing
    noted.note(shop.login.credential.id)
    await noted.close()
    assert await shop.used() == 1
