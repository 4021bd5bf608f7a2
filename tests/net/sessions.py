"""Sessions with the sink, and a server that says what it is told; for the tests of this folder."""

import asyncio
import contextlib
import socket
from datetime import timedelta
from typing import Any

import pytest

from forwarder.net.smtp_answers import SessionFault
from forwarder.net.smtp_client import ClientSession, Timeouts
from forwarder.net.smtp_opening import open_session
from forwarder.net.tls import TlsMode
from tests.peers.sink import Sink

SHORT = Timeouts(
    connect=timedelta(seconds=2),
    greeting=timedelta(seconds=0.3),
    command=timedelta(seconds=0.3),
    data=timedelta(seconds=0.3),
    dot=timedelta(seconds=0.3),
)
CONTENT = b"Subject: x\r\nFrom: a@example.com\r\n\r\nhello\r\n"


async def connect(sink: Sink, **arguments: Any) -> ClientSession:
    arguments = {"tls": TlsMode.OFF, "timeouts": SHORT, "hello": "mx.example.net"} | arguments
    return await open_session("mx.example.test", sink.host, sink.port, **arguments)


async def fault_of(sink: Sink, *recipients: str, **arguments: Any) -> SessionFault:
    """The fault that one message to these recipients ends in; the session is over after it."""
    session = await connect(sink, **arguments)
    with pytest.raises(SessionFault) as raised:
        await session.send("a@example.com", recipients or ("b@example.test",), CONTENT)
    assert not session.usable
    return raised.value


async def fault_of_opening(sink: Sink, **arguments: Any) -> SessionFault:
    with pytest.raises(SessionFault) as raised:
        await connect(sink, **arguments)
    await sink.wait_closed()  # nothing of ours stays open
    return raised.value


class Scripted:
    """A server that says what it is told: a greeting, then each answer once its trigger has come."""

    def __init__(self, greeting: bytes, *steps: tuple[bytes, bytes]) -> None:
        self._greeting = greeting
        self._steps = steps
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[:2]  # type: ignore[no-any-return]

    def narrow(self) -> None:
        """From the next connection on the system takes a few octets for us, so that whoever writes has to wait."""
        self._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._greeting)
        for trigger, answer in self._steps:
            seen = b""
            while trigger not in seen:
                block = await reader.read(1024)
                if not block:
                    break
                seen = seen[-16:] + block
            writer.write(answer)
        await asyncio.Event().wait()  # until the test is over
