"""DATA: the octets between 354 and CRLF.CRLF, read in blocks.

aiosmtpd reads a line at a time, 23 ms of CPU for 1 MiB; here each block the transport hands over is searched for the
terminator once, blocks are joined once, and dot-stuffing is undone by one replace, and only when there is any.

Promises: nothing but CRLF.CRLF ends the message (RFC 5321 4.1.1.4), so nothing that follows a look-alike is taken for
a command; what exceeds the size limit is read and thrown away, so that the refusal comes after the dot and the
dialogue stays in step; a peer that sends steadily may take as long as it needs, one that does not reach the minimum
rate is given up (``Expired``).

Limits: up to twice the size of a message is held for the moment of joining its blocks. All the contents being read and
stored in one process share a ``Memory``; what does not fit is read, thrown away, and asked for again later.
"""

import re
import time
from collections.abc import Callable
from enum import Enum

from forwarder.inbound.inlet import Expired, Inlet
from forwarder.mail.content import normalize_newlines
from forwarder.mail.scan import find_dot, literally

END = b"\r\n.\r\n"
SMALL_BLOCK = 4096  # octets
RATE_GRACE = 60.0  # seconds before the minimum rate counts: TCP starts slowly, short messages do not matter

_find_end = literally(END)
_STUFFED = re.compile(rb"(\A|\r\n)\.(?!\r\n)")
# A lone dot between line ends of which one at least is not CRLF: somebody's server takes it for the end of DATA.
_LOOK_ALIKE = re.compile(rb"(?:\r\n|\r|\n)\x00?\.\x00?(?:\r\n|\r|\n)")


class Excess(Enum):
    """Why a content was thrown away while it was read."""

    SIZE = "more than the limit"
    MEMORY = "too much mail at once in this process"


class Memory:
    """How many octets of contents a process may hold while they are read and stored."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0


class Share:
    """What one message holds of the memory; to be released when it is stored."""

    __slots__ = ("_memory", "_taken")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._taken = 0

    def grow(self, octets: int) -> bool:
        """Hold more; False: there is no room, and nothing more is held."""
        if self._memory.taken + octets > self._memory.limit:
            return False
        self._memory.taken += octets
        self._taken += octets
        return True

    def release(self) -> None:
        """Hold nothing any more; harmless when repeated."""
        self._memory.taken -= self._taken
        self._taken = 0


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
    blocks: list[bytearray] = []
    excess: Excess | None = None
    total = 0
    tail = b"\r\n"  # the line before the first: a dot at once ends an empty message
    started = now()
    while True:
        block = await inlet.block(block_timeout)
        end = _end(tail, block)
        length = total + (len(block) if end is None else end + 2)  # the CRLF before the dot is the message's
        if excess is None:
            if length - (0 if end is not None else len(END)) > limit:
                excess = Excess.SIZE
            elif not share.grow(len(block)):
                excess = Excess.MEMORY
            if len(block) < SMALL_BLOCK and blocks:
                blocks[-1] += block  # an object each would make 25 MiB that trickle in two gigabytes
            else:
                blocks.append(block)
        if excess is not None:
            blocks.clear()  # keep reading, hold nothing
            share.release()
        if end is not None:
            rest = block[end + len(END) :]
            if rest:
                inlet.give_back(rest)
            return excess or _joined(blocks, length)
        tail = bytes((tail + block[-len(END) :])[-(len(END) - 1) :])
        total = length
        elapsed = now() - started
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

    A dot alone stays: nobody who stuffs sends one, and nothing of a message is to vanish.
    """
    return _STUFFED.sub(rb"\1", normalize_newlines(raw))


def smuggles(raw: bytes) -> bool:
    """Whether what was read, still dot-stuffed, holds a look-alike of the end of DATA."""
    return _LOOK_ALIKE.search(raw) is not None


def _end(tail: bytes, block: bytearray) -> int | None:
    """Where the terminator begins, counted from the block's first octet: -4 when it began in what came before."""
    straddling = (tail + block[: len(END) - 1]).find(END)
    if straddling >= 0:
        return straddling - len(tail)
    inside = _find_end(block)
    return None if inside < 0 else inside


def _joined(blocks: list[bytearray], length: int) -> bytes:
    excess = sum(map(len, blocks)) - length
    while excess > 0:
        last = blocks[-1]
        if len(last) <= excess:
            excess -= len(last)
            blocks.pop()
        else:
            del last[len(last) - excess :]
            excess = 0
    if len(blocks) == 1:
        return bytes(blocks[0])
    return b"".join(blocks)
