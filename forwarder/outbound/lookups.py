"""Routes, looked up beside the deliveries: a slow DNS delays those who need its answer and nobody else.

One look-up a domain at a time, however many jobs wait for it; ``_AT_ONCE`` domains together; a route found is used
for ``_FRESH`` seconds without asking again (the resolver keeps its own, longer, memory by TTL).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from forwarder.mail.outcome import Fault, reply_for
from forwarder.outbound.parcel import Job
from forwarder.outbound.route import NoRoute, Route, Router

_AT_ONCE = 64
_FRESH = 10.0
_REMEMBERED = 20_000

_log = structlog.get_logger(__name__)


class Lookups:
    """Domains whose hosts are being looked up, and those that are known."""

    def __init__(
        self,
        router: Router,
        *,
        found: Callable[[str, Route, Sequence[Job]], None],
        failed: Callable[[NoRoute, Sequence[Job]], Awaitable[None]],
    ) -> None:
        self._router = router
        self._found = found
        self._failed = failed
        self._known: dict[str, tuple[Route, float]] = {}
        self._pending: dict[str, list[Job]] = {}
        self._counts: dict[str, int] = {}
        self._turn: deque[str] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0  # deliveries

    def site(self, domain: str) -> str | None:
        """The site a domain belonged to when it was last looked up."""
        known = self._known.get(domain)
        return known[0].site if known else None

    def waiting_for(self, domain: str) -> int:
        """Deliveries that wait for the route of a domain."""
        return self._counts.get(domain, 0)

    def ask(self, domain: str, job: Job) -> Route | None:
        """The route of a domain, or None: the job waits, and ``found`` or ``failed`` is called with it."""
        known = self._known.get(domain)
        if known is not None and known[1] > asyncio.get_running_loop().time():
            return known[0]
        self.waiting += len(job.deliveries)
        self._counts[domain] = self._counts.get(domain, 0) + len(job.deliveries)
        pending = self._pending.get(domain)
        if pending is not None:
            pending.append(job)
            return None
        self._pending[domain] = [job]
        self._turn.append(domain)
        if len(self._tasks) < _AT_ONCE:
            task = asyncio.create_task(self._work(), name="lookup")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return None

    async def close(self) -> list[Job]:
        """Stop; the jobs that still wait for a route."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return [job for domain in list(self._pending) for job in self._take(domain)]

    async def _work(self) -> None:
        while self._turn:
            domain = self._turn.popleft()
            try:
                route = await self._router.route(domain)
            except Exception:  # noqa: BLE001 - our own trouble is temporary, whatever it is
                _log.exception("a look-up of a route failed", domain=domain)
                route = NoRoute(reply=reply_for(Fault.INTERNAL))
            jobs = self._take(domain)
            try:
                if isinstance(route, Route):
                    self._remember(domain, route)
                    self._found(domain, route, jobs)
                else:
                    self._known.pop(domain, None)
                    await self._failed(route, jobs)
            except Exception:  # noqa: BLE001 - the other domains must not wait for ever
                _log.exception("a route was not taken", domain=domain)

    def _take(self, domain: str) -> list[Job]:
        jobs = self._pending.pop(domain, [])
        self.waiting -= self._counts.pop(domain, 0)
        return jobs

    def _remember(self, domain: str, route: Route) -> None:
        self._known.pop(domain, None)
        self._known[domain] = (route, asyncio.get_running_loop().time() + _FRESH)
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
