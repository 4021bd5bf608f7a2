"""Delivery status notifications: RFC 3464 reports as bytes.

``build_report`` writes multipart/report with three parts: words a person understands, message/delivery-status, and the
header of the original: its body stays here. The result has CRLF line ends, no line above 998 octets, and is pure ASCII:
whoever is called in other letters may read a mailbox at a host without SMTPUTF8, to which an alias leads. The caller
sends it from the null reverse-path and signs it.

Text of strangers (a reply, the original's subject) is written on one line with everything unprintable escaped, so
that it can neither end a field nor start one. What the sender may not know (where an alias leads) is the caller's to
leave out; every field here is shown to the sender.
"""

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.header import Header
from email.utils import format_datetime

from forwarder.mail.content import first, has_bare_newline, line_too_long, split
from forwarder.mail.words import printable

MAX_HEAD = 64 * 1024  # octets of the original's header that a report carries back
SUBJECT = "Undelivered Mail Returned to Sender"
MAX_FAILURES = 100  # recipients described; the rest are counted
_MAX_ADDRESS = 320  # characters
_MAX_TEXT = 900  # characters of a stranger's text: a field stays below 998 octets
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,250}>\Z")
_FAILED = re.compile(r"[45]\.[0-9]{1,3}\.[0-9]{1,3}\Z")

# What a status means to somebody who never read RFC 3463; the longest matching beginning counts.
_MEANINGS = {
    "": "The mail server of the destination did not accept the message.",
    "4": "The message was tried again and again, without success.",
    "5.1": "This address does not exist, or does not take mail.",
    "5.2": "The mailbox does not take mail at the moment.",
    "5.2.2": "The mailbox is full.",
    "4.2.2": "The mailbox is full, and stayed so.",
    "5.3.4": "The message is too large for the destination.",
    "5.2.3": "The message is too large for the destination.",
    "4.4": "The mail server of the destination could not be reached, although it was tried again and again.",
    "5.4": "There is no mail server to deliver the message to.",
    "5.4.6": "The message went in circles.",
    "5.4.7": "The message was tried again and again, without success.",
    "5.6": "The mail server of the destination cannot take a message of this form.",
    "5.7": "The mail server of the destination refused the message by its policy.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecipient:
    """One recipient that mail could not reach, as the sender may know it."""

    address: str  # the alias address the sender wrote to
    status: str  # the enhanced status code of the last reply, "5.1.1"; may hold anything
    diagnostic: str  # the last reply, "550 5.1.1 no such user"; may hold anything
    remote_mta: str = ""  # "" when no host was reached, or not disclosed
    destination: str = ""  # where the alias leads; "" unless disclosed
    last_attempt_at: datetime | None = None


def build_report(
    *,
    reporting_mta: str,
    sender: str,
    to: str,
    failures: Sequence[FailedRecipient],
    original: bytes,
    arrival_at: datetime,
    message_id: str,
    boundary: str,
    now: datetime,
    others: int = 0,
) -> bytes:
    """The whole report. ``sender`` and ``to`` are addresses; ``boundary`` must be one nobody could guess.

    ``others``: how many recipients more the mail could not reach.
    """
    head, _ = split(original)
    mark = boundary.encode()
    while b"--" + mark in head:
        mark += b"x"
    lines = [
        f"Date: {format_datetime(now)}",
        f"From: Mail Delivery System <{sender}>",
        f"To: {_addressed(to)}",
        f"Subject: {SUBJECT}",
        f"Message-ID: {message_id}",
        *_thread(head),
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{mark.decode()}"',
        "",
        "This is a report about undelivered mail, in MIME format.",
    ]
    parts = (
        _text_part(
            "text/plain; charset=utf-8", _explanation(reporting_mta, failures, others, head, arrival_at)
        ),
        _part("message/delivery-status", _status(reporting_mta, failures, arrival_at)),
        _returned(head),
    )
    report = "\r\n".join(lines).encode() + b"\r\n"
    for part in parts:
        report += b"\r\n--" + mark + b"\r\n" + part
    return report + b"\r\n--" + mark + b"--\r\n"


def _addressed(to: str) -> str:
    """An address, or for one that is not ASCII a group without members that is called like it (RFC 6857)."""
    return f"<{to}>" if to.isascii() else Header(to, "utf-8", header_name="To").encode(linesep="\r\n") + " :;"


def _thread(head: bytes) -> list[str]:
    """Lets a mail program show the report below the message it is about."""
    identifier = first(head, b"message-id") or ""
    return (
        [f"In-Reply-To: {identifier}", f"References: {identifier}"] if _MESSAGE_ID.match(identifier) else []
    )


def _explanation(
    reporting_mta: str, failures: Sequence[FailedRecipient], others: int, head: bytes, arrival_at: datetime
) -> str:
    addresses = "addresses" if len(failures) > 1 else "address"
    lines = [
        f"This is the mail system at {reporting_mta}.",
        "",
        f"Your message could not be delivered to the {addresses} below, and is not tried any more.",
        "",
    ]
    subject = first(head, b"subject")
    if subject:
        lines.append(f"    Subject:  {printable(subject, 200)}")
    lines += [f"    Received: {format_datetime(arrival_at)}", ""]
    for failed in failures[:MAX_FAILURES]:
        lines += [
            f"<{printable(failed.address, _MAX_ADDRESS)}>",
            f"    {_meaning(failed_status(failed.status))}",
        ]
        if failed.destination:
            lines.append(f"    It leads to <{printable(failed.destination, _MAX_ADDRESS)}>.")
        lines += [f"    The answer was: {printable(failed.diagnostic, _MAX_TEXT)}", ""]
    others += max(0, len(failures) - MAX_FAILURES)
    if others:
        lines += [f"... and {others} more.", ""]
    lines += [
        "If you think that this is a mistake, reach the recipient in another way and pass this",
        "report on. Nobody reads answers to this message.",
        "",
    ]
    return "\r\n".join(lines)


def _meaning(status: str) -> str:
    known = [beginning for beginning in _MEANINGS if status.startswith(beginning)]
    return _MEANINGS[max(known, key=len)]


def _status(reporting_mta: str, failures: Sequence[FailedRecipient], arrival_at: datetime) -> bytes:
    """RFC 3464 2.1: fields about the message, then a group about each recipient.

    Fields are not folded: a folded diagnostic could show a reader a line that begins like a field.
    """
    lines = [f"Reporting-MTA: dns; {reporting_mta}", f"Arrival-Date: {format_datetime(arrival_at)}", ""]
    for failed in failures[:MAX_FAILURES]:
        lines += [
            f"Final-Recipient: {_typed(failed.address)}",
            "Action: failed",
            f"Status: {failed_status(failed.status)}",
        ]
        if failed.destination:
            lines.append(f"X-Actual-Recipient: {_typed(failed.destination)}")
        if failed.remote_mta:
            lines.append(f"Remote-MTA: dns; {_ascii(failed.remote_mta, 255)}")
        lines.append(f"Diagnostic-Code: smtp; {_ascii(failed.diagnostic, _MAX_TEXT)}")
        if failed.last_attempt_at is not None:
            lines.append(f"Last-Attempt-Date: {format_datetime(failed.last_attempt_at)}")
        lines.append("")
    return "\r\n".join(lines).encode("ascii")


def failed_status(enhanced: str) -> str:
    """What is reported of a failed recipient: what the host said, when it was a failure, else 5.0.0 (RFC 3463 2)."""
    return enhanced if _FAILED.match(enhanced) else "5.0.0"


def _typed(address: str) -> str:
    """An address with its type; RFC 6533 section 3 has an ASCII form for those that are not."""
    if address.isascii():
        return f"rfc822; {_ascii(address, _MAX_ADDRESS)}"
    escaped = ""
    for character in address:
        plain = "!" <= character <= "~" and character not in "\\+="
        piece = character if plain else f"\\x{{{ord(character):X}}}"
        if len(escaped) + len(piece) > _MAX_TEXT:
            break  # a path of 254 octets stays below it, unless it is made of \+=
        escaped += piece
    return f"utf-8; {escaped}"


def _ascii(text: str, limit: int) -> str:
    return printable(text, limit).encode("ascii", "backslashreplace").decode()[:limit]


def _returned(head: bytes) -> bytes:
    """The third part: the header of the original, as many whole lines of it as fit."""
    if len(head) > MAX_HEAD:
        head = head[: head.rfind(b"\r\n", 0, MAX_HEAD) + 2] or head[:MAX_HEAD]
    return _text_part(f"text/rfc822-headers{_charset(head)}", head)


def _charset(head: bytes) -> str:
    """Without one it would be ASCII. Older readers know no message/global-headers (RFC 6533 section 5)."""
    if head.isascii():
        return ""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return "; charset=unknown-8bit"  # RFC 1428
    return "; charset=utf-8"


def _text_part(kind: str, text: str | bytes) -> bytes:
    octets = text.encode() if isinstance(text, str) else text
    plain = octets.isascii() and b"\0" not in octets and not line_too_long(octets)
    if plain and not has_bare_newline(octets):
        return _part(kind, octets, "7bit")
    # Line by line: what is left of bare CR and LF inside a line is data, and is encoded.
    encoded = b"\r\n".join(
        binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n") for line in octets.split(b"\r\n")
    )
    return _part(kind, encoded, "quoted-printable")


def _part(kind: str, octets: bytes, encoding: str = "7bit") -> bytes:
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + octets
