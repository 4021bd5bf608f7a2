"""The sign of life of one process, on which its leases hang.

A row of the store says until when this process is to be believed alive; a heartbeat moves that on four times a lease.
A process that is stopped, or cut off from its store, for longer than a lease finds that others may have taken over
what it held. Until it knows, it must neither take mail nor dial: ``alive`` is False, and ``sure`` waits. Then the
heartbeat finds either its row, and all it held is still its own, or none: then ``lost`` is called, which forgets what
was held, and the process registers anew.

Limit: a session that was open when the process was stopped goes on when it wakes. What it had sent but not written
down may be sent twice, as after a crash (RFC 5321 6.1).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from forwarder.store import workers
from forwarder.store.engine import Database
from forwarder.store.telling import Telling
from forwarder.store.trouble import StoreUnavailable

LONGEST_PAUSE = 5.0  # seconds between two beats
RETRY = 1.0  # after a beat that the store did not take

log = structlog.get_logger("pulse")


class Pulse:
    """Says whether the leases of a worker are its own."""

    def __init__(
        self,
        database: Database,
        worker_id: str,
        *,
        lease: timedelta,
        clock: Callable[[], datetime],
        register: Callable[[datetime], Awaitable[None]],
        lost: Callable[[], None],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._lease = lease
        self._clock = clock
        self._register = register
        self._lost = lost
        self._seconds = seconds
        self._until = clock()  # before it, nobody takes our leases over
        # The same by a clock that nobody sets, but that sleeps with the machine.
        self._until_seconds = seconds()
        self._beaten = asyncio.Event()  # replaced at each beat

    def alive(self) -> bool:
        """Whether nobody can have taken our leases."""
        return self._clock() < self._until and self._seconds() < self._until_seconds

    def steady(self) -> bool:
        """Whether our own beats come through; while they do not, the same trouble may keep back those of others."""
        return self._seconds() < self._until_seconds - self._lease.total_seconds() / 2

    async def sure(self) -> None:
        """Return when ``alive``; whoever waited asks again what is still his."""
        while not self.alive():
            await self._beaten.wait()

    async def begin(self) -> None:
        """Register for the first time; StoreUnavailable."""
        now, began = self._clock(), self._seconds()  # from before the question: the answer may be late
        await self._register(now)
        self._beat(now, began)

    async def run(self) -> None:
        """Task body: beat for ever."""
        usual = min(self._lease.total_seconds() / 4, LONGEST_PAUSE)
        retry = min(usual, RETRY)
        pause = usual
        telling = Telling()
        while True:
            await asyncio.sleep(pause if self.alive() else retry)
            try:
                await self.beat()
                pause = usual
            except StoreUnavailable as error:
                pause = retry  # a store that is back before the lease is over is in time
                if news := telling.news(error):
                    log.warning("the heartbeat waits for the store", **news)

    async def beat(self) -> None:
        """Live on, or learn that we were taken for dead."""
        now, began = self._clock(), self._seconds()
        if await workers.heartbeat(self._database, self._worker_id, now=now, alive_for=self._lease):
            self._beat(now, began)
            return
        log.warning("taken for dead by another process; registering again", worker=self._worker_id)
        self._lost()
        await self.begin()

    def _beat(self, now: datetime, began: float) -> None:
        self._until = now + self._lease
        self._until_seconds = began + self._lease.total_seconds()
        self._beaten.set()
        self._beaten = asyncio.Event()
