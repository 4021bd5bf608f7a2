"""Policies asked for, fetched and kept: over a real resolver, with a site that the test holds in its hand."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from forwarder.config import HostPort
from forwarder.mail.mta_sts import StsPolicy
from forwarder.net.dns import Resolver
from forwarder.net.http import GuardedClient, Page, Unreachable
from forwarder.outbound import policies as room
from forwarder.outbound.policies import Policies
from tests.peers.dns_server import DnsServer

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RECORD = "_mta-sts.dest.test"


def body(*, mode: str = "enforce", mx: str = "mx.dest.test", max_age: int = 604_800) -> bytes:
    return f"version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {max_age}\n".encode()


class Site(GuardedClient):
    """Gives the page that is set, or the failure; waits while ``open`` is not set."""

    def __init__(self) -> None:
        self.page: Page | Exception
        self.urls: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.serve(body())

    def serve(self, text: bytes, *, status: int = 200, media_type: str = "text/plain") -> None:
        self.page = Page(status=status, media_type=media_type, body=text)

    async def get(self, url: str, timeout: timedelta, *, limit: int) -> Page:
        self.urls.append(url)
        await self.open.wait()
        if isinstance(self.page, Exception):
            raise self.page
        return self.page


class Hand:
    """A room of policies whose clock and peers are the test's."""

    def __init__(self, dns: DnsServer) -> None:
        self.now = NOON
        self.dns = dns
        self.site = Site()
        resolver = Resolver(
            [HostPort(dns.host, dns.port)], clock=lambda: self.now, deadline=timedelta(seconds=0.5)
        )
        self.policies = Policies(resolver, self.site, clock=lambda: self.now)

    def announce(self, *records: str) -> None:
        self.dns.set(RECORD, "TXT", list(records))

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)

    async def mx(self) -> str | None:
        """The pattern that is in force for the domain."""
        policy = await self.policies.in_force("dest.test")
        return policy and " ".join(policy.mx)


@pytest.fixture
async def hand() -> AsyncIterator[Hand]:
    async with DnsServer(ttl=60) as dns:
        it = Hand(dns)
        it.announce("v=STSv1; id=1")
        yield it
        await it.policies.close()


async def test_a_policy_is_fetched_once_and_kept(hand: Hand) -> None:
    assert await hand.mx() == "mx.dest.test"
    hand.later(hours=11)
    assert await hand.mx() == "mx.dest.test"
    assert hand.site.urls == ["https://mta-sts.dest.test:443/.well-known/mta-sts.txt"]


async def test_a_domain_without_a_record_costs_one_question(hand: Hand) -> None:
    hand.dns.remove(RECORD)
    for _ in range(5):
        assert await hand.mx() is None
    assert (hand.dns.count(), hand.site.urls) == (1, [])
    hand.announce("v=STSv1; id=1", "v=STSv1; id=2")
    hand.later(minutes=2)
    assert await hand.mx() is None
    assert hand.site.urls == []


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_what_is_not_enforced_binds_nobody(hand: Hand, mode: str) -> None:
    hand.site.serve(body(mode=mode))
    assert await hand.mx() is None
    assert await hand.mx() is None
    assert len(hand.site.urls) == 1


async def test_a_new_id_is_seen_when_the_record_is_old(hand: Hand) -> None:
    assert await hand.mx() == "mx.dest.test"
    hand.announce("v=STSv1; id=2")
    hand.site.serve(body(mx="new.dest.test"))
    hand.later(seconds=59)
    assert await hand.mx() == "mx.dest.test"
    hand.later(seconds=2)
    assert await hand.mx() == "new.dest.test"
    hand.announce("v=STSv1; id=3")
    hand.site.serve(body(mode="none"))
    hand.later(seconds=61)
    assert await hand.mx() is None


async def test_those_who_ask_at_once_share_one_fetch(hand: Hand) -> None:
    found = await asyncio.gather(*(hand.mx() for _ in range(20)))
    assert set(found) == {"mx.dest.test"}
    assert (len(hand.site.urls), hand.dns.count(RECORD)) == (1, 1)


async def test_who_asks_does_not_wait_for_a_site_that_hangs(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.05)
    hand.site.open.clear()
    assert await hand.mx() is None
    assert await hand.mx() is None
    assert len(hand.site.urls) == 1  # still under way
    monkeypatch.setattr(room, "PATIENCE", 10)
    hand.site.open.set()
    assert await hand.mx() == "mx.dest.test"
    assert len(hand.site.urls) == 1


BAD = {
    "away": Unreachable("away"),
    "missing": Page(status=404, media_type="text/plain", body=body()),
    "redirect": Page(status=302, media_type="text/plain", body=body()),
    "accepted": Page(status=202, media_type="text/plain", body=body()),
    "html": Page(status=200, media_type="text/html", body=body()),
    "untyped": Page(status=200, media_type="", body=body()),
    "garbage": Page(status=200, media_type="text/plain", body=b"banana"),
    "our own trouble": RuntimeError("a bug"),
}


@pytest.mark.parametrize("what", BAD)
async def test_what_cannot_be_fetched_binds_nobody(hand: Hand, what: str) -> None:
    hand.site.page = BAD[what]
    assert await hand.mx() is None


async def test_a_failed_fetch_is_not_repeated_for_some_minutes(hand: Hand) -> None:
    hand.site.page = BAD["away"]
    for _ in range(3):
        assert await hand.mx() is None
    hand.later(minutes=4, seconds=59)
    assert await hand.mx() is None
    assert len(hand.site.urls) == 1
    hand.later(seconds=1)
    hand.site.serve(body())
    assert await hand.mx() == "mx.dest.test"
    assert len(hand.site.urls) == 2


async def test_a_clock_that_is_set_back_does_not_leave_a_domain_alone_for_ever(hand: Hand) -> None:
    hand.site.page = BAD["away"]
    assert await hand.mx() is None
    hand.later(days=-400)
    hand.site.serve(body())
    assert await hand.mx() == "mx.dest.test"


@pytest.mark.parametrize("what", BAD)
async def test_what_is_kept_survives_a_failing_fetch(hand: Hand, what: str) -> None:
    assert await hand.mx() == "mx.dest.test"
    hand.announce("v=STSv1; id=2")
    hand.site.page = BAD[what]
    hand.later(days=6)
    assert await hand.mx() == "mx.dest.test"
    assert len(hand.site.urls) == 2


@pytest.mark.parametrize("how", ["gone", "servfail", "timeout", "two"])
async def test_what_is_kept_survives_the_record(hand: Hand, how: str) -> None:
    hand.site.serve(body(max_age=864_000))
    assert await hand.mx() == "mx.dest.test"
    if how == "gone":
        hand.dns.remove(RECORD)
    elif how == "two":
        hand.announce("v=STSv1; id=1", "v=STSv1; id=2")
    else:
        hand.dns.fault(RECORD, how)
    hand.later(days=9, hours=23, minutes=59)
    assert await hand.mx() == "mx.dest.test"
    hand.later(minutes=1)
    assert await hand.mx() is None
    assert len(hand.site.urls) == 1


async def test_a_record_that_cannot_be_looked_up_is_asked_for_once_a_minute(hand: Hand) -> None:
    hand.dns.fault(RECORD, "servfail")
    assert await hand.mx() is None
    asked = hand.dns.count(RECORD)
    hand.later(seconds=59)
    assert await hand.mx() is None
    assert hand.dns.count(RECORD) == asked
    hand.later(seconds=1)
    hand.dns.heal()
    assert await hand.mx() == "mx.dest.test"


async def test_a_policy_is_renewed_long_before_it_expires(hand: Hand) -> None:
    assert await hand.mx() == "mx.dest.test"
    hand.later(days=1)
    assert await hand.mx() == "mx.dest.test"
    assert len(hand.site.urls) == 2
    hand.site.page = BAD["away"]
    hand.later(days=6, hours=23)  # more than a week after the first fetch
    assert await hand.mx() == "mx.dest.test"
    hand.later(hours=1)
    assert await hand.mx() is None


async def test_a_short_max_age_counts_as_five_minutes(hand: Hand) -> None:
    hand.site.serve(body(max_age=0))
    assert await hand.mx() == "mx.dest.test"
    hand.later(seconds=149)
    assert await hand.mx() == "mx.dest.test"
    assert len(hand.site.urls) == 1
    hand.site.page = BAD["away"]
    hand.later(seconds=150)
    assert await hand.mx() == "mx.dest.test"
    hand.later(seconds=1)
    assert await hand.mx() is None


async def test_the_policy_not_used_for_longest_goes(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "KEPT", 2)
    for name in ("one.test", "two.test", "three.test"):
        hand.dns.set(f"_mta-sts.{name}", "TXT", ["v=STSv1; id=1"])

    async def fetches(name: str) -> int:
        before = len(hand.site.urls)
        assert isinstance(await hand.policies.in_force(name), StsPolicy)
        return len(hand.site.urls) - before

    order = ("one.test", "two.test", "one.test", "three.test", "one.test", "two.test")
    assert [await fetches(name) for name in order] == [1, 1, 0, 1, 0, 1]


async def test_when_too_many_are_under_way_what_is_kept_is_the_answer(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await hand.mx() == "mx.dest.test"
    monkeypatch.setattr(room, "UNDER_WAY", 0)
    assert await hand.mx() == "mx.dest.test"
    assert await hand.policies.in_force("other.test") is None
    assert hand.dns.count("_mta-sts.other.test") == 0
