"""Latency at light load: a message every so often, timed at its 250 and at its arrival.

The client and the sink are plain asyncio in one process, the same for every subject, and say nothing that a subject
could take advantage of: EHLO, MAIL, RCPT, DATA, QUIT on a new connection a message.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.load import Subject
from benchmarks.report import Section, percentile
from benchmarks.sink import SINK_PORT

_BODY = b"0123456789abcdef" * 4 + b"\r\n"


@dataclass(slots=True)
class Timings:
    """Seconds, one entry a message; and the bytes that arrived, by the message's number."""

    accept: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    arrived: dict[int, list[bytes]] = field(default_factory=dict)
    refused: int = 0
    sent: int = 0

    @property
    def missing(self) -> int:
        """Refused, or not arrived in time."""
        return self.sent - len(self.end_to_end)


class Sink:
    """Takes everything on SINK_PORT; remembers when each numbered message arrived."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self.copies: dict[int, list[bytes]] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Sink":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", SINK_PORT, limit=2**26)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        # Kept connections too, or the subject would go on delivering to this sink while the next one waits.
        for writer in tuple(self._open):
            writer.close()
        await asyncio.sleep(0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        writer.write(b"220 sink.test ESMTP\r\n")
        try:
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    writer.write(b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                elif verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    content = await reader.readuntil(b"\r\n.\r\n")
                    self._note(content)
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb == b"QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                else:
                    writer.write(b"250 2.0.0 fine\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._open.discard(writer)
            writer.close()

    def _note(self, content: bytes) -> None:
        now = time.monotonic()
        start = content.find(b"X-Number: ")
        if start >= 0:
            number = int(content[start + 10 : content.index(b"\r", start)])
            self.at.setdefault(number, now)
            self.copies.setdefault(number, []).append(content[:-3].replace(b"\r\n..", b"\r\n."))


async def send_one(port: int, number: int, *, size: int, recipient: str = "alias7@fwd.test") -> float:
    """Send one message on a new connection; seconds until its 250. ConnectionError when it is refused."""
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"From: <sender@origin.test>\r\nTo: <{recipient}>\r\nSubject: number {number}\r\n"
        f"Message-ID: <{number}.{started}@origin.test>\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\n"
        f"X-Number: {number}\r\n\r\n"
    ).encode()
    content = head + _BODY * max(1, (size - len(head)) // len(_BODY))
    try:
        await _expect(reader, b"220")
        for command, code in (
            (b"EHLO origin.test\r\n", b"250"),
            (b"MAIL FROM:<sender@origin.test>\r\n", b"250"),
            (f"RCPT TO:<{recipient}>\r\n".encode(), b"250"),
            (b"DATA\r\n", b"354"),
            (content + b".\r\n", b"250"),
        ):
            writer.write(command)
            await _expect(reader, code)
        taken = time.monotonic() - started
        writer.write(b"QUIT\r\n")
        return taken
    finally:
        writer.close()


async def _expect(reader: asyncio.StreamReader, code: bytes) -> None:
    while True:
        line = await reader.readline()
        if not line.startswith(code):
            raise ConnectionError(f"expected {code.decode()}, was told {line[:200]!r}")
        if line[3:4] != b"-":
            return


async def measure(
    subject: Subject, *, rate: float, messages: int, size: int = 4096, patience: float = 30
) -> Timings:
    """``messages`` at ``rate`` a second, sent on schedule whatever the answers take."""
    return await _measure(
        subject, rate=rate, goes_on=lambda number: number < messages, size=size, patience=patience
    )


async def measure_until(
    subject: Subject, *, rate: float, ended: Callable[[], bool], patience: float = 30
) -> Timings:
    """The same until something has ended."""
    return await _measure(subject, rate=rate, goes_on=lambda _: not ended(), size=4096, patience=patience)


async def _measure(
    subject: Subject, *, rate: float, goes_on: Callable[[int], bool], size: int, patience: float
) -> Timings:
    timings = Timings()
    sent: dict[int, float] = {}

    async def one(number: int) -> None:
        sent[number] = time.monotonic()
        try:
            timings.accept.append(await send_one(subject.port, number, size=size))
        except OSError:
            timings.refused += 1

    async with Sink() as sink:
        begin = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        while goes_on(len(tasks)):
            await asyncio.sleep(max(0.0, begin + len(tasks) / rate - time.monotonic()))
            tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.gather(*tasks)
        timings.sent = len(tasks)
        deadline = time.monotonic() + patience
        # the sink is in this process: looking twenty times a second costs nothing
        while len(sink.at) < timings.sent - timings.refused and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        timings.end_to_end = [sink.at[number] - sent[number] for number in sink.at]
        timings.arrived = sink.copies
    return timings


async def compare(subjects: Sequence[Subject], *, rates: Sequence[float], messages: int) -> Section:
    rows: list[tuple[str, ...]] = []
    for rate in rates:
        for subject in subjects:
            timings = await measure(subject, rate=rate, messages=messages)
            accepted, arrived = three(timings.accept), three(timings.end_to_end)
            rows.append((f"{rate:.0f}", subject.name, accepted, arrived, str(timings.missing)))
    return Section(
        "Latency at light load",
        "4 KiB, a new connection a message; milliseconds: p50 / p95 / p99.",
        ("messages/s", "subject", "accepted", "arrived at the sink", "lost or refused"),
        rows,
    )


def three(seconds: Sequence[float]) -> str:
    """p50 / p95 / p99 in milliseconds."""
    if not seconds:
        return "—"
    return " / ".join(f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95, 0.99))
