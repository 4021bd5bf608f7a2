"""A message goes through whole: its body to the octet, headers only prepended, signed by us, its sender's SPF safe."""

import pytest

from tests.engine.town import MAIL, Town, head_of, names_of
from tests.peers.client import send

ODD = {
    "lines that begin with dots": b"Subject: x\r\n\r\n.\r\n..\r\n...x\r\n. \r\nend\r\n",
    "a dot right after the header": b"Subject: x\r\n\r\n.hidden\r\n",
    "every octet but CR, LF and NUL": b"Subject: x\r\n\r\n"
    + bytes(octet for octet in range(1, 256) if octet not in b"\r\n")
    + b"\r\n",
    "NUL in the text": b"Subject: x\r\n\r\na\0b\r\n",
    "trailing white space and empty lines": b"Subject: x  \t\r\n\r\n a \t \r\n\r\n\r\n\t\r\n\r\n",
    "no body": b"Subject: x\r\n\r\n",
    "no body and no empty line": b"Subject: x\r\n",
    "a body only": b"\r\nno header at all\r\n",
    "text at once": b"no header at all\r\nnot: one\r\n",
    "nothing": b"",
    "a line of 998 octets": b"Subject: x\r\n\r\n" + b"y" * 998 + b"\r\n",
    "headers in odd shapes": b"SUBJECT:x\r\nx-a:\r\n\t\r\nX-B: b\r\n c\r\n\t d\r\nFrom: ann@out.test\r\n\r\nx\r\n",
    "eight bits in the header": b"Subject: gr\xfc\xdfe\r\nFrom: \xe4nn <ann@out.test>\r\n\r\nx\r\n",
    "a blank before the colon": b"Subject : x\r\nFrom: Ann <ann@out.test>\r\n\r\nx\r\n",
    "a first line that is no field": b"From ann Mon Jan 1\r\nSubject: x\r\n\r\nx\r\n",
    "a first line that continues nothing": b" Subject: x\r\nTo: y\r\n\r\nx\r\n",
    "signatures of others": b"DKIM-Signature: v=1; a=rsa-sha256; d=out.test; s=x; h=from; bh=AA==; b=AA==\r\n"
    b"From: ann@out.test\r\n\r\nx\r\n",
}

UNREADABLE = {"a blank before the colon"}  # dkimpy gives up on it before it looks at any signature
REFUSABLE = {"a body only", "nothing"}  # no author DMARC could judge
HEADLESS = {"text at once", "a first line that is no field", "a first line that continues nothing"}


async def test_every_odd_content_arrives_as_it_was_sent_and_signed(engine: Town) -> None:
    for name, content in ODD.items():
        engine.sink.messages.clear()
        answer = await engine.send("ann@out.test", "info@example.com", content)
        if name in REFUSABLE and answer.code in (550, 554):
            continue
        assert answer.code == 250, (name, answer)
        (message,) = await engine.sink.wait_for(1)
        assert message.content.endswith(b"\r\n" + content), name
        assert message.content.endswith(b"\r\n\r\n" + content) is (name in HEADLESS), name
        added = message.content.removesuffix(content)
        assert {field.lower() for field in names_of(added)} == {
            "x-forwarder-id",
            "x-forwarded-to",
            "dkim-signature",
            "arc-seal",
            "arc-message-signature",
            "arc-authentication-results",
            "received",
            "authentication-results",
        }, name
        if name not in UNREADABLE:
            assert await engine.verified(message) == [True, True], name
    await engine.goes_on()


async def test_one_message_in_full(either: Town) -> None:
    answer = await either.send("ann@out.test", "info+label@example.com", MAIL)
    assert answer.text.startswith("2.0.0 queued as ")
    (message,) = await either.sink.wait_for(1)
    assert message.recipients == ("inbox@dest.test",)
    assert message.reverse_path.startswith("SRS0=")
    assert message.reverse_path.endswith("=out.test=ann@mx.test")
    assert message.content.endswith(b"\r\n" + MAIL)
    head = head_of(message.content)
    assert b"\r\nX-Forwarded-To: info+label@example.com\r\n" in head
    assert b"by mx.test (Forwarder) with ESMTP" in head
    assert head.count(b"\r\nDKIM-Signature: ") == 2
    assert head.count(b"\r\nMessage-ID: <1@out.test>\r\n") == 1
    assert await either.verified(message) == [True, True]
    assert await either.sealed(message) == b"pass"
    await either.wait_for_statuses("QUEUED", "DELIVERED", domain="example.com")
    await either.settled()
    await either.goes_on()


async def test_recipients_that_lead_to_one_address_make_one_copy(engine: Town) -> None:
    """Each has its own delivery and events, and the destination is named once, however their owners spell it."""
    recipients = ["info@example.com", "sales@example.com", "to.inbox@example.com", "to.other@example.com"]
    await engine.alias("loud", "INBOX@dest.test")
    recipients.append("loud@example.com")
    assert (await engine.send("ann@out.test", recipients, MAIL)).code == 250
    await engine.settled()
    (message,) = engine.sink.messages
    assert message.recipients == ("inbox@dest.test", "other@dest.test")
    for recipient in recipients:
        assert [status for status, _, _ in await engine.events_for(recipient)] == ["QUEUED", "DELIVERED"]
    engine.sink.messages.clear()
    # A refusal of the one address is about all who lead there, and about nobody else.
    recipients = ["to.550-at-rcpt@example.com", "to.550-at-rcpt@EXAMPLE.com", "to.fine@example.com"]
    await engine.alias("gone", "550-at-rcpt@dest.test")
    assert (await engine.send("ann@out.test", [*recipients, "gone@example.com"], MAIL)).code == 250
    await engine.wait_for_event("gone@example.com", "HARD-BOUNCE")
    await engine.wait_for_event("to.550-at-rcpt@example.com", "HARD-BOUNCE")
    await engine.wait_for_event("to.fine@example.com", "DELIVERED")
    await engine.goes_on()


async def test_more_recipients_than_a_transaction_takes_make_one_copy_too(engine: Town) -> None:
    recipients = [f"person{number}@example.com" for number in range(101)]
    assert (await engine.send("ann@out.test", recipients, MAIL)).code == 250
    await engine.settled()
    (message,) = engine.sink.messages
    assert message.recipients == ("inbox@dest.test",)
    told = [[event.status for event in entry.events] for entry in await engine.logs("example.com", limit=200)]
    assert told == [["QUEUED", "DELIVERED"]] * 101
    await engine.goes_on()


async def test_every_destination_of_an_alias_gets_one_copy(either: Town) -> None:
    await either.alias("all", "a@dest.test, b@dest.test, c@well.test, a@dest.test, x@example.com")
    assert (await either.send("ann@out.test", ["all@example.com", "x@example.com"], MAIL)).code == 250
    await either.well.wait_for(1)
    await either.settled()
    arrived = sorted(to for m in either.sink.messages for to in m.recipients)
    assert arrived.count("a@dest.test") == 1
    assert arrived.count("b@dest.test") == 1
    # The same mailbox as two recipients of the sender: one delivery each, the log tells both, and one copy.
    assert arrived.count("inbox@dest.test") == 1
    assert [m.recipients for m in either.well.messages] == [("c@well.test",)]
    await either.goes_on()


async def test_the_log_tells_of_destinations_where_nobody_is(either: Town) -> None:
    """The sender hears nothing, since the mail did arrive; the owner of the alias can see where it did not."""
    await either.host("two.example", {"off": "x@dest.test"})
    await either.alias("mixed", "nobody@two.example, other@dest.test")
    for _ in range(2):
        assert (await either.send("ann@out.test", "mixed@example.com", MAIL)).code == 250
    await either.sink.wait_for(2)
    await either.settled()
    assert [message.recipients for message in either.sink.messages] == [("other@dest.test",)] * 2
    events = await either.events_for("mixed@example.com")
    assert (
        sorted(status for status, _, _ in events) == ["DELIVERED"] * 2 + ["HARD-BOUNCE"] * 2 + ["QUEUED"] * 4
    )
    assert (550, "5.1.1 no such address here") in [(code, text) for _, code, text in events]
    assert either.origin.messages == []
    await either.goes_on()


async def test_no_other_account_gets_mail_by_saying_that_a_domain_is_theirs(engine: Town) -> None:
    """Neither what an alias forwards there, nor the bounces on their way back to a sender there."""
    await engine.host("dest.test", {"*": "thief@well.test"}, account="thief@example.org")
    await engine.host("out.test", {"*": "thief@well.test"}, account="thief@example.org")
    assert (await engine.send("ann@out.test", "info@example.com", MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    assert message.recipients == ("inbox@dest.test",)
    assert (await engine.send("", message.reverse_path, MAIL)).code == 250
    (bounce,) = await engine.origin.wait_for(1)
    assert bounce.recipients == ("ann@out.test",)
    await engine.settled()
    assert engine.well.messages == []
    await engine.goes_on()


async def test_where_an_alias_of_another_account_leads_is_in_no_log_but_theirs(engine: Town) -> None:
    """An alias of one's own that leads to it would else tell, of mail and of a report alike."""
    await engine.host("theirs.test", {"boss": "secret@dest.test"}, account="other@example.org")
    await engine.leads_here("theirs.test")
    await engine.alias("probe", "boss@theirs.test,nobody@theirs.test")
    await engine.alias("gone", "550-at-rcpt@well.test")
    assert (await engine.send("ann@out.test", "probe@example.com", MAIL)).code == 250
    await engine.sink.wait_for(1)
    assert (await engine.send("probe@example.com", "gone@example.com", MAIL)).code == 250
    forwarded, report = await engine.sink.wait_for(2)
    assert forwarded.recipients == report.recipients == ("secret@dest.test",)
    await engine.settled()
    probed = [log for log in await engine.logs("example.com") if log.alias == "probe"]
    assert sorted((log.forward_email, log.events[-1].message) for log in probed) == [
        ("boss@theirs.test", "2.1.5 an alias of another account here has it"),
        ("boss@theirs.test", "2.1.5 an alias of another account here has it"),
        ("nobody@theirs.test", "5.1.1 no such address here"),
    ]
    async with engine.api() as client:
        answer = await client.get("/v3/domains/example.com/logs")
    assert answer.status_code == 200
    assert "secret" not in answer.text
    theirs = [(log.alias, log.recipient_email, log.forward_email) for log in await engine.logs("theirs.test")]
    assert theirs == [("boss", "probe@example.com", "secret@dest.test")] * 2
    assert await engine.statuses("theirs.test") == ["QUEUED", "DELIVERED", "QUEUED", "DELIVERED"]
    await engine.goes_on()


async def test_where_the_ways_of_two_accounts_come_together_there_is_one_copy_and_a_log_for_each(
    either: Town,
) -> None:
    await either.host(
        "theirs.test", {"boss": "shared@dest.test,secret@dest.test"}, account="other@example.org"
    )
    await either.leads_here("theirs.test")
    await either.alias("both", "boss@theirs.test,mine@example.com")
    await either.alias("mine", "shared@dest.test")
    either.sink.play("rcpt", "450", times=2)  # once for each of the two mailboxes
    assert (await either.send("both@example.com", "both@example.com", MAIL)).code == 250
    await either.settled()
    (message,) = either.sink.messages
    assert sorted(message.recipients) == ["secret@dest.test", "shared@dest.test"]
    ends = {
        (domain, log.alias, log.forward_email, log.events[-1].status.value)
        for domain in ("example.com", "theirs.test")
        for log in await either.logs(domain)
    }
    assert ends == {
        ("example.com", "both", "boss@theirs.test", "DELIVERED"),
        ("example.com", "both", "shared@dest.test", "DELIVERED"),
        ("theirs.test", "boss", "secret@dest.test", "DELIVERED"),
        ("theirs.test", "boss", "shared@dest.test", "DELIVERED"),
    }
    # A report goes both ways as well, and there is one for the one recipient.
    either.well.play("rcpt", "550")
    assert (await either.send("both@example.com", "well@example.com", MAIL)).code == 250
    await either.settled()
    assert sorted(to for report in either.sink.messages[1:] for to in report.recipients) == [
        "secret@dest.test",
        "shared@dest.test",
    ]
    assert len(await either.logs("theirs.test")) == 4
    either.sink.play("rcpt", "550")
    assert (await either.send("ann@out.test", "both@example.com", MAIL)).code == 250
    await either.settled()
    (report,) = either.origin.messages
    assert report.content.count(b"\r\nFinal-Recipient: ") == 1


async def test_a_host_that_names_all_recipients_tells_no_domain_where_the_mail_of_another_goes(
    engine: Town,
) -> None:
    await engine.host("theirs.test", {"boss": "secret+x@dest.test"}, account="other@example.org")
    engine.sink.play("dot", "naming")
    assert (await engine.send("ann@out.test", ["pair@example.com", "boss@theirs.test"], MAIL)).code == 250
    await engine.settled()
    mine = {text for status, _, text in await engine.events("example.com") if status == "HARD-BOUNCE"}
    assert mine == {"5.7.1 refused for first@dest.test, second@dest.test, [hidden]"}
    (theirs,) = [text for status, _, text in await engine.events("theirs.test") if status == "HARD-BOUNCE"]
    assert theirs == "5.7.1 refused for [hidden], [hidden], secret+x@dest.test"
    (report,) = engine.origin.messages
    assert b"refused for pair@example.com, pair@example.com, boss@theirs.test" in report.content
    engine.sink.behave()
    await engine.goes_on()


async def test_who_sends_to_an_alias_of_another_account_has_a_log_of_it(engine: Town) -> None:
    await engine.host("theirs.test", {"boss": "secret@dest.test"}, account="other@example.org")
    await engine.leads_here("theirs.test")
    await engine.alias("off", "x@dest.test", domain="theirs.test", when_disabled=250)
    await engine.credential("well@example.com", "a good password")
    sent = MAIL.replace(b"ann@out.test", b"well@example.com")
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        await client.login("well@example.com", "a good password")
        to = [b"boss@theirs.test", b"off@theirs.test", b"pair@example.com"]
        assert (await client.message(b"well@example.com", to, sent))[-1].code == 250
    await engine.settled()
    logs = [
        (log.alias, log.forward_email, log.events[-1].message) for log in await engine.logs("example.com")
    ]
    assert sorted((alias, to) for alias, to, _ in logs) == [
        ("pair", "first@dest.test"),
        ("pair", "second@dest.test"),
        ("well", "boss@theirs.test"),
        ("well", "off@theirs.test"),
    ]
    assert {said for alias, _, said in logs if alias == "well"} == {
        "2.1.5 an alias of another account here has it"
    }
    assert len(await engine.logs("theirs.test")) == 2
    await engine.goes_on()


@pytest.mark.parametrize("sender", ["", "ann@out.test"])
async def test_the_null_reverse_path_stays_null(engine: Town, sender: str) -> None:
    assert (await engine.send(sender, "info@example.com", MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    assert (message.reverse_path == "") == (sender == "")
    await engine.goes_on()


async def test_a_message_of_several_mebibytes_is_the_same_at_the_other_end(engine: Town) -> None:
    lines = (b"%08d " % number + bytes(range(0x80, 0xC0)) for number in range(60_000))
    content = b"Subject: big\r\nFrom: ann@out.test\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"
    answer = await send("127.0.0.1", engine.mx_port, b"ann@out.test", [b"info@example.com"], content)
    assert answer.code == 250
    (message,) = await engine.sink.wait_for(1, timeout=30)
    assert message.content.endswith(b"\r\n" + content)
    assert await engine.verified(message) == [True, True]
    await engine.goes_on()
