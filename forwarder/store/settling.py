"""The end of attempts: settle, release, withdraw. Every verb here first asks whether the lease is still ours.

A lease is ours while the row names this worker and the attempt it was leased for. A worker that was stopped for longer
than its life-sign is believed dead; its rows have moved on when it wakes, and it writes nothing.

The message's row, with its content, goes with its last delivery. On PostgreSQL two transactions may each end one of the
last two deliveries and not see the other's: whoever finds deliveries left takes the message's row lock and looks once
more, so that the second of them sees what the first committed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Delete,
    Executable,
    Integer,
    Select,
    Text,
    Update,
    bindparam,
    delete,
    exists,
    func,
    select,
    update,
)

from forwarder.failpoint import reach
from forwarder.mail.event import DeliveryKind, DeliveryState
from forwarder.store.enqueueing import Enqueueing
from forwarder.store.recording import FAILURES, Recorded, clean, mark_failed, record_events, recorded
from forwarder.store.records import Outcome, Settlement
from forwarder.store.rows import Rows, among, by_dialect, execute, fetch, is_postgres
from forwarder.store.tables import Id, UtcDateTime, deliveries, events, logs, messages

_IDS = Rows(id=Id)
_RETRIES = Rows(id=Id, at=UtcDateTime(), taken_back=Integer(), reply=Text())


@dataclass(frozen=True, slots=True)
class Ended:
    """A settlement with what only its moment knows."""

    settlement: Settlement
    event_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Release:
    """A lease given back without an attempt: the one it was counted for, if it was for one, is taken back."""

    delivery_id: str
    attempts: int
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True)
class Doubt:
    """A message whose COMMIT nobody answered, the deliveries it was to have, and the logs of what it was to discard."""

    message_id: str
    delivery_ids: tuple[str, ...]
    discarded_ids: tuple[str, ...]


class Settling:
    """The batch of ``Queue.settle``: True for each settlement that took."""

    def __init__(self, *, enqueueing: Enqueueing, worker_id: str) -> None:
        self._enqueueing = enqueueing
        self._worker_id = worker_id

    def apply(self, conn: Connection, items: Sequence[Ended]) -> Sequence[bool]:
        reach("settle.before-deliveries")
        ours = still_ours(conn, self._worker_id, (item.settlement.delivery.id for item in items))
        took = []
        for item in items:
            delivery = item.settlement.delivery
            took.append(ours.pop(delivery.id, 0) == delivery.attempts)  # popped: a delivery settles once
        taken = [item for item, is_ours in zip(items, took, strict=True) if is_ours]
        soft = [item for item in taken if item.settlement.outcome is Outcome.SOFT]
        ended = [item for item in taken if item.settlement.outcome is not Outcome.SOFT]
        delete_deliveries(conn, (item.settlement.delivery.id for item in ended))
        queue_again(
            conn,
            [
                (
                    item.settlement.delivery.id,
                    item.settlement.next_attempt_at,
                    0,
                    clean(item.settlement.event.message),
                )
                for item in soft
            ],
        )
        reach("settle.before-events")
        told = [item for item in taken if item.settlement.delivery.kind is not DeliveryKind.NOTIFY]
        record_events(conn, [_recorded(item) for item in told])
        mark_failed(
            conn, [item.settlement.delivery.id for item in told if item.settlement.event.status in FAILURES]
        )
        reach("settle.before-reports")
        # Recipients that failed together share one report. Where their group was cut, the part before has stored it.
        reports = {report.id: report for item in ended if (report := item.settlement.report) is not None}
        if reports:
            stored = already_stored(conn, reports)
            self._enqueueing.apply(conn, [report for id_, report in reports.items() if id_ not in stored])
        reach("settle.before-content")
        delete_finished(conn, (item.settlement.delivery.message_id for item in ended))
        return took


class Releasing:
    """The batch of ``Queue.release``: True for each lease that was ours to give back."""

    def __init__(self, *, worker_id: str) -> None:
        self._worker_id = worker_id

    def apply(self, conn: Connection, items: Sequence[Release]) -> Sequence[bool]:
        ours = still_ours(conn, self._worker_id, (item.delivery_id for item in items))
        took = [ours.pop(item.delivery_id, None) == item.attempts for item in items]
        queue_again(
            conn,
            [
                (item.delivery_id, item.next_attempt_at, min(item.attempts, 1), None)
                for item, is_ours in zip(items, took, strict=True)
                if is_ours
            ],
        )
        reach("release.before-commit")
        return took


def already_stored(conn: Connection, ids: Iterable[str]) -> set[str]:
    """Those of these messages that are in the store."""
    return {id_ for (id_,) in fetch(conn, _stored, _IDS.values(conn, [(id_,) for id_ in ids]))}


@by_dialect
def _stored(postgres: bool) -> Select[Any]:
    return select(messages.c.id).where(_IDS.holds(postgres, messages.c.id))


def still_ours(conn: Connection, worker_id: str, ids: Iterable[str]) -> dict[str, int]:
    """The attempt each of these deliveries is leased to the worker for, locked until the transaction ends."""
    values = _IDS.values(conn, [(id_,) for id_ in ids])
    return dict(fetch(conn, _leases, values | {"worker_id": worker_id}))


@by_dialect
def _leases(postgres: bool) -> Select[Any]:
    # On SQLite as an expression, or it may walk all leases of the worker instead of the primary key.
    owner = deliveries.c.lease_owner if postgres else deliveries.c.lease_owner.op("||")("")
    query = (
        select(deliveries.c.id, deliveries.c.attempts)
        .where(_IDS.holds(postgres, deliveries.c.id), owner == bindparam("worker_id", type_=Id))
        .order_by(deliveries.c.id)  # one order for all who lock: no deadlocks among them
    )
    return query.with_for_update() if postgres else query


def delete_deliveries(conn: Connection, ids: Iterable[str]) -> None:
    """Delete deliveries by id, whoever holds them."""
    wanted = [(id_,) for id_ in ids]
    if wanted:
        execute(conn, _deletion, _IDS.values(conn, wanted))


@by_dialect
def _deletion(postgres: bool) -> Delete:
    return delete(deliveries).where(_IDS.holds(postgres, deliveries.c.id))


def queue_again(conn: Connection, rows: Sequence[tuple[str, datetime | None, int, str | None]]) -> None:
    """Back to queued: id, when due, how many attempts not to count, the reply to remember (None: the old one)."""
    if rows:
        execute(conn, _return, _RETRIES.values(conn, rows))


@by_dialect
def _return(postgres: bool) -> Update:
    given = _RETRIES.source(postgres)
    return (
        update(deliveries)
        .where(deliveries.c.id == given.c.id, _RETRIES.holds(postgres, deliveries.c.id))
        .values(
            state=DeliveryState.QUEUED.value,
            lease_owner=None,
            next_attempt_at=given.c.at,
            attempts=deliveries.c.attempts - given.c.taken_back,
            last_reply=func.coalesce(given.c.reply, deliveries.c.last_reply),
        )
    )


def delete_finished(conn: Connection, message_ids: Iterable[str]) -> None:
    """Delete those of the messages that have no delivery left, with their contents."""
    wanted = sorted(set(message_ids))
    if not wanted:
        return
    left = _delete_without_deliveries(conn, wanted)
    if left and is_postgres(conn):
        execute(conn, _message_lock, _IDS.values(conn, [(id_,) for id_ in left]))
        _delete_without_deliveries(conn, left)


@by_dialect
def _message_lock(postgres: bool) -> Select[Any]:
    query = select(messages.c.id).where(_IDS.holds(postgres, messages.c.id)).order_by(messages.c.id)
    return query.with_for_update(key_share=True)


def _delete_without_deliveries(conn: Connection, wanted: list[str]) -> list[str]:
    """Those that were not deleted; on SQLite, where nobody else writes meanwhile, none are told."""
    result = execute(conn, _finished, _IDS.values(conn, [(id_,) for id_ in wanted]))
    if not is_postgres(conn):
        return []
    gone = set(result.scalars())
    return [id_ for id_ in wanted if id_ not in gone]


@by_dialect
def _finished(postgres: bool) -> Executable:
    query = delete(messages).where(_IDS.holds(postgres, messages.c.id))
    if not postgres:  # one is enough to find; a message may have thousands left
        return query.where(~exists().where(deliveries.c.message_id == messages.c.id))
    left = select(deliveries.c.message_id).where(_IDS.holds(postgres, deliveries.c.message_id))
    return query.where(~among(postgres, messages.c.id, left)).returning(messages.c.id)


def under_way(conn: Connection) -> tuple[int, int]:
    """The number of the oldest transaction that has begun to write and not ended, and that of this one.

    On SQLite nothing is under way while we write: one thread does, and a transaction of its own has ended before.
    """
    if not is_postgres(conn):
        return 0, 0
    snapshot = func.txid_current_snapshot()
    oldest, this = conn.execute(select(func.txid_snapshot_xmin(snapshot), func.txid_current())).one()
    return oldest, this


def withdraw(conn: Connection, doubts: Sequence[Doubt], worker_id: str) -> int:
    """Delete what an unanswered COMMIT may have left of these messages and nobody has begun to deliver.

    How many logs went. What another has begun, or has delivered, keeps its log.
    """
    given = _IDS.source(is_postgres(conn))
    unbegun = ((deliveries.c.lease_owner == worker_id) & (deliveries.c.attempts <= 1)) | (
        (deliveries.c.state == DeliveryState.QUEUED.value) & (deliveries.c.attempts == 0)
    )
    mine = deliveries.c.id.in_(select(given.c.id))
    ids = _IDS.values(conn, [(id_,) for doubt in doubts for id_ in doubt.delivery_ids])
    removal = delete(deliveries).where(mine, unbegun).returning(deliveries.c.id)
    gone = [(id_,) for id_ in conn.execute(removal, ids).scalars()]
    logged = _IDS.values(conn, [*gone, *((id_,) for doubt in doubts for id_ in doubt.discarded_ids)])
    conn.execute(delete(events).where(events.c.log_id.in_(select(given.c.id))), logged)
    withdrawn = conn.execute(delete(logs).where(logs.c.id.in_(select(given.c.id))), logged).rowcount
    delete_finished(conn, (doubt.message_id for doubt in doubts))
    return withdrawn


def _recorded(item: Ended) -> Recorded:
    delivery = item.settlement.delivery
    return recorded(delivery.domain_id, delivery.id, item.event_id, item.at, item.settlement.event)
