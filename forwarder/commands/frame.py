"""What makes a function a command: its options, and how it fails.

Exit status: 0 done, 1 it did not work (the sentence says why and what to do), 2 wrong use or configuration. With
``--json`` standard output holds exactly one JSON value (``logs --follow``: one a line), and a failure is a JSON object
``{"error": …}``, the last line of standard error, after what rooms have to warn of. ``--json`` asks nothing and agrees
to nothing: what asks a person first needs ``--yes``.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, ParamSpec

import typer

from forwarder.commands.output import give_up

P = ParamSpec("P")

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


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Go on only after a yes: from ``--yes``, or from the person who is asked."""
    if yes:
        return
    if as_json:
        raise Failure("this asks before it acts, and with --json nobody is asked; add --yes", status=2)
    try:
        typer.confirm(question, abort=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise Failure("nothing was done, for nobody has said yes; where nobody can, add --yes") from None
