"""Logs as people read them, refusals written behind the reply, and what operators do to the queue."""

import json
import re
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.event import listen, remove

from forwarder.mail.event import DeliveryState, Status, Transport
from forwarder.store import admin, journal
from forwarder.store.journal import Journal, RefusedLog
from forwarder.store.records import NewEvent
from forwarder.store.tables import deliveries, events, logs, messages
from tests.store.conftest import NOON, Stage, as_delivery, delivered, hard, soft
from tests.store.test_queue import add_domain_with_webhook, rows, sizes

DAY = timedelta(days=1)
REFUSED = NewEvent(
    status=Status.REFUSED, code=550, message="5.1.1 no such user", local="mx.example.net", server="client"
)


def refusal(stage: Stage, *, domain_id: int | None = 7, subject: str | None = None) -> RefusedLog:
    return RefusedLog(
        id=stage.ids(),
        domain_id=domain_id,
        alias=None,
        created_at=stage.now,
        transport=Transport.SMTP,
        hostname="client.example",
        subject=subject,
        sender_email="gavin@hooli.example",
        recipient_email="nobody@piedpiper.example",
        event=REFUSED,
    )


async def journal_of(stage: Stage) -> Journal:
    return Journal(await stage.database(), ids=stage.ids, clock=stage.clock)


async def test_a_refusal_is_written_behind_the_reply(stage: Stage) -> None:
    kept = await journal_of(stage)
    log = refusal(stage, subject="a\0\udc80")
    kept.refused(log)
    await kept.flush()
    [entry] = await kept.page(7)
    assert (entry.id, entry.recipient_email, entry.forward_email) == (
        log.id,
        "nobody@piedpiper.example",
        None,
    )
    assert entry.subject == "a\ufffd?"
    [event] = entry.events
    assert (event.status, event.code, event.message) == (Status.REFUSED, 550, "5.1.1 no such user")
    assert (event.local, event.server, event.created_at) == ("mx.example.net", "client", NOON)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the journal said of refusals since this was asked last."""
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.partition("] ")[2].split()) for line in lines if "refusals are" in line]


async def test_a_refusal_that_cannot_be_written_is_told_and_its_end_too(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = await journal_of(stage)
    log = refusal(stage)
    for _ in range(3):  # the second and the third have an id that is there already
        kept.refused(log)
        await kept.flush()
    [said] = told(capsys)
    assert said.startswith("refusals are not logged reason=")
    later = refusal(stage)
    kept.refused(later)
    await kept.flush()
    assert told(capsys) == ["refusals are logged again; some were not refusals=2"]
    assert [entry.id for entry in await kept.page(7)] == [later.id, log.id]


async def test_a_refusal_that_the_store_does_not_take_is_told_and_holds_up_nobody(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    database = await stage.database()
    kept = Journal(database, ids=stage.ids, clock=stage.clock)
    await database.close()
    for _ in range(2):
        kept.refused(refusal(stage))
    assert told(capsys) == ["refusals are not logged reason='the store is closing'"]
    await kept.flush()


async def test_an_attack_is_no_load_of_rows_nor_of_lines(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "BEHIND", 5)
    kept = await journal_of(stage)
    for _ in range(8):
        kept.refused(refusal(stage))
    await kept.flush()
    assert told(capsys) == [
        "refusals are not logged reason='too many wait to be written'",
        "refusals are logged again; some were not refusals=3",
    ]
    assert len(await kept.page(7)) == 5
    kept.refused(refusal(stage))
    await kept.flush()
    assert (len(await kept.page(7)), told(capsys)) == (6, [])


async def test_pages_go_from_new_to_old_without_gap_or_overlap(stage: Stage) -> None:
    kept = await journal_of(stage)
    written = []
    for n in range(23):
        stage.now += timedelta(milliseconds=n % 3)
        log = refusal(stage, domain_id=8 if n % 5 == 0 else 7)
        written.append(log)
        kept.refused(log)
    await kept.flush()
    wanted = [log.id for log in reversed(written) if log.domain_id == 7]
    found: list[str] = []
    while page := await kept.page(7, after=found[-1] if found else None, limit=5):
        assert len(page) <= 5
        found += [entry.id for entry in page]
    assert found == wanted
    assert len(await kept.page(None, limit=100)) == 23


async def test_pages_of_an_alias_and_of_failures(stage: Stage) -> None:
    worker, kept = await stage.worker(), await journal_of(stage)
    good, late, bad = (stage.message(leased=True) for _ in range(3))
    for message in (good, late, bad):
        await worker.queue.enqueue(message)
    kept.refused(refusal(stage))
    await kept.flush()
    stage.now += timedelta(seconds=1)
    assert all(
        await worker.queue.settle_all(
            [delivered(as_delivery(good)), soft(as_delivery(late), NOON + DAY), hard(as_delivery(bad))]
        )
    )
    ids = {name: message.deliveries[0].id for name, message in (("good", good), ("late", late), ("bad", bad))}
    of_alias = await kept.page(7, alias="richard")
    assert [entry.id for entry in of_alias] == [ids["bad"], ids["late"], ids["good"]]
    assert [[e.status for e in entry.events] for entry in of_alias] == [
        [Status.QUEUED, Status.HARD_BOUNCE],
        [Status.QUEUED, Status.SOFT_BOUNCE],
        [Status.QUEUED, Status.DELIVERED],
    ]
    failures = await kept.page(7, failures_only=True)
    assert [entry.id for entry in failures][1:] == [ids["bad"], ids["late"]]
    assert failures[0].events[0].status is Status.REFUSED
    assert [entry.id for entry in await kept.page(7, alias="richard", failures_only=True)] == [
        ids["bad"],
        ids["late"],
    ]


async def test_failures_are_found_without_reading_what_did_not_fail(stage: Stage) -> None:
    database, kept = await stage.database(), await journal_of(stage)
    asked: list[tuple[str, Any]] = []

    def hear(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    listen(Engine, "before_cursor_execute", hear)
    try:
        assert await kept.page(7, failures_only=True) == []
        assert await kept.page(7, alias="richard", failures_only=True) == []
        assert await kept.page(None, failures_only=True) == []
    finally:
        remove(Engine, "before_cursor_execute", hear)
    explain = "EXPLAIN" if database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"

    def plan(conn: Connection, statement: str, parameters: Any) -> str:
        return str(conn.exec_driver_sql(f"{explain} {statement}", parameters).all())

    plans = [await database.read(partial(plan, statement=text, parameters=given)) for text, given in asked]
    used = [re.findall(r"ix_logs_\w+|pk_logs|sqlite_autoindex_\w+", plan) for plan in plans]
    assert used == [["ix_logs_failed"], ["ix_logs_failed_alias"], ["ix_logs_failed_id"]]


async def test_a_bounce_that_comes_back_late_is_added(stage: Stage) -> None:
    worker, kept = await stage.worker(), await journal_of(stage)
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    await worker.queue.settle(delivered(as_delivery(message)))
    stage.now += timedelta(hours=1)
    log_id = message.deliveries[0].id
    late = NewEvent(
        status=Status.HARD_BOUNCE, code=550, message="5.2.2 mailbox full", recipient="x@dest.example"
    )
    assert await kept.append_event(log_id, late)
    assert not await kept.append_event(stage.ids(), late)
    entry = await kept.entry(log_id)
    assert entry is not None
    assert [event.status for event in entry.events] == ["QUEUED", "DELIVERED", "HARD-BOUNCE"]
    assert [found.id for found in await kept.page(7, failures_only=True)] == [log_id]


async def test_a_refusal_is_told_to_the_webhook(stage: Stage) -> None:
    worker, kept = await stage.worker(), await journal_of(stage)
    domain_id = await worker.database.write(add_domain_with_webhook)
    kept.refused(refusal(stage, domain_id=domain_id))
    await kept.flush()
    [notice] = await worker.queue.claim_due(NOON, 10)
    content = await worker.queue.content(notice.message_id)
    assert content is not None
    assert b'"status": "REFUSED"' in content


async def test_the_webhook_is_told_who_received_and_who_sent_as_the_api_shows_it(stage: Stage) -> None:
    worker = await stage.worker()
    domain_id = await worker.database.write(add_domain_with_webhook)
    message = stage.message(leased=True, domain_id=domain_id)
    await worker.queue.enqueue(message)
    await worker.queue.settle(delivered(as_delivery(message)))
    notices = [await worker.queue.content(each.message_id) for each in await worker.queue.claim_due(NOON, 10)]
    [event] = [
        told["event"]
        for told in map(json.loads, filter(None, notices))
        if told["event"]["status"] == "DELIVERED"
    ]
    assert (event["status"], event["local"], event["server"]) == (
        "DELIVERED",
        "mx.dest.example",
        "mx.example.net",
    )


async def test_purging_takes_the_old_and_nothing_else(stage: Stage) -> None:
    worker, kept = await stage.worker(), await journal_of(stage)
    for _ in range(25):
        await worker.queue.enqueue(stage.message())
    stage.now += DAY
    young = [stage.message() for _ in range(3)]
    for message in young:
        await worker.queue.enqueue(message)
    assert await kept.purge(NOON, chunk=10) == 0
    assert await kept.purge(NOON + DAY, chunk=10) == 25
    wanted = [message.deliveries[0].id for message in young]
    assert [row.id for row in await rows(worker.database, logs)] == wanted
    assert [row.log_id for row in await rows(worker.database, events)] == wanted
    assert len(await rows(worker.database, deliveries)) == 28  # the queue does not hang on the journal


async def test_events_that_outlived_their_logs_are_purged_together(stage: Stage) -> None:
    """Mail is tried for longer than its log is kept: each further attempt leaves an event, of very many messages."""
    worker, kept = await stage.worker(), await journal_of(stage)
    for _ in range(12):
        await worker.queue.enqueue(stage.message())
    assert await kept.purge(NOON + DAY) == 12
    for delivery in await worker.queue.claim_due(NOON, 12):
        assert await worker.queue.settle(soft(delivery, NOON + 2 * DAY))
    assert len(await rows(worker.database, events)) == 12
    deletes: list[str] = []

    def note(conn: object, cursor: object, statement: str, *_: object) -> None:
        deletes.extend([statement] if statement.startswith("DELETE FROM events") else [])

    listen(Engine, "before_cursor_execute", note)
    try:
        assert await kept.purge(NOON + DAY, chunk=10) == 0
    finally:
        remove(Engine, "before_cursor_execute", note)
    assert await rows(worker.database, events) == []
    assert len(deletes) == 2  # ten and two


async def test_an_operator_looks_and_retries(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message("a@one.example", "b@two.example", due=DAY)
    leased = stage.message("c@three.example", leased=True)
    await worker.queue.enqueue(message)
    await worker.queue.enqueue(leased)
    database = worker.database
    shown = await database.read(lambda conn: admin.show(conn, message.id))
    assert [one.destination for one in shown] == ["a@one.example", "b@two.example"]
    assert shown[0].size == len(message.content)
    [one] = await database.read(lambda conn: admin.show(conn, shown[1].id))
    assert one == shown[1]
    assert await database.read(lambda conn: admin.show(conn, "0" * 32)) == []
    listed = await database.read(
        lambda conn: admin.list_deliveries(conn, state=DeliveryState.QUEUED, destination_domain="two.example")
    )
    assert listed == [shown[1]]
    first = await database.read(lambda conn: admin.list_deliveries(conn, limit=2))
    assert [d.destination for d in first] == ["a@one.example", "b@two.example"]
    whole = await database.read(admin.list_deliveries)
    assert [d.destination for d in whole] == ["a@one.example", "b@two.example", "c@three.example"]
    assert await database.read(admin.counts) == {"queued": 2, "leased": 1, "held": 0}
    assert await database.write(lambda conn: admin.retry(conn, [shown[0].id], now=NOON)) == 1
    assert [d.id for d in await worker.queue.claim_due(NOON, 10)] == [shown[0].id]


async def test_what_may_move_next_is_what_is_in_hand_and_what_is_due_first(stage: Stage) -> None:
    worker = await stage.worker()
    leased, soon = stage.message("a@one.example", leased=True), stage.message("b@two.example", due=DAY)
    later, held = stage.message("c@three.example", due=2 * DAY), stage.message("d@four.example", due=DAY)
    for message in (later, leased, held, soon):
        await worker.queue.enqueue(message)
    await worker.database.write(lambda conn: admin.hold(conn, [held.id]))
    in_hand, first = leased.deliveries[0].id, soon.deliveries[0].id
    found = await worker.database.read(lambda conn: admin.moving(conn, limit=1))
    assert found == {first: ("queued", 0), in_hand: ("leased", 1)}
    await worker.queue.claim_due(NOON + DAY, 1)
    found = await worker.database.read(lambda conn: admin.moving(conn, limit=9))
    assert found == {later.deliveries[0].id: ("queued", 0), first: ("leased", 1), in_hand: ("leased", 1)}


async def test_a_whole_queue_is_retried_in_bites(stage: Stage) -> None:
    worker = await stage.worker()
    messages_ = [stage.message("a@one.example", "b@two.example", due=DAY) for _ in range(2)]
    for message in (*messages_, stage.message("c@three.example", leased=True)):
        await worker.queue.enqueue(message)
    waiting = sorted(delivery.id for message in messages_ for delivery in message.deliveries)
    await worker.database.write(lambda conn: admin.hold(conn, waiting[1:2]))
    database, wanted = worker.database, [waiting[0], *waiting[2:]]

    first = await database.write(lambda conn: admin.retry_next(conn, after="", now=NOON, limit=2))
    assert first == wanted[:2]
    assert [d.id for d in await worker.queue.claim_due(NOON, 10)] == wanted[:2]
    last = await database.write(lambda conn: admin.retry_next(conn, after=first[-1], now=NOON, limit=2))
    assert last == wanted[2:]
    assert [d.id for d in await worker.queue.claim_due(NOON, 10)] == wanted[2:]


async def test_a_held_delivery_waits_for_its_release(stage: Stage) -> None:
    worker = await stage.worker()
    message = stage.message()
    await worker.queue.enqueue(message)
    assert await worker.database.write(lambda conn: admin.hold(conn, [message.id])) == 1
    assert await worker.queue.claim_due(NOON + DAY, 10) == []
    assert await worker.queue.next_due_at() is None
    assert await worker.database.write(lambda conn: admin.hold(conn, [message.id])) == 0
    assert await worker.database.write(lambda conn: admin.retry(conn, [message.id], now=NOON)) == 0
    later = NOON + DAY
    assert await worker.database.write(lambda conn: admin.release(conn, [message.id], now=later)) == 1
    [claimed] = await worker.queue.claim_due(later, 10)
    # It is in a worker's hands: made anybody's, or put aside, it would be sent twice.
    for act in (admin.hold, partial(admin.release, now=later), partial(admin.retry, now=NOON)):
        assert await worker.database.write(partial(act, ids=[claimed.id])) == 0
    assert await worker.queue.leases() == {claimed.id: 1}
    assert await worker.queue.settle(delivered(claimed))


async def test_dropping_is_a_hard_bounce_without_a_dsn(stage: Stage) -> None:
    worker = await stage.worker()
    message, other = stage.message("a@dest.example", "b@dest.example"), stage.message(leased=True)
    await worker.queue.enqueue(message)
    await worker.queue.enqueue(other)
    held = message.deliveries[1].id
    await worker.database.write(lambda conn: admin.hold(conn, [held]))
    ids = [message.id, other.id]
    dropped = await worker.database.write(
        lambda conn: admin.drop(conn, ids, now=NOON, new_id=stage.ids, local_name="mx.example.net")
    )
    assert dropped == 2  # what is leased stays
    assert (await sizes(worker.database))[:2] == (1, 1)
    assert [row.id for row in await rows(worker.database, messages)] == [other.id]
    log = Journal(worker.database, ids=stage.ids, clock=stage.clock)
    failures = await log.page(7, failures_only=True)
    assert {each.id for each in failures} == {delivery.id for delivery in message.deliveries}
    entry = await log.entry(held)
    assert entry is not None
    assert [event.status for event in entry.events] == ["QUEUED", "HARD-BOUNCE"]
    assert "operator" in entry.events[1].message
