"""A disk that mail has filled: what is queued can be settled, and there is room for new mail afterwards."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from forwarder.store import room
from forwarder.store.records import NewMessage
from forwarder.store.trouble import StoreFull
from tests.store.conftest import Stage, Worker, as_delivery, delivered, hard

MIB = 1024 * 1024


class SmallDisk:
    """As large as ``size``; the store's file and its log stand on it, and what ``others`` put there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.size = 48 * MIB
        self.others = 0

    @property
    def free(self) -> int:
        files = (self.file, Path(f"{self.file}-wal"))
        return self.size - self.others - sum(each.stat().st_size for each in files if each.exists())

    @property
    def logged(self) -> int:
        return Path(f"{self.file}-wal").stat().st_size

    @property
    def owed(self) -> int:
        """Octets by which the file gets longer when the log is copied to it."""
        with closing(sqlite3.connect(self.file)) as other:
            pages, size = (
                other.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
        return int(pages * size) - self.file.stat().st_size


@pytest.fixture
def disk(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    small = SmallDisk(Path(sqlite_url.removeprefix("sqlite:///")))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=small.free, f_frsize=1))
    return small


@pytest.fixture
async def worker(sqlite_url: str, disk: SmallDisk) -> AsyncIterator[Worker]:
    async with AsyncExitStack() as opened:
        stage = Stage(sqlite_url, opened)
        worker = await stage.worker()
        worker.stage = stage  # type: ignore[attr-defined]
        yield worker


def large(worker: Worker, octets: int = MIB) -> NewMessage:
    stage: Stage = worker.stage  # type: ignore[attr-defined]
    return stage.message(leased=True, content=b"x" * octets)


async def backlog(worker: Worker) -> list[NewMessage]:
    """As many messages as the store takes."""
    stored: list[NewMessage] = []
    with suppress(StoreFull):
        while len(stored) < 100:
            message = large(worker)
            await worker.queue.enqueue(message)
            stored.append(message)
    return stored


async def test_a_backlog_stops_while_what_stands_in_the_log_can_still_be_copied(
    worker: Worker, disk: SmallDisk
) -> None:
    stored = await backlog(worker)
    assert 30 < len(stored) < 48, "of 48 MiB, less what is kept and the log of the last messages"
    assert disk.free >= disk.owed + room.RESERVE


async def test_messages_that_come_together_are_given_room_together(worker: Worker, disk: SmallDisk) -> None:
    coming = [worker.queue.enqueue(large(worker)) for _ in range(60)]
    ended = await asyncio.gather(*coming, return_exceptions=True)
    assert {type(each) for each in ended} == {type(None), StoreFull}
    assert disk.free >= disk.owed + room.RESERVE


async def test_a_backlog_that_filled_the_disk_is_settled_and_leaves_room(
    worker: Worker, disk: SmallDisk
) -> None:
    stored = await backlog(worker)
    for message in stored:
        assert await worker.queue.settle(delivered(as_delivery(message)))
        assert disk.free >= disk.owed
    assert await worker.database.spare() >= (len(stored) - 1) * MIB
    for _ in stored:  # as many as before: the file is as long as it was
        await worker.queue.enqueue(large(worker))


async def test_what_ends_a_delivery_is_written_while_there_is_any_room(
    worker: Worker, disk: SmallDisk
) -> None:
    message = large(worker)
    await worker.queue.enqueue(message)
    disk.others = disk.free
    with pytest.raises(StoreFull):
        await worker.queue.enqueue(large(worker, 100))
    report = large(worker, 10_000)
    assert await worker.queue.settle(hard(as_delivery(message), report))
    disk.others = 0
    await worker.queue.enqueue(large(worker))


async def test_a_log_that_the_disk_has_no_room_for_is_left_where_it_is(
    worker: Worker, disk: SmallDisk
) -> None:
    """To copy what fits of it would fill the disk, and nothing could be settled."""
    stored = [large(worker) for _ in range(8)]
    for message in stored:
        await worker.queue.enqueue(message)
    free = disk.owed // 2
    disk.others = disk.free - free
    with pytest.raises(StoreFull):
        await worker.queue.enqueue(large(worker))
    assert await worker.queue.settle(delivered(as_delivery(stored[0])))
    assert free - MIB < disk.free < disk.owed, "only the settlement was written"
    disk.others = 0
    await worker.queue.enqueue(large(worker))


async def test_nobody_waits_for_a_reader_of_the_log(worker: Worker, disk: SmallDisk) -> None:
    """A backup reads for minutes: the log cannot be cut off, and what has room is written all the same."""
    with closing(sqlite3.connect(disk.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        stored = await backlog(worker)
        assert await worker.queue.settle(delivered(as_delivery(stored[0])))
        assert disk.logged > len(stored) * MIB
        reader.execute("ROLLBACK")
    pragma = "PRAGMA busy_timeout"
    assert await worker.database.write(lambda conn: conn.exec_driver_sql(pragma).scalar()) == 5000
