"""The MTA-STS policies of the domains we send to (RFC 8461): asked for, fetched, kept until they expire.

``in_force`` says which policy binds mail for a domain now: one of mode ``enforce``, or None, and then mail goes as if
there were none. The TXT record is asked for each time (the resolver keeps it by its TTL, also that there is none); the
policy is fetched where its id is new, and once a day, so that it does not expire while nobody can reach it.

Promises: a policy once seen stays in force until its ``max_age`` is over, whatever becomes of the record and of the
site it came from (RFC 8461 3.3); who asks waits four seconds at most, while what was begun goes on for those who come
later; those who ask for a domain at once share one question and one fetch.

How it fails: towards what is kept, and without that towards no policy. What could not be fetched is left alone for
five minutes, a record that could not be looked up for one.

Bounds: 4096 policies, the one not used for longest goes; 32 fetches at once, of ten seconds each; with 1000 domains
under way no other is begun. A ``max_age`` of less than five minutes counts as five.

Limits: what is kept is in memory, so a process that starts knows no policy before it has fetched it; each has its own.
No reports are sent (RFC 8460).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from forwarder.errands import Errands
from forwarder.mail.mta_sts import MAX_OCTETS, Mode, PolicyError, StsPolicy, parse_policy, record_id
from forwarder.net.answers import CannotTell, Found, NotFound
from forwarder.net.dns import Resolver
from forwarder.net.http import Blocked, GuardedClient, Unreachable

PATIENCE = 4.0  # seconds that one who asks waits
DEADLINE = timedelta(seconds=10)  # of a fetch
FETCHES = 32
UNDER_WAY = 1000
KEPT = 4096
IN_VAIN = 10_000  # domains remembered
UNFETCHED = timedelta(minutes=5)
UNANSWERED = timedelta(minutes=1)
REFRESH = timedelta(days=1)
LEAST = timedelta(minutes=5)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A policy as it was fetched."""

    policy: StsPolicy
    record_id: str
    refresh_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _InVain:
    """When a domain was asked in vain, and for how long it is left alone."""

    since: datetime
    pause: timedelta


class Policies:
    """See the module; one for the process. ``port``: where policies are served."""

    def __init__(
        self, resolver: Resolver, client: GuardedClient, *, clock: Callable[[], datetime], port: int = 443
    ) -> None:
        self._resolver = resolver
        self._client = client
        self._clock = clock
        self._port = port
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._in_vain: OrderedDict[str, _InVain] = OrderedDict()
        self._looks = Errands("mta-sts")
        self._fetches = asyncio.Semaphore(FETCHES)

    async def in_force(self, domain: str) -> StsPolicy | None:
        """The policy to keep to with mail for a domain (A-labels, lower case)."""
        if domain in self._looks or len(self._looks) < UNDER_WAY:
            look = self._looks.begin(domain, partial(self._look, domain))
            await asyncio.wait((look,), timeout=PATIENCE)
        kept = self._kept.get(domain)
        if kept is None:
            return None
        if kept.expires_at <= self._clock():
            del self._kept[domain]
            return None
        self._kept.move_to_end(domain)
        return kept.policy if kept.policy.mode is Mode.ENFORCE else None

    async def close(self) -> None:
        """End what is under way."""
        await self._looks.close()

    async def _look(self, domain: str) -> None:
        try:
            await self._renew(domain)
        except Exception:  # noqa: BLE001 - our own trouble must not take the policy that is kept from anybody
            _log.exception("a policy was not renewed", domain=domain)
            self._note(domain, self._clock(), UNFETCHED, "an error of ours")

    async def _renew(self, domain: str) -> None:
        now = self._clock()
        vain = self._in_vain.get(domain)
        # a clock that was set back must not leave a domain alone for ever
        if vain is not None and vain.since <= now < vain.since + vain.pause:
            return
        match await self._resolver.txt(f"_mta-sts.{domain}"):
            case Found(records=records):
                announced = record_id(records)
            case NotFound():
                return
            case CannotTell(reason=reason):
                self._note(domain, now, UNANSWERED, reason)
                return
        kept = self._kept.get(domain)
        if announced is None or (kept and kept.record_id == announced and now < kept.refresh_at):
            return
        try:
            policy = await self._fetch(domain)
        except (Blocked, Unreachable, PolicyError) as exc:
            self._note(domain, now, UNFETCHED, str(exc))
            return
        max_age = max(policy.max_age, LEAST)
        _log.info(
            "a policy is fetched", domain=domain, mode=str(policy.mode), id=announced, max_age=str(max_age)
        )
        self._in_vain.pop(domain, None)
        self._kept[domain] = _Kept(
            policy=policy,
            record_id=announced,
            refresh_at=now + min(max_age / 2, REFRESH),
            expires_at=now + max_age,
        )
        self._kept.move_to_end(domain)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def _fetch(self, domain: str) -> StsPolicy:
        url = f"https://mta-sts.{domain}:{self._port}/.well-known/mta-sts.txt"
        async with self._fetches:
            page = await self._client.get(url, DEADLINE, limit=MAX_OCTETS)
        if page.status != 200:  # RFC 8461 3.3
            raise PolicyError(f"the policy was answered {page.status}")
        # RFC 8461 3.2: what anybody may put on a site must not pass for its policy
        if page.media_type != "text/plain":
            raise PolicyError("the policy is not text/plain")
        return parse_policy(page.body)

    def _note(self, domain: str, now: datetime, pause: timedelta, reason: str) -> None:
        _log.info("a policy was not fetched", domain=domain, reason=reason)
        self._in_vain[domain] = _InVain(since=now, pause=pause)
        self._in_vain.move_to_end(domain)
        if len(self._in_vain) > IN_VAIN:
            self._in_vain.popitem(last=False)
