"""From a transaction and a content to the message the queue takes, with the trace RFC 5321 4.4 asks for.

Pure but for the ids and the time it is given. What a client says about itself is printed only after it parsed as a
domain or an address literal (RFC 5321 4.1.2); anything else is replaced by the address it came from, so that nothing
it says can end a comment or a line of ``Received``.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache

from forwarder.inbound.intake import Intake
from forwarder.inbound.session import Recipient, Session, Transaction
from forwarder.mail import content as contents
from forwarder.mail import display, trace
from forwarder.mail.address import Path, parse_helo
from forwarder.mail.destination import Url, identity
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.rules import Step, Target
from forwarder.store.records import NewDelivery, NewMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the log shows of a content; all of it bounded and printable."""

    message_id: str | None
    subject: str | None
    sender_email: str | None
    sender_name: str | None
    names: Mapping[str, str]  # of those it is written to, by their addresses in lower case

    def name_of(self, recipient: Path) -> str | None:
        """What the message calls a recipient, whichever form of the domain it is written with."""
        if not self.names:
            return None
        return self.names.get(recipient.wire().lower()) or self.names.get(recipient.display().lower())


_SHOWN = (b"from", b"to", b"cc", b"subject", b"message-id")


def looked_up(head: bytes) -> contents.Fields:
    """All that is asked of a head on its way in."""
    return contents.Fields(head, (*_SHOWN, contents.RECEIVED, trace.ID_FIELD))


def shown(head: bytes) -> contents.Fields:
    """All that ``facts`` asks of a head."""
    return contents.Fields(head, _SHOWN)


def facts(fields: contents.Fields) -> Facts:
    """Read from the head of the message; never raises."""
    author = fields.raw(b"from")
    email, name = display.mailbox(author) if author is not None else (None, None)
    return Facts(
        message_id=fields.text(b"message-id"),
        subject=fields.text(b"subject"),
        sender_email=email,
        sender_name=name,
        names=_names(fields),
    )


def _names(fields: contents.Fields) -> dict[str, str]:
    told: dict[str, str] = {}
    for field in (b"to", b"cc"):
        value = fields.raw(field)
        for email, name in display.mailboxes(value) if value is not None else ():
            if email is not None and name is not None:
                told[email.lower()] = name
    return told


def client_name(session: Session) -> str:
    """What the client calls itself where that is a name, else its address: for the log and for Received."""
    return parse_helo(session.helo) or address_literal(session.client)


def address_literal(address: str) -> str:
    """The address of a peer in brackets (RFC 5321 4.1.3)."""
    if ":" not in address:
        return f"[{address or '127.0.0.1'}]"  # a local socket has no address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    return f"[{parsed.ipv4_mapped}]" if parsed.ipv4_mapped is not None else f"[IPv6:{parsed}]"


def received(
    session: Session,
    transaction: Transaction,
    *,
    hostname: str,
    identifier: str,
    now: datetime,
    show_client: bool = True,
) -> bytes:
    """The Received field, CRLF included.

    ``for`` only with one recipient, since it would tell each about the others, and only in ASCII: else it alone might
    demand SMTPUTF8 of every host on the way.
    """
    # RFC 3848 and RFC 6531 4.3: E for EHLO, S for TLS, A for AUTH; UTF8 in front where it was asked for.
    flags = ("S" if session.tls else "") + ("A" if session.login is not None else "")
    protocol = f"UTF8SMTP{flags}" if transaction.smtputf8 else f"ESMTP{flags}" if session.extended else "SMTP"
    tls = f" ({session.tls})" if session.tls else ""
    origin = f"from {client_name(session)} ({address_literal(session.client)})\r\n\t" if show_client else ""
    only = transaction.recipients[0].path if len(transaction.recipients) == 1 else None
    recipient = f"\r\n\tfor <{only.wire()}>" if only is not None and not only.needs_smtputf8 else ""
    line = (
        f"Received: {origin}by {hostname} (Forwarder) with {protocol}{tls}\r\n\tid {identifier}{recipient};\r\n\t"
        f"{_date(now.replace(microsecond=0))}\r\n"
    )
    return line.encode()


@lru_cache(maxsize=4)
def _date(second: datetime) -> str:
    """RFC 5322 3.3; many messages come in one second."""
    return format_datetime(second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composer:
    """Makes the messages of one service."""

    transport: Transport
    ids: Callable[[datetime], str]  # of the moment they are made
    intake: Intake
    first_delay: timedelta  # when to try again what this process leased and did not finish

    def deliveries(
        self,
        transaction: Transaction,
        seen: Facts,
        *,
        now: datetime,
        sender_domain_id: int | None = None,
        sender_alias: str | None = None,
    ) -> tuple[NewDelivery, ...]:
        """A delivery for each recipient, destination, and alias whose log tells of it.

        ``sender_…`` own the deliveries that go to addresses that are not hosted here (submission).
        """
        later = now + self.first_delay
        made: dict[tuple[str, str, str, int | None, str | None], NewDelivery] = {}
        # Owners write one mailbox as ann@ and as Ann@. Spelled alike, it is named once to its host, and gets one copy.
        spelled: dict[tuple[str, str], str] = {}
        for recipient in transaction.recipients:
            name = seen.name_of(recipient.path)
            whom = (recipient.path.key, recipient.path.domain)
            for target in recipient.ways:
                destination, domain, kind = _where(target, recipient)
                if target is not None:  # what a client named itself is its own to spell (RFC 5321 2.4)
                    destination = spelled.setdefault(identity(target.destination), destination)
                domain_id, alias = (sender_domain_id, sender_alias) if target is None else target.owner
                key = (*whom, destination, domain_id, alias)
                if key in made:
                    continue
                leased = not recipient.discarded and self.intake.lease(domain)
                made[key] = NewDelivery(
                    id=self.ids(now),
                    kind=kind,
                    domain_id=domain_id,
                    alias=alias,
                    recipient=recipient.path,
                    recipient_name=name,
                    destination=destination,
                    destination_domain=domain,
                    leased=leased,
                    next_attempt_at=later if leased else now,
                    discard=recipient.discarded,
                )
            for step in recipient.told:
                destination = spelled.setdefault(identity(step.address), step.address.storage())
                told = self._told(recipient, name, step, destination, now)
                made.setdefault((*whom, told.destination, told.domain_id, told.alias), told)
        return tuple(made.values())

    def _told(
        self, recipient: Recipient, name: str | None, step: Step, destination: str, now: datetime
    ) -> NewDelivery:
        """What goes nowhere, or on behind an alias of another account, for the log of the alias that leads there."""
        way = recipient.ways[0]
        assert way is not None  # an alias leads there
        domain_id, alias = replace(way, theirs=step.theirs).owner
        return NewDelivery(
            id=self.ids(now),
            kind=DeliveryKind.SMTP,
            domain_id=domain_id,
            alias=alias,
            recipient=recipient.path,
            recipient_name=name,
            destination=destination,
            destination_domain=step.address.domain,
            leased=False,
            next_attempt_at=now,
            discard=True,
            dead_end=step.said,
        )

    def message(
        self,
        transaction: Transaction,
        deliveries: tuple[NewDelivery, ...],
        content: bytes,
        seen: Facts,
        *,
        identifier: str,
        now: datetime,
        hostname: str,
        signing_domain: str | None = None,
    ) -> NewMessage:
        """The message; its id is younger than those of its deliveries, so that their events sort."""
        return NewMessage(
            id=identifier,
            created_at=now,
            transport=self.transport,
            reverse_path=transaction.reverse_path,
            smtputf8=transaction.smtputf8,
            signing_domain=signing_domain,
            content=content,
            hostname=hostname,
            message_id=seen.message_id,
            subject=seen.subject,
            sender_email=seen.sender_email or transaction.reverse_path.storage() or None,
            sender_name=seen.sender_name,
            deliveries=deliveries,
        )


def _where(target: Target | None, recipient: Recipient) -> tuple[str, str, DeliveryKind]:
    """Destination, its domain, and who delivers it."""
    destination = recipient.elsewhere if target is None else target.destination
    assert destination is not None
    if isinstance(destination, Url):
        return destination.url, destination.host, DeliveryKind.WEBHOOK
    return destination.storage(), destination.domain, DeliveryKind.SMTP
