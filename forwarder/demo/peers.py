"""The outside world of the demo: a DNS server that knows a few names, and an SMTP server that catches what comes.

Both are as small as the demo allows and on loopback only. The catcher takes every message that is sent to it; it is a
destination, not a mail server.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from forwarder.mail.seal import zone_text


class Zone(asyncio.DatagramProtocol):
    """Answers UDP questions from its table; a name that is not in it does not exist."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], list[str]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def publish(self, name: str, kind: str, *values: str) -> None:
        """Values as a zone file writes them."""
        self._records.setdefault((name.lower(), kind), []).extend(values)

    def texts(self, name: str) -> list[str]:
        """The TXT values of a name, as they were published."""
        return self._records.get((name.lower().rstrip("."), "TXT"), [])

    async def open(self) -> str:
        """Listen; ``host:port`` for ``dns.nameservers``."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        host, port = self._transport.get_extra_info("sockname")[:2]
        return f"{host}:{port}"

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        if self._transport is not None and query.question:
            self._transport.sendto(self._answer(query).to_wire(max_size=65_000), addr)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        values = self._records.get((name, kind))
        if values:
            if kind == "TXT":
                values = [zone_text(value) for value in values]
            answer.answer.append(dns.rrset.from_text_list(question.name, 5, "IN", kind, values))
        elif not any(known == name or known.endswith("." + name) for known, _ in self._records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """One message as it arrived."""

    reverse_path: str
    recipients: tuple[str, ...]
    content: bytes


class Catcher:
    """Takes every message over plain SMTP."""

    def __init__(self) -> None:
        self.caught: list[Caught] = []
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def wait_for(self, count: int, *, seconds: float) -> bool:
        """Whether that many messages came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._arrived:
                await self._arrived.wait_for(lambda: len(self.caught) >= count)
        return len(self.caught) >= count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client left: nothing is owed
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reverse_path, recipients = "", list[str]()
        writer.write(b"220 inbox ESMTP\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            reply = b"250 2.0.0 fine\r\n"
            if verb == b"EHLO":
                reply = b"250-inbox\r\n250-8BITMIME\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n"
            elif verb == b"MAIL":
                reverse_path, recipients = _path(line), []
            elif verb == b"RCPT":
                recipients.append(_path(line))
            elif verb == b"DATA":
                writer.write(b"354 go on\r\n")
                content = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n..", b"\r\n.")
                async with self._arrived:
                    self.caught.append(
                        Caught(reverse_path=reverse_path, recipients=tuple(recipients), content=content)
                    )
                    self._arrived.notify_all()
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                return
            writer.write(reply)


def _path(line: bytes) -> str:
    return line.partition(b"<")[2].partition(b">")[0].decode("utf-8", "replace")
