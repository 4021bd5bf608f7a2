"""``python -m benchmarks``: everything, or parts of it, into ``benchmarks/results.md``."""

import argparse
import asyncio
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import latency, load, machine, proof, report
from benchmarks.engine import Engine
from benchmarks.load import INBOUND_PORT, Run, Workload
from benchmarks.peer import Postfix

WORKLOADS = (
    Workload(name="4 KiB, a connection a message", messages=4000, size=4096),
    Workload(name="4 KiB, reused connections", messages=6000, size=4096, reuse=True),
    Workload(name="64 KiB, a connection a message", messages=2000, size=65536),
    Workload(name="1 MiB, a connection a message", messages=200, size=2**20),
    Workload(name="4 KiB to 50 recipients", messages=200, size=4096, recipients=50),
)


def tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


async def against_peers(root: Path, *, rounds: int, scale: float) -> list[report.Section]:
    """The same job side by side: throughput by workload, then latency, then the proof."""
    full = Postfix(root / "full", full=True, port=INBOUND_PORT)
    alone = Postfix(root / "alone", full=False, port=INBOUND_PORT + 10)
    engine = Engine(root / "engine", port=INBOUND_PORT + 20, name="Forwarder (SQLite)")
    subjects = (full, alone, engine)
    runs: list[Run] = []
    try:
        full.start()
        alone.start()
        ready = engine.start()
        for workload in WORKLOADS:
            scaled = Workload(
                name=workload.name,
                messages=max(20, int(workload.messages * scale)),
                size=workload.size,
                reuse=workload.reuse,
                recipients=workload.recipients,
            )
            runs += await load.alternate(subjects, scaled, rounds=rounds, tell=tell)
        tell("latency")
        light = await latency.compare(subjects, rates=(20, 100), messages=max(100, int(600 * scale)))
        tell("proof")
        wrong = await proof.prove(engine)
    finally:
        engine.stop()
        alone.stop()
        full.stop()
    promises = report.Section(
        "The promises while measured",
        "300 numbered messages through the engine that was just measured.",
        ("what", "answer"),
        [
            ("exactly once, and DKIM verified by dkimpy", "; ".join(wrong) or "held"),
            ("start-up", f"{ready:.2f} s"),
        ],
    )
    table = report.throughput(
        "The same job, side by side",
        f"Aliases, SRS, one RSA-2048 signature, durable before 250; 20 sessions, {rounds} alternating runs; "
        "ratios are to the full stack. "
        "*Postfix alone* does neither SRS nor DKIM.",
        runs,
        against=full.name,
    )
    return [table, light, promises]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "peers"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="a factor on the number of messages")
    parser.add_argument(
        "--print", action="store_true", dest="show", help="print instead of writing results.md"
    )
    options = parser.parse_args()
    if gone := machine.missing():
        packages = " ".join(sorted(set(gone.values())))
        print(f"missing: {', '.join(sorted(gone))}. On Debian: apt-get install {packages}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print(
            "Postfix, the peer, starts only as root: run this as root, on a machine you can spare.",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="forwarder-bench-") as folder:
        Path(folder).chmod(0o755)  # Postfix's own users must reach their parts
        sections = asyncio.run(against_peers(Path(folder), rounds=options.rounds, scale=options.scale))
    if options.show:
        print("\n".join(section.text() for section in sections))
    else:
        report.write(machine.facts(), sections, when=datetime.now(UTC).date().isoformat())
    return 0


if __name__ == "__main__":
    sys.exit(main())
