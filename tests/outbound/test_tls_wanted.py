"""A host that insists on TLS, with which it failed just now: nobody's mail bounces for that."""

from datetime import timedelta
from pathlib import Path

import pytest

from forwarder.mail.outcome import wants_tls
from forwarder.mail.reply import parse_reply
from forwarder.net.tls import self_signed
from tests.outbound.house import house
from tests.outbound.town import serving

SOON = {"delays": ["100ms"]}


@pytest.mark.parametrize(
    ("part", "phase", "refusal"),
    [("454", "mail", "530"), ("bad-handshake", "mail", "530"), ("454", "rcpt", "530-then-close")],
)
async def test_what_is_refused_in_clear_for_want_of_tls_is_sent_over_tls_the_next_time(
    tmp_path: Path, part: str, phase: str, refusal: str
) -> None:
    pair = self_signed(["mx.dest.test"], tmp_path / "host", valid_for=timedelta(days=1))
    async with house(tmp_path, retry=SOON, sink={"starttls": serving(*pair)}) as rooms:
        rooms.sink.play("starttls", part, times=1)
        rooms.sink.play(phase, refusal, times=1)
        [delivery] = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert events[1][1] == 451
        assert events[1][2].startswith(
            "4.7.5 the TLS handshake with the host failed: in clear it says 530 5.7.0"
        )
        (message,) = rooms.sink.messages
        assert message.tls
        assert await rooms.reports() == []


async def test_where_no_tls_is_offered_the_refusal_is_the_end(tmp_path: Path) -> None:
    async with house(tmp_path, retry=SOON) as rooms:
        rooms.sink.play("mail", "530")
        [delivery] = await rooms.accept("bob@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")


async def test_so_it_is_where_something_else_is_the_matter(tmp_path: Path) -> None:
    pair = self_signed(["mx.dest.test"], tmp_path / "host", valid_for=timedelta(days=1))
    async with house(tmp_path, retry=SOON, sink={"starttls": serving(*pair)}) as rooms:
        rooms.sink.play("starttls", "454")
        [delivery] = await rooms.accept("550-at-rcpt@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (b"530 5.7.0 Must issue a STARTTLS command first", True),
        (b"530 TLS first", True),
        (b"550 5.7.10 encryption needed", True),
        (b"550 5.7.29 not sent over TLS", True),
        (b"550 5.7.1 we do not like you", False),
        (b"550 5.1.1 no such user", False),
        (b"450 4.7.10 encryption needed", False),  # that is temporary by itself
    ],
)
def test_wants_tls(said: bytes, wanted: bool) -> None:
    assert wants_tls(parse_reply(said)) is wanted
