"""The reply reader: the same whatever the segments, bounded, and never raising."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.mail.outcome import Fault
from forwarder.net.deadlines import HELD_UP
from forwarder.net.smtp_wire import LINE, REPLY, Wire, WireTrouble


async def heard(octets: bytes, cuts: list[int], expecting: int = 1000) -> tuple[list[tuple[int, str]], Fault]:
    """Every reply of a connection that said these octets, cut into segments, and then hung up; and the fault."""
    wire = Wire()
    wire.connection_made(asyncio.Transport())
    wire._expected = expecting
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    for start, end in itertools.pairwise(edges):
        wire.data_received(octets[start:end])
        assert len(wire._rest) <= LINE
        assert wire._size <= REPLY + LINE
    wire.connection_lost(None)
    with pytest.raises(WireTrouble) as raised:
        await wire.read(5000, 1)
    return [(reply.code, reply.text) for reply in raised.value.replies], raised.value.fault


pieces = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"250 ok\r\n",
            b"250-a\r\n",
            b"250\r\n",
            b"250 ok\n",
            b"550-x\r\n550 5.1.1 y\r\n",
            b"421 bye\r\n",
            b"\r\n",
            b"199 x\r\n",
            b"600 x\r\n",
            b"x" * LINE,
            b"250-" + b"y" * 900 + b"\r\n",
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, max_size=90).map(b"".join), st.lists(st.integers(min_value=0), max_size=8))
def test_segments_make_no_difference(octets: bytes, cuts: list[int]) -> None:
    with asyncio.Runner() as runner:
        assert runner.run(heard(octets, cuts)) == runner.run(heard(octets, []))


@pytest.mark.parametrize(
    ("octets", "replies", "fault"),
    [
        (b"250 ok\r\n", [(250, "ok")], Fault.LOST),
        (b"250\r\n", [(250, "")], Fault.LOST),
        (b"250 bare\n", [(250, "bare")], Fault.LOST),
        (b"250-a\r\n250-b\r\n250 c\r\n", [(250, "a b c")], Fault.LOST),
        (b"250-a\r\n250-b\r\n", [], Fault.LOST),
        (b"250 ok\r\n250-a\r\n550 b\r\n", [(250, "ok")], Fault.PROTOCOL),
        (b"199 x\r\n", [], Fault.PROTOCOL),
        (b"600 x\r\n", [], Fault.PROTOCOL),
        (b"250ok\r\n", [], Fault.PROTOCOL),
        (b"25 ok\r\n", [], Fault.PROTOCOL),
        (b"banana\r\n", [], Fault.PROTOCOL),
        (b"\r\n", [], Fault.PROTOCOL),
        (b"250 " + b"x" * (LINE - 6) + b"\r\n250 y\r\n", [(250, "x" * 1000), (250, "y")], Fault.LOST),
        (b"250 " + b"x" * (LINE - 5) + b"\r\n", [], Fault.PROTOCOL),
        (b"x" * (LINE + 1), [], Fault.PROTOCOL),
        (b"250-x\r\n" * (REPLY // 7) + b"250 x\r\n", [], Fault.PROTOCOL),
        # Each is new, and only together are they longer than one may be.
        (
            b"".join(b"250 %d%s\r\n" % (n, b"x" * 2000) for n in range(10, 50)),
            [(250, f"{n}{'x' * 998}") for n in range(10, 50)],
            Fault.LOST,
        ),
    ],
)
async def test_what_is_a_reply(octets: bytes, replies: list[tuple[int, str]], fault: Fault) -> None:
    got, trouble = await heard(octets, [])
    assert ([(code, text[:1000]) for code, text in got], trouble) == (replies, fault)


async def test_one_421_may_come_unasked_and_nothing_else() -> None:
    assert await heard(b"421 bye\r\n", [], expecting=0) == ([(421, "bye")], Fault.LOST)
    assert await heard(b"250 x\r\n", [], expecting=0) == ([], Fault.PROTOCOL)
    assert await heard(b"421 bye\r\n421 bye\r\n", [], expecting=0) == ([(421, "bye")], Fault.PROTOCOL)


class Clock:
    """The time of a wire, and the timers that it sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, ring: Callable[[], None]) -> asyncio.Handle:
        self.timers.append((when, ring))
        return asyncio.get_running_loop().call_soon(lambda: None)

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def come_to(self, now: float) -> None:
        self.now = now
        while due := [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove(due[0])
            due[0][1]()


async def test_only_a_whole_reply_gives_the_peer_more_time() -> None:
    wire, clock = Wire(), Clock()
    wire.connection_made(asyncio.Transport())
    wire._loop = clock  # type: ignore[assignment]
    wire._expected = 2
    reading = asyncio.create_task(wire.read(2, 5.0))
    await asyncio.sleep(0)  # it waits
    clock.come_to(4.0)
    wire.data_received(b"250 first\r\n25")
    for seconds in (6.0, 8.0):  # an octet now and then
        clock.come_to(seconds)
        assert not reading.done()
        wire.data_received(b"0")
    clock.come_to(9.0)
    await asyncio.sleep(0)
    assert reading.done()
    with pytest.raises(WireTrouble) as raised:
        await reading
    assert (raised.value.fault, [reply.text for reply in raised.value.replies]) == (Fault.TIMEOUT, ["first"])


async def test_a_reader_waits_on_while_the_peer_takes_what_was_written() -> None:
    wire = Wire()
    wire.connection_made(asyncio.Transport())
    wire.pause_writing()
    reading = asyncio.create_task(wire.read(1, 5))
    await asyncio.sleep(0)  # it waits
    wire.resume_writing()
    await asyncio.sleep(0)
    assert not reading.done()
    wire.data_received(b"250 ok\r\n")
    assert [reply.code for reply in await reading] == [250]


class Loop:
    """What a wire asks of its loop, at a time that the test tells."""

    def __init__(self) -> None:
        self.now = 100.0
        self.create_future = asyncio.get_running_loop().create_future
        self._rings: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self._rings.append((when, callback))
        return asyncio.get_running_loop().call_later(3600, callback)

    async def go_on(self, seconds: float) -> None:
        """So much later: what is due rings, nothing is read before."""
        self.now += seconds
        due = [callback for when, callback in self._rings if when <= self.now]
        self._rings = [ring for ring in self._rings if ring[0] > self.now]
        for callback in due:
            callback()
        await asyncio.sleep(0)


async def waiting(seconds: float) -> tuple[Wire, Loop, "asyncio.Task[list[Any]]"]:
    wire, loop = Wire(), Loop()
    wire._loop = loop  # type: ignore[assignment]
    wire.connection_made(asyncio.Transport())
    reading = asyncio.create_task(wire.read(1, seconds))
    await asyncio.sleep(0)
    return wire, loop, reading


async def test_what_was_said_while_the_process_was_stopped_is_heard() -> None:
    """It goes on long after the deadline, and timers ring first: to send again would make a second copy."""
    wire, loop, reading = await waiting(600)
    await loop.go_on(3600)
    assert not reading.done()
    wire.data_received(b"250 ok\r\n421 you are silent\r\n")
    assert [reply.code for reply in await reading] == [250]


async def test_silence_is_silence_after_a_stop_too() -> None:
    _, loop, reading = await waiting(600)
    await loop.go_on(3600)
    await loop.go_on(HELD_UP)
    with pytest.raises(WireTrouble) as raised:
        await reading
    assert raised.value.fault is Fault.TIMEOUT


@pytest.mark.parametrize("late", [0.0, HELD_UP])
async def test_a_deadline_that_rings_in_time_is_the_end(late: float) -> None:
    _, loop, reading = await waiting(600)
    await loop.go_on(600 + late)
    with pytest.raises(WireTrouble) as raised:
        await reading
    assert raised.value.fault is Fault.TIMEOUT
