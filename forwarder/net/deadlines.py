"""Deadlines for what a peer says, kept by a process that may be stopped itself.

A process that was stopped, with its machine or alone, finds its deadlines long over when it goes on, and its timers
ring before its sockets are read. What the peer said meanwhile is worth hearing: an answer taken for none has the same
content sent a second time. So a timer that rings late by more than ``HELD_UP`` gives the peer's octets that long to be
read, once; one that rings on time is the end.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

HELD_UP = 1.0  # seconds: a timer that rings so late was kept from it, and so was the reader


def reprieve(rings_at: float, now: float) -> float:
    """Seconds that are left to read what came, when a timer that was set for ``rings_at`` rings; 0.0: none."""
    return HELD_UP if now - rings_at > HELD_UP else 0.0


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """As ``asyncio.timeout``, with that reprieve; TimeoutError."""
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    timer: asyncio.TimerHandle

    def ring() -> None:
        nonlocal timer
        now = loop.time()
        if more := reprieve(due, now):
            timer = loop.call_at(now + more, lambda: limit.reschedule(loop.time()))
        else:
            limit.reschedule(now)

    async with asyncio.timeout(None) as limit:
        timer = loop.call_at(due, ring)
        try:
            yield
        finally:
            timer.cancel()
