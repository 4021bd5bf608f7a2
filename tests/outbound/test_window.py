"""What a process counts as held in memory is what it holds; and a webhook's odd answer is no fault of ours."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from forwarder.mail.event import DeliveryKind
from tests.outbound.house import OtherQueue, house


async def test_a_message_claimed_in_several_turns_leaves_nothing_behind(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 1}) as rooms:
        rooms.sink.slowness = 0.2
        rooms.sink.play("mail", "slow")  # what is claimed later joins what waits
        await rooms.accept("first@dest.test")
        await rooms.accept(*(f"user{number}@dest.test" for number in range(600)), in_memory=False)
        await rooms.sink.wait_for(7)

        async def empty() -> bool:
            return await rooms.counts() == (0, 0) and not rooms.dispatcher.holding()

        await rooms.until(empty)
        assert rooms.dispatcher._window._volume == 0


async def test_a_small_content_is_read_once_however_many_sites_it_goes_to(tmp_path: Path) -> None:
    read: list[str] = []

    class Reading(OtherQueue):
        """Its contents are read one by one, and counted."""

        async def contents(self, _ids: object) -> dict[str, bytes]:
            return {}

        async def content(self, message_id: str) -> bytes | None:
            read.append(message_id)
            return await self.real.content(message_id)

    async with house(tmp_path, outbound={"concurrency": 1}, queue=Reading) as rooms:
        ids = await rooms.accept("bob@dest.test", "ann@origin.test", in_memory=False)
        for delivery in ids:
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(read) == 1
        await rooms.until(lambda: not rooms.dispatcher.holding())
        assert rooms.dispatcher._window._volume == 0


async def test_a_message_of_which_a_part_was_claimed_already_is_handed_over_to_that_part(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 1}) as rooms:
        rooms.sink.slowness = 0.5
        rooms.sink.play("mail", "slow")
        await rooms.accept("first@dest.test")
        message = rooms.message("mine@dest.test", "anybodys@dest.test")
        mine, anybodys = message.deliveries
        anybodys = replace(anybodys, leased=False, next_attempt_at=rooms.now())
        message = replace(message, deliveries=(mine, anybodys))
        hand_over = rooms.dispatcher.prepare(message)
        await rooms.queue.enqueue(message)
        rooms.dispatcher._news.set()
        await rooms.until(lambda: anybodys.id in rooms.dispatcher.holding())
        hand_over()
        arrived = (await rooms.sink.wait_for(2))[1]
        assert sorted(arrived.recipients) == [
            "anybodys@dest.test",
            "mine@dest.test",
        ]  # one message, one transaction

        async def empty() -> bool:
            return await rooms.counts() == (0, 0) and not rooms.dispatcher.holding()

        await rooms.until(empty)
        assert rooms.dispatcher._window._volume == 0


@pytest.mark.parametrize("location", [b"http://xn--a.x/", b"mailto:x", b"http://h:99999999/"])
async def test_a_redirect_to_what_is_no_url_is_trouble_of_the_receiver(
    tmp_path: Path, location: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with house(tmp_path, retry={"delays": ["10m"]}) as rooms:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            rooms.dns.set("hook.test", "A", ["127.0.0.1"])
            port = server.sockets[0].getsockname()[1]
            (delivery,) = await rooms.accept(f"http://hook.test:{port}/x", kind=DeliveryKind.WEBHOOK)
            events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
            assert events[-1][2].startswith("4.4.")  # not 4.3.0: our own trouble, with an error in the log
