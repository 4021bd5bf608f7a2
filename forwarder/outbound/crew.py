"""The hands of one process: each takes a job from the lanes, carries it, gives its session slot back, and writes the
outcome down.

A hand is a task. There is one for each attempt under way and each outcome being written, and none when there is
nothing to do; one that is done takes the next job itself. While more than four outcomes a slot wait for the store, no
new attempt begins.

``stop`` lets what is under way end in the time given, then cuts it: such a delivery is settled as a temporary failure
that says so, since the remote host may have taken it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from time import monotonic

import structlog

from forwarder.mail.outcome import Action, Fault, reply_for, untried
from forwarder.mail.reply import Reply
from forwarder.outbound.delivery import Courier
from forwarder.outbound.lanes import Lane, Lanes
from forwarder.outbound.parcel import Carried, Job, Verdict
from forwarder.outbound.settling import Clerk
from forwarder.outbound.window import Window

_CUT_SHORT = Reply(
    code=451,
    enhanced="4.3.2",
    text="delivery_unknown: this host went down during the attempt; it will be sent again",
)
_TOGETHER = 50  # jobs settled at once when a lane is flushed

_log = structlog.get_logger(__name__)


class Crew:
    """Carries jobs as long as the lanes have any."""

    def __init__(
        self,
        *,
        lanes: Lanes,
        window: Window,
        courier: Courier,
        clerk: Clerk,
        slots: int,
        freed: Callable[[], None],
        sure: Callable[[], Awaitable[None]],
    ) -> None:
        self._lanes = lanes
        self._window = window
        self._courier = courier
        self._clerk = clerk
        self._limit = slots * 4
        self._hands: set[asyncio.Task[None]] = set()
        self._cut: list[Job] = []
        self._freed = freed
        self._sure = sure
        self._stopping = False
        self.settling = 0  # outcomes being written down

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: until Python 3.12 each question is a system call."""
        return asyncio.get_running_loop()

    def pump(self) -> None:
        """Set hands to what may be dialled now."""
        while not self._stopping and self.settling < self._limit:
            taken = self._lanes.take(monotonic())
            if taken is None:
                return
            task = self._loop.create_task(self._work(*taken))
            self._hands.add(task)
            task.add_done_callback(self._hands.discard)

    async def fail(self, jobs: Sequence[Job], action: Action, reply: Reply) -> None:
        """Settle jobs that wait in no lane, all with the same verdict."""
        await self._record_all(None, jobs, action, reply)

    async def flush(self, lane: Lane) -> None:
        """Settle without dialling what waits for a suspended site."""
        reply = untried(lane.trouble)
        await self._record_all(lane, self._lanes.flush(lane), Action.RETRY_LATER, reply)

    async def stop(self, timeout: timedelta) -> None:
        """End what is under way within the time; the last fifth of it is for writing down what had to be cut."""
        self._stopping = True
        seconds = timeout.total_seconds()
        await _ended(self._hands, seconds * 0.8)
        cut, self._cut = self._cut, []
        if cut:
            _log.warning("attempts were cut short", deliveries=sum(len(job.deliveries) for job in cut))
            records = [self._record(None, job, _all(job, Action.RETRY_LATER, _CUT_SHORT)) for job in cut]
            await _ended({asyncio.ensure_future(record) for record in records}, seconds * 0.2)

    async def _work(self, lane: Lane, job: Job) -> None:
        while True:
            await self._run(lane, job)
            if self._stopping or self.settling >= self._limit:
                return
            taken = self._lanes.take(monotonic())
            if taken is None:
                return
            lane, job = taken

    async def _run(self, lane: Lane, job: Job) -> None:
        try:
            carried = await self._carried(lane, job)
        except asyncio.CancelledError:
            self._lanes.ended(lane, job, reached=True, trouble=None, now=monotonic())
            self._lanes.leave(lane, len(job.deliveries))
            self._cut.append(job)
            raise
        except Exception:  # noqa: BLE001 - our own trouble is temporary, whatever it is
            _log.exception("an attempt failed", message=job.parcel.message_id)
            verdicts = _all(job, Action.RETRY_LATER, reply_for(Fault.INTERNAL))
            carried = Carried(verdicts=verdicts, reached=True)
        now = monotonic()
        self._lanes.ended(lane, job, reached=carried.reached, trouble=carried.trouble, now=now)
        self.pump()  # the slot is free while we write
        await self._record(lane, job, carried.verdicts)
        if lane.suspended_until > now and lane.waiting:
            await self.flush(lane)

    async def _carried(self, lane: Lane, job: Job) -> Carried:
        await self._sure()  # a process that was stopped for long must not send what others have taken over
        ours = self._window.ours(job.deliveries)
        if len(ours) < len(job.deliveries):
            _log.info(
                "leases were lost; what they held is not sent",
                message=job.parcel.message_id,
                deliveries=len(job.deliveries) - len(ours),
            )
            if not ours:
                return Carried(verdicts=(), reached=True)
            job = replace(job, deliveries=ours)
        if job.parcel.content is not None:  # fresh mail, nearly always
            return await self._courier.carry(job, job.parcel.content)
        async with self._window.content(job.parcel, lane.site) as content:
            if content is None:
                _log.info("a message is gone; nothing is sent", message=job.parcel.message_id)
                return Carried(verdicts=(), reached=True)
            return await self._courier.carry(job, content)

    async def _record_all(self, lane: Lane | None, jobs: Sequence[Job], action: Action, reply: Reply) -> None:
        for start in range(0, len(jobs), _TOGETHER):
            some = jobs[start : start + _TOGETHER]
            await asyncio.gather(*(self._record(lane, job, _all(job, action, reply)) for job in some))

    async def _record(self, lane: Lane | None, job: Job, verdicts: Sequence[Verdict]) -> None:
        """Write the outcome down; the places in the window are free afterwards, whatever happened."""
        self.settling += 1
        try:
            if verdicts:
                await self._clerk.settle(job.parcel, verdicts, self._window.read)
        except asyncio.CancelledError:
            _log.error("an outcome was not recorded", ids=[v.delivery.id for v in verdicts])
            raise
        except Exception:  # noqa: BLE001 - the lease stays ours until the comparison with the store finds it
            _log.exception("settling failed", ids=[v.delivery.id for v in verdicts])
        finally:
            self.settling -= 1
            if lane is not None:
                self._lanes.leave(lane, len(job.deliveries))
            self._window.let_go(job.parcel, job.deliveries)
            self._freed()


def _all(job: Job, action: Action, reply: Reply) -> list[Verdict]:
    return [Verdict(delivery=delivery, action=action, reply=reply) for delivery in job.deliveries]


async def _ended(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    """Wait for tasks, and cancel those that take longer."""
    tasks = list(tasks)
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
