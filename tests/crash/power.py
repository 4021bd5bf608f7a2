"""A disk that forgets: from the recorded system calls of one run, what a power cut at any moment would have left.

``strace`` writes down every write, truncation, fsync and removal of the engine, with all octets, and the moments at
which a client was sent its 250. ``Disk`` plays them: what was written before an fsync began is safe when the fsync
returns; of what came later each write is there, or not, or only some of its sectors of 512 octets, in any mixture,
which is what a drive with a cache and a kernel that reorders may do. A file that was removed may be back, and a new one
may be missing, until the folder was synchronised. Hundreds of cuts are tried from one recording.

Limits: SQLite's ``-shm`` file is left out, since it is rebuilt; octets that were safe stay as they are (SQLite calls
that powersafe overwrite, and assumes it).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
PROMISE = b"250 2.0.0 queued as "

CALLS = "pwrite64,write,writev,sendto,sendmsg,fdatasync,fsync,ftruncate,unlink"


def tracing(strace: str, into: Path) -> list[str]:
    """The command that runs another and records it."""
    options = ["-f", "-q", "--seccomp-bpf", "-ttt", "-y", "-xx", "-s", "1000000", "-o", str(into)]
    return [strace, *options, "-e", f"trace={CALLS}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One call that returned, or a promise that was sent."""

    at: float
    kind: str  # write, truncate, sync, unlink, promise
    path: str = ""
    offset: int = 0  # of a write; the new size for a truncation
    octets: bytes = b""
    since: int = 0  # how many events had ended when this one began
    message: str = ""  # the id of a promise


def read(recording: Path) -> list[Event]:
    """The events of a recording in the order in which they ended."""
    events: list[Event] = []
    begun: dict[str, tuple[str, str, int]] = {}
    with recording.open() as lines:
        for line in lines:
            pid, at, rest = line.rstrip("\n").split(None, 2)
            if rest.startswith(("+++", "---")):
                continue
            if rest.endswith("<unfinished ...>"):
                begun[pid] = (at, rest.removesuffix("<unfinished ...>").rstrip(), len(events))
                continue
            since = len(events)
            if rest.startswith("<... "):
                at, first, since = begun.pop(pid)
                rest = first + rest.partition(" resumed>")[2]
            call, _, tail = rest.partition("(")
            arguments, _, result = tail.rpartition(" = ")
            if call in CALLS.split(",") and result[:1].isdigit():
                events += _event(call, arguments.rstrip().removesuffix(")"), float(at), since)
    return events


def _event(call: str, arguments: str, at: float, since: int) -> Iterator[Event]:
    if call == "unlink":
        yield Event(at=at, kind="unlink", path=_octets(arguments.strip('"')).decode(), since=since)
        return
    path = _octets(arguments[arguments.index("<") + 1 : arguments.index(">")]).decode()
    after = arguments.partition(">")[2]
    if call in ("fsync", "fdatasync"):
        yield Event(at=at, kind="sync", path=path, since=since)
    elif call == "ftruncate":
        yield Event(at=at, kind="truncate", path=path, offset=int(after.rpartition(",")[2]), since=since)
    elif call == "pwrite64":
        _, text, numbers = after.split('"')
        size, offset = (int(number) for number in numbers.strip(", ").split(","))
        octets = _octets(text)
        assert len(octets) == size, "strace has cut the octets short"
        yield Event(at=at, kind="write", path=path, offset=offset, octets=octets, since=since)
    elif '"' in after:
        said = b"".join(_octets(text) for text in after.split('"')[1::2])
        for line in said.split(b"\r\n"):
            if line.startswith(PROMISE):
                yield Event(
                    at=at, kind="promise", message=line.removeprefix(PROMISE).decode().split()[0], since=since
                )


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()


@dataclass(slots=True)
class _File:
    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Event]] = field(default_factory=list)
    named: bool = False  # whether its name is safe


class Disk:
    """The files of one folder as a power cut would leave them."""

    def __init__(self, folder: Path, found: Mapping[str, bytes]) -> None:
        self._folder = str(folder)
        self._played = 0
        # Every file that has had a name since the last moment at which it was certain which one has it; None: no file.
        self._names: dict[str, list[_File | None]] = {
            name: [_File(safe=bytearray(octets), named=True)] for name, octets in found.items()
        }

    def play(self, event: Event) -> None:
        """One more event has ended."""
        index, self._played = self._played, self._played + 1
        if event.path == self._folder and event.kind == "sync":
            for files in self._names.values():
                del files[:-1]
                if files[0] is not None:
                    files[0].named = True
            return
        folder, _, name = event.path.rpartition("/")
        if folder != self._folder or event.kind == "promise" or name.endswith("-shm"):
            return
        if event.kind == "sync" and name not in self._names:
            return  # a folder in this one, or a file that was opened and never written
        files = self._names.setdefault(name, [None])
        if event.kind == "unlink":
            files.append(None)
            return
        if files[-1] is None:
            files.append(_File())
        file = files[-1]
        assert file is not None
        if event.kind == "sync":
            for at, write in [pending for pending in file.pending if pending[0] < event.since]:
                _keep(file.safe, write)
                file.pending.remove((at, write))
        else:
            file.pending.append((index, event))

    def after_a_power_cut(self, chance: random.Random) -> dict[str, bytes]:
        """One of the many things that may be found."""
        survive = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))  # of the writes
        tear = chance.choice((0.0, 0.0, 0.3, 1.0))  # of those
        found = {}
        for name, files in self._names.items():
            file = files[-1] if files[-1] is not None and files[-1].named else chance.choice(files)
            if file is not None:
                octets = bytearray(file.safe)
                for _, event in file.pending:
                    if chance.random() < survive:
                        _keep(octets, event, chance if chance.random() < tear else None)
                found[name] = bytes(octets)
        return found


def _keep(octets: bytearray, event: Event, torn: random.Random | None = None) -> None:
    """Change what is on the disk; ``torn``: only some of the sectors, by chance."""
    if event.kind == "truncate":
        del octets[event.offset :]
        octets.extend(bytes(event.offset - len(octets)))
        return
    end = event.offset + len(event.octets)
    start = event.offset
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR) if torn else end
        if torn is None or torn.random() < 0.5:
            octets.extend(bytes(max(0, stop - len(octets))))
            octets[start:stop] = event.octets[start - event.offset : stop - event.offset]
        start = stop


def promised(events: Sequence[Event]) -> set[str]:
    """The ids of the messages for which a 250 was sent."""
    return {event.message for event in events if event.kind == "promise"}
