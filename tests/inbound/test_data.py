"""Reading DATA: where it ends, what is kept, and for how long."""

import asyncio
import itertools
import re
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.inbound import data
from forwarder.inbound.data import (
    LARGE,
    RATE_GRACE,
    RESTING,
    SLICE,
    STRIDE,
    Excess,
    Memory,
    Share,
    normalized,
    read_content,
    smuggles,
    unstuffed,
)
from forwarder.inbound.inlet import Expired, Gone, Inlet


@pytest.fixture
async def inlet():
    inlet = Inlet(asyncio.get_running_loop())
    yield inlet
    inlet.close()


async def read(inlet, *, limit=1000, min_rate=0, share=None, **more):
    share = share or Share(Memory(10**9))
    return await read_content(inlet, limit=limit, share=share, block_timeout=0.5, min_rate=min_rate, **more)


@pytest.mark.parametrize(
    ("octets", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"a\r\n..\r\n.\r\n", b"a\r\n..\r\n"),
        (b"Subject: x\r\n\r\nbody\r\n.\r\n", b"Subject: x\r\n\r\nbody\r\n"),
    ],
)
async def test_content_ends_at_the_lone_dot(inlet, octets, content):
    inlet.feed(octets + b"QUIT\r\n")
    assert await read(inlet) == content
    assert await inlet.line(100, 1) == b"QUIT\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7, 11])
async def test_blocks_may_be_cut_anywhere(inlet, step):
    stream = b"a\r\n.b\r\n\r\n..\r\nc\r.\r\nd\n.\ne\r\n.\r\nRSET\r\n"
    reading = asyncio.ensure_future(read(inlet))
    for start in range(0, len(stream), step):
        inlet.feed(stream[start : start + step])
        await asyncio.sleep(0)
    assert await reading == b"a\r\n.b\r\n\r\n..\r\nc\r.\r\nd\n.\ne\r\n"
    assert await inlet.line(100, 1) == b"RSET\r\n"


@pytest.mark.parametrize(
    "ending",
    [
        b"\n.\n",
        b"\r.\r",
        b"\r.\n",
        b"\n.\r",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
    ],
)
async def test_no_look_alike_ends_it(inlet, ending):
    first = b"Subject: one\r\n\r\nbody" + ending + b"MAIL FROM:<admin@victim.example>\r\nDATA\r\n"
    inlet.feed(first + b".\r\n")
    assert await read(inlet) == first
    assert smuggles(first)


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"x\n\nhello\n..sig\nend\n\r\n", b"x\r\n\r\nhello\r\n.sig\r\nend\r\n\r\n"),
        (b"..first\n...three\r\n..four\r", b".first\r\n..three\r\n.four\r\n"),
        (b"a\n.\nMAIL\n.\r\nb\r.\rc\r\n", b"a\r\n.\r\nMAIL\r\n.\r\nb\r\n.\r\nc\r\n"),
        (b"plain\r\n", b"plain\r\n"),
    ],
)
def test_whoever_ends_lines_with_lf_has_stuffed_their_dots_so(raw, content):
    assert normalized(raw) == content


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a"]), max_size=30).map(b"".join),
    st.integers(0, 9),
)
def test_slices_change_nothing(raw, octets):
    *lines, last = re.split(b"\r\n|\r|\n", raw)
    expected = b"".join((line if line == b"." else line.removeprefix(b".")) + b"\r\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SLICE", octets)
        assert normalized(raw) == expected + last.removeprefix(b".")


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\0", b".", b"a"]), max_size=12).map(b"".join))
def test_look_alikes_are_the_same_in_texts_of_any_size(raw):
    found = re.search(rb"(\r\n|\r|\n)\x00?\.\x00?(\r\n|\r|\n)", raw) is not None
    assert smuggles(raw) == smuggles(b"x" * SLICE + raw) == found


@pytest.mark.parametrize("octets", [b"\n", b"\r", b"\r\n", b"\r\n\0", b".", b".\0", b"x.\n"])
def test_look_alikes_are_soon_looked_for_whatever_the_text(octets):
    raw = octets * ((32 << 20) // len(octets))
    began = time.process_time()
    assert not smuggles(raw)
    assert time.process_time() - began < 0.35  # re would take a second for some, and nobody else were served


def test_a_stuffed_dot_is_no_look_alike():
    assert not smuggles(b"a\r\n..\r\nb\n")


@pytest.mark.parametrize("step", [7, 100, 5000])
@pytest.mark.parametrize(("size", "kept"), [(98, True), (99, True), (100, True), (101, False), (5000, False)])
async def test_more_than_the_limit_is_thrown_away_and_the_end_still_found(inlet, size, kept, step):
    content = b"x" * (size - 2) + b"\r\n"
    stream = content + b".\r\nNOOP\r\n"
    reading = asyncio.ensure_future(read(inlet, limit=100))
    for start in range(0, len(stream), step):
        inlet.feed(stream[start : start + step])
        await asyncio.sleep(0)
    assert await reading == (content if kept else Excess.SIZE)
    assert await inlet.line(100, 1) == b"NOOP\r\n"


async def test_messages_share_the_memory_of_the_process(inlet):
    memory = Memory(1000)
    first = Share(memory)
    inlet.feed(b"x" * 700 + b"\r\n.\r\n")
    assert isinstance(await read(inlet, share=first), bytes)
    second = Share(memory)
    inlet.feed(b"y" * 200)
    reading = asyncio.ensure_future(read(inlet, share=second))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert memory.taken == 905
    inlet.feed(b"y" * 200 + b"\r\n.\r\nNOOP\r\n")
    assert await reading is Excess.MEMORY
    assert await inlet.line(100, 1) == b"NOOP\r\n"
    second.release()
    assert memory.taken == 705
    first.release()
    assert memory.taken == 0
    inlet.feed(b"y" * 400 + b"\r\n.\r\n")
    assert isinstance(await read(inlet, share=Share(memory)), bytes)


class Reading:
    """A message that is read on a connection of its own."""

    def __init__(self, memory, now, limit=10**6):
        self.share = Share(memory)
        self.inlet = Inlet(asyncio.get_running_loop())
        self.task = asyncio.ensure_future(read(self.inlet, limit=limit, share=self.share, now=now))

    async def gets(self, octets):
        self.inlet.feed(octets)
        for _ in range(3):
            await asyncio.sleep(0)

    async def ends(self):
        await self.gets(b"\r\n.\r\n")
        result = await self.task
        self.share.release()
        self.inlet.close()
        return result


async def test_a_message_that_rests_keeps_out_no_other():
    now = 0.0
    memory = Memory(300_000)
    small, large, moving = (Reading(memory, lambda: now) for _ in range(3))
    await small.gets(b"s" * 50_000)
    await large.gets(b"l" * 200_000)
    now = RESTING - 1
    await moving.gets(b"m" * 40_000)
    early = Reading(memory, lambda: now)
    await early.gets(b"e" * 100_000)  # nobody has rested for so long as to give way
    assert await early.ends() is Excess.MEMORY
    now = RESTING
    await large.gets(b"l")  # an octet now and then is no movement
    late = Reading(memory, lambda: now)
    await late.gets(b"x" * 100_000)
    assert memory.taken == 190_000
    await large.gets(b"l" * 100_000)
    assert memory.taken == 190_000  # what comes of it still is thrown away
    assert await large.ends() is Excess.MEMORY
    assert [len(await each.ends()) for each in (small, moving, late)] == [50_002, 40_002, 100_002]
    assert memory.taken == 0
    assert not memory.reading


async def test_a_message_that_moves_gives_way_to_none():
    now = 0.0
    memory = Memory(300_000)
    steady = Reading(memory, lambda: now)
    for _ in range(4):
        await steady.gets(b"s" * STRIDE)
        now += RESTING - 1
    other = Reading(memory, lambda: now)
    await other.gets(b"o" * 100_000)
    assert await other.ends() is Excess.MEMORY
    assert len(await steady.ends()) == 4 * STRIDE + 2


async def test_a_message_that_is_stored_gives_way_to_none():
    now = 0.0
    memory = Memory(300_000)
    stored = Reading(memory, lambda: now)
    await stored.gets(b"s" * 250_000 + b"\r\n.\r\n")
    assert len(await stored.task) == 250_002
    assert not stored.share.blocks  # it lies in memory once
    now = 100.0
    other = Reading(memory, lambda: now)
    await other.gets(b"o" * 100_000)
    assert await other.ends() is Excess.MEMORY
    assert memory.taken == 250_005
    stored.share.release()
    stored.inlet.close()


@pytest.mark.parametrize("cut", range(1, 6))
async def test_a_large_message_ends_where_it_should(inlet, cut):
    lines = b"abcdefgh\r\n" * (LARGE // 10 + 1)
    reading = asyncio.ensure_future(read(inlet, limit=10**8))
    stream = lines + b".\r\nNOOP\r\n"
    places = [0, LARGE - 7, LARGE, len(lines) + 3 - cut, len(stream)]
    for start, end in itertools.pairwise(places):
        inlet.feed(stream[start:end])
        await asyncio.sleep(0)
    assert await reading == lines
    assert await inlet.line(100, 1) == b"NOOP\r\n"


async def test_a_large_message_is_never_held_twice(inlet):
    block = b"abcdefgh\r\n" * 10_000
    tracemalloc.start()
    try:
        reading = asyncio.ensure_future(read(inlet, limit=10**8))
        for _ in range(3 * LARGE // len(block)):
            inlet.feed(block)
            await asyncio.sleep(0)
        inlet.feed(b".\r\n")
        length = len(await reading)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < length * 1.5  # it grows by an eighth at a time; joined at the end it would be there twice


async def test_a_large_message_that_rests_gives_way_whole():
    now = 0.0
    memory = Memory(2 * LARGE)
    large = Reading(memory, lambda: now, limit=10**8)
    for _ in range(3):
        await large.gets(b"l" * (LARGE // 2))
    now = RESTING
    other = Reading(memory, lambda: now, limit=10**8)
    await other.gets(b"o" * LARGE)
    assert memory.taken == LARGE
    assert large.share.large is None
    assert await large.ends() is Excess.MEMORY
    assert len(await other.ends()) == LARGE + 2


async def test_a_message_may_be_the_one_that_gives_way():
    now = 0.0
    memory = Memory(100_000)
    only = Reading(memory, lambda: now)
    await only.gets(b"o" * 60_000)
    now = RESTING
    await only.gets(b"o" * 60_000)
    assert memory.taken == 0
    assert await only.ends() is Excess.MEMORY


async def test_octets_that_trickle_in_cost_no_more_than_they_are(inlet):
    text = b"0123456789" * 3000 + b"\r\n"
    reading = asyncio.ensure_future(read(inlet, limit=10**6))
    tracemalloc.start()
    try:
        for octet in text + b".\r\n":
            inlet.feed(bytes((octet,)))
            await asyncio.sleep(0)
        content = await reading
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content == text
    assert peak < 10 * len(text)


async def test_a_peer_that_leaves_in_the_middle_leaves_no_message(inlet):
    inlet.feed(b"half")
    inlet.end()
    with pytest.raises(Gone):
        await read(inlet)


async def test_silence_is_over_after_the_block_timeout(inlet):
    inlet.feed(b"half")
    with pytest.raises(Expired):
        await read_content(inlet, limit=100, share=Share(Memory(100)), block_timeout=0.02, min_rate=0)


@pytest.mark.parametrize(("per_second", "ends"), [(99, True), (101, False)])
async def test_the_minimum_rate_counts_after_a_grace(inlet, per_second, ends):
    now = 0.0
    reading = asyncio.ensure_future(read(inlet, limit=10**6, min_rate=100, now=lambda: now))
    while not reading.done() and now < 10_000:
        now += 10
        inlet.feed(b"x" * per_second * 10)
        await asyncio.sleep(0)
        if now < RATE_GRACE:
            assert not reading.done()
    if ends:
        with pytest.raises(Expired):
            await reading
    else:
        inlet.feed(b"\r\n.\r\n")
        await reading


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", b""),
        (b"..\r\n", b".\r\n"),
        (b".a\r\n..b\r\nc.\r\n", b"a\r\n.b\r\nc.\r\n"),
        (b"a\r\n..\r\n..\r\n...\r\n", b"a\r\n.\r\n.\r\n..\r\n"),
    ],
)
def test_one_leading_dot_of_a_line_is_taken_off(raw, text):
    assert unstuffed(raw) == text


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"\r\n.", b"x", b"\0", b"\r\n.\r\n"]),
        max_size=30,
    ),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_any_stream_cut_anywhere_ends_where_the_first_terminator_is(pieces, cuts):
    stream = b"".join(pieces) + b"\r\n.\r\nREST\r\n"
    expected, _, rest = (b"\r\n" + stream).partition(b"\r\n.\r\n")
    expected = (expected + b"\r\n")[2:]

    async def run():
        inlet = Inlet(asyncio.get_running_loop())
        reading = asyncio.ensure_future(read(inlet, limit=10_000))
        position, step = 0, 0
        while position < len(stream):
            size = cuts[step % len(cuts)]
            inlet.feed(stream[position : position + size])
            position, step = position + size, step + 1
            await asyncio.sleep(0)
        inlet.end()
        content = await reading
        left = bytes(inlet._buffer)
        inlet.close()
        return content, left

    assert asyncio.run(run()) == (expected, rest)
