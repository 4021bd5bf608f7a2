"""How the API's listener ends a connection: so that the client hears why, and nobody can make it last."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forwarder import web_protocol
from forwarder.config import HostPort
from forwarder.web import WebServer

SIZE = 4 << 20  # octets: more than sockets hold that nobody reads
LENGTH = b"Content-Length: %d\r\n" % SIZE


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without having asked for the body, as one does who knows the key to be wrong."""
    headers = {"Connection": "close"} if scope["path"] == "/close" else {}
    await Response("no", 401, headers)(scope, receive, send)


@asynccontextmanager
async def serving(*, connections: int = 100) -> AsyncIterator[WebServer]:
    server = WebServer(early, listen=HostPort("127.0.0.1", 0), connections=connections, trusted_proxies=())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + LENGTH, 401),
        (b"POST / HTTP/1.0\r\n" + LENGTH, 401),
        (b"POST /close HTTP/1.1\r\nHost: x\r\n" + LENGTH, 401),
        (b"POST / HTTP/1.1\r\n" + LENGTH, 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n", 501),
        (b"POST /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n" + LENGTH, 400),
    ],
)
async def test_who_is_answered_while_sending_may_send_all_of_it(head: bytes, status: int) -> None:
    """The answer is read first here, to know that it has been given; and everything is sent after it."""
    async with serving() as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(head + b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 %d " % status)
        for _ in range(SIZE >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
        writer.write_eof()
        writer.close()
        await writer.wait_closed()


async def test_a_head_that_is_too_long_may_be_sent_to_its_end() -> None:
    async with serving() as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (web_protocol.HEAD + web_protocol.SLICE))
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        for _ in range(SIZE >> 16):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def send_until_cut_off(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 100)
        await writer.drain()
        await asyncio.sleep(0)  # drain alone lets nobody else run


async def test_who_never_stops_sending_is_waited_for_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_protocol, "PATIENCE", 0.2)
    async with serving() as server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"POST /close HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n")
        assert re.findall(rb"HTTP/1.1 ([0-9]+)", await reader.read()) == [b"401"]
        with pytest.raises(ConnectionError):
            await send_until_cut_off(writer)


async def test_who_is_waited_for_makes_room() -> None:
    async with serving(connections=1) as server, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"POST /close HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
        second, to_second = await asyncio.open_connection(*server.addresses[0])
        to_second.write(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await second.read()).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(ConnectionError):
            await send_until_cut_off(writer)
        to_second.close()


async def test_who_is_waited_for_does_not_hold_up_the_stop() -> None:
    async with asyncio.timeout(5):
        async with serving() as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(b"POST /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        with pytest.raises(ConnectionError):
            await send_until_cut_off(writer)
