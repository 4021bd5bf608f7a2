"""``python -m forwarder.worker``: one worker process, started by the supervisor and by nobody else."""

import argparse
import gc
import os
import sys


def main() -> int:
    gc.disable()  # until it serves: collecting while modules load is a fifth of the start
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it for tracebacks in colour
    parser = argparse.ArgumentParser(prog="forwarder.worker")
    parser.add_argument("--config")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--successor-of", default="")
    given = parser.parse_args()

    from forwarder import failpoint
    from forwarder.config import Settings, load
    from forwarder.diagnostics import set_up
    from forwarder.process import serve_as_worker
    from forwarder.serve import Place

    def load_settings() -> Settings:
        return load(given.config, os.environ)

    settings = load_settings()
    set_up(settings, process=given.index)
    failpoint.arm(os.environ)
    place = Place(region=given.index, regions=given.of, worker_id=given.id, successor_of=given.successor_of)
    return serve_as_worker(load_settings, settings, place)


if __name__ == "__main__":
    sys.exit(main())
