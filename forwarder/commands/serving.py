"""``forwarder serve | demo | migrate``."""

import os
import sys
from typing import TYPE_CHECKING

import typer

from forwarder.commands.access import make_data_dir, settings_of
from forwarder.commands.answer import tell
from forwarder.commands.frame import AsJson, Config, Failure

if TYPE_CHECKING:
    from forwarder.config import Settings


def serve(config: Config = None, as_json: AsJson = False) -> None:
    """Serve everything that the configuration switches on, until SIGTERM.

    SIGTERM drains for at most 30 seconds; SIGHUP reloads certificates, keys and configuration.
    """
    import gc
    import signal

    gc.disable()  # until it serves: collecting while modules load is a fifth of the start
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # structlog would load it for tracebacks in colour
    from forwarder import failpoint
    from forwarder.config import load, parse, read
    from forwarder.descriptors import raise_limit
    from forwarder.diagnostics import set_up

    def load_settings() -> "Settings":
        return load(config, os.environ)

    if as_json:  # in the workers and after a reload, too
        os.environ["FORWARDER_LOGS__FORMAT"] = "json"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    source = read(config, os.environ)
    settings = parse(source, os.environ)
    set_up(settings)
    failpoint.arm(os.environ)
    raise_limit()
    count = settings.workers.processes or len(os.sched_getaffinity(0))
    if count == 1:
        from forwarder.process import serve_alone

        raise typer.Exit(serve_alone(load_settings, settings))
    from forwarder.supervisor import supervise

    raise typer.Exit(supervise(settings, source=source, config_path=config, count=count))


def demo(as_json: AsJson = False) -> None:
    """Run the whole engine on this machine, send mail through it, and show what happened."""
    from forwarder.demo import run_demo

    raise typer.Exit(run_demo(as_json=as_json))


def migrate(config: Config = None, as_json: AsJson = False) -> None:
    """Bring the database to the schema of this release. Safe while the engine serves."""
    from forwarder.store import migrations

    settings = settings_of(config)
    make_data_dir(settings)
    before = migrations.state(settings.database.url)
    if before == "newer":
        raise Failure(
            "the database has the schema of a newer release; install that release on this machine, too"
        )
    migrations.upgrade(settings.database.url)
    said = "was up to date already" if before == "current" else "is up to date"
    tell({"before": before, "now": "current"}, f"The database {said}.", as_json=as_json)
