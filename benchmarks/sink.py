"""smtp-sink, for as long as a run lasts, and how much it has taken."""

import asyncio
import contextlib
import os
import re
import time
from types import TracebackType
from typing import Self

from benchmarks.machine import environment, wait_for_port

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

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._counters = os.memfd_create("smtp-sink")  # it writes them anew with every message
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *("smtp-sink", "-c", "-u", "nobody", f"{self._host}:{SINK_PORT}", "1000"),
            env=environment(),
            stdout=self._counters,
        )
        try:
            await asyncio.to_thread(wait_for_port, SINK_PORT, seconds=5, host=self._host)
            if self._process.returncode is not None:
                raise RuntimeError(f"smtp-sink cannot listen on {self._host}:{SINK_PORT}; who does?")
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()
        os.close(self._counters)

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
