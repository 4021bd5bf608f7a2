"""The API's listener: what a connection may cost before its request is judged, beside it, and after it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from forwarder import web_protocol
from forwarder.config import HostPort
from forwarder.web import WebServer
from forwarder.web_protocol import HEAD, SLICE


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(f"{scope['path']} {len(body)}")(scope, receive, send)


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    made = WebServer(echo, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=())
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


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
ASIDE = b"GET /aside HTTP/1.1\r\nHost: x\r\n\r\n"  # 32 octets, 20 in hexadecimal


@pytest.mark.parametrize("slice_", [1, 7, 4096])
@pytest.mark.parametrize(
    ("rest", "size"),
    [
        (b"\r\n", 0),
        (b"Content-Length: 32\r\n\r\n" + ASIDE, 32),
        (b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + ASIDE + b"\r\n0\r\n\r\n", 32),
    ],
)
async def test_a_request_that_asks_for_an_upgrade_is_one_like_others(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, slice_: int, rest: bytes, size: int
) -> None:
    monkeypatch.setattr(web_protocol, "SLICE", slice_)
    asking = b" HTTP/1.1\r\nHost: x\r\n" + UPGRADE + rest
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = await exchange(server, b"PUT /first" + asking + b"PUT /second" + asking + last)
    said = re.findall(rb"\r\n\r\n(/[a-z]+ [0-9]+)", answers)
    assert said == [b"/first %d" % size, b"/second %d" % size, b"/last 0"]


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


CHUNKS = b"\r\n\r\n1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_text", "refused"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked" + CHUNKS, 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"Transfer-Encoding: gzip, chunked" + CHUNKS, 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked" + CHUNKS, 400),
        (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked" + CHUNKS, 400),
    ],
)
async def test_a_head_that_two_may_read_in_two_ways_is_refused(
    server: WebServer, request_text: bytes, refused: int
) -> None:
    status, body = refusal(await exchange(server, request_text))
    assert (status, body["code"]) == (refused, refused)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0",
        b"GET / HTTP/1.1\r\nHost:",
        b"GET / HTTP/1.1\r\nHost: mail_1.example.net:8080",
        b"GET / HTTP/1.1\r\nHost: [::1]:8080",
        b"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked",
    ],
)
async def test_a_host_and_chunks_as_programs_send_them_are_taken(server: WebServer, head: bytes) -> None:
    end = CHUNKS if b"Chunked" in head else b"\r\n\r\n"
    answer = await exchange(server, head + b"\r\nConnection: close" + end)
    assert answer.endswith(b"/ 1" if b"Chunked" in head else b"/ 0")


@pytest.mark.parametrize(
    ("head", "first"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        (b"POST / HTTP/1.0", b"HTTP/1.1 200 OK\r\n"),
    ],
)
async def test_only_who_knows_of_them_is_told_to_go_on(server: WebServer, head: bytes, first: bytes) -> None:
    """RFC 9110 15.2: no 1xx for HTTP/1.0."""
    asking = head + b"\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    answer = await exchange(server, asking, b"{}")
    assert answer.startswith(first)
    assert answer.endswith(b"\r\n\r\n/ 2")


@pytest.mark.parametrize(
    ("next_", "refused"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"}" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),  # a body that was longer than announced
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
)
async def test_what_is_wrong_with_a_request_says_nothing_of_those_before(next_: bytes, refused: int) -> None:
    gate = Gate()
    async with serving(gate) as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        post = b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        writer.write(post + post + next_)
        for _ in range(2):
            await gate.asked.acquire()
            gate.opened.release()
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(int(re.findall(rb"content-length: ([0-9]+)", head)[0]))
        status, body = refusal(await reader.read())
        assert (status, body["code"]) == (refused, refused)
        writer.close()


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


@pytest.mark.parametrize(
    "size", [HEAD, HEAD + SLICE, HEAD + SLICE + 1000, HEAD + 2 * SLICE, HEAD + 3 * SLICE]
)
async def test_a_long_head_has_one_answer(server: WebServer, size: int) -> None:
    """Taken or refused; with both, a proxy would give the second to whoever asks next."""
    start = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: "
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    writer.write(start + b"a" * (size - len(start) - 4) + b"\r\n\r\n")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200 "):
            await reader.readexactly(int(re.findall(rb"content-length: ([0-9]+)", head)[0]))
            writer.write(b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        else:
            status, body = refusal(head + await reader.read())
            assert (status, body["code"]) == (431, 431)
    writer.close()


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
    server = WebServer(early, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=())
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


@asynccontextmanager
async def serving(app: ASGIApp, *, connections: int = 100) -> AsyncIterator[WebServer]:
    server = WebServer(app, listen=HostPort("127.0.0.1", 0), connections=connections, trusted_proxies=())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Gate:
    """An application that answers one request for each time it is opened."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.opened = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.release()
        await self.opened.acquire()
        await Response(scope["path"])(scope, receive, send)


LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_who_only_waits_makes_room_and_who_asked_stays() -> None:
    gate = Gate()
    async with serving(gate, connections=2) as server, asyncio.timeout(10):
        busy, to_busy = await asyncio.open_connection(*server.addresses[0])
        to_busy.write(LAST)
        await gate.asked.acquire()
        waiting, to_waiting = await asyncio.open_connection(*server.addresses[0])
        to_waiting.write(b"GET / HTTP/1.1\r\nHost: ")
        third, to_third = await asyncio.open_connection(*server.addresses[0])
        assert refusal(await waiting.read())[0] == 503
        to_third.write(LAST)
        await gate.asked.acquire()
        fourth, to_fourth = await asyncio.open_connection(*server.addresses[0])  # all are busy now
        assert refusal(await fourth.read())[0] == 503
        for _ in range(2):
            gate.opened.release()
        for reader in (busy, third):
            assert (await reader.read()).endswith(b"/last")
        for writer in (to_busy, to_waiting, to_third, to_fourth):
            writer.close()


async def test_requests_that_wait_for_the_answer_before_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0
    begin = web_protocol.Protocol.on_message_begin

    def counted(protocol: web_protocol.Protocol) -> None:
        nonlocal begun
        begun += 1
        begin(protocol)

    monkeypatch.setattr(web_protocol.Protocol, "on_message_begin", counted)
    gate = Gate()
    async with serving(gate) as server, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*server.addresses[0])
        shortest = b"GET / HTTP/1.1\r\nHost:\r\n\r\n"
        writer.write(shortest * 100_000)  # 2.5 MB
        for answered in range(300):
            await gate.asked.acquire()
            assert begun - answered <= 166  # of a slice, with the one that is asked and one cut in two
            gate.opened.release()
        writer.transport.abort()


LARGE = b"x" * (16 << 20)  # more than the buffers of both sides hold


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Connection": scope["path"][1:]}
    await Response(LARGE, headers=headers)(scope, receive, send)


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch, connection: bytes) -> None:
    lost = asyncio.Event()
    lose = web_protocol.Protocol.connection_lost

    def seen(protocol: web_protocol.Protocol, exc: Exception | None) -> None:
        lose(protocol, exc)
        lost.set()

    monkeypatch.setattr(web_protocol.Protocol, "connection_lost", seen)
    monkeypatch.setattr(web_protocol, "PATIENCE", 0.2)
    async with serving(large) as server, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"GET /" + connection + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        await lost.wait()
        writer.close()


async def test_who_does_not_read_makes_room_at_once() -> None:
    async with serving(large, connections=1) as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"GET /keep-alive HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        answer = await exchange(server, b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(answer) > len(LARGE)
        writer.close()


async def test_of_too_much_that_nobody_reads_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "UNREAD", 1 << 20)  # less than waits for one of them
    async with serving(large) as server, asyncio.timeout(20):
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            readers.append((reader, writer))
        taken = []
        for reader, writer in readers:
            try:
                taken.append(len(await reader.read()))
            except ConnectionError:
                taken.append(0)
            writer.close()
        assert max(taken[:2]) < len(LARGE)
        assert taken[2] == len(LARGE)


async def test_who_reads_slowly_gets_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "PATIENCE", 1.0)
    async with serving(large) as server, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        # Two and a half seconds in all, of which one would be too long in silence.
        for _ in range(16):
            await reader.readexactly(1 << 20)
            await asyncio.sleep(0.15)
        assert await reader.read() == b""
        writer.close()
