"""When PostgreSQL is given a second transaction beside the first."""

import asyncio
from contextlib import suppress

import asyncpg
import pytest
from sqlalchemy import false, select
from sqlalchemy.exc import IntegrityError

from forwarder.store import postgresql
from forwarder.store.engine import Database
from forwarder.store.postgresql import LEAST, PostgresWriter
from forwarder.store.tables import accounts, sequences
from forwarder.store.writer import Item
from forwarder.tally import CHANGES, Tally
from tests.harness import wait_until


async def put(database: Database, name: str) -> None:
    await database.write(lambda conn: conn.execute(sequences.insert().values(name=name, value=0)) and None)


async def names(database: Database) -> set[str]:
    found = await database.read(lambda conn: conn.execute(select(sequences.c.name)).scalars().all())
    return set(found) - {"directory"}


async def test_what_waits_behind_a_lock_is_overtaken(postgres_url: str) -> None:
    database = await Database.open(postgres_url)
    await put(database, "locked")
    change = sequences.update().where(sequences.c.name == "locked").values(value=1)
    holder = await asyncpg.connect(postgres_url)

    async def one_waits() -> bool:
        return bool(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with holder.transaction():
        await holder.execute("UPDATE sequences SET value = 2 WHERE name = 'locked'")
        behind = asyncio.create_task(database.write(lambda conn: conn.execute(change) and None))
        await wait_until(one_waits, what="a change to wait for the lock")
        async with asyncio.timeout(5):
            await put(database, "free")
        assert not behind.done()
    await behind
    assert await names(database) == {"locked", "free"}
    await holder.close()
    await database.close()


async def test_reads_that_wait_for_a_lock_hold_up_neither_changes_nor_signs_of_life(
    postgres_url: str,
) -> None:
    database = await Database.open(postgres_url, pool_size=LEAST + 2)
    holder = await asyncpg.connect(postgres_url)

    async def three_wait() -> bool:
        return int(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")) >= 3

    async with holder.transaction():
        await holder.execute("LOCK TABLE accounts")
        reads = [
            asyncio.create_task(database.read(lambda conn: conn.execute(select(accounts.c.id)).all()))
            for _ in range(12)
        ]
        await wait_until(three_wait, what="reads to wait for the lock")
        async with asyncio.timeout(4):  # less than a connection is waited for
            await asyncio.gather(put(database, "a"), put(database, "b"))
            await database.change(lambda conn: conn.execute(sequences.delete()) and None)
            await database.write_aside(lambda conn: conn.execute(sequences.delete()) and None)
        assert not any(read.done() for read in reads)
    assert await asyncio.gather(*reads) == [[]] * 12
    await holder.close()
    await database.close()


async def test_a_change_that_waits_keeps_those_behind_it_waiting_and_nobody_else(
    postgres_url: str,
) -> None:
    """With as few connections as there may be."""
    database = await Database.open(postgres_url, pool_size=LEAST)
    await put(database, "locked")
    await put(database, "given-up")
    holder = await asyncpg.connect(postgres_url)

    def change(name: str) -> asyncio.Task[None]:
        query = sequences.update().where(sequences.c.name == name).values(value=1)
        return asyncio.create_task(database.change(lambda conn: conn.execute(query) and None))

    async def one_waits() -> bool:
        return bool(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with holder.transaction():
        await holder.execute("UPDATE sequences SET value = 2 WHERE name = 'locked'")
        first = change("locked")
        await wait_until(one_waits, what="a change to wait for the lock")
        given_up, last = change("given-up"), change("directory")
        await asyncio.sleep(0)
        given_up.cancel()  # before its turn: it is not made
        first.cancel()  # after it was sent: it is, and keeps its turn until it has ended
        async with asyncio.timeout(4):
            await asyncio.gather(put(database, "a"), put(database, "b"))
            await database.write_aside(lambda conn: conn.execute(sequences.delete().where(false())) and None)
            assert await names(database) == {"locked", "given-up", "a", "b"}
        assert not last.done()
    await last
    values = await database.read(lambda conn: conn.execute(select(sequences.c.name, sequences.c.value)).all())
    assert {row.name: row.value for row in values} == {
        "locked": 1,
        "given-up": 0,
        "directory": 1,
        "a": 0,
        "b": 0,
    }
    await holder.close()
    await database.close()


async def test_changes_of_the_directory_are_counted_with_the_others(store_url: str) -> None:
    tally = Tally()
    database = await Database.open(store_url, tally=tally)
    for name in ("a", "a"):
        row = sequences.insert().values(name=name, value=0)
        with suppress(IntegrityError):
            await database.change(lambda conn, row=row: conn.execute(row) and None)
    await database.close()
    assert dict(tally.sums(CHANGES)) == {("committed",): 1, ("failed",): 1}


async def test_while_all_lanes_are_at_work_nobody_looks_whether_one_should_join(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be looked at in each turn of the event loop, for as long as the database is slow."""
    monkeypatch.setattr(postgresql, "JOIN_AFTER", 0.0)
    join, looks = PostgresWriter._join, 0

    def counted(self: PostgresWriter) -> None:
        nonlocal looks
        looks += 1
        join(self)

    monkeypatch.setattr(PostgresWriter, "_join", counted)
    database = await Database.open(postgres_url)
    await put(database, "locked")
    change = sequences.update().where(sequences.c.name == "locked").values(value=1)
    holder = await asyncpg.connect(postgres_url)

    async def all_wait() -> bool:
        waiting = await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(waiting == len(behind))

    async with holder.transaction():
        await holder.execute("UPDATE sequences SET value = 2 WHERE name = 'locked'")
        behind: list[asyncio.Task[None]] = []
        for _ in range(postgresql.LANES):
            behind.append(asyncio.create_task(database.write(lambda conn: conn.execute(change) and None)))
            await wait_until(all_wait, what="a change to wait for the lock")
        late = asyncio.create_task(put(database, "late"))
        looks = 0
        for _ in range(100):
            await asyncio.sleep(0)
        looked = looks
    await asyncio.gather(*behind, late)
    assert await names(database) == {"locked", "late"}
    await holder.close()
    await database.close()
    assert looked <= 1  # by a timer that was set before


async def test_while_commits_are_quick_there_is_one_at_a_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "JOIN_AFTER", 60.0)
    transact = PostgresWriter._transact
    sizes: list[int] = []
    at_once = most = 0

    async def watched(self: PostgresWriter, part: list[Item]) -> list[object]:
        nonlocal at_once, most
        sizes.append(len(part))
        at_once += 1
        most = max(most, at_once)
        try:
            return await transact(self, part)
        finally:
            at_once -= 1

    monkeypatch.setattr(PostgresWriter, "_transact", watched)
    database = await Database.open(postgres_url)

    async def several(who: int) -> None:
        await asyncio.sleep(who / 1000)  # they come one by one, some while a commit is under way
        for turn in range(5):
            await put(database, f"{who}-{turn}")

    await asyncio.gather(*map(several, range(20)))
    assert len(await names(database)) == sum(sizes) == 100
    assert most == 1
    assert max(sizes) > 1  # what came while one committed went together
    await database.close()
