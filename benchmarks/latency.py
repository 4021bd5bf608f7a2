"""Latency at light load: a message every so often, timed at its 250 and at its arrival."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.load import Subject
from benchmarks.probe import Sink, send_one
from benchmarks.report import Section, percentile
from benchmarks.sink import SINK_PORT, smtp_sink


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

    def add(self, other: "Timings") -> None:
        """The timings of another run beside these; not what arrived, whose numbers are the same."""
        self.accept += other.accept
        self.end_to_end += other.end_to_end
        self.refused += other.refused
        self.sent += other.sent


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
    mark = secrets.token_hex(4)
    async with Sink(mark) as sink:
        sent = await _send(subject.port, timings, mark=mark, rate=rate, goes_on=goes_on, size=size)
        deadline = time.monotonic() + patience
        # the sink is in this process: looking twenty times a second costs nothing
        while sent.keys() - sink.at.keys() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        timings.end_to_end = [sink.at[number] - began for number, began in sent.items() if number in sink.at]
        timings.arrived = sink.copies
    return timings


async def _send(
    port: int, timings: Timings, *, mark: str, rate: float, goes_on: Callable[[int], bool], size: int
) -> dict[int, float]:
    """Send on schedule, note what is taken and refused; when each message that was taken was begun."""
    begun: dict[int, float] = {}

    async def one(number: int) -> None:
        now = time.monotonic()
        try:
            timings.accept.append(await send_one(port, number, mark=mark, size=size))
            begun[number] = now
        except OSError:
            timings.refused += 1

    start = time.monotonic()
    tasks: list[asyncio.Task[None]] = []
    while goes_on(len(tasks)):
        await asyncio.sleep(max(0.0, start + len(tasks) / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one(len(tasks))))
    await asyncio.gather(*tasks)
    timings.sent = len(tasks)
    return begun


async def compare(
    subjects: Sequence[Subject], *, rates: Sequence[float], messages: int, turns: int
) -> Section:
    """Each subject ``messages`` at each rate, in ``turns`` alternating runs."""
    rows: list[tuple[str, ...]] = []
    for rate in rates:
        rows.append((f"{rate:.0f}", "smtp-sink, asked directly", three(await _own(rate, messages)), "–", "–"))
        seen = {subject.name: Timings() for subject in subjects}
        for turn in range(turns):
            for subject in subjects if turn % 2 == 0 else reversed(subjects):
                seen[subject.name].add(await measure(subject, rate=rate, messages=messages // turns))
        for name, timings in seen.items():
            accepted, arrived = three(timings.accept), three(timings.end_to_end)
            rows.append((f"{rate:.0f}", name, accepted, arrived, str(timings.missing)))
    return Section(
        "Latency at light load",
        f"4 KiB, a new connection a message, {turns} alternating runs; milliseconds: p50 / p95 / p99. What the client "
        "itself takes is in all of them: the first line of a rate shows it, with a server that does nothing.",
        ("messages/s", "subject", "accepted", "arrived at the sink", "lost or refused"),
        rows,
    )


async def _own(rate: float, messages: int) -> list[float]:
    """What a message takes where the server does nothing with it, in seconds."""
    timings = Timings()
    async with smtp_sink():
        await _send(
            SINK_PORT, timings, mark="own", rate=rate, goes_on=lambda number: number < messages, size=4096
        )
    return timings.accept


def three(seconds: Sequence[float]) -> str:
    """p50 / p95 / p99 in milliseconds."""
    if not seconds:
        return "—"
    return " / ".join(f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95, 0.99))
