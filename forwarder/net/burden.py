"""How much work a message of the DNS makes whoever reads it, told before it is read.

A name may have 127 labels and take two octets, since it may point to where another one stands. So the 64 KiB that come
by TCP may hold half a million labels, of which dnspython makes each an object of its own: seconds, in which the process
does nothing else. Anybody's zone may answer so, and a message can name sixty of them.

``too_great`` walks through a message as its reader would and counts records, labels, the steps from one pointer to
another, and the strings of texts. Where names may stand in what it does not know, it takes them to be there and as
long as can be. It ends at its bound, whatever the octets; what is no message is for the reader to say.
"""

import struct

MOST = 1500  # the addresses of a hundred hosts are some hundreds; less than a hundredth of a second
_LONGEST_NAME = 128  # labels
_POINTER = 0xC0
_IN = 1
_A, _TXT, _AAAA, _OPT, _TLSA = 1, 16, 28, 41, 52
_NAMELESS = frozenset({_A, _AAAA, _TLSA})
_NAME_AT = {2: 0, 5: 0, 12: 0, 15: 2, 39: 0}  # NS, CNAME, PTR, MX, DNAME: where in the record the name begins


class _TooGreat(Exception):
    pass


class _Walk:
    """Through one message, from its first record to its last."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire
        self._at = 12
        self._spent = 0

    def through(self) -> None:
        questions, *records = struct.unpack_from("!4H", self._wire, 4)
        for _ in range(questions):
            self._spend(1)
            self._at = self._name(self._at) + 4
        for _ in range(sum(records)):
            self._spend(1)
            self._record()

    def _record(self) -> None:
        at = self._name(self._at)
        kind, network, _ttl, length = struct.unpack_from("!HHIH", self._wire, at)
        at += 10
        self._at = at + length
        if kind == _OPT:
            self._spend(length // 4)  # an option has four octets at least
        elif network != _IN:
            self._spend(2 * _LONGEST_NAME)
        elif kind == _TXT:
            while at < self._at:
                self._spend(1)
                at += 1 + self._wire[at]
        elif kind in _NAME_AT:
            self._name(at + _NAME_AT[kind])
        elif kind not in _NAMELESS:
            self._spend(2 * _LONGEST_NAME)

    def _name(self, at: int) -> int:
        """Count the steps of a name; where in the message it ends."""
        wire, end = self._wire, 0
        while length := wire[at]:
            self._spend(1)
            if length >= _POINTER:
                end = end or at + 2
                at = (length & ~_POINTER) << 8 | wire[at + 1]
            else:
                at += 1 + length
        return end or at + 1

    def _spend(self, steps: int) -> None:
        self._spent += steps
        if self._spent > MOST:
            raise _TooGreat


def too_great(wire: bytes) -> bool:
    """Whether a message makes more work than any honest answer."""
    try:
        _Walk(wire).through()
    except _TooGreat:
        return True
    except (IndexError, struct.error):  # cut short: its reader comes no further either
        return False
    return False
