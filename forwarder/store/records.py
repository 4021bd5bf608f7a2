"""What the queue and the journal are given and give back: values, no behaviour.

``NewMessage`` and what hangs on it come in through ``Queue.enqueue``; ``Delivery`` is a claimed row; ``Settlement``
says how an attempt ended. Times are aware UTC; ids are 32 hex digits (UUIDv7).
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, Status, Transport
from forwarder.mail.reply import Reply


class Outcome(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    SOFT = "soft"  # another attempt at next_attempt_at
    HARD = "hard"  # given up


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """One step of a delivery, as the logs show it."""

    status: Status
    code: int
    message: str
    local: str | None = None  # our host name
    server: str | None = None  # the other side's
    recipient: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A message on its way to one destination; its id is its log's id."""

    id: str
    kind: DeliveryKind
    domain_id: int | None
    alias: str | None
    recipient: Path
    recipient_name: str | None = None
    destination: str
    destination_domain: str
    leased: bool  # attempt 1 is this worker's, from memory; next_attempt_at is then when to try if it dies
    next_attempt_at: datetime
    discard: bool = False  # only logged: as DELIVERED, since the alias says so, or as ``dead_end``
    dead_end: Reply | None = None  # 5yz: nobody is there; 2yz: the rest is in another account's log


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message to take charge of."""

    id: str
    created_at: datetime
    transport: Transport
    reverse_path: Path
    smtputf8: bool
    signing_domain: str | None
    content: bytes
    hostname: str | None  # the client
    message_id: str | None
    subject: str | None
    sender_email: str | None
    sender_name: str | None
    deliveries: tuple[NewDelivery, ...]

    @property
    def leased(self) -> list[NewDelivery]:
        """What the process that stores it will deliver itself."""
        return [delivery for delivery in self.deliveries if delivery.leased and not delivery.discard]

    @property
    def unleased(self) -> list[NewDelivery]:
        """What whoever has room for it delivers."""
        return [delivery for delivery in self.deliveries if not (delivery.leased or delivery.discard)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery this worker holds the lease of; ``attempts`` counts the one it was leased for."""

    id: str
    message_id: str
    kind: DeliveryKind
    domain_id: int | None
    alias: str | None
    recipient: Path
    destination: str
    destination_domain: str
    attempts: int
    created_at: datetime  # the message's
    next_attempt_at: datetime
    reverse_path: Path
    smtputf8: bool
    signing_domain: str | None
    transport: Transport
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How the attempt of one leased delivery ended."""

    delivery: Delivery
    outcome: Outcome
    event: NewEvent
    next_attempt_at: datetime | None = None  # SOFT only
    report: NewMessage | None = None  # the DSN, stored in the same transaction

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.SOFT) != (self.next_attempt_at is not None):
            raise ValueError("a soft outcome, and no other, has a next attempt")
