"""Our trouble is never the sender's fault: full disks, locked files, databases that go away."""

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from forwarder.inbound import disk
from forwarder.store import sqlite
from tests.engine.town import ALIASES, MAIL, Town
from tests.harness import wait_until
from tests.peers.client import Answer, Client
from tests.postgres import Server

LEAKS = (
    "sqlite",
    "postgres",
    "asyncpg",
    "error:",
    "exception",
    "127.0.0.1",
    "forwarder_",
    "insert",
    "traceback",
    "runtime",
)


def temporary(answer: Answer) -> bool:
    assert not any(word in str(answer).lower() for word in LEAKS), answer
    return answer.code in (421, 451, 452) and answer.text.startswith("4.3.")


@contextlib.contextmanager
def locked(town: Town) -> Iterator[None]:
    """Another program holds the write lock of the file."""
    other = sqlite3.connect(town.settings.data_dir / "forwarder.db", isolation_level=None, timeout=5)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


async def begin(client: Client, recipient: bytes = b"info@example.com") -> None:
    await client.ehlo()
    assert (await client.say(b"MAIL FROM:<ann@out.test>\r\n")).code == 250
    assert (await client.say(b"RCPT TO:<" + recipient + b">\r\n")).code == 250
    assert (await client.say(b"DATA\r\n")).code == 354


async def test_a_full_disk_is_temporary_and_over_when_there_is_room_again(
    engine: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own bound of a file stands for the disk: the same error at the same places."""
    engine.sink.play("connect", "450", times=1)
    assert (await engine.send("ann@out.test", "info@example.com", MAIL)).code == 250
    big = MAIL + b"0123456789\r\n" * 400_000
    pages = await engine.database.write(lambda conn: conn.execute(text("PRAGMA page_count")).scalar_one())
    bound = [pages + 8]
    connect = sqlite.SqliteWriter._connection

    def bounded(writer: sqlite.SqliteWriter) -> Any:
        conn = connect(writer)
        conn.connection.driver_connection.execute(f"PRAGMA max_page_count={bound[0]}")
        return conn

    monkeypatch.setattr(sqlite.SqliteWriter, "_connection", bounded)
    async with engine.client() as client:
        await client.ehlo()
        for _ in range(2):
            answers = await client.message(b"ann@out.test", [b"info@example.com"], big)
            assert str(answers[-1]).startswith("452 4.3.1"), answers
        bound[0] = 1_000_000
        answers = await client.message(b"ann@out.test", [b"info@example.com"], big)
        assert answers[-1].code == 250
    engine.forgive("a write failed")
    await engine.sink.wait_for(2, timeout=20)
    await engine.goes_on()
    await engine.settled()
    assert sorted(len(m.content) > len(big) for m in engine.sink.messages) == [False, True]


async def test_a_disk_that_is_nearly_full_is_told_at_mail(
    engine: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [engine.settings.mx.size_limit]
    monkeypatch.setattr(disk, "FRESH", -1.0)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free[0], f_frsize=1))
    async with engine.client() as client:
        await client.ehlo()
        assert str(await client.say(b"MAIL FROM:<ann@out.test>\r\n")).startswith("452 4.3.1")
        free[0] *= 2
        assert (await client.message(b"ann@out.test", [b"info@example.com"], MAIL))[-1].code == 250
    await engine.goes_on()


async def test_a_store_that_a_backlog_made_large_takes_mail_on_a_disk_without_more_room(
    engine: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was delivered leaves free pages in the file, which does not get shorter."""
    monkeypatch.setattr(disk, "FRESH", -1.0)
    few = SimpleNamespace(f_bavail=engine.settings.mx.size_limit, f_frsize=1)
    octets = text(f"INSERT INTO backlog VALUES (zeroblob({engine.settings.mx.size_limit // 2}))")
    for statement in (text("CREATE TABLE backlog (content BLOB)"), octets, text("DROP TABLE backlog")):
        await engine.database.write(lambda conn, do=statement: conn.execute(do) and None)  # type: ignore[misc]
    monkeypatch.setattr(disk.os, "statvfs", lambda path: few)
    answer = await engine.send("ann@out.test", "info@example.com", MAIL)
    assert answer.code == 250, answer
    await engine.goes_on()


async def test_a_file_that_somebody_locks_is_temporary_and_blocks_nobody(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.7)
    async with town.engine(), town.api() as api, town.client() as client, town.client() as other:
        await other.ehlo()
        await begin(client)
        with locked(town):
            waiting = asyncio.create_task(client.say(MAIL + b".\r\n"))
            for _ in range(5):
                async with asyncio.timeout(1):
                    assert (await other.say(b"NOOP\r\n")).code == 250
            change = await api.post(
                "/v3/domains/example.com/aliases/", json={"alias": "x", "forward": "x@y.test"}
            )
            assert change.status_code == 503
            assert change.json()["success"] is False
            assert not any(word in change.text.lower() for word in LEAKS)
            assert temporary(await waiting)
        town.forgive("a write failed")
        await town.goes_on()
        await town.settled()
        assert town.sink.messages == []
        assert (await client.message(b"ann@out.test", [b"info@example.com"], MAIL))[-1].code == 250
        await town.sink.wait_for(1)
        await town.goes_on()


@contextlib.asynccontextmanager
async def on_postgresql(town: Town) -> AsyncIterator[Server]:
    server = Server.start()
    try:
        # no quota: the commit that is disturbed is to be that of a message
        plans = {"default": {"daily_quota": 0}}
        async with town.engine(database={"url": server.database()}, plans=plans):
            await town.host("example.com", ALIASES)
            await town.goes_on()  # what is asked once is known by now
            yield server
    finally:
        server.remove()


async def test_a_database_that_goes_away_is_temporary_at_every_step(town: Town) -> None:
    async with on_postgresql(town) as server:
        steps = (
            b"",
            b"MAIL FROM:<ann@out.test>\r\n",
            b"RCPT TO:<info@example.com>\r\n",
            b"DATA\r\n",
            MAIL[:40],
        )
        clients = [town.client() for _ in steps]
        for index, client in enumerate(clients):
            await client.open()
            await client.ehlo()
            for step in steps[1 : index + 1]:
                await client.send(step)
                if step != MAIL[:40]:
                    await client.read()
        server.stop(signal.SIGQUIT)
        answers = []
        for index, client in enumerate(clients):
            for step in steps[index + 1 : 4]:
                answers.append(await client.say(step))
                if answers[-1].code >= 400:
                    break
            else:
                answers.append(await client.say((MAIL[40:] if index == 4 else MAIL) + b".\r\n"))
            assert temporary(answers[-1]), (index, answers)
        assert all(answer.code < 500 for answer in answers)
        # A refusal needs the store as well: nobody is called unknown, and no relay is denied, on hearsay.
        unknown = await town.send("ann@out.test", "somebody@unheard.example", MAIL)
        assert temporary(unknown), unknown
        for _ in range(3):
            assert temporary(await town.send("ann@out.test", "richard@example.com", MAIL))
        said = [str(line["reason"]) for line in town.errors if line["event"] == "a write failed"]
        assert any("[database] url" in reason for reason in said)
        assert len(said) == len(set(said))  # what many meet is said once
        async with town.api() as api:
            assert (await api.get("/health/live")).status_code == 200
            await wait_until(lambda: _status(api, "/health/ready", 503))
            answer = await api.get("/v3/domains/")
            assert answer.status_code == 503
            assert not any(word in answer.text.lower() for word in LEAKS)
            server.restart()
            await wait_until(lambda: _status(api, "/health/ready", 200), deadline=30)
        for client in clients:
            await client.close()
        town.forgive("a write failed")
        await town.goes_on()
        await town.settled()
        assert town.sink.messages == []


async def test_a_database_that_dies_in_the_commit_is_temporary_and_leaves_all_or_nothing(town: Town) -> None:
    async with on_postgresql(town) as server:
        # A commit that waits for a standby that does not exist: it hangs between being written and being told.
        server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        server.sql("SELECT pg_reload_conf()")
        await wait_until(lambda: server.sql("SHOW synchronous_standby_names") == "nobody")
        async with town.client() as client:
            await begin(client, b"pair@example.com")
            waiting = asyncio.create_task(client.say(MAIL + b".\r\n"))
            await wait_until(
                lambda: (
                    server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") != "0"
                )
            )
            (server.folder / "data" / "postgresql.auto.conf").write_text("")
            server.stop(signal.SIGQUIT)
            assert temporary(await waiting)
            server.restart()
            await wait_until(lambda: _sends(town), deadline=30)
        town.forgive("a write failed")
        await town.goes_on()
        await town.settled()
        await town.sink.wait_until(lambda: sum(len(m.recipients) for m in town.sink.messages) >= 2)
        copies = sorted(to for m in town.sink.messages for to in m.recipients)
        # The second try is complete; the first is there for both recipients or for none.
        assert copies.count("first@dest.test") == copies.count("second@dest.test") in (1, 2)


async def test_changes_that_wait_for_a_locked_row_keep_no_mail_waiting(town: Town, postgres: Server) -> None:
    """As it is locked by somebody who changes aliases by hand and goes to lunch before the COMMIT."""
    url = postgres.database()
    town.api_key = ""  # this database has an account of its own
    async with town.engine(database={"url": url}), town.hand_on(url) as hand:
        await town.host("example.com", ALIASES)
        await town.goes_on()

        async def one_waits() -> bool:
            return bool(await hand.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        async with town.api() as api:

            def change() -> asyncio.Task[httpx.Response]:
                body = {"forward": "third@dest.test"}
                return asyncio.create_task(api.put("/v3/domains/example.com/aliases/pair", json=body))

            async with hand.transaction():
                await hand.execute("UPDATE aliases SET is_active = is_active WHERE pattern = 'pair'")
                changes = [change()]
                await wait_until(one_waits, what="a change to wait for the row")
                changes += [change(), change()]
                for _ in range(5):
                    assert (await town.send("ann@out.test", "well@example.com", MAIL)).code == 250
                await town.well.wait_for(6)
                assert not any(each.done() for each in changes)
            assert [(await each).status_code for each in changes] == [200] * 3
        await town.goes_on()
    postgres.drop(url)


async def _sends(town: Town) -> bool:
    return (await town.send("ann@out.test", "pair@example.com", MAIL)).code == 250


async def _status(api: httpx.AsyncClient, path: str, wanted: int) -> bool:
    return (await api.get(path)).status_code == wanted
