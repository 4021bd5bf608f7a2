"""Every string over {CR, LF, dot, a, NUL} up to seven octets as DATA, against a model that reads an octet at a time.

The model is RFC 5321 4.1.1.4 and 4.5.2 word for word: text ends at CRLF.CRLF and nowhere else, and the first dot of a
line that has more than it is taken out. What follows the end must come out as the next command, to the octet.
"""

import asyncio
import random
from collections.abc import Iterator
from itertools import product

from forwarder.inbound.data import Memory, Share, read_content, smuggles, unstuffed
from forwarder.inbound.inlet import Inlet
from forwarder.mail.content import has_bare_newline
from tests.harness import House

ALPHABET = (b"\r", b"\n", b".", b"a", b"\0")
LONGEST = 7
END = b"\r\n.\r\n"
NEXT = b"NEXT\r\n"


def strings(longest: int) -> Iterator[bytes]:
    for length in range(1, longest + 1):
        for letters in product(ALPHABET, repeat=length):
            yield b"".join(letters)


def model(stream: bytes) -> tuple[bytes, bytes]:
    """(the text without its stuffing, what comes after the end) of a stream that holds an end."""
    text = bytearray()
    place = 0
    while True:  # at the beginning of a line
        if stream[place : place + 3] == b".\r\n":
            return bytes(text), stream[place + 3 :]
        if stream[place : place + 1] == b".":
            place += 1
        while stream[place : place + 2] != b"\r\n":
            text.append(stream[place])
            place += 1
        text += b"\r\n"
        place += 2


def has_bare(text: bytes) -> bool:
    """Whether a CR or an LF stands alone."""
    for place, octet in enumerate(text):
        if octet == 13 and text[place + 1 : place + 2] != b"\n":
            return True
        if octet == 10 and text[place - 1 : place] != b"\r":
            return True
    return False


async def _read(inlet: Inlet) -> bytes:
    raw = await read_content(inlet, limit=1000, share=Share(Memory(10**6)), block_timeout=5, min_rate=0)
    assert isinstance(raw, bytes)
    return raw


async def test_all_strings_in_one_block() -> None:
    inlet = Inlet(asyncio.get_running_loop())
    count = 0
    for string in strings(LONGEST):
        count += 1
        stream = string + END + NEXT
        inlet.feed(stream)
        raw = await _read(inlet)
        rest = bytes(await inlet.block(5))
        text, after = model(stream)
        assert (unstuffed(raw), rest) == (text, after), string
        assert has_bare_newline(text) == has_bare(text), string
        if smuggles(raw):  # only ever said of what is refused anyway, and of dots between NULs
            assert has_bare(raw) or b"\0" in raw, string
    inlet.close()
    assert count == 97_655


async def test_strings_octet_by_octet() -> None:
    inlet = Inlet(asyncio.get_running_loop())
    for string in strings(4):
        stream = string + END + NEXT
        reading = asyncio.ensure_future(_read(inlet))
        for octet in stream:
            inlet.feed(bytes([octet]))
            await asyncio.sleep(0)
        raw = await reading
        text, after = model(stream)
        assert unstuffed(raw) == text, string
        assert bytes(await inlet.block(5)) == after, string
    inlet.close()


async def test_a_sample_through_a_real_engine(house: House) -> None:
    """Refused exactly when a CR or LF stands alone; else the destination has the text to the octet, once."""
    head = b"From: ann@out.test\r\nSubject: fuzz\r\n\r\n"
    chance = random.Random(20261121)
    sample = chance.sample(list(strings(LONGEST)), 150)
    expected = []
    async with house.engine(mx={"errors": 0, "junk_commands": 0, "connections_per_client": 0}):
        await house.host("example.com", {"*": "inbox@dest.test"})
        for string in sample:
            text, _ = model(head + b"x" + string + END)
            async with house.client() as client:
                await client.say(b"EHLO out.test\r\n")
                await client.say(b"MAIL FROM:<ann@out.test>\r\n")
                await client.say(b"RCPT TO:<info@example.com>\r\n")
                assert (await client.say(b"DATA\r\n")).code == 354
                answer = await client.say(head + b"x" + string + END)
                if has_bare(text):
                    assert answer.code in (521, 550), (string, answer)
                else:
                    assert answer.code == 250, (string, answer)
                    expected.append(text.removeprefix(head))
        await house.sink.wait_for(len(expected))
    bodies = [received.content.partition(b"\r\n\r\n")[2] for received in house.sink.messages]
    assert sorted(bodies) == sorted(expected)
