"""The octets of an outbound SMTP session: replies in, blocks out, each wait with a deadline.

A reply is read strictly: lines of at most 4 KiB, 64 KiB a reply, one code for all its lines (RFC 5321 4.2.1), codes
200 to 599; anything else is ``Fault.PROTOCOL``. What nobody asked for is a fault too, except one 421, which a server
may say at any time before it hangs up (RFC 5321 3.8): it is kept, and explains the loss; and except a 354 that is said
twice, before the content or after it: the second is passed over, the answer is what follows. Memory is bounded by these
limits whatever a peer sends.

The deadline of a wait counts per reply: it starts again when a whole reply has come, never for a part of one, so that
a banner that trickles ends on time and a thousand pipelined recipients have the time they need, up to thirty times the
deadline of one. A process that was stopped itself reads first what the peer said meanwhile (``deadlines``).

Why not aiosmtplib, whose protocol class would be the natural one to extend: it holds one reply at a time and drops
octets that arrive with it, so it cannot pipeline; it rewrites line ends in what it sends, which would break what was
signed; a 421 followed by a close shows up as a mere disconnection; and plaintext after the 220 of STARTTLS is thrown
away silently instead of ending the session. Each is in the middle of its data path, not at an edge to override.

Limits: no more than one task may wait on a wire at a time.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Sequence

from forwarder.mail.outcome import Fault
from forwarder.mail.reply import Reply, parse_reply
from forwarder.net.deadlines import reprieve
from forwarder.net.tls import shown

LINE = 4096  # octets; RFC 5321 4.5.3.1.5 asks for 512, real servers say more
REPLY = 64 * 1024
JOIN = 96 * 1024  # octets: below this one copy is cheaper than several writes
KNOWN = 32  # replies remembered by their octets: "250 2.1.5 Ok" need not be parsed for every recipient
PATIENCE = 30  # deadlines of one reply that a whole pipelined envelope may take
SHUTDOWN = 2.0  # seconds for the TLS close
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])[^\n]*)?\r?\n")


class WireTrouble(Exception):
    """The session is over. ``replies`` came before that; ``said`` is a 421 that explains it."""

    def __init__(self, fault: Fault, detail: str = "", *, replies: Sequence[Reply] = ()) -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail
        self.replies = tuple(replies)

    @property
    def said(self) -> Reply | None:
        """The server's own last word."""
        return self.replies[-1] if self.replies and self.replies[-1].code == 421 else None


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.last = b""  # the octets of the latest reply
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._replies: deque[Reply] = deque()
        self._expected = 1  # the greeting
        self._content_due = False  # the last reply asked for is that to DATA
        self._invited = False  # the latest reply was its 354
        self._rest = b""  # of a line
        self._lines: list[bytes] = []  # of a reply
        self._size = 0  # octets of that reply
        self._known: dict[bytes, Reply] = {}  # by their octets
        self._fault: Fault | None = None  # None: the connection is open
        self._detail = ""  # of the fault
        # Of the wait under way: for how many replies, seconds for each, until when for the next, until when for all.
        self._wanted = 0
        self._patience = 0.0
        self._deadline = 0.0
        self._end = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # asked of the timer, uvloop's may not know it
        self._paused = False
        self._draining = False  # who waits, waits for the peer to take what was written

    @property
    def usable(self) -> bool:
        """Nothing is wrong and nothing waits to be read."""
        return self._fault is None and not (self._replies or self._rest or self._lines)

    @property
    def answered(self) -> bool:
        """A reply has come that was not read."""
        return bool(self._replies)

    @property
    def calm(self) -> bool:
        """Open, silent, and ready to take more."""
        return not (self._paused or self._replies) and self._fault is None

    async def read(self, count: int, timeout: float) -> list[Reply]:
        """The next replies; ``timeout`` seconds for each of them."""
        if len(self._replies) < count:
            if self._fault is None:
                await self._wait(count, timeout)
            if len(self._replies) < count:
                raise self._trouble()
        return [self._replies.popleft() for _ in range(count)]

    def write(self, buffers: Sequence[bytes | memoryview], *, expecting: int, data: bool = False) -> None:
        """Send now; that many replies will be asked for. ``data``: the last is that to DATA.

        A 354 to DATA makes one more reply due, that to the content, which some servers give before they read it.
        """
        self._expected += expecting
        self._content_due = data
        if self._fault is not None:
            return
        if len(buffers) > 1 and sum(map(len, buffers)) <= JOIN:
            buffers = (b"".join(buffers),)
        # not writelines: in asyncio's own transport (seen with Python 3.13.0) it never pauses the writer
        for buffer in buffers:
            self._transport.write(buffer)

    @property
    def certificates(self) -> list[bytes]:
        """What the peer has shown in the handshake, in DER, its own first."""
        return shown(self._transport.get_extra_info("ssl_object"))

    async def drain(self, timeout: float) -> None:
        """Until the peer has taken enough of what was written, or answers it."""
        if self._paused and self._fault is None:
            self._draining = True
            try:
                await self._wait(len(self._replies) + 1, timeout)
            finally:
                self._draining = False
        # An answer that came before the loss is the peer's word on the content: it is read, not the loss.
        if self._fault is not None and not self._replies:
            raise self._trouble()

    async def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> str:
        """Handshake; protocol and cipher. Octets that came before it are an attack (RFC 3207 4.2), not replies."""
        self._refuse_early_octets()
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                context,
                server_hostname=host,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=SHUTDOWN,
            )
        except ssl.SSLCertVerificationError as exc:
            raise WireTrouble(Fault.CERTIFICATE, exc.verify_message) from exc
        except ssl.SSLError as exc:
            raise WireTrouble(Fault.TLS, exc.reason or "") from exc
        except (OSError, ValueError) as exc:  # ValueError: a host name that TLS cannot carry
            raise WireTrouble(Fault.TLS, str(exc)) from exc
        if transport is None:  # the connection was lost just before
            raise WireTrouble(Fault.TLS, "the connection was closed")
        self._transport = transport
        self._refuse_early_octets()
        cipher = transport.get_extra_info("cipher")
        return f"{cipher[1]} {cipher[0]}"

    def close(self) -> None:
        """Close when what was written is out."""
        self._fail(Fault.LOST, "closed by us")
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._fail(Fault.LOST, "closed by us")
        self._transport.abort()

    # --- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by class
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            return
        if self._rest:
            data = self._rest + data
        before = len(self._replies)
        start = 0
        while (end := data.find(b"\n", start) + 1) > 0:
            if not self._take(data[start:end]):
                return
            start = end
        self._rest = data[start:]
        if len(self._rest) > LINE:
            self._fail(Fault.PROTOCOL, "a line of the reply is too long")
            return
        if self._waiter is None:
            return
        if len(self._replies) >= self._wanted:
            self._wake()
        elif len(self._replies) > before:
            self._deadline = min(self._loop.time() + self._patience, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Fault.LOST, (getattr(exc, "strerror", None) or "") if exc is not None else "")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._draining:  # a reader has its reply still to come
            self._wake()

    # --- inside

    def _take(self, line: bytes) -> bool:
        reply = None if self._lines else self._known.get(line)
        if reply is not None:
            self.last = line
            return self._accept(reply)
        found = _LINE.fullmatch(line)
        self._size += len(line)
        if found is None or len(line) > LINE:
            return self._fail(Fault.PROTOCOL, "a line without a reply code came")
        if self._lines and self._lines[0][:3] != found[1]:
            return self._fail(Fault.PROTOCOL, "a reply changed its code on the way")
        if self._size > REPLY:
            return self._fail(Fault.PROTOCOL, "the reply is too long")
        if found[2] == b"-":
            self._lines.append(line)
            return True
        if self._lines:
            line = b"".join((*self._lines, line))
            self._lines.clear()
        self._size = 0
        self.last = line
        reply = parse_reply(line)
        if len(self._known) < KNOWN and len(line) < 128:
            self._known[line] = reply
        return self._accept(reply)

    def _accept(self, reply: Reply) -> bool:
        if self._expected:
            again = self._invited and reply.code == 354
            self._invited = False
            if again:
                return True  # no answer to content; taken for one, it would have the message sent again each time
            self._expected -= 1
            if not self._expected and self._content_due and reply.code == 354:
                self._expected = 1
                self._content_due = False
                self._invited = True
        elif reply.code != 421 or self._replies:
            # not kept: it must never pass for the answer to what we say next
            return self._fail(Fault.PROTOCOL, "a reply came that nobody asked for")
        self._replies.append(reply)
        return True

    async def _wait(self, wanted: int, timeout: float) -> None:
        self._wanted = wanted
        self._patience = timeout
        self._deadline = self._loop.time() + timeout
        self._end = self._deadline + (PATIENCE - 1) * timeout
        if self._timer is None or self._rings_at > self._deadline:
            self._stop_timer()
            self._set_timer()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _look_at_the_time(self) -> None:
        """One timer a connection, moved on only when it rings: setting it for each wait would cost more."""
        self._timer = None
        if self._waiter is None:
            return  # nobody waits; the next wait sets a timer
        now = self._loop.time()
        if now >= self._deadline:
            self._deadline = now + reprieve(self._rings_at, now)
        if now < self._deadline:
            self._set_timer()
        else:
            self._fail(Fault.TIMEOUT)

    def _set_timer(self) -> None:
        self._rings_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._look_at_the_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, fault: Fault, detail: str = "") -> bool:
        """The first trouble is the one that counts."""
        if self._fault is None:
            self._fault, self._detail = fault, detail
            self._rest = b""
            self._lines.clear()
            self._stop_timer()
            self._wake()
        return False

    def _trouble(self) -> WireTrouble:
        assert self._fault is not None
        return WireTrouble(self._fault, self._detail, replies=self._replies)

    def _refuse_early_octets(self) -> None:
        if self._fault is not None:
            raise self._trouble()
        if not self.usable:
            raise WireTrouble(Fault.PROTOCOL, "octets came in clear after the 220 to STARTTLS")


async def dial(address: str, port: int, local_address: str, timeout: float) -> Wire:
    """A connection to an address, from ``local_address`` unless that is empty. WireTrouble."""
    loop = asyncio.get_running_loop()
    local = (local_address, 0) if local_address else None
    try:
        async with asyncio.timeout(timeout):
            _transport, wire = await loop.create_connection(Wire, address, port, local_addr=local)
    except TimeoutError as exc:
        raise WireTrouble(Fault.CONNECT_TIMEOUT) from exc
    except ConnectionRefusedError as exc:
        raise WireTrouble(Fault.REFUSED) from exc
    except OSError as exc:
        raise WireTrouble(Fault.UNREACHABLE, exc.strerror or "") from exc
    return wire
