"""PostgreSQL: asyncpg under SQLAlchemy, a few lanes that commit groups at the same moment.

asyncpg reads the URL itself, as libpq would: several hosts, ``sslmode``, ``target_session_attrs``, a password file.
Every connection is told (``sessions``) ``synchronous_commit=on`` and ``read committed``, whatever the server's or the
role's default, and to give up statements, locks and idle transactions in bounded time.

Lanes run LANES transactions at once, but the second joins only when something has waited JOIN_AFTER for the first to
end, as it does over a slow network or behind a lock: while commits are quick, two at once make every group smaller, and
what a group costs is its dozen statements. A group that lost a conflict with another (deadlock, serialization) is tried
again in halves.

Connections of the pool, LEAST at least: LANES write mail, one changes the directory (``change``), one is for the sign
of life (``write_aside``), and the others read. Each kind may have to wait for a lock, and none takes another's. A
change of the directory would else keep the mail of its group waiting for a row that somebody has locked, and three
such changes all mail.

When a connection is lost before COMMIT was sent, the group is certain not to be in force and is tried once more on a
new connection, so that a restarted server is noticed by nobody. When it is lost after COMMIT was sent, nobody can tell:
CommitUnknown.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from forwarder.errands import unheard
from forwarder.failpoint import reach
from forwarder.store.faults import ended_for_certain, is_conflict, is_crowded, may_work_again, trouble_of
from forwarder.store.sessions import CONNECT_LIMIT, Sessions
from forwarder.store.telling import Telling
from forwarder.store.trouble import CommitUnknown
from forwarder.store.writer import Failed, Item, Writer, apply_group, halves
from forwarder.tally import Tally

LANES = 2
BESIDE = 2  # connections: the change of the directory, the sign of life
LEAST = LANES + BESIDE + 1
JOIN_AFTER = 0.01  # seconds
STATEMENT_LIMIT = 8.0  # seconds
TRANSACTION_LIMIT = 10.0
TRIES = 3
CROWDED_PAUSE = 0.02  # seconds

T = TypeVar("T")
_log = structlog.get_logger("forwarder.store")


def make_engine(url: str, *, pool_size: int, patience: float = STATEMENT_LIMIT) -> AsyncEngine:
    """A pool of connections to ``url``; none is opened yet. ``patience``: seconds that a statement or lock may take."""
    limit = str(int(patience * 1000))  # milliseconds
    settings = {
        "synchronous_commit": "on",
        # Who waited for a lock looks once more for what its holder did, and a snapshot would show nothing new.
        "default_transaction_isolation": "read committed",
        "statement_timeout": limit,
        "lock_timeout": limit,
        "idle_in_transaction_session_timeout": str(int(TRANSACTION_LIMIT * 1000)),
        # Every statement of ours has an index to walk. The statistics of a queue are always stale, and a plan
        # that reads and sorts the whole backlog to claim a hundred rows of it looks cheap by them.
        "enable_bitmapscan": "off",
        "enable_seqscan": "off",
        "jit": "off",
        "timezone": "UTC",
    }
    sessions = Sessions(url, settings=settings, patience=patience)
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=sessions.begin,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_LIMIT,
        hide_parameters=True,
    )


class _Unbroken:
    """Runs work in tasks of its own: a caller that is cancelled cuts nothing in the middle."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns or raises."""
        task = asyncio.get_running_loop().create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        task.add_done_callback(unheard)
        return await asyncio.shield(task)


@contextmanager
def _said_as_trouble() -> Iterator[None]:
    """What is wrong with the database as StoreUnavailable; whatever else is wrong as it is."""
    try:
        yield
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None or trouble is error:
            raise
        raise trouble from error


class PostgresWriter(Writer):
    """Group commit in a few tasks of the event loop."""

    def __init__(self, engine: AsyncEngine, tally: Tally) -> None:
        super().__init__(tally)
        self._engine = engine
        self._signal = asyncio.Semaphore(0)
        self._idle = 0  # lanes that wait for the signal
        self._joining: asyncio.TimerHandle | None = None  # looks whether another lane is to join
        self._unbroken = _Unbroken()
        self._turn = asyncio.Semaphore()  # of changes
        self._telling = Telling()
        self._lanes = [self.loop.create_task(self._lane(), name=f"store-lane-{n}") for n in range(LANES)]

    def wake(self) -> None:
        if self._idle == LANES:
            self._rouse()
        else:
            self._watch_the_line()

    async def write_aside(self, work: Callable[[Connection], T]) -> T:
        """Commit one change in a transaction of its own; as ``write`` but for the line.

        In a task of its own: what becomes of a COMMIT under way is nothing that a cancelled caller is to be told.
        """
        return await self._unbroken.run(self._aside(work))

    async def change(self, work: Callable[[Connection], T]) -> T:
        """The same behind the change before it: all of them lock the row that counts them (``changes``)."""
        with _said_as_trouble():
            async with asyncio.timeout(CONNECT_LIMIT):
                await self._turn.acquire()
        return await self._unbroken.run(self._in_turn(work))

    async def _in_turn(self, work: Callable[[Connection], T]) -> T:
        ended = "failed"
        try:
            result = await self._aside(work)
            ended = "committed"
            return result
        finally:
            self._turn.release()
            self._changes[ended].add()

    async def _aside(self, work: Callable[[Connection], T]) -> T:
        item = Item(self._work, work, 0, self.loop.create_future(), None)
        with _said_as_trouble():
            [result] = await self._with_patience([item])
        written: T = result
        return written

    def _rouse(self) -> None:
        self._idle -= 1
        self._signal.release()

    def _watch_the_line(self) -> None:
        """Another lane joins when what waits has waited JOIN_AFTER."""
        since = self.waiting.since
        if since is not None and self._idle and self._joining is None:
            self._joining = self.loop.call_later(since + JOIN_AFTER - time.monotonic(), self._join)

    def _join(self) -> None:
        self._joining = None
        if self._idle and self._is_overdue():
            self._rouse()
        else:
            self._watch_the_line()

    def _is_overdue(self) -> bool:
        since = self.waiting.since
        return since is not None and time.monotonic() >= since + JOIN_AFTER

    async def close(self) -> None:
        await super().close()
        if self._joining is not None:
            self._joining.cancel()
        for _ in self._lanes:
            self._signal.release()
        under_way = {*self._lanes, *self._unbroken.running}
        await asyncio.wait(under_way, timeout=TRANSACTION_LIMIT)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _lane(self) -> None:
        while True:
            while self._is_wanted() and (group := self.waiting.take()):
                await self._round(group)
            if self.closing:
                return
            self._idle += 1
            self._watch_the_line()
            await self._signal.acquire()
            await asyncio.sleep(0)  # what else this turn of the event loop submits joins the group

    def _is_wanted(self) -> bool:
        """Whether the lane that asks should take a group: no other is at work, or that takes too long."""
        return self.closing or self._idle == LANES - 1 or self._is_overdue()

    async def _round(self, group: list[Item]) -> None:
        """Commit one group. Nothing may escape, or nobody would write any more."""
        self.running[id(group)] = (time.monotonic(), group)
        todo = [group]
        failed = 0
        try:
            while todo:
                part = todo.pop()
                try:
                    results = await self._with_patience(part)
                    self.prove(zip(part, results, strict=True))
                except Exception as error:  # noqa: BLE001 - every error has its item or is trouble
                    results = self._blame(part, error, todo)
                failed += sum(isinstance(result, Failed) for result in results)
                self.resolve(zip(part, results, strict=False))
            self.note(group, failed)
        finally:
            self.running.pop(id(group), None)

    def _blame(self, part: list[Item], error: Exception, todo: list[list[Item]]) -> list[Failed]:
        trouble = trouble_of(error)
        if trouble is not None and not (is_conflict(error) and len(part) > 1):
            if trouble is not error:
                trouble.__cause__ = error
            self.failing = True
            if news := self._telling.news(trouble):
                _log.error("a write failed", items=len(part), **news)
            return [Failed(trouble)] * len(part)
        if len(part) == 1:
            return [Failed(error)]
        todo.extend(halves(part))
        return []

    async def _with_patience(self, part: list[Item]) -> list[Any]:
        remaining = TRIES
        while True:
            remaining -= 1
            try:
                return await self._transact(part)
            except Exception as error:
                if not remaining or not may_work_again(error) or (is_conflict(error) and len(part) > 1):
                    raise

    async def _transact(self, part: list[Item]) -> list[Any]:
        reach("writer.before-begin")
        sent = False
        conn: AsyncConnection | None = None
        try:
            async with asyncio.timeout(TRANSACTION_LIMIT):
                conn = await _connect(self._engine)
                await conn.begin()
                results = await conn.run_sync(apply_group, part)
                reach("writer.before-commit")
                sent = True
                await conn.commit()
                reach("writer.after-commit")
                await conn.close()
        except BaseException as error:
            if conn is not None:
                await discard(conn, error)
            if sent and not ended_for_certain(error):
                raise CommitUnknown from error
            raise
        return results


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    """A connection of the pool. Where the server takes no more, the next of ours that comes back will do.

    The server is not asked again and again meanwhile: what it has free next is for whoever has none.
    """
    until = time.monotonic() + CONNECT_LIMIT
    pool = engine.sync_engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    while True:
        try:
            return await engine.connect()
        except DBAPIError as error:
            if not is_crowded(error):
                raise
            while not pool.checkedin():
                if not pool.checkedout() or time.monotonic() > until:
                    raise
                await asyncio.sleep(CROWDED_PAUSE)


async def discard(conn: AsyncConnection, error: BaseException) -> None:
    """Give a connection back after an error: rolled back when the server still talks to us, else cut."""
    try:
        if trouble_of(error) is not None or not isinstance(error, Exception):
            await conn.invalidate()
        async with asyncio.timeout(CONNECT_LIMIT):
            await conn.close()
    except Exception as second:  # noqa: BLE001 - the first error is the one that counts
        _log.warning("a connection was not given back", reason=repr(second))


class PostgresReaders:
    """Reads on connections of the pool, a statement a transaction.

    They leave those who write a connection each, where there are so many: all the others may wait at once, as for a
    table that somebody has locked, and mail goes on, and this process is not taken for dead.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._unbroken = _Unbroken()
        pool = engine.sync_engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)
        self._places = asyncio.Semaphore(max(1, pool.size() - LANES - BESIDE))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work``; once more when the connection turned out to be lost.

        In a task of its own: a caller that is cancelled must not leave a statement half read on a pooled connection.
        """
        return await self._unbroken.run(self._with_patience(work))

    async def _with_patience(self, work: Callable[[Connection], T]) -> T:
        with _said_as_trouble():
            try:
                return await self._run(work)
            except Exception as error:
                if not may_work_again(error):
                    raise
                return await self._run(work)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        conn: AsyncConnection | None = None
        ends = asyncio.get_running_loop().time() + TRANSACTION_LIMIT
        async with asyncio.timeout_at(ends):
            await self._places.acquire()
        try:
            async with asyncio.timeout_at(ends):
                conn = await _connect(self._engine)
                result = await conn.run_sync(work)
                await conn.close()
        except BaseException as error:
            if conn is not None:
                await discard(conn, error)
            raise
        finally:
            self._places.release()
        return result

    async def close(self) -> None:
        """Wait for reads under way."""
        if self._unbroken.running:
            await asyncio.wait(self._unbroken.running, timeout=TRANSACTION_LIMIT)
