"""How many requests an account may send a minute, over all processes, at the cost of few writes.

The count of the current minute is shared, and a process takes blocks of it (``store.blocks``): a sixteenth of what is
left, one place at a time when little is left. A large body counts as several requests (``places_of``), since it takes
as much of the time of others as these.

Wrong keys are counted by client in the same way: guessing is what has to be slow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request

from forwarder.net.addresses import client_of
from forwarder.store import counters
from forwarder.store.blocks import Block, Blocks
from forwarder.store.engine import Database

WINDOW = timedelta(minutes=1)
FREE = 16 * 1024  # octets of a body that come with each place
UNLIMITED = 1_000_000  # shown where there is no limit: clients read "0 remaining" as "stop"


def places_of(octets: int, limit: int) -> int:
    """How many requests more a body counts as; never more than half of what is allowed."""
    return min(octets // FREE, limit // 2)


def client_key(request: Request) -> str:
    """Who is counted where there is no account to count: an address, or an IPv6 network of 64 bits."""
    return client_of(request.client.host) if request.client else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where somebody stands with their limit after this request."""

    limit: int
    remaining: int
    resets_at: datetime
    allowed: bool

    def headers(self, now: datetime) -> Mapping[str, str]:
        """What every answer carries; the reset is in unix seconds."""
        shown = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(math.ceil(self.resets_at.timestamp())),
        }
        if not self.allowed:
            shown["Retry-After"] = str(max(1, math.ceil((self.resets_at - now).total_seconds())))
        return shown


@dataclass(slots=True)
class _Requests(Block):
    """Requests that this process may still answer."""

    shared: int = 0  # the shared count when last seen


class RateLimit:
    """At most ``limit`` hits a key and minute; a limit of 0 is none."""

    def __init__(self, database: Database, name: str, limit: int, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._name = name
        self._limit = limit
        self._clock = clock
        self._blocks: Blocks[str, _Requests] = Blocks(_Requests, window=WINDOW)

    async def hit(self, who: str, places: int = 1) -> Standing:
        """Count a request of ``who``, as so many; it is not allowed where there are fewer left. StoreUnavailable."""
        now = self._clock()
        if self._limit == 0:
            return self.idle(now)
        block = self._blocks.of(who, now)
        async with block.busy:
            if block.left < places:
                await self._take(who, block, now, places - block.left)
            allowed = block.left >= places
            if allowed:
                block.left -= places
        return Standing(
            limit=self._limit,
            remaining=max(0, self._limit - block.shared) + block.left,
            resets_at=block.resets_at,
            allowed=allowed,
        )

    def idle(self, now: datetime) -> Standing:
        """For answers that are counted for nobody."""
        shown = self._limit or UNLIMITED
        return Standing(limit=shown, remaining=shown, resets_at=now + WINDOW, allowed=True)

    async def _take(self, who: str, block: _Requests, now: datetime, least: int) -> None:
        wanted = max(least, (self._limit - block.shared) // 16)
        taken, counted = await counters.hit_block(
            self._database,
            f"{self._name}:{who}",
            window=WINDOW,
            limit=self._limit,
            now=now,
            wanted=wanted,  # of what was left when this process last saw it; there may be less by now
            least=least,
        )
        block.shared = min(counted.value, self._limit) if taken else self._limit
        block.resets_at = counted.resets_at
        block.left += taken
