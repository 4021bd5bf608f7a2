"""Limits that hold exactly across processes: quotas, API rate, failed log-ins.

A window begins at a multiple of its length since 1970, so that all processes agree on it without talking. A hit
counts only if it is allowed; the answer is durable when it comes, so that a restart forgives nobody. Hits that wait
together are written together, in the order of their keys, so that two processes do not lock each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, select

from forwarder.store.engine import Database
from forwarder.store.rows import upsert
from forwarder.store.tables import counters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CHUNK = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Where a counter stands after a hit."""

    allowed: bool
    value: int  # in this window, this hit included if it was allowed
    resets_at: datetime


@dataclass(frozen=True, slots=True)
class _Hit:
    key: str
    resets_at: datetime
    limit: int
    amount: int


class _Hits:
    def apply(self, conn: Connection, items: Sequence[_Hit]) -> Sequence[Counted]:
        counted: dict[int, Counted] = {}
        for index in sorted(range(len(items)), key=lambda index: items[index].key):
            counted[index] = self._count(conn, items[index])
        return [counted[index] for index in range(len(items))]

    @staticmethod
    def _count(conn: Connection, hit: _Hit) -> Counted:
        if hit.amount <= hit.limit:
            query = (
                upsert(conn, counters)
                .values(key=hit.key, value=hit.amount, expires_at=hit.resets_at)
                .on_conflict_do_update(
                    index_elements=["key"],
                    set_={"value": counters.c.value + hit.amount},
                    where=counters.c.value + hit.amount <= hit.limit,
                )
                .returning(counters.c.value)
            )
            value = conn.execute(query).scalar_one_or_none()
            if value is not None:
                return Counted(allowed=True, value=value, resets_at=hit.resets_at)
        reached = select(counters.c.value).where(counters.c.key == hit.key)
        return Counted(
            allowed=False, value=conn.execute(reached).scalar_one_or_none() or 0, resets_at=hit.resets_at
        )


_HITS = _Hits()


async def hit(
    database: Database, key: str, *, window: timedelta, limit: int, now: datetime, amount: int = 1
) -> Counted:
    """Count ``amount`` against ``limit`` in the window of ``now``; all of it or nothing."""
    return await database.writer.submit(_HITS, _hit(key, window, limit, now, amount))


async def hit_block(
    database: Database, key: str, *, window: timedelta, limit: int, now: datetime, wanted: int
) -> tuple[int, Counted]:
    """Count ``wanted`` at once, or one when so many are not left; how many were counted (0: none), and the standing."""
    for amount in dict.fromkeys((wanted, 1)):
        counted = await hit(database, key, window=window, limit=limit, now=now, amount=amount)
        if counted.allowed:
            return amount, counted
    return 0, counted


def hit_within(conn: Connection, key: str, *, window: timedelta, limit: int, now: datetime) -> Counted:
    """One hit, in a transaction that does more: what is undone with it was not counted."""
    return _HITS.apply(conn, [_hit(key, window, limit, now, 1)])[0]


def _hit(key: str, window: timedelta, limit: int, now: datetime, amount: int) -> _Hit:
    number = (now - _EPOCH) // window
    resets_at = _EPOCH + (number + 1) * window
    return _Hit(f"{key}|{window.total_seconds():g}|{number}", resets_at, limit, amount)


def standing(conn: Connection, key: str, *, window: timedelta, now: datetime) -> tuple[int, int, float]:
    """Without counting: the value in this window, in the one before, and how far this one has gone (0 to 1)."""
    number, into = divmod(now - _EPOCH, window)
    keys = [f"{key}|{window.total_seconds():g}|{which}" for which in (number, number - 1)]
    rows = conn.execute(select(counters.c.key, counters.c.value).where(counters.c.key.in_(keys)))
    values = {row.key: row.value for row in rows}
    return values.get(keys[0], 0), values.get(keys[1], 0), into / window


async def purge(database: Database, now: datetime) -> int:
    """Delete counters of windows that are over, a chunk at a time; how many."""
    over = (
        select(counters.c.key).where(counters.c.expires_at < now).order_by(counters.c.expires_at).limit(CHUNK)
    )
    query = delete(counters).where(counters.c.key.in_(over))
    deleted = 0
    while (count := await database.write(lambda conn: conn.execute(query).rowcount)) > 0:
        deleted += count
    return deleted
