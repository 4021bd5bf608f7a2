"""Large messages leave no hole in memory: what the C library is told about big allocations.

glibc takes big blocks straight from the system and gives them back at once, but raises the size from which it does so
with every big block that is freed, up to 32 MiB. After the first large message, the next ones are cut from heaps that
never shrink below their highest block, one heap for each thread. Setting the size ourselves ends that.

Nothing happens where the C library is another one.
"""

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
BIG = 128 * 1024  # octets
HEAPS = 2


def set_up() -> None:
    """To be called once, before threads are started."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, BIG)
        library.mallopt(_M_ARENA_MAX, HEAPS)
