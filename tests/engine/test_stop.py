"""The end of an engine: what is under way ends well, nothing is lost, nothing is sent twice."""

import asyncio
import time
from collections import Counter
from datetime import timedelta

from tests.engine.town import MAIL, Town
from tests.peers.client import Client, Closed


async def test_everything_at_once_when_it_stops(town: Town) -> None:
    """An idle session, a message half said, deliveries on the wire: each has its proper end."""
    town.sink.slowness = 0.4
    town.sink.play("dot", "slow")
    async with town.engine():
        engine, port = town.running, town.mx_port
        assert engine is not None
        for number in range(20):
            answer = await town.send("ann@out.test", "info@example.com", b"Subject: %d\r\n\r\nx\r\n" % number)
            assert answer.code == 250
        idle, half = town.client(), town.client()
        await idle.open()
        await half.open()
        await half.ehlo()
        await half.say(b"MAIL FROM:<ann@out.test>\r\n")
        await half.say(b"RCPT TO:<info@example.com>\r\n")
        assert (await half.say(b"DATA\r\n")).code == 354
        await half.send(b"Subject: half\r\n\r\nfirst\r\n")
        began = time.monotonic()
        stopping = asyncio.create_task(engine.stop(grace=timedelta(seconds=10)))
        assert str(await idle.read()).startswith("421 4.3.2")
        assert await idle.closed()
        assert await turned_away(port)
        assert not stopping.done()
        answer = await half.say(b"second\r\n.\r\n")
        assert answer.code == 250, answer
        assert (await half.read()).code == 421
        await stopping
        assert time.monotonic() - began < 10
        await idle.close()
        await half.close()
    assert town.errors == []
    town.sink.behave()
    async with town.engine():
        await town.sink.wait_for(21)
        await town.goes_on()
        await town.settled()
    subjects = Counter(message.content.rpartition(b"Subject: ")[2] for message in town.sink.messages)
    assert len(subjects) == 21
    assert set(subjects.values()) == {1}


async def turned_away(port: int) -> bool:
    """Nobody listens any more, or says so."""
    try:
        async with Client("127.0.0.1", port) as late:
            return str(late.greeting).startswith("421 4.3.2")
    except (OSError, Closed):
        return True


async def test_an_idle_engine_ends_within_seconds(town: Town) -> None:
    async with town.engine():
        clients = [town.client() for _ in range(20)]
        for client in clients:
            await client.open()
        began = time.monotonic()
        assert town.running is not None
        await town.running.stop()
        assert time.monotonic() - began < 5
        for client in clients:
            assert (await client.read()).code == 421
            await client.close()
    assert town.errors == []


async def test_a_destination_that_hangs_does_not_hold_up_the_end(town: Town) -> None:
    async with town.engine():
        town.sink.play("dot", "hang")
        assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await town.sink.wait_for(1)
        began = time.monotonic()
        assert town.running is not None
        await town.running.stop(grace=timedelta(seconds=1))
        assert time.monotonic() - began < 6
    assert town.errors == []
    town.sink.behave()
    async with town.engine():
        # Whether the first copy arrived cannot be known (RFC 1047): it is sent again, and the log says why.
        await town.sink.wait_for(2)
        await town.goes_on()
        await town.settled()
        assert any("delivery_unknown" in text for _, _, text in await town.events("example.com"))
