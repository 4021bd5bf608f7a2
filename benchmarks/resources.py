"""What the engine takes before it does anything, and for large messages: start-up time, idle and peak memory."""

import asyncio
from statistics import median

from benchmarks import load, machine, report
from benchmarks.bench import Bench
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT, Workload

_STARTS = 5
_LARGE = 25 * 2**20
_AT_ONCE = 4


async def taken(bench: Bench) -> list[report.Section]:
    """Starts, then large messages."""
    engine = Engine(bench.root / "resources", port=INBOUND_PORT + 20)
    engine.start()
    engine.stop()
    starts = []
    for _ in range(_STARTS):
        starts.append(await asyncio.to_thread(engine.start, fresh=False))
        await asyncio.to_thread(engine.stop)
    bench.tell("large messages")
    await asyncio.to_thread(engine.start, fresh=False)
    try:
        await asyncio.sleep(2)  # what is done once after the start is not idling
        processes = len(machine.tree(engine.roots()))
        idle = machine.memory_bytes(engine.roots())
        peaks: list[int] = []
        watcher = asyncio.create_task(load.watch_peak(engine, peaks, every=0.1))
        messages = bench.times(16, least=_AT_ONCE * 2)
        done = await load.run(
            engine, Workload(name="25 MiB", messages=messages, size=_LARGE, sessions=_AT_ONCE)
        )
        watcher.cancel()
    finally:
        await asyncio.to_thread(engine.stop)
    share = (max(peaks) - idle) / (_LARGE * _AT_ONCE)
    return [
        report.Section(
            "Start-up and memory",
            f"{processes} processes on SQLite. Large messages: {messages} of 25 MiB, {_AT_ONCE} at once.",
            ("what", "measured"),
            [
                ("from `forwarder serve` to mail being taken, median", f"{median(starts):.2f} s"),
                ("memory, idle, all processes", f"{idle / 2**20:.0f} MiB"),
                (
                    "large messages a second",
                    f"{done.per_second:.1f}" + ("" if done.complete else " (NOT ALL)"),
                ),
                ("CPU ms/MiB", f"{done.cpu_ms / 25:.1f}"),
                ("peak memory above idle", f"{(max(peaks) - idle) / 2**20:.0f} MiB"),
                ("the same as a multiple of size × messages at once", f"{share:.2f}"),
            ],
        )
    ]
