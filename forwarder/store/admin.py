"""What an operator may do to the queue: look, retry now, hold, release, drop.

Functions of a connection, for ``database.read`` and ``database.write``. A leased delivery is in a worker's hands and is
left alone by all of them: within minutes it is settled or queued again. ``ids`` may name deliveries or messages, all of
whose deliveries are then meant. Each verb says how many it changed. ``retry_next`` is for a whole queue, which one
statement cannot change in the time that it has.

``drop`` ends deliveries as failed: the log gets a HARD-BOUNCE that names the operator, the sender gets no DSN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, or_, select, update

from forwarder.mail.event import DeliveryKind, DeliveryState, Status
from forwarder.store.recording import Recorded, mark_failed, record_events
from forwarder.store.rows import is_postgres
from forwarder.store.settling import delete_deliveries, delete_finished
from forwarder.store.tables import IS_LEASED, IS_QUEUED, deliveries, messages


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedDelivery:
    """A delivery as an operator sees it."""

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


_SHOWN = (
    deliveries.c.id,
    deliveries.c.message_id,
    deliveries.c.kind,
    deliveries.c.state,
    deliveries.c.domain_id,
    deliveries.c.alias,
    messages.c.reverse_path,
    deliveries.c.recipient,
    deliveries.c.destination,
    deliveries.c.destination_domain,
    deliveries.c.attempts,
    messages.c.created_at,
    deliveries.c.next_attempt_at,
    deliveries.c.lease_owner,
    deliveries.c.last_reply,
    messages.c.size,
)
_IS_HELD = deliveries.c.state == DeliveryState.HELD.value
_IS_DROPPABLE = or_(IS_QUEUED, _IS_HELD)


def list_deliveries(
    conn: Connection,
    *,
    state: DeliveryState | None = None,
    destination_domain: str | None = None,
    limit: int = 100,
) -> list[QueuedDelivery]:
    """The first deliveries by id, so the oldest."""
    query = select(*_SHOWN).join_from(deliveries, messages).order_by(deliveries.c.id).limit(limit)
    if state is not None:
        query = query.where(deliveries.c.state == state.value)
    if destination_domain is not None:
        query = query.where(deliveries.c.destination_domain == destination_domain)
    return [_shown(row) for row in conn.execute(query)]


def show(conn: Connection, id_: str) -> list[QueuedDelivery]:
    """The delivery of that id, or all deliveries of the message of that id."""
    query = select(*_SHOWN).join_from(deliveries, messages).where(_named([id_])).order_by(deliveries.c.id)
    return [_shown(row) for row in conn.execute(query)]


def moving(conn: Connection, *, limit: int) -> dict[str, tuple[str, int]]:
    """State and attempts of the deliveries that may take a step next: ``limit`` in hand, ``limit`` that are due first.

    Either changes whenever a delivery has taken one, and it is gone after its last.
    """
    shown = select(deliveries.c.id, deliveries.c.state, deliveries.c.attempts).limit(limit)
    in_hand = conn.execute(shown.where(IS_LEASED)).all()
    due = conn.execute(shown.where(IS_QUEUED).order_by(deliveries.c.next_attempt_at)).all()
    return {row.id: (row.state, row.attempts) for row in (*due, *in_hand)}


def retry(conn: Connection, ids: Sequence[str], *, now: datetime) -> int:
    """Make queued deliveries due now."""
    query = update(deliveries).where(IS_QUEUED, _named(ids)).values(next_attempt_at=now)
    return conn.execute(query).rowcount


def retry_next(conn: Connection, *, after: str, now: datetime, limit: int = 1000) -> list[str]:
    """Make queued deliveries due now, the first after that id; their ids. Fewer than ``limit``: there are no more."""
    candidate = (
        select(deliveries.c.id)
        .where(IS_QUEUED, deliveries.c.id > after)
        .order_by(deliveries.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)  # a row somebody is claiming is due already
        .cte("candidate")
    )
    query = (
        update(deliveries)
        .where(deliveries.c.id.in_(select(candidate.c.id)))
        .values(next_attempt_at=now)
        .returning(deliveries.c.id)
    )
    return sorted(conn.execute(query).scalars())


def hold(conn: Connection, ids: Sequence[str]) -> int:
    """Put queued deliveries aside until ``release``."""
    query = update(deliveries).where(IS_QUEUED, _named(ids)).values(state=DeliveryState.HELD.value)
    return conn.execute(query).rowcount


def release(conn: Connection, ids: Sequence[str], *, now: datetime) -> int:
    """Held deliveries back into the queue, due now."""
    query = (
        update(deliveries)
        .where(_IS_HELD, _named(ids))
        .values(state=DeliveryState.QUEUED.value, next_attempt_at=now)
    )
    return conn.execute(query).rowcount


def drop(
    conn: Connection,
    ids: Sequence[str],
    *,
    now: datetime,
    new_id: Callable[[], str],
    local_name: str,
) -> int:
    """End queued and held deliveries as failed; no DSN is sent."""
    query = (
        select(
            deliveries.c.id,
            deliveries.c.message_id,
            deliveries.c.kind,
            deliveries.c.domain_id,
            deliveries.c.recipient,
        )
        .where(_IS_DROPPABLE, _named(ids))
        .order_by(deliveries.c.id)
    )
    if is_postgres(conn):
        query = query.with_for_update(skip_locked=True)  # a row somebody is claiming is not ours to drop
    rows = conn.execute(query).all()
    delete_deliveries(conn, (row.id for row in rows))
    told = [row for row in rows if row.kind != DeliveryKind.NOTIFY.value]
    record_events(conn, [_dropped(row, new_id(), now, local_name) for row in told])
    mark_failed(conn, (row.id for row in told))
    delete_finished(conn, (row.message_id for row in rows))
    return len(rows)


def is_known(conn: Connection, ids: Sequence[str]) -> bool:
    """Whether anything in the queue has one of these ids."""
    return conn.execute(select(deliveries.c.id).where(_named(ids)).limit(1)).first() is not None


def droppable(conn: Connection, ids: Sequence[str]) -> int:
    """How many deliveries ``drop`` would end."""
    query = select(func.count()).select_from(deliveries).where(_IS_DROPPABLE, _named(ids))
    return conn.execute(query).scalar_one()


def held(conn: Connection, ids: Sequence[str] | None) -> int:
    """How many of them are put aside; None: of the whole queue."""
    query = select(func.count()).select_from(deliveries).where(_IS_HELD)
    return conn.execute(query if ids is None else query.where(_named(ids))).scalar_one()


def counts(conn: Connection) -> dict[DeliveryState, int]:
    """How many deliveries there are in each state."""
    query = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
    found: dict[str, int] = {row[0]: row[1] for row in conn.execute(query)}
    return {state: found.get(state.value, 0) for state in DeliveryState}


def _named(ids: Sequence[str]) -> ColumnElement[bool]:
    return or_(deliveries.c.id.in_(ids), deliveries.c.message_id.in_(ids))


def _dropped(row: Any, event_id: str, now: datetime, local_name: str) -> Recorded:
    return Recorded(
        row.domain_id,
        row.id,
        event_id,
        now,
        Status.HARD_BOUNCE,
        554,
        "5.0.0 Dropped by the operator",
        local_name,
        None,
        row.recipient,
    )


def _shown(row: Any) -> QueuedDelivery:
    fields: dict[str, Any] = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return QueuedDelivery(**(fields | {"kind": DeliveryKind(row.kind), "state": DeliveryState(row.state)}))
