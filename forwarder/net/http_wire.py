"""The octets of HTTP: a little at a time, and of answers not without end.

Whoever writes a URL also answers there. What comes is parsed in Python, an event for each informational answer and for
each chunk, and all that has been read at once is parsed before anybody else has a turn; an answer may be preceded by
informational ones for ever, and a chunk may be one octet with a long extension. So no more than SLICE octets are read
at once, others have their turn before each, and after MOST of a connection it is over.

Nor does it have to read: what is written goes in pieces, each when there is room for it. Given as a whole, a message
would lie in memory once for each of a hundred connections.

Loaded with httpx, at its first use.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

SLICE = 4 << 10  # octets: as many of the shortest answers take some 5 ms
MOST = 128 << 10  # octets: twice the largest page that anybody asks for
PIECE = 64 << 10  # octets


class Stream(httpcore.AsyncNetworkStream):
    """One connection."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MOST

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(0)  # within TLS what is there already comes without
        octets = await self._stream.read(min(max_bytes, SLICE), timeout)
        self._left -= len(octets)
        if self._left < 0:
            raise httpcore.ReadError(f"it said more than {MOST >> 10} KiB")
        return octets

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Within TLS all that is given is encrypted before any of it goes out, and waits there for a slow receiver.
        for start in range(0, len(buffer), PIECE):
            await self._stream.write(buffer[start : start + PIECE], timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Backend(httpcore.AsyncNetworkBackend):
    """Opens such connections."""

    def __init__(self) -> None:
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return Stream(await self._network.connect_tcp(host, port, timeout, local_address, socket_options))
