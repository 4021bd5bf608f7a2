"""``make crash KILLS=10000``: the long campaign, with a report. Ctrl-C ends the deaths and judges what was."""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.crash import points
from tests.crash.campaign import Campaign, progress


@contextlib.contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield ""
        return
    from tests.postgres import Server

    server = Server.start()
    try:
        yield server.database()
    finally:
        server.remove()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--nodes", type=int, default=1, help="on PostgreSQL; SQLite has one")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--supervisor-only", action="store_true", help="with --processes: its workers are not killed with it"
    )
    parser.add_argument("--points", action="store_true", help="first die once at every named point")
    parser.add_argument(
        "--pause", type=float, default=0.9, help="from a 250 to the next death, at most, seconds"
    )
    parser.add_argument("--keep", help="where to copy logs, ledger and database when a promise was broken")
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--cold", action="store_true", help="start every process from nothing: slower")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if options.supervisor_only and options.processes < 2:
        parser.error("--supervisor-only needs --processes 2 or more: one process is its own supervisor")
    kinds = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    failed = False
    for kind in kinds:
        nodes = options.nodes if kind == "postgresql" else 1
        with tempfile.TemporaryDirectory(prefix="forwarder-crash-") as folder, _database(kind) as url:
            campaign = Campaign(
                folder=Path(folder),
                database_url=url,
                nodes=nodes,
                processes=options.processes,
                seed=options.seed,
                tell=progress,
                cold=options.cold,
            )
            signal.signal(signal.SIGINT, lambda *_, running=campaign: setattr(running, "enough", True))
            with campaign:
                rows = points.table(campaign, points.ordinary(), nths=(1, 3)) if options.points else []
                campaign.random_kills(
                    options.kills,
                    rate=options.rate,
                    pause=options.pause,
                    supervisor_only=options.supervisor_only,
                )
                verdict = campaign.settle()
            slowest = max(campaign.restarts)
            print(f"\n{kind}, {nodes} node(s), seed {options.seed}, slowest restart {slowest:.2f} s")
            print("\n".join("  " + line for line in verdict.lines()))
            for row in rows:
                print(f"  {row.point}:{row.nth}  {'died there' if row.reached else 'NOT REACHED'}")
            if verdict.broken and options.keep:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True)
            failed = failed or bool(verdict.broken) or not all(row.reached for row in rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
