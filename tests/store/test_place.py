"""Somebody removes or replaces SQLite's files while they are open: nothing is taken that would be lost with them."""

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from forwarder.store import place
from forwarder.store.faults import explain
from forwarder.store.trouble import Misplaced, StoreUnavailable
from tests.store.conftest import Stage, Worker


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "MEANWHILE", 0.0)


@pytest.fixture
def file(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
async def stage(sqlite_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as opened:
        yield Stage(sqlite_url, opened)


async def stored(worker: Worker, stage: Stage) -> str:
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    return message.id


def messages_in(file: Path) -> set[str]:
    """What a new start would find; the files are looked at in a copy, since looking changes them."""
    copy = file.with_name("copy.db")
    for suffix in ("", "-wal"):
        if Path(f"{file}{suffix}").exists():
            shutil.copy(f"{file}{suffix}", f"{copy}{suffix}")
    with closing(sqlite3.connect(copy)) as found:
        return {row[0] for row in found.execute("SELECT id FROM messages")}


def octets(file: Path) -> int | None:
    """None where there is no such file."""
    return file.stat().st_size if file.exists() else None


async def test_a_log_that_is_removed_is_copied_to_the_file_and_nothing_more_is_taken(
    stage: Stage, file: Path
) -> None:
    worker = await stage.worker()
    kept = {await stored(worker, stage) for _ in range(3)}
    os.unlink(f"{file}-wal")
    assert not kept & messages_in(file)
    for _ in range(2):
        with pytest.raises(Misplaced) as refused:
            await stored(worker, stage)
        assert kept == messages_in(file)
    assert "-wal" in explain(refused.value).text
    with pytest.raises(StoreUnavailable):
        await worker.database.ready()


async def test_after_a_start_anew_all_is_well(stage: Stage, file: Path) -> None:
    worker = await stage.worker()
    kept = await stored(worker, stage)
    os.unlink(f"{file}-wal")
    with pytest.raises(Misplaced):
        await stored(worker, stage)
    await worker.database.close()
    again = await stage.worker("b")
    more = await stored(again, stage)
    assert messages_in(file) == {kept, more}
    await again.database.ready()


async def test_a_log_that_another_program_makes_in_its_place_is_not_taken_for_it(
    stage: Stage, file: Path
) -> None:
    worker = await stage.worker()
    kept = await stored(worker, stage)
    os.rename(f"{file}-wal", f"{file}-old")
    shutil.copy(os.devnull, f"{file}-wal")
    with pytest.raises(Misplaced):
        await stored(worker, stage)
    assert messages_in(file) == {kept}


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_removed_or_replaced_is_not_written_any_more(
    stage: Stage, file: Path, replaced: bool
) -> None:
    worker = await stage.worker()
    await stored(worker, stage)
    os.unlink(file)
    if replaced:
        shutil.copy(os.devnull, file)
    for _ in range(2):
        with pytest.raises(Misplaced):
            await stored(worker, stage)
    assert octets(file) == (0 if replaced else None)  # no new one is made in its place
    with pytest.raises(StoreUnavailable):
        await worker.database.ready()


async def test_nor_by_a_new_connection(stage: Stage, file: Path) -> None:
    """The writer has none after trouble, and before its first change."""
    database = await stage.database()
    os.unlink(file)
    with pytest.raises(Misplaced):
        await database.write(lambda conn: None)
    assert octets(file) is None


async def test_a_log_that_comes_and_goes_with_other_programs_is_none_of_it(stage: Stage, file: Path) -> None:
    """Whoever leaves the file last removes it."""
    for _ in range(3):
        worker = await stage.worker()
        with closing(sqlite3.connect(file)) as other:
            other.execute("SELECT count(*) FROM messages").fetchall()
        await stored(worker, stage)
        await stored(worker, stage)
        await worker.database.close()
        assert octets(Path(f"{file}-wal")) is None
