"""One timed run: smtp-source on one side, smtp-sink on the other, the subject between them.

The figure is messages a second from the first byte sent to the last message received. smtp-source and smtp-sink
come with Postfix and are made for this; they cost about a tenth of what is measured.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from benchmarks import machine
from benchmarks.sink import smtp_sink

INBOUND_PORT = 2525
SETTLED = 0.3  # seconds after the last message: writing down what became of it belongs to the cost
PEAK_EVERY = 1.0  # seconds: the kernel walks every page table for a figure


Tell = Callable[[str], None]


class Subject(Protocol):
    """What is measured: something that takes mail on ``port`` and passes it on to SINK_PORT."""

    name: str
    port: int

    def roots(self) -> list[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    name: str
    messages: int
    size: int
    sessions: int = 20
    reuse: bool = False
    recipients: int = 1
    recipient: str = "alias7@fwd.test"
    sender: str = "sender@origin.test"
    content: Path | None = None  # a file to send, instead of one made up of ``size`` octets
    others: tuple[tuple[int, int], ...] = ()  # a mix: messages and size of further sources beside the first

    @property
    def total(self) -> int:
        """Messages of all sources."""
        return self.messages + sum(count for count, _ in self.others)

    def scaled(self, scale: float) -> "Workload":
        """The same with that many times the messages."""
        return replace(
            self,
            messages=max(20, int(self.messages * scale)),
            others=tuple((max(10, int(count * scale)), size) for count, size in self.others),
        )

    def sources(self, port: int) -> list[list[str]]:
        """The commands that make this load."""
        return [self._source(port, *kind) for kind in ((self.messages, self.size), *self.others)]

    def _source(self, port: int, messages: int, size: int) -> list[str]:
        sessions = max(1, self.sessions // (1 + len(self.others)))
        command = ["smtp-source", "-s", str(sessions), "-m", str(messages)]
        command += ["-F", str(self.content)] if self.content is not None else ["-l", str(size)]
        command += ["-f", self.sender, "-t", self.recipient]
        if self.reuse:
            command.append("-d")
        if self.recipients > 1:
            command += ["-r", str(self.recipients)]
        return [*command, f"127.0.0.1:{port}"]


@dataclass(slots=True)
class Run:
    subject: str
    workload: str
    per_second: float
    cpu_ms: float
    peak_bytes: int
    complete: bool


async def watch_peak(subject: Subject, seen: list[int], *, every: float = PEAK_EVERY) -> None:
    """Task body: the memory of a subject, again and again."""
    while True:
        seen.append(await asyncio.to_thread(machine.memory_bytes, subject.roots()))
        await asyncio.sleep(every)


async def run(subject: Subject, workload: Workload, *, patience: float = 180.0) -> Run:
    """One run of ``workload`` through ``subject``.

    What did not arrive in ``patience`` seconds makes it incomplete, and so does what arrived twice.
    """
    total = workload.total
    peaks: list[int] = []
    async with smtp_sink() as sink:
        watcher = asyncio.create_task(watch_peak(subject, peaks))
        before = machine.cpu_seconds(subject.roots())
        started = time.monotonic()
        commands = workload.sources(subject.port)
        environ = machine.environment()
        sources = [await asyncio.create_subprocess_exec(*command, env=environ) for command in commands]
        complete = not any([await source.wait() for source in sources])
        complete = await sink.reach(total, patience=patience) and complete
        elapsed = time.monotonic() - started
        await asyncio.sleep(SETTLED)
        complete = complete and sink.taken == total
        spent = machine.cpu_seconds(subject.roots()) - before
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
    return Run(
        subject=subject.name,
        workload=workload.name,
        per_second=total / elapsed,
        cpu_ms=spent / total * 1000,
        peak_bytes=max(peaks, default=0),
        complete=complete,
    )


async def alternate(subjects: Sequence[Subject], workload: Workload, *, rounds: int, tell: Tell) -> list[Run]:
    """``rounds`` times each subject in turn; which goes first alternates too."""
    runs: list[Run] = []
    for number in range(rounds):
        ordered = subjects if number % 2 == 0 else list(reversed(subjects))
        for subject in ordered:
            tell(f"{workload.name}: run {number + 1} of {rounds}, {subject.name}")
            runs.append(await run(subject, workload))
    return runs
