"""Leases that nobody here knows of: found by comparing the store with memory, and given back.

They come about when a claim is committed and its answer lost, or when a fault that nobody foresaw stopped a settlement.
Without this they would wait for the end of the process. A lease counts as stray when two looks, ``_LOOK`` seconds
apart, both found it in the store with the same attempt and not in memory: a message that is just being accepted, or a
claim under way, is unknown for a moment only.
"""

import asyncio
from collections.abc import Callable, Collection

import structlog

from forwarder.store.queue import Queue
from forwarder.store.trouble import StoreUnavailable

_LOOK = 15.0  # seconds

_log = structlog.get_logger(__name__)


class Strays:
    """Compares what the store says is leased to us with what ``holding`` says is in memory."""

    def __init__(self, queue: Queue, holding: Callable[[], Collection[str]]) -> None:
        self._queue = queue
        self._holding = holding
        self._suspects: dict[str, int] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                await self.look()
            except StoreUnavailable:
                continue  # another look will do; the claims say that the store is away
            except Exception:  # noqa: BLE001 - one bad look must not be the last
                _log.exception("a look for strays failed")

    async def look(self) -> int:
        """Compare once; how many leases were given back."""
        leased = await self._queue.leases()
        known = self._holding()
        unknown = {delivery: attempt for delivery, attempt in leased.items() if delivery not in known}
        strays = {d: attempt for d, attempt in unknown.items() if self._suspects.get(d) == attempt}
        self._suspects = unknown
        if not strays:
            return 0
        given_back = await self._queue.give_back(strays)
        _log.warning("stray leases are given back", deliveries=given_back, ids=list(strays)[:20])
        return given_back
