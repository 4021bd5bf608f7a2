"""What cannot be delivered comes back to its sender once, in a form that machines read, and never starts a war."""

import email
import email.policy

from forwarder.mail.event import Status
from tests.engine.town import MAIL, Town
from tests.harness import wait_until
from tests.peers.sink import Received


def fields_of(report: Received) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The per-message fields and those of each recipient, as the standard library reads them."""
    parsed = email.message_from_bytes(report.content, policy=email.policy.SMTP)
    assert parsed.get_content_type() == "multipart/report"
    assert parsed.get_param("report-type") == "delivery-status"
    _, status, original = parsed.iter_parts()  # type: ignore[attr-defined]
    assert status.get_content_type() == "message/delivery-status"
    assert original.get_content_type() in ("text/rfc822-headers", "message/rfc822")
    about, *groups = [{k.lower(): str(v) for k, v in group.items()} for group in status.get_payload()]
    return about, groups


async def test_a_report_on_a_hostile_refusal(engine: Town) -> None:
    await engine.alias("bad", "multi-line-550@dest.test")
    content = b"X-Long: " + b"z" * 900 + b"\r\n" + MAIL + b"secret text\r\n" * 30_000
    assert (await engine.send("ann@out.test", "bad@example.com", content)).code == 250
    (report,) = await engine.origin.wait_for(1)
    assert report.reverse_path == ""
    assert report.recipients == ("ann@out.test",)
    assert len(report.content) < 256 * 1024
    assert b"secret text" not in report.content
    head = report.content.partition(b"\r\n\r\n")[0]
    assert b"\r\nAuto-Submitted: auto-replied\r\n" in head
    assert b"\r\nFrom: Mail Delivery System <mailer-daemon@mx.test>\r\n" in head
    assert b"\r\nIn-Reply-To: <1@out.test>\r\n" in head
    about, (failed,) = fields_of(report)
    assert about["reporting-mta"] == "dns; mx.test"
    assert failed["final-recipient"] == "rfc822; bad@example.com"
    assert failed["action"] == "failed"
    assert failed["status"] == "5.1.1"
    assert failed["diagnostic-code"].startswith("smtp; 550 5.1.1 no \\x1b[31mred")
    # Nothing of the refusing host's octets but printable ones, and not where the alias leads.
    assert not set(report.content) & (set(range(32)) - set(b"\r\n\t") | {127, 255})
    assert b"multi-line-550@dest.test" not in report.content
    assert max(map(len, report.content.split(b"\r\n"))) <= 998
    assert await engine.verified(report) == [True, True]
    await engine.goes_on()
    await engine.settled()
    assert len(engine.origin.messages) == 1
    assert await engine.statuses("example.com") == ["QUEUED", "HARD-BOUNCE", "QUEUED", "DELIVERED"]


async def test_a_recipient_with_many_dead_destinations_is_reported_once(engine: Town) -> None:
    """Or whoever knows such an alias could have a stranger sent as many reports as it has destinations."""
    names = [f"gone{number}.test" for number in range(12)]  # the DNS knows none of them
    await engine.alias("many", ", ".join(f"x@{name}" for name in names) + ", 550-at-rcpt@dest.test")
    await engine.alias("other", "y@gone0.test")
    assert (await engine.send("ann@out.test", ["many@example.com", "other@example.com"], MAIL)).code == 250
    await engine.settled()
    about = [fields_of(report)[1] for report in engine.origin.messages]
    named = [{group["final-recipient"] for group in groups} for groups in about]
    assert sorted(name for names in named for name in names) == [
        "rfc822; many@example.com",
        "rfc822; other@example.com",
    ]
    events = await engine.events_for("many@example.com")
    assert [status for status, _, _ in events].count("HARD-BOUNCE") == 13  # the owner can see each
    assert sum("was told of this recipient before" in text for _, _, text in events) >= 11
    await engine.goes_on()


async def test_a_report_to_a_sender_hosted_here_goes_where_the_alias_leads(engine: Town) -> None:
    # The usual set-up: mail for the domain comes to us, so that no other host could take the report.
    engine.dns.set("example.com", "MX", [(10, "mx.test")])
    await engine.alias("team", "ann@out.test, bob@out.test")
    assert (await engine.send("team@example.com", "to.550-at-rcpt@example.com", MAIL)).code == 250
    reports = await engine.origin.wait_for(2)
    assert sorted((report.reverse_path, *report.recipients) for report in reports) == [
        ("", "ann@out.test"),
        ("", "bob@out.test"),
    ]
    assert b"\r\nTo: <team@example.com>\r\n" in reports[0].content
    await engine.goes_on()
    await engine.settled()
    assert len(engine.origin.messages) == 2


async def test_a_report_to_an_address_of_our_rewriting_goes_to_whom_it_stands_for(engine: Town) -> None:
    assert (await engine.send("ann@out.test", "well@example.com", MAIL)).code == 250
    (forwarded,) = await engine.well.wait_for(1)
    assert forwarded.reverse_path.startswith("SRS0=")
    assert (await engine.send(forwarded.reverse_path, "to.550-at-rcpt@example.com", MAIL)).code == 250
    (report,) = await engine.origin.wait_for(1)
    assert (report.reverse_path, report.recipients) == ("", ("ann@out.test",))
    await engine.goes_on()
    await engine.settled()


async def test_a_report_to_a_hosted_address_that_nobody_reads_ends_in_the_log(engine: Town) -> None:
    engine.dns.set("example.com", "MX", [(10, "mx.test")])
    await engine.alias("gone", "550-at-rcpt@dest.test")
    assert (await engine.send("gone@example.com", "gone@example.com", MAIL)).code == 250
    await engine.settled()
    failed = [message for status, _, message in await engine.events("example.com") if status == "HARD-BOUNCE"]
    assert ["double_bounce" in message for message in failed] == [False, True]
    await engine.goes_on()


async def test_a_report_to_an_internationalised_sender(engine: Town) -> None:
    sender = "jürgen@out.test"
    content = f"From: {sender}\r\nSubject: Grüße\r\n\r\nx\r\n".encode()
    async with engine.client() as client:
        await client.ehlo()
        recipients = [b"to.550-at-rcpt@example.com"]
        answers = await client.message(sender.encode(), recipients, content, parameters=b" SMTPUTF8")
        assert answers[-1].code == 250
    (report,) = await engine.origin.wait_for(1)
    assert report.recipients == (sender,)
    assert "SMTPUTF8" in report.mail_parameters
    assert report.content.isascii()
    _, (failed,) = fields_of(report)
    assert failed["final-recipient"] == "rfc822; to.550-at-rcpt@example.com"
    assert await engine.verified(report) == [True, True]
    await engine.goes_on()
    await engine.settled()


async def test_a_report_to_an_internationalised_sender_of_ours_asks_nothing_of_their_host(town: Town) -> None:
    """Their name in To alone would keep it from the mailbox they read, and nobody would hear of the failure."""
    async with town.engine():
        old = await town.another_sink("127.0.0.4", "old.test", smtputf8=False)
        town.dns.set("example.com", "MX", [(10, "mx.test")])
        await town.alias("jürgen", "juergen@old.test")
        async with town.client() as client:
            await client.ehlo()
            sender, recipients = "jürgen@example.com".encode(), [b"to.550-at-rcpt@example.com"]
            answers = await client.message(sender, recipients, MAIL, parameters=b" SMTPUTF8")
            assert answers[-1].code == 250
        (report,) = await old.wait_for(1)
        assert (report.reverse_path, report.recipients) == ("", ("juergen@old.test",))
        assert report.content.isascii()
        parsed = email.message_from_bytes(report.content, policy=email.policy.SMTP)
        assert str(parsed["To"]) == '"jürgen@example.com":;'
        assert await town.verified(report) == [True, True]
        await town.goes_on()
        await town.settled()


async def test_each_recipient_of_one_transaction_has_its_own_fate(engine: Town) -> None:
    await engine.alias("three", "good@dest.test, 450-at-rcpt-1x@dest.test, 550-at-rcpt@dest.test")
    assert (await engine.send("ann@out.test", "three@example.com", MAIL)).code == 250
    await engine.sink.wait_for(2)
    (report,) = await engine.origin.wait_for(1)
    await engine.goes_on()
    await engine.settled()
    assert [m.recipients for m in engine.sink.messages] == [
        ("good@dest.test",),
        ("450-at-rcpt-1x@dest.test",),
    ]
    assert engine.sink.commands.count(b"RCPT TO:<550-at-rcpt@dest.test>") == 1
    assert engine.sink.commands.count(b"RCPT TO:<good@dest.test>") == 1
    _, failed = fields_of(report)
    assert [group["final-recipient"] for group in failed] == ["rfc822; three@example.com"]
    assert len(engine.origin.messages) == 1


async def test_nobody_is_told_about_mail_from_nobody(engine: Town) -> None:
    assert (await engine.send("", "to.550-at-rcpt@example.com", MAIL)).code == 250
    await engine.wait_for_statuses("QUEUED", "HARD-BOUNCE", domain="example.com")
    assert "double_bounce" in (await engine.events("example.com"))[-1][2]
    await engine.goes_on()
    await engine.settled()
    assert engine.origin.messages == []


async def test_a_report_that_is_refused_ends_the_matter(either: Town) -> None:
    either.origin.play("rcpt", "550")
    assert (await either.send("ann@out.test", "to.550-at-rcpt@example.com", MAIL)).code == 250
    await either.origin.wait_until(lambda: bool(either.origin.refused))
    await either.goes_on()
    await either.settled()
    bounced = [text for status, _, text in await either.events() if status == "HARD-BOUNCE"]
    assert len(bounced) == 2
    assert sum("double_bounce" in text for text in bounced) == 1
    assert either.origin.refused == ["ann@out.test"]


async def test_a_bounce_that_comes_back_to_us_and_fails_again_makes_nothing(engine: Town) -> None:
    assert (await engine.send("ann@out.test", "info@example.com", MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    engine.origin.play("rcpt", "550")
    assert (await engine.send("", message.reverse_path, MAIL)).code == 250
    await engine.origin.wait_until(lambda: bool(engine.origin.refused))
    await engine.goes_on()
    await engine.settled()
    assert engine.origin.messages == []
    assert len(engine.sink.messages) == 1


async def test_a_late_bounce_is_about_each_of_two_hundred_recipients_who_share_a_mailbox(
    engine: Town,
) -> None:
    to = [f"person{number}@example.com" for number in range(200)]
    assert (await engine.send("ann@out.test", to, MAIL)).code == 250
    (copy,) = await engine.sink.wait_for(1)
    assert copy.recipients == ("inbox@dest.test",)
    report = (
        b"Subject: undeliverable\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/report; report-type=delivery-status; boundary="=b"\r\n\r\n'
        b"--=b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.dest.test\r\n\r\n"
        b"Final-Recipient: rfc822; inbox@dest.test\r\nAction: failed\r\nStatus: 5.2.2\r\n\r\n"
        b"--=b\r\nContent-Type: message/rfc822\r\n\r\n" + copy.content + b"\r\n--=b--\r\n"
    )
    assert (await engine.send("", copy.reverse_path, report)).code == 250

    async def bounced() -> bool:
        logs = await engine.logs("example.com", limit=500)
        return sum(log.events[-1].status is Status.HARD_BOUNCE for log in logs) == 200

    await wait_until(bounced, what="200 late bounces")
    await engine.goes_on()
    await engine.settled()


async def test_mail_too_old_comes_back_with_the_last_reply(town: Town) -> None:
    async with town.engine(retry={"delays": ["100ms"], "give_up_after": "1500ms"}):
        assert (await town.send("ann@out.test", "to.451-at-data@example.com", MAIL)).code == 250
        (report,) = await town.origin.wait_for(1)
        _, (failed,) = fields_of(report)
        assert failed["status"] == "5.4.7"
        assert "451" in failed["diagnostic-code"]
        await town.goes_on()
        await town.settled()
        assert len(town.origin.messages) == 1
        statuses = [status for status, _, _ in await town.events("example.com")][:-2]
        assert statuses[0] == "QUEUED"
        assert statuses.count("HARD-BOUNCE") == 1
        assert statuses.count("SOFT-BOUNCE") >= 1
