"""How much may be sent: per account and minute, per account and day, per credential and day.

Places are taken in the store's counters, in all limits or in none, exactly, whatever runs in parallel in whichever
process. What is not stored in the end gives back the places it took.

How it fails: StoreUnavailable from ``take``. A place that cannot be given back, because the store is in trouble, stays
taken until its window ends. So does a place where the answer to a COMMIT was lost, that of the count or that of the
message: it may be in force.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from forwarder.config import Plan
from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply
from forwarder.store import counters
from forwarder.store.counters import Hit
from forwarder.store.credentials import Login
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

log = structlog.get_logger(__name__)


class Quotas:
    """Counts for all sessions of submission."""

    def __init__(
        self, database: Database, plan_of: Callable[[str], Plan], *, clock: Callable[[], datetime]
    ) -> None:
        """``plan_of``: the limits of a plan's name (``Settings.plan``)."""
        self._database = database
        self._plan_of = plan_of
        self._clock = clock

    async def take(self, login: Login) -> Sequence[Hit] | Reply:
        """Count one message, and what to give back should it not be stored; a reply when a quota is used up."""
        plan = self._plan_of(login.account_plan)
        account, credential = f"send:{login.domain.account_id}", f"send-credential:{login.credential.id}"
        now = self._clock()
        limits = [
            (counters.in_window(key, window=window, limit=limit, now=now), whose)
            for key, window, limit, whose in (
                (f"{account}:minute", MINUTE, plan.ratelimit, "sending rate of your account"),
                (
                    credential,
                    DAY,
                    plan.daily_send_per_credential or plan.daily_send,
                    "daily sending quota of this log-in",
                ),
                (account, DAY, plan.daily_send, "daily sending quota of your account"),
            )
            if limit
        ]
        places = [place for place, _ in limits]
        if not places:
            return places
        counted = await counters.hit_all(self._database, places)
        last = counted[-1]
        if last.allowed:
            return places
        _, whose = limits[len(counted) - 1]
        when = last.resets_at.strftime("%Y-%m-%d %H:%M UTC")
        return replies.OVER_QUOTA.saying(f"the {whose} is used up until {when}")

    async def give_back(self, places: Sequence[Hit]) -> None:
        """The message was not taken after all."""
        if not places:
            return
        try:
            await counters.hit_all(self._database, [replace(place, amount=-place.amount) for place in places])
        except StoreUnavailable as trouble:
            log.warning("places of a quota were not given back", places=len(places), reason=str(trouble))
