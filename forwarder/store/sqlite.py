"""SQLite: one writer thread, a few reader threads, a fair lock between processes.

WAL with ``synchronous=FULL``: a COMMIT returns after its fsync. No ``mmap_size``: a read error of the disk would then
be a SIGBUS for the whole process instead of an error of one statement.

Writes begin with BEGIN IMMEDIATE, said to the driver itself: SQLAlchemy's own transaction costs a quarter of a group.
Several processes share a file: SQLite's own busy handler sleeps in growing steps and lets the luckiest in, so each
transaction is taken under two advisory locks on files beside the database. Whoever wants ``.lock`` first holds
``.turn``; a process that has just committed has to queue up behind the one that holds it, so turns alternate. Groups
are collected only once the turn has come, and grow while it has not.

Where the disk is short of room new mail is refused while there is enough of it to settle what is queued (``room``).

The writer is a daemon thread: a disk that hangs must not keep the process from ending. Callers are protected by the
time limits of ``writer``. After trouble the connection is opened anew.
"""

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from forwarder.failpoint import reach
from forwarder.store.faults import ended_for_certain, trouble_of
from forwarder.store.place import Place
from forwarder.store.room import Room
from forwarder.store.straight import begin, begin_reading, commit, rollback
from forwarder.store.telling import Telling
from forwarder.store.trouble import CommitUnknown, Misplaced, StoreFull, StoreUnavailable
from forwarder.store.writer import Failed, Item, Writer, apply_group, halves
from forwarder.tally import Tally

READERS = 3
BUSY_TIMEOUT = 5.0  # seconds, for programs that write to the file without taking our locks
READ_LIMIT = 10.0
STEPS = 100_000  # of SQLite's machine, some milliseconds, after which a read looks whether it is too late
CHECKPOINT_PAGES = 16_000  # rows of mail that came and went between two checkpoints never reach the main file

T = TypeVar("T")
_log = structlog.get_logger("forwarder.store")


def make_engine(path: str, *, immediate: bool, begins: bool = True) -> Engine:
    """An engine whose every connection is a new one.

    ``immediate``: it may write. ``begins``: a transaction of SQLAlchemy's is one of SQLite's; else the user begins and
    commits those by ``straight``, and SQLAlchemy's are nothing but its own bookkeeping.
    """

    def connect() -> sqlite3.Connection:
        # isolation_level None: the driver must not begin transactions by itself
        raw = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            # Debian's library writes zeros over every page it frees: each message would go to the disk twice.
            "secure_delete=FAST",
            f"cache_size={-16 * 1024 if immediate else -8 * 1024}",  # KiB
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            f"journal_size_limit={128 * 1024 * 1024}",
            f"query_only={'OFF' if immediate else 'ON'}",
        ):
            raw.execute(f"PRAGMA {pragma}").close()
        return raw

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    if begins:
        statement = "BEGIN IMMEDIATE" if immediate else "BEGIN"
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql(statement))
    return engine


class FairLock:
    """The turn of one process to write; blocking, not reentrant, released by the kernel when a process dies."""

    def __init__(self, path: str) -> None:
        self._turn = os.open(path + ".turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the turn, and have it."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the files; whoever waits goes on."""
        os.close(self._turn)
        os.close(self._lock)


class SqliteWriter(Writer):
    """Group commit on one thread."""

    def __init__(self, path: str, tally: Tally) -> None:
        super().__init__(tally)
        self._lock = FairLock(path)
        self._room = Room(path)
        self._place = Place(path)
        self._engine = make_engine(path, immediate=True, begins=False)
        self._conn: Connection | None = None
        # Not an Event, whose lock and condition are Python's own: waking would take ten times as long.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._ended = asyncio.Event()
        self._telling = Telling()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def occupied(self) -> bool:
        # Where several wait, the turn is another process's as a rule.
        return super().occupied or len(self.waiting) > 1

    def wake(self) -> None:
        if self._bell.empty():  # else the thread has not looked yet: it will find what was put before this
            self._bell.put(None)

    async def close(self) -> None:
        await super().close()
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_LIMIT):
                await self._ended.wait()

    def _run(self) -> None:
        while True:
            self._bell.get()
            while len(self.waiting):
                self._round()
            if self.closing:
                break
        self._drop_connection()
        self._lock.close()
        self._tell(self._ended.set)

    def _round(self) -> None:
        """One turn: collect a group and commit it. Nothing may escape, or nobody would write any more."""
        group: list[Item] = []
        done: list[tuple[Item, Any]] = []
        try:
            with self._lock.held():
                reach("writer.before-begin")
                conn = self._connection()
                short = self._room.is_short(self.waiting.weight)
                if short:
                    self._room.make(conn)
                begin(conn)
                group = self.waiting.take()  # only now: what came while others wrote is in
                self.running[id(group)] = (time.monotonic(), group)
                todo = [self._with_room(conn, group, done) if short else group]
                while todo:
                    self._write(conn, todo.pop(), todo, done)
                    if todo:
                        begin(conn)
            self.prove(done)
        except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to
            trouble = trouble_of(error) or StoreUnavailable()
            if trouble is not error:  # else it knows its own cause
                trouble.__cause__ = error
            self.failing = True
            if not isinstance(trouble, Misplaced):  # then it is all that is left of the files
                self._drop_connection()
            told = {id(item) for item, _ in done}
            failed = [item for item in group or self.waiting.take() if id(item) not in told]
            done += [(item, Failed(trouble)) for item in failed]
            if news := self._telling.news(trouble):
                _log.error("a write failed", items=len(failed), **news)
        self._tell(self._finish, group, done)

    def _with_room(self, conn: Connection, group: list[Item], done: list[tuple[Item, Any]]) -> list[Item]:
        """Those of a group that the disk has room for; the others are done, refused."""
        taken = []
        octets = 0
        for item in group:
            if item.yields and not self._room.fits(conn, octets + item.weight):
                done.append((item, Failed(StoreFull())))
            else:
                octets += item.weight
                taken.append(item)
        return taken

    def _write(
        self, conn: Connection, part: list[Item], todo: list[list[Item]], done: list[tuple[Item, Any]]
    ) -> None:
        """End the transaction with one part of the group in it. Raises trouble only.

        Where one of its items is to blame it is rolled back, and the part's halves are put on ``todo``.
        """
        try:
            results = apply_group(conn, part)
            reach("writer.before-commit")
        except Exception as error:
            if trouble_of(error) is not None:
                raise
            rollback(conn)
            if len(part) == 1:
                done.append((part[0], Failed(error)))
            else:
                todo.extend(halves(part))
            return
        try:
            commit(conn)
        except Exception as error:
            if ended_for_certain(error):
                raise
            # A failed fsync: the frames may be in the log file all the same, and be found after a crash.
            raise CommitUnknown from error
        reach("writer.after-commit")
        done.extend(zip(part, results, strict=True))

    def _connection(self) -> Connection:
        if self._conn is None:
            self._place.before_connecting()
            self._conn = self._engine.connect()
        else:
            self._place.look(self._conn)
        return self._conn

    def _drop_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):  # it is being thrown away because it is broken
                conn.close()

    def _finish(self, group: list[Item], done: list[tuple[Item, Any]]) -> None:
        self.running.pop(id(group), None)
        taken = group or [item for item, _ in done]  # all that waited, where no transaction began
        self.note(taken, sum(isinstance(result, Failed) for _, result in done))
        self.resolve(done)

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(function, *arguments)


class SqliteReaders:
    """A few threads, each with a read-only connection of its own.

    A read that nobody waits for any more is broken off: it would keep a thread from reads that mail waits for.
    """

    def __init__(self, path: str) -> None:
        self._engine = make_engine(path, immediate=False, begins=False)
        self._local = threading.local()
        self._connections: set[Connection] = set()  # at most one a thread
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a snapshot; StoreUnavailable after READ_LIMIT seconds."""
        until = time.monotonic() + READ_LIMIT
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, until)
        try:
            # Not wait_for: before Python 3.12 it gives the result of a read that ended just when its caller was
            # cancelled, and the caller never hears that it was.
            async with asyncio.timeout(READ_LIMIT):
                return await running
        except TimeoutError as error:
            raise StoreUnavailable from error

    def _run(self, work: Callable[[Connection], T], until: float) -> T:
        conn: Connection | None = getattr(self._local, "conn", None)
        self._local.until = until
        try:
            if conn is None:
                conn = self._local.conn = self._engine.connect()
                self._connections.add(conn)
                driver: Any = conn.connection.driver_connection
                driver.set_progress_handler(lambda: time.monotonic() > self._local.until, STEPS)
            begin_reading(conn)
            try:
                return work(conn)
            finally:
                rollback(conn)
        except Exception as error:
            trouble = trouble_of(error)
            if trouble is None:
                raise
            self._local.conn = None  # opened anew by the next read
            if conn is not None:
                self._connections.discard(conn)
                conn.invalidate()
            raise trouble from error

    def close(self) -> None:
        """End the threads once they have read what they are at; what waits for them is not read."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for conn in self._connections:
            with suppress(Exception):
                conn.close()
