"""The standard streams, above all output: a full disk, a reader who left, none at all.

The troubles of output have a type of their own, so that whichever line meets them they are told from those of other
files, and the command ends in a sentence. A reader who left (``BrokenPipeError``) is no trouble.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def fill_closed() -> None:
    """Lead standard streams that are closed to nowhere; but whether there is an output to answer on stays to be seen.

    Else their numbers would be those of the next files that are opened, and what a child says would land in these.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the least number that is free
    if sys.stdin is None:  # as some that start programs leave it: nobody answers there
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


class OutputError(OSError):
    """Standard output cannot be written."""


class Output(io.TextIOWrapper):
    """Standard output as commands write to it."""

    def write(self, text: str, /) -> int:
        """As of any text file; OutputError."""
        with _named():
            return super().write(text)

    def flush(self) -> None:
        """As of any text file; OutputError."""
        with _named():
            super().flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from None


def take_over() -> None:
    """Make standard output an ``Output``, where there is one."""
    given = sys.stdout
    if isinstance(given, io.TextIOWrapper):
        encoding, errors = given.encoding, given.errors
        buffering, through = given.line_buffering, given.write_through
        sys.stdout = Output(given.detach(), encoding, errors, line_buffering=buffering, write_through=through)


_PLAIN = {"✓": "+", "✗": "!", "·": "-", "→": ">"}


def plainly(error: UnicodeError) -> tuple[str, int]:
    """For ``codecs.register_error``: a character that the terminal's encoding lacks becomes a question mark.

    But the marks of ``check`` become ASCII marks: which line is wrong must not be lost, as names in another script are.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def give_up() -> None:
    """Let what is not written yet go nowhere; Python would write it at exit, and complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finish() -> None:
    """See that everything is out; OutputError."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        give_up()
