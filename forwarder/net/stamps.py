"""What shows that a file is to be read again: it was written, another took its place, or its owner or mode changed."""

import os
from pathlib import Path


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Another one after each change; None: there is no such file, or it cannot be looked at. One call of the system."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    # Not the time of the last write: a key that was copied unreadable is mended without one.
    return found.st_ctime_ns, found.st_size, found.st_ino
