"""How much may be sent: per account and minute, per account and day, per credential and day.

Places are taken in the store's counters, one limit after the other, exactly, whatever runs in parallel in whichever
process. What one limit refuses or cannot count, or what is not stored in the end, gives back the places it took.

How it fails: StoreUnavailable from ``take``. A place that cannot be given back, because the store is in trouble, stays
taken until its window ends; so does one, or that of a message, whose COMMIT nobody heard the answer of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from forwarder.config import Plan
from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply
from forwarder.store import counters
from forwarder.store.credentials import Login
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One message counted against one limit."""

    key: str
    window: timedelta
    limit: int
    taken_at: datetime


class Quotas:
    """Counts for all sessions of submission."""

    def __init__(
        self, database: Database, plan_of: Callable[[str], Plan], *, clock: Callable[[], datetime]
    ) -> None:
        """``plan_of``: the limits of a plan's name (``Settings.plan``)."""
        self._database = database
        self._plan_of = plan_of
        self._clock = clock

    async def take(self, login: Login) -> Sequence[Charge] | Reply:
        """Count one message; a reply when a quota is used up."""
        plan = self._plan_of(login.account_plan)
        account, credential = f"send:{login.domain.account_id}", f"send-credential:{login.credential.id}"
        taken: list[Charge] = []
        for key, window, limit, whose in (
            (f"{account}:minute", MINUTE, plan.ratelimit, "sending rate of your account"),
            (
                credential,
                DAY,
                plan.daily_send_per_credential or plan.daily_send,
                "daily sending quota of this log-in",
            ),
            (account, DAY, plan.daily_send, "daily sending quota of your account"),
        ):
            if not limit:
                continue
            charge = Charge(key=key, window=window, limit=limit, taken_at=self._clock())
            try:
                counted = await counters.hit(
                    self._database, key, window=window, limit=limit, now=charge.taken_at
                )
            except StoreUnavailable:
                await self.give_back(taken)
                raise
            if not counted.allowed:
                await self.give_back(taken)
                when = counted.resets_at.strftime("%Y-%m-%d %H:%M UTC")
                return replies.OVER_QUOTA.saying(f"the {whose} is used up until {when}")
            taken.append(charge)
        return taken

    async def give_back(self, charges: Sequence[Charge]) -> None:
        """The message was not taken after all."""
        try:
            for charge in charges:
                await counters.hit(
                    self._database,
                    charge.key,
                    window=charge.window,
                    limit=charge.limit,
                    now=charge.taken_at,
                    amount=-1,
                )
        except StoreUnavailable as trouble:
            log.warning("places of a quota were not given back", places=len(charges), reason=str(trouble))
