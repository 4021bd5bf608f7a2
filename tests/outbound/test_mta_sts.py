"""Mail for domains with an MTA-STS policy (RFC 8461): over verified TLS or not at all, by real policies and hosts."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.outbound.town import PAGE, PLAIN, bounced_softly, delivered_over_tls, later, policy, town


async def test_mail_goes_over_verified_tls(tmp_path: Path) -> None:
    async with town(tmp_path) as (rooms, web):
        assert await delivered_over_tls(rooms)
        assert [request.target for request in web.requests] == [PAGE]
        assert web.requests[0].headers["host"] == f"mta-sts.dest.test:{web.port}"


async def test_a_wildcard_names_the_host(tmp_path: Path) -> None:
    async with town(tmp_path, mx=["other.test", "*.Dest.test"]) as (rooms, _):
        assert await delivered_over_tls(rooms)


@pytest.mark.parametrize("mode", ["opportunistic", "required", "off"])
async def test_a_policy_counts_whatever_mode_of_tls_is_configured(tmp_path: Path, mode: str) -> None:
    async with town(tmp_path, outbound={"tls": mode}) as (rooms, _):
        assert await delivered_over_tls(rooms)
    async with town(tmp_path, outbound={"tls": mode}, known=False) as (rooms, _):
        await bounced_softly(rooms, "4.7.5")


@pytest.mark.parametrize(
    ("part", "enhanced"), [("454", "4.7.10"), ("550", "4.7.10"), ("bad-handshake", "4.7.5")]
)
async def test_mail_waits_when_a_handshake_does_not_come_about(
    tmp_path: Path, part: str, enhanced: str
) -> None:
    async with town(tmp_path) as (rooms, _):
        rooms.sink.play("starttls", part)
        await bounced_softly(rooms, enhanced)
        assert rooms.sink.connections == 1


async def test_mail_waits_for_a_host_that_offers_no_tls(tmp_path: Path) -> None:
    async with town(tmp_path, sink={}) as (rooms, _):
        await bounced_softly(rooms, "4.7.10")


@pytest.mark.parametrize(
    "certificate",
    [
        {"shown": ["mx.other.test"]},
        {"shown": ["dest.test"]},  # the domain's own name is not the host's
        {"valid_for": timedelta(minutes=-30)},
        {"known": False},
    ],
)
async def test_a_host_whose_certificate_does_not_verify_gets_nothing(
    tmp_path: Path, certificate: dict[str, Any]
) -> None:
    async with town(tmp_path, **certificate) as (rooms, _):
        assert "certificate" in await bounced_softly(rooms, "4.7.5")


async def test_a_host_that_the_policy_does_not_name_is_not_dialled(tmp_path: Path) -> None:
    async with town(tmp_path, mx=["dest.test", "*.mx.dest.test"]) as (rooms, _):
        assert "mx.dest.test" in await bounced_softly(rooms, "4.7.5")
        assert rooms.sink.connections == 0


async def test_of_several_hosts_only_those_named_are_tried(tmp_path: Path) -> None:
    async with town(tmp_path) as (rooms, _):
        rooms.dns.set("dest.test", "MX", [(1, "mx.evil.test"), (2, "mx.dest.test")])
        rooms.dns.set("mx.evil.test", "A", [rooms.origin.host])
        assert await delivered_over_tls(rooms)
        assert rooms.origin.connections == 0


async def test_at_expiry_the_report_says_that_it_was_about_encryption(tmp_path: Path) -> None:
    async with town(tmp_path, known=False, retry={"delays": ["100ms"]}) as (rooms, _):
        (delivery,) = await rooms.accept("bob@dest.test")
        await rooms.until(lambda: rooms.sink.connections)
        rooms.offset = timedelta(hours=2)
        (report,) = await rooms.origin.wait_for(1)
        assert b"Status: 5.7.5" in report.content
        status, code, message = (await rooms.events(delivery))[-1]
        assert (status, code, message.split()[0]) == ("HARD-BOUNCE", 554, "5.7.5")
        assert rooms.sink.messages == []


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_a_policy_that_is_not_enforced_changes_nothing(tmp_path: Path, mode: str) -> None:
    async with town(tmp_path, mode=mode, mx=["other.test"], sink={}) as (rooms, web):
        assert not await delivered_over_tls(rooms)
        assert len(web.requests) == 1


async def test_a_policy_that_is_not_asked_for_changes_nothing(tmp_path: Path) -> None:
    async with town(tmp_path, sink={}, outbound={"mta_sts": False}) as (rooms, web):
        assert not await delivered_over_tls(rooms)
        assert (web.connections, rooms.dns.count("_mta-sts.dest.test")) == (0, 0)


UNFETCHABLE = {
    "missing": (404, PLAIN, policy()),
    "elsewhere": (302, {**PLAIN, "Location": "https://mta-sts.dest.test/x"}, policy()),
    "html": (200, {"Content-Type": "text/html"}, policy()),
    "too long": (200, PLAIN, policy() + b"\r\n" * 32_768),
    "no policy": (200, PLAIN, policy(mode="always")),
}


@pytest.mark.parametrize("what", UNFETCHABLE)
async def test_a_policy_that_cannot_be_fetched_changes_nothing(tmp_path: Path, what: str) -> None:
    async with town(tmp_path, sink={}) as (rooms, web):
        web.pages[PAGE] = UNFETCHABLE[what]
        assert not await delivered_over_tls(rooms)
        later(rooms, minutes=4)
        assert not await delivered_over_tls(rooms)
        assert len(web.requests) == 1


async def test_a_policy_from_a_site_without_a_certificate_for_its_name_is_none(tmp_path: Path) -> None:
    async with town(tmp_path, sink={}, site="dest.test") as (rooms, web):
        assert not await delivered_over_tls(rooms)
        assert web.requests == []


async def test_a_policy_once_seen_holds_while_its_site_and_record_are_away(tmp_path: Path) -> None:
    async with town(tmp_path, outbound={"reuse_limit": 1}) as (rooms, web):
        assert await delivered_over_tls(rooms)
        await rooms.sink.wait_closed()
        rooms.dns.set("_mta-sts.dest.test", "TXT", ["v=STSv1; id=2;"])
        web.pages[PAGE] = UNFETCHABLE["missing"]
        rooms.sink.starttls = None
        rooms.sink.messages.clear()
        rooms.sink.commands.clear()
        later(rooms, days=6)
        await bounced_softly(rooms, "4.7.10")
        assert len(web.requests) == 2
        rooms.dns.remove("_mta-sts.dest.test")
        later(rooms, days=6, hours=23)
        await bounced_softly(rooms, "4.7.10")
        later(rooms, days=7, hours=1)
        assert not await delivered_over_tls(rooms)


async def test_no_session_and_no_memory_of_a_free_route_serves_a_domain_that_enforces(tmp_path: Path) -> None:
    async with town(tmp_path) as (rooms, _):
        rooms.dns.set("free.test", "MX", [(10, "mx.dest.test")])
        rooms.sink.play("starttls", "bad-handshake", times=1)
        assert not await delivered_over_tls(rooms, "bob@free.test")
        await rooms.until(lambda: rooms.pool.idle == 1)
        assert not await delivered_over_tls(rooms, "bob@free.test")
        await rooms.until(lambda: rooms.pool.idle == 1)
        assert [message.connection for message in rooms.sink.messages] == [2, 2]
        assert await delivered_over_tls(rooms)
        assert rooms.sink.messages[-1].connection == 3
        await rooms.until(lambda: rooms.pool.idle == 2)
        assert await delivered_over_tls(rooms)
        assert rooms.sink.messages[-1].connection == 3  # one that was verified is used again


async def test_a_clear_session_does_not_serve_after_a_policy_was_put_up(tmp_path: Path) -> None:
    async with town(tmp_path, sink={}) as (rooms, _):
        rooms.dns.remove("_mta-sts.dest.test")
        assert not await delivered_over_tls(rooms)
        await rooms.until(lambda: rooms.pool.idle == 1)
        rooms.dns.set("_mta-sts.dest.test", "TXT", ["v=STSv1; id=1;"])
        later(rooms, minutes=6)
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert events[-1][2].startswith("4.7.10")
        assert len(rooms.sink.messages) == 1
