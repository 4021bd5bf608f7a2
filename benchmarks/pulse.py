"""The pulse of an engine: NOOPs on open sessions, answered only when the event loop comes round.

What a NOOP takes on loopback beyond some tenths of a millisecond is what the loop was busy with: its lag, seen from
outside. Several sessions, since the kernel spreads them over the processes.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.report import percentile

SESSIONS = 4
EVERY = 0.05  # seconds


class Pulse:
    """Seconds of each answer so far."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def text(self) -> str:
        """p50 / p99 / longest in milliseconds."""
        if not self.seconds:
            return "—"
        shown = (percentile(self.seconds, 0.5), percentile(self.seconds, 0.99), max(self.seconds))
        return " / ".join(f"{value * 1000:.1f}" for value in shown)


@asynccontextmanager
async def felt(port: int) -> AsyncIterator[Pulse]:
    """Feel the pulse of what listens on ``port`` while the block runs (junk_commands must be without limit)."""
    pulse = Pulse()
    beats = [asyncio.create_task(_beat(port, pulse)) for _ in range(SESSIONS)]
    try:
        yield pulse
    finally:
        for beat in beats:
            beat.cancel()
        await asyncio.gather(*beats, return_exceptions=True)


async def _beat(port: int, pulse: Pulse) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.readline()
        while True:
            began = time.monotonic()
            writer.write(b"NOOP\r\n")
            if not await reader.readline():
                return
            pulse.seconds.append(time.monotonic() - began)
            await asyncio.sleep(EVERY)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
