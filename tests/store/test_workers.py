"""Leases of workers that died, limits and chores shared by processes."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import asyncpg
import pytest
from sqlalchemy import Connection

from forwarder.mail.event import DeliveryState
from forwarder.store import chores, counters, workers
from forwarder.store.tables import deliveries
from tests.store.conftest import LEASE, NOON, Stage, Worker, delivered, soft, until
from tests.store.test_queue import rows

SECOND = timedelta(seconds=1)


class Observer:
    """One process that looks after the others, and the seconds of its monotonic clock."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.seconds = 0.0
        self.takeover = workers.Takeover(
            worker.database,
            lease=LEASE,
            every=2 * SECOND,
            steady=lambda: self.steady,
            seconds=lambda: self.seconds,
        )
        self.steady = True

    async def watch(self, seconds: int, now: datetime, *beating: str) -> int:
        """Look every other second while these beat; how many leases were freed."""
        freed = 0
        for _ in range(0, seconds, 2):
            self.seconds += 2
            for worker in beating:
                at = now + self.seconds * SECOND
                assert await workers.heartbeat(self.worker.database, worker, now=at, alive_for=LEASE)
            freed += await self.takeover.look(now)
        return freed


async def test_a_silent_worker_is_taken_over(stage: Stage) -> None:
    dead, live = await stage.worker("a"), await stage.worker("b")
    await dead.queue.enqueue(stage.message("a@dest.example", leased=True, due=timedelta(hours=1)))
    await live.queue.enqueue(stage.message("b@dest.example", leased=True))
    observer = Observer(live)
    assert await observer.watch(30, NOON, live.id) == 0
    assert await observer.watch(4, NOON, live.id) == 1
    [taken] = await live.queue.claim_due(NOON, 10)
    assert (taken.destination, taken.attempts) == ("a@dest.example", 2)
    assert not await workers.heartbeat(dead.database, dead.id, now=NOON, alive_for=LEASE)
    assert await observer.watch(60, NOON, live.id) == 0


@pytest.mark.parametrize("ahead", [timedelta(hours=1), -timedelta(hours=1)])
async def test_nobody_is_dead_because_a_clock_was_set(stage: Stage, ahead: timedelta) -> None:
    one, other = await stage.worker("a"), await stage.worker("b")
    await one.queue.enqueue(stage.message(leased=True))
    observer = Observer(other)
    assert await observer.watch(40, NOON, one.id, other.id) == 0
    assert await observer.watch(40, NOON + ahead, one.id, other.id) == 0
    assert await observer.watch(40, NOON + ahead, other.id) == 1  # nor does it live for longer


async def test_who_could_not_look_takes_nobody_for_dead(stage: Stage) -> None:
    """After a store that was away, the others have not had time to beat either."""
    one, other = await stage.worker("a"), await stage.worker("b")
    await one.queue.enqueue(stage.message(leased=True))
    observer = Observer(other)
    assert await observer.watch(10, NOON, one.id, other.id) == 0
    observer.seconds += 600
    assert await observer.watch(28, NOON, other.id) == 0
    assert await observer.watch(6, NOON, other.id) == 1


async def test_whose_own_signs_do_not_come_through_takes_nobody_for_dead(stage: Stage) -> None:
    """As while a lock keeps every change waiting, and reads go on."""
    one, other = await stage.worker("a"), await stage.worker("b")
    await one.queue.enqueue(stage.message(leased=True))
    observer = Observer(other)
    assert await observer.watch(10, NOON, one.id, other.id) == 0
    observer.steady = False
    assert await observer.watch(60, NOON) == 0
    observer.steady = True
    assert await observer.watch(28, NOON, other.id) == 0
    assert await observer.watch(6, NOON, other.id) == 1


async def test_a_sign_of_life_that_comes_while_its_worker_is_being_buried_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message(leased=True)
    await one.queue.enqueue(message)
    observer = Observer(other)
    assert await observer.watch(30, NOON, other.id) == 0
    write = other.database.write
    beats: list[bool] = []

    async def behind_a_beat(work: Callable[[Connection], int]) -> int:
        beats.append(await workers.heartbeat(one.database, one.id, now=NOON + 40 * SECOND, alive_for=LEASE))
        return await write(work)

    monkeypatch.setattr(other.database, "write", behind_a_beat)
    assert await observer.watch(2, NOON, other.id) == 0
    assert beats == [True]
    assert await one.queue.leases() == {message.deliveries[0].id: 1}
    assert await workers.heartbeat(one.database, one.id, now=NOON + 42 * SECOND, alive_for=LEASE)


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_sign_of_life_does_not_wait_behind_a_lock(stage: Stage, store_url: str) -> None:
    worker = await stage.worker("a")
    other = await asyncpg.connect(store_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
            stuck = [asyncio.create_task(worker.queue.enqueue(stage.message())) for _ in range(4)]
            for _ in range(20):
                assert await workers.heartbeat(worker.database, worker.id, now=NOON, alive_for=LEASE)
            assert not any(task.done() for task in stuck)
    finally:
        await other.close()
    await asyncio.gather(*stuck)


async def test_a_message_that_kills_its_workers_keeps_its_planned_time(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message())
    for _ in range(workers.SUSPECT - 1):
        [claimed] = await worker.queue.claim_due(NOON, 1)
        assert await worker.queue.settle(soft(claimed, NOON))
    [claimed] = await worker.queue.claim_due(NOON, 1)
    assert claimed.attempts == workers.SUSPECT
    assert await workers.release_node(worker.database, "node-a", NOON) == 1
    [row] = await rows(worker.database, deliveries)
    assert (row.state, row.next_attempt_at) == (DeliveryState.QUEUED, claimed.next_attempt_at)


async def test_what_died_beside_such_a_message_is_not_tied_to_it(stage: Stage) -> None:
    worker = await stage.worker()
    for name in "abcd":
        await worker.queue.enqueue(stage.message(f"{name}@dest.example"))
    for _ in range(workers.SUSPECT - 1):
        for claimed in await worker.queue.claim_due(NOON, 10):
            assert await worker.queue.settle(soft(claimed, NOON))
    [planned, *_] = {each.next_attempt_at for each in await worker.queue.claim_due(NOON, 10)}
    assert await workers.release_node(worker.database, "node-a", NOON) == 4
    quarter = (planned - NOON) / 4
    found = sorted(row.next_attempt_at for row in await rows(worker.database, deliveries))
    assert found == [planned, planned + quarter, planned + 2 * quarter, planned + 3 * quarter]


async def test_what_went_with_such_a_message_stays_with_it(stage: Stage) -> None:
    """Its other deliveries travel in the same transaction; due apart, they would be copies."""
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message("a@dest.example", "b@dest.example", "a@dest.example"))
    await worker.queue.enqueue(stage.message("c@dest.example"))
    for _ in range(workers.SUSPECT - 1):
        for claimed in await worker.queue.claim_due(NOON, 10):
            assert await worker.queue.settle(soft(claimed, NOON))
    [planned, *_] = {each.next_attempt_at for each in await worker.queue.claim_due(NOON, 10)}
    assert await workers.release_node(worker.database, "node-a", NOON) == 4
    found = sorted(row.next_attempt_at for row in await rows(worker.database, deliveries))
    assert found == [planned, planned, planned, planned + (planned - NOON) / 2]


async def test_leases_of_nobody_are_taken_over(stage: Stage) -> None:
    gone, live = await stage.worker("a"), await stage.worker("b")
    await workers.farewell(gone.database, gone.id, NOON)
    await gone.queue.enqueue(stage.message(leased=True))  # it did not notice that its row went
    assert await Observer(live).takeover.look(NOON) == 1


async def test_a_farewell_and_a_restart_free_the_leases(stage: Stage) -> None:
    one, other = await stage.worker("a"), await stage.worker("b")
    for worker in (one, other):
        await worker.queue.enqueue(stage.message(leased=True, due=timedelta(hours=1)))
    assert await workers.farewell(one.database, one.id, NOON) == 1
    assert len(await other.queue.claim_due(NOON, 10)) == 1
    assert await workers.release_node(one.database, "node-a", NOON) == 0
    assert await workers.release_node(one.database, "node-b", NOON) == 2
    assert len(await one.queue.claim_due(NOON, 10)) == 2
    for worker in (one, other):  # whoever woke up would find that it is taken for dead
        assert not await workers.heartbeat(worker.database, worker.id, now=NOON, alive_for=LEASE)


async def test_registering_again_keeps_the_leases(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message())
    [claimed] = await worker.queue.claim_due(NOON, 1)
    await workers.register(
        worker.database,
        worker_id=worker.id,
        node="node-a",
        hostname="mx",
        pid=2,
        now=NOON + SECOND,
        alive_for=LEASE,
    )
    assert await worker.queue.settle(delivered(claimed))


async def test_a_limit_is_exact_across_processes(stage: Stage) -> None:
    databases = [await stage.database() for _ in range(3)]
    window = timedelta(hours=1)
    hits = [counters.hit(databases[n % 3], "quota:7", window=window, limit=25, now=NOON) for n in range(60)]
    counted = await asyncio.gather(*hits)
    assert sorted(c.value for c in counted if c.allowed) == list(range(1, 26))
    assert {c.value for c in counted if not c.allowed} == {25}
    assert {c.resets_at for c in counted} == {NOON.replace(hour=13, microsecond=0)}


async def test_a_window_begins_again_and_amounts_count_whole_or_not(stage: Stage) -> None:
    database = await stage.database()
    window = timedelta(minutes=1)
    first = await counters.hit(database, "k", window=window, limit=10, now=NOON, amount=7)
    assert (first.allowed, first.value) == (True, 7)
    second = await counters.hit(database, "k", window=window, limit=10, now=NOON, amount=4)
    assert (second.allowed, second.value) == (False, 7)
    third = await counters.hit(database, "k", window=window, limit=10, now=NOON, amount=3)
    assert (third.allowed, third.value) == (True, 10)
    later = await counters.hit(database, "k", window=window, limit=10, now=NOON + window)
    assert (later.allowed, later.value) == (True, 1)
    assert await counters.purge(database, NOON + window) == 1
    assert (await counters.hit(database, "k", window=window, limit=10, now=NOON + window)).value == 2
    other = await counters.hit(database, "k2", window=window, limit=10, now=NOON, amount=11)
    assert (other.allowed, other.value) == (False, 0)


async def test_where_no_block_is_left_there_may_be_one(stage: Stage) -> None:
    database = await stage.database()
    hits = [
        await counters.hit_block(database, "k", window=timedelta(hours=1), limit=6, now=NOON, wanted=wanted)
        for wanted in (4, 4, 4, 1, 1)
    ]
    assert [(taken, counted.value) for taken, counted in hits] == [(4, 4), (1, 5), (1, 6), (0, 6), (0, 6)]


async def test_what_is_hit_together_counts_whole_or_not(stage: Stage) -> None:
    database = await stage.database()

    async def hit(**wanted: int) -> list[tuple[bool, int]]:
        hits = [
            counters.in_window(key, window=timedelta(hours=1), limit=9, now=NOON, amount=amount)
            for key, amount in wanted.items()
        ]
        return [(one.allowed, one.value) for one in await counters.hit_all(database, hits)]

    assert await hit(b=2, c=9, a=1) == [(True, 2), (True, 9), (True, 1)]
    assert await hit(b=1, c=1, a=1) == [(True, 3), (False, 9)]
    assert await hit(b=1, a=1) == [(True, 3), (True, 2)]
    assert await hit(b=-3, c=-9, a=-2) == [(True, 0), (True, 0), (True, 0)]
    assert await hit(c=9) == [(True, 9)]


async def test_hits_that_wait_together_see_each_other(stage: Stage) -> None:
    database = await stage.database()
    window = timedelta(hours=1)
    keys = ["a", "b", "a", "a", "b"]
    hits = [counters.hit(database, key, window=window, limit=2, now=NOON) for key in keys]
    answers = [(one.allowed, one.value) for one in await asyncio.gather(*hits)]
    assert answers == [(True, 1), (True, 1), (True, 2), (False, 2), (True, 2)]


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_counters_are_locked_in_the_order_of_their_keys(stage: Stage, store_url: str) -> None:
    """So that two processes do not wait for each other."""
    database = await stage.database()
    hits = [counters.in_window(key, window=timedelta(hours=1), limit=9, now=NOON) for key in "cba"]
    await counters.hit_all(database, hits)
    other, third = await asyncpg.connect(store_url), await asyncpg.connect(store_url)

    async def locked(key: str) -> bool:
        free = "SELECT key FROM counters WHERE key LIKE $1 || '|%' FOR UPDATE SKIP LOCKED"
        return not await third.fetch(free, key)

    try:
        async with other.transaction():
            await other.execute("SELECT key FROM counters WHERE key LIKE 'b|%' FOR UPDATE")
            waiting = asyncio.create_task(counters.hit_all(database, hits))
            await until(lambda: locked("a"))
            assert not await locked("c")
            assert not waiting.done()
    finally:
        await other.close()
        await third.close()
    assert [one.value for one in await waiting] == [2, 2, 2]


async def test_one_process_at_a_time_does_a_chore(stage: Stage) -> None:
    one, two = await stage.database(), await stage.database()
    minute = timedelta(minutes=1)
    claims = [chores.claim(d, "purge", owner, now=NOON, for_=minute) for d, owner in ((one, "a"), (two, "b"))]
    won = await asyncio.gather(*claims)
    assert sorted(won) == [False, True]
    winner, loser = ("a", "b") if won[0] else ("b", "a")
    assert await chores.claim(one, "purge", winner, now=NOON + SECOND, for_=minute)
    assert not await chores.claim(one, "purge", loser, now=NOON + minute, for_=minute)
    assert await chores.claim(one, "purge", loser, now=NOON + minute + SECOND, for_=minute)
    await chores.done(one, "purge", loser, now=NOON + 2 * minute)
    assert not await chores.claim(two, "purge", winner, now=NOON + 3 * minute, for_=minute, every=2 * minute)
    assert await chores.claim(two, "purge", winner, now=NOON + 4 * minute, for_=minute, every=2 * minute)


async def test_a_clock_that_was_wrong_holds_no_chore_up(stage: Stage) -> None:
    database = await stage.database()
    hour, ahead = timedelta(hours=1), NOON + timedelta(days=3650)
    assert await chores.claim(database, "purge", "a", now=ahead, for_=hour, every=hour)
    assert await chores.claim(database, "purge", "b", now=NOON, for_=hour, every=hour)  # a has died
    assert not await chores.claim(database, "purge", "c", now=NOON - hour, for_=hour, every=hour)
    await chores.done(database, "purge", "b", now=ahead)
    assert await chores.claim(database, "purge", "c", now=NOON, for_=hour, every=hour)
    await chores.done(database, "purge", "c", now=NOON + hour)  # the clock of another machine
    assert not await chores.claim(database, "purge", "d", now=NOON, for_=hour, every=hour)


async def test_who_is_done_frees_a_chore_and_who_has_lost_it_does_not(stage: Stage) -> None:
    database = await stage.database()
    minute = timedelta(minutes=1)
    hour, every = 60 * minute, minute
    assert await chores.claim(database, "domains", "a", now=NOON, for_=minute, every=every)
    assert await chores.claim(database, "domains", "b", now=NOON + minute, for_=hour, every=every)
    await chores.done(database, "domains", "a", now=NOON + minute + SECOND)  # it was stopped for too long
    assert not await chores.claim(database, "domains", "c", now=NOON + 3 * minute, for_=hour, every=every)
    await chores.done(database, "domains", "b", now=NOON + 3 * minute)
    assert await chores.claim(database, "domains", "c", now=NOON + 4 * minute, for_=hour, every=every)


@pytest.mark.parametrize("name", ["a", "b"])
async def test_chores_are_separate(stage: Stage, name: str) -> None:
    database = await stage.database()
    assert await chores.claim(database, "other", "x", now=NOON, for_=SECOND)
    assert await chores.claim(database, name, "y", now=NOON, for_=SECOND)
