"""The life of a delivery on each database we support."""

import asyncio
from datetime import timedelta
from pathlib import Path

from tests.outbound.house import house

# A host that a busy machine lets answer late is asked again, and gets a second copy.
PATIENT = {"command_timeout": "30s", "dot_timeout": "30s"}


async def test_delivered_deferred_and_given_up(tmp_path: Path, database_url: str) -> None:
    async with house(tmp_path, url=database_url, retry={"delays": ["100ms"]}) as rooms:
        good, later, bad = await rooms.accept(
            "good@dest.test", "450-at-rcpt-1x@dest.test", "550-at-rcpt@dest.test"
        )
        await rooms.until_statuses(good, "QUEUED", "DELIVERED")
        await rooms.until_statuses(bad, "QUEUED", "HARD-BOUNCE")
        await rooms.until_statuses(later, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        (report,) = await rooms.origin.wait_for(1)
        assert b"\r\nStatus: 5." in report.content
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert await rooms.counts() == (0, 0)


async def test_many_at_once_arrive_once_each(tmp_path: Path, database_url: str) -> None:
    async with house(tmp_path, url=database_url, outbound=PATIENT) as rooms:
        await asyncio.gather(
            *(rooms.accept(f"user{number}@dest.test", in_memory=number % 2 == 0) for number in range(200))
        )
        await rooms.sink.wait_for(200)
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert len(rooms.sink.messages) == len({m.recipients for m in rooms.sink.messages}) == 200
        assert await rooms.counts() == (0, 0)


async def test_what_a_drain_gives_back_another_worker_delivers(tmp_path: Path, database_url: str) -> None:
    async with house(tmp_path, url=database_url, outbound={"concurrency_per_site": 1}) as first:
        first.sink.slowness = 0.1
        first.sink.play("mail", "slow")
        for number in range(10):
            await first.accept(f"user{number}@dest.test")
        await first.dispatcher.drain(timedelta(seconds=5))
        first.sink.behave()
        delivered = {m.recipients for m in first.sink.messages}
        assert len(delivered) < 10
        async with house(tmp_path / "second", url=database_url) as second:
            second.dns.mail_host("dest.test", second.sink.host)
            await second.sink.wait_for(10 - len(delivered))
            await second.until(lambda: second.dispatcher.load().leased == 0)
            taken = {m.recipients for m in second.sink.messages}
            assert not taken & delivered
            assert await second.counts() == (0, 0)


async def test_two_workers_share_a_queue_and_send_nothing_twice(tmp_path: Path, database_url: str) -> None:
    async with (
        house(tmp_path, url=database_url, outbound=PATIENT, start=False) as first,
        house(tmp_path / "second", url=database_url, outbound=PATIENT, start=False) as second,
    ):
        await asyncio.gather(*(first.accept(f"user{n}@dest.test", in_memory=False) for n in range(300)))
        await first.start()
        await second.start()
        await first.until(lambda: _empty(first))
        everything = [m.recipients for m in first.sink.messages + second.sink.messages]
        assert len(everything) == len(set(everything)) == 300


async def _empty(rooms) -> bool:  # type: ignore[no-untyped-def]
    return await rooms.counts() == (0, 0)
