"""Background work that one process at a time does, for all processes and nodes on one database.

    take-over    every poll, by every process, since each must see for itself who beats no more: leases of workers that
                 are silent too long become due again
    journal      hourly: logs and events older than logs.retention go
    counters     hourly: counters whose window is over go, and requests to confirm an address that nobody answered
    changes      hourly: notices of directory changes that every cache has seen go
    plans        hourly: deliveries that are planned further ahead than any delay leads become due; the clock was set
                 back since, perhaps by years
    domains      every minute: the DNS of domains that are due is asked again (api.recheck)

All but the take-over are guarded by a row of ``chores`` each: the process that claims it does it, and one that dies in
the middle loses the claim with time. All are safe to do twice. What fails is logged and tried again at its next turn.

What deletes by age for good waits until the clock has run EVENLY: one that was set far ahead, as a machine's may be
until it hears of the time after its boot, would take everything for old.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from forwarder.config import Settings
from forwarder.store import changes, chores, confirmations, counters, workers
from forwarder.store.claiming import bring_forward
from forwarder.store.engine import Database
from forwarder.store.journal import Journal
from forwarder.store.queue import IF_WORKER_DIES
from forwarder.store.telling import Telling
from forwarder.store.trouble import StoreUnavailable

EVENLY = 600.0  # seconds
STEP = timedelta(minutes=1)  # by which a clock was set; less harms nobody
CHANGES_KEPT = timedelta(hours=1)  # a cache that slept longer than this loads everything again

log = structlog.get_logger("housekeeping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """One piece of background work."""

    name: str
    every: timedelta
    patience: timedelta  # a claim older than this is another's for the taking
    work: Callable[[datetime], Awaitable[int]]  # how many rows it changed
    everybodys: bool = False  # every process does it at each turn, whoever else does
    by_age: bool = False  # not before the clock has run EVENLY


def chores_of(
    settings: Settings,
    database: Database,
    journal: Journal,
    recheck: Callable[[datetime], Awaitable[int]],
    steady: Callable[[], bool],
) -> Sequence[Chore]:
    """What is to be done, and how often.

    ``recheck`` is a round of looking at the DNS of domains; ``steady``: whether our own signs of life come through.
    """

    async def purge_journal(now: datetime) -> int:
        return await journal.purge(now - settings.logs.retention)

    async def purge_counters(now: datetime) -> int:
        unanswered = await database.write(lambda conn: confirmations.purge(conn, now))
        return unanswered + await counters.purge(database, now)

    async def purge_changes(now: datetime) -> int:
        purge = partial(changes.purge, older_than=now - CHANGES_KEPT)
        deleted = 0
        while (count := await database.write(purge)) > 0:  # others write between two parts
            deleted += count
        return deleted

    longest = max(settings.retry.delays) * (1 + settings.retry.spread)
    furthest = 2 * max(longest, IF_WORKER_DIES)  # twice: a take-over spreads plans

    async def bring_plans_forward(now: datetime) -> int:
        brought = 0
        bring = partial(bring_forward, beyond=now + furthest, now=now)
        while (count := await database.write(bring)) > 0:
            brought += count
        return brought

    hour = timedelta(hours=1)
    poll = max(timedelta(seconds=1), settings.workers.lease / 10)
    takeover = workers.Takeover(database, lease=settings.workers.lease, every=poll, steady=steady)
    return (
        Chore(
            name="take-over", every=poll, patience=settings.workers.lease, work=takeover.look, everybodys=True
        ),
        Chore(name="journal", every=hour, patience=hour, work=purge_journal, by_age=True),
        Chore(name="counters", every=hour, patience=hour, work=purge_counters, by_age=True),
        Chore(name="changes", every=hour, patience=hour, work=purge_changes),
        Chore(name="plans", every=hour, patience=hour, work=bring_plans_forward),
        Chore(name="domains", every=timedelta(minutes=1), patience=hour, work=recheck),
    )


class Evenness:
    """How long a wall clock and a monotonic one have gone at one pace: nobody has set the first."""

    def __init__(self) -> None:
        self._apart: datetime | None = None  # what the wall clock shows when the other is at nothing
        self._since = 0.0

    def lasts(self, now: datetime, seconds: float) -> float:
        """Seconds, as far as who asks can know: 0 at the first time, and where it was set since the last."""
        apart = now - timedelta(seconds=seconds)
        if self._apart is None or abs(apart - self._apart) > STEP:
            self._since = seconds
        self._apart = apart
        return seconds - self._since


async def keep_house(
    chore: Chore,
    database: Database,
    *,
    owner: str,
    clock: Callable[[], datetime],
    seconds: Callable[[], float] = time.monotonic,
) -> None:
    """A task body: do the chore at its turns, whenever this process is the one to do it."""
    telling = Telling()
    evenness = Evenness()
    while True:
        # Asked more often than done, so that another process takes over soon when the one that did it is gone.
        await asyncio.sleep(min(chore.every.total_seconds(), 60.0))
        now = clock()
        if evenness.lasts(now, seconds()) < EVENLY and chore.by_age:
            continue
        try:
            if chore.everybodys:
                changed = await chore.work(now)
            elif await chores.claim(
                database, chore.name, owner, now=now, for_=chore.patience, every=chore.every
            ):
                changed = await chore.work(now)
                await chores.done(database, chore.name, owner, now=clock())
            else:
                continue
        except StoreUnavailable as error:
            if news := telling.news(error):
                log.warning("a chore waits for the store", chore=chore.name, **news)
            continue
        if changed:
            log.info("a chore is done", chore=chore.name, rows=changed)
