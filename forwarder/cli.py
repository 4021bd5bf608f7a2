"""``forwarder``: the commands, put together. What each does stands in ``forwarder.commands``.

``forwarder --help`` must be quick, so nothing heavy is imported before a command runs.
"""

import codecs
import io
import sys

import typer

from forwarder.commands import account, alias, credential, domain, queue
from forwarder.commands.checking import check
from forwarder.commands.frame import command, complain
from forwarder.commands.logs import show_logs
from forwarder.commands.output import OutputError, fill_closed, finish, give_up, plainly, take_over
from forwarder.commands.rotation import rotate
from forwarder.commands.routing import route
from forwarder.commands.serving import demo, migrate, serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A mail-forwarding engine: mail in, mail on, every step logged.",
)

command(app, "serve")(serve)
command(app, "demo")(demo)
command(app, "check")(check)
command(app, "migrate")(migrate)
command(app, "route")(route)
command(app, "logs")(show_logs)
command(domain.app, "rotate")(rotate)

app.add_typer(account.app, name="account")
app.add_typer(domain.app, name="domain")
app.add_typer(alias.app, name="alias")
app.add_typer(credential.app, name="credential")
app.add_typer(queue.app, name="queue")


def _show_version(asked: bool) -> None:
    if asked:
        from forwarder import __version__

        typer.echo(f"forwarder {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_show_version, is_eager=True
    ),
) -> None:
    """A mail-forwarding engine: mail in, mail on, every step logged."""


def main() -> None:
    """The console script."""
    fill_closed()
    codecs.register_error("forwarder", plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="forwarder")
    take_over()
    as_json = "--json" in sys.argv[1:]
    try:
        try:
            status = _run(as_json=as_json)
        finally:
            finish()
    except OutputError as error:
        give_up()
        complain(f"standard output cannot be written ({error.strerror})", as_json=as_json)
        status = 1
    sys.exit(status)


def _run(*, as_json: bool) -> str | int | None:
    """The exit status."""
    status: str | int | None
    try:
        status = app(standalone_mode=not as_json)
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        # Wrong use as typer and click say it, under whichever name they are installed.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        complain(error.format_message(), as_json=True)
        status = error.exit_code
    return status
