"""One worker process of a supervisor: what it does first, whichever way it came into being.

The first workers are forked from their supervisor (``forked``), which calls ``work``. One that replaces a dead worker
is a new interpreter, ``python -m forwarder.worker``, started by the supervisor and by nobody else.
"""

import argparse
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwarder.config import Settings, Source
    from forwarder.node import Place


def main() -> int:
    """The command line of a worker that replaces another; the exit status."""
    # Who tells every process of ours to reload does not mean to end one.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.disable()  # until it serves: collecting while modules load is a fifth of the start
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it for tracebacks in colour
    parser = argparse.ArgumentParser(prog="forwarder.worker")
    parser.add_argument("--config")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--successor-of", default="")
    parser.add_argument("--origin", required=True)
    parser.add_argument("--text-from", type=int, required=True)
    given = parser.parse_args()

    from forwarder.config import Source
    from forwarder.node import Place

    place = Place(region=given.index, regions=given.of, worker_id=given.id, successor_of=given.successor_of)
    with os.fdopen(given.text_from, encoding="utf-8", newline="") as text:
        source = Source(origin=given.origin, text=text.read())
    return work(source, given.config, place, hears=sys.stdin.fileno(), says=sys.stdout.fileno())


def work(source: "Source", config: str | None, place: "Place", *, hears: int, says: int) -> int:
    """Serve until told to end; the exit status. ``hears`` and ``says`` are pipes from and to the supervisor.

    ``source`` is the configuration in force; SIGHUP reads ``config`` anew.
    """
    from forwarder import failpoint
    from forwarder.config import ConfigError, parse, read
    from forwarder.diagnostics import set_up
    from forwarder.process import serve_as_worker

    # ``ps -o comm`` and ``top`` show it; a forked worker has its supervisor's command line.
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"forwarder/{place.region}")

    taken = source

    def load_settings() -> "Settings":
        nonlocal taken
        taken = read(config, os.environ)
        return parse(taken, os.environ)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    try:
        settings = parse(source, os.environ)
    except ConfigError as error:  # a worker that died is replaced by one of a newer release
        sys.stderr.write(f"forwarder: no worker can start: the configuration has mistakes:\n{error}\n")
        return 2
    set_up(settings, **place.shown())
    failpoint.arm(os.environ)
    return serve_as_worker(load_settings, settings, place, hears=hears, says=says, taken=lambda: taken.digest)


if __name__ == "__main__":
    sys.exit(main())
