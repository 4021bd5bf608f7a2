"""A destination that demands TLS: its host with a certificate, the site with its MTA-STS policy, its TLSA records."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from forwarder.net.tls import self_signed
from tests.outbound.house import House, house
from tests.peers.webhook_server import WebhookServer

PAGE = "/.well-known/mta-sts.txt"
PLAIN = {"Content-Type": "text/plain"}


def policy(*, mode: str = "enforce", mx: Sequence[str] = ("mx.dest.test",)) -> bytes:
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in mx), "max_age: 604800"]
    return "\r\n".join(lines).encode()


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@asynccontextmanager
async def town(
    folder: Path,
    *,
    mode: str = "enforce",
    mx: Sequence[str] = ("mx.dest.test",),
    shown: Sequence[str] = ("mx.dest.test",),  # names in the certificate of the MX host
    valid_for: timedelta = timedelta(days=1),
    known: bool = True,  # that certificate is trusted
    site: str = "mta-sts.dest.test",  # the name in the certificate of the policy's site
    **options: Any,
) -> AsyncIterator[tuple[House, WebhookServer]]:
    """A house, and a site with the policy of ``dest.test``, whose host offers STARTTLS."""
    site_pair = self_signed([site], folder / "site")
    host_pair = self_signed(shown, folder / "host", valid_for=valid_for)
    trusted = [site_pair[0], *([host_pair[0]] if known else [])]
    options = {"sink": {"starttls": serving(*host_pair)}, "retry": {"delays": ["10m"]}} | options
    async with (
        WebhookServer(tls=serving(*site_pair)) as web,
        house(folder, trusted=trusted, policy_port=web.port, **options) as rooms,
    ):
        web.pages[PAGE] = (200, PLAIN, policy(mode=mode, mx=mx))
        rooms.dns.set("mta-sts.dest.test", "A", ["127.0.0.1"])
        rooms.dns.set("_mta-sts.dest.test", "TXT", ["v=STSv1; id=1;"])
        yield rooms, web


def later(rooms: House, **span: float) -> None:
    """So long after the beginning; a route is looked up anew."""
    rooms.offset = timedelta(**span)
    rooms.dispatcher._lookups._known.clear()


async def bounced_softly(rooms: House, enhanced: str) -> str:
    """The reply of a delivery that waits, and of which the host has seen nothing in clear."""
    (delivery,) = await rooms.accept("bob@dest.test")
    events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
    _, code, message = events[-1]
    assert (code, message.split()[0]) == (451, enhanced)
    assert rooms.sink.messages == []
    assert {command[:4] for command in rooms.sink.commands} <= {b"EHLO", b"STAR", b"QUIT"}
    assert await rooms.reports() == []
    return message


async def delivered_over_tls(rooms: House, address: str = "bob@dest.test") -> bool:
    """Bring a message to its destination; whether it went over TLS."""
    (delivery,) = await rooms.accept(address)
    await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
    return rooms.sink.messages[-1].tls
