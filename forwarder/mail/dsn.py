"""Delivery status notifications (RFC 3461 to 3464) as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRecipient:
    """One recipient that mail could not reach, as the sender may know it."""

    address: str  # the alias address, as shown to the sender
    status: str  # enhanced status code, "5.1.1"
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
    return_body: bool = False,
) -> bytes:
    """The whole report, CRLF line ends."""
    return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedReport:
    """What a report that came back says."""

    token: str = ""  # X-Forwarder-Id of the returned headers
    message_id: str = ""  # Message-ID of the returned headers
    action: str = ""  # failed, delayed, delivered, relayed, expanded
    status: str = ""  # enhanced status code
    diagnostic: str = ""
    recipient: str = ""


def read_report(content: bytes) -> ReturnedReport | None:
    """The report in a message, or None when it is not one."""
    return None
