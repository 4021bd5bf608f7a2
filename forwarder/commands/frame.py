"""What all commands share: options, the settings, the open store, output for people and for programs, failures.

Exit status: 0 done, 1 it did not work (the sentence says why and what to do), 2 wrong use or configuration. With
``--json`` standard output holds exactly one JSON value (``logs --follow``: one a line), and a failure is a JSON object
``{"error": …}``, the last line of standard error, after what rooms have to warn of. ``--json`` asks nothing and agrees
to nothing: what asks a person first needs ``--yes``.
"""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from forwarder.commands.output import OutputError, give_up

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.engine import Database
    from forwarder.store.vault import Vault

UNCUT = 100_000  # columns: more than any table has
MANY = 200  # rows of a table

P = ParamSpec("P")
T = TypeVar("T")

Config = Annotated[
    str | None,
    typer.Option(
        "--config", help="The configuration; else FORWARDER_CONFIG, else ./config.toml.", metavar="FILE"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class Failure(Exception):
    """It did not work; the text is a sentence that says what to do."""

    def __init__(self, sentence: str, *, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def command(app: typer.Typer, name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a command whose expected failures end in a sentence."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                if sys.stdout is None and name != "serve":  # a server has nothing to answer
                    raise Failure(
                        "standard output is closed, so nothing was done; lead it somewhere, or to /dev/null"
                    )
                _check_text(kwargs)
                function(*args, **kwargs)
            except BrokenPipeError:
                give_up()  # whoever read us has seen enough, as ``| head`` does
            except Exception as error:
                explained = explain(error)
                if explained is None:
                    raise
                status, sentence = explained
                complain(sentence, as_json=bool(kwargs.get("as_json")))
                raise typer.Exit(status) from None

        app.command(name)(guarded)
        return guarded

    return register


def _check_text(arguments: Mapping[str, object]) -> None:
    """Failure where an argument is not text: Python hands octets that are not UTF-8 on as lone surrogates."""
    for name, value in arguments.items():
        words = value if isinstance(value, list) else [value]
        for word in words:
            # The name of a file may be any octets.
            if isinstance(word, str) and name != "config" and not _is_text(word):
                raise Failure(f"{word!r} is not UTF-8; write it as text", status=2)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def explain(error: Exception) -> tuple[int, str] | None:
    """The exit status and the sentence of an expected failure; None for any other."""
    from forwarder.config import ConfigError
    from forwarder.keyring import KeyringError
    from forwarder.mail.address import AddressError
    from forwarder.node import NodeError
    from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, TooLarge
    from forwarder.store.trouble import StoreUnavailable

    match error:
        case Failure():
            return error.status, str(error)
        case ConfigError():
            return 2, f"the configuration has mistakes:\n{error}"
        case KeyringError() | NodeError() | AddressError() | AlreadyExists() | Missing() | TooLarge():
            return 1, str(error)
        case LimitReached():
            return 1, f"{error}; the limits stand in [plans] of the configuration"
        case StoreUnavailable():
            return 1, store_trouble(error)
    return None


def store_trouble(error: Exception) -> str:
    """Without the text of the cause, which may hold the database's password."""
    from forwarder.store.faults import explain as explained

    return explained(error).text


def complain(sentence: str, *, as_json: bool) -> None:
    """Say on standard error why a command failed."""
    text = json.dumps({"error": sentence}) if as_json else f"forwarder: {sentence}"
    print(text, file=sys.stderr)  # noqa: T201 - the command line's own channel


def settings_of(config: str | None) -> "Settings":
    """The configuration that ``--config`` names, with logging set up for a person at a prompt; ConfigError."""
    from forwarder.config import load
    from forwarder.diagnostics import set_up

    settings = load(config, os.environ)
    # What rooms log goes to standard error, and only what a person at a prompt must know.
    set_up(settings.model_copy(update={"logs": settings.logs.model_copy(update={"level": "warning"})}))
    return settings


def make_data_dir(settings: "Settings") -> None:
    """The folder that SQLite needs, made where it is missing; Failure."""
    if not settings.database.url.startswith("sqlite"):
        return
    not_as_root(settings)
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            f"{settings.data_dir} cannot be made ({error.strerror}); "
            "data_dir must be writable for the user that runs this"
        ) from None


def not_as_root(settings: "Settings") -> None:
    """Failure where root would make files in another user's folder, with which the engine could not start."""
    from forwarder.store.engine import sqlite_path

    if os.geteuid() != 0 or (path := sqlite_path(settings.database.url)) is None:
        return
    for made in (*(Path(path + end) for end in ("", ".lock", ".turn")), settings.data_dir / "keys"):
        if made.exists():
            continue
        folder = next(each for each in made.absolute().parents if each.exists())
        if owner := folder.stat().st_uid:
            raise Failure(
                f"{folder} belongs to {_user(owner)}, and the engine could not use what root makes in it; "
                f"run this as that user: runuser -u {_user(owner)} -- …"
            )


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # of a container, say
        return str(number)


def with_store(config: str | None, work: "Callable[[Database, Settings], Coroutine[Any, Any, T]]") -> T:
    """Run ``work`` over the open database, brought up to date first where ``serve`` would do so too."""
    return _over(settings_of(config), work)


def _over(settings: "Settings", work: "Callable[[Database, Settings], Coroutine[Any, Any, T]]") -> T:
    import asyncio

    from forwarder.schema import check_schema
    from forwarder.store.engine import Database

    make_data_dir(settings)

    async def main() -> T:
        database = await Database.open(settings.database.url, pool_size=1)
        try:
            await check_schema(database, settings.database.url)
            return await work(database, settings)
        finally:
            await database.close()

    return asyncio.run(main())


def read(config: str | None, work: "Callable[[Connection, Settings], T]") -> T:
    """Ask the store one thing."""

    async def ask(database: "Database", settings: "Settings") -> T:
        return await database.read(lambda conn: work(conn, settings))

    return with_store(config, ask)


def write(config: str | None, work: "Callable[[Connection, Settings], T]") -> T:
    """Change one thing, durably when this returns."""

    async def change(database: "Database", settings: "Settings") -> T:
        return await database.write(lambda conn: work(conn, settings))

    return with_store(config, change)


def vault_of(settings: "Settings") -> "Vault":
    """The vault; its key is made, or refused, as ``serve`` would."""
    from forwarder.custody import check_keys
    from forwarder.keyring import open_store_key
    from forwarder.store.vault import Vault

    _over(settings, check_keys)
    return Vault(open_store_key(settings))


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Go on only after a yes: from ``--yes``, or from the person who is asked."""
    if yes:
        return
    if as_json:
        raise Failure("this asks before it acts, and with --json nobody is asked; add --yes", status=2)
    typer.confirm(question, abort=True)


def console() -> "Console":
    """What people read: nothing highlighted by itself; what goes to a file or a pipe is broken and cut nowhere."""
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program here; see ``command``
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    at_terminal = sys.stdout.isatty()
    return Ours(highlight=False, soft_wrap=not at_terminal, width=None if at_terminal else UNCUT)


def answer(value: object, *, as_json: bool, people: Callable[["Console"], None], lost: str = "") -> None:
    """Show ``value`` as JSON, or let ``people`` draw it; Failure when it cannot be written.

    ``lost``: what to do then, for an answer that holds what is never shown again.
    """
    try:
        if as_json:
            print(json.dumps(value, default=_plain, indent=2 if sys.stdout.isatty() else None))  # noqa: T201
        else:
            people(console())
        sys.stdout.flush()
    except (OutputError, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError) and not lost:
            raise
        give_up()
        said = f"the command has run, but its answer cannot be written ({error.strerror})"
        raise Failure(f"{said}; {lost}" if lost else said) from None


def tell(value: object, sentence: str, *, as_json: bool) -> None:
    """``answer`` in one sentence, with nothing in it taken for markup."""
    answer(value, as_json=as_json, people=lambda out: out.print(sentence, markup=False))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return str(value)


def table(out: "Console", columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A table for people, or the sentence ``empty``."""
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        out.print(empty)
        return
    if len(rows) > MANY:
        _long_table(out, columns, rows)
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The first names the row, and is what people copy into the next command. What does not fit into another is
        # broken and not cut: of two destinations both must be seen.
        drawn.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        drawn.add_row(*(escape(shown(cell)) for cell in row))
    out.print(drawn)


def _long_table(out: "Console", columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The same, a line for each row however wide the terminal is: rich takes half a millisecond to fit one to it."""
    from rich.cells import cell_len

    lines = [columns, *([shown(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    head, *rest = (
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    out.out(head, style="bold", highlight=False)
    out.out("\n".join(rest), highlight=False)


def shown(value: object) -> str:
    """A cell as people read it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}Z"  # UTC, as all we keep; the machine's own zone is another
    return str(value)
