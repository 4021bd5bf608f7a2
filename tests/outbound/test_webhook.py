"""Webhooks over real HTTP: success, repetition, refusal, signature."""

import asyncio
import hashlib
import hmac
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.mail.address import parse_address
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.net.http import Blocked, Unreachable
from forwarder.outbound import webhook as webhook_room
from forwarder.outbound.payload import MessageJson
from forwarder.outbound.webhook import signature
from tests.free_ports import free_port
from tests.outbound.house import CONTENT, house
from tests.peers.webhook_server import WebhookServer


async def test_a_message_is_posted_as_json(tmp_path: Path) -> None:
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        (delivery,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK)
        events = await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert events[-1][1:] == (250, "2.0.0 HTTP 200")
        (request,) = hooks.requests
        assert request.headers["content-type"] == "application/json"
        assert request.headers["x-webhook-id"] == delivery
        body = request.json
        assert body["from"] == {"name": "Ann", "email": "ann@origin.test"}
        assert body["to"] == [{"name": "", "email": "alias@hosted.test"}]
        assert body["subject"] == "hello"
        assert body["message-id"] == "<1@origin.test>"
        assert body["return-path"] == {"name": "", "email": "ann@origin.test"}
        assert body["text"] == "line one\r\n.dot\r\n\r\nlast line\r\n"
        assert body["html"] is None
        assert body["attachments"] == body["inlines"] == []
        assert await rooms.counts() == (0, 0)


async def test_posts_of_one_message_say_which_recipient_each_is_for(tmp_path: Path) -> None:
    """Two aliases that lead to one URL; and nothing else in a message says whom a copy in Bcc came for."""
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        message = rooms.message(hooks.url, hooks.url, kind=DeliveryKind.WEBHOOK)
        first, second = message.deliveries
        second = replace(second, recipient=parse_address("hidden@hosted.test"))
        message = replace(message, deliveries=(first, second))
        await rooms.queue.enqueue(message)
        rooms.dispatcher.hand_over(message)
        for delivery in message.deliveries:
            await rooms.until_statuses(delivery.id, "QUEUED", "DELIVERED")
        told = {request.headers["x-webhook-id"]: request.json["headers"] for request in hooks.requests}
        assert told[first.id]["Delivered-To"] == "alias@hosted.test"
        assert told[second.id]["Delivered-To"] == "hidden@hosted.test"


async def test_three_attempts_in_a_row_then_the_schedule(tmp_path: Path) -> None:
    async with WebhookServer() as hooks, house(tmp_path, retry={"delays": ["200ms"]}) as rooms:
        for _ in range(3):
            hooks.answer(500, body=b"not today")
        (delivery,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK)
        events = await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE", "DELIVERED")
        assert len(hooks.requests) == 4
        assert "HTTP 500" in events[1][2]
        assert "not today" in events[1][2]


@pytest.mark.parametrize("status", [300, 302, 400, 404, 410, 429, 503])
async def test_no_status_but_2xx_loses_or_ends_a_message(tmp_path: Path, status: int) -> None:
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        hooks.default_status = status
        (delivery,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK)
        await rooms.until_statuses(delivery, "QUEUED", "SOFT-BOUNCE")
        (row,) = await rooms.waiting()
        assert row.state == "queued"
        assert len(hooks.requests) == 3


async def test_a_private_address_is_blocked_for_good(tmp_path: Path) -> None:
    outbound = {"allow_private_destinations": False}
    async with WebhookServer() as hooks, house(tmp_path, outbound=outbound) as rooms:
        (delivery,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK)
        events = await rooms.until_statuses(delivery, "QUEUED", "HARD-BOUNCE")
        assert events[-1][2].startswith("5.7.1 blocked: ")
        assert hooks.connections == 0
        assert len(await rooms.reports()) == 1  # the sender is told that the mail did not arrive


async def test_what_cannot_be_reached_is_tried_three_times_with_pauses_and_what_is_blocked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(webhook_room, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    async with house(tmp_path) as rooms:
        asked: list[Exception] = [Unreachable("nobody listens")] * 3 + [Blocked("it leads inside")]
        left = asked.copy()

        async def post(*_: object) -> None:
            raise left.pop(0)

        rooms.client.post = post
        (unreachable,) = await rooms.accept("https://away.test/hook", kind=DeliveryKind.WEBHOOK)
        events = await rooms.until_statuses(unreachable, "QUEUED", "SOFT-BOUNCE")
        assert events[1][1:] == (451, "4.4.1 nobody listens")
        assert (len(left), pauses) == (1, [0.0, 0.0])
        (blocked,) = await rooms.accept("https://inside.test/hook", kind=DeliveryKind.WEBHOOK)
        await rooms.until_statuses(blocked, "QUEUED", "HARD-BOUNCE")
        assert (len(left), len(pauses)) == (0, 2)


async def test_a_host_that_cannot_be_reached_is_left_alone_and_one_that_answers_is_not(
    tmp_path: Path,
) -> None:
    async with WebhookServer() as hooks, house(tmp_path, retry={"delays": ["10m"]}) as rooms:
        hooks.default_status = 503
        dead = free_port()
        for _ in range(4):
            (answered,) = await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK)
            events = await rooms.until_statuses(answered, "QUEUED", "SOFT-BOUNCE")
            assert events[1][2].startswith("4.4.0 HTTP 503")
        assert rooms.dispatcher.load().suspended == 0
        rooms.dispatcher.lease = lambda domain: True
        for _ in range(3):
            (unreachable,) = await rooms.accept(f"https://127.0.0.2:{dead}/x", kind=DeliveryKind.WEBHOOK)
            await rooms.until_statuses(unreachable, "QUEUED", "SOFT-BOUNCE")
        assert rooms.dispatcher.load().suspended == 1
        (late,) = await rooms.accept(f"https://127.0.0.2:{dead}/x", kind=DeliveryKind.WEBHOOK)
        events = await rooms.until_statuses(late, "QUEUED", "SOFT-BOUNCE")
        assert "not being tried" in events[1][2]


async def test_a_post_for_a_domain_is_signed(tmp_path: Path) -> None:
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        rooms.webhook_keys[7] = "the key of the domain"
        await rooms.accept(hooks.url, kind=DeliveryKind.WEBHOOK, domain_id=7)
        (request,) = await hooks.wait_for(1)
        seconds, v1 = request.headers["x-webhook-signature"].removeprefix("t=").split(",v1=")
        made = hmac.new(b"the key of the domain", seconds.encode() + b"." + request.body, hashlib.sha256)
        assert v1 == made.hexdigest()
        assert abs(int(seconds) - datetime.now(UTC).timestamp()) < 60


async def test_a_message_is_made_json_once_for_all_that_post_it_and_signed_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[MessageJson] = []
    signed: list[tuple[int, bool]] = []
    make, sign = webhook_room.message_json, webhook_room.signature

    def watched_make(content: bytes, **more: Any) -> MessageJson:
        made.append(make(content, **more))
        return made[-1]

    def watched_sign(key: str, body: Sequence[bytes], now: datetime) -> str:
        signed.append((sum(map(len, body)), threading.current_thread() is threading.main_thread()))
        return sign(key, body, now)

    monkeypatch.setattr(webhook_room, "message_json", watched_make)
    monkeypatch.setattr(webhook_room, "signature", watched_sign)
    large = CONTENT + b"x" * 990 + b"\r\n" + b"y\r\n" * 30_000
    async with house(tmp_path) as rooms:
        rooms.webhook_keys[7] = "the key of the domain"
        posted: list[Sequence[bytes]] = []
        all_there = asyncio.Event()

        async def post(url: str, body: Sequence[bytes], *_: object) -> tuple[int, str]:
            posted.append(body)
            if len(posted) == 3:
                all_there.set()
            await all_there.wait()
            return 200, ""

        rooms.client.post = post
        urls = [f"https://h{number}.test/" for number in range(3)]
        deliveries = await rooms.accept(*urls, kind=DeliveryKind.WEBHOOK, domain_id=7, content=large)
        for delivery in deliveries:
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        (shared,) = made
        assert all(after is shared.after for _, after in posted)
        assert signed == [(len(before) + len(after), False) for before, after in posted]
        (delivery,) = await rooms.accept(urls[0], kind=DeliveryKind.WEBHOOK, domain_id=7)
        await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")
        assert len(made) == 2
        assert signed[3:] == [(sum(map(len, posted[3])), True)]


async def test_messages_of_one_domain_do_not_fill_the_memory_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = CONTENT + b"\x01\r\n" * 50_000
    monkeypatch.setattr(webhook_room, "BODIES", 15 * len(large))  # two and a half, each six times as large
    async with house(tmp_path) as rooms:
        under_way: list[str] = []
        most: list[str] = []
        go_on = asyncio.Event()

        async def post(url: str, body: bytes, *_: object) -> tuple[int, str]:
            under_way.append(url)
            most.append(" ".join(sorted(under_way)))
            if "other" in url:
                go_on.set()
            await go_on.wait()
            under_way.remove(url)
            return 200, ""

        rooms.client.post = post
        waiting = []
        for number in range(4):
            urls = [f"https://h{number}.test/{path}" for path in "ab"]  # what is made once counts once
            waiting += await rooms.accept(*urls, kind=DeliveryKind.WEBHOOK, domain_id=7, content=large)
        small = await rooms.accept("https://h9.test/", kind=DeliveryKind.WEBHOOK, domain_id=7)
        await rooms.until(lambda: len(most) == 3)
        assert most[-1].split() == ["https://h0.test/a", "https://h0.test/b", "https://h9.test/"]
        other = await rooms.accept(
            "https://other.test/", kind=DeliveryKind.WEBHOOK, domain_id=8, content=large
        )
        for delivery in (*waiting, *small, *other):
            await rooms.until_statuses(delivery, "QUEUED", "DELIVERED")


async def test_a_message_that_finds_no_room_as_json_is_tried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = CONTENT + b"\x01\r\n" * 50_000
    monkeypatch.setattr(webhook_room, "BODIES", len(large))
    async with house(tmp_path, outbound={"webhook_timeout": "50ms"}) as rooms:
        posted: list[str] = []
        go_on = asyncio.Event()

        async def post(url: str, body: bytes, *_: object) -> tuple[int, str]:
            posted.append(url)
            await go_on.wait()
            return 200, ""

        rooms.client.post = post
        (first,) = await rooms.accept(
            "https://h1.test/", kind=DeliveryKind.WEBHOOK, domain_id=7, content=large
        )
        await rooms.until(lambda: posted)
        (second,) = await rooms.accept(
            "https://h2.test/", kind=DeliveryKind.WEBHOOK, domain_id=7, content=large
        )
        events = await rooms.until_statuses(second, "QUEUED", "SOFT-BOUNCE")
        assert (events[-1][1], events[-1][2][:5]) == (452, "4.3.1")
        go_on.set()
        await rooms.until_statuses(first, "QUEUED", "DELIVERED")
        assert posted == ["https://h1.test/"]


async def test_a_notification_is_posted_as_it_is_and_its_failure_makes_no_report(tmp_path: Path) -> None:
    content = b'{"event": "DELIVERED"}'
    async with WebhookServer() as hooks, house(tmp_path) as rooms:
        await rooms.accept(
            hooks.url, kind=DeliveryKind.NOTIFY, transport=Transport.REPORT, sender="", content=content
        )
        (request,) = await hooks.wait_for(1)
        assert request.body == content
        await rooms.until(lambda: rooms.dispatcher.load().leased == 0)
    (tmp_path / "second").mkdir()
    outbound = {"allow_private_destinations": False}
    async with WebhookServer() as hooks, house(tmp_path / "second", outbound=outbound) as rooms:
        await rooms.accept(
            hooks.url, kind=DeliveryKind.NOTIFY, transport=Transport.REPORT, sender="", content=content
        )
        await rooms.until(lambda: _empty(rooms))
        assert await rooms.reports() == []


async def _empty(rooms) -> bool:  # type: ignore[no-untyped-def]
    return await rooms.counts() == (0, 0)


async def test_mail_and_a_webhook_of_one_message_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with WebhookServer() as hooks, house(tmp_path, outbound={"webhook_timeout": "20s"}) as rooms:
        (hanging,) = await rooms.accept(hooks.at("/hang"), kind=DeliveryKind.WEBHOOK)
        (mail,) = await rooms.accept("bob@dest.test")
        await rooms.until_statuses(mail, "QUEUED", "DELIVERED")
        assert await rooms.statuses(hanging) == ["QUEUED"]
        assert rooms.sink.messages[0].content.endswith(CONTENT)


def test_the_signature_is_an_hmac_over_time_and_body() -> None:
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac key
    now = datetime.fromtimestamp(1_700_000_000, UTC)
    assert signature("key", (b"{", b"}"), now) == (
        "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
    )
