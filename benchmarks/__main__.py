"""``python -m benchmarks``: everything into ``benchmarks/results.md``, or one part of it onto the screen."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from benchmarks import api, backlog, directory, machine, peers, report, resources, soak, submission, variants
from benchmarks.bench import Bench

Part = Callable[[Bench], Awaitable[list[report.Section]]]
PARTS: dict[str, Part] = {
    "peers": peers.throughput,
    "latency": peers.light,
    "interpreter": peers.interpreter,
    "resources": resources.taken,
    "features": variants.features,
    "postgres": variants.postgres,
    "submission": submission.submission,
    "slow": backlog.beside_a_dead_host,
    "backlog": backlog.drained,
    "directory": directory.resolved,
    "api": api.speed,
}
EXTRA: dict[str, Part] = {"soak": soak.soaked}  # not part of everything: it takes as long as it is told


def main() -> int:
    options = _options()
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly end: what was started is stopped
    parts = PARTS if options.what == "all" else {options.what: {**PARTS, **EXTRA}[options.what]}
    with tempfile.TemporaryDirectory(prefix="forwarder-bench-") as folder:
        os.chmod(folder, 0o755)  # Postfix's own users must reach their parts
        bench = Bench(
            root=Path(folder),
            rounds=options.rounds,
            scale=options.scale,
            whole=options.whole,
            minutes=options.minutes,
        )
        keep = options.what == "all" and not (options.show or options.json)
        sections = uvloop.run(_run(parts, bench, keep))
    if options.json:
        print(json.dumps([section.plain() for section in sections], indent=1))
    elif not keep:
        print("\n".join(section.text() for section in sections))
    return 0


async def _run(parts: dict[str, Part], bench: Bench, keep: bool) -> list[report.Section]:
    sections: list[report.Section] = []
    for number, (name, part) in enumerate(parts.items(), 1):
        bench.tell(f"{name} ({number} of {len(parts)})")
        sections += await part(bench)
        if keep:  # after each part: a run that is broken off keeps what it has
            facts = [*machine.facts(), ("load before the run", bench.load), ("scale", f"{bench.scale:g}")]
            report.write(facts, sections, when=datetime.now(UTC).date().isoformat())
    return sections


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=("all", *PARTS, *EXTRA))
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each subject")
    parser.add_argument("--scale", type=float, default=1.0, help="a factor on the number of messages")
    parser.add_argument("--whole", action="store_true", help="ten million logs instead of one: minutes more")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parser.add_argument("--json", action="store_true", help="print JSON; nothing is written")
    parser.add_argument("--print", action="store_true", dest="show", help="print, do not write results.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
