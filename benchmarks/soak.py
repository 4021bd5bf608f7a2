"""A long run at a steady rate: does memory grow, does the loop stay quick, does everything arrive."""

import asyncio
import time
from collections.abc import Sequence

from benchmarks import latency, machine, report
from benchmarks.bench import Bench
from benchmarks.echo import bare_server
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT
from benchmarks.pulse import felt

RATE = 100  # messages a second
EVERY = 5.0  # seconds between two looks at the memory
_WARM = 0.25  # the first part of the run is warming up


async def soaked(bench: Bench) -> list[report.Section]:
    """``bench.minutes`` at RATE."""
    engine = Engine(bench.root / "soak", port=INBOUND_PORT + 20)
    messages = int(bench.minutes * 60 * RATE)
    memory: list[tuple[float, int]] = []
    with bench.serving(engine):
        began = time.monotonic()

        async def watch() -> None:
            while True:
                used = await asyncio.to_thread(machine.memory_bytes, engine.roots())
                memory.append((time.monotonic() - began, used))
                if len(memory) % 12 == 0:
                    bench.tell(
                        f"{memory[-1][0] / 60:.0f} of {bench.minutes:.0f} minutes, {used / 2**20:.0f} MiB"
                    )
                await asyncio.sleep(EVERY)

        watcher = asyncio.create_task(watch())
        cpu = machine.cpu_seconds(engine.roots())
        async with bare_server() as port, felt(engine.port) as pulse, felt(port) as control:
            timings = await latency.measure(engine, rate=RATE, messages=messages)
        spent = machine.cpu_seconds(engine.roots()) - cpu
        watcher.cancel()
    doubled = sum(len(copies) > 1 for copies in timings.arrived.values())
    settled = memory[int(len(memory) * _WARM) :]
    return [
        report.Section(
            f"Soak: {bench.minutes:g} minutes at {RATE} messages a second",
            f"4 KiB, a connection a message; memory of all processes, looked at each {EVERY:g} s.",
            ("what", "measured"),
            [
                ("messages", f"{timings.sent:,}"),
                ("lost or refused / doubled", f"{timings.missing} / {doubled}"),
                ("memory at the beginning and at the end", f"{_mib(memory[0])} / {_mib(memory[-1])}"),
                ("memory slope after warming up", f"{slope(settled) * 3600 / 2**20:+.1f} MiB an hour"),
                ("loop lag: p50 / p99 / longest ms", pulse.text()),
                ("the same of a bare server beside it: the machine's and this client's", control.text()),
                ("end to end: p50 / p95 / p99 ms", latency.three(timings.end_to_end)),
                ("CPU ms/message", f"{spent / max(1, timings.sent) * 1000:.2f}"),
            ],
        )
    ]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits best (least squares)."""
    count = len(points)
    if count < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else 0.0


def _mib(point: tuple[float, int]) -> str:
    return f"{point[1] / 2**20:.0f} MiB"
