"""Limits that hold exactly across processes: quotas, API rate, failed log-ins.

A window begins at a multiple of its length since 1970, so that all processes agree on it without talking. A hit
counts only if it is allowed; the answer is durable when it comes, so that a restart forgives nobody. Hits that wait
together are read, judged and written together; PostgreSQL locks them in the order of their keys, so that two processes
do not wait for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, Executable, Select, Text, delete, select, true
from sqlalchemy.dialects import postgresql, sqlite

from forwarder.store.engine import Database
from forwarder.store.rows import Rows, by_dialect, execute, fetch, is_postgres
from forwarder.store.tables import UtcDateTime, counters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CHUNK = 5000
_ROWS = Rows(key=Text(), value=BigInteger(), expires_at=UtcDateTime())
_KEYS = Rows(key=Text())


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Where a counter stands after a hit."""

    allowed: bool
    value: int  # in this window, this hit included if it was allowed
    resets_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """``amount`` to be counted against a limit in a window; less than nothing gives places back."""

    row: str  # the key of the counter of that window
    resets_at: datetime
    limit: int
    amount: int


def in_window(key: str, *, window: timedelta, limit: int, now: datetime, amount: int = 1) -> Hit:
    """``amount`` to be counted against ``limit`` in the window of ``now``."""
    number = (now - _EPOCH) // window
    return Hit(
        row=_row(key, window, number), resets_at=_EPOCH + (number + 1) * window, limit=limit, amount=amount
    )


class _Hits:
    """Each item is some hits that count together."""

    def apply(self, conn: Connection, items: Sequence[Sequence[Hit]]) -> Sequence[Sequence[Counted]]:
        ends = {hit.row: hit.resets_at for hits in items for hit in hits}
        standing = _held(conn, ends)
        values = dict(standing)
        answers = [_judged(hits, values) for hits in items]
        changed = [
            (row, values[row], ends[row]) for row in sorted(values) if values[row] != standing.get(row)
        ]
        if changed:
            execute(conn, _write, _ROWS.values(conn, changed))
        return answers


def _judged(hits: Sequence[Hit], values: dict[str, int]) -> Sequence[Counted]:
    """Count in ``values`` all that is hit, or nothing; where each counter stands, up to the first that refuses."""
    after: dict[str, int] = {}
    answers: list[Counted] = []
    for hit in hits:
        before = after.get(hit.row, values.get(hit.row, 0))
        value = before + hit.amount
        if hit.amount > 0 and value > hit.limit:
            return [*answers, Counted(allowed=False, value=before, resets_at=hit.resets_at)]
        after[hit.row] = value
        answers.append(Counted(allowed=True, value=value, resets_at=hit.resets_at))
    values.update(after)
    return answers


def _held(conn: Connection, ends: Mapping[str, datetime]) -> dict[str, int]:
    """Where counters stand; no other transaction changes them until this one ends."""
    if is_postgres(conn):
        rows = [(row, 0, ends[row]) for row in sorted(ends)]
        return dict(execute(conn, _lock, _ROWS.values(conn, rows)).all())
    return dict(fetch(conn, _read, _KEYS.values(conn, [(row,) for row in ends])))  # the whole file is ours


def _put(postgres: bool) -> Any:
    """What inserts the given rows, and knows ``on_conflict_do_update``."""
    given = _ROWS.source(postgres)
    insert = postgresql.insert if postgres else sqlite.insert
    # The condition is for SQLite's parser, which would take ON for that of a join.
    return insert(counters).from_select(["key", "value", "expires_at"], select(*given.c).where(true()))


@by_dialect
def _lock(postgres: bool) -> Executable:
    kept: Executable = (
        _put(postgres)
        .on_conflict_do_update(index_elements=["key"], set_={"value": counters.c.value})
        .returning(counters.c.key, counters.c.value)
    )
    return kept


@by_dialect
def _read(postgres: bool) -> Select[tuple[str, int]]:
    keys = select(_KEYS.source(postgres).c.key)
    return select(counters.c.key, counters.c.value).where(counters.c.key.in_(keys))


@by_dialect
def _write(postgres: bool) -> Executable:
    row = _put(postgres)
    written: Executable = row.on_conflict_do_update(
        index_elements=["key"], set_={"value": row.excluded.value}
    )
    return written


_HITS = _Hits()


async def hit_all(database: Database, hits: Sequence[Hit]) -> Sequence[Counted]:
    """Count all of them, or none: then the last answer is that to the first hit which is not allowed."""
    return await database.writer.submit(_HITS, hits)


async def hit(
    database: Database, key: str, *, window: timedelta, limit: int, now: datetime, amount: int = 1
) -> Counted:
    """Count ``amount`` against ``limit`` in the window of ``now``; all of it or nothing."""
    hits = [in_window(key, window=window, limit=limit, now=now, amount=amount)]
    return (await hit_all(database, hits))[0]


async def hit_block(
    database: Database, key: str, *, window: timedelta, limit: int, now: datetime, wanted: int, least: int = 1
) -> tuple[int, Counted]:
    """Count ``wanted`` at once; when so many are not left ``least``, or else one.

    How many were counted (0: none), and the standing.
    """
    for amount in dict.fromkeys((wanted, least, 1)):
        counted = await hit(database, key, window=window, limit=limit, now=now, amount=amount)
        if counted.allowed:
            return amount, counted
    return 0, counted


def hit_within(conn: Connection, key: str, *, window: timedelta, limit: int, now: datetime) -> Counted:
    """One hit, in a transaction that does more: what is undone with it was not counted."""
    return _HITS.apply(conn, [[in_window(key, window=window, limit=limit, now=now)]])[0][0]


def _row(key: str, window: timedelta, number: int) -> str:
    return f"{key}|{window.total_seconds():g}|{number}"


def standing(conn: Connection, key: str, *, window: timedelta, now: datetime) -> tuple[int, int, float]:
    """Without counting: the value in this window, in the one before, and how far this one has gone (0 to 1)."""
    number, into = divmod(now - _EPOCH, window)
    keys = [_row(key, window, which) for which in (number, number - 1)]
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
