"""The logs as people read them: what came, and every step of it.

A log is one delivery, or one recipient refused in the session; its events are append-only. Logs are read newest first
by cursor: a page is a range of an index, whatever the size of the table. What was refused is written behind the reply
(``refused``), in group commits, and is dropped when BEHIND wait, since an attack must not become a write load. The
engine's own log says when that begins, and how many were lost when it is over. ``purge`` deletes by age, a chunk a
transaction, so that nobody waits for it.

Not partitioned by day on PostgreSQL: ids sort by time, so that purging is a range of the primary key in small bites
and a page is a range of an index; partitions would add a chore that must not fail and a schema that differs from
SQLite's, to save vacuum work that autovacuum does.

How it fails: StoreUnavailable from what is awaited; ``refused`` never raises.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Select, delete, select, tuple_

from forwarder.failpoint import reach
from forwarder.mail.event import Status, Transport
from forwarder.mail.ids import id_floor
from forwarder.store.engine import Database
from forwarder.store.recording import (
    FAILURES,
    LOG_COLUMNS,
    clean,
    mark_failed,
    record_events,
    recorded,
)
from forwarder.store.records import NewEvent
from forwarder.store.rows import Rows, by_dialect, fetch, insert_many, is_postgres
from forwarder.store.tables import IS_FAILED, Id, events, logs
from forwarder.store.trouble import StoreUnavailable

BEHIND = 1000  # refused logs that may wait to be written

_IDS = Rows(id=Id)
_log = structlog.get_logger("forwarder.store")


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
    """One step, as stored."""

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
    """One log with its events, oldest first."""

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
    events: tuple[Event, ...]


class _Refusals:
    def apply(self, conn: Connection, items: Sequence[RefusedLog]) -> Sequence[None]:
        insert_many(conn, logs, LOG_COLUMNS, [_log_row(item) for item in items])
        record_events(conn, [recorded(i.domain_id, i.id, i.id, i.created_at, i.event) for i in items])
        return [None] * len(items)


class Journal:
    """Reads and writes logs and events; the queue writes those of its deliveries itself."""

    def __init__(
        self,
        database: Database,
        *,
        ids: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._ids = ids
        self._clock = clock
        self._refusals = _Refusals()
        self._behind: set[asyncio.Future[None]] = set()
        self._lost = 0  # refused logs that are not written, since this was told

    def refused(self, log: RefusedLog) -> None:
        """Write behind the reply, or drop what is beyond the bound; does not wait."""
        if len(self._behind) >= BEHIND:
            self._lose("too many wait to be written")
            return
        try:
            written = self._database.writer.enlist(self._refusals, log)
        except StoreUnavailable as error:
            self._lose(str(error))
            return
        self._behind.add(written)
        written.add_done_callback(self._was_written)

    def _was_written(self, written: "asyncio.Future[None]") -> None:
        self._behind.discard(written)
        error = None if written.cancelled() else written.exception()
        if error is not None:
            self._lose(repr(error.__cause__ or error))
        elif self._lost and not self._behind:  # under an attack there is room again and again, but some wait
            _log.info("refusals are logged again; some were not", refusals=self._lost)
            self._lost = 0

    def _lose(self, reason: str) -> None:
        if not self._lost:
            _log.warning("refusals are not logged", reason=reason)
        self._lost += 1

    async def flush(self) -> None:
        """Return when every refused log given so far is written or given up."""
        if self._behind:
            await asyncio.wait(set(self._behind))

    async def page(
        self,
        domain_id: int | None,
        *,
        alias: str | None = None,
        after: str | None = None,
        ids: Sequence[str] | None = None,
        limit: int = 50,
        failures_only: bool = False,
    ) -> list[LogEntry]:
        """Logs, newest first, those older than the log ``after``; ``domain_id`` None: of all domains and none.

        ``ids``: of these only.
        """
        query = select(*_LOG).order_by(logs.c.id.desc()).limit(limit)
        if domain_id is not None:
            query = query.where(logs.c.domain_id == domain_id)
        if alias is not None:
            query = query.where(logs.c.alias == alias)
        if after is not None:
            query = query.where(logs.c.id < after)
        if ids is not None:
            query = query.where(logs.c.id.in_(ids))
        if failures_only:
            query = query.where(IS_FAILED)
        return await self._database.read(partial(_entries, query=query))

    async def entry(self, log_id: str) -> LogEntry | None:
        """One log by its id."""
        found = await self._database.read(partial(_entries, query=select(*_LOG).where(logs.c.id == log_id)))
        return found[0] if found else None

    async def append_event(self, log_id: str, event: NewEvent) -> bool:
        """Add a step that became known later, such as a bounce that came back. False: no such log any more."""
        return await self._database.write(
            partial(self._append, log_id=log_id, event_id=self._ids(), at=self._clock(), event=event)
        )

    def _append(self, conn: Connection, *, log_id: str, event_id: str, at: datetime, event: NewEvent) -> bool:
        row = conn.execute(select(logs.c.id, logs.c.domain_id).where(logs.c.id == log_id)).one_or_none()
        if row is None:
            return False
        record_events(conn, [recorded(row.domain_id, log_id, event_id, at, event)])
        if event.status in FAILURES:
            mark_failed(conn, [log_id])
        return True

    async def purge(self, older_than: datetime, *, chunk: int = 1000) -> int:
        """Delete logs made before that time, with their events; how many logs."""
        floor = id_floor(older_than)
        deleted = await self._purge(partial(_purge_logs, floor=floor, chunk=chunk), chunk)
        # Events without a log: written late, for a log that was purged in the same moment.
        await self._purge(partial(_purge_events, floor=floor, chunk=chunk), chunk)
        return deleted

    async def _purge(self, bite: Callable[[Connection], int], chunk: int) -> int:
        """Bite until there is less than a chunk left; how many rows that were."""
        deleted = 0
        while True:
            count = await self._database.write(bite)
            deleted += count
            if count < chunk:
                return deleted
            await asyncio.sleep(0)  # others write between two chunks


_LOG = tuple(logs.c[name] for name in LOG_COLUMNS if name != "failed")
_EVENT = (
    events.c.log_id,
    events.c.id,
    events.c.created_at,
    events.c.status,
    events.c.code,
    events.c.message,
    events.c.local,
    events.c.server,
    events.c.recipient,
)


def _entries(conn: Connection, *, query: Select[Any]) -> list[LogEntry]:
    rows = conn.execute(query).all()
    if not rows:
        return []
    by_log: dict[str, list[Event]] = {}
    # by time, then by id: the clocks of two workers may disagree by more than two steps are apart
    found = fetch(conn, _of_these, _IDS.values(conn, [(row.id,) for row in rows]))
    for log_id, *event in sorted(found, key=lambda row: (row[2], row[1])):
        by_log.setdefault(log_id, []).append(_event(event))
    return [_entry(row, tuple(by_log.get(row.id, ()))) for row in rows]


@by_dialect
def _of_these(postgres: bool) -> Select[Any]:
    given = _IDS.source(postgres)
    return select(*_EVENT).where(events.c.log_id.in_(select(given.c.id))).order_by(events.c.id)


def _event(row: Sequence[Any]) -> Event:
    id_, created_at, status, code, message, local, server, recipient = row
    return Event(
        id=id_,
        created_at=created_at,
        status=Status(status),
        code=code,
        message=message,
        local=local,
        server=server,
        recipient=recipient,
    )


def _entry(row: Any, steps: tuple[Event, ...]) -> LogEntry:
    fields: dict[str, Any] = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return LogEntry(**(fields | {"transport": Transport(row.transport), "events": steps}))


def _log_row(log: RefusedLog) -> tuple[Any, ...]:
    """In the order of LOG_COLUMNS."""
    return (
        log.id,
        log.domain_id,
        clean(log.alias),
        log.created_at,
        log.transport.value,
        clean(log.hostname),
        clean(log.message_id),
        clean(log.subject),
        clean(log.sender_email),
        clean(log.sender_name),
        clean(log.recipient_email),
        clean(log.recipient_name),
        None,  # it leads nowhere
        True,
    )


def _purge_logs(conn: Connection, *, floor: str, chunk: int) -> int:
    old = (
        conn.execute(select(logs.c.id).where(logs.c.id < floor).order_by(logs.c.id).limit(chunk))
        .scalars()
        .all()
    )
    if not old:
        return 0
    given = _IDS.source(is_postgres(conn))
    values = _IDS.values(conn, [(id_,) for id_ in old])
    conn.execute(delete(events).where(events.c.log_id.in_(select(given.c.id))), values)
    conn.execute(delete(logs).where(logs.c.id.in_(select(given.c.id))), values)
    reach("purge.before-commit")
    return len(old)


def _purge_events(conn: Connection, *, floor: str, chunk: int) -> int:
    old = (
        select(events.c.log_id, events.c.id)
        .where(events.c.log_id < floor)
        .order_by(events.c.log_id, events.c.id)
        .limit(chunk)
        .subquery()
    )
    of_old = tuple_(events.c.log_id, events.c.id).in_(select(old.c.log_id, old.c.id))
    return conn.execute(delete(events).where(of_old)).rowcount
