"""What goes back to the store unattempted, due after a pause, its attempt not counted.

It stays in the window until the store has taken it. A store that is away is tried again with the next call.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

import structlog

from forwarder.outbound.parcel import Job, Parcel
from forwarder.outbound.window import Window
from forwarder.store.queue import Queue
from forwarder.store.records import Delivery
from forwarder.store.trouble import StoreUnavailable

_TOGETHER = 200  # deliveries

_log = structlog.get_logger(__name__)


class Returns:
    """Leases that nobody here will use."""

    def __init__(self, queue: Queue, window: Window, *, clock: Callable[[], datetime]) -> None:
        self._queue = queue
        self._window = window
        self._clock = clock
        self._waiting: list[tuple[Parcel, Delivery, timedelta]] = []

    def add(self, job: Job, pause: timedelta) -> None:
        """Let these go back with the next ``give_back``."""
        self._waiting += [(job.parcel, delivery, pause) for delivery in job.deliveries]

    async def give_back(self, *, until: float | None) -> None:
        """Release what is to go back. ``until``: the monotonic time until which a store that is away is waited for."""
        while self._waiting:
            batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            now = self._clock()
            results = await asyncio.gather(
                *(self._queue.release(d, next_attempt_at=now + pause) for _, d, pause in batch),
                return_exceptions=True,
            )
            away = False
            for returned, result in zip(batch, results, strict=True):
                if isinstance(result, StoreUnavailable):
                    self._waiting.append(returned)
                    away = True
                    continue
                if isinstance(result, BaseException):
                    _log.error("a lease is a stray now", delivery=returned[1].id, exc_info=result)
                self._window.let_go(returned[0], [returned[1]])
            if away:
                if until is None or monotonic() >= until:
                    return
                await asyncio.sleep(0.1)
