"""DATA: the octets between 354 and CRLF.CRLF, read in blocks.

aiosmtpd reads a line at a time, 23 ms of CPU for 1 MiB; here each block the transport hands over is searched for the
terminator once, blocks are joined once, and dot-stuffing is undone by one replace, and only when there is any.

Promises: nothing but CRLF.CRLF ends the message (RFC 5321 4.1.1.4), so nothing that follows a look-alike is taken for
a command; what exceeds the size limit is read and thrown away, so that the refusal comes after the dot and the
dialogue stays in step; a peer that sends steadily may take as long as it needs, one that does not reach the minimum
rate is given up (``Expired``).

Limit: up to twice the size of a message is held for the moment of joining its blocks.
"""

import re
import time
from collections.abc import Callable

from forwarder.inbound.inlet import Expired, Inlet

END = b"\r\n.\r\n"
RATE_GRACE = (
    60.0  # seconds before the minimum rate counts: TCP starts slowly, and short messages do not matter
)

_STUFFED = re.compile(rb"\r\n\.")
# A lone dot between line ends of which one at least is not CRLF: somebody's server takes it for the end of DATA.
_LOOK_ALIKE = re.compile(rb"(?:\r\n|\r|\n)\x00?\.\x00?(?:\r\n|\r|\n)")


async def read_content(
    inlet: Inlet,
    *,
    limit: int,
    block_timeout: float,
    min_rate: int,
    now: Callable[[], float] = time.monotonic,
) -> bytes | None:
    """What came before CRLF.CRLF, still dot-stuffed; None when that was more than ``limit`` octets.

    Raises ``Expired`` when no block came in time or the rate is too low, ``Gone`` when the peer went away.
    """
    blocks: list[bytearray] = []
    total = 0
    tail = b"\r\n"  # the line before the first: a dot at once ends an empty message
    started = now()
    while True:
        block = await inlet.block(block_timeout)
        end = _end(tail, block)
        if end is not None:
            rest = block[end + len(END) :]
            if rest:
                inlet.give_back(rest)
            length = total + end + 2  # the CRLF before the dot belongs to the message
            if length > limit:
                return None
            blocks.append(block)
            return _joined(blocks, length)
        tail = bytes((tail + block[-len(END) :])[-(len(END) - 1) :])
        total += len(block)
        if total - len(END) > limit:
            blocks.clear()  # keep reading, hold nothing
        else:
            blocks.append(block)
        elapsed = now() - started
        if elapsed > RATE_GRACE and total < min_rate * (elapsed - RATE_GRACE):
            raise Expired


def unstuffed(raw: bytes) -> bytes:
    """RFC 5321 4.5.2: the first dot of a line that begins with one is not part of the text."""
    if raw.startswith(b"."):
        raw = raw[1:]
    if _STUFFED.search(raw) is not None:  # half the time of ``in``
        raw = raw.replace(b"\r\n.", b"\r\n")
    return raw


def smuggles(raw: bytes) -> bool:
    """Whether what was read, still dot-stuffed, holds a look-alike of the end of DATA."""
    return _LOOK_ALIKE.search(raw) is not None


def _end(tail: bytes, block: bytearray) -> int | None:
    """Where the terminator begins, counted from the block's first octet: -4 when it began in what came before."""
    straddling = (tail + block[: len(END) - 1]).find(END)
    if straddling >= 0:
        return straddling - len(tail)
    inside = block.find(END)
    return inside if inside >= 0 else None


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
