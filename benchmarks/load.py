"""One timed run: smtp-source on one side, smtp-sink on the other, the subject between them.

The figure is messages a second from the first byte sent to the last message received. smtp-source and smtp-sink
come with Postfix and are made for this; they cost about a tenth of what is measured.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import machine

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
INBOUND_PORT = 2525
SINK_PORT = 2626
PEAK_EVERY = 0.2


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
    note: str = ""

    def source(self, port: int) -> list[str]:
        command = ["smtp-source", "-s", str(self.sessions), "-m", str(self.messages), "-l", str(self.size)]
        command += ["-f", "sender@origin.test", "-t", "alias7@fwd.test"]
        if self.reuse:
            command.append("-d")
        if self.recipients > 1:
            command += ["-r", str(self.recipients)]
        return [*command, f"127.0.0.1:{port}"]


@dataclass(slots=True)
class Run:
    subject: str
    workload: str
    accepted_per_second: float
    per_second: float
    cpu_ms: float
    peak_bytes: int
    complete: bool
    remarks: list[str] = field(default_factory=list)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": PATH}


def wait_for_port(port: int, *, seconds: float, host: str = "127.0.0.1") -> None:
    """Return when something listens; RuntimeError when nothing does in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on {host}:{port} after {seconds:.0f} s")


async def _watch_peak(subject: Subject, seen: list[int]) -> None:
    while True:
        seen.append(machine.resident_bytes(subject.roots()))
        await asyncio.sleep(PEAK_EVERY)


async def run(subject: Subject, workload: Workload, *, patience: float = 180.0) -> Run:
    """One run of ``workload`` through ``subject``; what did not arrive in ``patience`` seconds makes it incomplete."""
    environ = environment()
    arrivals = workload.messages
    sink = await asyncio.create_subprocess_exec(
        "smtp-sink", "-u", "nobody", "-M", str(arrivals), f"127.0.0.1:{SINK_PORT}", "1000", env=environ,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    await asyncio.to_thread(wait_for_port, SINK_PORT, seconds=5)
    peaks: list[int] = []
    watcher = asyncio.create_task(_watch_peak(subject, peaks))
    before = machine.cpu_seconds(subject.roots())
    started = time.monotonic()
    source = await asyncio.create_subprocess_exec(*workload.source(subject.port), env=environ)
    complete = await source.wait() == 0
    accepted = time.monotonic() - started
    try:
        await asyncio.wait_for(sink.wait(), patience)
    except TimeoutError:
        complete = False
        sink.terminate()
        await sink.wait()
    elapsed = time.monotonic() - started
    await asyncio.sleep(0.3)  # the last settlements belong to the cost
    spent = machine.cpu_seconds(subject.roots()) - before
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher
    return Run(
        subject=subject.name,
        workload=workload.name,
        accepted_per_second=workload.messages / accepted,
        per_second=workload.messages / elapsed,
        cpu_ms=spent / workload.messages * 1000,
        peak_bytes=max(peaks, default=0),
        complete=complete,
    )


async def alternate(
    subjects: Sequence[Subject], workload: Workload, *, rounds: int, tell: "Tell"
) -> list[Run]:
    """``rounds`` times each subject in turn; which goes first alternates too."""
    runs: list[Run] = []
    for number in range(rounds):
        ordered = subjects if number % 2 == 0 else list(reversed(subjects))
        for subject in ordered:
            tell(f"{workload.name}: run {number + 1} of {rounds}, {subject.name}")
            runs.append(await run(subject, workload))
    return runs


class Tell(Protocol):
    def __call__(self, text: str, /) -> None: ...
