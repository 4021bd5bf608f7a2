"""What happened, counted: the families of counters that ``/metrics`` shows, and where their numbers stand.

A port is shared by the processes of a machine, so that any of them may be asked. They share a small file, mapped into
memory, without locks: each engine adds to a region of its own, and who is asked sums all of them. A number outlives the
process that counted it, and the successor in its place goes on from there; a start of the engine begins at zero
(``forget``). To count is one addition: no label is looked up, nothing is written or sent.

Every label has a fixed set of values, named here; none of them comes from outside. Only the thread of the event loop
counts. Numbers are 64 bits wide and aligned, so a reader sees the old or the new one.

How it fails: never. Where the file cannot be had, on a full disk, a process counts for itself (``shared`` says why).
"""

import itertools
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

SERVICES: Final = ("mx", "submission", "submission-tls")
CLASSES: Final = ("2xx", "4xx", "5xx")
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Family:
    """Counters of one name, one for each combination of what its labels may be."""

    name: str  # as Prometheus wants it: without _total
    what: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def cases(self) -> Sequence[tuple[str, ...]]:
        """The values of the labels, in the order in which the numbers stand."""
        return list(itertools.product(*(values for _, values in self.labels)))


@dataclass(frozen=True, slots=True)
class Durations:
    """A histogram of seconds: how many were at most each bound, and their sum in microseconds."""

    name: str
    what: str
    bounds: tuple[float, ...]

    @property
    def cases(self) -> Sequence[tuple[str, ...]]:
        """One number for each bound, one for what is beyond, and the sum."""
        return [(str(bound),) for bound in self.bounds] + [("+Inf",), ("sum",)]


CONNECTIONS: Final = Family(
    "forwarder_smtp_connections",
    "Connections taken, and turned away because there were too many.",
    (("service", SERVICES), ("result", ("taken", "turned_away"))),
)
REPLIES: Final = Family(
    "forwarder_smtp_replies",
    "Replies to these commands; that to DATA is the one after the message, or instead of it.",
    (("service", SERVICES), ("command", ("MAIL", "RCPT", "DATA", "AUTH")), ("reply", CLASSES)),
)
RECEIVED: Final = Family(
    "forwarder_smtp_received_bytes",
    "Octets of the messages that were taken with 250, as they came.",
    (("service", SERVICES),),
)
LOG_INS: Final = Family(
    "forwarder_smtp_logins",
    "Log-ins of submission; barred and throttled were refused after too many failures.",
    (("result", ("granted", "wrong", "barred", "throttled", "busy")),),
)
SETTLED: Final = Family(
    "forwarder_attempts",
    "Attempts to deliver, by how they ended: soft is tried again, hard is given up.",
    (("kind", ("smtp", "webhook", "notify")), ("outcome", ("delivered", "soft", "hard"))),
)
REPORTS: Final = Family("forwarder_reports", "Reports of failed deliveries (DSN) that were written.")
SENT: Final = Family("forwarder_sent_bytes", "Octets of the messages that other mail servers took.")
SIGNED: Final = Family(
    "forwarder_signings",
    "Messages signed or sealed; withheld: the author is of ours and unproved, so DKIM did not sign.",
    (("result", ("signed", "withheld", "failed")),),
)
DNS: Final = Family(
    "forwarder_dns_questions",
    "Questions that the cache could not answer.",
    (("answer", ("found", "not_found", "cannot_tell")),),
)
COMMITS: Final = Durations(
    "forwarder_commit_seconds",
    "How long the first change of a group waited until the group was on disk or had failed.",
    (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CHANGES: Final = Family(
    "forwarder_changes",
    "Changes of the store; failed: the store was away or full, or refused them.",
    (("result", ("committed", "failed")),),
)
REQUESTS: Final = Family(
    "forwarder_api_requests",
    "Requests of the API (/v3), by the status of the answer; 401 is no valid key.",
    (
        (
            "status",
            (
                *("200", "204", "400", "401", "403", "404", "405", "409", "413", "415", "422", "429"),
                *("500", "503", OTHER),
            ),
        ),
    ),
)
FAMILIES: Final[tuple[Family | Durations, ...]] = (
    *(CONNECTIONS, REPLIES, RECEIVED, LOG_INS, SETTLED, REPORTS, SENT, SIGNED, DNS, COMMITS, CHANGES),
    REQUESTS,
)


def _places() -> tuple[dict[str, int], int]:
    places, size = dict[str, int](), 0
    for family in FAMILIES:
        places[family.name] = size
        size += len(family.cases)
    return places, size


_PLACES, _SIZE = _places()
# In the file's name: a worker of a newer release, in the place of one that died, must not add to another counter.
_LAYOUT: Final = blake2b(repr(FAMILIES).encode(), digest_size=4).hexdigest()
_PREFIX: Final = "tally-"


class Count:
    """One number of this region."""

    __slots__ = ("_place", "_words")

    def __init__(self, words: "memoryview[int]", place: int) -> None:
        self._words = words
        self._place = place

    def add(self, amount: int = 1) -> None:
        """So many more."""
        self._words[self._place] += amount


class Watch:
    """A histogram of this region."""

    def __init__(self, words: "memoryview[int]", place: int, bounds: Sequence[float]) -> None:
        self._words = words
        self._place = place
        self._bounds = bounds

    def add(self, seconds: float) -> None:
        """One more, that took so long."""
        place = self._place
        self._words[place + bisect_left(self._bounds, seconds)] += 1
        self._words[place + len(self._bounds) + 1] += int(seconds * 1_000_000)


class Tally:
    """The numbers of all processes, and the region of one engine among them; by itself, those of this one alone."""

    def __init__(
        self, memory: mmap.mmap | bytearray | None = None, *, region: int = 0, regions: int = 1
    ) -> None:
        """``memory``: at least of ``octets(regions)``."""
        words = memoryview(bytearray(octets(regions)) if memory is None else memory).cast("Q")
        self._regions = [words[_SIZE * each : _SIZE * (each + 1)] for each in range(regions)]
        self._own = self._regions[region]

    @classmethod
    def shared(cls, folder: Path, *, region: int, regions: int) -> "Tally":
        """That of the processes that have this folder; OSError. They have as many ``regions``."""
        size = octets(regions)
        path = folder / f"{_PREFIX}{_LAYOUT}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a page of a hole on a full disk would be SIGBUS
            return cls(mmap.mmap(descriptor, size), region=region, regions=regions)
        finally:
            os.close(descriptor)

    def count(self, family: Family, *case: str) -> Count:
        """The number of one case, to be added to."""
        return Count(self._own, _PLACES[family.name] + family.cases.index(case))

    def counts(self, family: Family, *first: str) -> Mapping[str, Count]:
        """The numbers of a family by its last label; ``first``: what the labels before it are."""
        return {last: self.count(family, *first, last) for last in family.labels[-1][1]}

    def watch(self, family: Durations) -> Watch:
        """A histogram, to be added to."""
        return Watch(self._own, _PLACES[family.name], family.bounds)

    def sums(self, family: Family | Durations) -> Iterator[tuple[tuple[str, ...], int]]:
        """The cases of a family, and what all processes have counted of each."""
        for place, case in enumerate(family.cases, _PLACES[family.name]):
            yield case, sum(region[place] for region in self._regions)


def octets(regions: int) -> int:
    """What the numbers of so many engines take."""
    return 8 * _SIZE * regions


def forget(folder: Path) -> None:
    """Begin at zero; for whoever starts a node, before any process counts."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)
