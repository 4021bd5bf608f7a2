"""The MX over a real store: who is a recipient, what is stored, what the log says."""

import asyncio
import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from forwarder.inbound import connection, late_bounce
from forwarder.inbound.disk import Disk
from forwarder.inbound.refusals import PER_CLIENT
from forwarder.inbound.screening import Screened
from forwarder.mail import reply, trace
from forwarder.mail.address import parse_address
from forwarder.mail.event import Status
from forwarder.mail.srs import Srs
from forwarder.store import counters
from forwarder.store.trouble import CommitUnknown, StoreFull, StoreUnavailable
from tests.harness import wait_until
from tests.inbound.recording import MESSAGE
from tests.inbound.rooms import SECRET, on_both, utc_now

ALIASES = {
    "info": "person@dest.test",
    "two": "a@dest.test, b@other.test",
    "hook": "https://hooks.example.org/in",
    "(contact|support)": "desk+$1@dest.test",
    "sales-*": "sales@dest.test",
}


async def hosting(engine, name="here.test", aliases=ALIASES, **sections):
    await engine.start(**sections)
    return await engine.host(name, aliases)


@on_both
async def test_what_an_alias_leads_to_is_stored(engine):
    domain = await hosting(engine)
    answers = await engine.send(b"Ann@sender.test", [b"info@here.test", b"two@HERE.test"], MESSAGE)
    assert [answer.code for answer in answers] == [250, 250, 250, 354, 250]

    async def let_go() -> bool:
        return {row.state for row in await engine.deliveries()} == {"queued"}

    await wait_until(let_go, what="the store to let go of what nobody leased")
    rows = await engine.deliveries()
    assert [(row.recipient, row.destination, row.alias) for row in rows] == [
        ("info@here.test", "person@dest.test", "info"),
        ("two@here.test", "a@dest.test", "two"),
        ("two@here.test", "b@other.test", "two"),
    ]
    assert {(row.domain_id, row.kind, row.state, row.attempts) for row in rows} == {
        (domain.id, "smtp", "queued", 0)
    }
    assert {(row.reverse_path, row.signing_domain, row.transport) for row in rows} == {
        ("Ann@sender.test", None, "smtp")
    }
    [content] = await engine.contents()
    head, own, rest = content.partition(MESSAGE)
    assert own == MESSAGE
    assert not rest
    assert head.startswith(
        b"Received: from client.test ([127.0.0.1])\r\n\tby mx.test (Forwarder) with ESMTP\r\n\tid "
    )
    assert b" for " not in head
    assert answers[-1].text.removeprefix("2.0.0 queued as ").encode() in head


async def test_one_recipient_is_named_in_received(engine):
    await hosting(engine)
    await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE)
    [content] = await engine.contents()
    assert b"\r\n\tfor <info@here.test>;\r\n\t" in content


async def test_every_kind_of_alias(engine):
    await hosting(engine)
    recipients = [b"support@here.test", b"sales-eu@here.test", b"info+label@here.test", b"hook@here.test"]
    await engine.send(b"a@sender.test", recipients, MESSAGE)
    rows = await engine.deliveries()
    assert [(row.destination, row.kind) for row in rows] == [
        ("desk+support@dest.test", "smtp"),
        ("sales@dest.test", "smtp"),
        ("person@dest.test", "smtp"),
        ("https://hooks.example.org/in", "webhook"),
    ]


async def test_the_log_shows_what_came(engine):
    domain = await hosting(engine)
    content = (
        b"Message-ID: <1@sender.test>\r\nFrom: =?utf-8?q?J=C3=B6rg?= <jorg@sender.test>\r\nSubject: =?utf-8?b?4pyT?= ok"
        b"\r\nTo: Other <o@x.test>, =?utf-8?q?J=C3=BCrgen?= <Info@here.test>\r\n\r\nx\r\n"
    )
    await engine.send(b"bounce@sender.test", [b"info@here.test"], content, hello=b"mail.sender.test")
    [entry] = await engine.logs(domain)
    assert entry.message_id == "<1@sender.test>"
    assert (entry.sender_email, entry.sender_name) == ("jorg@sender.test", "Jörg")
    assert (entry.recipient_email, entry.recipient_name) == ("info@here.test", "Jürgen")
    assert entry.subject == "✓ ok"
    assert entry.hostname == "mail.sender.test"
    assert [(event.status, event.code) for event in entry.events] == [(Status.QUEUED, 250)]


@pytest.mark.parametrize("hops", [1, 51])
async def test_the_log_names_the_same_people_whether_a_message_is_taken_or_refused(engine, hops):
    domain = await hosting(engine)
    content = b"From: Ann <ann@sender.test>\r\nTo: Desk <info@here.test>\r\n\r\nx\r\n"
    content = b"Received: from a by b\r\n" * hops + content
    code = (await engine.send(b"bounce@lists.test", [b"info@here.test"], content))[-1].code
    assert code == (250 if hops == 1 else 554)
    [entry] = await engine.logs(domain)
    assert (entry.sender_email, entry.sender_name) == ("ann@sender.test", "Ann")
    assert (entry.recipient_email, entry.recipient_name) == ("info@here.test", "Desk")


async def test_addresses_in_a_log_have_one_form_whatever_became_of_the_mail(engine):
    """A-labels, as in the event beside them and as the mail itself has them."""
    domain = await hosting(engine, "xn--mnchen-3ya.test")
    content = b"To: Desk <info@xn--mnchen-3ya.test>\r\n\r\nx\r\n"
    for name in (b"info", b"nobody"):
        await engine.send(b"s@xn--bcher-kva.test", [name + b"@xn--mnchen-3ya.test"], content)
    taken, refused = sorted(await engine.logs(domain), key=lambda entry: entry.id)
    assert (taken.recipient_email, taken.recipient_name) == ("info@xn--mnchen-3ya.test", "Desk")
    assert (refused.recipient_email, refused.recipient_name) == ("nobody@xn--mnchen-3ya.test", None)
    assert {entry.sender_email for entry in (taken, refused)} == {"s@xn--bcher-kva.test"}


@pytest.mark.parametrize(
    ("author", "name"),
    [(b"", None), (b"From: undisclosed\r\n", "undisclosed")],
    ids=["no From", "no address"],
)
async def test_the_log_shows_the_reverse_path_of_mail_without_an_author(engine, author, name):
    domain = await hosting(engine)
    await engine.send(b"gavin@hooli.test", [b"info@here.test"], author + b"Subject: x\r\n\r\nx\r\n")
    [entry] = await engine.logs(domain)
    assert (entry.sender_email, entry.sender_name) == ("gavin@hooli.test", name)


async def test_the_first_line_of_a_mailbox_file_does_not_end_the_head(engine):
    domain = await hosting(engine)
    text = b"From ann@sender.test Sat Nov 28 12:00:00 2026\r\nFrom: Ann <ann@sender.test>\r\nSubject: x\r\n\r\nx\r\n"
    await engine.send(b"ann@sender.test", [b"info@here.test"], text)
    [content] = await engine.contents()
    assert content.endswith(b"\r\nX-Mailbox-Line: " + text)
    [entry] = await engine.logs(domain)
    assert (entry.sender_name, entry.subject) == ("Ann", "x")


async def test_the_first_line_of_a_mailbox_file_is_bounded_as_it_goes_out(engine):
    await hosting(engine)
    line = b"From ann@sender.test 12:00:00 ".ljust(983, b"x")
    text = line + b"\r\nFrom: Ann <ann@sender.test>\r\n\r\nx\r\n"
    answers = [
        await engine.send(b"ann@sender.test", [b"info@here.test"], content)
        for content in (text, text[:982] + text[983:])
    ]
    assert [answer[-1].code for answer in answers] == [500, 250]


@pytest.mark.parametrize(
    "text", [b"Disk is full\r\nSubject: no\r\n", b"\tFrom: ann@sender.test\r\n\r\nx\r\n"]
)
async def test_text_without_a_head_stays_text_below_our_fields(engine, text):
    domain = await hosting(engine)
    answers = await engine.send(b"ann@sender.test", [b"info@here.test"], text)
    assert answers[-1].code == 250
    [content] = await engine.contents()
    head, body = content.split(b"\r\n\r\n", 1)
    assert (head[:9], body) == (b"Received:", text)
    [entry] = await engine.logs(domain)
    assert (entry.sender_email, entry.subject) == ("ann@sender.test", None)


async def test_a_fresh_delivery_that_has_room_is_handed_over_leased(engine):
    await hosting(engine)
    engine.intake.takes = True
    answers = await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE)
    [row] = await engine.deliveries()
    assert (row.state, row.attempts) == ("leased", 1)
    [message] = engine.intake.messages
    assert [delivery.id for delivery in message.deliveries] == [row.id]
    assert answers[-1].text.endswith(message.id)
    assert message.content == (await engine.contents())[0]


async def test_mail_is_prepared_while_others_are_written_and_not_when_none_are(engine):
    await hosting(
        engine, plans={"default": {"daily_quota": 0}}
    )  # counting a message would be a write as well
    await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE)
    assert engine.intake.prepared == []
    begun, go_on = threading.Event(), threading.Event()

    def hold(conn):
        begun.set()
        assert go_on.wait(10)

    holding = asyncio.create_task(engine.database.write(hold))
    assert await asyncio.to_thread(begun.wait, 10)
    sending = asyncio.create_task(engine.send(b"b@sender.test", [b"info@here.test"], MESSAGE))
    async with asyncio.timeout(10):
        await engine.intake.news.wait()
    [early] = engine.intake.prepared
    assert early.reverse_path.wire() == "b@sender.test"
    assert len(engine.intake.messages) == 1  # handed over when it is durable, not before
    go_on.set()
    await holding
    assert (await sending)[-1].code == 250
    assert engine.intake.messages[1] is early


async def test_the_null_reverse_path_is_stored_as_such(engine):
    await hosting(engine)
    await engine.send(b"", [b"info@here.test"], MESSAGE)
    assert [row.reverse_path for row in await engine.deliveries()] == [""]


async def test_a_domain_hosted_here_is_resolved_in_place(engine):
    await hosting(engine)
    await engine.host("inner.test", {"*": "info@here.test"})
    await engine.send(b"a@sender.test", [b"anyone@inner.test"], MESSAGE)
    assert await engine.destinations() == ["person@dest.test"]


async def test_the_same_recipient_twice_is_one_delivery(engine):
    await hosting(engine)
    answers = await engine.send(b"a@sender.test", [b"info@here.test", b"INFO@here.test"], MESSAGE)
    assert [answer.code for answer in answers] == [250, 250, 250, 354, 250]
    assert await engine.destinations() == ["person@dest.test"]


async def test_a_hundred_recipients_and_more(engine):
    await engine.start(mx={"recipients": 150})
    await engine.host("here.test", {"*": "$1@dest.test"})
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.send(b"".join(b"RCPT TO:<r%d@here.test>\r\n" % number for number in range(200)))
        codes = [(await client.read()).code for _ in range(200)]
        assert codes == [250] * 150 + [452] * 50
        await client.say(b"DATA\r\n")
        assert (await client.say(MESSAGE + b".\r\n")).code == 250
    assert sorted(await engine.destinations()) == sorted(f"r{number}@dest.test" for number in range(150))


RELAYS = [
    b"ext@ext.test",
    b"u%ext.test@elsewhere.test",
    b'"u@ext.test"@elsewhere.test',
    b"@here.test:u@ext.test",
    b"u@ext.test@here.test",
    b"u@[127.0.0.1]",
    b"ext.test!u@elsewhere.test",
    b"SRS0=abcd=AA=ext.test=u@elsewhere.test",
]


@pytest.mark.parametrize("path", RELAYS)
async def test_no_relay(engine, path):
    await hosting(engine)
    answers = await engine.send(b"ext@ext.test", [path], MESSAGE)
    assert str(answers[-1])[:9] in ("554 5.7.1", "501 5.1.3")
    assert await engine.deliveries() == []


@pytest.mark.parametrize(
    "path", [b"u%ext.test@wild.test", b'"u@ext.test"@wild.test', b"ext.test!u@wild.test"]
)
async def test_a_wildcard_takes_the_local_part_as_it_is(engine, path):
    await engine.start()
    await engine.host("wild.test", {"*": "person@dest.test"})
    assert (await engine.send(b"ext@ext.test", [path], MESSAGE))[-1].code == 250
    assert await engine.destinations() == ["person@dest.test"]


@on_both
async def test_an_unknown_recipient_is_refused_and_logged(engine):
    domain = await hosting(engine)
    answers = await engine.send(b"a@sender.test", [b"nobody@here.test"], MESSAGE)
    assert str(answers[-1]).startswith("550 5.1.1")
    [entry] = await engine.logs(domain)
    assert (entry.recipient_email, entry.alias, entry.sender_email) == (
        "nobody@here.test",
        None,
        "a@sender.test",
    )
    [event] = entry.events
    assert (event.status, event.code) == (Status.REFUSED, 550)
    assert event.message.startswith("5.1.1 ")


@on_both
async def test_an_alias_made_elsewhere_a_moment_ago_is_known(engine):
    domain = await hosting(engine)
    await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE)  # the rule set is cached now
    from forwarder.store import aliases

    await engine.database.write(lambda conn: aliases.add(conn, domain, "fresh", "new@dest.test", utc_now()))
    answers = await engine.send(b"a@sender.test", [b"fresh@here.test"], MESSAGE)
    assert answers[-1].code == 250
    assert (await engine.destinations())[-1] == "new@dest.test"


@pytest.mark.parametrize(
    ("code", "reply", "statuses"),
    [
        (550, "550 5.2.1", [Status.REFUSED]),
        (421, "421 4.2.1", [Status.REFUSED]),
        (250, "250 2.0.0", [Status.QUEUED, Status.DELIVERED]),
    ],
)
async def test_a_disabled_alias_answers_as_its_owner_chose(engine, code, reply, statuses):
    domain = await hosting(engine)
    await engine.disable(domain, "info", code)
    async with engine.client() as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"info@here.test"], MESSAGE)
        assert str(answers[-1]).startswith(reply)
        assert (await client.say(b"RSET\r\n")).code == 250  # 421 was about the address, not the session
    assert await engine.deliveries() == []
    assert await engine.contents() == []
    [entry] = await engine.logs(domain)
    assert [event.status for event in entry.events] == statuses
    assert entry.alias == "info"


async def test_a_dictionary_attack_is_no_write_load(engine):
    domain = await hosting(engine, mx={"errors": 0})
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.send(b"".join(b"RCPT TO:<nobody%d@here.test>\r\n" % number for number in range(200)))
        assert {(await client.read()).code for _ in range(200)} == {550}
    assert len(await engine.logs(domain)) == PER_CLIENT
    answers = await engine.send(b"a@sender.test", [b"nobody@here.test"], MESSAGE, local_address="127.0.0.9")
    assert answers[-1].code == 550
    assert len(await engine.logs(domain)) == PER_CLIENT + 1


def returning(srs=None, at=None, sender="Ann.Lee@sender.test"):
    srs = srs or Srs([SECRET], "mx.test")
    return srs.forward(parse_address(sender), now=at or utc_now()).wire().encode()


@pytest.mark.parametrize("sender", [b"", b"away@dest.test"])
@pytest.mark.parametrize("change", [bytes, bytes.lower])
async def test_mail_to_an_srs_address_goes_back_to_the_sender(engine, sender, change):
    await hosting(engine)
    answers = await engine.send(sender, [change(returning())], MESSAGE)
    assert answers[-1].code == 250
    [row] = await engine.deliveries()
    assert row.destination.lower() == "ann.lee@sender.test"
    assert (row.alias, row.domain_id, row.reverse_path) == (None, None, sender.decode())


async def test_forged_srs_addresses_are_unknown(engine):
    await hosting(engine)
    good = returning()
    hash_at = good.index(b"=") + 1
    forged = [
        good[:hash_at] + b"aaaaaaaa" + good[hash_at + 8 :],
        good.replace(b"sender.test", b"victim.test"),
        returning(at=datetime.now(UTC) - timedelta(days=25)),
        returning(Srs([b"another secret of 20 octets or so"], "mx.test")),
        b"SRS1=aaaaaaaa=victim.test==xxxx=AA=sender.test=a@mx.test",
        b"SRS0=@mx.test",
    ]
    for path in forged:
        assert str((await engine.send(b"", [path], MESSAGE))[-1]).startswith("550 5.1.1"), path
    assert await engine.deliveries() == []


async def test_an_srs_address_of_another_domain_is_an_ordinary_recipient(engine):
    await hosting(engine)
    path = returning().replace(b"@mx.test", b"@here.test")
    assert str((await engine.send(b"", [path], MESSAGE))[-1]).startswith("550 5.1.1")


async def test_the_postmaster(engine):
    await hosting(engine, postmaster="admin@dest.test")
    for path in (b"postmaster", b"Postmaster@mx.test"):
        assert (await engine.send(b"", [path], MESSAGE))[-1].code == 250
    assert await engine.destinations() == ["admin@dest.test"] * 2


async def test_without_a_postmaster_there_is_none(engine):
    await hosting(engine)
    assert str((await engine.send(b"", [b"postmaster"], MESSAGE))[-1]).startswith("550 5.1.1")


@pytest.mark.parametrize(("hops", "code"), [(50, 250), (51, 554)])
async def test_hops(engine, hops, code):
    domain = await hosting(engine)
    content = b"Received: from a by b\r\n" * hops + b"Subject: round and round\r\n\r\nx\r\n"
    answer = (await engine.send(b"a@sender.test", [b"info@here.test"], content))[-1]
    assert answer.code == code
    [entry] = await engine.logs(domain)
    assert entry.subject == "round and round"
    assert [event.status for event in entry.events] == [Status.QUEUED if code == 250 else Status.REFUSED]


@pytest.mark.parametrize(
    ("bad", "code", "subject"),
    [(b"a\nb\r\n", 550, "faulty"), (b"x" * 1000 + b"\r\n", 500, "faulty"), (b"x\r\n" * 900, 552, None)],
)
async def test_what_is_refused_for_its_form_is_logged_too(engine, bad, code, subject):
    domain = await hosting(engine, mx={"size_limit": "1200 B"})
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.say(b"RCPT TO:<info@here.test>\r\n")
        await client.say(b"DATA\r\n")
        assert (await client.say(b"Subject: faulty\r\n\r\n" + bad + b".\r\n")).code == code
    [entry] = await engine.logs(domain)
    assert (entry.alias, entry.subject) == ("info", subject)
    assert [(event.status, event.code) for event in entry.events] == [(Status.REFUSED, code)]


@pytest.mark.parametrize(("recipient", "code"), [(b"info@here.test", 554), (b"support@here.test", 250)])
async def test_a_message_that_was_here_before_for_this_alias_is_going_in_circles(engine, recipient, code):
    await hosting(engine)
    passage = trace.Passage(delivery_id="0" * 32, mark=trace.mark(SECRET, parse_address("info@here.test")))
    content = trace.lines([passage], None) + MESSAGE
    answer = (await engine.send(b"a@sender.test", [recipient], content))[-1]
    assert answer.code == code
    assert code == 250 or answer.text.startswith("5.4.6")


@pytest.mark.parametrize(
    ("hello", "shown"),
    [
        (b"x) by trusted (", b"[127.0.0.1]"),
        (b"a;b", b"[127.0.0.1]"),
        (b"\x1b[31mred", b"[127.0.0.1]"),
        (b"x\r y", b"[127.0.0.1]"),
        (b"[192.0.2.7]", b"[192.0.2.7]"),
        (b"Mail.Sender.Test", b"mail.sender.test"),
        ("bücher.test".encode(), b"xn--bcher-kva.test"),
        (b"a" * 1900, b"[127.0.0.1]"),
    ],
)
async def test_what_the_client_calls_itself_ends_no_comment(engine, hello, shown):
    domain = await hosting(engine)
    assert (await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE, hello=hello))[-1].code == 250
    [content] = await engine.contents()
    assert content.startswith(b"Received: from " + shown + b" ([127.0.0.1])\r\n\tby mx.test ")
    [entry] = await engine.logs(domain)
    assert entry.hostname == shown.decode()


async def test_tls_is_told_in_received(engine):
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        await client.starttls()
        answer = await client.ehlo()
        assert "STARTTLS" not in answer.text
        assert str(await client.say(b"STARTTLS\r\n")).startswith("503 5.5.1")
        assert (await client.message(b"a@sender.test", [b"info@here.test"], MESSAGE))[-1].code == 250
    [content] = await engine.contents()
    assert b" with ESMTPS (TLSv1.3 TLS_" in content.partition(b"\r\n\tid ")[0]


async def test_what_was_said_before_tls_is_forgotten(engine):
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<before@sender.test>\r\n")
        await client.send(b"STARTTLS\r\nMAIL FROM:<injected@sender.test>\r\n")
        assert (await client.read()).code == 220
        await client.handshake()
        await client.ehlo()
        assert str(await client.say(b"RCPT TO:<info@here.test>\r\n")).startswith("503 5.5.1")
        assert (await client.message(b"a@sender.test", [b"info@here.test"], MESSAGE))[-1].code == 250
    assert [row.reverse_path for row in await engine.deliveries()] == ["a@sender.test"]


async def test_authentication_is_not_offered_here(engine):
    await hosting(engine)
    async with engine.client() as client:
        assert "AUTH" not in (await client.ehlo()).text
        assert str(await client.login("a@here.test", "secret")).startswith("503 5.5.1")
        await client.starttls()
        assert "AUTH" not in (await client.ehlo()).text
        assert str(await client.login("a@here.test", "secret")).startswith("503 5.5.1")


def bombs():
    yield b"Subject: x\r\n\r\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(1200)
    )
    yield b"X: y\r\n" * 20_000 + b"\r\nx\r\n"
    yield b"X: " + (b"y" * 990 + b"\r\n ") * 1000 + b"\r\n\r\nx\r\n"
    yield b"From: " + (b"(" * 900 + b"\r\n ") * 4 + b"<a@sender.test>\r\n\r\nx\r\n"
    yield (
        b"To: "
        + b"".join(b"a%d@sender.test,\r\n " % n for n in range(100_000))
        + b"b@sender.test\r\n\r\nx\r\n"
    )
    yield b"__proto__: 1\r\n__class__: 2\r\n" + b"n" * 990 + b": 3\r\n\xc3\xa4: 4\r\nFrom\0: x\r\n y\r\n\r\n"


@pytest.mark.parametrize("content", list(bombs()), ids=range(6))
async def test_bombs_pass_through_unchanged_and_fast(engine, content):
    await hosting(engine)
    started = time.process_time()
    assert (await engine.send(b"a@sender.test", [b"info@here.test"], content))[-1].code == 250
    assert time.process_time() - started < 1
    assert (await engine.contents())[0].endswith(content)


async def test_a_head_of_a_million_fields_is_refused_for_little(engine):
    await hosting(engine)
    content = b"From: a@sender.test\r\n" + b"a:\r\n" * 1_000_000 + b"\r\nx\r\n"
    started = time.process_time()
    answer = (await engine.send(b"a@sender.test", [b"info@here.test"], content))[-1]
    assert str(answer).startswith("554 5.6.0")
    assert time.process_time() - started < 1
    assert await engine.contents() == []


async def test_one_transaction_does_not_become_a_million_deliveries(engine):
    """An alias of many destinations, asked for under many labels."""
    await engine.start()
    await engine.host("here.test", {"all": ",".join(f"u{n}@dest.test" for n in range(900))})
    async with engine.client() as client:
        await client.ehlo()
        assert (await client.say(b"MAIL FROM:<a@sender.test>\r\n")).code == 250
        codes = [(await client.say(b"RCPT TO:<all+%d@here.test>\r\n" % number)).code for number in range(8)]
    assert codes == [250] * 6 + [452] * 2


@on_both
async def test_logs_hold_no_control_characters_and_are_bounded(engine):
    domain = await hosting(engine)
    content = (
        b"From: \0\xed\xa0\x80 <a\0@b.test>\r\nMessage-ID: \0\xff\r\n"
        b"Subject: a\0\x1b[31m\xe2\x80\xa8{0.__class__}%s%n"
        + b"\r\n "
        + (b"x" * 900 + b"\r\n ") * 10
        + b"\r\n\r\n"
    )
    await engine.send(b"a@sender.test", [b"info@here.test"], content)
    [entry] = await engine.logs(domain)
    assert entry.subject is not None
    assert len(entry.subject.encode()) <= 1024
    for shown in (entry.subject, entry.sender_email, entry.sender_name, entry.message_id):
        assert (shown or "").isprintable()
    assert entry.subject.startswith("a\\x00\\x1b[31m"), entry.subject


class Failing:
    """A directory or a queue that cannot be reached."""

    def __init__(self, error):
        self.error = error

    async def fail(self, *_, **__):
        raise self.error

    rule_set = confirmed = enqueue = fail


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (StoreUnavailable(), "451 4.3.0"),
        (StoreFull(), "452 4.3.1"),
        (RuntimeError("host=db.internal password=hunter2"), "451 4.3.0"),
    ],
)
async def test_trouble_of_the_store_is_temporary_and_tells_nothing(engine, monkeypatch, error, reply):
    await hosting(engine)
    failing = Failing(error)
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        with monkeypatch.context() as patch:
            patch.setattr(type(engine.rooms.directory), "rule_set", failing.fail)
            answer = await client.say(b"RCPT TO:<info@here.test>\r\n")
            assert str(answer).startswith(reply)
            assert "hunter2" not in answer.text
        assert (await client.say(b"RCPT TO:<info@here.test>\r\n")).code == 250
        with monkeypatch.context() as patch:
            patch.setattr(type(engine.rooms.queue), "enqueue", failing.fail)
            await client.say(b"DATA\r\n")
            assert str(await client.say(MESSAGE + b".\r\n")).startswith(reply)
        assert await engine.deliveries() == []
        answers = await client.message(b"a@sender.test", [b"info@here.test"], MESSAGE)
        assert answers[-1].code == 250
    assert await engine.destinations() == ["person@dest.test"]


@pytest.mark.parametrize(
    ("trouble", "then"),
    [(StoreUnavailable(), [250, 452]), (CommitUnknown(), [452, 452])],  # that one may be stored after all
)
async def test_a_message_that_is_not_stored_is_not_of_the_quota(engine, monkeypatch, trouble, then):
    await engine.start(plans={"default": {"daily_quota": 1}})
    await engine.host("here.test", {"info": "person@dest.test"})
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.rooms.queue), "enqueue", Failing(trouble).fail)
        assert (await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE))[-1].code == 451
    codes = [(await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE))[-1].code for _ in range(2)]
    assert codes == then


async def test_an_account_whose_quota_is_used_up_keeps_no_mail_from_others(engine):
    await engine.start(plans={"default": {"daily_quota": 1}})
    await engine.host("here.test", {"info": "person@dest.test"})
    await engine.host("there.test", {"info": "other@dest.test"}, account="other@example.org")
    codes = [(await engine.send(b"a@sender.test", [b"info@here.test"], MESSAGE))[-1].code for _ in range(2)]
    assert codes == [250, 452]
    answers = await engine.send(b"a@sender.test", [b"info@here.test", b"info@there.test"], MESSAGE)
    assert [answer.code for answer in answers] == [250, 452, 250, 354, 250]
    assert await engine.destinations() == ["person@dest.test", "other@dest.test"]


async def test_where_one_account_cannot_be_counted_no_other_is(engine, monkeypatch):
    await engine.start(plans={"default": {"daily_quota": 1}})
    await engine.host("here.test", {"info": "person@dest.test"})
    await engine.host("there.test", {"info": "other@dest.test"}, account="other@example.org")
    recipients = [b"info@here.test", b"info@there.test"]
    hit, hits = counters.hit_block, []

    async def hit_once(*arguments, **options):
        hits.append(arguments)
        if len(hits) > 1:
            raise StoreUnavailable
        return await hit(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(counters, "hit_block", hit_once)
        assert (await engine.send(b"a@sender.test", recipients, MESSAGE))[-1].code == 451
    assert len(hits) == 2
    codes = [(await engine.send(b"a@sender.test", recipients, MESSAGE))[-1].code for _ in range(2)]
    assert codes == [250, 452]


async def test_of_a_late_bounce_no_more_is_kept_than_is_read(monkeypatch):
    seen = []
    monkeypatch.setattr(late_bounce, "read_report", lambda content: seen.append(len(content)))
    head = b"Content-Type: multipart/report; boundary=x\r\n"
    bounces = late_bounce.LateBounces(None, secrets=(), local_name="mx.test")
    bounces.look_at(head + b"\r\n" + b"x" * (2 << 20), head)
    await bounces.close()
    assert seen == [512 * 1024]


async def test_twenty_late_bounces_are_looked_at_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr(late_bounce, "read_report", lambda content: seen.append(content))
    head = b"Content-Type: multipart/report; boundary=x\r\n"
    bounces = late_bounce.LateBounces(None, secrets=(), local_name="mx.test")
    contents = [b"%d" % number for number in range(23)]
    for content in contents:
        bounces.look_at(content, head)
    await bounces.close()
    assert seen == contents[:20]
    bounces.look_at(b"later", head)  # there is room again
    await bounces.close()
    assert seen[20:] == [b"later"]


async def test_a_large_report_is_read_where_it_holds_nobody_up(monkeypatch):
    readers = []
    monkeypatch.setattr(late_bounce, "read_report", lambda content: readers.append(threading.get_ident()))
    bounces = late_bounce.LateBounces(None, secrets=(), local_name="mx.test")
    for octets in (1000, 500_000):
        assert not await bounces.is_about_ours(b"x" * octets)
    here = threading.get_ident()
    assert [reader == here for reader in readers] == [True, False]


async def test_a_store_that_is_gone_refuses_nobody_for_good(engine):
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await engine.database.close()
        for path in (b"info@here.test", b"nobody@here.test", b"u@elsewhere.test"):
            assert str(await client.say(b"RCPT TO:<" + path + b">\r\n")).startswith("451 4.3.0")


async def test_a_full_disk_is_told_at_mail(engine, monkeypatch):
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        with monkeypatch.context() as patch:
            patch.setattr(Disk, "has_room", lambda *_: False)
            assert str(await client.say(b"MAIL FROM:<a@sender.test>\r\n")).startswith("452 4.3.1")
        assert (await client.say(b"MAIL FROM:<a@sender.test>\r\n")).code == 250


async def nothing_spare():
    return 0


def test_room_on_the_disk_is_one_and_a_half_messages(tmp_path):
    now = [0.0]
    disk = Disk(tmp_path, nothing_spare, seconds=lambda: now[0])
    free = shutil.disk_usage(tmp_path).free
    assert disk.has_room(int(free / 2))
    assert not disk.has_room(free)
    disk._free = 0
    assert not disk.has_room(int(free / 2))
    now[0] += 1
    assert disk.has_room(int(free / 2))


@pytest.mark.parametrize(
    ("free", "spare", "takes"),
    [(30, 0, True), (29, 0, False), (29, 1, True), (8, 21, False), (8, 22, True), (7, 1000, False)],
)
async def test_free_pages_of_the_store_are_room_too(tmp_path, monkeypatch, free, spare, takes):
    """In MiB, for messages of up to 20: the file does not get shorter when a backlog is delivered."""
    mib = 1024 * 1024
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free * mib, f_frsize=1))

    async def pages():
        return spare * mib

    assert await Disk(tmp_path, pages).takes(20 * mib) is takes


async def test_the_reply_waits_for_the_commit(engine, monkeypatch):
    await hosting(engine)
    go_on = asyncio.Event()
    enqueue = type(engine.rooms.queue).enqueue

    async def slow(queue, message, **options):
        await go_on.wait()
        return await enqueue(queue, message, **options)

    monkeypatch.setattr(type(engine.rooms.queue), "enqueue", slow)
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.say(b"RCPT TO:<info@here.test>\r\n")
        await client.say(b"DATA\r\n")
        await client.send(MESSAGE + b".\r\n")
        assert await client.silent(0.1)
        assert engine.intake.messages == []
        go_on.set()
        assert (await client.read()).code == 250
    assert len(await engine.deliveries()) == 1
    assert len(engine.intake.messages) == 1


async def test_stopping_tells_idle_sessions_and_lets_data_finish(engine):
    await hosting(engine)
    async with engine.client() as idle, engine.client() as busy:
        await busy.ehlo()
        await busy.say(b"MAIL FROM:<a@sender.test>\r\n")
        await busy.say(b"RCPT TO:<info@here.test>\r\n")
        await busy.say(b"DATA\r\n")
        await busy.send(MESSAGE)
        draining = asyncio.create_task(engine.servers["mx"].drain(timedelta(seconds=10)))
        assert str(await idle.read()).startswith("421 4.3.2")
        assert await idle.closed()
        with pytest.raises(OSError):
            await engine.client().open()
        assert not draining.done()
        assert (await busy.say(b".\r\n")).code == 250
        assert str(await busy.read()).startswith("421 4.3.2")
        await draining
    assert await engine.destinations() == ["person@dest.test"]


async def test_sessions_that_outlast_the_grace_are_cut_off(engine):
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.say(b"RCPT TO:<info@here.test>\r\n")
        await client.say(b"DATA\r\n")
        await client.send(b"half a mess")
        async with asyncio.timeout(5):
            await engine.servers["mx"].drain(timedelta(seconds=0.2))
        assert str(await client.read()).startswith("421 4.3.2")
        assert await client.closed()
        assert engine.servers["mx"].sessions == 0
    assert await engine.deliveries() == []


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00"], ids=["silent", "half a hello"])
async def test_a_handshake_that_does_not_end_holds_up_nobody(engine, monkeypatch, said):
    """Nothing can be said to who was told to begin TLS and does not; mail in flight is not waited for there."""
    monkeypatch.setattr(connection, "LAST_HANDSHAKE_SECONDS", 0.1)
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        assert (await client.say(b"STARTTLS\r\n")).code == 220
        await client.send(said)
        async with asyncio.timeout(5):
            await engine.servers["mx"].drain(timedelta(seconds=20))
        assert await client.closed()
        assert engine.servers["mx"].sessions == 0


async def test_a_handshake_that_is_under_way_ends_before_the_session_does(engine):
    """Where it fails, Exim sends in clear."""
    await hosting(engine)
    async with engine.client() as client:
        await client.ehlo()
        assert (await client.say(b"STARTTLS\r\n")).code == 220
        engine.servers["mx"].stop_accepting()
        await client.handshake()
        assert str(await client.read()).startswith("421 4.3.2")


def report(delivery_id, mark, *, action=b"failed"):
    return (
        b"From: mailer-daemon@dest.test\r\nSubject: undeliverable\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/report; report-type=delivery-status; boundary="=b"\r\n\r\n'
        b"--=b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n"
        b"--=b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.dest.test\r\n\r\n"
        b"Final-Recipient: rfc822; person@dest.test\r\nAction: " + action + b"\r\nStatus: 5.2.2\r\n"
        b"Diagnostic-Code: smtp; 552 5.2.2 mailbox full\r\n\r\n"
        b"--=b\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Forwarder-Id: "
        + f"{delivery_id}-{mark}".encode()
        + b"\r\nSubject: hello\r\n\r\n--=b--\r\n"
    )


@pytest.mark.parametrize(
    ("recipient", "action", "statuses"),
    [
        ("info@here.test", b"failed", [Status.QUEUED, Status.HARD_BOUNCE]),
        ("forged@here.test", b"failed", [Status.QUEUED]),
        ("info@here.test", b"delayed", [Status.QUEUED]),
    ],
)
async def test_a_bounce_that_comes_back_finds_its_delivery(engine, recipient, action, statuses):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"info@here.test"], MESSAGE)
    [row] = await engine.deliveries()
    mark = trace.mark(SECRET, parse_address(recipient))
    answers = await engine.send(
        b"", [returning(sender="ann@sender.test")], report(row.id, mark, action=action)
    )
    assert answers[-1].code == 250
    await engine.servers["mx"].drain(timedelta(seconds=5))
    [entry] = await engine.logs(domain)
    assert [event.status for event in entry.events] == statuses
    if statuses[-1] is Status.HARD_BOUNCE:
        assert entry.events[-1].message.startswith("5.2.2 ")
    assert (await engine.destinations())[-1] == "ann@sender.test"  # and the report goes on to the sender


@pytest.mark.parametrize(
    ("status", "diagnostic", "event"),
    [
        (b"5.2.2", b"smtp; 552 5.2.2 mailbox full", (552, "5.2.2 mailbox full")),
        (b"5.0.0", b"smtp; 554 5.4.6 it goes in circles", (554, "5.4.6 it goes in circles")),
        (b"5.1.1", b"smtp; 550-no such user", (550, "5.1.1 no such user")),
        (b"5.7.1", b"smtp; 554", (554, "5.7.1 the destination could not deliver the message")),
        (b"5.1.1", b"X-Unix; nobody is called so", (550, "5.1.1 nobody is called so")),
        (b"4.4.7", b"smtp; 451 4.7.1 come again", (550, "5.0.0 451 4.7.1 come again")),
        (b"5.3.0", b"", (550, "5.3.0 the destination could not deliver the message")),
    ],
)
async def test_of_a_late_bounce_the_log_shows_what_was_said(engine, status, diagnostic, event):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"info@here.test"], MESSAGE)
    [row] = await engine.deliveries()
    content = report(row.id, trace.mark(SECRET, parse_address("info@here.test")))
    content = content.replace(b"Status: 5.2.2", b"Status: " + status)
    content = content.replace(b"smtp; 552 5.2.2 mailbox full", diagnostic)
    await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    [entry] = await engine.logs(domain)
    assert (entry.events[-1].code, entry.events[-1].message) == event


async def test_a_bounce_that_comes_again_is_known(engine):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"info@here.test"], MESSAGE)
    [row] = await engine.deliveries()
    content = report(row.id, trace.mark(SECRET, parse_address("info@here.test")))

    async def noted():
        async with asyncio.timeout(5):
            while len((await engine.logs(domain))[0].events) < 2:  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.01)

    await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await noted()
    for _ in range(3):
        await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    [entry] = await engine.logs(domain)
    assert [event.status for event in entry.events] == [Status.QUEUED, Status.HARD_BOUNCE]


@on_both
async def test_smtputf8_is_kept(engine):
    await engine.start()
    await engine.host("here.test", {"*": "person@dest.test"})
    async with engine.client() as client:
        await client.ehlo()
        await client.say("MAIL FROM:<ä@sender.test> SMTPUTF8\r\n".encode())
        assert (await client.say("RCPT TO:<ö@here.test>\r\n".encode())).code == 250
        await client.say(b"DATA\r\n")
        assert (await client.say(MESSAGE + b".\r\n")).code == 250
    [row] = await engine.deliveries()
    assert (row.reverse_path, row.recipient, row.smtputf8) == ("ä@sender.test", "ö@here.test", True)
    assert b" with UTF8SMTP\r\n" in (await engine.contents())[0]


class Judge:
    """A screening that says what it is told to."""

    def __init__(self, reply=None):
        self.reply = reply
        self.asked = []

    async def examine(self, *, client_address, helo, reverse_path, content):
        self.asked.append((client_address, helo, reverse_path.wire(), content))
        renamed = content.replace(b"Authentication-Results", b"X-Authentication-Results")
        return Screened(
            reply=self.reply, headers=b"Authentication-Results: mx.test; spf=pass\r\n", content=renamed
        )


async def test_what_screening_adds_is_stored_below_received(engine):
    judge = Judge()
    await engine.start(screening=judge)
    await engine.host("here.test", ALIASES)
    content = b"Authentication-Results: mx.test; spf=pass\r\n" + MESSAGE
    assert (await engine.send(b"a@sender.test", [b"info@here.test"], content))[-1].code == 250
    assert judge.asked == [("127.0.0.1", "client.test", "a@sender.test", content)]
    [stored] = await engine.contents()
    assert stored.startswith(b"Received: from client.test ")
    assert stored.endswith(
        b"\r\nAuthentication-Results: mx.test; spf=pass\r\nX-Authentication-Results: mx.test; spf=pass\r\n"
        + MESSAGE
    )


async def test_what_screening_refuses_is_logged(engine):
    await engine.start(screening=Judge(reply.POLICY_REFUSAL))
    domain = await engine.host("here.test", ALIASES)
    answer = (await engine.send(b"a@sender.test", [b"info@here.test", b"two@here.test"], MESSAGE))[-1]
    assert str(answer).startswith("550 5.7.1")
    assert await engine.deliveries() == []
    entries = await engine.logs(domain)
    assert {(entry.alias, entry.subject) for entry in entries} == {("info", "hello"), ("two", "hello")}
    assert {event.status for entry in entries for event in entry.events} == {Status.REFUSED}


async def test_a_bounce_to_a_sender_who_is_hosted_here_goes_where_their_alias_leads(engine):
    await engine.start()
    await engine.host("here.test", ALIASES, active=True)
    answers = await engine.send(b"", [returning(sender="info@here.test")], MESSAGE)
    assert answers[-1].code == 250
    assert (await engine.destinations())[-1] == "person@dest.test"
    answers = await engine.send(b"", [returning(sender="nobody@here.test")], MESSAGE)
    assert answers[1].code == 550


@pytest.mark.parametrize(
    ("told", "failed"),
    [
        (b"a@dest.test", {"a@dest.test"}),
        (b"A@dest.test", {"a@dest.test"}),
        (b"else@dest.test", set()),
        # It leads on there, and the next host says by which name it knew it.
        (b"else@dest.test\r\nOriginal-Recipient: rfc822;a@dest.test", {"a@dest.test"}),
        # One report for all who failed together.
        (
            b"a@dest.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\nFinal-Recipient: rfc822; b@other.test",
            {"a@dest.test", "b@other.test"},
        ),
        (
            b"a@dest.test\r\nAction: delayed\r\nStatus: 4.4.1\r\n\r\nFinal-Recipient: rfc822; b@other.test",
            {"b@other.test"},
        ),
    ],
)
async def test_of_deliveries_that_shared_a_content_the_bounce_is_about_those_it_names(engine, told, failed):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"two@here.test"], MESSAGE)
    rows = await engine.deliveries()
    assert len(rows) == 2
    mark = trace.mark(SECRET, parse_address("two@here.test"))
    ids = ", ".join(f"{row.id}-{mark}" for row in rows)
    content = report(rows[0].id, mark).replace(f"{rows[0].id}-{mark}".encode(), ids.encode())
    content = content.replace(b"rfc822; person@dest.test", b"rfc822; " + told)
    await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    assert await failed_at(engine, domain) == failed


async def test_a_bounce_that_quotes_the_header_as_text_is_about_the_delivery_it_names(engine):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"two@here.test"], MESSAGE)
    rows = await engine.deliveries()
    mark = trace.mark(SECRET, parse_address("two@here.test"))
    ids = ",\r\n> \t".join(f"{row.id}-{mark}" for row in rows)  # folded, as we write it
    content = report("one", "other").replace(b"one-other", ids.encode())
    content = content.replace(b"text/rfc822-headers\r\n\r\n", b"text/plain\r\n\r\n> ")
    content = content.replace(b"person@dest.test", b"b@other.test")
    await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    assert await failed_at(engine, domain) == {"b@other.test"}


async def test_a_bounce_that_comes_again_is_not_about_those_who_went_with_it(engine):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"two@here.test"], MESSAGE)
    rows = await engine.deliveries()
    mark = trace.mark(SECRET, parse_address("two@here.test"))
    ids = ", ".join(f"{row.id}-{mark}" for row in rows)
    content = report(rows[0].id, mark).replace(f"{rows[0].id}-{mark}".encode(), ids.encode())
    content = content.replace(b"person@dest.test", b"b@other.test")
    for _ in range(2):
        await engine.send(b"", [returning(sender="ann@sender.test")], content)
        async with asyncio.timeout(5):
            while not await failed_at(engine, domain):  # noqa: ASYNC110 - the store tells nobody
                await asyncio.sleep(0.01)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    assert await failed_at(engine, domain) == {"b@other.test"}


@pytest.mark.parametrize("others", [1, 12])
async def test_a_bounce_of_what_another_forwarder_sent_on_finds_its_delivery(engine, others):
    domain = await hosting(engine)
    await engine.send(b"ann@sender.test", [b"info@here.test"], MESSAGE)
    [row] = await engine.deliveries()
    mark = trace.mark(SECRET, parse_address("info@here.test"))
    theirs = ",\r\n\t".join(f"{number:032x}-{mark}" for number in range(others)).encode()
    content = report(row.id, mark).replace(
        b"X-Forwarder-Id: ", b"X-Forwarder-Id: " + theirs + b"\r\nReceived: x\r\nX-Forwarder-Id: "
    )
    content = content.replace(b"person@dest.test", b"someone@beyond.test")
    await engine.send(b"", [returning(sender="ann@sender.test")], content)
    await engine.servers["mx"].drain(timedelta(seconds=5))
    assert await failed_at(engine, domain) == {"person@dest.test"}


async def failed_at(engine, domain):
    return {
        entry.forward_email
        for entry in await engine.logs(domain)
        if any(event.status is Status.HARD_BOUNCE for event in entry.events)
    }
