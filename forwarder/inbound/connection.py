"""One connection: aiosmtpd's protocol with its reading, its timer and its end replaced.

aiosmtpd's ``SMTP`` cancels the running handler when the peer closes its side, when the connection is lost and when
its timer rings, and so cuts a commit in two; the timer runs while the server works, and closes without a word. Here
nothing cancels the handler: the callbacks tell the ``Inlet``, and whoever waits for the peer there learns of it.

Promises: every session ends in ``_part``, which writes what is left to say, closes so that the peer can read it,
and gives the place at the door back. Replies to pipelined commands are written together (RFC 2920 3.1).

Limits: a peer that does not read its replies holds up its own commands, and is dropped after the command timeout.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import cast

import structlog
from aiosmtpd.smtp import SMTP

from forwarder.inbound.inlet import Expired, Gone, Inlet, Stopped
from forwarder.inbound.limits import Crowded
from forwarder.inbound.reception import LINGER_SECONDS, Desk
from forwarder.inbound.session import Session
from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply
from forwarder.tally import Count

# For a TLS handshake under way when the server stops: after one that failed, some clients send in clear (Exim:
# tls_tempfail_tryclear).
LAST_HANDSHAKE_SECONDS = 2.0

_OF_CLIENT = (Crowded.CLIENT, Crowded.RATE)

log = structlog.get_logger(__name__)


class Connection(SMTP):
    """A transport, the session on it, and the task that serves it."""

    def __init__(self, desk: Desk, sessions: "set[Connection]", place: tuple[int, ...] | None = None) -> None:
        """``place``: at the door, where it was taken before the connection was made."""
        # No SMTP.__init__: it inspects its classes anew for each connection (0.16 ms) and makes a reader.
        self.loop = desk.loop
        self.hostname = desk.hostname
        self.transport: asyncio.Transport | None = None
        self.state = Session("")
        self.task: asyncio.Task[None] | None = None
        self._desk = desk
        self._sessions = sessions
        self._inlet = Inlet(desk.loop)
        self._out: list[bytes] = []
        self._closing = False
        self._place = place
        self._in_handshake = False  # of STARTTLS: nobody waits at the inlet
        self._counts: Mapping[int, Count] | None = None  # of the answers to the command under way
        self._writable: asyncio.Future[None] | None = None  # pending while the transport's buffer is full

    # Callbacks of the transport. None of them cancels the task.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        desk = self._desk
        stream = self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.state.client = peer[0] if peer else ""
        self.state.tls = described_tls(transport)
        if desk.stopping:
            self._turn_away(replies.SHUTTING_DOWN)
            return
        place = self._place or desk.doorkeeper.enter(self.state.client)
        if isinstance(place, Crowded):
            self._turn_away(replies.TOO_MANY_CONNECTIONS if place in _OF_CLIENT else replies.SERVER_BUSY)
            return
        self._place = place
        desk.connections["taken"].add()
        self._inlet.attach(stream)
        self._sessions.add(self)
        self.task = desk.loop.create_task(self._handle_client())

    def data_received(self, data: bytes) -> None:
        if not self._closing:
            self._inlet.feed(data)

    def eof_received(self) -> bool:
        # A client may close its side after the dot and still wait for our answer; TLS cannot half-close.
        self._inlet.end()
        return not self.state.tls

    def connection_lost(self, error: Exception | None) -> None:
        self._inlet.end()
        self.resume_writing()
        self.transport = None

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What the server calls when it stops.

    def stop(self) -> None:
        """Say 421 as soon as the session waits for a command; behind a TLS handshake, unless that does not end."""
        self._inlet.stop()
        if self._in_handshake:
            self.loop.call_later(LAST_HANDSHAKE_SECONDS, self._end_handshake)

    def _end_handshake(self) -> None:
        if self._in_handshake:
            self.abort()

    def cut_off(self) -> None:
        """Say 421 wherever the session waits for the peer, be it in the middle of a message."""
        self._inlet.cut()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def give_back_place(self) -> None:
        """The place at the door, once."""
        place, self._place = self._place, None
        if place is not None:
            self._desk.doorkeeper.leave(place)

    # The session.

    async def _converse(self) -> None:
        """Serve the session; returns, or raises Gone, Expired or Stopped, when it is over."""
        raise RuntimeError("a connection needs a dialogue")

    async def _handle_client(self) -> None:
        try:
            await self._converse()
        except (Gone, ConnectionError):
            self._out.clear()
        except Stopped:
            self._say(replies.SHUTTING_DOWN)
        except Expired:
            self._say(replies.TIMED_OUT)
        except Exception:  # a defect of ours must not leave a connection open, nor be told to the peer
            log.exception("a session failed", service=self._desk.name, client=self.state.client)
            self._say(replies.SERVICE_TROUBLE)
        finally:
            try:
                await self._part()
            finally:
                self._sessions.discard(self)
                self.give_back_place()

    # Replies.

    def _say(self, answer: Reply) -> None:
        self._out.append(answer.wire())

    def _write_out(self) -> None:
        if self._out and self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    async def _flush(self) -> None:
        self._write_out()
        if self._writable is not None:
            try:
                async with asyncio.timeout(self._desk.command_seconds):
                    await self._writable
            except TimeoutError:
                self.abort()
                raise Gone from None

    async def _part(self) -> None:
        self._write_out()
        transport = self.transport
        if transport is None:
            self._inlet.close()
            return
        # The peer may still be sending what we do not want to hear: let it finish, so that it hears us.
        if self._closing and self.state.errors and transport.can_write_eof():
            try:
                transport.write_eof()
            except OSError:  # the peer is gone already; asyncio does not look before it shuts down
                transport.abort()
            else:
                await self._linger()
        self._inlet.close()
        transport.close()
        if transport.get_write_buffer_size():  # a peer that does not read must not keep the socket
            self.loop.call_later(LINGER_SECONDS, transport.abort)

    async def _linger(self) -> None:
        deadline = self.loop.time() + LINGER_SECONDS
        with contextlib.suppress(Gone, Expired, Stopped):
            while True:
                await self._inlet.block(deadline - self.loop.time())

    def _turn_away(self, answer: Reply) -> None:
        assert self.transport is not None
        self._closing = True
        self._desk.connections["turned_away"].add()
        self.transport.write(answer.wire())
        self.transport.close()


def described_tls(transport: asyncio.BaseTransport) -> str:
    """Protocol and cipher, as Received tells them; empty in the clear."""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return ""
    cipher = tls.cipher()
    return f"{tls.version()} {cipher[0]}" if cipher else "TLS"
