"""One question to the name servers: which is asked, for how long, and what counts as an answer.

Promises: ``ask`` ends within its deadline, repetitions and TCP included. Only an answer from the address that was
asked, with our id (random, as is the source port) and our question is taken; anything else that arrives is ignored
and we go on listening, so that an off-path guess costs nothing but its arrival. A truncated answer is fetched again
by TCP; one that is truncated there too says nothing, not even that there is nothing (RFC 2181 9). A server that
stumbles over EDNS is asked again without. What would take long to read (``burden``) is no answer: over UDP it is
ignored, and by TCP it is as if the server had not been of use.

SERVFAIL, REFUSED and the like send us to the next server; silence also to the same one again. A server that said
nothing three times in a row is asked last (``Silence``): waiting for it first would take so long that a message is
judged before its sender's records are there. When nobody gives a useful answer, ``NoAnswer`` says what was seen last.
The transport is dnspython's: 0.4 ms of CPU a question, which the cache of ``forwarder.net.dns`` makes rare.

Limits: no DNSSEC validation of our own: AD is asked for (RFC 6840 5.7), and believed where somebody looks at it. No
mixing of upper and lower case in names against spoofing, no TCP-only or encrypted transports. Run a validating resolver
on the same host.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype

from forwarder.config import HostPort
from forwarder.net.burden import too_great
from forwarder.net.stamps import stamp_of

RESOLV_CONF = Path("/etc/resolv.conf")
PAYLOAD = 1232  # octets over UDP: DNS flag day 2020; larger answers come by TCP instead of in fragments
TRIES = 4  # at one question, of all servers together
IN_VAIN = 3  # questions in a row, after which a server is silent
ASIDE = 30.0  # seconds that it is asked last
_USEFUL = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
_NO_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)


class NoAnswer(Exception):
    """Nobody answered usefully; str() says what ``server`` did last, without naming it: strangers may be told."""

    def __init__(self, trouble: str, server: HostPort | None = None) -> None:
        super().__init__(trouble)
        self.server = server


class _TooGreat(dns.exception.DNSException):
    """An answer that nobody is to read."""


class Silence:
    """Which name servers have been silent lately: they are asked last, and one question in ASIDE seconds first.

    A silent zone makes any server look so, which is why it takes several in a row, and why it only changes the order.
    """

    def __init__(self, time: Callable[[], float] = monotonic) -> None:
        self._time = time
        self._in_vain: dict[HostPort, int] = {}
        self._until: dict[HostPort, float] = {}

    def ordered(self, servers: Sequence[HostPort]) -> list[HostPort]:
        """The servers as they are to be asked now."""
        if not self._until:
            return list(servers)
        now = self._time()
        aside = []
        for server in servers:
            until = self._until.get(server)
            if until is not None and until > now:
                aside.append(server)
            elif until is not None:
                self._until[server] = now + ASIDE  # for this question alone it is as the others
        return [server for server in servers if server not in aside] + aside

    def heard(self, server: HostPort) -> None:
        """It said something."""
        if server in self._in_vain:
            del self._in_vain[server]
            self._until.pop(server, None)

    def missed(self, server: HostPort) -> None:
        """It said nothing."""
        self._in_vain[server] = in_vain = self._in_vain.get(server, 0) + 1
        if in_vain >= IN_VAIN:
            self._until[server] = self._time() + ASIDE


async def ask(
    servers: Sequence[HostPort],
    name: dns.name.Name,
    kind: dns.rdatatype.RdataType,
    *,
    deadline: timedelta,
    recursion: bool = True,
    silence: Silence | None = None,
) -> dns.message.QueryMessage:
    """The first useful answer (NOERROR or NXDOMAIN); ``NoAnswer`` when there is none within the deadline."""
    silence = silence or Silence()
    tries = min(max(2, len(servers)), TRIES)
    patience = deadline.total_seconds() / tries
    spent: set[HostPort] = set()  # those who answered, uselessly: asking again brings the same
    last = NoAnswer("no name server is known")
    for server in (silence.ordered(servers) * 2)[:tries]:
        if server in spent:
            continue
        try:
            async with asyncio.timeout(patience):
                answer = await _exchange(server, name, kind, recursion=recursion)
        except (TimeoutError, dns.exception.Timeout):
            last = NoAnswer("the name server does not answer", server)
            silence.missed(server)
        except _TooGreat:
            last = NoAnswer("the name server answers at too great a length", server)
            spent.add(server)
        except (OSError, EOFError, dns.exception.DNSException) as exc:
            last = NoAnswer(f"the name server cannot be asked ({_trouble(exc)})", server)
            spent.add(server)
        else:
            silence.heard(server)
            useless = _useless(answer, recursion=recursion)
            if not useless:
                return answer
            last = NoAnswer(f"the name server answers {useless}", server)
            spent.add(server)
    raise last


def _trouble(error: Exception) -> str:
    """What went wrong, without the address, which errors of sockets repeat."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else type(error).__name__


class SystemServers:
    """The system's name servers as they are when asked for: whoever changes them (DHCP, say) tells nobody."""

    def __init__(self, resolv_conf: Path = RESOLV_CONF) -> None:
        self._file = resolv_conf
        self._stamp = stamp_of(resolv_conf)
        self._servers = system_nameservers(resolv_conf)

    def __call__(self) -> tuple[HostPort, ...]:
        """One call of the system, and the file is read again when it has changed."""
        stamp = stamp_of(self._file)
        if stamp != self._stamp:
            self._stamp = stamp
            self._servers = system_nameservers(self._file)
        return self._servers


def system_nameservers(resolv_conf: Path = RESOLV_CONF) -> tuple[HostPort, ...]:
    """The system's name servers, at most three; the local host when it names none (resolv.conf(5))."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = (line.split() for line in lines)
    found = [HostPort(w[1], 53) for w in words if len(w) > 1 and w[0] == "nameserver" and _is_address(w[1])]
    return tuple(found[:3]) or (HostPort("127.0.0.1", 53),)


async def _exchange(
    server: HostPort, name: dns.name.Name, kind: dns.rdatatype.RdataType, *, recursion: bool
) -> dns.message.QueryMessage:
    answer = await _once(server, name, kind, recursion=recursion, edns=True)
    if answer.rcode() in _NO_EDNS:
        return await _once(server, name, kind, recursion=recursion, edns=False)
    return answer


async def _once(
    server: HostPort, name: dns.name.Name, kind: dns.rdatatype.RdataType, *, recursion: bool, edns: bool
) -> dns.message.QueryMessage:
    query = dns.message.make_query(name, kind, use_edns=0 if edns else -1, payload=PAYLOAD)
    query.flags |= dns.flags.AD
    if not recursion:
        query.flags &= ~dns.flags.RD
    try:
        async with _socket_for(server) as udp:
            answer = await dns.asyncquery.udp(
                query,
                server.host,
                port=server.port,
                sock=_Readable(udp),
                ignore_unexpected=True,
                ignore_errors=True,
                raise_on_truncation=True,
            )
    except dns.message.Truncated:
        answer = await _by_tcp(server, query)
    assert isinstance(answer, dns.message.QueryMessage)  # an answer has the opcode of its query
    return answer


class _Readable:
    """A socket from which nothing comes that would take long to read."""

    def __init__(self, udp: Any) -> None:
        self._udp = udp
        self.family = udp.family
        self.sendto = udp.sendto

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, Any]:
        while True:
            wire, sender = await self._udp.recvfrom(size, timeout)
            if not too_great(wire):
                return wire, sender


async def _by_tcp(server: HostPort, query: dns.message.Message) -> dns.message.Message:
    """The answer by TCP (RFC 1035 4.2.2). dnspython would read it whatever it is."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        question = query.to_wire()
        writer.write(len(question).to_bytes(2, "big") + question)
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.close()
    if too_great(wire):
        raise _TooGreat
    answer = dns.message.from_wire(wire)
    if not query.is_response(answer):
        raise dns.query.BadResponse
    return answer


@asynccontextmanager
async def _socket_for(server: HostPort) -> AsyncIterator[Any]:
    """A socket for one question. Its making is never cut short: uvloop would leave it open for ever (seen in 0.23)."""
    backend: Any = dns.asyncbackend.get_default_backend()
    family = dns.inet.af_for_address(server.host)
    making = asyncio.ensure_future(backend.make_socket(family, socket.SOCK_DGRAM))
    try:
        made = await asyncio.shield(making)
    except asyncio.CancelledError:
        with suppress(OSError):
            await (await making).close()
        raise
    async with made:
        yield made


def _useless(answer: dns.message.QueryMessage, *, recursion: bool) -> str:
    """Why an answer settles nothing; "" when it does."""
    if answer.rcode() not in _USEFUL:
        return dns.rcode.to_text(answer.rcode())
    if answer.flags & dns.flags.TC:
        return "in part only, by TCP too"
    authoritative = bool(answer.flags & dns.flags.AA)
    if not recursion and not authoritative:
        return "without authority"
    if answer.answer or authoritative or answer.flags & dns.flags.RA:
        return ""
    return "with a referral"  # a lame server: its empty answer says nothing about the name


def _is_address(text: str) -> bool:
    # A router's own address names the interface that leads to it: fe80::1%eth0 (RFC 4007 11).
    for family, address in ((socket.AF_INET, text), (socket.AF_INET6, text.partition("%")[0])):
        try:
            socket.inet_pton(family, address)
        except OSError:
            continue
        return True
    return False
