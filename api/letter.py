"""The plain mail that the API's side writes by itself: one letter to one address, as a message for the queue.

It comes from the null reverse-path, so that it never makes a bounce, and says that nobody wrote it (RFC 3834 5). What
it says is the caller's. Reports of failed mail have a form of their own: ``forwarder.mail.dsn``.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from email.utils import format_datetime

from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.store.records import NewDelivery, NewMessage


def letter(
    lines: Sequence[str], *, to: Path, subject: str, hostname: str, ids: Callable[[], str], now: datetime
) -> NewMessage:
    """A letter by the postmaster of ``hostname``, due at once and leased to nobody.

    ``lines`` are without their ends, of at most 998 octets each (RFC 5322 2.1.1); ``subject`` is ASCII.
    """
    identifier = ids()
    sender = f"postmaster@{hostname}"
    message_id = f"<{identifier}@{hostname}>"
    head = [
        f"From: Forwarder <{sender}>",
        f"To: <{to.wire()}>",
        f"Subject: {subject}",
        f"Date: {format_datetime(now)}",
        f"Message-ID: {message_id}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "Auto-Submitted: auto-generated",
    ]
    return NewMessage(
        id=identifier,
        created_at=now,
        transport=Transport.REPORT,
        reverse_path=Path.null(),
        smtputf8=to.needs_smtputf8,
        signing_domain=None,
        content="\r\n".join([*head, "", *lines, ""]).encode(),
        hostname=None,
        message_id=message_id,
        subject=subject,
        sender_email=sender,
        sender_name=None,
        deliveries=(
            NewDelivery(
                id=ids(),
                kind=DeliveryKind.SMTP,
                domain_id=None,
                alias=None,
                recipient=to,
                destination=to.storage(),
                destination_domain=to.domain,
                leased=False,
                next_attempt_at=now,
            ),
        ),
    )
