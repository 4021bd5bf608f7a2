"""What a host said before it hung up counts: a refusal is a refusal, and only who heard nothing is tried again."""

import pytest

from tests.engine.town import MAIL, Town


@pytest.mark.parametrize("phase", ["ehlo", "mail", "rcpt"])
@pytest.mark.parametrize("part", ["521", "550-then-close"])
async def test_a_refusal_before_the_close_is_final(town: Town, phase: str, part: str) -> None:
    """RFC 7504 4: a host may hang up after 521, and many do after any refusal, whatever was pipelined after it."""
    async with town.engine(retry={"delays": ["200ms"]}):
        town.sink.play(phase, part)
        assert (await town.send("ann@out.test", "to.person@example.com", MAIL)).code == 250
        (report,) = await town.origin.wait_for(1)
        assert (
            f"\r\nDiagnostic-Code: smtp; {part[:3]} 5.7.0 as told by the test\r\n".encode() in report.content
        )
        assert town.sink.connections == 1
        await town.goes_on()


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("phase", "part"), [("data", "drop"), ("data", "421"), ("dot", "drop"), ("dot", "421")]
)
async def test_who_was_refused_does_not_wait_with_who_was_lost(
    town: Town, phase: str, part: str, pipelining: bool
) -> None:
    town.sink.pipelining = pipelining
    async with town.engine(retry={"delays": ["10m"]}):
        town.sink.play(phase, part, times=1)
        recipients = ["to.550-at-rcpt@example.com", "to.fine@example.com"]
        assert (await town.send("ann@out.test", recipients, MAIL)).code == 250
        await town.wait_for_event("to.fine@example.com", "SOFT-BOUNCE")
        (report,) = await town.origin.wait_for(1)
        assert b"\r\nFinal-Recipient: rfc822; to.550-at-rcpt@example.com\r\n" in report.content
        assert report.content.count(b"\r\nFinal-Recipient: ") == 1
        statuses = [status for status, _, _ in await town.events_for("to.550-at-rcpt@example.com")]
        assert statuses == ["QUEUED", "HARD-BOUNCE"]
        await town.goes_on()


async def test_a_closed_door_is_not_the_last_word_while_a_better_host_cannot_be_looked_up(town: Town) -> None:
    async with town.engine(retry={"delays": ["10m"]}, dns={"timeout": "300ms"}):
        town.well.play("connect", "554", times=1)
        town.dns.set("half.test", "MX", [(10, "mx1.half.test"), (20, "mx.well.test")])
        town.dns.set("mx1.half.test", "A", [town.sink.host])
        town.dns.fault("mx1.half.test", "servfail")
        recipient = await town.towards("half.test")
        assert (await town.send("ann@out.test", recipient, MAIL)).code == 250
        await town.well.wait_until(lambda: town.well.connections == 1)
        assert (await town.wait_for_event(recipient, "SOFT-BOUNCE"))[1] == 554
        assert town.origin.messages == []
        await town.goes_on()


async def test_the_closed_door_of_a_smarthost_is_our_trouble(town: Town) -> None:
    """It says so of us, and to all mail; who wrote it is not to hear that its recipients refuse it."""
    async with town.engine(outbound={"smarthost": f"{town.sink.host}:{town.sink.port}"}):
        for phase, part in (("connect", "554"), ("ehlo", "550-then-close")):
            town.sink.play(phase, part, times=1)
            assert (await town.send("ann@out.test", f"to.{phase}@example.com", MAIL)).code == 250
            await town.wait_for_event(f"to.{phase}@example.com", "DELIVERED")
            statuses = [status for status, _, _ in await town.events_for(f"to.{phase}@example.com")]
            assert statuses == ["QUEUED", "SOFT-BOUNCE", "DELIVERED"]
            await town.sink.close()
            await town.sink.start()  # a new session for the next
        assert [message.recipients for message in town.sink.messages] == [
            ("connect@dest.test",),
            ("ehlo@dest.test",),
        ]
        assert town.errors == []


async def test_hosts_of_our_own_preference_are_left_out_whatever_the_turn(town: Town) -> None:
    """RFC 5321 5.1: also when we are one of them by our address only."""
    port = town.sink.port
    async with town.engine(mx={"listen": ["127.0.0.1:0", f"127.0.0.6:{port}"]}):
        recipients = []
        for number in range(10):
            domain = f"equal{number}.test"
            town.dns.set(domain, "MX", [(10, f"us.{domain}"), (10, "mx.dest.test")])
            town.dns.set(f"us.{domain}", "A", ["127.0.0.6"])
            recipients.append(await town.towards(domain))
        assert (await town.send("", recipients, MAIL)).code == 250
        for recipient in recipients:
            _, _, text = await town.wait_for_event(recipient, "HARD-BOUNCE")
            assert text.startswith("5.4.6")
        assert town.sink.connections == 0
        await town.goes_on()


async def test_a_host_that_names_all_recipients_does_not_tell_the_sender_where_they_are(engine: Town) -> None:
    await engine.alias("one", "private-one@dest.test")
    await engine.alias("two", "private-two@dest.test")
    await engine.alias("number", "550@dest.test")
    engine.sink.play("dot", "550 5.7.1 <private-one@dest.test>: spam; <private-two@dest.test>: spam", times=1)
    assert (await engine.send("ann@out.test", ["one@example.com", "two@example.com"], MAIL)).code == 250
    (report,) = await engine.origin.wait_for(1)
    assert b"private" not in report.content
    said = b"\r\nDiagnostic-Code: smtp; 550 5.7.1 <one@example.com>: spam; <two@example.com>: spam"
    assert report.content.count(said) == 2
    # The code of the reply is no part of an address, even where it looks like one.
    engine.sink.play("rcpt", "550", times=2)  # said in a kept session it is asked again in a new one
    assert (await engine.send("ann@out.test", "number@example.com", MAIL)).code == 250
    report = (await engine.origin.wait_for(2))[-1]
    assert b"\r\nDiagnostic-Code: smtp; 550 5.7.0 as told by the test\r\n" in report.content
    await engine.goes_on()
