"""What the C library is told about big allocations, and what it is asked to give back.

glibc looks for a free place in its heaps first. What finds none there is mapped from the system when it is larger than
``BIG``, and given back as soon as it is freed; left alone, glibc raises that size with every big block that is freed,
up to 32 MiB. A block that was just mapped is empty pages, each a fault when it is first written to: 1 MiB costs as long
as three times its copying. So what mail is ordinarily made of comes from the heaps, whose free end is not cut before it
exceeds ``KEPT``, and only what is larger is mapped.

A heap shrinks at its end alone: one small block that lives behind a hundred freed ones keeps them all. So ``tidy``
asks for the pages of every free block to be given back, once in ``EVERY``: some milliseconds, in which nobody else
can allocate, for 60 MiB.

Nothing happens where the C library is another one.
"""

import asyncio
import ctypes
from contextlib import suppress
from datetime import timedelta

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
BIG = 2 * 1024 * 1024  # octets
KEPT = 4 * 1024 * 1024
HEAPS = 2
EVERY = timedelta(minutes=1)


def set_up() -> None:
    """To be called once, before threads are started."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, BIG)
        library.mallopt(_M_ARENA_MAX, HEAPS)


def give_back() -> None:
    """Give the system the pages of all that is free."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def tidy() -> None:
    """Give back what is free for as long as the process lives."""
    while True:
        await asyncio.sleep(EVERY.total_seconds())
        await asyncio.to_thread(give_back)
