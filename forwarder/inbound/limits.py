"""Connections at once and per minute, per client and in all, shared by the worker processes of one machine."""

from pathlib import Path


class ClientTable:
    """Counts of connections by client in a file mapped by every worker; each worker writes its own region only."""

    def __init__(self, path: Path, *, region: int = 0, regions: int = 1) -> None:
        self._path = path
        self._region = region
        self._regions = regions


def clear_region(path: Path, *, region: int, regions: int) -> None:
    """Forget what a dead worker had counted; called by the supervisor before it starts the next one."""
