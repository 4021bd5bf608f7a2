"""Claiming due deliveries: leased, the attempt counted and the next one planned, before anybody dials.

PostgreSQL does it in one statement that passes over rows another worker is claiming; on SQLite the one writer looks
and marks in one transaction. The next attempt that is planned here counts only if this worker dies: takeover makes a
delivery due at once while its attempts are few, and keeps the plan when they are many, so that a message which kills
its worker does not do so all day.

Domains that are at their limit are passed over within the index of what is due.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, Select, Text, Update, bindparam, select, update
from sqlalchemy.sql import Executable

from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, DeliveryState, Transport
from forwarder.store.records import Delivery
from forwarder.store.rows import Rows, by_dialect, execute, fetch, is_postgres, micros
from forwarder.store.tables import IS_QUEUED, Id, deliveries, messages

_DOMAINS = Rows(domain=Text())
_IDS = Rows(id=Id)
_COLUMNS = (
    deliveries.c.id,
    deliveries.c.message_id,
    deliveries.c.kind,
    deliveries.c.domain_id,
    deliveries.c.alias,
    deliveries.c.recipient,
    deliveries.c.destination,
    deliveries.c.destination_domain,
    deliveries.c.attempts,
    deliveries.c.next_attempt_at,
    messages.c.created_at,
    messages.c.reverse_path,
    messages.c.smtputf8,
    messages.c.signing_domain,
    messages.c.transport,
    messages.c.size,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a worker has room for."""

    now: datetime
    limit: int
    exclude_domains: tuple[str, ...]
    if_worker_dies: datetime


class Claiming:
    """The batch of ``Queue.claim_due``."""

    def __init__(self, *, worker_id: str) -> None:
        self._worker_id = worker_id

    def apply(self, conn: Connection, items: Sequence[Claim]) -> Sequence[list[Delivery]]:
        claim = self._on_postgres if is_postgres(conn) else self._on_sqlite
        return [claim(conn, item) for item in items]

    def _on_postgres(self, conn: Connection, item: Claim) -> list[Delivery]:
        values = _asked(conn, item) | {"worker_id": self._worker_id, "planned": item.if_worker_dies}
        return [_delivery(row) for row in execute(conn, _claim, values)]

    def _on_sqlite(self, conn: Connection, item: Claim) -> list[Delivery]:
        rows = fetch(conn, _found, _asked(conn, item))
        if not rows:
            return []
        values = _IDS.values(conn, [(row[0],) for row in rows])
        leased = {"worker_id": self._worker_id, "planned": micros(item.if_worker_dies)}
        execute(conn, _mark, values | leased)
        attempts, planned = 8, 9  # as the update above left them
        return [
            _delivery((*row[:attempts], row[attempts] + 1, item.if_worker_dies, *row[planned + 1 :]))
            for row in rows
        ]


def next_due(conn: Connection) -> datetime | None:
    """When the earliest queued delivery is due, or became so; None when nothing is queued."""
    query = (
        select(deliveries.c.next_attempt_at).where(IS_QUEUED).order_by(deliveries.c.next_attempt_at).limit(1)
    )
    return conn.execute(query).scalar_one_or_none()


def _asked(conn: Connection, item: Claim) -> dict[str, Any]:
    now = item.now if is_postgres(conn) else micros(item.now)
    excluded = _DOMAINS.values(conn, [(domain,) for domain in item.exclude_domains])
    return excluded | {"now": now, "limit": item.limit}


def _due(postgres: bool, *columns: Any) -> Select[Any]:
    excluded = _DOMAINS.source(postgres)
    return (
        select(*columns)
        .where(
            IS_QUEUED,
            deliveries.c.next_attempt_at <= bindparam("now"),
            deliveries.c.destination_domain.not_in(select(excluded.c.domain)),
        )
        .order_by(deliveries.c.next_attempt_at)
        .limit(bindparam("limit", type_=Integer()))
    )


@by_dialect
def _found(postgres: bool) -> Select[Any]:
    return _due(postgres, *_COLUMNS).join_from(deliveries, messages)


@by_dialect
def _mark(postgres: bool) -> Update:
    given = _IDS.source(postgres)
    return update(deliveries).where(deliveries.c.id.in_(select(given.c.id))).values(_leased())


@by_dialect
def _claim(postgres: bool) -> Executable:
    candidate = _due(postgres, deliveries.c.id).with_for_update(skip_locked=True).cte("candidate")
    return (
        update(deliveries)
        .where(deliveries.c.id == candidate.c.id, messages.c.id == deliveries.c.message_id)
        .values(_leased())
        .returning(*_COLUMNS)
    )


def _leased() -> dict[str, Any]:
    return {
        "state": DeliveryState.LEASED.value,
        "lease_owner": bindparam("worker_id", type_=Id),
        "attempts": deliveries.c.attempts + 1,
        "next_attempt_at": bindparam("planned", type_=deliveries.c.next_attempt_at.type),
    }


def _delivery(row: Sequence[Any]) -> Delivery:
    return Delivery(
        id=row[0],
        message_id=row[1],
        kind=DeliveryKind(row[2]),
        domain_id=row[3],
        alias=row[4],
        recipient=Path.from_storage(row[5]),
        destination=row[6],
        destination_domain=row[7],
        attempts=row[8],
        next_attempt_at=row[9],
        created_at=row[10],
        reverse_path=Path.from_storage(row[11]),
        smtputf8=row[12],
        signing_domain=row[13],
        transport=Transport(row[14]),
        size=row[15],
    )
