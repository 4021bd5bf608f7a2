"""What is delivered, when, and beside what: a bounded window of ready deliveries, taken site by site.

Fresh mail comes in memory: inbound asks ``lease`` for each destination before it stores a message and calls
``hand_over`` once the message is committed; under load it has it signed meanwhile (``prepare``). All else is claimed
from the store as places in the window get free (``patience``). Routes are looked up beside the deliveries
(``lookups``), so that a DNS that hangs holds no session slot; ``lanes`` decides who may dial; the ``crew`` dials and
settles.

Promises: at most ``outbound.window`` deliveries are leased, and some more only by what arrives between a ``lease`` and
its ``hand_over``, and by recipients who share an address, which are claimed together; what does not fit stays due in
the store. A site that is full or suspended is left out of claims. What waits for the DNS has a share of the window;
what is claimed beyond it, at most one claim a second, goes back for a minute, so that whatever is due behind it gets
its turn. ``drain`` ends in its time: what was not begun goes back to the store, due at once, its attempt not counted.

It fails without noise: when the store is away it waits, in growing steps, and goes on when it is back. A loop that
breaks is logged and started again; ``tasks`` tells a watchdog.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

import structlog

from forwarder import failpoint
from forwarder.config import Settings
from forwarder.mail.event import DeliveryKind
from forwarder.mail.outcome import Scope, decide
from forwarder.mail.schedule import RetryPolicy
from forwarder.outbound.bounce import Bounces
from forwarder.outbound.crew import Crew
from forwarder.outbound.delivery import Courier
from forwarder.outbound.lanes import Lane, Lanes, suspensions
from forwarder.outbound.lookups import Lookups
from forwarder.outbound.parcel import Job, Parcel, first_attempt
from forwarder.outbound.patience import POLL, Patience
from forwarder.outbound.returns import Returns
from forwarder.outbound.route import NoRoute, Route, Router
from forwarder.outbound.settling import Clerk
from forwarder.outbound.strays import Strays
from forwarder.outbound.window import Window
from forwarder.store.queue import Queue
from forwarder.store.records import Delivery, NewMessage
from forwarder.store.telling import Telling
from forwarder.store.trouble import StoreUnavailable
from forwarder.tally import Tally

_CLAIM = 250  # deliveries a claim
_LONGEST_PAUSE = 5.0  # seconds between attempts to reach a store that is away
_OVERFULL_PAUSE = timedelta(seconds=10)  # for what was claimed although its site has no room
_UNASKED_PAUSE = timedelta(minutes=1)  # for what was claimed although too much waits for the DNS

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the dispatcher has in hand at one moment."""

    leased: int  # deliveries in memory
    looking_up: int  # of these, waiting for a route
    dialling: int  # sessions under way
    settling: int  # attempts made, being written down
    unwritten: int  # settlements, and contents to be read, that wait for the store
    suspended: int  # sites not dialled for a while


class Dispatcher:
    """Delivers what is due; satisfies inbound's ``Intake``."""

    def __init__(
        self,
        *,
        queue: Queue,
        courier: Courier,
        router: Router,
        bounces: Bounces,
        settings: Settings,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        sure: Callable[[], Awaitable[None]],
        tally: Tally,
    ) -> None:
        outbound = settings.outbound
        policy = RetryPolicy(
            delays=settings.retry.delays,
            give_up_after=settings.retry.give_up_after,
            spread=settings.retry.spread,
        )
        self._queue = queue
        self._courier = courier
        self._clock = clock
        self._size = outbound.window
        self._lanes = Lanes(
            window=outbound.window,
            concurrency=outbound.concurrency,
            per_site=outbound.concurrency_per_site,
            share_all=outbound.smarthost is not None,
            suspensions=suspensions(policy),
        )
        self._clerk = Clerk(
            queue,
            bounces,
            policy=policy,
            hostname=settings.hostname,
            clock=clock,
            jitter=jitter,
            lease=self.lease,
            hand_over=self.hand_over,
            tally=tally,
        )
        self._window = Window(self._read, queue.contents)
        self._lookups = Lookups(router, window=outbound.window, found=self._found, failed=self._unroutable)
        self._crew = Crew(
            lanes=self._lanes,
            window=self._window,
            courier=courier,
            clerk=self._clerk,
            slots=outbound.concurrency,
            freed=self._freed,
            sure=sure,
        )
        self._news = asyncio.Event()  # places became free, or something has to be given back
        self._returns = Returns(queue, self._window, clock=clock)
        self._strays = Strays(queue, self.holding)
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._open = False  # takes fresh mail
        self._forgot_at: datetime | None = None  # what was leased before is somebody else's
        self._patience = Patience(min(_CLAIM, outbound.window // 8 + 1))

    def lease(self, destination_domain: str) -> bool:
        """Whether a delivery to this domain may be leased to this process and handed over."""
        if not self._open:
            return False
        lookups = self._lookups
        if lookups.route(destination_domain) is None and not (
            lookups.waiting_for(destination_domain) < self._free()
            and lookups.has_room(destination_domain, attempts=1)
        ):
            return False
        site = lookups.site(destination_domain)
        lane = None if site is None else self._lanes.known(site)
        return self._lanes.has_room(lane, monotonic(), elsewhere=lookups.waiting)

    def prepare(self, message: NewMessage) -> Callable[[], None]:
        """Sign a message that is being committed; the hand-over to call once it is. Neither raises."""
        parcel = Parcel.of_message(message)
        if any(new.kind is DeliveryKind.SMTP for new in message.leased):
            try:
                self._courier.prepare(parcel, message.content)
            except Exception:  # noqa: BLE001 - it is tried again with the first attempt, which has an answer to it
                _log.exception("a message was not signed in advance", message=message.id)
        return partial(self.hand_over, message, parcel)

    def hand_over(self, message: NewMessage, prepared: Parcel | None = None) -> None:
        """Take the leased deliveries of a message that is committed; never raises."""
        leased = [first_attempt(message, new) for new in message.leased]
        if not leased:
            return
        if self._forgot_at is not None and message.created_at <= self._forgot_at:
            return  # it was committed when we had no row any more: others may have it; if not, it is a stray
        parcel = self._window.parcel(message.id) or prepared or Parcel.of_message(message)
        self._window.admit(parcel, leased, message.content)
        try:
            if self._open:
                self._send_on(parcel, leased)
                self._crew.pump()
            else:  # accepted while we were told to stop
                self._return(Job(parcel=parcel, deliveries=leased), timedelta(0))
        except Exception:  # noqa: BLE001 - the message is safe in the store, and its client must hear so
            _log.exception("a message was not handed over", message=message.id)
            self._window.let_go(parcel, leased)  # strays now, which are given back to the queue

    async def run(self) -> None:
        """Claim and deliver until ``drain``, or until cancelled."""
        self._open = True
        self._loops = {
            "claims": asyncio.create_task(self._claim_for_ever(), name="claims"),
            "strays": asyncio.create_task(self._strays.run(), name="strays"),
        }
        try:
            await asyncio.wait(self._loops.values())
        finally:
            self._open = False
            for task in self._loops.values():
                task.cancel()

    async def drain(self, timeout: timedelta) -> None:
        """Stop claiming, end what is under way, give back the rest; at most about ``timeout``."""
        ends = monotonic() + timeout.total_seconds()
        self._open = False
        if self._loops:
            # A claim under way is let end, or its leases would be nobody's.
            self._loops["strays"].cancel()
            self._news.set()
            await asyncio.wait(self._loops.values(), timeout=timeout.total_seconds() / 5)
            self._loops["claims"].cancel()
            await asyncio.wait(self._loops.values(), timeout=timeout.total_seconds() / 5)
        waiting = await self._lookups.close()
        for lane in self._lanes:
            jobs = self._lanes.flush(lane)
            self._lanes.leave(lane, sum(len(job.deliveries) for job in jobs))
            waiting += jobs
        for job in waiting:
            self._return(job, timedelta(0))
        # First what costs nothing to give back, so that others can begin with it at once.
        await self._returns.give_back(until=ends)
        await self._crew.stop(timedelta(seconds=max(0.1, ends - monotonic())))
        await self._returns.give_back(until=ends + 1.0)  # what was handed over in the meantime
        if self._window.leases:
            _log.error(
                "leases are left behind",
                deliveries=len(self._window.leases),
                ids=list(self._window.leases)[:100],
            )

    def tasks(self) -> dict[str, bool]:
        """The tasks that must live while ``run`` does, and whether each does."""
        return {name: not task.done() for name, task in self._loops.items()}

    def holding(self) -> Collection[str]:
        """The ids of all deliveries in memory, to compare with what the store says is leased to us."""
        return self._window.leases.keys()

    def forget(self) -> None:
        """Our leases are somebody else's now: send nothing of what is in memory, or on its way there."""
        self._window.forget()
        self._forgot_at = self._clock()

    def load(self) -> Load:
        """What is in hand now."""
        return Load(
            leased=len(self._window.leases),
            looking_up=self._lookups.waiting,
            dialling=self._lanes.sessions,
            settling=self._crew.settling,
            unwritten=self._clerk.unwritten,
            suspended=self._lanes.suspended(monotonic()),
        )

    # From the window to the lanes.

    def _send_on(self, parcel: Parcel, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries of one parcel in the lanes of their sites, or let them wait for their routes."""
        groups: dict[tuple[bool, str], list[Delivery]] = {}
        for delivery in deliveries:
            by_smtp = delivery.kind is DeliveryKind.SMTP
            groups.setdefault((by_smtp, delivery.destination_domain), []).append(delivery)
        for (by_smtp, domain), group in groups.items():
            if not by_smtp:
                # One host of webhooks is a site of its own, whatever mail hosts its domain has.
                for delivery in group:
                    lane = self._lanes.lane(f"https://{domain}/{delivery.kind}")
                    self._queue_up(lane, Job(parcel=parcel, deliveries=[delivery]), domain)
                continue
            job = Job(parcel=parcel, deliveries=group)
            job.route = self._lookups.ask(domain, job)
            if job.route is not None:
                self._queue_up(self._lanes.lane(job.route.site), job, domain)

    def _found(self, domain: str, route: Route, jobs: Sequence[Job]) -> None:
        lane = self._lanes.lane(route.site)
        for job in jobs:
            job.route = route
            self._queue_up(lane, job, domain)
        self._crew.pump()
        self._freed()

    async def _unroutable(self, found: NoRoute, jobs: Sequence[Job]) -> None:
        # The DNS spoke for the whole domain: as if its only host had said so about the message.
        action = decide(Scope.MESSAGE, found.reply, more_hosts=False)
        await self._crew.fail(jobs, action, found.reply)

    def _queue_up(self, lane: Lane, job: Job, domain: str) -> None:
        # A site may have many domains, which a claim cannot all leave out: what comes in spite of that goes back.
        if lane.places > 2 * max(self._free(), _CLAIM) and not self._lanes.share_all:
            self._return(job, _OVERFULL_PAUSE)
        else:
            self._lanes.add(lane, job, domain)

    def _return(self, job: Job, pause: timedelta) -> None:
        self._returns.add(job, pause)
        self._news.set()

    # From the store to the window, and back.

    async def _claim_for_ever(self) -> None:
        pause = 0.1
        telling = Telling()
        while self._open:
            wait = pause
            try:
                wait = await self._claim()
                pause = 0.1
            except StoreUnavailable as error:
                if news := telling.news(error):
                    _log.warning("the claims wait for the store", **news)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except Exception:  # noqa: BLE001 - one bad turn must not be the last
                _log.exception("a claim failed")
                wait = POLL
            if wait > 0:
                await self._sleep(wait)
            else:
                await asyncio.sleep(0)

    async def _claim(self) -> float:
        """One turn: give back, wake lanes, claim what fits. The seconds until the next turn."""
        self._news.clear()
        now = monotonic()
        await self._returns.give_back(until=None)
        self._lanes.wake(now)
        self._crew.pump()
        for lane in self._lanes:
            if lane.suspended_until > now and lane.waiting:
                await self._crew.flush(lane)
        free, room = self._free(), self._lookups.room
        wait = self._patience.wait(now, free, room)
        if wait > 0:
            return wait
        limit, forgot_at = min(free, _CLAIM), self._forgot_at
        left_out = self._lanes.blocked_domains(now)
        if room < self._patience.enough:
            left_out += self._lookups.domains
        else:
            limit = min(limit, room)
        claimed = await self._queue.claim_due(self._clock(), limit, left_out)
        if claimed and forgot_at == self._forgot_at:  # else others may have them; if not, they are strays
            failpoint.reach("dispatch.claimed")
            await self._take_in(claimed)
        return 0.0 if len(claimed) >= limit else await self._until_due()

    async def _until_due(self) -> float:
        """The seconds until something may be due that was not claimed just now."""
        due = await self._queue.next_due_at()
        if due is None:
            return POLL
        # Due already and yet not claimed: left out, or another process was faster. Not at once again.
        wait = (due - self._clock()).total_seconds()
        return min(wait, POLL) if wait > 0 else POLL

    async def _take_in(self, claimed: Iterable[Delivery]) -> None:
        parcels: dict[str, tuple[Parcel, list[Delivery]]] = {}
        # Recipients who share an address wait together or go back together, or it would get a copy for each part.
        may_go: dict[tuple[str, str], bool] = {}
        asking = 0
        for delivery in claimed:
            known = parcels.get(delivery.message_id)
            if known is None:
                parcel = self._window.parcel(delivery.message_id) or Parcel.of_delivery(delivery)
                known = parcels[delivery.message_id] = (parcel, [])
            self._window.admit(known[0], [delivery], None)
            domain = delivery.destination_domain
            if delivery.kind is DeliveryKind.SMTP and self._lookups.route(domain) is None:
                room = self._lookups.has_room(domain, delivery.attempts, beside=asking)
                if not may_go.setdefault((delivery.message_id, delivery.destination), room):
                    self._return(Job(parcel=known[0], deliveries=[delivery]), _UNASKED_PAUSE)
                    self._patience.end()
                    continue
                asking += 1
            known[1].append(delivery)
        try:
            await self._window.load([parcel for parcel, deliveries in parcels.values() if deliveries])
        finally:
            for parcel, deliveries in parcels.values():
                self._send_on(parcel, deliveries)
            self._crew.pump()

    async def _sleep(self, seconds: float) -> None:
        """Until the time is over, or there is news."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _freed(self) -> None:
        """Places in the window became free."""
        patience = self._patience
        if patience.until is not None and min(self._free(), self._lookups.room) >= patience.enough:
            self._news.set()

    def _free(self) -> int:
        return self._size - self._lanes.places - self._lookups.waiting

    async def _read(self, message_id: str) -> bytes | None:
        return await self._clerk.persistently(lambda: self._queue.content(message_id))
