"""The door of a port where TLS begins with the first byte: who comes is counted before the handshake.

asyncio's own server calls a protocol only when the handshake is done, so that clients that never finish it would be
seen by nobody, hold a descriptor each for as long as a handshake may take, and leave none for the other ports. Here a
connection takes its place at the door first, like any other, and gives it back when the handshake fails or takes too
long. Who finds no place is closed without a word: to say it in TLS would cost more than the word is worth.

When the process has no descriptor left, accepting rests for a second.
"""

import asyncio
import socket
from collections.abc import Callable

import structlog

from forwarder.inbound.connection import Connection
from forwarder.inbound.limits import Crowded
from forwarder.inbound.reception import HANDSHAKE_SECONDS, LINGER_SECONDS, Desk

AT_ONCE = 100  # connections accepted before others have their turn
REST = 1.0  # seconds

log = structlog.get_logger(__name__)


class TlsDoor:
    """One listening socket; ``make`` gives the protocol of a connection that holds this place."""

    def __init__(
        self,
        listener: socket.socket,
        desk: Desk,
        make: Callable[[tuple[int, ...]], Connection],
        backlog: int,
    ) -> None:
        listener.listen(backlog)
        self._listener = listener
        self._desk = desk
        self._make = make
        self._handshakes: set[asyncio.Task[None]] = set()
        self._open = True
        desk.loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept nobody more; who is still shaking hands is cut off."""
        if not self._open:
            return
        self._open = False
        self._desk.loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._handshakes:
            task.cancel()

    async def wait_closed(self) -> None:
        """Until every place of a handshake is given back."""
        if self._handshakes:
            await asyncio.wait(set(self._handshakes))

    def _accept(self) -> None:
        loop = self._desk.loop
        for _ in range(AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or no memory left
                log.error("connections cannot be accepted", service=self._desk.name, reason=str(error))
                loop.remove_reader(self._listener)
                loop.call_later(REST, self._resume)
                return
            place = self._desk.doorkeeper.enter(address[0])
            if isinstance(place, Crowded):
                connection.close()
                self._desk.connections["turned_away"].add()
                continue
            connection.setblocking(False)
            task = loop.create_task(self._shake_hands(connection, address[0], place))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _resume(self) -> None:
        if self._open:
            self._desk.loop.add_reader(self._listener, self._accept)

    async def _shake_hands(self, connection: socket.socket, client: str, place: tuple[int, ...]) -> None:
        desk = self._desk
        assert desk.tls is not None
        protocol = self._make(place)
        try:
            await desk.loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=desk.tls.context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=LINGER_SECONDS,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError among them
            log.info("a TLS handshake failed", service=desk.name, client=client, reason=type(error).__name__)
        finally:
            if protocol.task is None:  # no session began that would do it
                protocol.give_back_place()
