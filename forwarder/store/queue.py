"""The queue's verbs: enqueue, claim_due, settle, release, next_due_at, withdraw_doubtful.

Promises. ``enqueue`` returns when message, deliveries, logs and QUEUED events are durable: the moment of 250.
``settle`` writes state, event and DSN in one transaction, guarded by lease owner and attempt; False means the lease was
lost and nothing was written. Nothing leaves the queue but by ``settle``, an operator's drop, or ``withdraw_doubtful``.

How it fails. StoreUnavailable and its kinds, nothing of the change in force; then the caller says 451, or tries to
settle again. After CommitUnknown nobody can say whether the change is in force:

- A message so enqueued is answered 451 and will be sent again, so ``run`` withdraws what may have been stored: at once
  and, since its COMMIT may hang in a server that waits for its disk, again until that transaction has certainly ended,
  for DOUBT seconds at least. Until then nobody claims or gives back anything of it: what is anybody's to deliver is
  leased to us as well until its COMMIT is answered. While DOUBTFUL messages are in doubt, no other is taken. The window
  that remains: this process ends, or is taken for dead, before the store is back. Then the message is delivered
  although its client was told 451, and the client's second try is a second copy (RFC 1047).
- A settlement is simply settled again: if it had taken, the second finds no lease; ``settle`` then says True, for one
  with a report only if that is stored: it must not be sent by two.
- Leases that a claim took without our knowing are found by the dispatcher, which compares what the store says we hold
  (``leases``) with what it knows, and gives back what twice nobody knew (``give_back``).

A caller that is cancelled during ``enqueue`` leaves no half of a message: if it is stored, its leases are given back
and it is delivered from the queue.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy import Connection, select

from forwarder.errands import unheard
from forwarder.failpoint import reach
from forwarder.store.claiming import Claim, Claiming, next_due
from forwarder.store.engine import Database
from forwarder.store.enqueueing import Enqueueing
from forwarder.store.records import Delivery, NewMessage, Settlement
from forwarder.store.rows import is_postgres
from forwarder.store.settling import Doubt, Ended, Release, Releasing, Settling, under_way, withdraw
from forwarder.store.straight import read_blob, run_text
from forwarder.store.tables import IS_LEASED, deliveries, messages
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from forwarder.store.writer import GROUP_ITEMS, Failed

# At most, from a claim to the next attempt when its workers keep dying.
IF_WORKER_DIES = timedelta(minutes=15)
DOUBT = 30.0  # seconds
DOUBTFUL = 10_000  # messages
TICK = 2.0

T = TypeVar("T")
_log = structlog.get_logger("forwarder.store")


@dataclass(slots=True)
class _InDoubt:
    doubt: Doubt
    since: float  # monotonic
    before: int | None = None  # what may still bring the message has a lower number; None: not known yet


class Queue:
    """One worker's hands on the queue."""

    def __init__(
        self,
        database: Database,
        *,
        worker_id: str,
        local_name: str,
        ids: Callable[[datetime], str],
        clock: Callable[[], datetime],
        alive: Callable[[], bool] = lambda: True,
        if_worker_dies: timedelta = IF_WORKER_DIES,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._ids = ids
        self._clock = clock
        self._alive = alive
        self._if_worker_dies = if_worker_dies
        self._enqueueing = Enqueueing(worker_id=worker_id, local_name=local_name, answers=True)
        reports = Enqueueing(worker_id=worker_id, local_name=local_name)
        self._settling = Settling(enqueueing=reports, worker_id=worker_id)
        self._releasing = Releasing(worker_id=worker_id)
        self._claiming = Claiming(worker_id=worker_id)
        self._doubts: dict[str, _InDoubt] = {}
        # Settlements that took, or may have, and of which the caller heard an error.
        self._unsure: set[tuple[str, int]] = set()

    async def enqueue(self, message: NewMessage, *, meanwhile: Callable[[], T] | None = None) -> T | None:
        """Take charge of a message; durable on return. StoreUnavailable: not taken.

        ``meanwhile`` is called where others are written first, so that there is time for it; what it gives is returned.
        It must not raise.
        """
        self._check_alive()
        if len(self._doubts) >= DOUBTFUL:
            raise StoreUnavailable("too many messages are in doubt")
        stored = self._database.writer.enlist(
            self._enqueueing,
            message,
            weight=len(message.content),
            orphaned=partial(self._nobody_took, message),
            writes=True,
            yields=True,
        )
        early = meanwhile() if meanwhile is not None and self._database.writer.occupied else None
        try:
            await stored
        except CommitUnknown:
            self._doubt(message)
            raise
        except asyncio.CancelledError:
            # It may have ended in the very turn of the loop in which the caller was cancelled.
            if stored.done() and not stored.cancelled():
                error = stored.exception()
                self._nobody_took(message, Failed(error) if isinstance(error, Exception) else None)
            raise
        self._let_go(_for_anybody(message))
        return early

    async def claim_due(
        self, now: datetime, limit: int, exclude_domains: Collection[str] = ()
    ) -> list[Delivery]:
        """Lease up to ``limit`` deliveries due at ``now``, oldest first, none to the excluded domains."""
        self._check_alive()
        claim = Claim(
            now=now,
            limit=limit,
            exclude_domains=tuple(exclude_domains),
            if_worker_dies=now + self._if_worker_dies,
        )
        claimed = await self._database.writer.submit(self._claiming, claim, last=True)
        if self._doubts:  # it has just appeared: leased to us now, it is withdrawn
            claimed = [d for d in claimed if not self._is_doubtful(d.message_id, d.attempts)]
        return sorted(claimed, key=lambda delivery: delivery.id)

    async def content(self, message_id: str) -> bytes | None:
        """The bytes of a message; None when its last delivery has ended."""
        return await self._database.read(lambda conn: _content(conn, message_id))

    async def contents(self, message_ids: Iterable[str]) -> dict[str, bytes]:
        """The bytes of several messages; those that are gone are missing. The caller bounds how much that may be."""
        wanted = list(message_ids)
        query = select(messages.c.id, messages.c.content).where(messages.c.id.in_(wanted))
        rows = await self._database.read(lambda conn: conn.execute(query).all())
        return {row.id: bytes(row.content) for row in rows}

    async def settle(self, settlement: Settlement) -> bool:
        """Write how an attempt ended, with its event and DSN. False: the lease was lost, nothing was written."""
        [took] = await self.settle_all([settlement])
        return took

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[bool]:
        """As ``settle``, for several that ended together; fails as a whole, and may then be called again as a whole."""
        waiting = [self._settle(settlement) for settlement in settlements]
        results: list[bool | BaseException]
        if len(waiting) == 1:  # nearly always: one message, one destination
            try:
                results = [await waiting[0]]
            except StoreUnavailable as error:
                results = [error]
        else:
            results = await asyncio.shield(asyncio.gather(*waiting, return_exceptions=True))
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            for settlement, result in zip(settlements, results, strict=True):
                if result is True or isinstance(result, CommitUnknown):
                    self._unsure.add((settlement.delivery.id, settlement.delivery.attempts))
            raise errors[0]
        reach("settle.after-commit")
        if not self._unsure:
            return [taken is True for taken in results]
        certain = [
            taken is True or await self._took_before(s) for s, taken in zip(settlements, results, strict=True)
        ]
        self._unsure -= {(s.delivery.id, s.delivery.attempts) for s in settlements}  # only when all is known
        return certain

    def _settle(self, settlement: Settlement) -> "asyncio.Future[bool]":
        now = self._clock()
        ended = Ended(settlement, self._ids(now), now)
        weight = len(settlement.report.content) if settlement.report else 0
        try:
            # Written even if nobody waits any more: what a host has taken must not be sent again.
            return self._database.writer.enlist(self._settling, ended, weight=weight, orphaned=_unheard)
        except StoreUnavailable as error:  # those before it stand in the line, and are waited for
            refused: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

    async def _took_before(self, settlement: Settlement) -> bool:
        if (settlement.delivery.id, settlement.delivery.attempts) not in self._unsure:
            return False
        # Now it did not take: because it had the time before, or because the lease is another worker's, who stores a
        # report of its own.
        return settlement.report is None or await self._is_stored(settlement.report.id)

    async def _is_stored(self, message_id: str) -> bool:
        query = select(messages.c.id).where(messages.c.id == message_id)
        return await self._database.read(lambda conn: conn.execute(query).first()) is not None

    async def release(self, delivery: Delivery, *, next_attempt_at: datetime) -> bool:
        """Give a lease back unattempted. False: it was not ours any more."""
        return await self._database.writer.submit(
            self._releasing, Release(delivery.id, delivery.attempts, next_attempt_at)
        )

    async def next_due_at(self) -> datetime | None:
        """When the earliest queued delivery is due; None when nothing is queued."""
        return await self._database.read(next_due)

    async def leases(self) -> dict[str, int]:
        """The attempt of every delivery that the store says is leased to us, by its id; what is in doubt left out."""
        query = select(deliveries.c.id, deliveries.c.attempts, deliveries.c.message_id).where(
            IS_LEASED, deliveries.c.lease_owner == self._worker_id
        )
        rows = await self._database.read(lambda conn: conn.execute(query).all())
        return {row.id: row.attempts for row in rows if not self._is_doubtful(row.message_id, row.attempts)}

    async def give_back(self, attempts: Mapping[str, int]) -> int:
        """Give back leases known by id and attempt only, due now; how many were ours."""
        now = self._clock()
        took = await asyncio.gather(
            *(
                self._database.writer.submit(self._releasing, Release(id_, attempt, now))
                for id_, attempt in attempts.items()
            )
        )
        return sum(took)

    async def run(self) -> None:
        """Task body: withdraw what is doubtful as soon as the store answers again."""
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.withdraw_doubtful(time.monotonic())
            except StoreUnavailable:
                _log.info("doubtful messages wait for the store", doubtful=len(self._doubts))
            except Exception as error:  # noqa: BLE001 - this task must outlive what it has not foreseen
                _log.error("doubtful messages were not withdrawn", reason=repr(error))

    async def withdraw_doubtful(self, now: float) -> None:
        """Withdraw every doubtful message; forget those of which nothing can come any more. ``now`` is monotonic."""
        doubts = list(self._doubts.values())
        for first in range(0, len(doubts), GROUP_ITEMS):  # as many as were written at once
            await self._withdraw(doubts[first : first + GROUP_ITEMS], now)

    async def _withdraw(self, doubts: list[_InDoubt], now: float) -> None:
        found = [each.doubt for each in doubts]

        def work(conn: Connection) -> tuple[int, int, int]:
            oldest, this = under_way(conn)  # first: what had ended by now, the withdrawal sees
            return oldest, this, withdraw(conn, found, self._worker_id)

        # A group that was given up for late may still be under way here, and begin once more under a later number.
        ended = [each for each in doubts if not self._database.writer.is_at_work_since(each.since)]
        oldest, this, withdrawn = await self._database.write(work)
        for each in ended:
            if each.before is None:
                each.before = this
            elif each.before <= oldest and now - each.since >= DOUBT:
                self._doubts.pop(each.doubt.message_id, None)
        if withdrawn:
            _log.warning("doubtful messages are withdrawn", messages=len(found), deliveries=withdrawn)

    def _is_doubtful(self, message_id: str, attempts: int) -> bool:
        """Whether a delivery is to be withdrawn; it is not after another worker's attempt."""
        return message_id in self._doubts and attempts <= 1

    def _check_alive(self) -> None:
        if not self._alive():  # others may already deliver what we would lease
            raise StoreUnavailable("this worker's sign of life is overdue")

    def _doubt(self, message: NewMessage) -> None:
        kept = tuple(each.id for each in message.deliveries if not each.discard)
        discarded = tuple(each.id for each in message.deliveries if each.discard)
        self._doubts[message.id] = _InDoubt(Doubt(message.id, kept, discarded), time.monotonic())

    def _nobody_took(self, message: NewMessage, ended: "Failed | None") -> None:
        """The caller was cancelled: what it would have handed over to the dispatcher goes back to the queue."""
        error = ended.error if isinstance(ended, Failed) else None
        if isinstance(error, CommitUnknown):
            self._doubt(message)
        if error is None:
            now = self._clock()
            self._let_go([*_for_anybody(message), *(Release(each.id, 1, now) for each in message.leased)])

    def _let_go(self, leases: Iterable[Release]) -> None:
        """Give back without waiting; what the store does not take now the dispatcher finds, since nobody knows it."""
        with suppress(StoreUnavailable):
            for lease in leases:
                self._database.writer.enlist(self._releasing, lease).add_done_callback(unheard)


def _for_anybody(message: NewMessage) -> Iterator[Release]:
    return (Release(each.id, 0, each.next_attempt_at) for each in message.unleased)


def _unheard(ended: "bool | Failed") -> None:
    """A settlement whose caller is gone: it is written or it is not, and the lease tells others which."""


def _content(conn: Connection, message_id: str) -> bytes | None:
    if is_postgres(conn):
        query = select(messages.c.content).where(messages.c.id == message_id)
        content = conn.execute(query).scalar_one_or_none()
        return None if content is None else bytes(content)
    row = run_text(conn, "SELECT rowid FROM messages WHERE id = ?", (message_id,)).fetchone()
    return None if row is None else read_blob(conn, "messages", "content", row[0])
