"""signatures; the substance follows"""
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from forwarder.store.engine import Database
from forwarder.store.records import NewEvent
from forwarder.mail.event import Status, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedLog:
    """Mail refused in the session: a log with one REFUSED event."""

    id: str
    domain_id: int | None
    alias: str | None
    created_at: datetime
    transport: Transport
    hostname: str | None
    message_id: str | None = None
    subject: str | None = None
    sender_email: str | None = None
    sender_name: str | None = None
    recipient_email: str | None = None
    recipient_name: str | None = None
    event: NewEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: str
    created_at: datetime
    status: Status
    code: int
    message: str
    local: str | None
    server: str | None
    recipient: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    id: str
    domain_id: int | None
    alias: str | None
    created_at: datetime
    transport: Transport
    hostname: str | None
    message_id: str | None
    subject: str | None
    sender_email: str | None
    sender_name: str | None
    recipient_email: str | None
    recipient_name: str | None
    forward_email: str | None
    forward_name: str | None
    events: tuple[Event, ...]


class Journal:
    def __init__(self, database: Database, *, ids: Callable[[], str], clock: Callable[[], datetime]) -> None: ...
    def refused(self, log: RefusedLog) -> bool:
        """Write behind the reply; never raises or waits; False: the bound is reached and the log is dropped (counted)."""
    async def flush(self) -> None:
        """Wait until all refused logs given so far are written or given up."""
    async def page(self, domain_id: int | None, *, alias: str | None = None, after: str | None = None, limit: int = 50, failures_only: bool = False) -> list[LogEntry]: ...
    async def entry(self, log_id: str) -> LogEntry | None: ...
    async def append_event(self, log_id: str, event: NewEvent) -> bool: ...
    async def purge(self, older_than: datetime, *, chunk: int = 1000) -> int: ...
