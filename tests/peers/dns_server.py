"""A programmable DNS server on UDP and TCP, the same ephemeral loopback port for both.

    async with DnsServer() as dns:
        dns.set("example.test", "MX", [(10, "mx.example.test")])
        dns.set("mx.example.test", "A", ["127.0.0.1"])
        dns.set("example.test", "TXT", ["v=spf1 -all"])        # long texts are cut into strings of 255
        dns.set("null.test", "MX", [(0, ".")])                 # null MX
        dns.set("www.test", "CNAME", ["example.test"])         # chains are followed, as a recursive server does
        dns.set("empty.test", "MX", [])                        # the name exists, without data
        dns.fault("broken.test", "servfail")

A name nobody set is NXDOMAIN (with an SOA). Faults, by name and optionally by kind and number of times: servfail,
refused, nxdomain, timeout (no answer), truncate (UDP only: TC, so that the client comes by TCP), cut (TC by TCP too),
loop (a CNAME to itself), garbage (octets that are no message), wrong-id, wrong-question (followed by the right answer,
as an attacker would have it), spoof-then-answer (a wrong id with false records, then the right answer), no-edns
(FORMERR while the query carries EDNS), slow (the answer after ``dns.slowness`` seconds). The name "*" means every name.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Record = str | bytes | tuple[int, str]


class Query(NamedTuple):
    """One question as it arrived; the name as spelled in lower case without the final dot."""

    name: str
    kind: str
    over: str  # "udp" or "tcp"


@dataclass(slots=True)
class _Fault:
    what: str
    kind: str | None
    times: int | None


class DnsServer:
    """See the module."""

    def __init__(self, *, host: str = "127.0.0.1", ttl: int = 1, chase: bool = True) -> None:
        self.host = host
        self.port = 0
        self.ttl = ttl  # of positive and negative answers alike
        self.chase = chase  # follow CNAMEs ourselves; False: only the one record is given
        self.authoritative = False  # set the AA bit, as a zone's own server does
        # Whose answers were validated (AD), where one asks.
        self.signed: Callable[[str], bool] = lambda name: False
        self.slowness = 0.2
        self.queries: list[Query] = []
        self._records: dict[tuple[str, str], list[str]] = {}
        self._ttls: dict[tuple[str, str], int] = {}
        self._faults: dict[str, _Fault] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- use by tests

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):  # the port that is free for TCP may be taken for UDP
            self._tcp = await asyncio.start_server(self._serve_tcp, self.host, 0)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _protocol = await loop.create_datagram_endpoint(
                    lambda: _Udp(self), local_addr=(self.host, self.port)
                )
            except OSError:
                self._tcp.close()
                await self._tcp.wait_closed()
            else:
                return
        raise OSError("no port free for both UDP and TCP")

    async def close(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tcp is not None:
            await self._tcp.wait_closed()
        self._udp = self._tcp = None

    @property
    def address(self) -> str:
        """``host:port``, as the configuration key dns.nameservers wants it."""
        return f"{self.host}:{self.port}"

    def set(self, name: str, kind: str, records: Iterable[Record], *, ttl: int | None = None) -> None:
        """Replace the records of a name and kind; an empty list leaves the name without data of that kind."""
        key = (_key(name), kind.upper())
        self._records[key] = [_text(key[1], record) for record in records]
        if ttl is not None:
            self._ttls[key] = ttl

    def remove(self, name: str, kind: str | None = None) -> None:
        """Forget a name, or one kind of it."""
        for key in [key for key in self._records if key[0] == _key(name) and kind in (None, key[1])]:
            del self._records[key]

    def mail_host(self, domain: str, *addresses: str, host: str = "") -> None:
        """An MX record and the A (or AAAA) records of its host, in one call."""
        host = host or f"mx.{domain}"
        self.set(domain, "MX", [(10, host)])
        for kind, wanted in (
            ("A", [a for a in addresses if ":" not in a]),
            ("AAAA", [a for a in addresses if ":" in a]),
        ):
            if wanted:
                self.set(host, kind, wanted)

    def fault(self, name: str, what: str, kind: str | None = None, times: int | None = None) -> None:
        """From now on this goes wrong with the name; ``times`` counts questions."""
        self._faults[_key(name) if name != "*" else "*"] = _Fault(what, kind and kind.upper(), times)

    def heal(self, name: str | None = None) -> None:
        """End the faults of a name, or all."""
        if name is None:
            self._faults.clear()
        else:
            self._faults.pop(_key(name) if name != "*" else "*", None)

    def count(self, name: str | None = None, kind: str | None = None) -> int:
        """How many questions were asked."""
        return sum(
            (name is None or query.name == _key(name)) and (kind is None or query.kind == kind.upper())
            for query in self.queries
        )

    # --- the service

    def respond(self, wire: bytes, over: str) -> tuple[Sequence[bytes], float]:
        """The datagrams to send for one query, in order, and after how many seconds."""
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return (), 0
        name, kind = _key(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.queries.append(Query(name, kind, over))
        right = dns.message.make_response(query, recursion_available=True)
        if self.authoritative:
            right.flags |= dns.flags.AA
        if query.flags & dns.flags.AD and self.signed(name):
            right.flags |= dns.flags.AD
        self._fill(right, question.name, kind)
        payload = query.payload if query.edns >= 0 else 512
        match self._fault(name, kind):
            case "timeout":
                return (), 0
            case "servfail" | "refused" | "nxdomain" as code:
                return (_failure(query, dns.rcode.from_text(code.upper())).to_wire(),), 0
            case "truncate" if over == "udp":
                return (_truncated(query),), 0
            case "cut":
                return (_truncated(query),), 0
            case "loop":
                return (self._loop(query, question.name).to_wire(),), 0
            case "garbage":
                return (b"\x00\x01\x02banana",), 0
            case "wrong-id":
                return (_other_id(self._false(query)),), 0
            case "spoof-then-answer":
                return (_other_id(self._false(query)), _wire(right, query, payload, over)), 0
            case "wrong-question":
                other = dns.message.make_query("other.test", "A")
                other.id = query.id
                return (dns.message.make_response(other).to_wire(), _wire(right, query, payload, over)), 0
            case "no-edns" if query.edns >= 0:
                return (_failure(query, dns.rcode.FORMERR).to_wire(),), 0
            case "slow":
                return (_wire(right, query, payload, over),), self.slowness
            case _:
                return (_wire(right, query, payload, over),), 0

    def _fault(self, name: str, kind: str) -> str:
        for fault in (self._faults.get(name), self._faults.get("*")):
            if fault is not None and fault.kind in (None, kind) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault.what
        return ""

    def _fill(self, answer: dns.message.Message, name: dns.name.Name, kind: str) -> None:
        for _ in range(12):
            key = _key(name.to_text())
            alias = self._records.get((key, "CNAME"))
            if kind == "CNAME" or not alias:
                break
            answer.answer.append(self._rrset(name, "CNAME", alias))
            name = dns.name.from_text(alias[0])
            if not self.chase:
                return
        records = self._records.get((_key(name.to_text()), kind))
        if records:
            answer.answer.append(self._rrset(name, kind, records))
            return
        if not any(known == _key(name.to_text()) for known, _ in self._records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        soa = f"ns.test. hostmaster.test. 1 3600 600 86400 {self.ttl}"
        answer.authority.append(dns.rrset.from_text("test.", self.ttl, "IN", "SOA", soa))

    def _rrset(self, name: dns.name.Name, kind: str, records: list[str]) -> dns.rrset.RRset:
        ttl = self._ttls.get((_key(name.to_text()), kind), self.ttl)
        return dns.rrset.from_text(name, ttl, "IN", kind, *records)

    def _loop(self, query: dns.message.Message, name: dns.name.Name) -> dns.message.Message:
        answer = dns.message.make_response(query, recursion_available=True)
        answer.answer.append(self._rrset(name, "CNAME", [name.to_text()]))
        return answer

    def _false(self, query: dns.message.Message) -> dns.message.Message:
        """What an attacker would have the client believe."""
        lie = dns.message.make_response(query, recursion_available=True)
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        record = {"A": "6.6.6.6", "AAAA": "666::6", "MX": "1 evil.test.", "TXT": '"evil"'}.get(
            kind, "evil.test."
        )
        lie.answer.append(dns.rrset.from_text(query.question[0].name, 86_400, "IN", kind, record))
        return lie

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                answers, delay = self.respond(await reader.readexactly(length), "tcp")
                await asyncio.sleep(delay)
                if not answers:
                    await reader.read()
                    return
                if writer.transport.is_closing():  # the client did not wait; uvloop would raise RuntimeError
                    return
                for answer in answers:
                    writer.write(len(answer).to_bytes(2) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            return  # the client has what it wanted, or the test is over
        finally:
            writer.close()
            self._tasks.discard(task)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport) or hasattr(transport, "sendto")
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answers, delay = self._server.respond(data, "udp")
        for answer in answers:
            if delay:
                asyncio.get_running_loop().call_later(delay, self._say, answer, addr)
            else:
                self._say(answer, addr)

    def _say(self, answer: bytes, addr: tuple[str, int]) -> None:
        if not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the client closed its socket
                self._transport.sendto(answer, addr)


def _key(name: str) -> str:
    return name.lower().rstrip(".")


def _text(kind: str, record: Record) -> str:
    if isinstance(record, tuple):
        return f"{record[0]} {record[1].rstrip('.')}."
    if kind == "TXT":
        octets = record if isinstance(record, bytes) else record.encode()
        pieces = [octets[at : at + 255] for at in range(0, len(octets), 255)] or [b""]
        return " ".join('"' + "".join(f"\\{octet:03d}" for octet in piece) + '"' for piece in pieces)
    assert isinstance(record, str)
    return f"{record.rstrip('.')}." if kind in ("CNAME", "NS", "PTR", "MX") else record


def _failure(query: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.set_rcode(code)
    return answer


def _truncated(query: dns.message.Message) -> bytes:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.flags |= dns.flags.TC
    return answer.to_wire()


def _other_id(answer: dns.message.Message) -> bytes:
    answer.id ^= 0x5A5A
    return answer.to_wire()


def _wire(answer: dns.message.Message, query: dns.message.Message, payload: int, over: str) -> bytes:
    if over == "tcp":
        return answer.to_wire(max_size=65_535)
    try:
        return answer.to_wire(max_size=max(payload, 512))
    except dns.exception.TooBig:
        return _truncated(query)
