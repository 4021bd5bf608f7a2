"""Who waits for the DNS, how many of them, and in which order they are asked."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update

from forwarder.mail.event import DeliveryKind
from forwarder.mail.outcome import Fault, reply_for
from forwarder.outbound import lookups as lookups_room
from forwarder.outbound.lookups import Lookups
from forwarder.outbound.parcel import Job
from forwarder.outbound.route import NoRoute, Route, Router
from forwarder.store.queue import Queue
from forwarder.store.records import Delivery
from forwarder.store.tables import deliveries
from tests.outbound.house import House, OtherQueue, house
from tests.outbound.test_lanes import job
from tests.peers.webhook_server import WebhookServer

ROUTE = Route(site="mx.alive.test", hosts=(), port=25)
NOWHERE = NoRoute(reply=reply_for(Fault.DNS))


class Names:
    """A router that answers when it is told to, and the look-ups that ask it."""

    def __init__(self, window: int) -> None:
        self.asked: list[str] = []
        self.said: list[tuple[str, Route | NoRoute]] = []  # of which domain, and what
        self._answers: dict[str, asyncio.Future[Route | NoRoute]] = {}
        self.lookups = Lookups(cast(Router, self), window=window, found=self._found, failed=self._failed)

    async def route(self, domain: str) -> Route | NoRoute:
        self.asked.append(domain)
        return await self._answers.setdefault(domain, asyncio.get_running_loop().create_future())

    async def ask(self, *domains: str, attempts: int = 1, count: int = 1) -> None:
        for domain in domains:
            one = job(f"to {domain}", count)
            one.deliveries = [
                replace(d, attempts=attempts, destination_domain=domain) for d in one.deliveries
            ]
            self.lookups.ask(domain, one)
        await asyncio.sleep(0)  # the look-ups begin

    async def answer(self, domain: str, answer: Route | NoRoute) -> None:
        future = self._answers.pop(domain)
        future.set_result(answer)
        for _ in range(3):  # it is heard, told, and the next one is asked
            await asyncio.sleep(0)

    def _found(self, domain: str, route: Route, jobs: Sequence[Job]) -> None:
        self.said += [(domain, route) for _ in jobs]

    async def _failed(self, found: NoRoute, jobs: Sequence[Job]) -> None:
        self.said += [(one.deliveries[0].destination_domain, found) for one in jobs]


@asynccontextmanager
async def names(window: int = 2000) -> AsyncIterator[Names]:
    made = Names(window)
    try:
        yield made
    finally:
        await made.lookups.close()


def silent(count: int, kind: str = "silent") -> list[str]:
    return [f"{kind}{number}.test" for number in range(count)]


async def test_each_standing_leaves_slots_to_the_better_ones() -> None:
    async with names() as dns:
        await dns.ask("known.test")
        await dns.answer("known.test", ROUTE)
        dns.lookups._known["known.test"] = (ROUTE, 0.0)  # not fresh any more
        dns.asked.clear()
        await dns.ask(*silent(200, "late"), attempts=2)
        assert dns.asked == silent(64, "late")
        await dns.ask(*silent(200, "new"))
        assert dns.asked[64:] == silent(16, "new")
        await dns.ask("known.test")
        assert dns.asked[80:] == ["known.test"]
        await dns.answer("known.test", ROUTE)
        assert len(dns.asked) == 81  # its slot was no new one's
        await dns.answer("late0.test", NOWHERE)
        assert dns.asked[81:] == ["new16.test"]


async def test_a_first_attempt_moves_its_domain_forward_in_the_line() -> None:
    async with names() as dns:
        await dns.ask(*silent(70), attempts=2)
        await dns.ask("silent69.test")
        assert dns.asked[64:] == ["silent69.test"]
        assert dns.lookups.waiting == 71
        await dns.answer("silent69.test", ROUTE)
        assert dns.said == [("silent69.test", ROUTE)] * 2
        for domain in silent(10):
            await dns.answer(domain, ROUTE)
        assert dns.asked[65:] == [
            f"silent{number}.test" for number in range(64, 69)
        ]  # nobody is asked for twice
        assert dns.lookups.waiting == 59


async def test_what_waits_has_a_share_of_the_window_by_standing() -> None:
    async with names(window=40) as dns:
        await dns.ask("known.test")
        await dns.answer("known.test", ROUTE)
        dns.lookups._known["known.test"] = (ROUTE, 0.0)
        for waiting, late, new, known in (
            (9, True, True, True),
            (10, False, True, True),
            (19, False, True, True),
        ):
            await dns.ask("big.test", count=waiting - dns.lookups.waiting)
            assert dns.lookups.has_room("late.test", 2) is late
            assert dns.lookups.has_room("new.test", 1) is new
            assert dns.lookups.has_room("known.test", 2) is known
        assert not dns.lookups.has_room("new.test", 1, beside=1)
        await dns.ask("big.test", count=11)
        assert dns.lookups.waiting == 30
        assert not dns.lookups.has_room("known.test", 1)


async def test_that_there_is_no_route_is_remembered_for_a_moment() -> None:
    async with names() as dns:
        await dns.ask(*silent(64), attempts=2)
        await dns.answer("silent0.test", NOWHERE)
        await dns.ask("silent0.test", attempts=2)  # answered out of memory, past those who wait for a slot
        for _ in range(3):
            await asyncio.sleep(0)
        assert dns.said == [("silent0.test", NOWHERE)] * 2
        assert dns.asked == silent(64)
        dns.lookups._absent["silent0.test"] = (NOWHERE, 0.0)  # the moment is over
        await dns.ask("silent0.test")
        assert dns.asked[64:] == ["silent0.test"]
        assert not dns.lookups.has_room(
            "silent0.test", 1, beside=499 - dns.lookups.waiting + 1
        )  # a doubtful one


async def test_a_look_up_that_fails_is_temporary_and_holds_up_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path) as rooms:
        router = rooms.dispatcher._lookups._router
        right = router.route

        async def fails(domain: str) -> Route | NoRoute:
            router.route = right
            raise RuntimeError("a mistake")

        router.route = fails
        (delivery,) = await rooms.accept("bob@dest.test")
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        rooms.dispatcher._lookups._absent.clear()  # the moment is over
        assert events[1][2].startswith("4.3.0")
        assert "mistake" not in events[1][2]
        assert "a look-up of a route failed" in capsys.readouterr().out
        await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        await rooms.until(lambda: not rooms.dispatcher.holding())
        assert (rooms.dispatcher.load().leased, rooms.dispatcher.load().looking_up) == (0, 0)


async def test_a_route_that_is_not_taken_leaves_the_other_domains_their_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(tmp_path) as rooms:
        lookups = rooms.dispatcher._lookups
        right = lookups._found

        def fails(*_: object) -> None:
            lookups._found = right
            raise RuntimeError("a mistake")

        lookups._found = fails
        rooms.dns.mail_host("late.test", rooms.sink.host)
        # One worker asks for both, one after the other.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lookups_room, "_SLOTS", dict.fromkeys(lookups_room.Standing, 1))
            await rooms.accept("bob@dest.test")
            (second,) = await rooms.accept("bob@late.test")
            await rooms.until_statuses(second, "QUEUED", "DELIVERED")
        assert "a route was not taken" in capsys.readouterr().out


class Counted(OtherQueue):
    """It counts its claims."""

    def __init__(self, real: Queue) -> None:
        super().__init__(real)
        self.claims = 0

    async def claim_due(self, *arguments: Any) -> list[Delivery]:
        self.claims += 1
        return await self.real.claim_due(*arguments)


async def delivered(rooms: House, address: str, *, in_memory: bool = True) -> None:
    (delivery,) = await rooms.accept(address, in_memory=in_memory)
    await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


async def test_domains_whose_name_servers_are_silent_hold_up_nobody_else(tmp_path: Path) -> None:
    queues: list[Counted] = []

    def counted(queue: Queue) -> Counted:
        queues.append(Counted(queue))
        return queues[0]

    async with house(tmp_path, outbound={"window": 40}, start=False, queue=counted) as rooms:
        rooms.resolver._deadline = timedelta(minutes=5)  # no look-up ends while this test lasts
        rooms.dns.mail_host("new.test", rooms.sink.host)
        for domain in silent(60):
            rooms.dns.fault(domain, "timeout")
            await rooms.accept(f"bob@{domain}", in_memory=False)
        await rooms.database.write(lambda conn: conn.execute(update(deliveries).values(attempts=1)) and None)
        began = asyncio.get_running_loop().time()
        await rooms.start()
        await rooms.until(lambda: rooms.dispatcher.load().looking_up == 10)  # a quarter of the window
        await delivered(rooms, "bob@dest.test")
        await delivered(rooms, "bob@dest.test")
        await delivered(rooms, "bob@new.test", in_memory=False)  # due behind all the others
        took = asyncio.get_running_loop().time() - began
        assert queues[0].claims <= 3 + took
        await rooms.until(lambda: rooms.dispatcher.load().leased == 10)
        rows = await rooms.waiting()
        soon = rooms.now() + timedelta(seconds=40)
        returned = [
            row for row in rows if row.state == "queued" and row.attempts == 1 and row.next_attempt_at > soon
        ]
        assert (len(rows), len(returned)) == (60, 50)


async def tried_before(rooms: House, *addresses: str) -> None:
    """Mail to these is due, all at once, after an attempt that failed."""
    for address in addresses:
        await rooms.accept(address, in_memory=False, due=timedelta(hours=1))
    fresh = deliveries.c.attempts == 0

    async def is_queued() -> bool:  # and not ours until its COMMIT is known to be answered
        return {row.state for row in await rooms.waiting() if not row.attempts} == {"queued"}

    await rooms.until(is_queued)
    again = update(deliveries).where(fresh).values(attempts=1, next_attempt_at=rooms.now())
    await rooms.database.write(lambda conn: conn.execute(again) and None)


async def test_what_waits_for_the_dns_is_left_out_of_claims_and_stays_due(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"window": 40}, start=False) as rooms:
        rooms.resolver._deadline = timedelta(minutes=5)  # no look-up ends while this test lasts
        rooms.dns.fault("silent.test", "timeout")
        await tried_before(rooms, *(f"user{number}@silent.test" for number in range(30)))
        await rooms.start()
        await rooms.until(lambda: rooms.dispatcher.load().looking_up == 10)  # a quarter of the window
        await delivered(
            rooms, "bob@dest.test", in_memory=False
        )  # due behind the others, and claimed after them
        left = [row for row in await rooms.waiting() if row.state == "queued"]
        assert len(left) == 20
        assert max(row.next_attempt_at for row in left) <= rooms.now()


async def test_claims_of_what_nobody_can_be_asked_for_are_a_second_apart(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"window": 40}, start=False) as rooms:
        rooms.resolver._deadline = timedelta(minutes=5)  # no look-up ends while this test lasts
        for domain in silent(100):
            rooms.dns.fault(domain, "timeout")
        await tried_before(rooms, *(f"bob@{domain}" for domain in silent(100)))
        soon = rooms.now() + timedelta(seconds=40)
        began = asyncio.get_running_loop().time()
        await rooms.start()

        async def are_all_back() -> bool:
            rows = [row for row in await rooms.waiting() if row.state == "queued"]
            return len(rows) == 90 and all(row.next_attempt_at > soon for row in rows)

        await rooms.until(are_all_back)
        # Ten that are asked for at once; then three claims, each of the thirty places that are left.
        assert asyncio.get_running_loop().time() - began > 2.9


async def test_a_claim_takes_no_more_unknown_domains_than_there_is_room_for(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"window": 40}, start=False) as rooms:
        rooms.resolver._deadline = timedelta(minutes=5)  # no look-up ends while this test lasts

        few, many = silent(7), silent(20, "more")
        for domain in (*few, *many):
            rooms.dns.fault(domain, "timeout")
        await tried_before(rooms, *(f"bob@{domain}" for domain in few))
        await rooms.start()
        await rooms.until(lambda: rooms.dispatcher.load().looking_up == 7)
        soon = rooms.now() + timedelta(seconds=40)
        await tried_before(rooms, *(f"bob@{domain}" for domain in many))

        async def put_off() -> int:
            return sum(
                row.attempts == 1 and row.next_attempt_at > soon
                for row in await rooms.waiting()
                if row.state == "queued"
            )

        async def is_all_told() -> bool:
            return rooms.dispatcher.load().looking_up + await put_off() == 27

        await rooms.until(is_all_told)
        assert rooms.dispatcher.load().looking_up == 10  # a quarter of the window


async def test_who_needs_no_look_up_is_not_put_off_for_those_who_wait_for_one(tmp_path: Path) -> None:
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        await delivered(rooms, "bob@dest.test")  # its route is known now
        lookups = rooms.dispatcher._lookups
        lookups.waiting_for = lambda _domain: 2000
        assert (rooms.dispatcher.lease("dest.test"), rooms.dispatcher.lease("origin.test")) == (True, False)
        del lookups.waiting_for
        assert rooms.dispatcher.lease("origin.test")
        lookups.has_room = lambda *_, **__: False
        assert (rooms.dispatcher.lease("dest.test"), rooms.dispatcher.lease("origin.test")) == (True, False)
        await delivered(rooms, "bob@dest.test", in_memory=False)
        (posted,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK, in_memory=False)
        await rooms.until_statuses(posted, "QUEUED", "DELIVERED")
        (unknown,) = await rooms.accept("bob@origin.test", in_memory=False)
        soon = rooms.now() + timedelta(seconds=40)

        async def is_put_off() -> bool:
            return [(row.state, row.next_attempt_at > soon) for row in await rooms.waiting()] == [
                ("queued", True)
            ]

        await rooms.until(is_put_off)
        assert await rooms.statuses(unknown) == ["QUEUED"]
