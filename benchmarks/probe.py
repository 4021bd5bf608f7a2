"""A client and a sink that know when a message was taken and when it arrived.

Both are protocols on one event loop, the same for every subject, and say nothing that a subject could take advantage
of: EHLO, MAIL, RCPT, DATA, QUIT on a new connection a message. They do as little as can be done in Python: what they
take themselves is added to every subject's time and makes the subjects look alike.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

from benchmarks.sink import SINK_PORT

PATIENCE = 30.0  # seconds for one message
_BODY = b"0123456789abcdef" * 4 + b"\r\n"
_END = b"\r\n.\r\n"
_SINK_ANSWERS = {
    b"EHLO": b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class Sink:
    """Takes everything on SINK_PORT; remembers when each numbered message of its run arrived."""

    def __init__(self, mark: str) -> None:
        """``mark``: of the run. A message that an earlier one left behind is not taken for one of this."""
        self._number = f"X-Number: {mark}-".encode()
        self.at: dict[int, float] = {}
        self.copies: dict[int, list[bytes]] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Transport] = set()

    async def __aenter__(self) -> "Sink":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Taking(self._open, self._note), "127.0.0.1", SINK_PORT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        # Kept connections too, or the subject would go on delivering to this sink while the next one waits.
        for transport in tuple(self._open):
            transport.close()
        await asyncio.sleep(0.1)

    def _note(self, content: bytes) -> None:
        now = time.monotonic()
        start = content.find(self._number)
        if start >= 0:
            number = int(content[start + len(self._number) : content.index(b"\r", start)])
            self.at.setdefault(number, now)
            self.copies.setdefault(number, []).append(content[:-3].replace(b"\r\n..", b"\r\n."))


class _Taking(asyncio.Protocol):
    """The sink's side of one connection."""

    def __init__(self, siblings: set[asyncio.Transport], note: Callable[[bytes], None]) -> None:
        self._siblings = siblings
        self._note = note
        self._came = bytearray()
        self._in_data = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._siblings.add(self._transport)
        self._transport.write(b"220 sink.test ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._siblings.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._came += data
        answers = []
        while (end := self._came.find(_END if self._in_data else b"\r\n")) >= 0:
            end += len(_END) if self._in_data else 2
            taken = bytes(self._came[:end])
            del self._came[:end]
            if self._in_data:
                self._note(taken)
                answers.append(b"250 2.0.0 taken\r\n")
                self._in_data = False
                continue
            verb = taken[:4].upper()
            self._in_data = verb == b"DATA"
            answers.append(_SINK_ANSWERS.get(verb, b"250 2.0.0 fine\r\n"))
            if verb == b"QUIT":
                self._transport.write(b"".join(answers))
                self._transport.close()
                return
        if answers:
            self._transport.write(b"".join(answers))


class _Sending(asyncio.Protocol):
    """The client's side of one connection: each command once the one before is answered."""

    def __init__(self, steps: Sequence[tuple[bytes, bytes]], started: float) -> None:
        self.taken: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._steps = iter(steps)
        self._started = started
        self._code = b"220"
        self._came = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.taken.done():
            self.taken.set_exception(exc or ConnectionError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        self._came += data
        while not self.taken.done() and (end := self._came.find(b"\n")) >= 0:
            line = bytes(self._came[:end])
            del self._came[: end + 1]
            if not line.startswith(self._code):
                refused = f"expected {self._code.decode()}, was told {line[:200]!r}"
                self.taken.set_exception(ConnectionError(refused))
            elif line[3:4] != b"-":
                self._go_on()

    def _go_on(self) -> None:
        assert self._transport is not None
        command, self._code = next(self._steps, (b"", b""))
        if not command:
            self.taken.set_result(time.monotonic() - self._started)
            command = b"QUIT\r\n"
        self._transport.write(command)


async def send_one(
    port: int, number: int, *, mark: str, size: int, recipient: str = "alias7@fwd.test"
) -> float:
    """Send one message on a new connection; seconds until its 250. OSError when it is refused or not answered."""
    started = time.monotonic()
    head = (
        f"From: <sender@origin.test>\r\nTo: <{recipient}>\r\nSubject: number {number}\r\n"
        f"Message-ID: <{number}.{started}@origin.test>\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\n"
        f"X-Number: {mark}-{number}\r\n\r\n"
    ).encode()
    content = head + _BODY * max(1, (size - len(head)) // len(_BODY))
    steps = (
        (b"EHLO origin.test\r\n", b"250"),
        (b"MAIL FROM:<sender@origin.test>\r\n", b"250"),
        (f"RCPT TO:<{recipient}>\r\n".encode(), b"250"),
        (b"DATA\r\n", b"354"),
        (content + b".\r\n", b"250"),
    )
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        transport, sending = await loop.create_connection(lambda: _Sending(steps, started), "127.0.0.1", port)
        try:
            return await sending.taken
        finally:
            transport.close()
