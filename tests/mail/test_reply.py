"""Replies: what goes out is clean SMTP; what comes in cannot hurt."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply, parse_reply

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_every_reply_we_give(name: str) -> None:
    reply = CONSTANTS[name]
    assert 200 <= reply.code < 600
    if reply.enhanced:
        assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", reply.enhanced)
        assert int(reply.enhanced[0]) == reply.code // 100
    else:
        assert reply.code in (220, 334, 354)
    assert len(reply.wire()) <= 512
    assert reply.wire().endswith(b"\r\n")
    assert reply.wire() is reply.wire()


def test_one_line_and_several() -> None:
    assert replies.NO_SUCH_USER.wire() == b"550 5.1.1 no such address here\r\n"
    assert replies.queued_as("0" * 32).wire() == b"250 2.0.0 queued as " + b"0" * 32 + b"\r\n"
    assert replies.greeting("mx1.example.net").wire() == b"220 mx1.example.net ESMTP ready\r\n"
    assert replies.hello("mx1.example.net").wire() == b"250 mx1.example.net\r\n"
    assert (
        replies.hello("mx1.example.net", ("SIZE 1000", "8BITMIME")).wire()
        == b"250-mx1.example.net\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"
    )
    assert Reply(code=550, enhanced="5.7.1", text="a\nb").wire() == b"550-5.7.1 a\r\n550 5.7.1 b\r\n"


def test_text_of_strangers_is_escaped_on_the_wire() -> None:
    reply = replies.POLICY_REFUSAL.saying("a\r b\0\x1b[2Jé\u2028" + "x" * 2000)
    wire = reply.wire()
    assert wire.startswith(b"550 5.7.1 a\\r b\\x00\\x1b[2J\\xe9\\u2028xxx")
    assert wire.count(b"\r\n") == 1
    assert len(wire) <= 512


def test_classes() -> None:
    assert replies.OK.positive
    assert not replies.START_INPUT.positive
    assert replies.TROUBLE.temporary
    assert replies.RELAY_DENIED.permanent
    assert str(replies.RELAY_DENIED) == "554 5.7.1 relay access denied"


@pytest.mark.parametrize(
    ("lines", "code", "enhanced", "text"),
    [
        (b"250 2.1.5 ok\r\n", 250, "2.1.5", "ok"),
        (b"250 ok", 250, "", "ok"),
        (b"250\r\n", 250, "", ""),
        (b"250-first\r\n250 last\r\n", 250, "", "first last"),
        (b"550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n", 550, "5.1.1", "no such user"),
        (b"550 4.7.1 class does not agree\r\n", 550, "", "4.7.1 class does not agree"),
        (b"550 5.7.1\r\n", 550, "5.7.1", ""),
        (b"550 5.7.1abc\r\n", 550, "", "5.7.1abc"),
        (b"451 caf\xc3\xa9\r\n", 451, "", "café"),
        (b"354 go\n", 354, "", "go"),
    ],
)
def test_what_peers_say(lines: bytes, code: int, enhanced: str, text: str) -> None:
    reply = parse_reply(lines)
    assert (reply.code, reply.enhanced, reply.text) == (code, enhanced, text)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\r\n",
        b"banana\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"250x\r\n",
        b"150 no such class\r\n",
        b"650 x\r\n",
        b"000 x\r\n",
        b"250-a\r\n550 b\r\n",
        b"250-a\r\nbanana\r\n",
        b"\xff\xfe\x00\r\n",
        "٢٥٠ ok\r\n".encode(),
    ],
)
def test_what_cannot_be_understood_is_temporary(lines: bytes) -> None:
    reply = parse_reply(lines)
    assert (reply.code, reply.enhanced) == (451, "4.5.0")


def test_hostile_text_is_escaped_and_bounded() -> None:
    reply = parse_reply(b"550 5.0.0 a\rb\x00c\x1b[2J\xff Reporting-MTA: x\r\n")
    assert reply.text == "a\\rb\\x00c\\x1b[2J\\xff Reporting-MTA: x"
    assert len(parse_reply(b"550 " + b"x" * 10_000_000).text.encode()) <= 1024
    long = parse_reply(b"550-x\r\n" * 1_000_000 + b"550 y\r\n")
    assert len(long.text.encode()) <= 1024
    assert (
        long.code == 550
    )  # the bound never falls into a line, which would make a refusal or a 250 unreadable


@given(
    st.one_of(st.binary(max_size=200), st.binary(max_size=40).map(lambda tail: b"550-" + tail + b"\r\n550 x"))
)
def test_reading_a_reply_never_raises(lines: bytes) -> None:
    reply = parse_reply(lines)
    assert 200 <= reply.code < 600
    assert reply.text.isprintable()
    assert len(reply.text.encode()) <= 1024
    assert str(reply).isprintable()


@given(st.text(max_size=600))
def test_writing_a_reply_is_always_clean(text: str) -> None:
    wire = Reply(code=550, enhanced="5.1.1", text=text).wire()
    assert all(re.fullmatch(rb"550[ -]5\.1\.1 [ -~]*", line) for line in wire[:-2].split(b"\r\n"))
    assert max(map(len, wire.split(b"\r\n"))) <= 510
    assert parse_reply(wire).code == 550
