"""Time-ordered identifiers: UUIDv7 as 32 lower-case hex digits.

Ids of messages, deliveries, logs and events sort by the time they were made, so that a page of the log is a range of
the primary key. RFC 9562 6.2 method 3: 48 bits of milliseconds, 12 bits of the fraction of a millisecond, 62 random
bits. ``IdSource`` makes them strictly increasing within a process even when the clock stands still or is set back by
less than two days. Where it is set back by more they follow it, as those of others do: a process whose clock was years
ahead when it began would go on to date logs so, which stand before everybody's and outlive their time.

A log's public id is ``YYYYMMDDHHMMSS.`` and the 32 digits: it sorts as the id does and people can read it.

Pure: time and chance are arguments. Limits: years 1970 to 9999.
"""

import string
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION = 7 << 12  # of the upper half
_VARIANT = 0b10 << 62  # of the lower
_RANDOM_MASK = (1 << 62) - 1
_NUMBERS = struct.Struct(">64Q")  # what is drawn at once: for 64 ids
_HEX = frozenset(string.hexdigits.lower())
_BORROWED = 2 * 86_400_000 << 12  # ticks: two days
_LAST_MILLISECOND = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def _ticks(at: datetime) -> int:
    """4,096ths of a millisecond since 1970: the 60 bits of an id that are time."""
    since = at - _EPOCH
    milliseconds, microseconds = divmod(since.microseconds, 1000)
    milliseconds += (since.days * 86_400 + since.seconds) * 1000
    return milliseconds << 12 | microseconds * 4096 // 1000


def _compose(ticks: int, random: int) -> str:
    # Two halves of 64 bits: one number of 128 would take half as long again.
    return f"{(ticks >> 12) << 16 | _VERSION | ticks & 0xFFF:016x}{_VARIANT | random & _RANDOM_MASK:016x}"


def new_id(now: datetime, entropy: bytes) -> str:
    """An id made at ``now`` from at least 8 random bytes."""
    if len(entropy) < 8:
        raise ValueError("an id needs at least 8 random bytes")
    return _compose(_ticks(now), int.from_bytes(entropy[-8:], "big"))


def id_floor(at: datetime) -> str:
    """The smallest id that can have been made at ``at`` or later (to the fraction of a microsecond)."""
    return _compose(_ticks(at), 0)


def is_id(text: str) -> bool:
    """Whether the text has the form of an id of ours: 32 lower-case hex digits."""
    return len(text) == 32 and _HEX.issuperset(text)


def id_time(identifier: str) -> datetime:
    """When the id was made, to the millisecond."""
    return _EPOCH + timedelta(milliseconds=min(int(identifier[:12], 16), _LAST_MILLISECOND))


def log_public_id(identifier: str) -> str:
    """``YYYYMMDDHHMMSS.<32 hex digits>``: how the API shows a log's id."""
    return f"{id_time(identifier):%Y%m%d%H%M%S}.{identifier}"


def parse_log_public_id(text: str) -> str | None:
    """The id inside a public id, or None when the text is not one.

    The time before the dot must be the id's own: a cursor that was tampered with is no cursor.
    """
    identifier = text[15:]
    if len(text) != 47 or not is_id(identifier) or log_public_id(identifier) != text:
        return None
    return identifier


class IdSource:
    """The ids of one process. Calling it gives the next one, made ``now`` if that is known already.

    Not for several threads at once: each event loop or thread has its own.
    """

    def __init__(self, *, clock: Callable[[], datetime], entropy: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._entropy = entropy
        # Asked for in one piece: a system call for each id would cost more than the rest of it.
        self._drawn: list[int] = []
        self._last = 0
        self._at = _EPOCH  # the latest moment, and its ticks: a message and its deliveries are of one
        self._ticks = 0

    def __call__(self, now: datetime | None = None) -> str:
        # A stopped or stepped-back clock borrows ticks of the future: order matters more than the quarter of a
        # microsecond each tick is.
        at = now or self._clock()
        if at is not self._at:
            self._at, self._ticks = at, _ticks(at)
        ahead = self._last - self._ticks
        self._last = self._last + 1 if 0 <= ahead < _BORROWED else self._ticks
        if not self._drawn:
            self._drawn = list(_NUMBERS.unpack(self._entropy(_NUMBERS.size)))
        return _compose(self._last, self._drawn.pop())
