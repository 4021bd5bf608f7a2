"""What the C library is told about big allocations: large messages leave no hole in memory, and cost no new pages.

glibc takes big blocks straight from the system and gives them back at once, but raises the size from which it does so
with every big block that is freed, up to 32 MiB. After the first large message, the next ones are cut from heaps that
never shrink below their highest block, one heap for each thread. Setting the size ourselves ends that.

A block from the system is empty pages, each a fault when it is first written to: 1 MiB costs as long as three times
its copying. So up to ``BIG`` blocks come from the heaps, and a heap keeps its free end up to ``KEPT``: mail of ordinary
size is copied into memory that was used before.

Nothing happens where the C library is another one.
"""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
BIG = 2 * 1024 * 1024  # octets
KEPT = 4 * 1024 * 1024
HEAPS = 2


def set_up() -> None:
    """To be called once, before threads are started."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, BIG)
        library.mallopt(_M_ARENA_MAX, HEAPS)
