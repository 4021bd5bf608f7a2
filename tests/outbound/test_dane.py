"""Mail for hosts with TLSA records in signed zones (DANE, RFC 7672): by real look-ups and handshakes."""

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from forwarder.net.tls import self_signed
from tests.outbound.house import House, house
from tests.outbound.town import bounced_softly, delivered_over_tls, later, serving, town


def digest(certificate: Path) -> str:
    """The SHA-256 of a certificate, as it stands in a record with selector 0."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()


def publish(rooms: House, *records: str, host: str = "mx.dest.test") -> None:
    rooms.dns.set(f"_{rooms.sink.port}._tcp.{host}", "TLSA", records)


@asynccontextmanager
async def village(
    folder: Path, *, records: tuple[str, ...] = ("3 0 1 {own}",), **options: Any
) -> AsyncIterator[House]:
    """A house in a world of signed zones; the host shows a certificate that no authority knows, in another's name."""
    pair = self_signed(["elsewhere.test"], folder / "host", valid_for=timedelta(minutes=-30))
    options = {
        "sink": {"starttls": serving(*pair)},
        "retry": {"delays": ["10m"]},
        "outbound": {"mta_sts": False},
    } | options
    async with house(folder, **options) as rooms:
        rooms.dns.signed = lambda name: True
        publish(rooms, *(record.format(own=digest(pair[0]), other="00" * 32) for record in records))
        yield rooms


async def test_mail_goes_to_the_certificate_that_is_meant(tmp_path: Path) -> None:
    async with village(tmp_path) as rooms:
        assert await delivered_over_tls(rooms)


@pytest.mark.parametrize("mode", ["opportunistic", "required", "off"])
async def test_tlsa_records_count_whatever_mode_of_tls_is_configured(tmp_path: Path, mode: str) -> None:
    async with village(tmp_path, outbound={"tls": mode, "mta_sts": False}) as rooms:
        assert await delivered_over_tls(rooms)
    async with village(
        tmp_path, outbound={"tls": mode, "mta_sts": False}, records=("3 0 1 {other}",)
    ) as rooms:
        await bounced_softly(rooms, "4.7.5")


async def test_a_host_that_shows_another_certificate_gets_nothing(tmp_path: Path) -> None:
    async with village(tmp_path, records=("3 0 1 {other}",)) as rooms:
        assert "TLSA" in await bounced_softly(rooms, "4.7.5")


async def test_a_certificate_for_another_name_is_wrong_though_its_authority_is_right(tmp_path: Path) -> None:
    async with village(tmp_path, records=("2 0 1 {own}",)) as rooms:
        await bounced_softly(rooms, "4.7.5")


@pytest.mark.parametrize(
    ("part", "enhanced"), [("454", "4.7.10"), ("550", "4.7.10"), ("bad-handshake", "4.7.5")]
)
async def test_mail_waits_when_a_handshake_does_not_come_about(
    tmp_path: Path, part: str, enhanced: str
) -> None:
    async with village(tmp_path) as rooms:
        rooms.sink.play("starttls", part)
        await bounced_softly(rooms, enhanced)
        assert rooms.sink.connections == 1


@pytest.mark.parametrize("records", [("3 0 1 {own}",), ("1 0 1 {own}", "3 9 1 {own}")])
async def test_mail_waits_for_a_host_that_offers_no_tls(tmp_path: Path, records: tuple[str, ...]) -> None:
    async with village(tmp_path, records=records, sink={}) as rooms:
        await bounced_softly(rooms, "4.7.10")


async def test_records_that_nobody_can_use_demand_tls_with_any_certificate(tmp_path: Path) -> None:
    async with village(tmp_path, records=("1 0 1 {other}", "3 9 1 {other}")) as rooms:
        assert await delivered_over_tls(rooms)


@pytest.mark.parametrize("unsigned", ["dest.test", "mx.dest.test", "_tcp"])
async def test_a_zone_that_is_not_signed_demands_nothing(tmp_path: Path, unsigned: str) -> None:
    async with village(tmp_path, records=("3 0 1 {other}",)) as rooms:
        rooms.dns.signed = lambda name: name != unsigned and unsigned not in name.split(".")
        assert await delivered_over_tls(rooms)
        asked = rooms.dns.count(f"_{rooms.sink.port}._tcp.mx.dest.test", "TLSA")
        assert asked == (
            unsigned == "_tcp"
        )  # servers of unsigned zones may stumble over the question (RFC 7672 2.2.2)


async def test_a_signed_zone_without_tlsa_records_demands_nothing(tmp_path: Path) -> None:
    async with village(tmp_path, sink={}) as rooms:
        rooms.dns.remove(f"_{rooms.sink.port}._tcp.mx.dest.test")
        assert not await delivered_over_tls(rooms)


async def test_nobody_asks_for_tlsa_records_when_dane_is_switched_off(tmp_path: Path) -> None:
    outbound = {"dane": False, "mta_sts": False}
    async with village(tmp_path, records=("3 0 1 {other}",), outbound=outbound) as rooms:
        assert await delivered_over_tls(rooms)
        assert rooms.dns.count(None, "TLSA") == 0


async def test_a_domain_without_mx_is_its_own_host(tmp_path: Path) -> None:
    async with village(tmp_path) as rooms:
        rooms.dns.set("host.test", "A", [rooms.sink.host])
        publish(rooms, "3 0 1 " + "00" * 32, host="host.test")
        (delivery,) = await rooms.accept("bob@host.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert events[-1][2].startswith("4.7.5")


@pytest.mark.parametrize("fault", ["servfail", "timeout"])
async def test_a_host_whose_records_cannot_be_looked_up_is_not_dialled(tmp_path: Path, fault: str) -> None:
    async with village(tmp_path) as rooms:
        rooms.dns.fault(f"_{rooms.sink.port}._tcp.mx.dest.test", fault)
        await bounced_softly(rooms, "4.4.3")
        assert rooms.sink.connections == 0


def add_a_better_host_whose_records_cannot_be_looked_up(rooms: House) -> None:
    rooms.dns.set("dest.test", "MX", [(1, "bad.dest.test"), (2, "mx.dest.test")])
    rooms.dns.set("bad.dest.test", "A", [rooms.origin.host])
    rooms.dns.fault(f"_{rooms.sink.port}._tcp.bad.dest.test", "servfail")


async def test_another_host_takes_what_one_without_an_answer_does_not_get(tmp_path: Path) -> None:
    async with village(tmp_path) as rooms:
        add_a_better_host_whose_records_cannot_be_looked_up(rooms)
        assert await delivered_over_tls(rooms)
        assert rooms.origin.connections == 0


async def test_what_the_others_refuse_waits_for_the_host_that_was_left_out(tmp_path: Path) -> None:
    async with village(tmp_path) as rooms:
        add_a_better_host_whose_records_cannot_be_looked_up(rooms)
        rooms.sink.play("connect", "554")
        (delivery,) = await rooms.accept("bob@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")


async def test_each_host_is_judged_by_its_own_records(tmp_path: Path) -> None:
    async with village(tmp_path, records=("3 0 1 {other}",)) as rooms:
        rooms.dns.set("dest.test", "MX", [(1, "mx.dest.test"), (2, "free.dest.test")])
        rooms.dns.set("free.dest.test", "A", [rooms.origin.host])
        (delivery,) = await rooms.accept("bob@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert [len(rooms.sink.messages), len(rooms.origin.messages)] == [0, 1]


async def test_at_expiry_the_report_says_that_it_was_about_encryption(tmp_path: Path) -> None:
    async with village(tmp_path, records=("3 0 1 {other}",), retry={"delays": ["100ms"]}) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test")
        await rooms.until(lambda: rooms.sink.connections)
        rooms.offset = timedelta(hours=2)
        (report,) = await rooms.origin.wait_for(1)
        assert b"Status: 5.7.5" in report.content
        assert (await rooms.events(delivery))[-1][0] == "HARD-BOUNCE"
        assert rooms.sink.messages == []


async def test_a_session_from_before_the_records_does_not_serve_after_them(tmp_path: Path) -> None:
    async with village(tmp_path, sink={}) as rooms:
        own = rooms.dns._records.pop((f"_{rooms.sink.port}._tcp.mx.dest.test", "TLSA"))
        assert not await delivered_over_tls(rooms)
        await rooms.until(lambda: rooms.pool.idle == 1)
        publish(rooms, *own)
        later(rooms, minutes=6)
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert events[-1][2].startswith("4.7.10")
        assert len(rooms.sink.messages) == 1


async def test_a_policy_holds_beside_the_records(tmp_path: Path) -> None:
    """RFC 8461 2: neither excuses from the other."""
    async with town(tmp_path) as (rooms, _):
        rooms.dns.signed = lambda name: True
        publish(rooms, "3 0 1 " + digest(tmp_path / "host" / "certificate.pem"))
        assert await delivered_over_tls(rooms)
    async with town(tmp_path) as (rooms, _):
        rooms.dns.signed = lambda name: True
        publish(rooms, "3 0 1 " + "00" * 32)
        await bounced_softly(rooms, "4.7.5")
    async with town(tmp_path, known=False) as (rooms, _):
        rooms.dns.signed = lambda name: True
        publish(rooms, "3 0 1 " + digest(tmp_path / "host" / "certificate.pem"))
        await bounced_softly(rooms, "4.7.5")
