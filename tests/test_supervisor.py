"""Several worker processes on one machine: they share the ports, and one that dies is replaced."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import EngineProcess, House, wait_until
from tests.peers.client import Closed

MAIL = b"From: Ann <ann@out.test>\r\nSubject: hello\r\n\r\nhello\r\n"


@pytest.fixture
async def pair(house: House, database_url: str) -> AsyncIterator[EngineProcess]:
    """An engine of two workers, hosting example.com."""
    async with EngineProcess(house, workers={"processes": 2}, database={"url": database_url}) as process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        yield process


def children(process: EngineProcess) -> list[int]:
    pid = process.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_two_workers_share_the_work(pair: EngineProcess) -> None:
    house = pair.house
    assert len(children(pair)) == 2
    await asyncio.gather(
        *(house.send("ann@out.test", f"r{number}@example.com", MAIL) for number in range(20))
    )
    await house.sink.wait_for(20)
    await wait_until(house.queue_is_empty)
    assert len(house.sink.messages) == 20
    assert await pair.end() == 0


async def test_a_worker_that_dies_is_replaced_and_its_mail_goes_on(pair: EngineProcess) -> None:
    house = pair.house
    house.sink.play("dot", "hang")  # nothing is delivered before the death
    for number in range(10):
        assert (await house.send("ann@out.test", f"r{number}@example.com", MAIL)).code == 250
    first, second = children(pair)
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    await wait_until(lambda: len([pid for pid in children(pair) if pid not in (first, second)]) == 2)
    house.sink.behave()
    received = len(house.sink.messages)

    async def serves() -> bool:
        try:
            return (await house.send("ann@out.test", "late@example.com", MAIL)).code == 250
        except (OSError, Closed):
            return False

    await wait_until(serves)
    await house.sink.wait_for(received + 11)
    await wait_until(house.queue_is_empty)
    assert "a worker died" in pair.log()
    assert await pair.end() == 0


async def test_workers_leave_when_their_supervisor_is_killed(pair: EngineProcess) -> None:
    workers = children(pair)
    await pair.house.database.close()
    pair.process.kill()
    await pair.process.wait()
    await pair.start()  # waits for the lock, which the orphans hold until they are gone
    assert not any(alive(pid) for pid in workers)
    answer = await pair.house.send("ann@out.test", "richard@example.com", MAIL)
    assert answer.code == 250


async def test_sighup_reaches_every_worker(pair: EngineProcess) -> None:
    pair.process.send_signal(signal.SIGHUP)
    await wait_until(lambda: pair.log().count("the configuration is unchanged") == 2)
