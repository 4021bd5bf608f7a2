"""A pooler before PostgreSQL, as far as a client can tell it from the server: a few of PgBouncer's ways.

It takes the parameters of a start that it knows, and refuses the others, or leaves them out (``lenient``); and it makes
up process ids. ``shared`` is ``pool_mode = transaction`` with so many connections to the server, given in turn; else
each client has one of its own. The server has to trust.
"""

import asyncio
import struct
from typing import Self
from urllib.parse import urlsplit

KNOWN = frozenset({"user", "database", "client_encoding", "application_name"})
SSL_REQUEST = 80877103
VERSION = 196608


class Pooler:
    """Listens on a port of 127.0.0.1 for as long as it is entered."""

    def __init__(self, url: str, *, shared: int = 0, lenient: bool = False) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self._target = parts.port
        self._credentials = {"user": parts.username or "", "database": parts.path[1:]}
        self._shared = shared
        self._lenient = lenient
        self._lost = 0  # of the shared ones
        self._free: asyncio.Queue[_Link] = asyncio.Queue()
        self._links: list[_Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://{self._credentials['user']}@127.0.0.1:{port}/{self._credentials['database']}"

    async def __aenter__(self) -> Self:
        for _ in range(self._shared):
            self._free.put_nowait(await self._link())
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            link.writer.close()

    async def _link(self) -> "_Link":
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        text = b"".join(part.encode() + b"\0" for pair in self._credentials.items() for part in pair) + b"\0"
        writer.write(struct.pack("!ii", 8 + len(text), VERSION) + text)
        link = _Link(reader, writer)
        self._links.append(link)
        while (message := await _message(reader))[:1] != b"Z":
            if message[:1] == b"S":
                link.said += message
        self._tasks.add(asyncio.create_task(link.pass_on()))
        return link

    async def _next(self) -> "_Link":
        """The connection whose turn it is; a new one in the place of a lost one only where none is free."""
        if self._free.empty() and self._lost:
            self._lost -= 1
            return await self._link()
        return await self._free.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._speak(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            start = await reader.readexactly(length - 4)
            (asked,) = struct.unpack("!i", start[:4])
            if asked == VERSION:
                break
            if asked != SSL_REQUEST:
                return  # somebody gives a statement up
            writer.write(b"N")
        unknown = set(start[4:].decode().split("\0")[:-2:2]) - KNOWN
        if unknown and not self._lenient:
            why = f"unsupported startup parameter: {min(unknown)}"
            text = b"".join(b"%b\0" % part for part in (b"SFATAL", b"C08P01", b"M" + why.encode(), b""))
            writer.write(b"E" + struct.pack("!i", 4 + len(text)) + text)
            return
        link = self._links[0] if self._shared else await self._link()
        writer.write(b"R" + struct.pack("!ii", 8, 0) + link.said)
        writer.write(b"K" + struct.pack("!iii", 12, -1, 0) + b"Z" + struct.pack("!i", 5) + b"I")
        while True:
            request = await _message(reader)
            if self._shared:
                link = await self._next()
            try:
                await self._transact(request, link, reader, writer)
            except asyncio.IncompleteReadError:
                if self._shared:  # left in the middle of a transaction
                    self._lost += 1
                    link.writer.close()
                raise
            if self._shared:
                self._free.put_nowait(link)

    @staticmethod
    async def _transact(
        request: bytes, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """From one request on until no transaction is open."""
        link.client = writer
        while True:
            link.writer.write(request)
            if request[:1] in (b"Q", b"S") and await link.ended.get() == b"I":
                return
            request = await _message(reader)


class _Link:
    """A connection to the server, and what it said of itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.said = b""
        self.client: asyncio.StreamWriter | None = None  # who hears the answers
        self.ended: asyncio.Queue[bytes] = asyncio.Queue()  # how each query or Sync left the transaction

    async def pass_on(self) -> None:
        """Task body: bring answers to the client."""
        while True:
            message = await _message(self.reader)
            if self.client is not None:
                self.client.write(message)
            if message[:1] == b"Z":
                self.ended.put_nowait(message[-1:])


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    if head[:1] == b"X":  # the client takes its leave
        raise asyncio.IncompleteReadError(head, None)
    return head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
