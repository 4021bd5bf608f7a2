"""Reports of other systems, read for the trace of ours that they carry back."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.returned import ReturnedReport, read_report
from forwarder.mail.trace import Passage, lines

ID = "019aa5b3c1d27e3f8899aabbccddeeff"
TRACE = b"X-Forwarder-Id: " + ID.encode() + b"-0123456789abcdef\r\n"

POSTFIX = (
    b"""\
Return-Path: <>
From: MAILER-DAEMON@mail.example.com (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="5C3E41A2B7.1700000000/mail.example.com"

This is a MIME-encapsulated message.

--5C3E41A2B7.1700000000/mail.example.com
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mail.example.com.

--5C3E41A2B7.1700000000/mail.example.com
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example.com
X-Postfix-Queue-ID: 5C3E41A2B7
Arrival-Date: Tue, 14 Nov 2023 22:13:20 +0000 (UTC)

Final-Recipient: rfc822; fine@example.com
Action: relayed
Status: 2.0.0

Final-Recipient: rfc822; full@example.com
Original-Recipient: rfc822;full@example.com
Action: failed
Status: 5.2.2
Remote-MTA: dns; store.example.com
Diagnostic-Code: smtp; 552 5.2.2 <full@example.com>: mailbox
    over quota

--5C3E41A2B7.1700000000/mail.example.com
Content-Description: Undelivered Message
Content-Type: message/rfc822

Received: from mx1.example.net
""".replace(b"\n", b"\r\n")
    + TRACE
    + b"Message-ID: <1@example.org>\r\n\r\nbody\r\n\r\n--5C3E41A2B7.1700000000/mail.example.com--\r\n"
)
QMAIL = (
    b"From: MAILER-DAEMON@mail.example.com\r\nSubject: failure notice\r\n\r\n"
    b"Hi. This is the qmail-send program at mail.example.com.\r\n\r\n<full@example.com>:\r\nSorry.\r\n\r\n"
    b"--- Below this line is a copy of the message.\r\n\r\n" + TRACE + b"Subject: x\r\n\r\nbody\r\n"
)


def test_a_report_with_two_recipients() -> None:
    returned = read_report(POSTFIX)
    assert returned is not None
    assert [passage.delivery_id for passage in returned.passages] == [ID]
    assert returned.action == "failed"
    assert returned.status == "5.2.2"
    assert returned.diagnostic == "552 5.2.2 <full@example.com>: mailbox over quota"
    assert returned.recipient == "full@example.com"


def test_a_report_of_all_that_failed_together() -> None:
    returned = read_report(POSTFIX.replace(b"Action: relayed", b"Action: failed"))
    assert returned is not None
    assert (returned.recipient, returned.original, returned.status) == ("fine@example.com", "", "2.0.0")
    (other,) = returned.others
    assert (other.recipient, other.original, other.status) == (
        "full@example.com",
        "full@example.com",
        "5.2.2",
    )
    assert other.diagnostic == "552 5.2.2 <full@example.com>: mailbox over quota"


def test_a_recipient_who_is_called_otherwise_beyond_the_next_hop() -> None:
    returned = read_report(
        POSTFIX.replace(b"Final-Recipient: rfc822; full@", b"Final-Recipient: rfc822; box7@")
    )
    assert returned is not None
    assert (returned.recipient, returned.original) == ("box7@example.com", "full@example.com")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("utf-8; jürgen@example.com", "jürgen@example.com"),
        ("utf-8; j\\x{FC}rgen@example.com", "jürgen@example.com"),  # RFC 6533 3
        ("UTF-8;a\\x{2B}b\\x{1F4E7}@example.com", "a+b\N{E-MAIL SYMBOL}@example.com"),
        ("utf-8; a\\x{110000}@example.com", "a\\x{110000}@example.com"),  # no character
        ("rfc822; a\\x{2B}b@example.com", "a\\x{2B}b@example.com"),
    ],
)
def test_an_internationalised_recipient(written: str, read: str) -> None:
    returned = read_report(
        POSTFIX.replace(b"Final-Recipient: rfc822; full@example.com", b"Final-Recipient: " + written.encode())
    )
    assert returned is not None
    assert returned.recipient == read


@pytest.mark.parametrize("action", [b"failed (too many (hops))", b"Failed(mailbox over quota)", b"FAILED"])
def test_a_comment_behind_the_action_is_no_part_of_it(action: bytes) -> None:
    returned = read_report(POSTFIX.replace(b"Action: failed", b"Action: " + action))
    assert returned is not None
    assert (returned.action, returned.recipient) == ("failed", "full@example.com")


def test_a_recipient_in_angle_brackets() -> None:
    """Taken with them, it would be the address of no delivery, and of several in one transaction none be noted."""
    returned = read_report(POSTFIX.replace(b"rfc822; full@example.com", b"rfc822;<full@example.com>"))
    assert returned is not None
    assert returned.recipient == "full@example.com"


def test_a_notice_without_mime() -> None:
    returned = read_report(QMAIL)
    assert returned is not None
    assert [passage.delivery_id for passage in returned.passages] == [ID]
    assert returned.status == ""


def test_an_encoded_original() -> None:
    head = base64.encodebytes(TRACE + b"Message-ID: <2@example.org>\r\n")
    original = POSTFIX.index(b"Content-Type: message/rfc822")
    content = POSTFIX[:original] + (
        b"Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: base64\r\n\r\n" + head
    )
    returned = read_report(content)
    assert returned is not None
    assert [passage.delivery_id for passage in returned.passages] == [ID]


def test_a_report_that_is_cut_short_or_hides_the_original() -> None:
    returned = read_report(POSTFIX[: POSTFIX.index(b"Remote-MTA")])
    assert returned is not None
    assert (returned.passages, returned.status) == ((), "5.2.2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Subject: hello\r\n\r\nJust a letter.\r\n",
        b"Content-Type: multipart/report\r\n\r\nno boundary\r\n",
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\ntext\r\n--b--\r\n',
        # Our trace in the head is on mail that we forwarded, not on a report about it.
        TRACE + b"Subject: hello\r\n\r\nbody\r\n",
    ],
)
def test_other_mail_is_no_report(content: bytes) -> None:
    assert read_report(content) is None


@given(
    st.lists(
        st.sampled_from(
            [
                b"Content-Type: multipart/report; boundary=b\r\n",
                b"Content-Type: message/delivery-status\r\n",
                b"Content-Type: message/rfc822\r\n",
                b"Content-Transfer-Encoding: base64\r\n",
                b"Content-Transfer-Encoding: quoted-printable\r\n",
                b"\r\n",
                b"--b",
                b"--b--\r\n",
                b"Action: failed\r\n",
                b"Status: 5.1.1\r\n",
                b"Diagnostic-Code: smtp; \x1b\xff\r\n",
                TRACE,
                b"=\r\n",
                b"\xff\0",
            ]
        )
    ).map(b"".join)
)
def test_nothing_raises_and_everything_is_printable(content: bytes) -> None:
    returned = read_report(content)
    assert returned is None or isinstance(returned, ReturnedReport)
    if returned is not None:
        assert returned.diagnostic.isprintable()
        assert {passage.delivery_id for passage in returned.passages} <= {ID}


def test_bombs_cost_little() -> None:
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n"
    status = b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    bombs = (
        head + b"--b\r\n" * 1_000_000,
        head + status + b"Action: failed\r\n\r\n" * 500_000,
        head + status + b"X" * 5_000_000,
        b"\r\n" + b"X-Forwarder-Id:" * 500_000,
        b"\r\n" + b" > > >\r\n" * 500_000,
    )
    for bomb in bombs:
        begun = time.process_time()
        read_report(bomb)
        assert time.process_time() - begun < 1


def parts(*pieces: bytes, end: bytes = b"--b--\r\n") -> bytes:
    """A multipart/report of these parts, each with its header."""
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n"
    return head + b"".join(b"--b\r\n" + piece + b"\r\n" for piece in pieces) + end


def status(*lines: bytes) -> bytes:
    return b"Content-Type: message/delivery-status\r\n\r\n" + b"".join(line + b"\r\n" for line in lines)


OTHER = TRACE.replace(ID.encode(), b"f" * 32)


@pytest.mark.parametrize(
    "content",
    [
        # There is one report, and one original.
        parts(
            status(b"Action: failed", b"Status: 5.1.1"),
            b"Content-Type: message/rfc822\r\n\r\n" + TRACE,
            status(b"Action: failed", b"Status: 5.7.1"),
            b"Content-Type: message/rfc822\r\n\r\n" + OTHER,
        ),
        # Of a field given twice the first counts, and empty lines before the original are none of its.
        parts(
            status(b"Action: failed", b"Status: 5.1.1", b"Status: 5.7.1"),
            b"Content-Type: text/rfc822-headers\r\n\r\n\r\n" + TRACE,
        ),
        # The first recipient that failed counts.
        parts(
            status(b"Action: delayed", b"Status: 4.2.2", b"", b"Action: failed", b"Status: 5.1.1"),
            b"Content-Type: message/rfc822\r\n\r\n" + TRACE,
        ),
    ],
)
def test_what_is_said_first_counts(content: bytes) -> None:
    returned = read_report(content)
    assert returned is not None
    assert [passage.delivery_id for passage in returned.passages] == [ID]
    assert (returned.action, returned.status) == ("failed", "5.1.1")


def test_every_hop_of_the_original_is_read() -> None:
    """Where somebody else who has this program sent it on, their trace stands above ours."""
    two = TRACE.removesuffix(b"\r\n") + b",\r\n\t" + OTHER.partition(b": ")[2]
    original = b"Content-Type: text/rfc822-headers\r\n\r\n" + OTHER + b"Received: x\r\n" + two
    returned = read_report(parts(status(b"Action: failed"), original))
    assert returned is not None
    assert [[passage.delivery_id for passage in hop] for hop in returned.hops] == [["f" * 32], [ID, "f" * 32]]
    assert len(returned.passages) == 3


def test_two_hundred_deliveries_of_one_transaction_are_read() -> None:
    of_one = lines([Passage(delivery_id=f"{number:032x}", mark="0" * 16) for number in range(200)], None)
    returned = read_report(parts(status(), b"Content-Type: text/rfc822-headers\r\n\r\n" + of_one))
    assert returned is not None
    assert [int(passage.delivery_id, 16) for passage in returned.passages] == list(range(200))


def test_of_very_many_hops_the_latest_are_read() -> None:
    of_many = b"X-Forwarder-Id: " + b",\r\n\t".join([TRACE.strip().partition(b": ")[2]] * 60) + b"\r\n"
    for field, hops in ((TRACE, [1] * 50), (of_many, [60, 60, 60, 20])):
        returned = read_report(parts(status(), b"Content-Type: message/rfc822\r\n\r\n" + field * 100))
        assert returned is not None
        assert [len(hop) for hop in returned.hops] == hops


def test_what_stands_behind_the_end_is_no_part() -> None:  # RFC 2046 5.1.1
    assert read_report(parts(end=b"--b--\r\n--b\r\n" + status(b"Status: 5.1.1"))) is None


@pytest.mark.parametrize(("before", "read"), [(19, True), (20, False)])
def test_twenty_parts_are_looked_at(before: int, read: bool) -> None:
    content = parts(*[b"Content-Type: text/plain\r\n\r\nx"] * before, status(b"Status: 5.1.1"))
    assert (read_report(content) is not None) is read


@pytest.mark.parametrize(
    ("lines", "recipient", "diagnostic"),
    [
        ((b"Final-Recipient: rfc822; ann@example.org",), "ann@example.org", ""),
        ((b"Original-Recipient: rfc822;ann@example.org",), "ann@example.org", ""),
        (
            (b"Final-Recipient: rfc822; ann@example.org", b"Original-Recipient: rfc822; bob@example.org"),
            "ann@example.org",
            "",
        ),
        ((b"Diagnostic-Code: X-Postfix; unknown user: ann",), "", "unknown user: ann"),
        ((b"Diagnostic-Code: smtp;550 no; really",), "", "550 no; really"),
        ((b"Diagnostic-Code: 550 no (ann); sorry",), "", "550 no (ann); sorry"),
    ],
)
def test_what_stands_behind_a_type(lines: tuple[bytes, ...], recipient: str, diagnostic: str) -> None:
    returned = read_report(parts(status(b"Action: failed", *lines)))
    assert returned is not None
    assert (returned.recipient, returned.diagnostic) == (recipient, diagnostic)


def test_a_status_is_told_whatever_it_is() -> None:
    returned = read_report(parts(status(b"Action: delivered", b"Status: 2.1.5 (ok)")))
    assert returned is not None
    assert (returned.action, returned.status) == ("delivered", "2.1.5")


@pytest.mark.parametrize("mark", [b"> ", b"  > > ", b"\t", b">>>>>>>>>>"])
def test_a_notice_that_quotes_the_header_of_the_original(mark: bytes) -> None:
    returned = read_report(QMAIL.replace(TRACE, mark + TRACE))
    assert returned is not None
    assert [passage.delivery_id for passage in returned.passages] == [ID]


@pytest.mark.parametrize("mark", [b"", b"> ", b">"])
def test_a_notice_that_quotes_the_trace_of_a_transaction_with_many(mark: bytes) -> None:
    entry = TRACE.strip().partition(b": ")[2]
    many = (
        TRACE.strip()
        + (b",\r\n" + mark + b"\t" + entry) * 59
        + b"\r\n"
        + mark
        + b"Subject: "
        + entry
        + b"\r\n"
    )
    returned = read_report(QMAIL.replace(TRACE, mark + many))
    assert returned is not None
    assert [len(hop) for hop in returned.hops] == [60]


def test_a_long_quoted_trace_costs_little() -> None:
    entry = TRACE.strip().partition(b": ")[2]
    for fold in (b"\r\n\t" + entry, b"\r\n\t" + entry + b", " * 500, b"\r\n\t> > > > > ", entry):
        begun = time.process_time()
        read_report(b"Subject: x\r\n\r\n" + (b"X-Forwarder-Id: " + fold * 300 + b"\r\n") * 40)
        assert time.process_time() - begun < 1


def test_of_fields_that_are_not_read_nothing_is_made() -> None:
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n"
    fields = b"x:\r\n" * 130_000
    begun = time.process_time()
    for _ in range(10):
        read_report(head + b"Content-Type: message/delivery-status\r\n\r\n" + fields)
        read_report(head + b"Content-Type: message/rfc822\r\n\r\n" + fields)
    assert time.process_time() - begun < 1  # with an object for each field more than 2 s
