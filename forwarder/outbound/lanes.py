"""Who is served next: lanes by site, taken in turn. Pure bookkeeping; the dispatcher acts on it.

Every site has one lane, with the jobs that wait for it. ``take`` goes round the lanes, so that a long lane delays no
other. Five bounds keep a slow or dead site from hurting the rest:

- a lane may take no more places in the window than are still free in it (so one greedy site leaves half of the
  window, two leave a third, and so on: a new site always finds room); a smarthost, being all there is, may fill it;
- a lane begins with ``_FIRST_LIMIT`` sessions, gains one with each success up to the limit per site, has half as many
  after trouble, and one from the third in a row on (RFC 5321 4.5.4.1 asks not to open many connections to a host in
  trouble);
- lanes whose last attempt did not reach a host share half of the session slots, the healthy ones have all;
- a session that lasts longer than ``_PATIENCE`` leaves the count of slots when they run out, and its lane is ailing,
  so that many hosts that hang for the first time do not stop all mail until their time-outs; as many sessions as
  there are slots may have left the count, which makes twice the slots at most;
- after ``_TRIP`` attempts in a row that reached nobody the lane is suspended, from 15 seconds doubling up to 10
  minutes, but never for longer than a retry would wait (``suspensions``); whatever waits in it is handed back by
  ``flush`` to be settled without dialling.

What a lane has learnt is remembered after it emptied, for the last ``_REMEMBERED`` lanes.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from forwarder.mail.reply import Reply
from forwarder.mail.schedule import RetryPolicy
from forwarder.outbound.parcel import Job
from forwarder.store.records import Delivery

_FIRST_LIMIT = 5
_TRIP = 3
_PATIENCE = 30.0  # seconds
_SUSPENSIONS = (15.0, 600.0)  # seconds: the first and the longest
_REMEMBERED = 10_000
_JOB_LIMIT = 100  # addresses of one transaction (RFC 5321 4.5.3.1.8: every host takes as many)
_DOMAINS_NAMED = 200  # domains of a blocked lane that a claim is asked to leave out


@dataclass(slots=True, eq=False)
class Lane:
    """One site: what waits for it, and how it behaves."""

    site: str
    limit: int
    waiting: "OrderedDict[str, Job]" = field(default_factory=OrderedDict)  # by Job.key
    domains: dict[str, None] = field(default_factory=dict)  # destination domains seen here, newest last
    places: int = 0  # of the window that it has taken: deliveries waiting, under way or being settled
    active: int = 0  # jobs under way
    lasting: int = 0  # of them, those that left the count of slots
    failures: int = 0  # attempts in a row that reached nobody
    suspensions: int = 0
    suspended_until: float = 0.0
    trouble: Reply | None = None
    queued: bool = False  # stands in a ring
    proven: bool = True  # the last attempt reached a host, or none was made yet


class Lanes:
    """All lanes of a dispatcher. Times are seconds of a monotonic clock."""

    def __init__(
        self,
        *,
        window: int,
        concurrency: int,
        per_site: int,
        share_all: bool,
        suspensions: tuple[float, float] = _SUSPENSIONS,
    ) -> None:
        self._window = window
        self._concurrency = concurrency
        self._per_site = min(per_site, concurrency)
        self.share_all = share_all  # one lane may fill the window: a smarthost
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        # Those that hold something or are suspended: few of the remembered.
        self._watched: dict[str, Lane] = {}
        self._healthy: deque[Lane] = deque()
        self._ailing: deque[Lane] = deque()
        self._ailing_turn = False
        self._ailing_active = 0
        self._ailing_limit = max(1, concurrency // 2)
        self._suspensions = suspensions
        # Under way and counted, oldest first.
        self._begun: OrderedDict[Job, tuple[Lane, float]] = OrderedDict()
        self._lasting: set[Job] = set()  # under way, not counted any more
        self.places = 0  # of the window that all of them have taken
        self.active = 0  # session slots taken

    def lane(self, site: str) -> Lane:
        """The lane of a site, made when it is new."""
        lane = self._lanes.get(site)
        if lane is None:
            lane = self._lanes[site] = Lane(site=site, limit=min(_FIRST_LIMIT, self._per_site))
            self._forget_some()
        return lane

    def known(self, site: str) -> Lane | None:
        """The lane of a site, if there is one."""
        return self._lanes.get(site)

    def has_room(self, lane: Lane | None, now: float, *, elsewhere: int = 0) -> bool:
        """Whether a lane may take one more place; ``elsewhere``: places used outside the lanes."""
        free = self._window - self.places - elsewhere
        if free <= 0:
            return False
        if lane is None:
            return True
        return lane.suspended_until <= now and (self.share_all or lane.places < free)

    def add(self, lane: Lane, job: Job, domain: str) -> None:
        """Let a job wait in a lane; it joins what already waits there of the same message."""
        count = len(job.deliveries)
        lane.places += count
        self.places += count
        if domain in lane.domains:
            del lane.domains[domain]
        lane.domains[domain] = None
        if len(lane.domains) > _DOMAINS_NAMED:
            del lane.domains[next(iter(lane.domains))]
        self._watched[lane.site] = lane
        same = lane.waiting.get(job.key)
        if same is None:
            lane.waiting[job.key] = job
        else:
            same.deliveries.extend(job.deliveries)
            same.route = job.route
        self._enqueue(lane)

    def take(self, now: float) -> tuple[Lane, Job] | None:
        """The next job to dial for, now counted as active; None when no lane may dial."""
        if not (self._healthy or self._ailing):
            return None  # asked several times a message, and nothing waits but under load
        if self.active >= self._concurrency or self._ailing_active >= self._ailing_limit:
            self._let_last(now)
        if self.active >= self._concurrency:
            return None
        self._ailing_turn = not self._ailing_turn
        # The ailing last in any case: one that fell ill while it stood among the healthy is passed on to them.
        turn = (self._ailing, self._healthy, self._ailing)
        for ring in turn if self._ailing_turn else turn[1:]:
            if ring is self._ailing and self._ailing_active >= self._ailing_limit:
                continue
            while ring:
                lane = ring.popleft()
                lane.queued = False
                if lane.suspended_until > now or not lane.waiting or lane.active >= lane.limit:
                    continue  # it comes back with wake(), add() or ended()
                if ring is self._healthy and not lane.proven:
                    self._enqueue(lane)  # it fell ill while it stood here
                    continue
                return lane, self._start(lane, now)
        return None

    def ended(self, lane: Lane, job: Job, *, reached: bool, trouble: Reply | None, now: float) -> None:
        """An attempt is over: its session slot is free, and the lane has learnt something."""
        lane.active -= 1
        if self._begun.pop(job, None) is None:
            self._lasting.remove(job)
            lane.lasting -= 1
        else:
            self._uncount(lane)
        was_proven = lane.proven
        if reached:
            lane.failures = lane.suspensions = 0
            lane.trouble = None
            lane.limit = min(lane.limit + 1, self._per_site)
            lane.proven = True
        elif trouble is not None:
            lane.failures += 1
            lane.trouble = trouble
            lane.limit = max(1, lane.limit // 2) if lane.failures < _TRIP else 1
            lane.proven = False
            if lane.failures >= _TRIP:
                first, longest = self._suspensions
                length = min(first * 2.0**lane.suspensions, longest)
                if lane.suspended_until <= now:
                    lane.suspensions = min(lane.suspensions + 1, 10)
                lane.suspended_until = now + length
        if was_proven is not lane.proven:
            counted = lane.active - lane.lasting
            self._ailing_active += counted if was_proven else -counted
        self._enqueue(lane)

    def leave(self, lane: Lane, count: int) -> None:
        """Deliveries are settled or given back: their places in the window are free."""
        lane.places -= count
        self.places -= count
        if not lane.places:
            self._lanes.move_to_end(lane.site)
            if not lane.failures:
                self._watched.pop(lane.site, None)

    def flush(self, lane: Lane) -> list[Job]:
        """Take out everything that waits in a lane; its places stay taken until ``leave``."""
        jobs = list(lane.waiting.values())
        lane.waiting.clear()
        return jobs

    def wake(self, now: float) -> None:
        """Let lanes whose suspension is over take their turn again."""
        for lane in list(self._watched.values()):
            if lane.suspended_until <= now:
                if not lane.places:
                    del self._watched[lane.site]
                self._enqueue(lane)

    def blocked_domains(self, now: float) -> list[str]:
        """Destination domains for which nothing should be claimed now."""
        return [d for lane in self._watched.values() if not self.has_room(lane, now) for d in lane.domains]

    def suspended(self, now: float) -> int:
        """How many sites are suspended."""
        return sum(lane.suspended_until > now for lane in self._watched.values())

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._watched.values()))

    @property
    def sessions(self) -> int:
        """Attempts under way, whether they count or not."""
        return self.active + len(self._lasting)

    def _let_last(self, now: float) -> None:
        """Take sessions that last out of the count, the oldest first; their lanes are ailing until proven well."""
        while self._begun and len(self._lasting) < self._concurrency:
            job, (lane, since) = next(iter(self._begun.items()))
            if now - since < _PATIENCE:
                return
            del self._begun[job]
            self._lasting.add(job)
            self._uncount(lane)
            lane.lasting += 1
            if lane.proven:
                lane.proven = False
                self._ailing_active += lane.active - lane.lasting

    def _uncount(self, lane: Lane) -> None:
        self.active -= 1
        if not lane.proven:
            self._ailing_active -= 1

    def _start(self, lane: Lane, now: float) -> Job:
        key, job = lane.waiting.popitem(last=False)
        rest = _set_aside(job)
        if rest:
            lane.waiting[key] = Job(parcel=job.parcel, deliveries=rest, route=job.route)
        lane.active += 1
        self.active += 1
        self._begun[job] = (lane, now)
        if not lane.proven:
            self._ailing_active += 1
        self._enqueue(lane)
        return job

    def _enqueue(self, lane: Lane) -> None:
        if lane.waiting and not lane.queued and lane.active < lane.limit:
            lane.queued = True
            (self._healthy if lane.proven else self._ailing).append(lane)

    def _forget_some(self) -> None:
        while len(self._lanes) > _REMEMBERED:
            oldest = next(iter(self._lanes.values()))
            if oldest.site in self._watched:
                # In use: it counts as the newest, so that this ends after one look at each lane at most.
                self._lanes.move_to_end(oldest.site)
                return
            del self._lanes[oldest.site]


def _set_aside(job: Job) -> list[Delivery]:
    """Take out of a job, and return, what does not belong in its first transaction.

    Mail that wants no answer goes to one address at a time: some hosts take a report for several recipients for spam.
    Addresses are counted, not deliveries: one to which several recipients lead would get a copy by each transaction.
    """
    most = 1 if job.parcel.reverse_path.is_null else _JOB_LIMIT
    if len(job.deliveries) <= most:  # nearly always
        return []
    first = set(islice(dict.fromkeys(delivery.destination for delivery in job.deliveries), most))
    rest = [delivery for delivery in job.deliveries if delivery.destination not in first]
    job.deliveries = [delivery for delivery in job.deliveries if delivery.destination in first]
    return rest


def suspensions(policy: RetryPolicy) -> tuple[float, float]:
    """The first and the longest suspension that go with a retry policy, in seconds."""
    first, longest = _SUSPENSIONS
    return (
        min(first, policy.delays[0].total_seconds()),
        min(longest, max(policy.delays).total_seconds()),
    )
