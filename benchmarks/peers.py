"""The same job side by side: throughput by workload, latency at light load, and the promises meanwhile."""

import sys

from benchmarks import latency, load, machine, proof, report
from benchmarks.bench import Bench
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT, Run, Workload
from benchmarks.peer import Postfix

WORKLOADS = (
    Workload(name="4 KiB, a connection a message", messages=4000, size=4096),
    Workload(name="4 KiB, reused connections", messages=5000, size=4096, reuse=True),
    Workload(name="64 KiB, a connection a message", messages=2000, size=65536),
    Workload(name="1 MiB, a connection a message", messages=150, size=2**20),
    Workload(name="4 KiB to 50 recipients", messages=200, size=4096, recipients=50),
    Workload(
        name="a mix: 70 % 4 KiB, 25 % 64 KiB, 5 % 1 MiB",
        messages=700,
        size=4096,
        others=((250, 65536), (50, 2**20)),
    ),
)


async def throughput(bench: Bench) -> list[report.Section]:
    """Every workload through the full stack, Postfix alone and the engine, in alternating runs; then the proof."""
    full, alone, engine = _subjects(bench)
    runs: list[Run] = []
    try:
        for subject in (full, alone):
            subject.start()
        engine.start()
        for workload in WORKLOADS:
            runs += await load.alternate(
                (full, alone, engine), bench.scaled(workload), rounds=bench.rounds, tell=bench.tell
            )
        bench.tell("the promises")
        wrong = await proof.prove(engine)
    finally:
        engine.stop()
        alone.stop()
        full.stop()
    promises = report.Section(
        "The promises while measured",
        "300 numbered messages through the engine that was just measured, signatures verified by dkimpy.",
        ("what", "answer"),
        [
            (
                "each acknowledged message arrived exactly once, its signature verifies",
                "; ".join(wrong) or "held",
            )
        ],
    )
    table = report.throughput(
        "The same job, side by side",
        f"Aliases, SRS, one RSA-2048 signature, durable before 250; 20 sessions, {bench.rounds} alternating runs; "
        "ratios are to the full stack. *Postfix alone* does neither SRS nor DKIM.",
        runs,
        against=full.name,
    )
    return [table, promises]


async def interpreter(bench: Bench) -> list[report.Section]:
    """The engine on another build of the interpreter, if there is one: with profile-guided optimisation, or without."""
    python = machine.other_python()
    if python is None:
        return []
    full, _, engine = _subjects(bench)
    other = Engine(
        bench.root / "other",
        port=INBOUND_PORT + 30,
        name=f"Forwarder on {machine.build(python)}",
        python=python,
    )
    runs: list[Run] = []
    try:
        full.start()
        engine.start()
        other.start()
        for workload in WORKLOADS[:3]:
            runs += await load.alternate(
                (full, engine, other), bench.scaled(workload), rounds=bench.rounds, tell=bench.tell
            )
    finally:
        other.stop()
        engine.stop()
        full.stop()
    return [
        report.throughput(
            "Another build of the interpreter",
            f"Everywhere else the engine runs on {machine.build(sys.executable)}; here also on "
            f"{machine.build(python)}, of the same version. Ratios are to the full stack.",
            runs,
            against=full.name,
        )
    ]


async def light(bench: Bench) -> list[report.Section]:
    """Latency at 20 and at 100 messages a second."""
    full, alone, engine = _subjects(bench)
    try:
        for subject in (full, alone):
            subject.start()
        engine.start()
        bench.tell("latency")
        return [
            await latency.compare(
                (full, alone, engine),
                rates=(20, 100),
                messages=bench.times(400, least=100),
                turns=bench.rounds,
            )
        ]
    finally:
        engine.stop()
        alone.stop()
        full.stop()


def _subjects(bench: Bench) -> tuple[Postfix, Postfix, Engine]:
    return (
        Postfix(bench.root / "full", full=True, port=INBOUND_PORT),
        Postfix(bench.root / "alone", full=False, port=INBOUND_PORT + 10),
        Engine(bench.root / "engine", port=INBOUND_PORT + 20, name="Forwarder (SQLite)"),
    )
