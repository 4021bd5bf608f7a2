"""Room on the disk, looked at before a message is taken: a full disk refuses new mail and keeps what is queued."""

import os


def has_room(data_dir: os.PathLike[str], size_limit: int) -> bool:
    """Whether the disk can take one more message with its journal and log (Postfix: queue_minfree)."""
    disk = os.statvfs(data_dir)
    return disk.f_bavail * disk.f_frsize >= size_limit * 3 // 2
