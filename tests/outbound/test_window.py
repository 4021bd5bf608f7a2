"""What a process counts as held in memory is what it holds; and a webhook's odd answer is no fault of ours."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forwarder.mail.address import parse_address
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.outbound import window as window_room
from forwarder.outbound.parcel import Parcel
from forwarder.outbound.window import Window
from forwarder.store.records import Delivery
from tests.outbound.house import OtherQueue, house

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


async def test_a_message_claimed_in_several_turns_leaves_nothing_behind(tmp_path: Path) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 1}) as rooms:
        rooms.sink.slowness = 0.2
        rooms.sink.play("mail", "slow")  # what is claimed later joins what waits
        await rooms.accept("first@dest.test")
        await rooms.accept(*(f"user{number}@dest.test" for number in range(600)), in_memory=False)
        await rooms.sink.wait_for(7)

        async def empty() -> bool:
            return await rooms.counts() == (0, 0) and not rooms.dispatcher.holding()

        await rooms.until(empty)
        assert rooms.dispatcher._window._volume == 0


async def test_a_small_content_is_read_once_however_many_sites_it_goes_to(tmp_path: Path) -> None:
    read: list[str] = []

    class Reading(OtherQueue):
        """Its contents are read one by one, and counted."""

        async def contents(self, _ids: object) -> dict[str, bytes]:
            return {}

        async def content(self, message_id: str) -> bytes | None:
            read.append(message_id)
            return await self.real.content(message_id)

    async with house(tmp_path, outbound={"concurrency": 1}, queue=Reading) as rooms:
        ids = await rooms.accept("bob@dest.test", "ann@origin.test", in_memory=False)
        for delivery in ids:
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(read) == 1
        await rooms.until(lambda: not rooms.dispatcher.holding())
        assert rooms.dispatcher._window._volume == 0


async def test_a_message_of_which_a_part_was_claimed_already_is_handed_over_to_that_part(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, outbound={"concurrency_per_site": 1}) as rooms:
        rooms.sink.slowness = 0.5
        rooms.sink.play("mail", "slow")
        await rooms.accept("first@dest.test")
        message = rooms.message("mine@dest.test", "anybodys@dest.test")
        mine, anybodys = message.deliveries
        anybodys = replace(anybodys, leased=False, next_attempt_at=rooms.now())
        message = replace(message, deliveries=(mine, anybodys))
        hand_over = rooms.dispatcher.prepare(message)
        await rooms.queue.enqueue(message)
        rooms.dispatcher._news.set()
        await rooms.until(lambda: anybodys.id in rooms.dispatcher.holding())
        hand_over()
        arrived = (await rooms.sink.wait_for(2))[1]
        assert sorted(arrived.recipients) == [
            "anybodys@dest.test",
            "mine@dest.test",
        ]  # one message, one transaction

        async def empty() -> bool:
            return await rooms.counts() == (0, 0) and not rooms.dispatcher.holding()

        await rooms.until(empty)
        assert rooms.dispatcher._window._volume == 0


@pytest.mark.parametrize("location", [b"http://xn--a.x/", b"mailto:x", b"http://h:99999999/"])
async def test_a_redirect_to_what_is_no_url_is_trouble_of_the_receiver(
    tmp_path: Path, location: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with house(tmp_path, retry={"delays": ["10m"]}) as rooms:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            rooms.dns.set("hook.test", "A", ["127.0.0.1"])
            port = server.sockets[0].getsockname()[1]
            (delivery,) = await rooms.accept(f"http://hook.test:{port}/x", kind=DeliveryKind.WEBHOOK)
            events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
            assert events[-1][2].startswith("4.4.")  # not 4.3.0: our own trouble, with an error in the log


class Shelf:
    """A window over contents that are named by their first letter, and what was read of them."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {content[:1].decode(): content for content in contents}
        self.read: list[list[str]] = []
        self.window = Window(self._one, self._many)

    async def _one(self, message_id: str) -> bytes | None:
        self.read.append([message_id])
        return self.contents.get(message_id)

    async def _many(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        self.read.append(list(ids))
        return {id_: self.contents[id_] for id_ in ids}

    def admitted(self, name: str, *, fresh: bool = False) -> tuple[Parcel, Delivery]:
        """One delivery of it: ``fresh`` as a message that was just accepted, else as it is claimed."""
        content = self.contents[name]
        delivery = Delivery(
            id=f"delivery {name}",
            message_id=name,
            kind=DeliveryKind.SMTP,
            domain_id=7,
            alias="richard",
            recipient=parse_address("richard@example.com"),
            destination="richard@dest.test",
            destination_domain="dest.test",
            attempts=1,
            created_at=NOON,
            next_attempt_at=NOON,
            reverse_path=parse_address("ann@origin.test"),
            smtputf8=False,
            signing_domain=None,
            transport=Transport.SMTP,
            size=len(content),
        )
        parcel = Parcel.of_delivery(delivery)
        self.window.admit(parcel, [delivery], content if fresh else None)
        return parcel, delivery


async def test_contents_are_kept_and_small_ones_are_read_ahead_while_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_room, "CONTENTS", 12)
    monkeypatch.setattr(window_room, "_SMALL", 5)
    shelf = Shelf(b"aaaa", b"bbbbb", b"cccc", b"ddd", b"eeeeee", b"ffff")
    window = shelf.window
    a, of_a = shelf.admitted("a", fresh=True)
    window.admit(a, [replace(of_a, id="another")], b"aaaa")  # counted once
    claimed = {name: shelf.admitted(name) for name in "bcde"}
    await window.load([parcel for parcel, _ in claimed.values()])
    assert shelf.read == [["b", "d"]]  # 8 are left of 12: 5 and 3; e is no small one
    assert [name for name, (parcel, _) in claimed.items() if parcel.content] == ["b", "d"]
    f, _ = shelf.admitted("f", fresh=True)  # no room for it
    assert f.content is None
    assert await window.read(f) == b"ffff"
    window.let_go(claimed["b"][0], [claimed["b"][1]])
    await window.load([claimed["c"][0]])
    assert shelf.read[1:] == [["f"], ["c"]]
    assert claimed["c"][0].content == b"cccc"


async def test_what_was_let_go_while_it_was_read_is_not_kept() -> None:
    shelf = Shelf(b"aaaa", b"bbbb")
    (a, of_a), (b, of_b) = shelf.admitted("a"), shelf.admitted("b")
    async with shelf.window.content(a, "site.test") as content:
        assert content == b"aaaa"
    assert a.content == b"aaaa"
    reading = shelf.window.content(b, "site.test")
    shelf.window.let_go(b, [of_b])
    async with reading as content:
        assert content == b"bbbb"
    assert b.content is None
    shelf.window.let_go(a, [of_a])
    assert (shelf.window.parcel("a"), shelf.window._volume, shelf.window.leases) == (None, 0, {})


async def test_of_large_contents_only_so_much_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_room, "_SMALL", 3)
    monkeypatch.setattr(window_room, "LOADS", 9)
    shelf = Shelf(b"aaaaa", b"bbbbb")
    log: list[str] = []

    async def use(parcel: Parcel) -> None:
        async with shelf.window.content(parcel, parcel.message_id):
            log.append(f"{parcel.message_id} begins")
            for _ in range(3):
                await asyncio.sleep(0)
            log.append(f"{parcel.message_id} ends")

    await asyncio.gather(*(use(shelf.admitted(name)[0]) for name in "ab"))
    assert log == ["a begins", "a ends", "b begins", "b ends"]


async def test_an_attempt_that_is_over_does_not_end_the_lease_of_the_next() -> None:
    shelf = Shelf(b"aaaa")
    parcel, first = shelf.admitted("a")
    shelf.window.forget()
    assert shelf.window.ours([first]) == []
    second = replace(first, attempts=2)
    shelf.window.admit(parcel, [second], None)
    assert shelf.window.ours([first, second]) == [second]
    shelf.window.let_go(parcel, [first])
    assert shelf.window.leases == {first.id: 2}
    assert shelf.window.parcel("a") is parcel
