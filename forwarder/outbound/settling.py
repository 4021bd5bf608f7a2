"""From verdicts to durable outcomes: events, the next attempt, the DSN; written until it is written.

A verdict of DELIVERED ends a delivery; RETRY_LATER plans the next attempt or, once the message is too old, gives up;
GIVE_UP gives up. What was tried together is due together. Giving up makes one DSN for all recipients of the message
that failed in the same attempt, stored in the transaction that settles them. An alias with thirty dead destinations is
one recipient: its sender is told once, as long as this process holds the message, and again of what fails in an attempt
hours later; the log tells its owner of each.

What a host has accepted must not be forgotten because the store is away: a settlement that cannot be written is tried
again, first soon, then every few seconds, until it is written or the store says that the lease is somebody else's
(then nothing is written: the other one settles). While many settlements wait no new attempt begins (``crew``), so a
store that is away stops the deliveries as well. Only a process that must end gives up waiting; another then sends again
what this one could not record, which RFC 5321 6.1 allows and the log tells.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import structlog

from forwarder.mail.event import DeliveryKind, Status
from forwarder.mail.outcome import Action, expired
from forwarder.mail.schedule import RetryPolicy, next_attempt_at
from forwarder.outbound.bounce import Bounces
from forwarder.outbound.discretion import Discretion
from forwarder.outbound.parcel import Parcel, Told, Verdict
from forwarder.store.queue import Queue
from forwarder.store.records import NewEvent, NewMessage, Outcome, Settlement
from forwarder.store.telling import Telling
from forwarder.store.trouble import StoreUnavailable
from forwarder.tally import REPORTS, SETTLED, Tally

_FIRST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 5.0

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
Read = Callable[[Parcel], Awaitable[bytes | None]]  # the content of a parcel; None: it is gone


class Clerk:
    """Writes down what became of the attempts of one process."""

    def __init__(
        self,
        queue: Queue,
        bounces: Bounces,
        *,
        policy: RetryPolicy,
        hostname: str,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        lease: Callable[[str], bool],
        hand_over: Callable[[NewMessage], None],
        tally: Tally,
    ) -> None:
        self._queue = queue
        self._bounces = bounces
        self._policy = policy
        self._hostname = hostname
        self._clock = clock
        self._jitter = jitter
        self._lease = lease
        self._hand_over = hand_over
        self._attempts = {kind: tally.counts(SETTLED, kind.value) for kind in DeliveryKind}
        self._reports = tally.count(REPORTS)
        self._telling = Telling()
        self.unwritten = 0  # settlements, and contents to be read, that wait for the store to come back

    async def settle(self, parcel: Parcel, verdicts: Sequence[Verdict], read: Read) -> None:
        """Make the verdicts of one attempt durable; returns when they are, or are somebody else's to write."""
        settlements: list[Settlement] = []
        failed: list[Verdict] = []
        # One throw for all: what is due apart is sent apart, and an address to which several recipients lead would get
        # a copy for each of them.
        now, jitter = self._clock(), self._jitter()
        discretion = Discretion(verdicts)
        for verdict in verdicts:
            settlement = self._settlement(verdict, now, jitter, discretion)
            if settlement is not None:
                settlements.append(settlement)
            else:
                failed.append(self._final(verdict))
        if settlements:
            await self._write(settlements)
        if failed:
            await self._give_up(parcel, failed, read, discretion)

    async def persistently(self, act: Callable[[], Awaitable[_T]]) -> _T:
        """Do something with the store, again and again until the store is there."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await act()
            except StoreUnavailable as error:
                if pause == _FIRST_PAUSE and (news := self._telling.news(error)):
                    _log.warning("the deliveries wait for the store", unwritten=self.unwritten + 1, **news)
                self.unwritten += 1
                try:
                    await asyncio.sleep(pause)
                finally:
                    self.unwritten -= 1
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _settlement(
        self, verdict: Verdict, now: datetime, jitter: float, discretion: Discretion
    ) -> Settlement | None:
        """The settlement of what is not given up; None: it is."""
        delivery = verdict.delivery
        if verdict.action is Action.DELIVERED:
            event = self._event(Status.DELIVERED, verdict, discretion)
            return Settlement(delivery=delivery, outcome=Outcome.DELIVERED, event=event)
        if verdict.action is Action.GIVE_UP:
            return None
        due = next_attempt_at(
            self._policy,
            created_at=delivery.created_at,
            attempts=delivery.attempts,
            now=now,
            jitter=jitter,
        )
        if due is None:
            return None
        event = self._event(Status.SOFT_BOUNCE, verdict, discretion)
        return Settlement(delivery=delivery, outcome=Outcome.SOFT, event=event, next_attempt_at=due)

    def _final(self, verdict: Verdict) -> Verdict:
        """A verdict of giving up: what was temporary has become so by age, and says so."""
        if verdict.action is Action.GIVE_UP:
            return verdict
        return replace(verdict, action=Action.GIVE_UP, reply=expired(verdict.reply))

    async def _give_up(
        self, parcel: Parcel, failed: Sequence[Verdict], read: Read, discretion: Discretion
    ) -> None:
        """Settle failures, which share one report: it is stored with them, once, if any of them is still ours.

        All in one group: were the first of them settled alone, a death right after it would make the others fail
        once more, and the sender would read of them twice.
        """
        told = parcel.told = parcel.told or Told()
        async with told.turn:
            news = [verdict for verdict in failed if verdict.delivery.recipient not in told.recipients]
            content = await read(parcel) if news and parcel.can_be_bounced else None
            report = await self.persistently(lambda: self._report(parcel, news, content))
            written = await self._write(
                [self._hard(verdict, parcel, report, told, discretion) for verdict in failed]
            )
            if any(written) and report is not None:
                self._reports.add()
                told.recipients.update(verdict.delivery.recipient for verdict in news)
                if any(each.leased for each in report.deliveries):
                    self._hand_over(report)

    async def _report(
        self, parcel: Parcel, news: Sequence[Verdict], content: bytes | None
    ) -> NewMessage | None:
        if not news or not parcel.can_be_bounced:
            return None
        now = self._clock()
        due = next_attempt_at(self._policy, created_at=now, attempts=1, now=now, jitter=self._jitter())
        return await self._bounces.report(parcel, news, content or b"", lease=self._lease, due=due)

    def _hard(
        self,
        verdict: Verdict,
        parcel: Parcel,
        report: NewMessage | None,
        told: Told,
        discretion: Discretion,
    ) -> Settlement:
        event = self._event(Status.HARD_BOUNCE, verdict, discretion)
        if not parcel.can_be_bounced and verdict.delivery.kind is not DeliveryKind.NOTIFY:
            why = "the reverse-path is null" if not parcel.is_report else "this is a report itself"
            event = replace(event, message=f"{event.message} (double_bounce: nobody was told, since {why})")
        elif verdict.delivery.recipient in told.recipients:
            event = replace(event, message=f"{event.message} (its sender was told of this recipient before)")
        return Settlement(delivery=verdict.delivery, outcome=Outcome.HARD, event=event, report=report)

    def _event(self, status: Status, verdict: Verdict, discretion: Discretion) -> NewEvent:
        reply, text = verdict.reply, discretion.text(verdict)
        return NewEvent(
            status=status,
            code=reply.code,
            message=f"{reply.enhanced} {text}" if reply.enhanced else text,
            local=self._hostname,
            server=verdict.server,
            recipient=verdict.delivery.destination,
        )

    async def _write(self, settlements: Sequence[Settlement]) -> list[bool]:
        written = await self.persistently(lambda: self._queue.settle_all(settlements))
        for settlement, done in zip(settlements, written, strict=True):
            if done:
                self._attempts[settlement.delivery.kind][settlement.outcome].add()
            else:
                _log.info(
                    "a lease was lost; its outcome is not written",
                    delivery=settlement.delivery.id,
                    outcome=str(settlement.outcome),
                )
        return written
