"""Group commit: one transaction for all that waits, one future per caller.

A caller hands an item and the batch that knows how to write many of its kind (``submit``); it hears back only when
the COMMIT that holds its item is durable. Items that wait together are written together, batch by batch, so that a
group costs a handful of statements and one fsync whatever its size.

Promises. A group that fails because of what one item holds (a constraint, a value the database refuses, any error
raised by a batch) is rolled back and tried again in halves until the bad item is alone: it fails alone. A group that
fails because of the database fails as a whole, with StoreUnavailable. A caller that is cancelled never cuts a
transaction: its item is dropped if it has not been taken yet (unless it was enlisted to be made all the same), else
written like the others. An item that nobody could take within WAIT_LIMIT fails and is certain not to be written; an
item in a transaction that has not ended by then fails with CommitUnknown, since nobody knows how it will end.

Bounds: WAITING_ITEMS and WAITING_WEIGHT wait at most, what comes beyond is refused at once; a group takes at most
GROUP_ITEMS and, unless one item alone is larger, GROUP_WEIGHT (weights are the bytes of message contents).
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from forwarder.store.faults import trouble_of
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from forwarder.tally import CHANGES, COMMITS, Tally

WAITING_ITEMS = 20_000
WAITING_WEIGHT = 256 * 1024 * 1024
GROUP_ITEMS = 256
GROUP_WEIGHT = 32 * 1024 * 1024
WAIT_LIMIT = 10.0  # seconds

I = TypeVar("I", contravariant=True)  # noqa: E741 - the item
R = TypeVar("R", covariant=True)
T = TypeVar("T")


class Batch(Protocol[I, R]):
    """Writes many items of one kind in the open transaction; one result an item, in their order."""

    def apply(self, conn: Connection, items: Sequence[I]) -> Sequence[R]: ...


@dataclass(frozen=True, slots=True)
class Failed:
    """The result of an item that failed without harm to the rest of its group."""

    error: Exception


class Work:
    """Any function of a connection, one at a time, each in a savepoint so that its failure is its own."""

    def apply(self, conn: Connection, items: Sequence[Callable[[Connection], Any]]) -> Sequence[Any]:
        if len(items) == 1:
            return [items[0](conn)]
        return [self._in_savepoint(conn, work) for work in items]

    @staticmethod
    def _in_savepoint(conn: Connection, work: Callable[[Connection], Any]) -> Any:
        savepoint = conn.begin_nested()
        try:
            result = work(conn)
        except Exception as error:
            if trouble_of(error) is not None:
                raise  # not the fault of this work: the whole group fails, or is tried again
            savepoint.rollback()
            return Failed(error)
        savepoint.commit()
        return result


class Item:
    """One caller's change and the future it waits for.

    ``orphaned``: the change is made although its caller gave up waiting (cancelled the future), and this is told how
    it ended, once. It does what ``asyncio.shield`` would, without a second future and a turn of the loop for each.
    ``writes``: whatever it finds, it changes the database. ``yields``: it is refused where the disk is short of room,
    so that the others can be written. ``last``: its batch comes behind all others of the group, since the locks that
    it takes must not be held while those wait for theirs.
    """

    __slots__ = ("batch", "future", "last", "orphaned", "since", "value", "weight", "writes", "yields")

    def __init__(
        self,
        batch: Batch[Any, Any],
        value: Any,
        weight: int,
        future: asyncio.Future[Any],
        orphaned: "Callable[[Any], object] | None",
        writes: bool = False,
        yields: bool = False,
        last: bool = False,
    ) -> None:
        self.batch = batch
        self.value = value
        self.weight = weight
        self.future = future
        self.orphaned = orphaned
        self.writes = writes
        self.yields = yields
        self.last = last
        self.since = time.monotonic()


class Waiting:
    """The bounded line of items, shared by the event loop that fills it and whoever takes groups."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[Item] = deque()
        self._weight = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def weight(self) -> int:
        """Of all that wait."""
        return self._weight

    @property
    def since(self) -> float | None:
        """The monotonic time at which the first of them was put; None when nothing waits."""
        with self._lock:
            return self._items[0].since if self._items else None

    def put(self, item: Item) -> None:
        """Queue up; StoreUnavailable at the bound."""
        with self._lock:
            if len(self._items) >= WAITING_ITEMS or self._weight + item.weight > WAITING_WEIGHT:
                raise StoreUnavailable("too many changes wait for the store")
            self._items.append(item)
            self._weight += item.weight

    def take(self) -> list[Item]:
        """The next group; what callers gave up meanwhile is left out, unless it is wanted all the same."""
        group: list[Item] = []
        weight = 0
        with self._lock:
            while self._items and len(group) < GROUP_ITEMS:
                if group and weight + self._items[0].weight > GROUP_WEIGHT:
                    break
                item = self._items.popleft()
                self._weight -= item.weight
                if item.orphaned is not None or not item.future.done():
                    group.append(item)
                    weight += item.weight
        return group

    def expire(self, before: float) -> list[Item]:
        """Remove and return what has waited since before that monotonic time."""
        expired = []
        with self._lock:
            while self._items and self._items[0].since < before:
                item = self._items.popleft()
                self._weight -= item.weight
                expired.append(item)
        return expired


class Writer(ABC):
    """What the two databases share: the line, its bounds, and telling callers how it ended.

    A subclass takes groups with ``waiting.take()``, notes them in ``running`` while their transaction is open, and
    reports them with ``resolve`` in the event loop.
    """

    def __init__(self, tally: Tally) -> None:
        self.loop = asyncio.get_running_loop()
        self._commits = tally.watch(COMMITS)
        self._changes = tally.counts(CHANGES)
        self.waiting = Waiting()
        self.running: dict[int, tuple[float, list[Item]]] = {}  # by the identity of the group
        # A group has failed because of the database, and nothing was surely written since.
        self.failing = False
        self.closing = False
        self._work = Work()
        self._watch = self.loop.create_task(self._expire(), name="store-watch")

    async def submit(self, batch: Batch[I, R], value: I, *, writes: bool = False, last: bool = False) -> R:
        """Write ``value`` in the next group; returns when it is durable.

        May be cancelled at any time; the change is then in force or not, as a whole.
        """
        return await self.enlist(batch, value, writes=writes, last=last)

    def enlist(
        self,
        batch: Batch[I, R],
        value: I,
        *,
        weight: int = 0,
        orphaned: "Callable[[R | Failed], object] | None" = None,
        writes: bool = False,
        yields: bool = False,
        last: bool = False,
    ) -> "asyncio.Future[R]":
        """As ``submit``; the future to await. ``writes``, ``yields``, ``last``: see ``Item``.

        With ``orphaned`` the change is made even where the future was cancelled, and ``orphaned`` hears how it ended.
        Not where the caller is cancelled when the future has its result already: then the caller has to look.
        """
        if self.closing:
            raise StoreUnavailable("the store is closing")
        item = Item(batch, value, weight, self.loop.create_future(), orphaned, writes, yields, last)
        self.waiting.put(item)
        self.wake()
        return item.future

    @property
    def occupied(self) -> bool:
        """Whether what is put now waits for others to be written."""
        return bool(self.running)

    def is_at_work_since(self, before: float) -> bool:
        """Whether a group that was taken before that monotonic time is still being written, or tried again."""
        return any(since < before for since, _ in list(self.running.values()))

    async def write(self, work: Callable[[Connection], T], *, writes: bool = False) -> T:
        """Run a function of a connection in the next group."""
        result: T = await self.submit(self._work, work, writes=writes)
        return result

    async def write_aside(self, work: Callable[[Connection], T]) -> T:
        """The same past those who wait, where that can be."""
        return await self.write(work)

    async def change(self, work: Callable[[Connection], T]) -> T:
        """The same, where that can be, for what may wait for a lock, so that nothing else has to wait with it."""
        return await self.write(work)

    @abstractmethod
    def wake(self) -> None:
        """There is something to take."""

    def resolve(self, results: Iterable[tuple[Item, Any]]) -> None:
        """Tell callers; runs in the event loop."""
        for item, result in results:
            future = item.future
            if future.done():
                if item.orphaned is not None and future.cancelled():
                    orphaned, item.orphaned = item.orphaned, None
                    orphaned(result)
            elif isinstance(result, Failed):
                future.set_exception(result.error)
            else:
                future.set_result(result)

    def note(self, group: Sequence[Item], failed: int) -> None:
        """A group has ended, so many of its items unwritten; runs in the event loop."""
        if group:
            self._commits.add(max(0.0, time.monotonic() - group[0].since))
            self._changes["committed"].add(len(group) - failed)
            self._changes["failed"].add(failed)

    def prove(self, committed: Iterable[tuple[Item, Any]]) -> None:
        """A transaction has ended well: after a failure only one that wrote shows that the database can again.

        A claim that finds nothing commits on a full disk and past an fsync that hangs.
        """
        if self.failing and any(item.writes and not isinstance(result, Failed) for item, result in committed):
            self.failing = False

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(WAIT_LIMIT / 20)
            self.expire_now(time.monotonic() - WAIT_LIMIT)

    def expire_now(self, before: float) -> None:
        """Fail what began to wait before that monotonic time."""
        untaken = self.waiting.expire(before)
        self._changes["failed"].add(len(untaken))
        self.resolve((item, Failed(StoreUnavailable())) for item in untaken)
        unended = [group for since, group in list(self.running.values()) if since < before]
        for group in unended:
            self.resolve((item, Failed(CommitUnknown())) for item in group)
        if untaken or unended:
            self.failing = True

    async def close(self) -> None:
        """Refuse new changes, write what waits, stop."""
        self.closing = True
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)


def apply_group(conn: Connection, group: Sequence[Item]) -> list[Any]:
    """Write a group in the open transaction; results in the order of the items."""
    by_batch: dict[int, list[int]] = {}
    for index, item in enumerate(group):
        by_batch.setdefault(id(item.batch), []).append(index)
    results: list[Any] = [None] * len(group)
    for indexes in sorted(by_batch.values(), key=lambda indexes: group[indexes[0]].last):
        batch = group[indexes[0]].batch
        answers = batch.apply(conn, [group[index].value for index in indexes])
        for index, answer in zip(indexes, answers, strict=True):
            results[index] = answer
    return results


def halves(group: list[Item]) -> tuple[list[Item], list[Item]]:
    """The two groups to try after a group failed because of one of its items; the second first."""
    middle = len(group) // 2
    return group[middle:], group[:middle]
