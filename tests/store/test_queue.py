"""The queue's verbs on both databases: what is durable, what is guarded, what leaves no trace."""

import asyncio
import re
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, event, func, select, text

from forwarder.mail.event import DeliveryState, Status
from forwarder.store import admin, claiming, queue, settling, sqlite, straight, workers
from forwarder.store.claiming import Claim, Claiming, bring_forward
from forwarder.store.engine import Database
from forwarder.store.records import Delivery
from forwarder.store.tables import deliveries, domains, events, logs, messages
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from forwarder.store.writer import Item
from tests.postgres import Server
from tests.store.conftest import NOON, Stage, Worker, as_delivery, delivered, hard, machine_steps, soft, until

MINUTE = timedelta(minutes=1)


async def rows(database: Database, table: Any) -> list[Any]:
    return list(
        await database.read(lambda conn: conn.execute(select(table).order_by(*table.primary_key)).all())
    )


async def sizes(database: Database) -> tuple[int, int, int, int]:
    """How many messages, deliveries, logs and events there are."""
    found = [len(await rows(database, table)) for table in (messages, deliveries, logs, events)]
    return found[0], found[1], found[2], found[3]


async def forgotten(worker: Worker, now: float) -> bool:
    """Whether a withdrawal, as one of several, found nothing to be in doubt any more; others may write meanwhile."""
    await worker.queue.withdraw_doubtful(now)
    return not worker.queue._doubts


async def taken_by(worker: Worker) -> Delivery:
    """One delivery that is anybody's, once whoever stored it has let go of it."""
    taken: list[Delivery] = []

    async def claimed() -> bool:
        taken.extend(await worker.queue.claim_due(NOON, 1))
        return bool(taken)

    await until(claimed)
    return taken[0]


async def statuses(database: Database, log_id: str) -> list[str]:
    return [row.status for row in await rows(database, events) if row.log_id == log_id]


async def test_after_trouble_a_stored_message_shows_that_the_store_can_write_again(stage: Stage) -> None:
    worker = await stage.worker()
    worker.database.writer.failing = True
    assert await worker.queue.claim_due(NOON, 10) == []
    assert worker.database.writer.failing
    await worker.queue.enqueue(stage.message())
    assert not worker.database.writer.failing


async def test_an_enqueued_message_is_claimed_whole(stage: Stage) -> None:
    worker = await stage.worker()
    content = bytes(range(256)) * 300
    message = stage.message("richard@dest.example", content=content, reverse_path='"a b"@hooli.example')
    await worker.queue.enqueue(message)

    [claimed] = await worker.queue.claim_due(NOON, 10)

    assert claimed.id == message.deliveries[0].id
    assert claimed.message_id == message.id
    assert claimed.reverse_path == message.reverse_path
    assert claimed.recipient == message.deliveries[0].recipient
    assert (claimed.destination, claimed.destination_domain) == ("richard@dest.example", "dest.example")
    assert (claimed.attempts, claimed.size, claimed.created_at) == (1, len(content), NOON)
    assert claimed.next_attempt_at > NOON  # the next attempt is planned before this one begins
    assert await worker.queue.content(message.id) == content
    assert await worker.queue.contents([message.id, "0" * 32]) == {message.id: content}


async def test_the_null_reverse_path_comes_back_null(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message(reverse_path=""))
    [claimed] = await worker.queue.claim_due(NOON, 10)
    assert claimed.reverse_path.is_null


async def test_logs_and_queued_events_come_with_the_message(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", "b@dest.example")
    await worker.queue.enqueue(message)
    found = await rows(worker.database, logs)
    assert [row.id for row in found] == sorted(d.id for d in message.deliveries)
    assert {(row.recipient_email, row.subject, row.failed) for row in found} == {
        ("richard@piedpiper.example", "hi", False)
    }
    assert [row.forward_email for row in found] == ["a@dest.example", "b@dest.example"]
    for delivery in message.deliveries:
        assert await statuses(worker.database, delivery.id) == ["QUEUED"]


async def test_fresh_deliveries_are_leased_to_their_worker(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message(leased=True, due=5 * MINUTE)
    await worker.queue.enqueue(message)
    assert await worker.queue.leases() == {message.deliveries[0].id: 1}
    assert await other.queue.claim_due(NOON + MINUTE, 10) == []
    assert await worker.queue.settle(delivered(as_delivery(message)))
    assert await sizes(worker.database) == (0, 0, 1, 2)
    assert await statuses(worker.database, message.deliveries[0].id) == ["QUEUED", "DELIVERED"]


async def test_what_is_planned_too_far_ahead_is_brought_forward(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "BROUGHT_FORWARD", 2)
    worker = await stage.worker()
    for due in (5 * MINUTE, *[timedelta(days=3650)] * 3):
        message = stage.message(leased=True)
        await worker.queue.enqueue(message)
        assert await worker.queue.settle(soft(as_delivery(message), NOON + due))
    in_hand = stage.message(leased=True, due=timedelta(days=3650))
    await worker.queue.enqueue(in_hand)
    bring = partial(bring_forward, beyond=NOON + 5 * MINUTE, now=NOON)
    assert [await worker.database.write(bring) for _ in range(3)] == [2, 1, 0]
    assert len(await worker.queue.claim_due(NOON, 10)) == 3
    assert len(await worker.queue.claim_due(NOON + 5 * MINUTE, 10)) == 1  # what is in hand stays there


async def test_recipients_who_share_an_address_are_claimed_together(stage: Stage) -> None:
    """Claimed apart they are sent apart, and the address gets a copy for each part."""
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message(*["a@dest.example", "b@dest.example"] * 3))
    await worker.queue.enqueue(stage.message("a@dest.example"))
    claims = [await worker.queue.claim_due(NOON, limit) for limit in (1, 2, 9, 9)]
    assert [[d.destination[0] for d in claimed] for claimed in claims] == [["a"] * 3, ["b"] * 3, ["a"], []]
    assert all(delivery.attempts == 1 for claimed in claims for delivery in claimed)


async def test_who_shares_an_address_and_is_not_due_yet_is_claimed_with_who_is(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message(*["a@dest.example"] * 3, "b@dest.example"))
    first, second, held, other = await worker.queue.claim_due(NOON, 9)
    for delivery, minutes in ((first, 0), (second, 1), (held, 0), (other, 1)):
        assert await worker.queue.release(delivery, next_attempt_at=NOON + minutes * MINUTE)
    assert await worker.database.write(lambda conn: admin.hold(conn, [held.id])) == 1
    assert [d.id for d in await worker.queue.claim_due(NOON, 9)] == [first.id, second.id]


async def test_a_message_of_which_one_worker_claims_is_passed_over_by_another(postgres_url: str) -> None:
    """Or two that claim at once would share those of one address between them."""
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        worker, other = await stage.worker("a"), await stage.worker("b")
        await worker.queue.enqueue(stage.message(*["a@dest.example", "b@dest.example"] * 2))
        assert await worker.database.write(lambda conn: True)  # it has let go of them before that
        claim = Claim(now=NOON, limit=1, exclude_domains=(), if_worker_dies=NOON + MINUTE)
        engine = worker.database._engine
        assert engine is not None
        async with engine.begin() as conn:
            [taken] = await conn.run_sync(lambda sync: Claiming(worker_id=worker.id).apply(sync, [claim]))
            assert [delivery.destination for delivery in taken] == ["a@dest.example"] * 2
            assert await other.queue.claim_due(NOON, 9) == []
        assert [d.destination for d in await other.queue.claim_due(NOON, 9)] == ["b@dest.example"] * 2


async def test_a_claim_that_passes_over_a_message_locks_nothing_of_it(postgres_url: str) -> None:
    """Or whoever claims of it at that moment would miss some who share an address."""
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        worker, other = await stage.worker("a"), await stage.worker("b")
        await worker.queue.enqueue(stage.message(*["a@dest.example"] * 2))
        assert await worker.database.write(lambda conn: True)  # it has let go of them before that
        claim = Claim(now=NOON, limit=9, exclude_domains=(), if_worker_dies=NOON + MINUTE)
        first, second = worker.database._engine, other.database._engine
        assert first is not None
        assert second is not None
        async with first.begin() as conn, second.begin() as late:
            await conn.execute(select(messages.c.id).with_for_update(key_share=True))
            assert await late.run_sync(lambda sync: Claiming(worker_id=other.id).apply(sync, [claim])) == [[]]
            [taken] = await conn.run_sync(lambda sync: Claiming(worker_id=worker.id).apply(sync, [claim]))
            assert len(taken) == 2


async def test_a_claim_locks_nothing_while_what_is_written_with_it_waits(postgres_url: str) -> None:
    """Two workers that each wait for a message of which the other has claimed would be a deadlock."""
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        worker, other = await stage.worker("a"), await stage.worker("b")
        leased, due = stage.message("a@dest.example", "b@dest.example", leased=True), stage.message()
        await worker.queue.enqueue(leased)
        await other.queue.enqueue(due)
        assert await other.database.write(lambda conn: True)  # it has let go of it before that
        waits = text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        engine = other.database._engine
        assert engine is not None
        async with engine.begin() as conn:
            lock = select(messages.c.id).where(messages.c.id == leased.id).with_for_update(key_share=True)
            await conn.execute(lock)
            claim = asyncio.create_task(worker.queue.claim_due(NOON, 9))
            settle = asyncio.create_task(worker.queue.settle(delivered(as_delivery(leased))))
            await until(lambda: other.database.read(lambda conn: conn.execute(waits).scalar_one() == 1))
            assert [d.message_id for d in await other.queue.claim_due(NOON, 9)] == [due.id]
        assert await settle
        assert await claim == []


async def test_what_an_operator_holds_while_it_is_claimed_is_passed_over(postgres_url: str) -> None:
    """It shares the address of what is due, and was queued when the claiming statement began."""
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        hand = await asyncpg.connect(postgres_url)
        opened.push_async_callback(hand.close)
        # The claim asks for the domains to leave out once its snapshot is taken, and before it locks a row. There it
        # can be stopped, by whoever keeps the lock to himself.
        await hand.execute("""
            CREATE FUNCTION unnest(anyarray) RETURNS SETOF anyelement LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN QUERY SELECT pg_catalog.unnest($1); END'
        """)
        name = await hand.fetchval("SELECT current_database()")
        await hand.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
        worker, operator = await stage.worker(), await stage.database()
        await worker.queue.enqueue(stage.message(*["a@dest.example"] * 2))
        due, fellow = await worker.queue.claim_due(NOON, 9)
        for delivery, minutes in ((due, 0), (fellow, 1)):
            assert await worker.queue.release(delivery, next_attempt_at=NOON + minutes * MINUTE)
        await hand.execute("SELECT pg_advisory_lock(1)")
        claim = asyncio.create_task(worker.queue.claim_due(NOON, 9))
        stopped = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: hand.fetchval(stopped))
        assert await operator.write(lambda conn: admin.hold(conn, [fellow.id])) == 1
        await hand.execute("SELECT pg_advisory_unlock(1)")
        assert [delivery.id for delivery in await claim] == [due.id]
        left = {row.id: row.state for row in await rows(operator, deliveries)}
        assert left == {due.id: "leased", fellow.id: "held"}


async def test_what_is_dead_in_the_queue_is_not_walked_past(postgres_url: str) -> None:
    """Of a queue that was nearly empty when its statistics were made, while a transaction keeps the dead in it.

    To PostgreSQL it is a table of one row; its statements must look in an index all the same, whatever they join.
    """
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        worker = await stage.worker()
        hand = await asyncpg.connect(postgres_url)
        opened.push_async_callback(hand.close)
        waiting = stage.message()
        for kept in (waiting, *(stage.message(leased=True) for _ in range(500))):
            await worker.queue.enqueue(kept)
        await hand.execute("DELETE FROM messages WHERE id <> $1", waiting.id)
        await hand.execute("VACUUM (ANALYZE, TRUNCATE OFF) messages, deliveries")
        engine = worker.database._engine
        assert engine is not None
        said: list[tuple[str, Any]] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: said.append(given[2:4]))
        for ended in (partial(soft, at=NOON), delivered):
            [claimed] = await worker.queue.claim_due(NOON, 9)
            assert await worker.queue.release(claimed, next_attempt_at=NOON)
            [claimed] = await worker.queue.claim_due(NOON, 9)
            assert await worker.queue.settle(ended(claimed))
        async with engine.connect() as conn:
            found = [await conn.exec_driver_sql(f"EXPLAIN {each}", values) for each, values in list(said)]
        plans = "\n".join(line for one in found for line in one.scalars())
        # But for the messages that the first part of a claim locks: where nothing is due, it does not look for them.
        scans = re.findall(r"Scan.* on (?:deliveries|messages messages_1)\b.*\n(.*)", plans)
        assert len(scans) > 8
        assert [below for below in scans if "Index Cond" not in below] == [], plans


async def test_a_claim_reads_a_message_once_however_many_of_its_addresses_are_due(sqlite_url: str) -> None:
    async with AsyncExitStack() as opened:
        stage = Stage(sqlite_url, opened)
        worker = await stage.worker()
        claiming = Claiming(worker_id=worker.id)
        steps = []
        for limit in (1, 40):  # either claims one address with its forty recipients
            await worker.queue.enqueue(stage.message(*[f"{n}@{limit}.example" for n in range(40)] * 40))
            others = () if limit == 1 else ("1.example",)
            claim = Claim(now=NOON, limit=limit, exclude_domains=others, if_worker_dies=NOON + MINUTE)
            steps.append(
                await worker.database.write(
                    lambda conn, claim=claim: machine_steps(conn, lambda: claiming.apply(conn, [claim]))
                )
            )
        assert len(await worker.queue.leases()) == 80
        assert steps[1] < 3 * steps[0]


async def test_to_settle_one_of_very_many_walks_none_of_the_others(sqlite_url: str) -> None:
    async with AsyncExitStack() as opened:
        stage = Stage(sqlite_url, opened)
        worker = await stage.worker()
        message = stage.message(*[f"{n}@dest.example" for n in range(2000)])
        await worker.queue.enqueue(message)
        steps = await worker.database.write(
            lambda conn: machine_steps(conn, lambda: settling.delete_finished(conn, [message.id]))
        )
        assert await sizes(worker.database) == (1, 2000, 2000, 2000)
        assert steps < 1000


async def test_a_discarded_delivery_leaves_a_log_and_nothing_to_do(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(discard=True)
    await worker.queue.enqueue(message)
    assert await sizes(worker.database) == (0, 0, 1, 2)
    assert set(await statuses(worker.database, message.deliveries[0].id)) == {"QUEUED", "DELIVERED"}


async def test_text_that_postgresql_refuses_is_stored_readable(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message(subject="a\0b\udcffc\u20ac"))
    [log] = await rows(worker.database, logs)
    assert log.subject == "a\ufffdb?c\u20ac"


async def test_the_content_stays_until_the_last_delivery_ends(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", "b@dest.example", leased=True)
    await worker.queue.enqueue(message)
    assert await worker.queue.settle(delivered(as_delivery(message, 0)))
    assert await worker.queue.content(message.id) == message.content
    assert await worker.queue.settle(delivered(as_delivery(message, 1)))
    assert await worker.queue.content(message.id) is None
    assert await sizes(worker.database) == (0, 0, 2, 4)


async def test_a_soft_outcome_waits_for_its_time(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    assert await worker.queue.settle(soft(as_delivery(message), NOON + 5 * MINUTE))

    assert await worker.queue.next_due_at() == NOON + 5 * MINUTE
    assert await worker.queue.claim_due(NOON + 4 * MINUTE, 10) == []
    [claimed] = await worker.queue.claim_due(NOON + 5 * MINUTE, 10)
    assert claimed.attempts == 2
    assert await worker.queue.next_due_at() is None
    [row] = await rows(worker.database, deliveries)
    assert row.last_reply == "4.2.1 later"
    [log] = await rows(worker.database, logs)
    assert log.failed


async def test_the_last_reply_is_readable_and_stays_when_a_lease_is_given_back(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message())
    [delivery] = await worker.queue.claim_due(NOON, 10)
    outcome = soft(delivery, NOON)
    odd = replace(outcome, event=replace(outcome.event, message="4.2.1 a\0b \udcff"))
    assert await worker.queue.settle(odd)
    [again] = await worker.queue.claim_due(NOON, 10)
    assert await worker.queue.release(again, next_attempt_at=NOON)
    [row] = await rows(worker.database, deliveries)
    assert (row.state, row.attempts, row.last_reply) == ("queued", 1, "4.2.1 a\ufffdb ?")


async def test_a_hard_outcome_and_its_dsn_are_one_transaction(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    report = stage.message("gavin@hooli.example", leased=True, reverse_path="", domain_id=None)
    assert await worker.queue.settle(hard(as_delivery(message), report))
    assert [row.id for row in await rows(worker.database, messages)] == [report.id]
    assert await worker.queue.leases() == {report.deliveries[0].id: 1}
    assert await statuses(worker.database, message.deliveries[0].id) == ["QUEUED", "HARD-BOUNCE"]


async def test_failures_that_share_a_report_store_it_once(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message("a@dest.example", "b@dest.example", "c@dest.example", leased=True)
    await worker.queue.enqueue(message)
    report = stage.message("gavin@hooli.example", reverse_path="", domain_id=None)
    shared = [hard(as_delivery(message, index), report) for index in range(3)]

    assert await other.queue.settle_all(shared) == [False] * 3  # nothing of it is theirs: no report either
    assert [row.id for row in await rows(worker.database, messages)] == [message.id]
    assert await worker.queue.settle_all(shared[:2]) == [True, True]
    assert await worker.queue.settle(shared[2])  # in a transaction of its own, as when a group was cut
    assert [row.id for row in await rows(worker.database, messages)] == [report.id]
    assert len([log for log in await rows(worker.database, logs) if log.id == report.deliveries[0].id]) == 1


async def test_a_lost_lease_writes_nothing(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    stage.now += timedelta(hours=1)
    assert await workers.release_node(other.database, "node-a", stage.now) == 1
    [claimed] = await other.queue.claim_due(stage.now, 10)

    before = await sizes(worker.database)
    report = stage.message(reverse_path="", domain_id=None)
    assert not await worker.queue.settle(hard(as_delivery(message), report))
    assert not await worker.queue.settle(soft(as_delivery(message), NOON))
    assert not await worker.queue.settle(delivered(as_delivery(message)))
    assert not await worker.queue.release(as_delivery(message), next_attempt_at=NOON)
    assert await sizes(worker.database) == before
    assert await other.queue.settle(delivered(claimed))


async def test_the_same_worker_cannot_settle_an_older_attempt(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    first = as_delivery(message)
    assert await worker.queue.release(first, next_attempt_at=NOON)
    [again] = await worker.queue.claim_due(NOON, 1)
    assert again.attempts == 1  # a lease given back unattempted is not counted
    assert await worker.queue.settle(soft(again, NOON))
    [third] = await worker.queue.claim_due(NOON, 1)
    assert third.attempts == 2
    assert not await worker.queue.settle(delivered(first))
    assert await worker.queue.settle(delivered(third))


async def test_settling_twice_in_one_group_counts_once(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    one = delivered(as_delivery(message))
    assert sorted(await worker.queue.settle_all([one, one])) == [False, True]
    assert await statuses(worker.database, message.deliveries[0].id) == ["QUEUED", "DELIVERED"]


async def test_lost_leases_fail_alone_within_a_group(stage: Stage) -> None:
    worker = await stage.worker()
    mine = [stage.message(leased=True) for _ in range(10)]
    await asyncio.gather(*map(worker.queue.enqueue, mine))
    lost = mine[3]
    assert await worker.queue.give_back({lost.deliveries[0].id: 1, "0" * 32: 1}) == 1
    took = await worker.queue.settle_all([delivered(as_delivery(message)) for message in mine])
    assert took == [message is not lost for message in mine]


async def test_many_in_one_group_are_all_there(stage: Stage) -> None:
    """More than one chunk of every size, so that no row falls between two statements."""
    worker = await stage.worker()
    many = [stage.message(*(f"u{n}@d{m}.example" for n in range(m % 3 + 1)), leased=True) for m in range(111)]
    await asyncio.gather(*map(worker.queue.enqueue, many))
    wanted = {d.id for message in many for d in message.deliveries}
    assert (await worker.queue.leases()).keys() == wanted
    assert {row.id for row in await rows(worker.database, logs)} == wanted
    ends = [delivered(as_delivery(message, n)) for message in many for n in range(len(message.deliveries))]
    assert all(await worker.queue.settle_all(ends))
    assert await sizes(worker.database) == (0, 0, len(wanted), 2 * len(wanted))


async def test_claims_take_the_oldest_and_respect_limit_and_exclusions(stage: Stage) -> None:
    worker = await stage.worker()
    late = stage.message("x@late.example", due=-1 * MINUTE)
    early = stage.message("x@early.example", due=-3 * MINUTE)
    slow = stage.message("x@slow.example", due=-9 * MINUTE)
    future = stage.message("x@future.example", due=MINUTE)
    for message in (late, early, slow, future):
        await worker.queue.enqueue(message)
    first = await worker.queue.claim_due(NOON, 1, exclude_domains={"slow.example"})
    assert [d.destination_domain for d in first] == ["early.example"]
    rest = await worker.queue.claim_due(NOON, 10, exclude_domains=["slow.example", "other.example"])
    assert [d.destination_domain for d in rest] == ["late.example"]
    assert [d.destination_domain for d in await worker.queue.claim_due(NOON, 10)] == ["slow.example"]


async def test_four_workers_racing_claim_each_delivery_once(stage: Stage) -> None:
    racing = [await stage.worker(name) for name in "abcd"]
    total = 400
    many = [stage.message(*(f"u{n}@dest.example" for n in range(10))) for _ in range(total // 10)]
    await asyncio.gather(*map(racing[0].queue.enqueue, many))

    async def race(worker: Any) -> list[str]:
        mine: list[str] = []
        while claimed := await worker.queue.claim_due(NOON, 7):
            mine += [d.id for d in claimed]
            assert all(await worker.queue.settle_all([delivered(d) for d in claimed]))
        return mine

    counted = Counter(id_ for mine in await asyncio.gather(*map(race, racing)) for id_ in mine)
    assert len(counted) == total
    assert set(counted.values()) == {1}
    assert await sizes(racing[0].database) == (0, 0, total, 2 * total)


async def test_what_took_counts_when_others_that_ended_with_it_are_settled_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", "b@dest.example", leased=True, due=MINUTE)
    await worker.queue.enqueue(message)
    ends = [delivered(as_delivery(message, place)) for place in range(2)]
    put = worker.database.writer.waiting.put
    full = iter([False, True])

    def while_there_is_room(item: Item) -> None:
        if next(full, False):
            raise StoreUnavailable("too many changes wait for the store")
        put(item)

    monkeypatch.setattr(worker.database.writer.waiting, "put", while_there_is_room)
    with pytest.raises(StoreUnavailable):
        await worker.queue.settle_all(ends)
    assert await worker.queue.settle_all(ends) == [True, True]
    assert await worker.queue.settle_all(ends) == [False, False]  # only the next time
    assert await sizes(worker.database) == (0, 0, 2, 4)


async def test_two_workers_ending_the_last_deliveries_leave_no_content(stage: Stage) -> None:
    one, two = await stage.worker("a"), await stage.worker("b")
    for _ in range(20):
        message = stage.message("a@dest.example", "b@dest.example")
        await one.queue.enqueue(message)
        [mine] = await one.queue.claim_due(NOON, 1)
        [yours] = await two.queue.claim_due(NOON, 1)
        took = await asyncio.gather(one.queue.settle(delivered(mine)), two.queue.settle(delivered(yours)))
        assert took == [True, True]
    assert (await sizes(one.database))[:2] == (0, 0)


async def test_a_database_that_prefers_snapshots_keeps_no_content_either(
    postgres: Server, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        await test_two_workers_ending_the_last_deliveries_leave_no_content(stage)


async def test_there_is_time_for_something_else_only_while_others_are_written(stage: Stage) -> None:
    worker = await stage.worker()
    assert await worker.queue.enqueue(stage.message(), meanwhile=lambda: "done") is None
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(conn: Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        if conn.dialect.name == "sqlite":  # where the writer is a thread
            assert go_on.wait(10)
        else:
            conn.exec_driver_sql("SELECT pg_sleep(0.2)")

    holding = asyncio.create_task(worker.database.write(hold))
    await asyncio.wait_for(begun.wait(), 10)
    enqueued = asyncio.create_task(
        worker.queue.enqueue(stage.message(), meanwhile=lambda: go_on.set() or "done")
    )
    assert await asyncio.wait_for(enqueued, 10) == "done"
    await holding


async def test_a_cancelled_caller_leaves_the_message_to_the_queue(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", "b@dest.example", leased=True, due=MINUTE)
    task = asyncio.create_task(worker.queue.enqueue(message))
    await asyncio.sleep(0)  # the item waits in the line now
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def given_back() -> list[Any]:
        while True:
            found = await rows(worker.database, deliveries)
            if found and all(row.state == DeliveryState.QUEUED for row in found):
                return found

    found = await asyncio.wait_for(given_back(), 10)
    assert [row.attempts for row in found] == [0, 0]
    assert [row.next_attempt_at for row in found] == [NOON, NOON]


async def test_a_caller_that_is_cancelled_as_its_message_is_stored_leaves_it_to_the_queue(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", leased=True, due=MINUTE)
    task = asyncio.create_task(worker.queue.enqueue(message))
    resolve = worker.database.writer.resolve

    def and_cancel(results: Any) -> None:
        resolve(results)
        task.cancel()

    with monkeypatch.context() as patched:
        patched.setattr(worker.database.writer, "resolve", and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    async def given_back() -> bool:
        return (await rows(worker.database, deliveries))[0].state == DeliveryState.QUEUED

    await until(given_back)


async def test_a_settlement_is_written_though_its_caller_is_cancelled(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", leased=True, due=MINUTE)
    await worker.queue.enqueue(message)
    delivery = as_delivery(message)
    task = asyncio.create_task(worker.queue.settle(delivered(delivery)))
    await asyncio.sleep(0)  # the item waits in the line now
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def is_written() -> bool:
        return (await sizes(worker.database))[:2] == (0, 0)

    await until(is_written)  # what stands behind it in the line may overtake it on PostgreSQL


async def test_a_worker_whose_sign_of_life_is_overdue_leases_nothing(stage: Stage) -> None:
    alive = True
    worker = await stage.worker(alive=lambda: alive)
    await worker.queue.enqueue(stage.message())
    alive = False
    with pytest.raises(StoreUnavailable):
        await worker.queue.enqueue(stage.message(leased=True))
    with pytest.raises(StoreUnavailable):
        await worker.queue.claim_due(NOON, 1)
    assert (await sizes(worker.database))[0] == 1


async def test_an_event_of_a_domain_with_a_webhook_is_told(stage: Stage) -> None:
    worker = await stage.worker()
    domain_id = await worker.database.write(add_domain_with_webhook)
    message = stage.message(leased=True, domain_id=domain_id)
    await worker.queue.enqueue(message)
    await worker.queue.enqueue(stage.message(leased=True, domain_id=domain_id + 1))
    [notice] = await worker.queue.claim_due(NOON, 10)
    assert (notice.kind, notice.destination, notice.destination_domain) == (
        "notify",
        "https://hooks.example/in",
        "hooks.example",
    )
    content = await worker.queue.content(notice.message_id)
    assert content is not None
    assert b'"status": "QUEUED"' in content
    assert message.deliveries[0].id.encode() in content
    # its own end is no event: it would be told to the webhook again, for ever
    assert await worker.queue.settle(delivered(notice))
    assert await sizes(worker.database) == (2, 2, 2, 2)


def add_domain_with_webhook(conn: Any) -> int:
    from forwarder.store import accounts  # the directory's rooms are not this file's subject

    account = accounts.create(conn, "owner@example.org", "default", NOON)
    values = {
        "account_id": account.id,
        "name": "piedpiper.example",
        "display": "piedpiper.example",
        "webhook": "https://hooks.example/in",
        "webhook_key": "k",
        "dkim_selector": "s",
        "added_at": NOON,
    }
    domain_id: int = conn.execute(domains.insert().values(values).returning(domains.c.id)).scalar_one()
    return domain_id


async def test_withdrawing_leaves_no_trace_of_what_nobody_began(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@dest.example", "b@dest.example", leased=True)
    kept = stage.message(leased=True)
    await worker.queue.enqueue(message)
    await worker.queue.enqueue(kept)
    worker.queue._doubt(message)
    await worker.queue.withdraw_doubtful(0.0)
    assert [row.id for row in await rows(worker.database, messages)] == [kept.id]
    assert await sizes(worker.database) == (1, 1, 1, 1)


async def test_what_is_anybodys_outlives_a_worker_that_dies_right_after_its_commit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message("a@dest.example", due=MINUTE)
    monkeypatch.setattr(worker.queue, "_let_go", lambda leases: None)
    await worker.queue.enqueue(message)
    assert await worker.queue.leases() == {message.deliveries[0].id: 0}
    assert await workers.release_node(worker.database, "node-a", NOON) == 1
    [claimed] = await other.queue.claim_due(NOON, 10)
    assert claimed.attempts == 1
    assert await other.queue.settle(delivered(claimed))


async def test_withdrawing_spares_what_another_worker_has_begun(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message("a@dest.example", "b@dest.example")
    await worker.queue.enqueue(message)
    begun = await taken_by(other)
    worker.queue._doubt(message)
    await worker.queue.withdraw_doubtful(0.0)
    assert [row.id for row in await rows(worker.database, deliveries)] == [begun.id]
    assert await other.queue.content(message.id) == message.content
    assert await other.queue.settle(delivered(begun))
    assert (await sizes(worker.database))[:2] == (0, 0)
    assert await statuses(worker.database, begun.id) == [Status.QUEUED, Status.DELIVERED]


async def test_withdrawing_takes_the_log_of_what_was_to_be_discarded(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message(discard=True)
    await worker.queue.enqueue(message)
    worker.queue._doubt(message)
    await worker.queue.withdraw_doubtful(0.0)
    assert await sizes(worker.database) == (0, 0, 0, 0)


async def test_withdrawing_leaves_the_log_of_what_another_worker_has_delivered(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message("a@dest.example")
    await worker.queue.enqueue(message)
    begun = await taken_by(other)
    assert await other.queue.settle(delivered(begun))
    worker.queue._doubt(message)
    await worker.queue.withdraw_doubtful(0.0)
    assert await sizes(worker.database) == (0, 0, 1, 2)
    assert await statuses(worker.database, begun.id) == [Status.QUEUED, Status.DELIVERED]


async def test_withdrawing_spares_what_another_worker_will_try_again(stage: Stage) -> None:
    worker, other = await stage.worker("a"), await stage.worker("b")
    message = stage.message("a@dest.example")
    await worker.queue.enqueue(message)
    begun = await taken_by(other)
    assert await other.queue.settle(soft(begun, NOON))
    worker.queue._doubt(message)
    await worker.queue.withdraw_doubtful(0.0)
    assert [row.id for row in await rows(worker.database, deliveries)] == [begun.id]
    [again] = await worker.queue.claim_due(NOON, 1)  # ours to try now, and so not to be withdrawn
    assert again.attempts == 2
    assert await worker.queue.leases() == {begun.id: 2}
    await worker.queue.withdraw_doubtful(0.0)
    assert await worker.queue.settle(delivered(again))


async def test_a_message_whose_commit_hangs_on_sqlite_is_withdrawn_when_it_ends(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep, awake = threading.Event(), threading.Event()

    def commit(conn: Connection) -> None:
        asleep.set()
        awake.wait(20)
        straight.commit(conn)

    async with AsyncExitStack() as opened:
        stage = Stage(sqlite_url, opened)
        worker = await stage.worker()
        monkeypatch.setattr(sqlite, "commit", commit)
        lost = asyncio.create_task(worker.queue.enqueue(stage.message("a@dest.example", "b@dest.example")))
        await asyncio.to_thread(asleep.wait, 10)
        worker.database.writer.expire_now(time.monotonic())
        with pytest.raises(CommitUnknown):
            await lost
        much_later = time.monotonic() + 3600
        claim = asyncio.create_task(worker.queue.claim_due(NOON, 10))
        withdrawal = asyncio.create_task(worker.queue.withdraw_doubtful(much_later))
        await asyncio.sleep(0)  # both are in the line now, in this order
        awake.set()
        assert await claim == []
        await withdrawal
        assert await sizes(worker.database) == (0, 0, 0, 0)
        await until(partial(forgotten, worker, much_later))


async def test_while_too_much_is_in_doubt_nothing_is_taken(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "DOUBTFUL", 2)
    worker = await stage.worker()
    for _ in range(2):
        worker.queue._doubt(stage.message())
    with pytest.raises(StoreUnavailable):
        await worker.queue.enqueue(stage.message())
    much_later = time.monotonic() + 3600
    await until(partial(forgotten, worker, much_later))
    await worker.queue.enqueue(stage.message())
    assert (await sizes(worker.database))[0] == 1


async def test_what_is_in_doubt_is_not_sent_by_us_though_others_gave_it_back(stage: Stage) -> None:
    """Its client was told 451: it sends the message again."""
    worker = await stage.worker()
    message = stage.message("a@dest.example")
    await worker.queue.enqueue(message)

    async def anybodys() -> bool:
        return not await worker.queue.leases()

    await until(anybodys)
    worker.queue._doubt(message)
    assert await worker.queue.claim_due(NOON, 10) == []
    assert await worker.queue.leases() == {}  # the claim took it, and no stray is to be made of that
    await worker.queue.withdraw_doubtful(0.0)
    assert await sizes(worker.database) == (0, 0, 0, 0)


async def test_a_doubt_lasts_for_half_a_minute_at_least(stage: Stage) -> None:
    worker = await stage.worker()
    began = time.monotonic()
    worker.queue._doubt(stage.message())
    for _ in range(3):
        assert not await forgotten(worker, began + 29.0)
    later = time.monotonic() + 30.0
    await until(partial(forgotten, worker, later))


async def test_one_claim_takes_hundreds_of_deliveries(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message(*(f"u{n}@dest.example" for n in range(500))))

    async def anybodys() -> bool:
        return not await worker.queue.leases()

    await until(anybodys)
    claimed = await worker.queue.claim_due(NOON, 1000)
    assert len(claimed) == 500
    leased = await worker.database.read(
        lambda conn: conn.execute(
            select(func.count()).select_from(deliveries).where(deliveries.c.state == "leased")
        ).scalar_one()
    )
    assert leased == 500


async def test_an_attempt_that_is_over_gives_nothing_back(stage: Stage) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message())
    (first,) = await worker.queue.claim_due(NOON, 10)
    assert await worker.queue.settle(soft(first, NOON))
    (second,) = await worker.queue.claim_due(NOON, 10)
    assert second.attempts == 2
    assert not await worker.queue.release(first, next_attempt_at=NOON)
    assert await worker.queue.leases() == {second.id: 2}


async def test_what_others_hold_is_not_ours(stage: Stage) -> None:
    ours, theirs = await stage.worker("a"), await stage.worker("b")
    await ours.queue.enqueue(stage.message())
    assert len(await ours.queue.claim_due(NOON, 10)) == 1
    assert await theirs.queue.leases() == {}
