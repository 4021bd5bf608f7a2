"""Deliveries from hand-over or claim to their last event, over real sessions and a real store."""

import asyncio
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete, update

from forwarder.outbound import dispatcher as dispatcher_room
from forwarder.outbound import settling
from forwarder.store.queue import Queue
from forwarder.store.tables import deliveries, messages
from forwarder.store.trouble import StoreUnavailable
from tests.free_ports import free_port
from tests.outbound.house import CONTENT, House, OtherQueue, house


async def test_a_fresh_message_is_delivered_once_and_leaves_the_queue(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert events[-1][1] == 250
        assert events[-1][2].startswith("2.0.0 ok")
        (message,) = rooms.sink.messages
        assert message.recipients == ("bob@dest.test",)
        assert message.reverse_path.startswith("SRS0=")
        assert message.reverse_path.endswith("=origin.test=ann@srs.forwarder.test")
        assert message.content.endswith(CONTENT)
        assert await rooms.counts() == (0, 0)
        assert rooms.dispatcher.load().leased == 0


async def test_what_is_not_handed_over_is_claimed_from_the_store(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(rooms.sink.messages) == 1


async def test_one_session_serves_many_messages_to_a_site(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 1}) as rooms:
        for number in range(10):
            await rooms.accept(f"user{number}@dest.test")
        await rooms.sink.wait_for(10)
        assert rooms.sink.connections == 1
        assert [m.recipients[0] for m in rooms.sink.messages] == [f"user{n}@dest.test" for n in range(10)]


async def test_recipients_beyond_a_hundred_travel_in_transactions_of_their_own(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        ids = await rooms.accept(*(f"user{number}@dest.test" for number in range(250)))
        await rooms.sink.wait_for(3)
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert sorted(len(m.recipients) for m in rooms.sink.messages) == [50, 100, 100]
        assert len({r for m in rooms.sink.messages for r in m.recipients}) == len(ids)


async def test_what_was_put_off_together_is_tried_again_together(tmp_path: Path) -> None:
    """Two recipients lead to one address: due apart, they would be two copies there."""
    chance = cycle([-1.0, 1.0])  # were it asked for each, a second apart
    options: dict[str, Any] = {"retry": {"delays": ["1s"], "spread": 0.5}, "jitter": chance.__next__}
    async with house(tmp_path, **options) as rooms:
        rooms.sink.play("rcpt", "450", times=1)
        both = await rooms.accept("bob@dest.test", "bob@dest.test")
        for delivery in both:
            await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert len({row.next_attempt_at for row in await rooms.waiting()}) == 1
        for delivery in both:
            await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert [message.recipients for message in rooms.sink.messages] == [("bob@dest.test",)]


async def test_recipients_who_share_an_address_do_not_wait_for_its_route_apart(tmp_path: Path) -> None:
    """There is room for four, and six share an address: each part would be a copy there."""
    async with house(tmp_path, outbound={"window": 8}, start=False) as rooms:
        six = await rooms.accept(*["bob@dest.test"] * 6, in_memory=False)
        await rooms.start()
        for delivery in six:
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert [message.recipients for message in rooms.sink.messages] == [("bob@dest.test",)]


async def test_a_claim_does_not_part_recipients_who_share_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_room, "_CLAIM", 4)
    async with house(tmp_path, start=False) as rooms:
        ten = await rooms.accept(*["bob@dest.test", "ann@dest.test"] * 5, in_memory=False)
        await rooms.start()
        for delivery in ten:
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        named = [address for message in rooms.sink.messages for address in message.recipients]
        assert sorted(named) == ["ann@dest.test", "bob@dest.test"]


async def test_domains_of_one_site_share_a_transaction_and_its_concurrency(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        for number in range(3):
            rooms.dns.set(f"customer{number}.test", "MX", [(10, "mx.dest.test")])
        for number in range(3):  # the routes become known
            await rooms.accept(f"first@customer{number}.test")
        await rooms.sink.wait_for(3)
        await rooms.accept(*(f"second@customer{number}.test" for number in range(3)))
        await rooms.sink.wait_for(4)
        assert len(rooms.sink.messages[-1].recipients) == 3


async def test_what_exceeds_the_window_stays_in_the_store_until_there_is_room(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"window": 20, "concurrency_per_site": 1}) as rooms:
        rooms.sink.slowness = 0.05
        rooms.sink.play("mail", "slow")
        leased = 0
        for number in range(40):
            await rooms.accept(f"user{number}@dest.test")
            leased = max(leased, rooms.dispatcher.load().leased)
        assert leased <= 20
        rooms.sink.behave()
        await rooms.sink.wait_for(40)
        assert len({m.recipients for m in rooms.sink.messages}) == 40


async def test_a_hanging_site_leaves_room_for_the_others(tmp_path: Path) -> None:
    outbound = {"window": 60, "concurrency": 20, "concurrency_per_site": 10, "greeting_timeout": "30s"}
    async with house(tmp_path, outbound=outbound) as rooms:
        rooms.origin.play("connect", "hang")
        for number in range(100):
            await rooms.accept(f"user{number}@origin.test", in_memory=number % 2 == 0)
        await rooms.until(lambda: rooms.origin.open >= 5)
        for number in range(30):
            await rooms.accept(f"user{number}@dest.test", in_memory=number % 2 == 0)
        await rooms.sink.wait_for(30)  # while every attempt at the other site still hangs
        assert rooms.origin.open <= 10
        await rooms.until(
            lambda: rooms.dispatcher.load().leased <= 30
        )  # half of the window is all it may hold


async def test_a_refusal_of_a_second_sender_in_a_session_is_heard_again_in_a_new_one(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (first,) = await rooms.accept("ann@dest.test")
        await rooms.until_statuses(first, "QUEUED", "DELIVERED")
        rooms.sink.play("mail", "503", times=1)
        (second,) = await rooms.accept("bob@dest.test")
        await rooms.until_statuses(second, "QUEUED", "DELIVERED")
        assert rooms.sink.connections == 2
        rooms.sink.play("mail", "550", times=2)
        (third,) = await rooms.accept("carl@dest.test")
        await rooms.until_statuses(third, "QUEUED", "HARD-BOUNCE")
        assert rooms.sink.connections == 3


async def test_many_silent_sites_do_not_take_all_session_slots(tmp_path: Path) -> None:
    outbound = {
        "concurrency": 10,
        "concurrency_per_site": 5,
        "greeting_timeout": "30s",
        "connect_timeout": "300ms",
    }
    async with house(tmp_path, outbound=outbound, retry={"delays": ["100ms"]}) as rooms:
        rooms.origin.play("connect", "drop")
        for number in range(8):
            rooms.dns.set(f"dead{number}.test", "MX", [(10, f"mx.dead{number}.test")])
            rooms.dns.set(f"mx.dead{number}.test", "A", ["127.0.0.2"])
            await rooms.accept(f"bob@dead{number}.test")
        await rooms.until(lambda: rooms.origin.connections >= 16)  # each failed at least twice on the average
        rooms.origin.play("connect", "hang")
        await rooms.until(lambda: rooms.origin.open >= 2)
        for number in range(20):
            await rooms.accept(f"user{number}@dest.test")
        await rooms.sink.wait_for(20)


async def test_a_site_that_cannot_be_reached_is_left_alone_for_a_while(tmp_path: Path) -> None:
    retry = {"delays": ["1m"]}
    async with house(tmp_path, outbound={"concurrency_per_site": 2}, retry=retry) as rooms:
        rooms.origin.play("connect", "drop")
        taken = await asyncio.gather(*(rooms.accept(f"user{number}@origin.test") for number in range(30)))
        ids = [delivery for (delivery,) in taken]
        for delivery in ids:
            await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert rooms.origin.connections <= 5
        assert rooms.dispatcher.load().suspended == 1
        assert not rooms.dispatcher.lease("origin.test")
        told = [(await rooms.events(delivery))[-1][2] for delivery in ids]
        assert sum("not being tried" in text for text in told) >= 25
        (fresh,) = await rooms.accept("new@origin.test")
        assert await rooms.statuses(fresh) == ["QUEUED"]


async def _has_two(rooms: House, log_id: str) -> bool:
    return len(await rooms.statuses(log_id)) == 2


async def test_a_refusal_that_a_site_gave_to_others_is_temporary_for_those_that_wait(tmp_path: Path) -> None:
    begin = asyncio.Event()
    options: dict[str, Any] = {"retry": {"delays": ["1m"]}, "sure": begin.wait}
    async with house(tmp_path, outbound={"concurrency_per_site": 1}, **options) as rooms:
        rooms.origin.play("connect", "554")
        ids = [(await rooms.accept(f"user{number}@origin.test"))[0] for number in range(10)]
        begin.set()
        told = []
        for each in ids:
            await rooms.until(lambda each=each: _has_two(rooms, each))
            told.append((await rooms.events(each))[-1])
        heard = [status for status, _, text in told if "not being tried" not in text]
        assert heard == ["HARD-BOUNCE"] * 3
        waited = [(status, code, text) for status, code, text in told if "not being tried" in text]
        assert len(waited) == 7
        for status, code, text in waited:
            assert (status, code) == ("SOFT-BOUNCE", 451)
            assert text.startswith("4.4.1 ")
            assert "554" in text


async def test_drain_ends_what_is_under_way_and_gives_back_the_rest(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 2}) as rooms:
        rooms.sink.slowness = 0.2
        rooms.sink.play("dot", "slow")
        ids = [(await rooms.accept(f"user{number}@dest.test"))[0] for number in range(20)]
        await rooms.until(lambda: rooms.dispatcher.load().dialling == 2)
        await rooms.dispatcher.drain(timedelta(seconds=5))
        rows = await rooms.waiting()
        delivered = len(rooms.sink.messages)
        assert 1 <= delivered <= 4
        assert len(rows) == 20 - delivered
        assert {row.state for row in rows} == {"queued"}
        assert {row.attempts for row in rows} == {0}
        assert rooms.dispatcher.load().leased == 0
        assert not rooms.dispatcher.lease("dest.test")
        left = {row.id for row in rows}
        for delivery in ids:
            assert await rooms.statuses(delivery) == (
                ["QUEUED"] if delivery in left else ["QUEUED", "DELIVERED"]
            )


async def test_drain_cuts_what_takes_too_long_and_says_so(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"dot_timeout": "60s"}) as rooms:
        (delivery,) = await rooms.accept("hang-after-dot@dest.test")
        await rooms.sink.wait_for(1)
        await rooms.dispatcher.drain(timedelta(seconds=4))
        events = await rooms.events(delivery)
        assert [status for status, _, _ in events] == ["QUEUED", "SOFT-BOUNCE"]
        assert "went down" in events[-1][2]
        (row,) = await rooms.waiting()
        assert row.state == "queued"


async def test_mail_accepted_during_the_drain_is_left_to_others(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        lease = rooms.dispatcher.lease
        rooms.dispatcher.lease = lambda domain: True  # inbound asked before the drain began
        drain = asyncio.create_task(rooms.dispatcher.drain(timedelta(seconds=2)))
        await asyncio.sleep(0)
        (delivery,) = await rooms.accept("bob@dest.test")
        rooms.dispatcher.lease = lease
        await drain
        await rooms.dispatcher.drain(timedelta(seconds=1))
        (row,) = await rooms.waiting()
        assert (row.id, row.state) == (delivery, "queued")
        assert rooms.sink.messages == []


async def test_mail_accepted_while_the_last_attempts_end_is_left_to_others_too(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"dot_timeout": "60s"}) as rooms:
        (hanging,) = await rooms.accept("hang-after-dot@dest.test")
        await rooms.sink.wait_for(1)
        rooms.dispatcher.lease = lambda domain: True  # inbound asked before the drain began
        drain = asyncio.create_task(rooms.dispatcher.drain(timedelta(seconds=2)))
        await rooms.until(lambda: rooms.dispatcher._crew._stopping)
        (late,) = await rooms.accept("bob@dest.test")
        await drain
        assert rooms.dispatcher.load().leased == 0
        states = {row.id: (row.state, row.attempts) for row in await rooms.waiting()}
        assert states == {hanging: ("queued", 1), late: ("queued", 0)}
        assert await rooms.statuses(late) == ["QUEUED"]


class SlowClaims(OtherQueue):
    """Its claims are answered when the test says so."""

    def __init__(self, real: Queue) -> None:
        super().__init__(real)
        self.made, self.answered = asyncio.Event(), asyncio.Event()

    async def claim_due(self, *arguments: Any) -> Any:
        claimed = await self.real.claim_due(*arguments)
        if claimed:
            self.made.set()
            await self.answered.wait()
        return claimed


async def test_a_claim_under_way_when_the_drain_begins_is_given_back(tmp_path: Path) -> None:
    async with house(tmp_path, queue=SlowClaims) as rooms:
        claims = rooms.dispatcher._queue
        rooms.dns.fault("dest.test", "timeout")
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await claims.made.wait()
        drain = asyncio.create_task(rooms.dispatcher.drain(timedelta(seconds=20)))
        await asyncio.sleep(0)
        claims.answered.set()
        await drain
        (row,) = await rooms.waiting()
        assert (row.id, row.state, row.attempts) == (delivery, "queued", 0)
        assert rooms.sink.messages == []


async def test_what_is_claimed_although_its_site_has_no_room_goes_back_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a site with many domains a claim cannot leave out those that nobody has seen there yet."""
    monkeypatch.setattr(dispatcher_room, "_CLAIM", 4)
    async with house(tmp_path, outbound={"window": 40, "greeting_timeout": "30s"}, start=False) as rooms:
        rooms.origin.play("connect", "hang")
        for number in range(36):
            rooms.dns.mail_host(f"customer{number}.test", rooms.origin.host, host="mx.origin.test")
            await rooms.accept(f"bob@customer{number}.test", in_memory=False)
        later = rooms.now() + timedelta(seconds=10)
        await rooms.start()

        async def is_all_told() -> bool:
            rows = [row for row in await rooms.waiting() if row.state == "queued"]
            return bool(rows) and all(row.attempts == 0 and row.next_attempt_at >= later for row in rows)

        await rooms.until(is_all_told)
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        states = [row.state for row in await rooms.waiting()]
        await rooms.until(lambda: rooms.dispatcher.load().leased == states.count("leased"))
        assert len(states) == 36
        assert states.count("leased") >= 20  # at least twice what is free


async def test_a_smarthost_may_have_all_of_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_room, "_CLAIM", 4)
    port = free_port()
    outbound = {"window": 40, "greeting_timeout": "30s", "smarthost": f"127.0.0.2:{port}"}
    async with house(tmp_path, outbound=outbound, sink={"port": port}, start=False) as rooms:
        rooms.origin.play("connect", "hang")
        for number in range(36):
            await rooms.accept(f"bob@customer{number}.test", in_memory=False)
        await rooms.start()
        await rooms.until(lambda: rooms.dispatcher._lanes.places == 36)
        assert {row.state for row in await rooms.waiting()} == {"leased"}


async def test_a_lost_lease_is_settled_by_nobody_here(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:
        (delivery,) = await rooms.accept("hang-after-dot-1x@dest.test")
        await rooms.sink.wait_for(1)
        # Another worker took it over meanwhile: another owner, another attempt.
        await rooms.database.write(
            lambda conn: conn.execute(update(deliveries).values(lease_owner="f" * 32, attempts=2))
        )
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert await rooms.statuses(delivery) == ["QUEUED"]
        (row,) = await rooms.waiting()
        assert (row.state, row.lease_owner, row.attempts) == ("leased", "f" * 32, 2)


async def test_a_lost_lease_is_reported_by_nobody_here(tmp_path: Path) -> None:
    lost = asyncio.Event()

    async def wait() -> None:
        await lost.wait()

    async with house(tmp_path, sure=wait) as rooms:
        (delivery,) = await rooms.accept("550-at-rcpt@dest.test")
        await rooms.database.write(
            lambda conn: conn.execute(update(deliveries).values(lease_owner="f" * 32, attempts=2))
        )
        lost.set()
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert rooms.sink.connections == 1
        assert await rooms.statuses(delivery) == ["QUEUED"]
        assert await rooms.reports() == []
        assert rooms.origin.connections == 0


async def test_what_others_took_over_while_this_process_was_stopped_is_not_sent(tmp_path: Path) -> None:
    sure = asyncio.Event()
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await sure.wait()

    async with house(tmp_path, sure=wait) as rooms:
        (taken_over,) = await rooms.accept("bob@dest.test")
        await waiting.wait()  # its turn has come, but for the sign of life
        rooms.dispatcher.forget()
        (ours,) = await rooms.accept("ann@dest.test")
        sure.set()
        await rooms.until_statuses(ours, "QUEUED", "DELIVERED")
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert [message.recipients for message in rooms.sink.messages] == [("ann@dest.test",)]
        assert await rooms.statuses(taken_over) == ["QUEUED"]


async def test_of_a_transaction_only_what_is_still_ours_is_sent(tmp_path: Path) -> None:
    sure = asyncio.Event()
    async with house(tmp_path, sure=sure.wait) as rooms:
        taken_over, ours = await rooms.accept("bob@dest.test", "ann@dest.test")
        del rooms.dispatcher._window.leases[taken_over]
        sure.set()
        await rooms.until_statuses(ours, "QUEUED", "DELIVERED")
        assert [message.recipients for message in rooms.sink.messages] == [("ann@dest.test",)]
        assert await rooms.statuses(taken_over) == ["QUEUED"]


async def test_what_was_committed_while_this_process_had_no_row_is_not_sent(tmp_path: Path) -> None:
    """Its leases were nobody's then; another process may have it."""
    async with house(tmp_path) as rooms:
        message = rooms.message("bob@dest.test")
        await rooms.queue.enqueue(message)
        rooms.dispatcher.forget()
        rooms.dispatcher.hand_over(message)
        (after,) = await rooms.accept("ann@dest.test")
        await rooms.until_statuses(after, "QUEUED", "DELIVERED")
        assert rooms.dispatcher.load().leased == 0
        assert [received.recipients for received in rooms.sink.messages] == [("ann@dest.test",)]


async def test_what_was_being_claimed_when_this_process_lost_its_row_is_not_sent(tmp_path: Path) -> None:
    async with house(tmp_path, queue=SlowClaims) as rooms:
        await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.dispatched.made.wait()
        rooms.dispatcher.forget()
        rooms.dispatched.answered.set()
        (after,) = await rooms.accept("ann@dest.test", in_memory=False)
        await rooms.until_statuses(after, "QUEUED", "DELIVERED")
        await rooms.until(lambda: not rooms.dispatcher.load().leased)
        assert [received.recipients for received in rooms.sink.messages] == [("ann@dest.test",)]


class Away(OtherQueue):
    """Its store goes away on command."""

    def __init__(self, real: Queue) -> None:
        super().__init__(real)
        self.away = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def perhaps(*given: Any, **named: Any) -> Any:
            if self.away:
                self.refused += 1
                raise StoreUnavailable
            return await found(*given, **named)

        return perhaps


async def test_a_delivery_is_not_forgotten_because_the_store_is_away(tmp_path: Path) -> None:
    async with house(tmp_path, queue=Away) as rooms:
        away = rooms.dispatched
        (delivery,) = await rooms.accept("bob@dest.test")
        away.away = True
        await rooms.sink.wait_for(1)
        await rooms.until(lambda: rooms.dispatcher.load().unwritten == 1)
        assert rooms.dispatcher.tasks() == {"claims": True, "strays": True}
        away.away = False
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(rooms.sink.messages) == 1
        assert rooms.dispatcher.load().unwritten == 0


async def test_an_outcome_waits_for_the_store_in_growing_steps_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        rooms.dispatched.away = len(waits) < 8

    monkeypatch.setattr(settling, "asyncio", SimpleNamespace(sleep=sleep))
    begin = asyncio.Event()
    async with house(tmp_path, queue=Away, sure=begin.wait) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test")
        rooms.dispatched.away = True
        begin.set()
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert capsys.readouterr().out.count("the deliveries wait for the store") == 1


class Slow(OtherQueue):
    """It writes outcomes when it is told to."""

    def __init__(self, real: Queue, told: asyncio.Event) -> None:
        super().__init__(real)
        self._told = told

    async def settle_all(self, settlements: Any) -> Any:
        await self._told.wait()
        return await self.real.settle_all(settlements)


async def test_attempts_go_on_while_outcomes_are_written_up_to_four_a_slot(tmp_path: Path) -> None:
    begin, told = asyncio.Event(), asyncio.Event()
    options: dict[str, Any] = {"queue": lambda queue: Slow(queue, told), "sure": begin.wait}
    async with house(tmp_path, outbound={"concurrency": 1}, **options) as rooms:
        ids = [(await rooms.accept(f"user{number}@dest.test"))[0] for number in range(10)]
        begin.set()
        # The fifth began while four were not exceeded yet.
        await rooms.until(lambda: rooms.dispatcher.load().settling == 5)
        assert rooms.dispatcher.load().dialling == 0
        assert len(rooms.sink.messages) == 5
        told.set()
        for each in ids:
            await rooms.until_statuses(each, "QUEUED", "DELIVERED")
        assert len(rooms.sink.messages) == 10


async def test_claims_wait_for_a_store_that_is_away_in_growing_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path, queue=Away, start=False) as rooms:
        away = rooms.dispatched
        away.away = True
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            away.away = len(waits) != 8  # back for one turn
            await asyncio.sleep(0)

        rooms.dispatcher._sleep = sleep
        await rooms.start()
        await rooms.until(lambda: len(waits) >= 11)
        del rooms.dispatcher._sleep
        away.away = False
        assert waits[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert waits[9:11] == [0.1, 0.2]
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        said = capsys.readouterr().out
        assert "the claims wait for the store" in said
        assert "a claim failed" not in said


async def test_a_claim_that_fails_is_not_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with house(tmp_path, queue=Failing, start=False) as rooms:
        rooms.dispatcher._queue.trouble["claim_due"] = 1
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.start()
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert "a claim failed" in capsys.readouterr().out


async def test_an_outcome_that_cannot_be_written_holds_no_place_and_its_lease_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path, queue=Failing) as rooms:
        rooms.dispatcher._queue.trouble["settle_all"] = 1
        (delivery,) = await rooms.accept("bob@dest.test")
        await rooms.sink.wait_for(1)
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert "settling failed" in capsys.readouterr().out
        assert (rooms.dispatcher.load().settling, rooms.dispatcher._lanes.places) == (0, 0)
        assert [row.state for row in await rooms.waiting()] == ["leased"]
        strays = rooms.dispatcher._strays
        assert [await strays.look(), await strays.look()] == [0, 1]
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


class Failing(OtherQueue):
    """Its verbs fail as often as the test says."""

    def __init__(self, real: Queue) -> None:
        super().__init__(real)
        self.trouble: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return self._fails(name) if self.trouble.get(name, 0) > 0 else super().__getattr__(name)

    def _fails(self, name: str) -> Any:
        self.trouble[name] -= 1

        async def fails(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a mistake")

        return fails


async def test_what_goes_back_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    async with house(tmp_path, queue=Away, start=False) as rooms:
        away = rooms.dispatched
        rooms.dispatcher.lease = lambda domain: True
        (delivery,) = await rooms.accept("bob@dest.test")  # nothing is dispatched yet: it goes back
        away.away = True
        await asyncio.wait_for(rooms.dispatcher._returns.give_back(until=None), 5)
        assert (away.refused, list(rooms.dispatcher.holding())) == (1, [delivery])
        drain = asyncio.create_task(rooms.dispatcher.drain(timedelta(seconds=20)))
        await rooms.until(lambda: away.refused >= 3)
        assert away.refused < 10  # with pauses
        away.away = False
        await drain
        assert rooms.dispatcher.load().leased == 0
        (row,) = await rooms.waiting()
        assert (row.id, row.state, row.attempts) == (delivery, "queued", 0)


async def test_what_cannot_go_back_is_a_stray_and_keeps_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path, queue=Failing, start=False) as rooms:
        rooms.dispatcher.lease = lambda domain: True
        stray, other = await rooms.accept("bob@dest.test", "ann@dest.test")
        rooms.dispatcher._queue.trouble["release"] = 1
        await rooms.dispatcher._returns.give_back(until=None)
        assert rooms.dispatcher.load().leased == 0
        assert {row.id: row.state for row in await rooms.waiting()} == {stray: "leased", other: "queued"}
        said = capsys.readouterr().out
        assert (said.count(f"delivery={stray}"), said.count(f"delivery={other}")) == (1, 0)
        strays = rooms.dispatcher._strays
        assert [await strays.look(), await strays.look()] == [0, 1]


async def test_places_that_become_free_end_the_wait_of_a_claim(tmp_path: Path) -> None:
    outbound = {"window": 16, "concurrency_per_site": 16}
    async with house(tmp_path, outbound=outbound) as rooms:
        rooms.sink.slowness = 0.5
        rooms.sink.play("dot", "slow")
        await rooms.accept(*(f"user{number}@dest.test" for number in range(16)))
        assert rooms.dispatcher.load().leased == 16
        waiting = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waiting.set()
            await rooms.dispatcher._news.wait()  # and not until the time is over

        rooms.dispatcher._sleep = sleep
        rooms.dispatcher._news.set()
        await waiting.wait()
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        del rooms.dispatcher._sleep


async def test_fresh_mail_waits_for_no_claim(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:

        async def sleep(seconds: float) -> None:
            await asyncio.Event().wait()

        rooms.dispatcher._sleep = sleep
        rooms.dispatcher._news.set()
        for name in ("bob", "ann"):  # its route unknown, and known
            (delivery,) = await rooms.accept(f"{name}@dest.test")
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


async def test_a_look_at_the_store_is_never_far_away(tmp_path: Path) -> None:
    async with house(tmp_path, start=False) as rooms:
        assert await rooms.dispatcher._until_due() == 1.0
        await rooms.accept("bob@dest.test", in_memory=False, due=timedelta(hours=1))
        await rooms.until(rooms.queue.next_due_at)  # it is ours until its COMMIT is known to be answered
        (row,) = await rooms.waiting()
        for before, wait in (
            (timedelta(minutes=5), 1.0),  # others may make something due meanwhile
            (timedelta(seconds=0.25), 0.25),
            (timedelta(0), 1.0),  # due, but left out of the claim
        ):
            at = row.next_attempt_at - before
            rooms.dispatcher._clock = lambda at=at: at
            assert await rooms.dispatcher._until_due() == wait


async def test_what_is_claimed_is_delivered_although_contents_cannot_be_read_together(tmp_path: Path) -> None:
    class Apart(OtherQueue):
        """It is away when contents are read together."""

        async def contents(self, _ids: object) -> dict[str, bytes]:
            raise StoreUnavailable

    async with house(tmp_path, queue=Apart) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)


async def test_what_is_handed_over_for_a_suspended_site_does_not_wait_for_its_end(tmp_path: Path) -> None:
    async with house(tmp_path, retry={"delays": ["10m"]}) as rooms:
        rooms.origin.play("connect", "drop")
        rooms.dispatcher.lease = lambda domain: True  # inbound asked before the site was suspended
        for number in range(3):
            (delivery,) = await rooms.accept(f"user{number}@origin.test")
            await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        assert rooms.dispatcher.load().suspended == 1
        (late,) = await rooms.accept("late@origin.test")
        events = await rooms.until_statuses(late, "QUEUED", "SOFT-BOUNCE")
        assert "not being tried" in events[1][2]
        assert rooms.origin.connections == 3
        assert rooms.dispatcher.load().leased == 0


async def test_trouble_of_our_own_is_temporary(tmp_path: Path) -> None:
    async with house(tmp_path, retry={"delays": ["100ms"]}) as rooms:
        broken = rooms.signing.headers

        async def fails(*_: object) -> bytes:
            rooms.signing.headers = broken
            raise RuntimeError("a mistake")

        rooms.signing.headers = fails
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert events[1][2].startswith("4.3.0")
        assert "mistake" not in events[1][2]


async def test_a_content_that_cannot_be_read_is_temporary_too_and_keeps_no_slot(tmp_path: Path) -> None:
    async with house(tmp_path, queue=Unreadable, retry={"delays": ["100ms"]}) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert events[1][2].startswith("4.3.0")
        assert "mistake" not in events[1][2]
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert rooms.dispatcher.load().dialling == 0


class Unreadable(OtherQueue):
    """It fails the first time a content is read from it."""

    def __init__(self, real: Queue) -> None:
        super().__init__(real)
        self._failed = False

    async def contents(self, message_ids: Any) -> Any:
        return {}

    async def content(self, message_id: str) -> Any:
        if not self._failed:
            self._failed = True
            raise RuntimeError("a mistake")
        return await self.real.content(message_id)


async def test_a_message_dropped_by_an_operator_is_not_sent(tmp_path: Path) -> None:
    async with house(tmp_path, start=False) as rooms:
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        (claimed,) = await rooms.queue.claim_due(rooms.now(), 10)
        await rooms.database.write(lambda conn: conn.execute(delete(messages)))
        await rooms.dispatcher._take_in([claimed])
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
        assert rooms.sink.messages == []
        assert await rooms.statuses(delivery) == ["QUEUED"]


async def test_a_lease_that_memory_knows_nothing_of_is_given_back_at_the_second_look(tmp_path: Path) -> None:
    async with house(tmp_path, start=False) as rooms:
        await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.queue.claim_due(rooms.now(), 10)  # and the answer got lost
        strays = rooms.dispatcher._strays
        assert await strays.look() == 0
        assert [row.state for row in await rooms.waiting()] == ["leased"]
        assert await strays.look() == 1
        (row,) = await rooms.waiting()
        assert (row.state, row.attempts) == ("queued", 0)
        assert await strays.look() == 0


async def test_a_window_that_slow_sites_fill_lets_due_mail_in_all_the_same(tmp_path: Path) -> None:
    outbound = {"window": 16, "greeting_timeout": "30s", "concurrency": 12, "concurrency_per_site": 3}
    async with house(tmp_path, outbound=outbound) as rooms:
        rooms.origin.play("connect", "hang")
        for number in range(4):
            rooms.dns.mail_host(f"slow{number}.test", "127.0.0.2")
            for user in range(6):
                await rooms.accept(f"user{user}@slow{number}.test")
        assert rooms.dispatcher.load().leased >= 14  # less is free than a claim would like to have
        (delivery,) = await rooms.accept("bob@dest.test", in_memory=False)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


async def test_a_hand_over_that_fails_does_not_reach_the_client(tmp_path: Path) -> None:
    async with house(tmp_path) as rooms:

        def fails(*_: object) -> None:
            raise RuntimeError("a mistake")

        rooms.dispatcher._send_on = fails
        await rooms.accept("bob@dest.test")  # must not raise: it is committed, the client hears 250
        del rooms.dispatcher._send_on
        strays = rooms.dispatcher._strays
        assert [await strays.look(), await strays.look()] == [0, 1]
        rooms.dispatcher._news.set()
        await rooms.sink.wait_for(1)


async def test_another_attempt_of_a_delivery_is_another_stray(tmp_path: Path) -> None:
    """Given back between two looks and claimed anew: nobody has seen this lease twice."""
    async with house(tmp_path, start=False) as rooms:
        await rooms.accept("bob@dest.test", in_memory=False)
        (one,) = await rooms.queue.claim_due(rooms.now(), 10)
        strays = rooms.dispatcher._strays
        assert await strays.look() == 0
        await rooms.queue.release(one, next_attempt_at=rooms.now())
        counted = update(deliveries).values(attempts=1)  # as a soft settlement has it
        await rooms.database.write(lambda conn: conn.execute(counted))
        (two,) = await rooms.queue.claim_due(rooms.now(), 10)
        assert two.attempts == 2
        assert [await strays.look(), await strays.look()] == [0, 1]
