"""Room for one more message, looked at before it is taken: a full disk refuses new mail and keeps what is queued.

SQLite's file does not get shorter when what waited in it is delivered. A backlog that filled the disk leaves it full of
free pages: they are room as well, as long as the disk has some for the log that they are written to first. Whether a
message really fits is the store's to say (``store.room``).
"""

import os
import time
from collections.abc import Awaitable, Callable

FRESH = 0.5  # seconds a look is good for
LEAST = 8 * 1024 * 1024  # octets that the disk itself must have free


class Disk:
    """The file system of the data directory; ``spare``: octets that the store has free within its file."""

    def __init__(
        self,
        data_dir: os.PathLike[str],
        spare: Callable[[], Awaitable[int]],
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._data_dir = data_dir
        self._spare = spare
        self._seconds = seconds
        self._free = 0
        self._looked = float("-inf")

    async def takes(self, size_limit: int) -> bool:
        """Whether there is room for one more message; may raise what the store raises."""
        if self.has_room(size_limit):
            return True
        needed = _needed(size_limit)
        return self._free >= LEAST and self._free + await self._spare() >= needed

    def has_room(self, size_limit: int) -> bool:
        """Whether the disk can take one more message with its journal and log (Postfix: queue_minfree)."""
        now = self._seconds()
        if now - self._looked >= FRESH:
            disk = os.statvfs(self._data_dir)
            self._free = disk.f_bavail * disk.f_frsize
            self._looked = now
        return self._free >= _needed(size_limit)


def _needed(size_limit: int) -> int:
    return size_limit * 3 // 2
