"""The API's listener before a request can be judged: heads too large, too slow, or no HTTP at all."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forwarder import web_protocol
from forwarder.config import HostPort
from forwarder.web import WebServer


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(f"{scope['path']} {len(body)}")(scope, receive, send)


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    made = WebServer(echo, listen=HostPort("127.0.0.1", 0), trusted_proxies=())
    await made.start()
    yield made
    await made.stop()


async def exchange(server: WebServer, *parts: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass  # it has heard enough; what it said is read below
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def refusal(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split(b" ")[1]), json.loads(body)


@pytest.mark.parametrize(
    "request_text",
    [
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xd9\xa3 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_cannot_be_read_is_400_in_json(server: WebServer, request_text: bytes) -> None:
    status, body = refusal(await exchange(server, request_text))
    assert (status, body["success"], body["code"]) == (400, False, 400)
    assert body["error"]


async def test_a_head_without_end_is_refused_while_it_comes(server: WebServer) -> None:
    start = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: "
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(start)
    sent = 0
    async with asyncio.timeout(10):
        answer = asyncio.create_task(reader.read())
        while not answer.done() and sent < 2_000_000:
            writer.write(b"a" * 8192)
            sent += 8192
            await asyncio.wait({answer}, timeout=0.01)
        status, body = refusal(await answer)
    writer.close()
    assert (status, body["code"]) == (431, 431)
    assert sent < 1_000_000


async def test_a_trailer_without_end_is_refused_too(server: WebServer) -> None:
    start = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Long: "
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(start)
    async with asyncio.timeout(10):
        answer = asyncio.create_task(reader.read())
        for _ in range(250):
            if answer.done():
                break
            writer.write(b"a" * 8192)
            await asyncio.wait({answer}, timeout=0.01)
        status, _ = refusal(await answer)
    writer.close()
    assert status == 431


async def test_bodies_and_pipelined_requests_are_not_counted_as_head(server: WebServer) -> None:
    close = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    size = 3 << 20
    post = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    chunked = b"POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    many = b"GET /one HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000 + b"\r\n\r\n"
    answer = await exchange(server, post, chunked, many * 300, close)
    assert answer.count(b"HTTP/1.1 200") == 303
    assert b"/body %d" % size in answer
    assert b"/chunks 50000" in answer


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_who_does_not_come_to_the_point_is_sent_away(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(web_protocol, "PATIENCE", 0.2)
    status, body = refusal(await exchange(server, start))
    assert (status, body["code"]) == (408, 408)


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without having asked for the body."""
    await Response("no")(scope, receive, send)


async def test_who_was_answered_before_the_body_came_cannot_stay_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_protocol, "PATIENCE", 0.2)
    server = WebServer(early, listen=HostPort("127.0.0.1", 0), trusted_proxies=())
    await server.start()
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\nno")).startswith(b"HTTP/1.1 200")
    writer.write(b"late")  # ends the time of an idle connection, and its rest never comes
    async with asyncio.timeout(10):
        assert refusal(await reader.read())[0] == 408
    writer.close()
    await server.stop()


async def test_who_was_answered_cannot_stay_for_ever_by_an_empty_line(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_protocol, "PATIENCE", 0.2)
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"/ 0")).startswith(b"HTTP/1.1 200")
    writer.write(
        b"\r\n"
    )  # no request has begun, and yet the time of an idle connection does not run any more
    async with asyncio.timeout(10):
        status, _ = refusal(await reader.read())
    writer.close()
    assert status == 408
