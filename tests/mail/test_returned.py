"""Reports of other systems, read for the trace of ours that they carry back."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.returned import ReturnedReport, read_report

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
