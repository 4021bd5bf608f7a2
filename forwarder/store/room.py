"""Room on the disk for SQLite's file and its write-ahead log, so that what is taken can also be settled.

What is committed stands in the log first, and takes its room a second time when it is copied to the file. Where the
disk has none for that, the log cannot be emptied any more: it grows until nothing can be written, no delivery can be
settled, none goes out, and a new start finds the disk as full as it was. Nothing but mail would have filled it.

So the log is emptied early, and cut off, where the disk is short of room (``make``), and new mail is taken only as long
as all that stands in the log afterwards can still be copied, with ``SPARE`` to go on with (``fits``). Where the file
would get longer by it ``RESERVE`` has to be left: free pages are of use only through a log, which wants some room. What
ends a delivery is never measured: it may use the rest, and gives room back.

Limits: what other programs put on the disk meanwhile is not foreseen. They can fill it, and have to make room again.
"""

import contextlib
import os
import time

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from forwarder.store.straight import run_text

SPARE = 4 * 1024 * 1024  # octets left by a message that stands in free pages
RESERVE = 12 * 1024 * 1024  # and by one that makes the file longer
WORTH = 1024 * 1024  # octets of log for which it is emptied
PAUSE = 1.0  # seconds to the next attempt after one that failed
PLENTY = 1024 * 1024 * 1024  # octets: a disk with so many more than are needed is not looked at again
MEANWHILE = 0.1  # seconds: for so long


class Room:
    """For the writer of one file, while it has the turn; ``path`` as SQLite was given it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)  # SQLite, too, keeps the log beside the file itself
        self._folder = os.path.dirname(self._path)
        self._log = self._path + "-wal"
        self._failed = float("-inf")
        self._plenty_until = float("-inf")

    def is_short(self, octets: int) -> bool:
        """Whether so much more content may leave too little room to copy the log."""
        now = time.monotonic()
        if now < self._plenty_until:
            return False
        left = self._free() - self._logged() - RESERVE - 2 * octets
        if left > PLENTY:
            self._plenty_until = now + MEANWHILE
        return left < 0

    def make(self, conn: Connection) -> None:
        """Empty the log and cut it off, if that is worth it; outside a transaction."""
        if self._logged() < WORTH or time.monotonic() < self._failed + PAUSE:
            return
        if self._owed(conn) > self._free():
            return  # others have filled the disk at once; to try would take them the rest, and us what we go on with
        patience = _number(conn, "PRAGMA busy_timeout")
        # A reader (a backup, say) may be in the way. Nobody waits for it, and nothing is lost by it: what stands in the
        # log is valid there.
        with contextlib.suppress(SQLAlchemyError):
            _number(conn, "PRAGMA busy_timeout=0")
            _number(conn, "PRAGMA wal_checkpoint(TRUNCATE)")
        _number(conn, f"PRAGMA busy_timeout={patience}")
        if self._logged() >= WORTH:
            self._failed = time.monotonic()

    def fits(self, conn: Connection, octets: int) -> bool:
        """As ``is_short``, exactly: free pages of the file take content without making it longer."""
        longer = max(0, octets - spare(conn))
        return self._free() >= octets + longer + self._logged() + (RESERVE if longer else SPARE)

    def _owed(self, conn: Connection) -> int:
        """Octets by which the file gets longer when the log is copied to it."""
        return (
            _number(conn, "PRAGMA page_count") * _number(conn, "PRAGMA page_size")
            - os.stat(self._path).st_size
        )

    def _free(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def _logged(self) -> int:
        try:
            return os.stat(self._log).st_size
        except FileNotFoundError:  # nothing was written yet
            return 0


def spare(conn: Connection) -> int:
    """Octets of free pages: room that the disk does not show, since the file never gets shorter."""
    return _number(conn, "PRAGMA freelist_count") * _number(conn, "PRAGMA page_size")


def _number(conn: Connection, pragma: str) -> int:
    first: int = run_text(conn, pragma, ()).fetchall()[0][0]
    return first
