"""Claiming due deliveries: leased, the attempt counted and the next one planned, before anybody dials.

PostgreSQL does it in one statement that passes over rows another worker is claiming; on SQLite the one writer looks
and marks in one transaction. The next attempt that is planned here counts only if this worker dies: takeover makes a
delivery due at once while its attempts are few, and keeps the plan when they are many, so that a message which kills
its worker does not do so all day.

Domains that are at their limit are passed over within the index of what is due.

Recipients of one message who share an address get one copy by travelling together. So a claim takes all of them or
none, due or not yet: cut in two, they would be sent twice. On PostgreSQL it locks the rows of the messages as well, or
another worker's claim could take the rest meanwhile. A claim may be larger than asked for by one such group.

A claim passes over locked rows, so it waits for nobody. But the settlements of other workers wait for the rows that it
has locked. So it comes last in its group: were settlements written behind it, two workers could wait for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    Connection,
    Integer,
    Select,
    Text,
    Update,
    bindparam,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql import Executable

from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, DeliveryState, Transport
from forwarder.store.records import Delivery
from forwarder.store.rows import Rows, among, by_dialect, execute, fetch, is_postgres
from forwarder.store.tables import IS_QUEUED, Id, deliveries, messages, micros

BROUGHT_FORWARD = 1000  # deliveries a transaction

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

# As an expression, or either database may walk the index of all that is queued instead of going by the message.
_IS_QUEUED_STILL = deliveries.c.state.op("||")("") == DeliveryState.QUEUED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a worker has room for: ``limit`` deliveries, and the rest of those who share the last one's address."""

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


def bring_forward(conn: Connection, *, beyond: datetime, now: datetime) -> int:
    """Make due what is planned for later than ``beyond``, BROUGHT_FORWARD at most; how many there were."""
    late = (
        select(deliveries.c.id)
        .where(IS_QUEUED, deliveries.c.next_attempt_at > beyond)
        .order_by(deliveries.c.next_attempt_at)
        .limit(BROUGHT_FORWARD)
        .with_for_update(skip_locked=True)  # what somebody is changing just now has another turn
        .cte("late")
    )
    query = update(deliveries).where(deliveries.c.id.in_(select(late.c.id))).values(next_attempt_at=now)
    return len(conn.execute(query.returning(deliveries.c.id)).all())


def _asked(conn: Connection, item: Claim) -> dict[str, Any]:
    now = item.now if is_postgres(conn) else micros(item.now)
    excluded = _DOMAINS.values(conn, [(domain,) for domain in item.exclude_domains])
    return excluded | {"now": now, "limit": item.limit}


def _due(postgres: bool) -> CTE:
    """What is due first, by message and address."""
    excluded = _DOMAINS.source(postgres)
    query = (
        select(deliveries.c.message_id, deliveries.c.destination)
        .where(
            IS_QUEUED,
            deliveries.c.next_attempt_at <= bindparam("now"),
            deliveries.c.destination_domain.not_in(select(excluded.c.domain)),
        )
        .order_by(deliveries.c.next_attempt_at)
        .limit(bindparam("limit", type_=Integer()))
    )
    if postgres:
        # The message first: locked before it, deliveries of one that is passed over would stay locked until we commit,
        # and whoever claims of that message would miss them.
        query = query.join_from(deliveries, messages).with_for_update(
            of=[messages, deliveries], skip_locked=True, key_share=True
        )
    return query.cte("due")


def _wanted(postgres: bool) -> Select[Any]:
    """The ids to claim: message by message and address by address until ``limit`` is reached."""
    due = _due(postgres)
    fellows = (
        select(
            deliveries.c.id,
            deliveries.c.message_id,
            deliveries.c.destination,
            deliveries.c.next_attempt_at,
        )
        .where(_IS_QUEUED_STILL, among(postgres, deliveries.c.message_id, select(due.c.message_id)))
        .cte("fellows")
        .prefix_with("MATERIALIZED")  # a message is read once, not once for each of its addresses
    )
    key = fellows.c.message_id, fellows.c.destination
    size, first = func.count(), func.min(fellows.c.next_attempt_at)
    groups = (
        select(*key, (func.sum(size).over(order_by=(first, *key)) - size).label("before"))
        .where(tuple_(*key).in_(select(due.c.message_id, due.c.destination)))
        .group_by(*key)
        .cte("groups")
        .prefix_with("MATERIALIZED")  # or PostgreSQL may sum up anew for each of the fellows
    )
    enough = groups.c.before < bindparam("limit", type_=Integer())
    return select(fellows.c.id).where(
        tuple_(*key).in_(select(groups.c.message_id, groups.c.destination).where(enough))
    )


@by_dialect
def _found(postgres: bool) -> Select[Any]:
    query = select(*_COLUMNS).join_from(deliveries, messages).where(deliveries.c.id.in_(_wanted(postgres)))
    return query.order_by(deliveries.c.next_attempt_at)


@by_dialect
def _mark(postgres: bool) -> Update:
    return update(deliveries).where(_IDS.holds(postgres, deliveries.c.id)).values(_leased())


@by_dialect
def _claim(postgres: bool) -> Executable:
    # What an operator is changing just now is passed over.
    candidate = (
        select(deliveries.c.id, deliveries.c.message_id)
        .where(_IS_QUEUED_STILL, among(postgres, deliveries.c.id, _wanted(postgres)))
        .with_for_update(skip_locked=True)
        .cte("candidate")
    )
    theirs = select(candidate.c.message_id)
    envelopes = (
        select(messages.c.id, *(column for column in _COLUMNS if column.table is messages))
        .where(among(postgres, messages.c.id, theirs))
        .cte("envelopes")
        .prefix_with("MATERIALIZED")
    )
    return (
        update(deliveries)
        .where(
            among(postgres, deliveries.c.id, select(candidate.c.id)),
            among(postgres, deliveries.c.message_id, theirs),  # or the index of these might be walked instead
            envelopes.c.id == deliveries.c.message_id,
        )
        .values(_leased())
        .returning(*(envelopes.c[c.name] if c.table is messages else c for c in _COLUMNS))
    )


def _leased() -> dict[str, Any]:
    return {
        "state": DeliveryState.LEASED.value,
        "lease_owner": bindparam("worker_id", type_=Id),
        "attempts": deliveries.c.attempts + 1,
        "next_attempt_at": bindparam("planned", type_=deliveries.c.next_attempt_at.type),
    }


def _delivery(row: Sequence[Any]) -> Delivery:
    """Of a row of _COLUMNS."""
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
