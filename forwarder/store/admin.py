"""signatures; the substance follows"""
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from sqlalchemy import Connection
from forwarder.mail.event import DeliveryKind, DeliveryState
from forwarder.store.journal import LogEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedDelivery:
    id: str
    message_id: str
    kind: DeliveryKind
    state: DeliveryState
    domain_id: int | None
    alias: str | None
    reverse_path: str
    recipient: str
    destination: str
    destination_domain: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime
    lease_owner: str | None
    last_reply: str | None
    size: int


# run as database.read(lambda c: admin.list_deliveries(c, …)) / database.write(…)
def list_deliveries(conn: Connection, *, state: DeliveryState | None = None, destination_domain: str | None = None, after: str | None = None, limit: int = 100) -> list[QueuedDelivery]: ...
def show(conn: Connection, id_: str) -> list[QueuedDelivery]:
    """Of a delivery's id, or all deliveries of a message's id."""
def retry(conn: Connection, ids: list[str] | None, *, now: datetime) -> int:
    """Due now; None: everything queued."""
def hold(conn: Connection, ids: list[str]) -> int: ...
def release(conn: Connection, ids: list[str], *, now: datetime) -> int: ...
def drop(conn: Connection, ids: list[str], *, now: datetime, new_id: Callable[[], str], local_name: str) -> int:
    """Settle as failed, HARD-BOUNCE 'dropped by the operator', no DSN."""
def counts(conn: Connection) -> dict[DeliveryState, int]: ...
