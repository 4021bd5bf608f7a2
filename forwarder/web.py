"""The API's listener: uvicorn in our loop, on a socket of ours, without its signal handlers.

The socket is shared among worker processes (SO_REUSEPORT). ``start`` returns when the port is open; an address that
cannot be had is an ``OSError``. ``stop`` lets requests in flight finish for up to five seconds. What may come over a
connection before its request is judged is ``web_protocol``'s.
"""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from forwarder.config import HostPort
from forwarder.net.listening import bound_socket, descriptors_of
from forwarder.web_protocol import Protocol

GRACE = 5  # seconds


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.opened = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGTERM and SIGINT are the process's, which drains the mail first."""
        yield


class WebServer:
    """One HTTP listener; at most so many ``connections`` at once, 0: any number."""

    def __init__(
        self, app: ASGIApp, *, listen: HostPort, connections: int, trusted_proxies: tuple[str, ...]
    ) -> None:
        self._listen = listen
        self.addresses: list[tuple[str, int]] = []
        self._task: asyncio.Task[None] | None = None
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies) or None,
                lifespan="off",
                timeout_graceful_shutdown=GRACE,
                limit_concurrency=connections or None,
                http=Protocol,
                ws="none",
            )
        )

    async def start(self) -> None:
        """Bind and serve; raises why it cannot."""
        opened = bound_socket(self._listen)
        self.addresses = [opened.getsockname()[:2]]
        self._task = asyncio.create_task(self._server.serve(sockets=descriptors_of(opened)), name="api")
        opening = asyncio.create_task(self._server.opened.wait())
        await asyncio.wait({opening, self._task}, return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        if self._task.done():
            await self._task  # it did not come to serve: raises why

    @property
    def alive(self) -> bool:
        """Whether it serves still."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Take no more requests; those under way have GRACE seconds to end."""
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.wait({self._task}, timeout=GRACE + 2)
            self._task.cancel()
            await asyncio.wait({self._task})
