"""smtp-sink, for as long as a run lasts, and how much it has taken."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.machine import listens, running, wait_for_port

SINK_PORT = 2626
_LOOK_EVERY = 0.01  # seconds
_TAKEN = re.compile(rb"mesg=(\d+)\r")
_TAIL = 256  # octets; a line of its counters has some forty


class SmtpSink:
    """Takes everything on SINK_PORT and counts it.

    It is not told to end by itself after so many messages (``-M``): then it hangs up on the last one before it has
    answered. Whoever sent that cannot know and sends it again minutes later, into the run of somebody else, which ends
    one message early; so what one run leaves behind grows with every further one.
    """

    def __init__(self, counters: int) -> None:
        """``counters``: a file that it writes them to, anew with every message."""
        self._counters = counters

    @property
    def taken(self) -> int:
        """Messages so far, each counted once for all its recipients."""
        size = os.fstat(self._counters).st_size
        found = _TAKEN.findall(os.pread(self._counters, _TAIL, max(0, size - _TAIL)))
        return int(found[-1]) if found else 0

    async def reach(self, messages: int, *, patience: float) -> bool:
        """Wait until it has taken that many; False when that lasts longer than ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while self.taken < messages:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK_EVERY)
        return True


@asynccontextmanager
async def smtp_sink(host: str = "127.0.0.1") -> AsyncIterator[SmtpSink]:
    """A sink for as long as the block runs."""
    if listens(SINK_PORT, host):
        raise RuntimeError(f"something listens on {host}:{SINK_PORT}, where smtp-sink is to; end it first")
    counters = os.memfd_create("smtp-sink")
    try:
        command = ("smtp-sink", "-c", "-u", "nobody", f"{host}:{SINK_PORT}", "1000")
        async with running(*command, stdout=counters):
            await asyncio.to_thread(wait_for_port, SINK_PORT, seconds=5, host=host)
            yield SmtpSink(counters)
    finally:
        os.close(counters)
