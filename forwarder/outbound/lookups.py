"""Routes, looked up beside the deliveries: a slow DNS delays those who need its answer and nobody else.

One look-up a domain at a time, however many jobs wait for it. Domains that had a route when they were last asked come
first, then those of first attempts, then the others, among which the dead ones are (``Standing``). Each kind leaves
slots to those before it, and places in the window, so that thousands of domains whose name servers are silent hold up
none that answer. A route found is used for ``_FRESH`` seconds without asking again (the resolver keeps its own, longer,
memory by TTL); that there is none for ``_ABSENT`` seconds, in which all else for that domain hears the same.

Limit: among domains never asked before, first attempts to many silent ones delay those to others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count
from time import monotonic

import structlog

from forwarder.mail.outcome import Fault, reply_for
from forwarder.outbound.parcel import Job
from forwarder.outbound.route import NoRoute, Route, Router


class Standing(IntEnum):
    """How likely a domain is to answer at once; the best come first."""

    ANSWERED = 0  # it had a route when it was last asked, or had none a moment ago
    NEW = 1  # a first attempt, to a domain not asked before
    DOUBTFUL = 2  # it had no route when it was last asked, or an attempt of the delivery has failed


# One begins, or waits, only while less than this is under way, or waits, whatever its standing.
_SLOTS = {Standing.ANSWERED: 96, Standing.NEW: 80, Standing.DOUBTFUL: 64}  # look-ups at once
_SHARES = {Standing.ANSWERED: 3 / 4, Standing.NEW: 1 / 2, Standing.DOUBTFUL: 1 / 4}  # of the window
_FRESH = 10.0  # seconds
_ABSENT = 3.0  # seconds, not more: as a rule it was a time-out, and the next message deserves a try
_REMEMBERED = 20_000  # domains of either kind

_log = structlog.get_logger(__name__)


class Lookups:
    """Domains whose hosts are being looked up, and those that are known."""

    def __init__(
        self,
        router: Router,
        *,
        window: int,
        found: Callable[[str, Route, Sequence[Job]], None],
        failed: Callable[[NoRoute, Sequence[Job]], Awaitable[None]],
    ) -> None:
        self._router = router
        self._found = found
        self._failed = failed
        self._shares = {standing: max(1, int(window * share)) for standing, share in _SHARES.items()}
        # By domain: what was found, or why nothing was, and until when (monotonic) nobody is asked again.
        self._known: dict[str, tuple[Route, float]] = {}
        self._absent: dict[str, tuple[NoRoute, float]] = {}
        # By domain: the jobs that wait for its route, and how many deliveries they make.
        self._pending: dict[str, list[Job]] = {}
        self._counts: dict[str, int] = {}
        self._line: dict[str, Standing] = {}  # of the pending, those not asked yet
        # A heap of them, and of entries that are out of date.
        self._turn: list[tuple[Standing, int, str]] = []
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._working = 0  # of the tasks, those that are not about to end
        self.waiting = 0  # deliveries

    def site(self, domain: str) -> str | None:
        """The site a domain belonged to when it was last looked up."""
        known = self._known.get(domain)
        return known[0].site if known else None

    def waiting_for(self, domain: str) -> int:
        """Deliveries that wait for the route of a domain."""
        return self._counts.get(domain, 0)

    def has_room(self, domain: str, attempts: int, *, beside: int = 0) -> bool:
        """Whether a delivery at that attempt may wait for the route of a domain; ``beside``: others are about to."""
        return self.waiting + beside < self._shares[self._standing(domain, attempts)]

    @property
    def room(self) -> int:
        """For how many deliveries there is room whatever their domains."""
        return self._shares[Standing.DOUBTFUL] - self.waiting

    @property
    def domains(self) -> Collection[str]:
        """Those whose routes are waited for."""
        return self._pending.keys()

    def route(self, domain: str) -> Route | None:
        """The route of a domain, where nobody has to be asked for it."""
        known = self._known.get(domain)
        if known is None or known[1] <= monotonic():
            return None
        return known[0]

    def ask(self, domain: str, job: Job) -> Route | None:
        """The route of a domain, or None: the job waits, and ``found`` or ``failed`` is called with it."""
        route = self.route(domain)
        if route is not None:
            return route
        self.waiting += len(job.deliveries)
        self._counts[domain] = self._counts.get(domain, 0) + len(job.deliveries)
        pending = self._pending.get(domain)
        standing = self._standing(domain, job.deliveries[0].attempts)
        if pending is None:
            self._pending[domain] = [job]
            self._queue_up(domain, standing)
        else:
            pending.append(job)
            if standing < self._line.get(domain, Standing.ANSWERED):
                self._queue_up(domain, standing)
        return None

    async def close(self) -> list[Job]:
        """Stop; the jobs that still wait for a route."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return [job for domain in list(self._pending) for job in self._take(domain)]

    def _standing(self, domain: str, attempts: int) -> Standing:
        if domain in self._known or self._absence(domain) is not None:
            return Standing.ANSWERED
        return Standing.NEW if attempts == 1 and domain not in self._absent else Standing.DOUBTFUL

    def _absence(self, domain: str) -> NoRoute | None:
        """What was said of a domain without a route just now."""
        absent = self._absent.get(domain)
        if absent is None or absent[1] <= monotonic():
            return None
        return absent[0]

    def _queue_up(self, domain: str, standing: Standing) -> None:
        self._line[domain] = standing
        heappush(self._turn, (standing, next(self._numbers), domain))
        if self._working < _SLOTS[standing]:
            self._working += 1
            task = asyncio.create_task(self._work(), name="lookup")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        try:
            while (domain := self._next()) is not None:
                await self._look_up(domain)
        finally:
            self._working -= 1

    def _next(self) -> str | None:
        """The domain whose turn it is; None when there is none, or its kind has all its slots."""
        while self._turn:
            standing, _, domain = self._turn[0]
            if self._line.get(domain) is standing:
                if self._working > _SLOTS[standing]:
                    return None
                heappop(self._turn)
                del self._line[domain]
                return domain
            heappop(self._turn)  # it had its turn, or has got a better place
        return None

    async def _look_up(self, domain: str) -> None:
        route: Route | NoRoute | None = self._absence(domain)
        try:
            route = route or await self._router.route(domain)
        except Exception:  # noqa: BLE001 - our own trouble is temporary, whatever it is
            _log.exception("a look-up of a route failed", domain=domain)
            route = NoRoute(reply=reply_for(Fault.INTERNAL))
        self._remember(domain, route)
        jobs = self._take(domain)
        try:
            if isinstance(route, Route):
                self._found(domain, route, jobs)
            else:
                await self._failed(route, jobs)
        except Exception:  # noqa: BLE001 - the other domains must not wait for ever
            _log.exception("a route was not taken", domain=domain)

    def _take(self, domain: str) -> list[Job]:
        jobs = self._pending.pop(domain, [])
        self.waiting -= self._counts.pop(domain, 0)
        return jobs

    def _remember(self, domain: str, route: Route | NoRoute) -> None:
        now = monotonic()
        self._known.pop(domain, None)
        if isinstance(route, Route):
            self._absent.pop(domain, None)
            self._known[domain] = (route, now + _FRESH)
        elif self._absence(domain) is None:
            self._absent.pop(domain, None)
            self._absent[domain] = (route, now + _ABSENT)
        for memory in (self._known, self._absent):
            if len(memory) > _REMEMBERED:
                del memory[next(iter(memory))]
