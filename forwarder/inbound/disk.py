"""Room on the disk, looked at before a message is taken: a full disk refuses new mail and keeps what is queued."""

import os
import time
from collections.abc import Callable

FRESH = 0.5  # seconds a look is good for


class Disk:
    """The file system of the data directory."""

    def __init__(self, data_dir: os.PathLike[str], *, seconds: Callable[[], float] = time.monotonic) -> None:
        self._data_dir = data_dir
        self._seconds = seconds
        self._free = 0
        self._looked = float("-inf")

    def has_room(self, size_limit: int) -> bool:
        """Whether it can take one more message with its journal and log (Postfix: queue_minfree)."""
        now = self._seconds()
        if now - self._looked >= FRESH:
            disk = os.statvfs(self._data_dir)
            self._free = disk.f_bavail * disk.f_frsize
            self._looked = now
        return self._free >= size_limit * 3 // 2
