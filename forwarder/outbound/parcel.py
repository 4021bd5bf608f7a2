"""One message in memory, the deliveries of it that travel together, and what became of each.

A ``Parcel`` is shared by all deliveries of one message that are leased to us, so that its content is read once and
sealed once, however many sites it goes to. A ``Job`` is the unit of work: all deliveries of one parcel to one site. A
``Verdict`` is what an attempt found out about one delivery; the ``Clerk`` makes it durable.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.outcome import Action
from forwarder.mail.reply import Reply
from forwarder.outbound.route import Route
from forwarder.store.records import Delivery, NewDelivery, NewMessage


@dataclass(slots=True, eq=False)
class Told:
    """Of which recipients of a message its sender has had a report; one attempt at a time adds to it."""

    recipients: set[Path] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class Parcel:
    """A message of which at least one delivery is leased to us."""

    message_id: str
    transport: Transport
    reverse_path: Path
    smtputf8: bool
    signing_domain: str | None
    created_at: datetime
    size: int
    content: bytes | None = None  # None: still in the store only
    sealed: bytes | None = None  # the signatures and seals to prepend; None: not made yet
    borrows: bool = False  # known once sealed: it claims, unproven, to come from a domain of the service
    deliveries: int = 0  # leased to us; the parcel goes with the last one
    told: Told | None = None  # None: nothing has been given up yet

    @classmethod
    def of_message(cls, message: NewMessage) -> "Parcel":
        """Of a message that was just accepted."""
        return cls(
            message_id=message.id,
            transport=message.transport,
            reverse_path=message.reverse_path,
            smtputf8=message.smtputf8,
            signing_domain=message.signing_domain,
            created_at=message.created_at,
            size=len(message.content),
        )

    @classmethod
    def of_delivery(cls, delivery: Delivery) -> "Parcel":
        """Of a claimed delivery; the content is read when it is needed."""
        return cls(
            message_id=delivery.message_id,
            transport=delivery.transport,
            reverse_path=delivery.reverse_path,
            smtputf8=delivery.smtputf8,
            signing_domain=delivery.signing_domain,
            created_at=delivery.created_at,
            size=delivery.size,
        )

    @property
    def is_report(self) -> bool:
        """Written by this engine: a DSN or a notification, of which no DSN is ever made."""
        return self.transport is Transport.REPORT

    @property
    def can_be_bounced(self) -> bool:
        """Whether there is somebody to tell (RFC 5321 6.1: never answer the null reverse-path)."""
        return not self.is_report and not self.reverse_path.is_null


@dataclass(slots=True, eq=False)
class Job:
    """Deliveries of one parcel to one lane."""

    parcel: Parcel
    deliveries: list[Delivery]
    route: Route | None = None  # None: a webhook, or not looked up yet

    @property
    def key(self) -> str:
        """What waits under the same key travels together: mail by its message, a post to a URL alone."""
        return self.parcel.message_id if self.kind is DeliveryKind.SMTP else self.deliveries[0].id

    @property
    def kind(self) -> DeliveryKind:
        """The same for all of the job."""
        return self.deliveries[0].kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one attempt found out about one delivery."""

    delivery: Delivery
    action: Action  # DELIVERED, RETRY_LATER or GIVE_UP
    reply: Reply  # the peer's, or our wording of what went wrong
    server: str | None = None  # the host that said so; None: nobody was reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The end of one attempt of a job."""

    verdicts: Sequence[Verdict]
    reached: bool  # a host took up the dialogue; False counts against the site
    trouble: Reply | None = None  # why not


def first_attempt(message: NewMessage, new: NewDelivery) -> Delivery:
    """The first attempt of a fresh delivery, as a claim would have given it."""
    return Delivery(
        id=new.id,
        message_id=message.id,
        kind=new.kind,
        domain_id=new.domain_id,
        alias=new.alias,
        recipient=new.recipient,
        destination=new.destination,
        destination_domain=new.destination_domain,
        attempts=1,
        created_at=message.created_at,
        next_attempt_at=new.next_attempt_at,
        reverse_path=message.reverse_path,
        smtputf8=message.smtputf8,
        signing_domain=message.signing_domain,
        transport=message.transport,
        size=len(message.content),
    )
