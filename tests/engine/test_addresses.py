"""Addresses that are not addresses end in the session; those that are travel unchanged to the octet."""

import random

from tests.engine.town import MAIL, Town
from tests.peers.client import Answer

LONG_DOMAIN = b"@" + b".".join([b"d" * 60] * 5)
MALFORMED = {
    "NUL": b"<b\0b@example.com>",
    "NUL in the domain": b"<b@exam\0ple.com>",
    "octets that are no text": b"<\xff\xfe@example.com>",
    "no closing bracket": b"<b@example.com",
    "no brackets": b"b@example.com",
    "a comment": b"<(c)b@example.com>",
    "a comment behind": b"<b(c)@example.com>",
    "two dots": b"<b..b@example.com>",
    "a dot first": b"<.b@example.com>",
    "a dot last": b"<b@example.com.>",
    "an empty label": b"<b@example..com>",
    "a local part of 65 octets": b"<" + b"b" * 65 + b"@example.com>",
    "a domain of 256 octets and more": b"<b" + LONG_DOMAIN + b">",
    "a label of 64 octets": b"<b@" + b"d" * 64 + b".com>",
    "an address in an address": b"<<b@example.com>@example.com>",
    "a target behind a semicolon": b"<a;b@example.com>",
    "a target in a comment": b"<a(b@evil.test)@example.com>",
    "two addresses": b"<a@example.com, x@evil.test>",
    "a line end in quotes": b'<"a\\\r b"@example.com>',
    "a space": b"<a b@example.com>",
    "a control character": b"<a\x1bb@example.com>",
    "an open quote": b'<"b@example.com>',
    "two at signs": b"<x@evil.test@example.com>",
    "nothing before the at": b"<@example.com>",
    "nothing after the at": b"<b@>",
    "no domain": b"<b>",
    "a label that ends in a hyphen": b"<b@exam-.ple.com>",
    "a lone surrogate": b"<\xed\xa0\x80@example.com>",
}


def is_a_refusal(answer: Answer, enhanced: str) -> bool:
    return str(answer).startswith(
        (f"501 {enhanced}", "501 5.5.4", "553 5.1.", "501 5.5.2", "553 5.6.7", "555 5.5.4")
    )


async def test_malformed_addresses_are_refused_and_reach_no_store(either: Town) -> None:
    for name, path in MALFORMED.items():
        for smtputf8 in (b"", b" SMTPUTF8"):
            async with either.client() as client:
                await client.ehlo()
                await client.say(b"MAIL FROM:<ann@out.test>" + smtputf8 + b"\r\n")
                answer = await client.say(b"RCPT TO:" + path + b"\r\n")
                assert is_a_refusal(answer, "5.1.3"), (name, answer)
                assert (await client.say(b"DATA\r\n")).code == 554
                await client.say(b"RSET\r\n")
                answer = await client.say(b"MAIL FROM:" + path + smtputf8 + b"\r\n")
                assert is_a_refusal(answer, "5.1.7"), (name, answer)
                answers = await client.message(b"ann@out.test", [b"well@example.com"], MAIL)
                assert answers[-1].code == 250, name
    async with either.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<>\r\n")
        assert str(await client.say(b"RCPT TO:<>\r\n")).startswith("501 5.1.3")
    await either.goes_on()
    await either.settled()
    assert set(await either.statuses()) == {"QUEUED", "DELIVERED"}
    assert either.sink.messages == []


async def test_a_non_ascii_address_wants_smtputf8_of_everybody_on_the_way(town: Town) -> None:
    async with town.engine():
        old = await town.another_sink("127.0.0.4", "old.test", smtputf8=False)
        await town.alias("old", "jürgen@old.test")
        await town.alias("new", "jürgen@dest.test")
        async with town.client() as client:
            await client.ehlo()
            for command in (
                b"MAIL FROM:<j\xc3\xbcrgen@out.test>\r\n",
                b"MAIL FROM:<ann@b\xc3\xbccher.test>\r\n",
            ):
                assert str(await client.say(command)).startswith("553 5.6.7")
            await client.say(b"MAIL FROM:<ann@out.test>\r\n")
            assert str(await client.say(b"RCPT TO:<j\xc3\xbcrgen@example.com>\r\n")).startswith("553 5.6.7")
            await client.say(b"RSET\r\n")
            utf8 = {"parameters": b" SMTPUTF8"}
            for recipient in (b"new@example.com", b"old@example.com", "jürgen@example.com".encode()):
                answers = await client.message(b"ann@out.test", [recipient], MAIL, **utf8)  # type: ignore[arg-type]
                assert answers[-1].code == 250, recipient
        await town.sink.wait_for(2)
        assert sorted(m.recipients[0] for m in town.sink.messages) == ["inbox@dest.test", "jürgen@dest.test"]
        asked = {m.recipients[0]: "SMTPUTF8" in m.mail_parameters for m in town.sink.messages}
        assert asked == {"inbox@dest.test": False, "jürgen@dest.test": True}  # only where something needs it
        # One report, at once: another hour does not teach the host.
        (report,) = await town.origin.wait_for(1)
        assert b"\r\nStatus: 5.6.7\r\n" in report.content
        assert "jürgen".encode() not in report.content
        assert old.messages == []
        assert not any(command.startswith(b"MAIL") for command in old.commands)
        await town.goes_on()
        await town.settled()
        assert len(town.origin.messages) == 1


async def test_a_non_ascii_recipient_is_nothing_to_the_host_it_leads_to(town: Town) -> None:
    """Not even in our Received field: everything on the way to an ordinary mailbox is ASCII again."""
    async with town.engine():
        old = await town.another_sink("127.0.0.4", "old.test", smtputf8=False)
        await town.alias("jürgen", "plain@old.test")
        async with town.client() as client:
            await client.ehlo()
            answers = await client.message(
                b"ann@out.test", ["jürgen@example.com".encode()], MAIL, parameters=b" SMTPUTF8"
            )
            assert answers[-1].code == 250
        (message,) = await old.wait_for(1)
        assert message.recipients == ("plain@old.test",)
        assert message.content.isascii()
        await town.settled()
        assert town.origin.messages == []


async def test_domains_are_the_same_in_both_spellings(engine: Town) -> None:
    engine.dns.mail_host("xn--bcher-kva.test", engine.sink.host)
    await engine.host("xn--mnchen-3ya.example", {"info": "leser@bücher.test"})
    async with engine.client() as client:
        await client.ehlo()
        answers = await client.message(b"ann@out.test", [b"info@xn--mnchen-3ya.example"], MAIL)
        assert answers[-1].code == 250
        answers = await client.message(
            b"ann@out.test", ["info@MÜNCHEN.example".encode()], MAIL, parameters=b" SMTPUTF8"
        )
        assert answers[-1].code == 250
    await engine.sink.wait_for(2)
    assert {m.recipients for m in engine.sink.messages} == {("leser@xn--bcher-kva.test",)}
    await engine.goes_on()


async def test_what_goes_out_is_what_came_in_to_the_octet(engine: Town) -> None:
    """A hundred local parts by chance, in the reverse-path and in a destination that repeats them."""
    chance = random.Random(5321)
    atoms = "abcXYZ019!#$%&'*/=?^_`{|}~-"
    contents: dict[str, str] = {}  # what the local part is -> how it is spelled
    while len(contents) < 100:
        if chance.random() < 0.7:
            words = [
                "".join(chance.choices(atoms, k=chance.randint(1, 9))) for _ in range(chance.randint(1, 3))
            ]
            contents[".".join(words)] = ".".join(words)
        else:
            inside = "".join(chance.choices(atoms + " .@,;:<>()[]", k=chance.randint(1, 20))) + " "
            contents[inside] = f'"{inside}"'
    await engine.host("echo.example", {"(.*)": "$1@echo.test"})
    echo = await engine.another_sink("127.0.0.5", "echo.test")
    async with engine.client() as client:
        await client.ehlo()
        for spelled in map(str.encode, contents.values()):
            answers = await client.message(spelled + b"@out.test", [spelled + b"@echo.example"], MAIL)
            assert answers[-1].code == 250, (spelled, answers)
    await echo.wait_for(100, timeout=30)
    wanted = {f"RCPT TO:<{spelled}@echo.test>".encode() for spelled in contents.values()}
    assert {line for line in echo.commands if line.startswith(b"RCPT")} == wanted
    said = {
        line.partition(b"<")[2].partition(b"@mx.test>")[0]
        for line in echo.commands
        if line.startswith(b"MAIL")
    }
    senders = {path.strip(b'"').decode().partition("=out.test=")[2] for path in said}
    assert senders == set(contents)
    await engine.goes_on()
