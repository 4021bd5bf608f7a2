"""The buffer between a transport and the one who reads it."""

import asyncio

import pytest

from forwarder.inbound.inlet import HIGH_WATER, LOW_WATER, Expired, Gone, Inlet, Stopped, TooLong


class Valve:
    def __init__(self) -> None:
        self.held = False

    def pause_reading(self) -> None:
        self.held = True

    def resume_reading(self) -> None:
        self.held = False


@pytest.fixture
async def inlet():
    inlet = Inlet(asyncio.get_running_loop())
    yield inlet
    inlet.close()


async def test_lines_come_in_order_with_their_line_feeds(inlet):
    inlet.feed(b"EHLO a\r\nMAIL FROM:<>\r\nRC")
    assert await inlet.line(100, 1) == b"EHLO a\r\n"
    assert inlet.has_line()
    assert await inlet.line(100, 1) == b"MAIL FROM:<>\r\n"
    assert not inlet.has_line()
    asyncio.get_running_loop().call_soon(inlet.feed, b"PT\n")
    assert await inlet.line(100, 1) == b"RCPT\n"


async def test_a_line_at_its_limit_passes_and_one_above_does_not(inlet):
    inlet.feed(b"x" * 9 + b"\n" + b"x" * 10 + b"\nnext\n")
    assert await inlet.line(10, 1) == b"x" * 9 + b"\n"
    with pytest.raises(TooLong):
        await inlet.line(10, 1)
    assert await inlet.line(10, 1) == b"next\n"


async def test_an_endless_line_is_thrown_away_as_it_comes(inlet):
    reading = asyncio.ensure_future(inlet.line(100, 5))
    for _ in range(50):
        inlet.feed(b"x" * 10_000)
        await asyncio.sleep(0)
        assert len(inlet._buffer) <= 10_000
    inlet.feed(b"end\r\nNOOP\r\n")
    with pytest.raises(TooLong):
        await reading
    assert await inlet.line(100, 1) == b"NOOP\r\n"


async def test_what_came_before_the_end_is_still_read(inlet):
    inlet.feed(b"QUIT\r\nhalf a line")
    inlet.end()
    assert await inlet.line(100, 1) == b"QUIT\r\n"
    with pytest.raises(Gone):
        await inlet.line(100, 1)


async def test_a_line_that_trickles_in_does_not_move_its_deadline(inlet):
    reading = asyncio.ensure_future(inlet.line(1000, 0.1))
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not reading.done() and loop.time() - started < 2:
        inlet.feed(b"x")
        await asyncio.sleep(0.01)
    with pytest.raises(Expired):
        await reading
    assert loop.time() - started < 1


async def test_an_endless_line_is_over_in_time_however_fast_it_comes(inlet):
    reading = asyncio.ensure_future(inlet.line(100, 0.1))
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not reading.done() and loop.time() - started < 2:
        inlet.feed(b"x" * 1000)
        await asyncio.sleep(0)
    with pytest.raises(Expired):
        await reading
    assert loop.time() - started < 1


async def test_each_block_has_a_deadline_of_its_own(inlet):
    loop = asyncio.get_running_loop()
    for number in range(6):
        loop.call_later(0.06, inlet.feed, b"%d" % number)
        assert await inlet.block(0.2) == b"%d" % number
    with pytest.raises(Expired):
        await inlet.block(0.05)


async def test_a_shorter_deadline_after_a_longer_one_is_kept(inlet):
    inlet.feed(b"a\n")
    loop = asyncio.get_running_loop()
    loop.call_soon(inlet.feed, b"b\n")
    await inlet.line(10, 60)
    await inlet.line(10, 60)
    started = loop.time()
    with pytest.raises(Expired):
        await inlet.line(10, 0.05)
    assert loop.time() - started < 2


async def test_stop_reaches_who_waits_for_a_command_and_nobody_else(inlet):
    loop = asyncio.get_running_loop()
    loop.call_soon(inlet.stop)
    with pytest.raises(Stopped):
        await inlet.line(10, 5)
    with pytest.raises(Stopped):
        await inlet.line(10, 5)
    loop.call_later(0.01, inlet.feed, b"data")
    assert await inlet.block(5) == b"data"


async def test_reading_pauses_above_the_high_water_mark(inlet):
    valve = Valve()
    inlet.attach(valve)
    inlet.feed(b"x" * (HIGH_WATER - 1))
    assert not valve.held
    inlet.feed(b"yy")
    assert valve.held
    assert len(await inlet.block(1)) == HIGH_WATER + 1
    assert not valve.held


async def test_reading_resumes_when_lines_were_taken(inlet):
    valve = Valve()
    inlet.attach(valve)
    inlet.feed(b"NOOP\r\n" * (HIGH_WATER // 6 + 1))
    assert valve.held
    while len(inlet._buffer) > LOW_WATER:
        assert valve.held
        await inlet.line(10, 1)
    assert not valve.held


async def test_what_is_given_back_comes_next(inlet):
    inlet.feed(b"body rest")
    block = await inlet.block(1)
    inlet.give_back(block[5:] + b"\n")
    assert await inlet.line(10, 1) == b"rest\n"


async def test_discarded_bytes_are_gone(inlet):
    inlet.feed(b"MAIL FROM:<injected@example.net>\r\n")
    inlet.discard()
    inlet.feed(b"EHLO b\r\n")
    assert await inlet.line(100, 1) == b"EHLO b\r\n"
