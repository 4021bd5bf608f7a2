"""The bytes of one connection as they come in: lines, blocks, and how long we wait for them.

Fed by the protocol's callbacks, read by one coroutine. What is promised: no more than ``HIGH_WATER`` bytes and one
block of the transport are held unread (reading pauses above it); a line longer than asked for is thrown away as it
comes and reported once its end is seen, so an endless line costs no memory; a deadline runs only while somebody
waits for the peer, never while the server works, and it is set by the reader of the bytes, not moved by their coming
in, so a line that trickles in byte by byte is over in time.

It fails with ``Gone`` (the peer closed, or the connection broke), ``Expired`` (the deadline passed) and, for the next
wait or at once for one in progress, with ``Stopped`` (the server is going down).
"""

import asyncio
from typing import Protocol

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


class Gone(Exception):
    """The peer will send nothing more."""


class Expired(Exception):
    """The peer did not send what it owed us in time."""


class Stopped(Exception):
    """The server is stopping and this session waits for nothing that matters."""


class TooLong(Exception):
    """A line was longer than its limit; it was read to its end and thrown away."""


class Valve(Protocol):
    """The part of a transport that holds back its bytes."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Inlet:
    """A buffer with one reader."""

    __slots__ = (
        "_buffer",
        "_cut",
        "_deadline",
        "_ended",
        "_loop",
        "_paused",
        "_rings_at",
        "_searched",
        "_stopped",
        "_timer",
        "_valve",
        "_waiter",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = bytearray()
        self._searched = 0  # no line feed before this place in the buffer
        self._ended = False
        self._stopped = False
        self._cut = False
        self._paused = False  # reading is
        self._valve: Valve | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # asked of the timer, uvloop's may not know it
        self._deadline = 0.0

    # What the protocol calls.

    def attach(self, valve: Valve) -> None:
        """Bytes come from this transport from now on (again after STARTTLS)."""
        self._valve = valve
        self._paused = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > HIGH_WATER and not self._paused and self._valve is not None:
            self._paused = True
            self._valve.pause_reading()
        self._wake()

    def end(self) -> None:
        """The peer closed its side, or the connection is lost."""
        self._ended = True
        self._wake()

    def stop(self) -> None:
        """Let the reader know, where it waits for a command, that the server is going down."""
        self._stopped = True
        self._wake()

    def cut(self) -> None:
        """The same wherever it waits, in the middle of a message too."""
        self._cut = True
        self.stop()

    def close(self) -> None:
        """Nothing will be read any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the reader calls.

    def has_line(self) -> bool:
        """Whether a whole line is here already, so that a reply may wait and travel with the next one."""
        return self._buffer.find(b"\n", self._searched) >= 0

    def discard(self) -> None:
        """Throw away what came and was not asked for (RFC 3207 4.2: what precedes the TLS handshake)."""
        self._buffer.clear()
        self._searched = 0

    async def line(self, limit: int, seconds: float) -> bytes:
        """The next line with its line feed, at most ``limit`` octets long with it."""
        buffer = self._buffer
        deadline = 0.0
        overlong = False
        while (end := buffer.find(b"\n", self._searched)) < 0:
            deadline = deadline or self._loop.time() + seconds
            if overlong or len(buffer) >= limit:
                overlong = True
                buffer.clear()
                if self._loop.time() >= deadline:  # the bell finds no waiter where octets come all the time
                    raise Expired
            self._searched = len(buffer)
            if self._paused:
                self._release()
            await self._more(deadline, stoppable=True)
        line = bytes(buffer[: end + 1])
        self._consume(end + 1)
        if overlong or end >= limit:
            raise TooLong
        return line

    async def block(self, seconds: float) -> bytearray:
        """Whatever has come, at least one octet. The deadline starts anew with each call."""
        if not self._buffer:
            await self._more(self._loop.time() + seconds, stoppable=False)
        block, self._buffer = self._buffer, bytearray()
        self._searched = 0
        self._release()
        return block

    def give_back(self, data: bytes | bytearray) -> None:
        """Put what was read past the end of something before what comes next."""
        self._buffer[:0] = data
        self._searched = 0

    async def _more(self, deadline: float, *, stoppable: bool) -> None:
        if self._ended:
            raise Gone
        if self._cut or (stoppable and self._stopped):
            raise Stopped
        self._deadline = deadline
        if self._timer is None or self._rings_at > deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()
        size = len(self._buffer)
        while True:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if len(self._buffer) > size:
                return
            if self._ended:
                raise Gone
            if self._cut or (stoppable and self._stopped):
                raise Stopped
            if self._loop.time() >= self._deadline:
                raise Expired

    def _ring(self) -> None:
        """One timer a connection, moved on only when it rings: setting it for each command would cost more."""
        self._timer = None
        if self._waiter is None:
            return  # the server works, or the reader finds its bytes; the next wait sets a timer
        if self._loop.time() >= self._deadline:
            self._wake()
        else:
            self._set_timer()

    def _set_timer(self) -> None:
        self._rings_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._ring)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _consume(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0
        if self._paused:
            self._release()

    def _release(self) -> None:
        if self._paused and len(self._buffer) <= LOW_WATER and self._valve is not None:
            self._paused = False
            self._valve.resume_reading()
