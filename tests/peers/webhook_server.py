"""A recording HTTP server on raw streams; it plays the receiver of webhooks.

``async with WebhookServer() as hooks:`` listens on ``hooks.url`` (ephemeral, loopback). Requests are in
``hooks.requests``. ``hooks.answer(status, …)`` sets the next answers, ``hooks.pages[path]`` all those of a path;
a path ``/status/503`` answers 503 by itself, ``/redirect?to=URL`` answers 302, ``/hang`` never answers, ``/drop``
closes, ``/endless`` answers 64 MiB.
"""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it arrived; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebhookServer:
    """See the module; with ``tls`` the URL is https."""

    def __init__(self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.port = 0
        self.requests: list[Request] = []
        self.connections = 0
        self.default_status = 200
        # Status, header fields and body by path.
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self._tls = tls
        self._answers: deque[tuple[int, dict[str, str], bytes]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}/hook"

    def at(self, target: str) -> str:
        """The URL of another target, for example ``/status/503``."""
        return self.url.removesuffix("/hook") + target

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Queue one answer; when the queue is empty ``default_status`` is given."""
        self._answers.append((status, headers or {}, body))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def wait_until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"after {timeout} s: {len(self.requests)} requests") from None

    async def wait_for(self, count: int, timeout: float = 10) -> list[Request]:
        """Until that many requests have arrived in all."""
        await self.wait_until(lambda: len(self.requests) >= count, timeout)
        return self.requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._changed.set()
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                self._changed.set()
                if not await self._reply(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self._changed.set()  # the client went away, or the test is over
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            self._tasks.discard(task)

    async def _reply(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        target = urlsplit(request.target)
        status, headers, body = self.default_status, dict[str, str](), b""
        if self._answers:
            status, headers, body = self._answers.popleft()
        elif target.path in self.pages:
            status, headers, body = self.pages[target.path]
        elif target.path.startswith("/status/"):
            status = int(target.path.removeprefix("/status/"))
        elif target.path == "/redirect":
            status, headers = 302, {"Location": parse_qs(target.query)["to"][0]}
        elif target.path == "/drop":
            return False
        elif target.path == "/hang":
            await reader.read()
            return False
        elif target.path == "/endless":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
            for _ in range(1024):
                if writer.transport.is_closing():  # the client is gone; uvloop would raise RuntimeError
                    return False
                writer.write(b"x" * 65_536)
                await writer.drain()
            return False
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status} Said\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return request.headers.get("connection", "").lower() != "close"


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, target=target, headers=headers, body=body)
