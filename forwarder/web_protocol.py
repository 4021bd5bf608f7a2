"""HTTP/1.1 as uvicorn speaks it with httptools, with bounds on what comes before a request can be judged.

httptools itself bounds nothing: a header of any length is gathered, at a cost that grows with its square, before
anybody has shown a key. Here a connection may send HEAD octets that are not body; beyond that the answer is 431. A
request whose head is not there after PATIENCE seconds is answered 408, and so is a connection that says nothing, or
nothing but line ends. What is no HTTP is answered 400. These three have the form of every error of the API, and the
connection is closed.
"""

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 64 << 10  # octets; what one read brings beyond them is taken
PATIENCE = 30.0  # seconds


class Protocol(HttpToolsProtocol):
    """One connection."""

    _beside_body = 0  # octets since a request began, or since the last of its body
    _deadline: asyncio.TimerHandle | None = None
    _within = False  # a request has begun and not ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside_body += len(data)
        if not self._within:  # line ends before a request begin none, and yet uvicorn's own time stops here
            self._expect_head()
        super().data_received(data)
        if self.cycle and self.cycle.response_complete:  # the rest of a body that nobody waits for any more
            self._expect_head()
        if self._beside_body > HEAD and not self.transport.is_closing():
            self._refuse(431, f"The head of the request is larger than {HEAD} octets.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._within = True
        self._beside_body = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._within = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read; its own words say nothing to a client."""
        self._refuse(
            400,
            "This is not an HTTP request that can be read; in its path, all but ASCII is percent-encoded.",
        )

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that anybody may ask for, and that is ignored, is nothing for the log."""

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE, self._too_late)

    def _have_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.cycle and not self.cycle.response_complete:
            self._expect_head()  # it is our answer to the request before that lasts
        elif not self.transport.is_closing():
            self._refuse(408, "The request did not come in time.")

    def _refuse(self, status: int, reason: str) -> None:
        body = json.dumps({"success": False, "code": status, "error": reason}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
