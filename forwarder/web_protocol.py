"""HTTP/1.1 as uvicorn speaks it with httptools, with bounds on what a connection may cost, with or without a key.

httptools and uvicorn bound nothing of this: a header of any length is gathered, at a cost that grows with its square;
requests that wait for the answer to the one before are as many as are sent; an answer waits for its reader for ever.

- A connection may send HEAD octets that are not body; beyond that the answer is 431.
- A request whose head is not there after PATIENCE seconds is answered 408, and so is a connection that says nothing, or
  nothing but line ends. (One that has had an answer is closed after five seconds of silence: uvicorn's own time.)
- What is no HTTP is answered 400. So is a request without a Host, with several or with one that is none (RFC 9112 3.2),
  and one that HTTP/1.0 has no coding for; a body in another coding than ``chunked`` is answered 501 (6.1).
- A request that asks for an upgrade is read as if it did not (RFC 9110 7.8): programs in Java ask with each that they
  send to an http:// URL. To httptools its body is no HTTP any more; uvicorn drops it, or reads it as the next request.
- While a request waits for its turn nothing more is read, and of what was read no more than SLICE octets are parsed.
- A client that takes less than RATE octets a second of the answers that wait for it is cut off. Where more than UNREAD
  octets of answers wait in all, the clients that have let theirs wait longest are cut off.
- Where we end a connection before its client has sent all of a request, what still comes is read and dropped, for as
  long as the rest of a body that nobody wants. Closed at once, the connection would be reset, and a client that sends
  everything before it reads would see that and not our answer (RFC 9112 9.6). A connection that makes room for another,
  or was too slow, is closed at once.
- Beyond ``connections``, the connection that has been without a request for longest makes room for a new one, or else
  one that waits for its reader; where all are busy the new one is closed. So idle connections keep nobody out. A client
  that has to go is told 503, if it reads. There is no bound for one client: behind a proxy all are one.

These refusals have the form of every error of the API. The connection is closed behind them, once the requests that
came before have their answers: what is wrong with the next says nothing of them. All times of a connection hang on one
timer, which rings every half PATIENCE; so they may last that much longer.
"""

import asyncio
import json
import re
from collections.abc import Sized
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 64 << 10  # octets; what one slice brings beyond them is taken
SLICE = 4 << 10  # octets
PATIENCE = 10.0  # seconds
RATE = 500  # octets a second, as of DATA
UNREAD = 64 << 20  # octets, in a process
FULL = "There are too many connections; try again later."
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class _Refused(Exception):
    """Ends the parsing of a request that has been refused."""


class _Flow(FlowControl):
    """Reads nothing while requests wait, whoever else would like to."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class _Way(asyncio.Transport):
    """The connection as one request has it, who closes it behind his answer."""

    def __init__(self, protocol: "Protocol") -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.ends

    def close(self) -> None:
        self._protocol.end()


class Protocol(HttpToolsProtocol):
    """One connection."""

    _drops = False  # all is said, and what still comes is dropped
    _beside_body = 0  # octets since a request began, or since the last of its body
    _within = False  # a request has begun and not ended
    waits_since: float | None = None  # for a head, or the rest of a body that nobody wants; None: for neither
    _plain_head = b""  # of the request that asks for an upgrade, without that
    _late: tuple[int, str] | None = None  # a refusal that waits for the answers before it
    held_since: float | None = None  # since then answers wait for their reader; None: none, or it is cut off
    _untaken = 0  # octets of our answers when the timer rang last, as far as they held something up
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # uvicorn would look at it only after the head, and count those that are about to go.
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._unread = bytearray()  # what came behind a request that waits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._expect_head()
        self._set_timer()
        if self._most is not None and len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._drops:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._drops:
            self._unset_keepalive_if_required()  # somebody is there; from here on our patience counts
        elif self._late is None:
            self._unread += data
            self._read_on()

    def _read_on(self) -> None:
        while self._unread and not self.pipeline and not self.ends:
            data = bytes(self._unread[:SLICE])
            del self._unread[:SLICE]
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._beside_body += len(data)
        if not self._within:  # line ends before a request begin none, and yet uvicorn's own time stops here
            self._expect_head()
        self._unset_keepalive_if_required()
        self._feed(data)
        if self.cycle and self.cycle.response_complete:  # the rest of a body that nobody waits for any more
            self._expect_head()
        if self._beside_body > HEAD and not self.ends:
            self.refuse(431, f"The head of the request is larger than {HEAD} octets.")

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as asked:
                data, self._plain_head = self._plain_head + data[asked.args[0] :], b""
            except httptools.HttpParserError as error:
                if not isinstance(error.__context__, _Refused):
                    self.send_400_response("")
                return
            else:
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._within = True
        self._beside_body = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":  # that is one by itself
            first = b"%b %b HTTP/%b" % (
                self.parser.get_method(),
                self.url,
                self.parser.get_http_version().encode(),
            )
            others = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self._plain_head = b"\r\n".join((first, *others, b"", b""))
            return
        self._check_head()
        self.waits_since = None
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110 15.2: it would be taken for the answer
        super().on_headers_complete()
        self.cycle.transport = _Way(self)

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            self.refuse(400, "A request names one host, in the header Host.")
            raise _Refused
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and version != "1.1":
            self.refuse(400, f"HTTP/{version} has no Transfer-Encoding; send the body with a Content-Length.")
            raise _Refused
        if codings and codings != [b"chunked"]:
            self.refuse(501, "Of transfer codings, only chunked is known here.")
            raise _Refused

    def on_body(self, body: bytes) -> None:
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        self._within = False
        self._beside_body = 0  # it is whole, and will be answered: once
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.ends:
            return
        if self._late is not None and not self._answers:
            self.refuse(*self._late)
            return
        if not self.pipeline:
            self.flow.resume_reading()
            self._read_on()
        if self.cycle.response_complete:
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.held_since = self.loop.time()
        self._bound_unread()

    def resume_writing(self) -> None:
        self.held_since = None
        self._untaken = 0
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read; its own words say nothing to a client."""
        self.refuse(
            400,
            "This is not an HTTP request that can be read; in its path, all but ASCII is percent-encoded.",
        )

    def _expect_head(self) -> None:
        if self.waits_since is None:
            self.waits_since = self.loop.time()

    @property
    def _answers(self) -> bool:
        """Whether a request is under way, which asks for our patience and not for the client's."""
        return not self._drops and self.cycle is not None and not self.cycle.response_complete

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(PATIENCE / 2, self._look)

    def _look(self) -> None:
        if self._lets_wait():
            self.transport.abort()
            return
        self._set_timer()
        if self.waits_since is None or self.transport.is_closing():
            return
        now = self.loop.time()
        if self._answers:
            self.waits_since = now  # it is our answer to the request before that lasts
        elif now - self.waits_since > PATIENCE * 0.9:  # the timer's own steps are not that exact
            self.refuse(408, "The request did not come in time.")

    def _lets_wait(self) -> bool:
        """Whether our answers hold something up, and too little of them was taken since this was asked last."""
        before = self._untaken
        self._untaken = self.transport.get_write_buffer_size() if self.held_up else 0
        return bool(before and self._untaken) and before - self._untaken < RATE * PATIENCE / 2

    @property
    def held_up(self) -> bool:
        """Whether it goes on, or ends, only when the client has read."""
        return self.flow.write_paused or (self.ends and self.transport.get_write_buffer_size() > 0)

    @property
    def ends(self) -> bool:
        """Whether all is said that will be."""
        return self._drops or self.transport.is_closing()

    @property
    def rests(self) -> bool:
        """Whether no request is under way, and nothing is left of the answers to those before."""
        return not (self._answers or self.transport.is_closing() or self.transport.get_write_buffer_size())

    def _bound_unread(self) -> None:
        """See that no more than UNREAD octets wait for readers, beside those of this connection."""
        held = [
            (other.held_since, other.transport.get_write_buffer_size(), other)
            for other in self.connections
            if isinstance(other, Protocol) and other.held_since is not None
        ]
        unread = sum(size for _, size, _ in held)
        for _, size, other in sorted(held, key=lambda entry: entry[0]):
            if unread <= UNREAD or other is self:
                return
            unread -= size
            other.held_since = None
            other.transport.abort()

    def _make_room(self) -> None:
        others = [other for other in self.connections if isinstance(other, Protocol) and other is not self]
        resting = [other for other in others if other.rests]
        if resting:
            min(resting, key=lambda other: other.waits_since or 0).refuse(503, FULL)
        elif slow := next((other for other in others if other.held_up), None):
            slow.transport.abort()
        else:
            self.refuse(503, FULL)

    def refuse(self, status: int, reason: str) -> None:
        """Answer, and close; after the answers to requests that came whole before."""
        if self.ends:
            self.transport.close()
            return
        if self._answers and not self.cycle.more_body:
            self._late = self._late or (status, reason)
            self._unread.clear()
            return
        body = json.dumps({"success": False, "code": status, "error": reason}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if status in (408, 503):
            self.transport.close()
        else:
            self.end()

    def end(self) -> None:
        """Close, but not under a client that is still sending: see the module."""
        if self.transport.is_closing() or not self._within:
            self.transport.close()
            return
        if self._answers:  # it was refused in the middle of its body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._drops = True
        self._unread.clear()
        with suppress(OSError):  # the client has gone already
            self.transport.write_eof()
        self._expect_head()
        self.flow.resume_reading()
