"""Connections at once and per minute, per client and in all, shared by the worker processes of one machine.

The kernel spreads the connections of one client over all workers, so each must see what the others hold. They share
a small file, mapped into memory, without locks: every worker writes its own region only and reads all of them. A
region counts in the manner of a count-min sketch: each client is hashed, with a key that the file keeps, to ``ROWS``
cells, and its count is the least of them. So memory is bounded whatever the number of clients, and an error can only
be a count that is too high, and only when all of a client's cells collide with busy ones.

A network, which may have clients without end, takes no more of a process's places than are still free: one leaves half
of them to others, two a third. It may always have as many as one client.

Limits: two workers that admit at the same instant may both take the last place. A worker that dies without leaving
keeps its counts until ``clear_region``, and all that die at once until ``clear_table``. A rate is counted in slots of
ten seconds over the last minute. Slots further ahead than that were filled before the clock was set back, and count no
more: a client that had just reached its limit would be kept out until the clock is there again.
"""

import contextlib
import hashlib
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from forwarder.config import run_folder
from forwarder.net.addresses import client_of, network_of

SERVICES = ("mx", "submission")  # each counts its clients in a table of its own
ROWS = 4
CELLS = 2048  # of one row
SLOT_SECONDS = 10
SLOTS = 7  # the last minute and the slot that is being filled
_SHEET = ROWS * CELLS  # the cells of one sketch: one for what is open, one for each slot
_EMPTY_SHEET = memoryview(bytes(4 * _SHEET)).cast("I")
# Of one region: how many are open, the number of each slot, the sketches.
_WORDS = 1 + SLOTS + _SHEET * (1 + SLOTS)
_KEY_BYTES = 32
_HEADER = 64


class Crowded(StrEnum):
    """Why a connection is not taken."""

    SERVER = "too many connections"
    CLIENT = "too many connections from your address"
    RATE = "too many connections a minute from your address"
    NETWORK = "too many connections, many of them from your network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How much is allowed; 0 means without limit."""

    in_all: int  # at once, in this process
    per_client: int  # at once, in all processes
    per_minute: int  # of one client, in all processes


def table_path(data_dir: Path, service: str) -> Path:
    """Where the workers of one machine share what they count for a service (``mx``, ``submission``)."""
    return run_folder(data_dir) / f"clients-{service}"


def clear_region(path: Path, *, region: int, regions: int) -> None:
    """Forget what a dead worker had counted; for the supervisor, before it starts the next one."""
    ClientTable(path, region=region, regions=regions).close()


def clear_table(path: Path) -> None:
    """Forget what an earlier run had counted, in whatever regions; for whoever starts a node, before any serves."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        file.seek(_HEADER)
        file.write(bytes(max(0, os.fstat(file.fileno()).st_size - _HEADER)))


class ClientTable:
    """The mapped file. Counts are 32 bits wide and aligned, so a reader sees the old or the new one.

    Whoever opens it has no client yet: its region is cleared.
    """

    def __init__(self, path: Path, *, region: int, regions: int) -> None:
        """``region``: which of so many is its own, from 0."""
        size = _HEADER + 4 * _WORDS * regions
        self._file = _shared_file(path, size)
        self._map = mmap.mmap(self._file, size)
        self._key = self._map[:_KEY_BYTES]
        self._words = memoryview(self._map)[_HEADER:].cast("I")
        self._own = _WORDS * region
        self._starts = [_WORDS * number for number in range(regions)]
        self.clear()

    def clear(self) -> None:
        """Forget what this region counts."""
        for place in range(self._own, self._own + _WORDS):
            self._words[place] = 0

    def close(self) -> None:
        """Let go of the file; what it counts for others stays."""
        self._words.release()
        self._map.close()
        os.close(self._file)

    def cells(self, client: str) -> tuple[int, ...]:
        """The client's place in each row of a sketch."""
        digest = hashlib.blake2b(client.encode(), key=self._key, digest_size=4 * ROWS).digest()
        return tuple(
            row * CELLS + int.from_bytes(digest[4 * row : 4 * row + 4], "little") % CELLS
            for row in range(ROWS)
        )

    @property
    def open_here(self) -> int:
        """Connections open in this process."""
        return self._words[self._own]

    def open_of(self, cells: tuple[int, ...]) -> int:
        """Connections of one client open now, in all processes."""
        return self._least(cells, [start + 1 + SLOTS for start in self._starts])

    def open_here_of(self, cells: tuple[int, ...]) -> int:
        """Those of one client, or network, in this process."""
        return self._least(cells, [self._own + 1 + SLOTS])

    def recent_of(self, cells: tuple[int, ...], slot: int) -> int:
        """Connections of one client in the last minute, in all processes."""
        sheets = [
            start + 1 + SLOTS + _SHEET * (1 + place)
            for start in self._starts
            for place in range(SLOTS)
            if abs(slot - self._words[start + 1 + place]) < SLOTS
        ]
        return self._least(cells, sheets)

    def entered(self, cells: tuple[int, ...], slot: int) -> None:
        """One more is open."""
        self._words[self._own] += 1
        self._add(cells, self._own + 1 + SLOTS)
        self._counted(cells, slot)

    def joined(self, cells: tuple[int, ...]) -> None:
        """What has entered counts here too, as open only."""
        self._add(cells, self._own + 1 + SLOTS)

    def left(self, cells: tuple[int, ...]) -> None:
        """One less is open."""
        words, sheet = self._words, self._own + 1 + SLOTS
        for place in (self._own, *(sheet + cell for cell in cells)):
            if words[place]:  # zero where the region was cleared meanwhile
                words[place] -= 1

    def _counted(self, cells: tuple[int, ...], slot: int) -> None:
        place = slot % SLOTS
        sheet = self._own + 1 + SLOTS + _SHEET * (1 + place)
        if self._words[self._own + 1 + place] != slot:
            self._words[sheet : sheet + _SHEET] = _EMPTY_SHEET
            self._words[self._own + 1 + place] = slot
        self._add(cells, sheet)

    def _add(self, cells: tuple[int, ...], sheet: int) -> None:
        for cell in cells:
            self._words[sheet + cell] += 1

    def _least(self, cells: tuple[int, ...], sheets: list[int]) -> int:
        words = self._words
        return min(sum(words[sheet + cell] for sheet in sheets) for cell in cells)


class Doorkeeper:
    """Who may come in: asked once for each connection, told when it ends."""

    def __init__(self, table: ClientTable, allowance: Allowance, *, seconds: Callable[[], float]) -> None:
        self._table = table
        self._allowance = allowance
        self._seconds = seconds  # since the epoch: the same for all processes

    def enter(self, address: str) -> tuple[int, ...] | Crowded:
        """A token to leave with, or why not. A refused connection counts neither as open nor for the rate."""
        table, allowance = self._table, self._allowance
        free = allowance.in_all - table.open_here
        if allowance.in_all and free <= 0:
            return Crowded.SERVER
        cells = table.cells(client_of(address))
        slot = int(self._seconds()) // SLOT_SECONDS
        if allowance.per_client and table.open_of(cells) >= allowance.per_client:
            return Crowded.CLIENT
        if allowance.per_minute and table.recent_of(cells, slot) >= allowance.per_minute:
            return Crowded.RATE
        network: tuple[int, ...] = ()
        if allowance.in_all and allowance.per_client:  # else one client may have all
            network = table.cells(f"network {network_of(address)}")
            if table.open_here_of(network) >= max(free, allowance.per_client):
                return Crowded.NETWORK
        table.entered(cells, slot)
        table.joined(network)
        return cells + network

    def leave(self, cells: tuple[int, ...]) -> None:
        """The connection that ``enter`` gave this token ended."""
        self._table.left(cells)

    def close(self) -> None:
        """Nobody comes or leaves any more."""
        self._table.close()


def _shared_file(path: Path, size: int) -> int:
    """Open the file, made and keyed by whichever process comes first; 0600, it tells who our clients are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.unlink(fresh)
            raise
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):  # another process was first: its file is the one
            os.link(fresh, path)
        os.unlink(fresh)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # More workers than before: what is new is zero. On a full disk this is an error, where a page of a hole would
        # be the end of the process (SIGBUS).
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
