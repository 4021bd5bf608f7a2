"""DATA: the octets between 354 and CRLF.CRLF, read in blocks.

aiosmtpd reads a line at a time, 23 ms of CPU for 1 MiB; here each block the transport hands over is searched for the
terminator once, blocks are joined once, and dot-stuffing is undone by one replace, and only when there is any. What
gets ``LARGE`` is joined as it comes: the C library grows a block of that size without copying it, so there is never a
second copy, nor are its blocks left over in the heaps once they are freed.

Promises: nothing but CRLF.CRLF ends the message (RFC 5321 4.1.1.4), so nothing that follows a look-alike is taken for
a command; what exceeds the size limit is read and thrown away, so that the refusal comes after the dot and the
dialogue stays in step; a peer that sends steadily may take as long as it needs, one that does not reach the minimum
rate is given up (``Expired``).

Limits: up to twice the size of a message below ``LARGE`` is held for the moment of joining its blocks. All the contents
being read and stored in one process share a ``Memory``; what does not fit is read, thrown away, and refused for now
(452). So is a message that rests, where there is no room for another: else somebody who sends most of a few large
messages, and then an octet now and then, would keep out everybody's mail for hours.
"""

import io
import re
import time
from collections.abc import Callable
from enum import Enum

from forwarder.inbound.inlet import Expired, Inlet
from forwarder.mail.content import normalize_newlines
from forwarder.mail.scan import expression, find_dot, literally

END = b"\r\n.\r\n"
SMALL_BLOCK = 4096  # octets
SLICE = 64 * 1024  # octets, of which newlines are normalised at once
LARGE = 4 * 1024 * 1024  # octets; what is larger than 2 MiB is mapped (``allocator``)
RESTING = 10.0  # seconds: a message rests that brings less than a stride in so many
STRIDE = 64 * 1024  # octets
RATE_GRACE = 60.0  # seconds before the minimum rate counts: TCP starts slowly, short messages do not matter

_find_end = literally(END)
_STUFFED = re.compile(rb"(\A|\r\n)\.(?!\r\n)")
_find_newline = expression(rb"[\r\n]")
# A lone dot between line ends of which one at least is not CRLF: somebody's server takes it for the end of DATA.
_find_look_alike = expression(rb"[\r\n]\x00?\.\x00?[\r\n]")


class Excess(Enum):
    """Why a content was thrown away while it was read."""

    SIZE = "more than the limit"
    MEMORY = "too much mail at once in this process"


class Memory:
    """How many octets of contents a process may hold while they are read and stored."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.reading: set[Share] = set()

    def make_room(self, octets: int, now: float) -> bool:
        """Whether so many more fit in; for them messages that rest are thrown away, the largest first."""
        if self.taken + octets <= self.limit:
            return True
        resting = [share for share in self.reading if now - share.moved_at >= RESTING]
        for share in sorted(resting, key=lambda share: share.taken, reverse=True):
            share.throw_away()
            if self.taken + octets <= self.limit:
                return True
        return False


class Share:
    """What one message takes of the memory; to be released when it is stored."""

    __slots__ = ("_memory", "_stride", "blocks", "large", "moved_at", "taken", "thrown_away")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._stride = 0  # what it had at ``moved_at``
        self.blocks: list[bytearray] = []  # while it is read
        self.large: io.BytesIO | None = None  # instead of them, from ``LARGE`` octets on
        self.taken = 0
        self.moved_at = 0.0
        self.thrown_away = False

    def begin(self, now: float) -> None:
        """Its blocks are read from now on, and may be thrown away."""
        self.moved_at = now
        self._memory.reading.add(self)

    def grow(self, octets: int, now: float) -> bool:
        """Take more; False: there is no room, and nothing more is taken."""
        if not self._memory.make_room(octets, now) or self.thrown_away:
            return False
        self._memory.taken += octets
        self.taken += octets
        if self.taken - self._stride >= STRIDE:
            self._stride, self.moved_at = self.taken, now
        return True

    def keep(self, block: bytearray) -> None:
        """Put a block behind what was read before it."""
        if self.large is not None:
            self.large.write(block)
        elif self.taken >= LARGE:
            self.large = io.BytesIO()
            self.large.write(b"".join((*self.blocks, block)))  # in one: it would grow in a heap, by copying
            self.blocks.clear()
        elif len(block) < SMALL_BLOCK and self.blocks:
            self.blocks[-1] += block  # an object each would make 25 MiB that trickle in two gigabytes
        else:
            self.blocks.append(block)

    def joined(self, length: int) -> bytes:
        """The first ``length`` octets of what was read: without the terminator and what came behind it."""
        if self.large is None:
            return _joined(self.blocks, length)
        self.large.truncate(length)
        return self.large.getvalue()  # its own buffer, not a copy

    def throw_away(self) -> None:
        """Hold nothing any more, because others need the room."""
        self.thrown_away = True
        self.release()

    def end(self) -> None:
        """It is read, and nobody's to throw away; its blocks are joined."""
        self._memory.reading.discard(self)
        self.blocks.clear()
        self.large = None

    def release(self) -> None:
        """Hold nothing any more; harmless when repeated."""
        self.end()
        self._memory.taken -= self.taken
        self.taken = 0


async def read_content(
    inlet: Inlet,
    *,
    limit: int,
    share: Share,
    block_timeout: float,
    min_rate: int,
    now: Callable[[], float] = time.monotonic,
) -> bytes | Excess:
    """What came before CRLF.CRLF, still dot-stuffed, or why nothing was kept of it.

    Raises ``Expired`` when no block came in time or the rate is too low, ``Gone`` when the peer went away.
    """
    excess: Excess | None = None
    total = 0
    tail = b"\r\n"  # the line before the first: a dot at once ends an empty message
    started = now()
    share.begin(started)
    while True:
        block = await inlet.block(block_timeout)
        arrived = now()
        end = _end(tail, block)
        length = total + (len(block) if end is None else end + 2)  # the CRLF before the dot is the message's
        if share.thrown_away:
            excess = excess or Excess.MEMORY
        if excess is None:
            if length - (0 if end is not None else len(END)) > limit:
                excess = Excess.SIZE
            elif not share.grow(len(block), arrived):
                excess = Excess.MEMORY
            share.keep(block)
        if excess is not None:
            share.release()  # keep reading, hold nothing
        if end is not None:
            rest = block[end + len(END) :]
            if rest:
                inlet.give_back(rest)
            content = excess or share.joined(length)
            share.end()
            return content
        tail = bytes((tail + block[-len(END) :])[-(len(END) - 1) :])
        total = length
        elapsed = arrived - started
        if elapsed > RATE_GRACE and total < min_rate * (elapsed - RATE_GRACE):
            raise Expired


def unstuffed(raw: bytes) -> bytes:
    """RFC 5321 4.5.2: the first dot of a line that begins with one is not part of the text."""
    if raw.startswith(b"."):
        raw = raw[1:]
    if find_dot(raw) >= 0:
        raw = raw.replace(b"\r\n.", b"\r\n")
    return raw


def normalized(raw: bytes) -> bytes:
    """As ``unstuffed``, of text in which a CR or LF alone ends a line too; it comes with CRLF.

    A dot alone stays: nobody who stuffs sends one, and nothing of a message is to vanish. It is done in slices of whole
    lines: all at once it would keep the interpreter for a second and a half, from whatever thread.
    """
    slices, start = [], 0
    while start < len(raw):
        newline = _find_newline(raw, start + SLICE)
        end = len(raw) if newline < 0 else newline + (2 if raw.startswith(b"\r\n", newline) else 1)
        slices.append(_STUFFED.sub(rb"\1", normalize_newlines(raw[start:end])))
        start = end
    return b"".join(slices)


def smuggles(raw: bytes) -> bool:
    """Whether what was read, still dot-stuffed, holds a look-alike of the end of DATA."""
    return _find_look_alike(raw) >= 0


def _end(tail: bytes, block: bytearray) -> int | None:
    """Where the terminator begins, counted from the block's first octet: -4 when it began in what came before."""
    straddling = (tail + block[: len(END) - 1]).find(END)
    if straddling >= 0:
        return straddling - len(tail)
    inside = _find_end(block)
    return None if inside < 0 else inside


def _joined(blocks: list[bytearray], length: int) -> bytes:
    """The first ``length`` octets of the blocks: without the terminator and what came behind it."""
    surplus = sum(map(len, blocks)) - length
    while surplus > 0:
        last = blocks[-1]
        if len(last) <= surplus:
            surplus -= len(last)
            blocks.pop()
        else:
            del last[len(last) - surplus :]
            surplus = 0
    if len(blocks) == 1:
        return bytes(blocks[0])
    return b"".join(blocks)
