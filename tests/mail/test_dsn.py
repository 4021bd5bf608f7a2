"""Reports about undelivered mail, read back with the standard library's parser."""

import email
import email.policy
import re
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.dsn import FailedRecipient, build_report, failed_status
from forwarder.mail.returned import read_report

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ARRIVED = datetime(2026, 11, 21, 11, 59, 30, tzinfo=UTC)
ID = "019aa5b3c1d27e3f8899aabbccddeeff"
ORIGINAL = (
    b"X-Forwarder-Id: " + ID.encode() + b"-0123456789abcdef\r\n"
    b"From: Alice <alice@example.org>\r\nTo: sales@example.net\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1@example.org>\r\n\r\nsecret body\r\n"
)


def report(
    *failures: FailedRecipient,
    original: bytes = ORIGINAL,
    to: str = "alice@example.org",
) -> bytes:
    return build_report(
        reporting_mta="mx1.example.net",
        sender="mailer-daemon@mx1.example.net",
        to=to,
        failures=failures or (failed(),),
        original=original,
        arrival_at=ARRIVED,
        message_id="<report@mx1.example.net>",
        boundary="report-019aa5b3",
        now=NOW,
    )


def failed(diagnostic: str = "550 5.1.1 no such user", **more: object) -> FailedRecipient:
    given: dict[str, object] = {"address": "sales@example.net", "status": "5.1.1", "diagnostic": diagnostic}
    return FailedRecipient(**(given | more))  # type: ignore[arg-type]


def parsed(content: bytes) -> tuple[EmailMessage, list[EmailMessage]]:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message.defects == []
    parts = list(message.iter_parts())
    assert all(part.defects == [] for part in parts)
    return message, parts  # type: ignore[return-value]


def status_groups(content: bytes) -> list[EmailMessage]:
    _, parts = parsed(content)
    groups = parts[1].get_payload()
    assert isinstance(groups, list)
    return groups  # type: ignore[return-value]


def test_the_shape() -> None:
    message, parts = parsed(report())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert [part.get_content_type() for part in parts] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["From"] == "Mail Delivery System <mailer-daemon@mx1.example.net>"
    assert message["To"] == "alice@example.org"
    assert message["Message-ID"] == "<report@mx1.example.net>"
    assert message["In-Reply-To"] == message["References"] == "<1@example.org>"
    assert message["Date"] == "Sat, 21 Nov 2026 12:00:00 +0000"


def test_the_fields() -> None:
    about, recipient = status_groups(
        report(failed(remote_mta="mx.example.com", last_attempt_at=NOW, destination="me@example.com"))
    )
    assert about["Reporting-MTA"] == "dns; mx1.example.net"
    assert about["Arrival-Date"] == "Sat, 21 Nov 2026 11:59:30 +0000"
    assert recipient["Final-Recipient"] == "rfc822; sales@example.net"
    assert recipient["Action"] == "failed"
    assert recipient["Status"] == "5.1.1"
    assert recipient["X-Actual-Recipient"] == "rfc822; me@example.com"
    assert recipient["Remote-MTA"] == "dns; mx.example.com"
    assert recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert recipient["Last-Attempt-Date"] == "Sat, 21 Nov 2026 12:00:00 +0000"


def test_words_for_a_person() -> None:
    _, parts = parsed(report(failed(destination="me@example.com")))
    text = parts[0].get_content()
    assert "could not be delivered to the address below" in text
    assert "<sales@example.net>" in text
    assert "This address does not exist, or does not take mail." in text
    assert "The answer was: 550 5.1.1 no such user" in text
    assert "It leads to <me@example.com>." in text
    assert "Subject:  Grüße" in text
    _, two = parsed(report(failed(), failed(address="other@example.net", status="4.4.1")))
    assert "the addresses below" in two[0].get_content()
    assert "could not be reached" in two[0].get_content()
    # Our own code for what got too old, whatever was said of it.
    _, late = parsed(report(failed(status="5.4.7")))
    assert "The message was tried again and again, without success." in late[0].get_content()


def test_the_destination_is_not_told_unless_it_is_given() -> None:
    assert b"me@example.com" not in report(failed())
    assert b"Actual-Recipient" not in report(failed())


def test_the_header_of_the_original_comes_back_and_its_body_stays_here() -> None:
    assert b"secret body" not in report()
    _, parts = parsed(report())
    assert parts[2].get_content_type() == "text/rfc822-headers"
    assert parts[2].get_content().encode() == ORIGINAL.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert parts[2].get_param("charset") is None


@pytest.mark.parametrize(
    ("name", "charset"), [("J\xf6rg".encode(), "utf-8"), ("J\xf6rg".encode("latin-1"), "unknown-8bit")]
)
def test_a_header_of_the_original_that_is_not_ascii_says_what_it_is(name: bytes, charset: str) -> None:
    head = b"From: " + name + b" <alice@example.org>\r\n"
    content = report(original=head + b"\r\nbody\r\n")
    assert content.isascii()
    _, parts = parsed(content)
    assert parts[2].get_content_type() == "text/rfc822-headers"
    assert parts[2].get_param("charset") == charset
    assert parts[2].get_payload(decode=True) == head


@pytest.mark.parametrize(
    "diagnostic",
    [
        "550-one\n550-two\n550 three",
        "550 \x1b[2J\x00\xff text",
        "550 x\r\nReporting-MTA: dns; evil.example",
        "550 x\r\n\r\nFinal-Recipient: rfc822; evil@example.com",
        "550 x\r\n--report-019aa5b3\r\nContent-Type: text/html\r\n\r\n<b>",
        "550 Grüße \u202e\u2028 \ud800",
        "x" * 10_000,
        "",
    ],
)
def test_replies_of_strangers_stay_inside_their_field(diagnostic: str) -> None:
    content = report(failed(diagnostic))
    _, parts = parsed(content)
    assert len(parts) == 3
    about, recipient = status_groups(content)
    assert about.keys() == ["Reporting-MTA", "Arrival-Date"]
    assert about["Reporting-MTA"] == "dns; mx1.example.net"
    assert recipient.keys() == ["Final-Recipient", "Action", "Status", "Diagnostic-Code"]
    assert re.fullmatch(r"smtp;[ -~]*", recipient["Diagnostic-Code"])
    assert content.isascii()
    assert b"\x1b" not in content
    assert b"\0" not in content
    assert max(map(len, content.split(b"\r\n"))) <= 998


@given(
    st.text(max_size=200),
    st.text(max_size=40),
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b"\xff", b"a", b": ", b"--", b"=", b" "])).map(
        b"".join
    ),
)
def test_whatever_came_the_report_is_well_formed(diagnostic: str, address: str, original: bytes) -> None:
    content = report(failed(diagnostic, address=address, remote_mta=diagnostic), original=original)
    _, parts = parsed(content)
    assert len(parts) == 3
    assert len(status_groups(content)) == 2
    assert content.isascii()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")


def test_addresses_beyond_ascii() -> None:
    content = report(failed(address="grüße@example.net"), to="ä@example.org")
    assert b"To: =?utf-8?b?w6RAZXhhbXBsZS5vcmc=?= :;\r\n" in content
    _, recipient = status_groups(content)
    assert recipient["Final-Recipient"] == r"utf-8; gr\x{FC}\x{DF}e@example.net"


@pytest.mark.parametrize(
    "to", ["jürgen@example.org", "ü" * 32 + "@" + "d" * 60 + ".example.org", "ä b@x.org"]
)
def test_a_report_that_demands_nothing_of_the_hosts_on_its_way(to: str) -> None:
    content = report(failed(), to=to)
    assert content.isascii()
    parsed(content)
    written = content.partition(b"\r\nTo: ")[2].partition(b"\r\nSubject: ")[0].decode()
    assert str(make_header(decode_header(written))) == f"{to} :;"
    assert max(map(len, content.split(b"\r\n"))) <= 78
    assert b"\r\nTo: <ann@example.org>\r\n" in report(failed(), to="ann@example.org")


@pytest.mark.parametrize("letter", ["a", "\xfc", "\u3042", "\U0001f600"])
def test_the_longest_address_is_told_whole_in_a_line_that_smtp_carries(letter: str) -> None:
    local = "\xe4" + letter * ((254 - 2 - len("@example.net")) // len(letter.encode()))
    content = report(failed(address=f"{local}@example.net"))
    _, recipient = status_groups(content)
    kind, _, text = recipient["Final-Recipient"].partition("; ")
    assert kind == "utf-8"
    assert re.sub(r"\\x\{(\w+)\}", lambda found: chr(int(found[1], 16)), text) == f"{local}@example.net"
    assert max(map(len, content.split(b"\r\n"))) <= 998


def test_an_address_made_of_what_has_to_be_escaped_keeps_its_line_short() -> None:
    content = report(failed(address="SRS0" + "=" * 230 + "\xfc@example.net"))
    assert max(map(len, content.split(b"\r\n"))) <= 998
    _, recipient = status_groups(content)
    assert recipient["Final-Recipient"].startswith(r"utf-8; SRS0\x{3D}\x{3D}")
    assert recipient["Final-Recipient"].endswith(r"\x{3D}")  # no half of one


def test_a_status_that_is_none_becomes_general() -> None:
    _, recipient = status_groups(report(failed(status="nonsense\r\nX: y")))
    assert recipient["Status"] == "5.0.0"


@pytest.mark.parametrize(
    ("enhanced", "status"), [("5.1.1", "5.1.1"), ("4.4.7", "4.4.7"), ("", "5.0.0"), ("2.0.0", "5.0.0")]
)
def test_the_status_of_a_failed_recipient_is_a_failure(enhanced: str, status: str) -> None:
    assert failed_status(enhanced) == status


def test_a_boundary_that_the_original_would_end_is_avoided() -> None:
    forged = b"Subject: x\r\n--report-019aa5b3\r\nContent-Type: text/html\r\n--report-019aa5b3--\r\n"
    _, parts = parsed(report(original=forged))
    assert len(parts) == 3


def test_a_boundary_is_lengthened_until_the_original_lacks_it() -> None:
    content = report(original=b"Subject: x\r\nX: --report-019aa5b3 --report-019aa5b3xx\r\n\r\n")
    assert b'\tboundary="report-019aa5b3xxx"\r\n' in content
    assert content.count(b"\r\n--report-019aa5b3xxx") == 4


def test_a_hundred_recipients_are_described_and_the_rest_are_counted() -> None:
    content = report(*[failed(address=f"a{number}@example.net") for number in range(103)])
    assert content.count(b"Final-Recipient:") == 100
    assert b"\r\n... and 3 more.\r\n" in content


def test_a_boundary_inside_the_original_is_avoided() -> None:
    original = b"Subject: x\r\nX: y\r\n --report-019aa5b3\r\n\r\n--report-019aa5b3--\r\n"
    _, parts = parsed(report(original=original))
    assert len(parts) == 3


def test_original_heads_of_any_size_and_shape() -> None:
    for original in (b"", b"\r\nbody", b"X: " + b"y" * 100_000, b"X: y\r\n" * 50_000, b"\xff" * 5000):
        content = report(original=original)
        assert len(parsed(content)[1]) == 3
        assert len(content) < 300_000
        assert max(map(len, content.split(b"\r\n"))) <= 998


def test_we_understand_our_own_reports() -> None:
    for content in (report(), report(original=ORIGINAL.replace(b"Alice", b"\xc3\xa4"))):
        returned = read_report(content)
        assert returned is not None
        assert [passage.delivery_id for passage in returned.passages] == [ID]
        assert returned.passages[0].mark == "0123456789abcdef"
        assert (returned.action, returned.status) == ("failed", "5.1.1")
        assert returned.diagnostic == "550 5.1.1 no such user"
        assert returned.recipient == "sales@example.net"
