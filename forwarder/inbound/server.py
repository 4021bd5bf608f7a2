"""The listeners: sockets, the sessions that live on them, and how they end.

``Server`` opens every listen address in the running loop (no thread and no loop of its own, unlike aiosmtpd's
Controller) with SO_REUSEPORT, so that several worker processes share a port and the kernel spreads connections. Where
TLS begins with the first byte (``tls_door``), who never finishes the handshake holds a place as well.

It ends in three steps: the sockets close; sessions that wait for a command are told 421 4.3.2 and close, a message in
flight gets its real answer first; what is left when the grace is over is told 421 and cut off. A message whose
commit has begun then is still committed: the sender that missed the 250 sends again, which RFC 1047 prefers to a loss.
"""

import asyncio
import socket
from collections.abc import Sequence
from datetime import timedelta

import structlog

from forwarder.config import HostPort, MxSection, SubmissionSection
from forwarder.inbound.connection import Connection
from forwarder.inbound.data import Memory
from forwarder.inbound.dialogue import Dialogue
from forwarder.inbound.limits import Allowance, ClientTable, Doorkeeper, table_path
from forwarder.inbound.reception import Desk, Reception
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.tls_door import TlsDoor
from forwarder.net.listening import bound_socket, descriptors_of

BACKLOG = 1024
MESSAGES_HELD = 16  # of the largest size, while they are read and stored, per service and process
FAREWELL_SECONDS = 1.0  # for the 421 of sessions that the grace did not suffice for
COMMIT_SECONDS = 10.0  # how long a session that was cut off may still need to commit

log = structlog.get_logger(__name__)


class Server:
    """One service (MX or submission) on one or several addresses."""

    def __init__(
        self,
        *,
        name: str,
        clients: str,
        listen: Sequence[HostPort],
        bounds: MxSection | SubmissionSection,
        rooms: InboundRooms,
        reception: Reception,
        normalize: bool,
        line_limit: int,
        implicit_tls: bool = False,
    ) -> None:
        """``clients``: the service with which this one counts its clients (``limits.table_path``)."""
        self.name = name
        self.addresses: list[tuple[str, int]] = []  # what is really listened on, once started
        self._clients = clients
        self._listen = tuple(listen)
        self._bounds = bounds
        self._rooms = rooms
        self._reception = reception
        self._normalize = normalize
        self._line_limit = line_limit
        self._implicit_tls = implicit_tls
        self._desk: Desk | None = None
        self._sessions: set[Connection] = set()
        self._servers: list[asyncio.Server | TlsDoor] = []
        self._closing: list[TlsDoor] = []

    @property
    def sessions(self) -> int:
        """How many are open now."""
        return len(self._sessions)

    async def start(self) -> None:
        """Open the sockets; OSError names the address that cannot be had."""
        loop = asyncio.get_running_loop()
        desk = self._desk = self._make_desk(loop)
        try:
            for endpoint in self._listen:
                listener = bound_socket(endpoint)
                await self._open(loop, listener, desk)
                self.addresses.append(listener.getsockname()[:2])
        except BaseException:
            self.stop_accepting()
            raise

    async def _open(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, desk: Desk) -> None:
        if self._implicit_tls:
            door = TlsDoor(listener, desk, lambda place: Dialogue(desk, self._sessions, place), BACKLOG)
            self._servers.append(door)
            return
        for descriptor in descriptors_of(listener):
            self._servers.append(
                await loop.create_server(
                    lambda: Dialogue(desk, self._sessions), sock=descriptor, backlog=BACKLOG
                )
            )

    def stop_accepting(self) -> None:
        """Close the listening sockets; sessions are told 421 4.3.2 where they next wait for a command."""
        if self._desk is not None:
            self._desk.stopping = True
        for server in self._servers:
            server.close()
            if isinstance(server, TlsDoor):
                self._closing.append(server)
        self._servers.clear()
        for session in self._sessions:
            session.stop()

    async def drain(self, grace: timedelta) -> None:
        """Stop accepting, let mail in flight have its real answer, cut off what is left after the grace."""
        self.stop_accepting()
        for door in self._closing:
            await door.wait_closed()
        await self._ended(grace.total_seconds())
        if self._sessions:
            log.warning("sessions were cut off", service=self.name, sessions=len(self._sessions))
            for session in list(self._sessions):
                session.cut_off()
            await self._ended(FAREWELL_SECONDS)
            for session in list(self._sessions):
                session.abort()
            await self._ended(COMMIT_SECONDS)
        await self._reception.close()
        if self._desk is not None:
            self._desk.doorkeeper.close()
            self._desk = None

    async def _ended(self, seconds: float) -> None:
        tasks = [session.task for session in self._sessions if session.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _make_desk(self, loop: asyncio.AbstractEventLoop) -> Desk:
        rooms, settings, bounds = self._rooms, self._rooms.settings, self._bounds
        path = table_path(settings.data_dir, self._clients)
        table = ClientTable(path, region=rooms.region, regions=rooms.regions)
        allowance = Allowance(
            in_all=bounds.connections,
            per_client=bounds.connections_per_client,
            per_minute=bounds.connections_per_minute,
        )
        return Desk(
            name=self.name,
            hostname=settings.hostname,
            bounds=bounds,
            normalize=self._normalize,
            reception=self._reception,
            doorkeeper=Doorkeeper(table, allowance, seconds=lambda: rooms.clock().timestamp()),
            tls=rooms.tls,
            memory=Memory(MESSAGES_HELD * bounds.size_limit),
            loop=loop,
            line_limit=self._line_limit,
            tally=rooms.tally,
        )
