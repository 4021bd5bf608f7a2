"""Whether SQLite's files are still those that a new start would find.

A file that somebody removes, or replaces, while it is open lives on without a name: everything goes on as before, and
what is written is gone when the last process that has it open ends. Mail must not be acknowledged into it, so from
then on nothing is written (``Misplaced``) until the engine is started again.

Where only the log is gone nothing is lost: what it holds is copied to the file at once. Not so for the file itself.

Limits: looked at before a transaction, a tenth of a second after the last look; what is written in between goes into
the file with the rest at the next look, for which a sign of life is enough. Until then a SIGKILL loses it.
"""

import errno
import os
import time

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from forwarder.store.straight import run_text
from forwarder.store.trouble import Misplaced

MEANWHILE = 0.1  # seconds a look is good for

_Identity = tuple[int, int] | None  # None: there is no such file


class Place:
    """For the writer of one file; ``path`` as SQLite was given it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)  # SQLite, too, keeps the log beside the file itself
        self._file = _identity(self._path)
        self._wal: _Identity = None  # that of the open connection, once it has one
        self._good_until = float("-inf")

    def before_connecting(self) -> None:
        """A connection will be opened; it would make a new file of that name."""
        self._look_at_file()
        self._wal = None

    def look(self, conn: Connection) -> None:
        """At the files of a connection that has been written with; Misplaced."""
        now = time.monotonic()
        if now < self._good_until:
            return
        self._look_at_file()
        log = f"{self._path}-wal"
        found = _identity(log)
        self._wal = self._wal or found
        if found != self._wal:
            raise Misplaced from _rescued(conn) or _stale(log)
        self._good_until = now + MEANWHILE

    def _look_at_file(self) -> None:
        if _identity(self._path) != self._file:
            raise Misplaced from _stale(self._path)


def _rescued(conn: Connection) -> SQLAlchemyError | None:
    """Copy the log to the file; what hindered it. A long read is out of the way at another look.

    Where another process has done it already the log that is open here is empty, which SQLite calls an I/O error.
    """
    try:
        run_text(conn, "PRAGMA wal_checkpoint(TRUNCATE)", ()).fetchall()
    except SQLAlchemyError as error:
        return error
    return None


def _stale(path: str) -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)


def _identity(path: str) -> _Identity:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
