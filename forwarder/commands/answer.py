"""What a command answers: one JSON value for programs, sentences and tables for people."""

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from forwarder.commands.frame import Failure
from forwarder.commands.output import OutputError, give_up

if TYPE_CHECKING:
    from rich.console import Console

UNCUT = 100_000  # columns: more than any table has
MANY = 200  # rows of a table


def console() -> "Console":
    """What people read: nothing highlighted by itself; what goes to a file or a pipe is broken and cut nowhere."""
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program here; see ``frame.command``
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    at_terminal = sys.stdout.isatty()
    # An emoji is not meant: in an IPv6 address ``:a:`` and ``:100:`` are groups.
    return Ours(highlight=False, emoji=False, soft_wrap=not at_terminal, width=None if at_terminal else UNCUT)


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


def listing(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, as_json: bool, empty: str
) -> None:
    """``answer`` of rows; people see a ``table`` of their values, in order."""
    cells = [list(row.values()) for row in rows]
    answer(rows, as_json=as_json, people=lambda out: table(out, columns, cells, empty=empty))


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
        case list():
            return ", ".join(map(shown, value))
    return str(value)
