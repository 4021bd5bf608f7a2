"""Nothing hides a second message in the first, neither on the way in nor on the way out."""

import base64

import pytest

from tests.engine.town import MAIL, Town
from tests.peers.client import any_certificate

BARE = [b"\n.\n", b"\r.\r", b"\r.\n", b"\n.\r", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r"]
WITH_NUL = [b"\r\n\0.\r\n", b"\r\n.\0\r\n"]
SECOND = (
    b"MAIL FROM:<admin@victim.test>\r\nRCPT TO:<info@example.com>\r\nDATA\r\n"
    b"From: admin@victim.test\r\nSubject: smuggled\r\n\r\nsmuggled"
)


async def test_no_look_alike_of_the_end_starts_a_second_message(engine: Town) -> None:
    for ending in BARE + WITH_NUL:
        async with engine.client() as client:
            await client.ehlo()
            await client.say(b"MAIL FROM:<ann@out.test>\r\n")
            await client.say(b"RCPT TO:<info@example.com>\r\n")
            assert (await client.say(b"DATA\r\n")).code == 354
            await client.send(MAIL + b"before" + ending + SECOND)
            assert await client.silent(0.05), ending
            answer = await client.say(b"\r\n.\r\n")
            if ending in WITH_NUL:
                assert answer.code == 250, (ending, answer)
            else:
                assert str(answer).startswith("521 5.5.2"), (ending, answer)
                assert await client.closed()
    await engine.goes_on()
    await engine.settled()
    # Those with NUL are one message each, whose text holds what looked like another.
    assert len(engine.sink.messages) == len(WITH_NUL)
    assert all(message.reverse_path.endswith("=ann@mx.test") for message in engine.sink.messages)
    assert [code for code, _ in await engine.refused_events()] == [521] * len(BARE)


async def test_look_alikes_become_text_where_newlines_are_normalised(town: Town) -> None:
    async with town.engine(mx={"bare_newline": "normalize"}):
        for ending in BARE:
            assert (
                await town.send("ann@out.test", "info@example.com", MAIL + b"a" + ending + SECOND + b"\r\n")
            ).code == 250
        await town.sink.wait_for(len(BARE))
        await town.goes_on()
        await town.settled()
        for message in town.sink.messages:
            assert message.reverse_path.endswith("=ann@mx.test")
            assert message.raw.count(b"\r\n.\r\n") == 1, "only the true end"
            assert bare(message.raw) == 0
            assert await town.verified(message) == [True, True]
        assert len(town.sink.messages) == len(BARE)


@pytest.mark.parametrize("bare_newline", ["reject", "normalize"])
async def test_bare_newlines_in_the_text(town: Town, bare_newline: str) -> None:
    async with town.engine(mx={"bare_newline": bare_newline}):
        answer = await town.send("ann@out.test", "info@example.com", MAIL + b"line1\nline2\r\na\rb\r\n")
        if bare_newline == "reject":
            assert str(answer).startswith("550 5.5.2")
        else:
            assert str(answer).startswith("250 2.0.0")
            (message,) = await town.sink.wait_for(1)
            assert bare(message.raw) == 0
            assert message.content.endswith(b"line1\r\nline2\r\na\r\nb\r\n")
            assert await town.verified(message) == [True, True]
        await town.goes_on()
        assert len(town.sink.messages) == (bare_newline == "normalize")


async def test_submitted_mail_smuggles_nothing_out_and_is_signed_as_it_leaves(engine: Town) -> None:
    async with engine.logged_in("ann@example.com") as client:
        content = b"From: ann@example.com\r\nSubject: x\r\n\r\na\n.\nMAIL FROM:<x@y.test>\n.\r\nb\r.\rc\r\n"
        answers = await client.message(b"ann@example.com", [b"bob@dest.test"], content)
        assert answers[-1].code == 250
    (message,) = await engine.sink.wait_for(1)
    assert message.reverse_path == "ann@example.com"
    assert bare(message.raw) == 0
    assert message.raw.count(b"\r\n.\r\n") == 1
    assert message.content.endswith(b"\r\na\r\n.\r\nMAIL FROM:<x@y.test>\r\n.\r\nb\r\n.\r\nc\r\n")
    assert await engine.verified(message, domain="example.com") == [True, True]
    await engine.goes_on()
    assert len(engine.sink.messages) == 1


async def test_commands_end_in_crlf_and_addresses_hold_no_line_end(engine: Town) -> None:
    async with engine.client() as client:
        await client.ehlo()
        assert str(await client.say(b"NOOP\n")).startswith("500 5.5.2")
        await client.say(b"MAIL FROM:<ann@out.test>\r\n")
        assert str(await client.say(b'RCPT TO:<"a\\\r b"@example.com>\r\n')).startswith("501 5.1.3")
        assert str(await client.say(b"RCPT TO:<info@example.com>\n")).startswith("500 5.5.2")
        # What follows a bare LF in the same segment is a line of its own, and no recipient was taken.
        assert (await client.say(b"DATA\r\n")).code == 554
    await engine.goes_on()
    await engine.wait_for_statuses("QUEUED", "DELIVERED", domain="example.com")


async def test_what_is_said_before_the_handshake_has_no_effect(engine: Town) -> None:
    for listener in ("mx", "submission"):
        async with engine.client(listener) as client:
            await client.ehlo()
            assert (await client.say(b"STARTTLS\r\nMAIL FROM:<inj@evil.test>\r\n")).code == 220
            await client.handshake()
            await client.ehlo()
            answer = await client.say(b"RCPT TO:<info@example.com>\r\n")
            assert str(answer).startswith(("503 5.5.1", "530 5.7.0")), answer
    await engine.goes_on()
    assert engine.sink.messages == []


async def test_tls_is_begun_once(engine: Town) -> None:
    await engine.credential("ann@example.com", "a long password")
    for listener in ("mx", "submission"):
        async with engine.client(listener) as client:
            assert "STARTTLS" in (await client.ehlo()).text
            await client.starttls()
            assert "STARTTLS" not in (await client.ehlo()).text
            assert str(await client.say(b"STARTTLS\r\n")).startswith("503 5.5.1")
            if listener == "submission":
                assert (await client.login("ann@example.com", "a long password")).code == 235
                assert str(await client.say(b"STARTTLS\r\n")).startswith("503 5.5.1")
                continue
            answers = await client.message(b"ann@out.test", [b"info@example.com"], MAIL)
            assert answers[-1].code == 250
    async with engine.client("submission-tls", tls=any_certificate()) as client:
        assert "STARTTLS" not in (await client.ehlo()).text
        assert str(await client.say(b"STARTTLS\r\n")).startswith("503 5.5.1")
        plain = base64.b64encode(b"\0ann@example.com\0a long password")
        assert (await client.say(b"AUTH PLAIN " + plain + b"\r\n")).code == 235
    await engine.sink.wait_for(1)
    await engine.goes_on()


def bare(raw: bytes) -> int:
    """How many CR and LF are not part of a CRLF."""
    return raw.count(b"\r") + raw.count(b"\n") - 2 * raw.count(b"\r\n")
