"""What becomes of a delivery when the destination misbehaves: the event, the queue, the report."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from forwarder.mail import trace
from forwarder.mail.address import parse_address
from tests.outbound.house import CONTENT, SECRET, house

SOON = {"delays": ["100ms"]}
PHASES = ("connect", "ehlo", "mail", "rcpt", "data", "dot")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("part", ["drop", "421", "450"])
async def test_a_temporary_failure_keeps_the_delivery_and_tells_nobody(
    tmp_path: Path, phase: str, part: str
) -> None:
    async with house(tmp_path) as rooms:
        rooms.sink.play(phase, part)
        if phase == "ehlo":
            rooms.sink.play("helo", part)
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert 400 <= events[-1][1] < 500
        assert events[-1][2].startswith("4.") or part in ("421", "450")
        (row,) = await rooms.waiting()
        assert row.state == "queued"
        assert row.attempts == 1
        assert await rooms.reports() == []


@pytest.mark.parametrize("phase", PHASES)
async def test_a_permanent_refusal_makes_one_report_with_the_host_s_words(tmp_path: Path, phase: str) -> None:
    async with house(tmp_path) as rooms:
        rooms.sink.play(phase, "550")
        if phase == "ehlo":
            rooms.sink.play("helo", "550")
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")
        assert events[-1][1] == 550
        (report,) = await rooms.origin.wait_for(1)
        assert report.reverse_path == ""
        assert report.recipients == ("ann@origin.test",)
        assert b"550" in report.content
        assert b"alias@hosted.test" in report.content
        assert b"bob@dest.test" not in report.content
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert await rooms.counts() == (0, 0)
        assert len(await rooms.reports()) == 1
        assert rooms.sink.messages == []


async def test_the_retry_delivers_with_the_same_envelope_and_message_id(tmp_path: Path) -> None:
    async with house(tmp_path, retry=SOON) as rooms:
        (delivery,) = await rooms.accept("450-at-rcpt-1x@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        (message,) = rooms.sink.messages
        assert b"\r\nMessage-ID: <1@origin.test>\r\n" in message.content
        first, second = [c for c in rooms.sink.commands if c.startswith(b"MAIL")]
        assert first == second


@pytest.mark.parametrize(("content", "said"), [(CONTENT, False), (CONTENT + b"gr\xfc\xdfe\r\n", True)])
async def test_octets_that_are_no_ascii_are_announced(tmp_path: Path, content: bytes, said: bool) -> None:
    async with house(tmp_path) as rooms:
        await rooms.accept("bob@dest.test", content=content)
        (message,) = await rooms.sink.wait_for(1)
        assert ("BODY=8BITMIME" in message.mail_parameters) is said
        assert message.content.endswith(content)


async def test_recipients_of_one_transaction_are_judged_one_by_one(tmp_path: Path) -> None:
    async with house(tmp_path, retry=SOON) as rooms:
        good, later, bad = await rooms.accept(
            "good@dest.test",
            "450-at-rcpt-1x@dest.test",
            "550-at-rcpt@dest.test",
            recipient="list@hosted.test",
        )
        await rooms.until_statuses(good, "QUEUED", "DELIVERED")
        await rooms.until_statuses(bad, "QUEUED", "HARD-BOUNCE")
        await rooms.until_statuses(later, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert [m.recipients for m in rooms.sink.messages] == [
            ("good@dest.test",),
            ("450-at-rcpt-1x@dest.test",),
        ]
        assert rooms.sink.commands.count(b"RCPT TO:<550-at-rcpt@dest.test>") == 1
        await rooms.origin.wait_for(1)
        assert len(await rooms.reports()) == 1


@pytest.mark.parametrize("code", ["452", "552"])
async def test_who_was_one_too_many_is_named_to_the_same_host_at_once(tmp_path: Path, code: str) -> None:
    """RFC 5321 4.5.3.1.10: the client goes on with the rest in another transaction; 552 means 452 there."""
    async with house(tmp_path) as rooms:
        good, many = await rooms.accept("good@dest.test", f"{code}-at-rcpt-1x@dest.test")
        for delivery in (good, many):
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        first, second = rooms.sink.messages
        assert (first.recipients, second.recipients) == (
            ("good@dest.test",),
            (f"{code}-at-rcpt-1x@dest.test",),
        )
        assert first.connection == second.connection
        assert await rooms.reports() == []


async def test_who_is_refused_for_now_is_named_to_the_next_host_and_not_to_the_same_again(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as rooms:
        rooms.dns.set("dest.test", "MX", [(10, "mx.dest.test"), (20, "next.dest.test")])
        rooms.dns.set("next.dest.test", "A", [rooms.origin.host])
        rooms.sink.play("rcpt", "450", times=1)
        for delivery in await rooms.accept("busy@dest.test", "good@dest.test"):
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert [m.recipients for m in rooms.sink.messages] == [("good@dest.test",)]
        assert [m.recipients for m in rooms.origin.messages] == [("busy@dest.test",)]


async def test_who_was_one_too_many_does_not_end_by_what_another_was_told(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        later, bad = await rooms.accept("452-at-rcpt@dest.test", "550-at-rcpt@dest.test")
        await rooms.until_statuses(bad, "QUEUED", "HARD-BOUNCE")
        events = await rooms.until_statuses(later, "QUEUED", "SOFT-BOUNCE")
        assert events[-1][1] == 452


async def test_in_a_kept_session_too_everybody_s_log_says_what_the_host_said_of_him(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        await rooms.accept("first@dest.test")
        await rooms.sink.wait_for(1)
        await rooms.until(lambda: rooms.pool.idle == 1)
        later, bad = await rooms.accept("450-at-rcpt@dest.test", "550-at-rcpt@dest.test")
        await rooms.until_statuses(bad, "QUEUED", "HARD-BOUNCE")
        events = await rooms.until_statuses(later, "QUEUED", "SOFT-BOUNCE")
        assert events[-1][1] == 450


@pytest.mark.parametrize("disclosed", [False, True])
async def test_failures_of_one_attempt_share_one_report(tmp_path: Path, disclosed: bool) -> None:
    """How many destinations an alias has is as private as they are."""
    async with house(tmp_path, outbound={"disclose_destination": disclosed}) as rooms:
        to = ["550-at-rcpt@dest.test", "551-at-rcpt@dest.test", "553-at-rcpt@dest.test"]
        message = rooms.message(*to, recipient="list@hosted.test")
        other = replace(message.deliveries[2], recipient=parse_address("other@hosted.test"))
        message = replace(message, deliveries=(*message.deliveries[:2], other))
        await rooms.queue.enqueue(message)
        rooms.dispatcher.hand_over(message)
        for delivery in message.deliveries:
            await rooms.until_statuses(delivery.id, "QUEUED", "HARD-BOUNCE")
        (report,) = await rooms.origin.wait_for(1)
        lines = report.content.split(b"\r\n")
        assert [
            line for line in lines if line.startswith((b"Final-Recipient", b"X-Actual", b"Diagnostic"))
        ] == (
            [
                b"Final-Recipient: rfc822; list@hosted.test",
                b"X-Actual-Recipient: rfc822; 550-at-rcpt@dest.test",
                b"Diagnostic-Code: smtp; 550 5.7.0 as told by the test",
                b"Final-Recipient: rfc822; list@hosted.test",
                b"X-Actual-Recipient: rfc822; 551-at-rcpt@dest.test",
                b"Diagnostic-Code: smtp; 551 5.7.0 as told by the test",
                b"Final-Recipient: rfc822; other@hosted.test",
                b"X-Actual-Recipient: rfc822; 553-at-rcpt@dest.test",
                b"Diagnostic-Code: smtp; 553 5.7.0 as told by the test",
            ]
            if disclosed
            else [
                b"Final-Recipient: rfc822; list@hosted.test",
                b"Diagnostic-Code: smtp; 550 5.7.0 as told by the test",
                b"Final-Recipient: rfc822; other@hosted.test",
                b"Diagnostic-Code: smtp; 553 5.7.0 as told by the test",
            ]
        )
        assert len(await rooms.reports()) == 1


async def test_a_destination_that_fails_later_makes_one_report_more(tmp_path: Path) -> None:
    async with house(tmp_path, retry={"delays": ["100ms"], "give_up_after": "1h"}) as rooms:
        gone, later = await rooms.accept("550-at-rcpt@dest.test", "451-at-rcpt@dest.test")
        await rooms.until_statuses(gone, "QUEUED", "HARD-BOUNCE")
        await rooms.origin.wait_for(1)
        rooms.offset = timedelta(hours=2)
        await rooms.until(lambda: _gave_up(rooms, later))
        reports = await rooms.origin.wait_for(2)
        assert [report.content.count(b"\r\nFinal-Recipient: ") for report in reports] == [1, 1]
        assert [report.content.count(b"\r\nStatus: 5.4.7\r\n") for report in reports] == [0, 1]
        assert len(await rooms.reports()) == 2


async def test_the_null_reverse_path_gets_no_report(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("550-at-rcpt@dest.test", sender="")
        events = await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")
        assert b"MAIL FROM:<>" in rooms.sink.commands[1]
        assert "double_bounce: nobody was told, since the reverse-path is null" in events[-1][2]
        assert await rooms.reports() == []
        assert await rooms.counts() == (0, 0)


async def test_a_report_that_is_refused_ends_there(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        rooms.origin.play("rcpt", "550")
        (delivery,) = await rooms.accept("550-at-rcpt@dest.test")
        await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")
        (report,) = await rooms.until(rooms.reports)
        events = await rooms.until_statuses(report.id, "QUEUED", "HARD-BOUNCE")
        assert "double_bounce: nobody was told, since this is a report itself" in events[-1][2]
        assert await rooms.counts() == (0, 0)
        assert len(await rooms.reports()) == 1


async def test_silence_after_the_dot_is_retried_and_the_log_says_why_there_may_be_two(tmp_path: Path) -> None:
    async with house(tmp_path, retry=SOON, outbound={"dot_timeout": "300ms"}) as rooms:
        (delivery,) = await rooms.accept("hang-after-dot-1x@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert "delivery_unknown" in events[1][2]
        assert len(rooms.sink.messages) == 2
        assert rooms.sink.messages[0].content == rooms.sink.messages[1].content


async def test_after_an_unknown_outcome_no_other_host_is_tried(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        rooms.dns.set("two.test", "MX", [(10, "mx1.two.test"), (20, "mx2.two.test")])
        rooms.dns.set("mx1.two.test", "A", [rooms.sink.host])
        rooms.dns.set("mx2.two.test", "A", [rooms.origin.host])
        (delivery,) = await rooms.accept("drop-after-dot@two.test")
        await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert rooms.origin.connections == 0


async def test_the_next_host_takes_what_the_first_one_does_not(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        rooms.dns.set("two.test", "MX", [(10, "mx1.two.test"), (20, "mx2.two.test")])
        rooms.dns.set("mx1.two.test", "A", ["127.0.0.3"])  # nobody listens there
        rooms.dns.set("mx2.two.test", "A", [rooms.sink.host])
        (delivery,) = await rooms.accept("bob@two.test")
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


async def test_a_message_that_is_too_old_is_given_up_with_the_last_reply(tmp_path: Path) -> None:
    async with house(tmp_path, retry={"delays": ["100ms"], "give_up_after": "1h"}) as rooms:
        (delivery,) = await rooms.accept("451-at-rcpt@dest.test")
        await rooms.until(lambda: _bounced_softly(rooms, delivery))
        rooms.offset = timedelta(hours=2)
        await rooms.until(lambda: _gave_up(rooms, delivery))
        status, code, message = (await rooms.events(delivery))[-1]
        assert (status, code) == ("HARD-BOUNCE", 554)
        assert message.startswith("5.4.7")
        assert "451" in message
        (report,) = await rooms.origin.wait_for(1)
        assert b"Status: 5.4.7" in report.content


async def _bounced_softly(rooms, delivery: str) -> bool:  # type: ignore[no-untyped-def]
    return "SOFT-BOUNCE" in await rooms.statuses(delivery)


async def _gave_up(rooms, delivery: str) -> bool:  # type: ignore[no-untyped-def]
    return (await rooms.statuses(delivery))[-1] == "HARD-BOUNCE"


@pytest.mark.parametrize(
    ("domain", "fault", "status", "said"),
    [
        ("nowhere.test", "", "HARD-BOUNCE", "5.1.2"),
        ("broken.test", "servfail", "SOFT-BOUNCE", "4.4.3"),
        ("silent.test", "timeout", "SOFT-BOUNCE", "4.4.3"),
        ("cut.test", "cut", "SOFT-BOUNCE", "4.4.3"),
        ("null.test", "", "HARD-BOUNCE", "5.1.10"),
    ],
)
async def test_what_the_dns_says_decides(
    tmp_path: Path, domain: str, fault: str, status: str, said: str
) -> None:
    async with house(tmp_path) as rooms:
        if fault:
            rooms.dns.fault(domain, fault)
        rooms.dns.set("null.test", "MX", [(0, ".")])
        (delivery,) = await rooms.accept(f"bob@{domain}")
        events = await rooms.until_statuses(delivery, "QUEUED", status)
        assert events[-1][2].startswith(said)
        assert len(await rooms.reports()) == (status == "HARD-BOUNCE")
        assert rooms.sink.connections == 0


async def test_a_host_without_smtputf8_is_final_for_such_an_address(tmp_path: Path) -> None:
    async with house(tmp_path, sink={"smtputf8": False}) as rooms:
        (delivery,) = await rooms.accept("böb@dest.test", smtputf8=True)
        events = await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")
        assert events[-1][2].startswith("5.6.7")
        assert rooms.sink.messages == []


async def test_a_host_without_smtputf8_gets_the_mail_for_the_others(tmp_path: Path) -> None:
    """One alias may lead to both: who made it decides nothing about what the others can have."""
    async with house(tmp_path, sink={"smtputf8": False}) as rooms:
        plain, needy = await rooms.accept("plain@dest.test", "ünser@dest.test")
        await rooms.until_statuses(plain, "QUEUED", "DELIVERED")
        events = await rooms.until_statuses(needy, "QUEUED", "HARD-BOUNCE")
        assert events[-1][2].startswith("5.6.7")
        assert [message.recipients for message in rooms.sink.messages] == [("plain@dest.test",)]
        assert rooms.sink.connections == 1


async def test_the_trace_names_the_delivery_and_the_alias_but_not_the_destination(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("private@dest.test")
        (message,) = await rooms.sink.wait_for(1)
        added = message.content.removesuffix(CONTENT)
        mark = trace.mark(SECRET, parse_address("alias@hosted.test"))
        assert added == (
            f"X-Forwarder-Id: {delivery}-{mark}\r\nX-Forwarded-To: alias@hosted.test\r\n".encode()
        )


async def test_a_sender_too_long_for_a_rewritten_path_is_not_lent_our_address(tmp_path: Path) -> None:
    """As it came it would pass SPF wherever its domain trusts our addresses, whoever wrote it."""
    domain = ".".join(["d" * 61, "e" * 61, "f" * 30, "origin.test"])
    async with house(tmp_path) as rooms:
        await rooms.accept("bob@dest.test", "carl@dest.test", sender=f"{'a' * 64}@{domain}")
        (message,) = await rooms.sink.wait_for(1)
        assert message.reverse_path == ""


async def test_a_report_bears_no_trace(tmp_path: Path) -> None:
    """Whom it goes to has forwarded nothing: where that is an alias of ours, the report would come in as a loop."""
    async with house(tmp_path) as rooms:
        await rooms.accept("550-at-rcpt@dest.test")
        (report,) = await rooms.origin.wait_for(1)
        assert report.reverse_path == ""
        assert b"X-Forwarder-Id" not in report.content


async def test_a_shared_copy_does_not_tell_its_readers_of_each_other(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        first, second = await rooms.accept("one@dest.test", "two@dest.test", recipient="list@hosted.test")
        (message,) = await rooms.sink.wait_for(1)
        assert set(message.recipients) == {"one@dest.test", "two@dest.test"}
        assert message.content.count(b"X-Forwarded-To: list@hosted.test\r\n") == 1
        assert first.encode() in message.content
        assert second.encode() in message.content


async def test_a_shared_copy_names_no_recipient_when_there_are_several(tmp_path: Path) -> None:
    async with house(tmp_path, start=False) as rooms:
        message = rooms.message("one@dest.test", "two@dest.test", recipient="list@hosted.test")
        one, two = message.deliveries
        other = replace(two, recipient=parse_address("secret@hosted.test"))
        message = replace(message, deliveries=(one, other))
        await rooms.queue.enqueue(message)
        rooms.dispatcher.hand_over(message)
        await rooms.start()
        (arrived,) = await rooms.sink.wait_for(1)
        assert len(arrived.recipients) == 2
        assert b"X-Forwarded-To" not in arrived.content


async def test_mail_goes_back_to_the_best_host_when_it_is_there_again(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        rooms.dns.set("dest.test", "MX", [(10, "best.dest.test"), (20, "mx.dest.test")])
        rooms.dns.set("best.dest.test", "A", [rooms.origin.host])
        rooms.origin.play("connect", "450", times=1)
        for count in range(3):
            (delivery,) = await rooms.accept("bob@dest.test")
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
            assert [len(sink.messages) for sink in (rooms.sink, rooms.origin)] == [1, count]
