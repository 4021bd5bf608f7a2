"""What an open store promises: durable settings, bounded waits, errors that say nothing, recovery by itself."""

import asyncio
import fcntl
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, false, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from forwarder.store import postgresql, sqlite, straight, writer
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.tables import sequences
from forwarder.store.trouble import CommitUnknown, StoreFull, StoreUnavailable
from tests.postgres import Server
from tests.store.conftest import until


def put(name: str, value: int = 1, padding: str = "") -> object:
    return lambda conn: conn.execute(sequences.insert().values(name=name + padding, value=value)) and None


async def names(database: Database) -> set[str]:
    found = await database.read(lambda conn: conn.execute(select(sequences.c.name)).scalars().all())
    return set(found) - {"directory"}


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A server that a test may stop, pause and restart."""
    server = Server.start()
    server.sql("CREATE TABLE sequences (name text PRIMARY KEY, value bigint)")
    server.sql(
        "CREATE TABLE messages (id text PRIMARY KEY, created_at timestamptz, transport text, reverse_path text, "
        "smtputf8 boolean, size integer, content bytea)"
    )
    yield server
    server.remove()


@pytest.fixture
async def shaky(own_postgres: Server) -> AsyncIterator[Database]:
    opened = await Database.open(own_postgres.url())
    yield opened
    own_postgres.go_on()
    await opened.close()


async def test_sqlite_commits_are_durable(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)

    def pragmas(conn: Connection) -> dict[str, object]:
        wanted = ("synchronous", "journal_mode", "foreign_keys")
        return {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted}

    expected = {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}
    assert await database.write(pragmas) == expected
    assert await database.read(pragmas) == expected
    await database.close()


async def test_sqlite_files_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.db"
    before = os.umask(0o022)
    try:
        database = await Database.open(f"sqlite:///{path}")
        await database.write(lambda conn: conn.execute(text("CREATE TABLE t (x)")) and None)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await database.close()
    finally:
        os.umask(before)
    assert len(modes) >= 4  # the file, its log and index, the locks
    assert set(modes.values()) == {0o600}


async def test_postgresql_commits_are_durable_whatever_the_server_prefers(
    postgres: Server, postgres_url: str
) -> None:
    assert postgres.sql("SHOW synchronous_commit") == "off"
    database = await Database.open(postgres_url)
    show = text("SHOW synchronous_commit")
    assert await database.write(lambda conn: conn.execute(show).scalar()) == "on"
    await database.close()


async def test_readers_cannot_write_on_sqlite(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    with pytest.raises(StoreUnavailable):
        await database.read(put("x"))  # type: ignore[arg-type]
    assert await names(database) == set()
    await database.close()


async def test_a_reader_that_failed_leaves_no_connection_behind(sqlite_url: str) -> None:
    """While the disk says EIO, something is read and fails several times a second, for days perhaps."""
    database = await Database.open(sqlite_url)
    readers = database._readers
    assert isinstance(readers, sqlite.SqliteReaders)
    for _ in range(2 * sqlite.READERS):
        with pytest.raises(StoreUnavailable):
            await database.read(lambda conn: conn.execute(text("SELECT * FROM nowhere")).all())
    assert not readers._connections
    assert await database.read(lambda conn: conn.execute(text("SELECT 1")).scalar()) == 1
    assert len(readers._connections) == 1
    await database.close()


async def test_a_read_that_outlasts_its_time_leaves_its_thread(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 300000000) SELECT count(*) FROM n"
    database = await Database.open(sqlite_url)
    monkeypatch.setattr(sqlite, "READ_LIMIT", 0.2)
    slow = [database.read(lambda conn: conn.execute(text(count)).scalar()) for _ in range(sqlite.READERS)]
    assert [type(found) for found in await asyncio.gather(*slow, return_exceptions=True)] == [
        StoreUnavailable
    ] * sqlite.READERS
    monkeypatch.setattr(sqlite, "READ_LIMIT", 5.0)
    assert await database.read(lambda conn: conn.execute(text("SELECT 1")).scalar()) == 1
    await database.close()


async def test_a_refused_value_fails_alone(database: Database) -> None:
    await database.write(put("taken"))  # type: ignore[arg-type]
    wanted = ["a", "b", "taken", "c", "d"]
    results = await asyncio.gather(
        *(database.write(put(name)) for name in wanted),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [
        type(None),
        type(None),
        IntegrityError,
        type(None),
        type(None),
    ]
    assert await names(database) == {"a", "b", "c", "d", "taken"}


async def test_an_unforeseen_error_fails_alone(database: Database) -> None:
    def broken(conn: Connection) -> None:
        conn.execute(sequences.insert().values(name="half", value=1))
        raise ZeroDivisionError("text of the error")

    results = await asyncio.gather(
        database.write(put("a")),  # type: ignore[arg-type]
        database.write(broken),
        database.write(put("b")),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert isinstance(results[1], ZeroDivisionError)
    assert await names(database) == {"a", "b"}


async def test_cancelled_callers_cut_nothing(database: Database) -> None:
    tasks = [asyncio.create_task(database.write(put(f"n{n}"))) for n in range(40)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert [result for result in results[1::2] if result is not None] == []
    assert {f"n{n}" for n in range(1, 40, 2)} <= await names(database)
    await database.write(put("after"))  # type: ignore[arg-type]


async def test_a_read_that_ends_as_its_caller_is_cancelled_is_cancelled(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.open(sqlite_url)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run_in_executor", lambda *_: ended)
        task = asyncio.create_task(database.read(lambda conn: 1))
        await asyncio.sleep(0)  # it waits for the thread now
        ended.set_result(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await database.close()


async def test_a_store_that_cannot_be_reached_says_nothing_of_itself() -> None:
    database = await Database.open("postgresql://bertram:hunter2@127.0.0.1:1/secrets")
    for attempt in (database.read, database.write):
        with pytest.raises(StoreUnavailable) as caught:
            await attempt(lambda conn: conn.execute(text("SELECT 'sql'")))
        for secret in ("bertram", "hunter2", "127.0.0.1", "secrets", "SELECT", "sql"):
            assert secret not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        await database.ready()
    await database.close()


async def test_a_full_disk_is_said_and_forgotten(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    await database.write(put("before"))  # type: ignore[arg-type]
    limit = text("PRAGMA max_page_count = 1")  # SQLite takes the size it has now
    await database.write(lambda conn: conn.execute(limit) and None)
    with pytest.raises(StoreFull):
        await database.write(put("big", padding="x" * 300_000))  # type: ignore[arg-type]
    await database.write(put("after"))  # type: ignore[arg-type]  - a new connection has no limit any more
    assert await names(database) == {"before", "after"}
    await database.close()


async def test_a_copy_made_while_others_write_is_whole(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    await database.write(put("before", padding="x" * 300_000))  # type: ignore[arg-type]
    file = sqlite_url.removeprefix("sqlite:///")

    def copy() -> None:  # as the README says
        with closing(sqlite3.connect(file)) as conn:
            conn.execute("VACUUM INTO ?", (f"{file}.copy",))

    copying = asyncio.create_task(asyncio.to_thread(copy))
    number = 0
    while not copying.done():
        await database.write(put(f"meanwhile {number}"))  # type: ignore[arg-type]
        number += 1
    await copying
    await database.close()
    restored = await Database.open(f"{sqlite_url}.copy")
    await restored.write(put("after"))  # type: ignore[arg-type]
    found = {name.rstrip("x") for name in await names(restored)}
    copied = len(found) - 2
    assert found == {"before", "after", *(f"meanwhile {n}" for n in range(copied))}
    assert copied <= number
    assert stat.S_IMODE(os.stat(f"{file}.copy").st_mode) == 0o600
    await restored.close()


async def test_after_trouble_it_is_ready_when_something_has_reached_the_disk(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    await database.write(put("before"))  # type: ignore[arg-type]
    log = sqlite_url.removeprefix("sqlite:///") + "-wal"
    for _ in range(2):
        database.writer.failing = True
        before = os.stat(log).st_size
        await database.ready()
        assert os.stat(log).st_size > before
        assert not database.writer.failing
    await database.close()


async def test_after_trouble_only_what_was_written_makes_it_ready(database: Database) -> None:
    database.writer.failing = True
    for found_nothing in (
        lambda _conn: None,
        lambda conn: conn.execute(sequences.delete().where(false())) and None,
    ):
        await database.write(found_nothing)
        assert database.writer.failing
    with pytest.raises(ValueError, match="a mistake"):
        await database.writer.write(fails, writes=True)
    assert database.writer.failing
    await database.ready()
    assert not database.writer.failing


async def test_a_server_without_room_for_mail_is_not_ready(postgres_url: str) -> None:
    """A small row finds room in its page; what has to lengthen the file of a table does not."""
    person = await asyncpg.connect(postgres_url)
    await person.execute(
        """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END$$;
        CREATE TRIGGER full_disk BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION full_disk();
        """
    )
    database = await Database.open(postgres_url)
    database.writer.failing = True
    with pytest.raises(StoreFull):
        await database.ready()
    await person.execute("DROP TRIGGER full_disk ON messages")
    await database.ready()
    assert not database.writer.failing
    assert await person.fetchval("SELECT count(*) FROM messages") == 0
    await person.close()
    await database.close()


def fails(conn: Connection) -> None:
    conn.execute(sequences.insert().values(name="lost", value=1))
    raise ValueError("a mistake")


class _FullAtCommit(sqlite3.Connection):
    """A disk with room for statements, which SQLite keeps in memory, and none for the COMMIT that writes them."""

    code = sqlite3.SQLITE_FULL

    def commit(self) -> None:
        super().rollback()
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = self.code
        raise error


class _BrokenAtCommit(_FullAtCommit):
    code = sqlite3.SQLITE_IOERR_FSYNC


@pytest.mark.parametrize(
    ("disk", "trouble", "why"),
    [
        (_FullAtCommit, StoreFull, "the disk of the database is full"),
        (_BrokenAtCommit, CommitUnknown, "SQLite cannot open or write it"),
    ],
)
async def test_a_disk_that_is_full_at_the_commit_leaves_no_doubt(
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    disk: type[sqlite3.Connection],
    trouble: type[Exception],
    why: str,
) -> None:
    database = await Database.open(sqlite_url)
    connect = sqlite3.connect
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options, factory=disk))
        with pytest.raises(trouble) as caught:
            await database.write(put("lost"))  # type: ignore[arg-type]
    assert type(caught.value) is trouble
    assert why in explain(caught.value).text
    await database.write(put("after"))  # type: ignore[arg-type]
    assert await names(database) == {"after"}
    await database.close()


async def test_a_file_locked_by_another_program_is_temporary(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.2)
    database = await Database.open(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await database.write(put("x"))  # type: ignore[arg-type]
    assert await names(database) == set()  # readers are not concerned
    other.execute("ROLLBACK")
    await database.ready()
    await database.write(put("y"))  # type: ignore[arg-type]
    assert await names(database) == {"y"}
    other.close()
    await database.close()


async def test_what_waits_too_long_is_certainly_not_written(sqlite_url: str) -> None:
    """Another process holds the turn and does not go on: nobody has begun, so nothing is in doubt."""
    database = await Database.open(sqlite_url)
    lock = sqlite.FairLock(sqlite_url.removeprefix("sqlite:///"))
    with lock.held():
        waiting = asyncio.create_task(database.write(put("late")))  # type: ignore[arg-type]
        await asyncio.sleep(0)  # it waits in the line
        assert len(database.writer.waiting) == 1
        database.writer.expire_now(time.monotonic() + 1)
        with pytest.raises(StoreUnavailable) as caught:
            await waiting
        assert not isinstance(caught.value, CommitUnknown)
    await database.write(put("next"))  # type: ignore[arg-type]
    assert await names(database) == {"next"}
    lock.close()
    await database.close()


async def test_a_transaction_that_does_not_end_is_in_doubt(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    begun, go_on = threading.Event(), threading.Event()

    def slow(conn: Connection) -> None:
        conn.execute(sequences.insert().values(name="slow", value=1))
        begun.set()
        go_on.wait(20)

    waiting = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 10)
    database.writer.expire_now(time.monotonic())
    with pytest.raises(CommitUnknown):
        await waiting
    go_on.set()
    await database.write(put("next"))  # type: ignore[arg-type]
    assert await names(database) == {"slow", "next"}
    await database.close()


async def test_what_comes_beyond_the_bound_of_the_line_is_refused_and_all_else_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "WAITING_ITEMS", 3)
    results = await asyncio.gather(
        *(database.write(put(f"n{n}")) for n in range(10)),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, StoreUnavailable)]
    assert 1 <= len(refused) <= 7
    assert len(await names(database)) == 10 - len(refused)


class Together:
    """A batch that notes what was written together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    def apply(self, _conn: Connection, items: Sequence[int]) -> Sequence[None]:
        self.groups.append(list(items))
        return [None] * len(items)


async def test_what_is_written_together_is_bounded_by_its_weight(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is heavier than the bound by itself passes it, alone."""
    monkeypatch.setattr(writer, "GROUP_WEIGHT", 100)
    database, batch = await Database.open(sqlite_url), Together()
    lock = sqlite.FairLock(sqlite_url.removeprefix("sqlite:///"))
    with lock.held():  # nothing is taken meanwhile
        waiting = [database.writer.enlist(batch, each, weight=each) for each in (60, 40, 1, 250, 99, 1)]
    await asyncio.gather(*waiting)
    assert batch.groups == [[60, 40], [1], [250], [99, 1]]
    lock.close()
    await database.close()


async def test_what_waits_is_bounded_by_its_weight(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAITING_WEIGHT", 100)
    database, batch = await Database.open(sqlite_url), Together()
    lock = sqlite.FairLock(sqlite_url.removeprefix("sqlite:///"))
    for _ in range(2):  # what was written weighs nothing any more
        with lock.held():
            waiting = [database.writer.enlist(batch, 60, weight=60)]
            with pytest.raises(StoreUnavailable):
                database.writer.enlist(batch, 41, weight=41)
            waiting.append(database.writer.enlist(batch, 40, weight=40))
        await asyncio.gather(*waiting)
    assert [sum(group) for group in batch.groups] == [100, 100]
    lock.close()
    await database.close()


async def test_closing_writes_what_waits(store_url: str) -> None:
    database = await Database.open(store_url)
    waiting = [asyncio.ensure_future(database.write(put(f"n{n}"))) for n in range(30)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*waiting)
    with pytest.raises(StoreUnavailable):
        await database.write(put("late"))  # type: ignore[arg-type]
    again = await Database.open(store_url)
    assert len(await names(again)) == 30
    await again.close()


async def test_processes_alternate_on_one_file(sqlite_url: str) -> None:
    """Who waits for the file has it next, whatever else the one that has it wants to write."""
    one, two = await Database.open(sqlite_url), await Database.open(sqlite_url)
    turns: list[str] = []
    holds, go_on = threading.Event(), threading.Event()

    def hold(_conn: Connection) -> None:
        holds.set()
        assert go_on.wait(60)
        turns.append("1")

    writes = [asyncio.create_task(one.write(hold))]
    assert await asyncio.to_thread(holds.wait, 60)
    writes.append(asyncio.create_task(two.write(lambda conn: turns.append("2"))))
    turn = os.open(sqlite_url.removeprefix("sqlite:///") + ".turn", os.O_RDONLY)

    async def is_taken() -> bool:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(turn, fcntl.LOCK_UN)
        return False

    await until(is_taken)
    os.close(turn)
    writes += [asyncio.create_task(one.write(lambda conn: turns.append("1"))) for _ in range(3)]
    go_on.set()
    await asyncio.gather(*writes)
    assert "".join(turns) == "12111"
    await one.close()
    await two.close()


async def test_a_second_opening_leaves_the_locks_of_the_first(sqlite_url: str) -> None:
    """As a reload does it: without them the next program to leave would delete the log that is written to."""
    path = sqlite_url.removeprefix("sqlite:///")
    visit = f"import sqlite3; c = sqlite3.connect({path!r}); print(c.execute('SELECT count(*) FROM t').fetchone()[0])"

    async def visitor() -> str:
        command = (sys.executable, "-c", visit + "; c.close()")
        return (await asyncio.to_thread(subprocess.check_output, command, text=True, timeout=60)).strip()

    first = await Database.open(sqlite_url)
    await first.write(lambda conn: conn.execute(text("CREATE TABLE t (x)")) and None)
    second = await Database.open(sqlite_url)
    log = os.stat(path + "-wal").st_ino
    assert await visitor() == "0"
    assert os.stat(path + "-wal").st_ino == log
    await second.close()
    await first.write(lambda conn: conn.execute(text("INSERT INTO t VALUES (1)")) and None)
    assert await visitor() == "1"
    await first.close()


async def test_who_is_cancelled_while_a_change_aside_is_committed_is_cancelled(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the heartbeat of an engine that ends; told that its COMMIT is unknown it would go on for ever."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    commit = AsyncConnection.commit

    async def slow(conn: AsyncConnection) -> None:
        begun.set()
        await go_on.wait()
        await commit(conn)

    database = await Database.open(postgres_url)
    monkeypatch.setattr(AsyncConnection, "commit", slow)
    beat = asyncio.create_task(database.write_aside(put("aside")))
    await begun.wait()
    beat.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beat
    closing = asyncio.create_task(database.close())
    go_on.set()
    await closing
    again = await Database.open(postgres_url)
    assert await names(again) == {"aside"}
    await again.close()


async def test_a_restarted_server_is_noticed_by_nobody(own_postgres: Server, shaky: Database) -> None:
    await shaky.write(put("before"))  # type: ignore[arg-type]
    for how in (signal.SIGINT, signal.SIGQUIT):
        await asyncio.to_thread(own_postgres.stop, how)
        with pytest.raises(StoreUnavailable):
            await shaky.write(put("lost"))  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable):
            await names(shaky)
        await asyncio.to_thread(own_postgres.restart)
        await shaky.ready()
        await shaky.write(put(f"after {how.name}"))  # type: ignore[arg-type]
        await asyncio.to_thread(own_postgres.stop, how)
        await asyncio.to_thread(own_postgres.restart)
        # every pooled connection is dead, nobody has been told yet
        assert len(await names(shaky)) == (2 if how is signal.SIGINT else 3)
        await asyncio.to_thread(own_postgres.stop, how)
        await asyncio.to_thread(own_postgres.restart)
        await shaky.write(put(f"again {how.name}"))  # type: ignore[arg-type]
        await shaky.write(
            lambda conn: conn.execute(sequences.delete().where(sequences.c.name.like("again%"))) and None
        )
    assert await names(shaky) == {"before", "after SIGINT", "after SIGQUIT"}


async def test_where_the_server_has_one_connection_left_all_take_turns(own_postgres: Server) -> None:
    """Others have taken what it may have; what one connection can do is done, and nobody is refused."""
    own_postgres.sql("CREATE ROLE guest LOGIN CONNECTION LIMIT 1")
    own_postgres.sql("GRANT ALL ON sequences TO guest")
    database = await Database.open(own_postgres.url().replace("postgres@", "guest@"))
    slow = text("SELECT pg_sleep(0.02)")
    await database.write(put("first"))  # type: ignore[arg-type]
    await asyncio.gather(
        *(database.read(lambda conn: conn.execute(slow) and None) for _ in range(12)),
        *(database.write(put(f"{n}")) for n in range(4)),  # type: ignore[arg-type]
        *(database.write_aside(put(f"aside {n}")) for n in range(4)),  # type: ignore[arg-type]
    )
    assert len(await names(database)) == 9
    await database.close()


async def test_a_server_that_says_nothing_is_given_up_in_time(
    own_postgres: Server, shaky: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "TRANSACTION_LIMIT", 1.0)
    await shaky.write(put("before"))  # type: ignore[arg-type]
    own_postgres.pause()
    started = time.monotonic()
    for attempt in (shaky.read, shaky.write):
        with pytest.raises(StoreUnavailable):
            await attempt(put("x"))  # type: ignore[arg-type]
    assert time.monotonic() - started < 12
    own_postgres.go_on()
    await shaky.write(put("after"))  # type: ignore[arg-type]
    assert {"before", "after"} <= await names(shaky)


async def test_a_connection_that_a_silent_server_does_not_let_go_of_is_cut_without_a_word(
    own_postgres: Server,
) -> None:
    """SQLAlchemy closes in a task whose failure would be logged as one that nobody foresaw."""
    engine = postgresql.make_engine(own_postgres.url(), pool_size=1)
    conn = await engine.connect()
    held = (await conn.get_raw_connection()).driver_connection
    assert held is not None
    own_postgres.pause()
    await held.close(timeout=0.1)
    assert held.is_closed()
    own_postgres.go_on()
    await conn.invalidate()
    await conn.close()
    await engine.dispose()


async def test_a_deadlock_hurts_nobody(postgres_url: str) -> None:
    one, two = await Database.open(postgres_url), await Database.open(postgres_url)
    for name in ("left", "right"):
        await one.write(put(name, 0))  # type: ignore[arg-type]

    def both(first: str, second: str) -> object:
        def work(conn: Connection) -> None:
            for name in (first, second):
                conn.execute(
                    sequences.update().where(sequences.c.name == name).values(value=sequences.c.value + 1)
                )
                conn.execute(text("SELECT pg_sleep(0.1)"))

        return work

    await asyncio.gather(
        one.write(both("left", "right")),  # type: ignore[arg-type]
        two.write(both("right", "left")),  # type: ignore[arg-type]
    )
    values = await one.read(
        lambda conn: (
            conn.execute(select(sequences.c.value).where(sequences.c.name != "directory")).scalars().all()
        )
    )
    assert list(values) == [2, 2]
    await one.close()
    await two.close()


def test_a_commit_without_a_transaction_is_no_commit(sqlite_url: str) -> None:
    """SQLite ends a transaction by itself when its disk breaks; a COMMIT after that must not pass for one."""
    engine = sqlite.make_engine(sqlite_url.removeprefix("sqlite:///"), immediate=True, begins=False)
    with engine.connect() as conn:
        straight.begin(conn)
        straight.run_text(conn, "ROLLBACK", ())
        with pytest.raises(OperationalError):
            straight.commit(conn)
