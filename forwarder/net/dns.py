"""DNS look-ups with three answers: found, not found, cannot tell.

"Cannot tell" is never a no: whoever refuses or bounces mail does so on ``NotFound`` only. CNAMEs are followed, at
most eight; a loop is "cannot tell". Names come back in lower case without the final dot.

Answers are kept as long as their TTL says, between one second and one hour; negative ones as the SOA says (RFC 2308),
at most five minutes; "cannot tell" for three seconds, so that a dead zone is not asked for every message. Those who
ask the same at once share one question. The cache holds a fixed number of answers, of which one of more than a KiB
counts as several, since what a zone says is its owner's choice (the least recently used one goes), and at most 256
questions are under way; the others wait inside their own deadline. Of these places the owner of a name has a share, or
the one on whose behalf it is asked for (``net.shares``): else one message to a hundred domains whose servers are silent
would keep everybody from being asked. What found no place is not kept, and whoever shared that question asks it in a
share of their own: a silent domain may name the mail hosts of others among its own.

``fresh=True`` goes past the cache to the zone's own servers, for a person who has just changed a record and presses
"check"; when these cannot be asked (private addresses are left alone, port 53 may be filtered) the ordinary servers
are. Either way the answer renews the cache; but of MX records the cache only forgets what it had, since the zone's own
servers validate nothing, and mail must not go out with less than a validated answer would demand.

Limits: see ``forwarder.net.nameservers``.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import dns.exception
import dns.flags
import dns.name
import dns.rdatatype
import dns.reversename

from forwarder.clock import utc_now
from forwarder.config import HostPort
from forwarder.errands import Errands
from forwarder.mail.dane import Tlsa
from forwarder.net.addresses import is_private
from forwarder.net.answers import Answer, CannotTell, Found, Mx, NotFound, merged, octets, read
from forwarder.net.nameservers import NoAnswer, Silence, SystemServers, ask
from forwarder.net.registered import registered_domain
from forwarder.net.shares import Shares
from forwarder.tally import DNS, Tally

CANNOT_TELL_TTL = timedelta(seconds=3)
ALIASES = 8  # in a row
QUESTIONS = 256  # under way at once
AUTHORITIES = 3  # name servers of a zone that are asked by ``fresh``
PLACE = 1024  # octets of an answer

_CROWDED = CannotTell(reason="too many questions are under way")
_Key = tuple[str, dns.rdatatype.RdataType]


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Answer[Any]
    stored_at: datetime
    expires_at: datetime
    places: int


class Resolver:
    """See the module; one for the process. ``deadline`` bounds one question with all its repetitions."""

    def __init__(
        self,
        nameservers: Sequence[HostPort] = (),
        *,
        clock: Callable[[], datetime] = utc_now,
        deadline: timedelta = timedelta(seconds=5),
        cache_size: int = 50_000,
        askable: Callable[[str], bool] = lambda address: not is_private(address),
        authority_port: int = 53,
        tally: Tally | None = None,
    ) -> None:
        configured = tuple(nameservers)
        self._nameservers: Callable[[], Sequence[HostPort]]
        self._nameservers = (lambda: configured) if configured else SystemServers()
        self._silence = Silence()
        self._clock = clock
        self._deadline = deadline
        self._cache_size = cache_size
        self._askable = askable  # which addresses of a zone's own servers may be asked
        self._authority_port = authority_port
        self._cache: OrderedDict[_Key, _Entry] = OrderedDict()
        self._taken = 0  # places of the cache
        self._questions = Errands("dns")
        self._slots = Shares(QUESTIONS)
        counts = (tally or Tally()).counts(DNS)
        self._counts = {
            Found: counts["found"],
            NotFound: counts["not_found"],
            CannotTell: counts["cannot_tell"],
        }

    async def mx(self, domain: str, *, fresh: bool = False) -> Answer[Mx]:
        """The MX records of a domain, as they came."""
        return await self._look_up(domain, dns.rdatatype.MX, fresh=fresh)

    async def a(self, host: str, *, behalf: str = "") -> Answer[str]:
        """IPv4 addresses; ``behalf``: the domain whose share of the questions it is, that of the host when empty."""
        return await self._look_up(host, dns.rdatatype.A, behalf=behalf)

    async def aaaa(self, host: str, *, behalf: str = "") -> Answer[str]:
        """IPv6 addresses."""
        return await self._look_up(host, dns.rdatatype.AAAA, behalf=behalf)

    async def txt(self, name: str, *, fresh: bool = False) -> Answer[bytes]:
        """TXT records; the strings of one record are joined without a space (RFC 7208 3.3, RFC 6376 3.6.2.2)."""
        return await self._look_up(name, dns.rdatatype.TXT, fresh=fresh)

    def kept(self, name: str, kind: str) -> Answer[Any] | None:
        """What is remembered of a name's records of a kind, "TXT" say; None: nothing, they have to be asked for."""
        return self._kept((name.lower().rstrip("."), dns.rdatatype.RdataType[kind]))

    async def ns(self, domain: str) -> Answer[str]:
        """The name servers of a zone."""
        return await self._look_up(domain, dns.rdatatype.NS)

    async def cname(self, name: str, *, fresh: bool = False) -> Answer[str]:
        """What this very name is an alias of."""
        return await self._look_up(name, dns.rdatatype.CNAME, fresh=fresh)

    async def tlsa(self, host: str, port: int) -> Answer[Tlsa]:
        """What a TCP service of a host shows by TLS (RFC 6698 3)."""
        return await self._look_up(f"_{port}._tcp.{host}", dns.rdatatype.TLSA)

    async def ptr(self, address: str) -> Answer[str]:
        """The names of an address; ValueError when it is none."""
        try:
            name = dns.reversename.from_address(address)
        except dns.exception.SyntaxError as exc:
            raise ValueError(f"not an address: {address}") from exc
        return await self._look_up(name.to_text(), dns.rdatatype.PTR)

    async def addresses(self, host: str, *, behalf: str = "") -> Answer[str]:
        """IPv6 and IPv4 addresses, alternating; what one family holds is found though the other cannot tell."""
        kept = self._kept_addresses(host)
        if kept is not None:
            return kept
        four, six = await asyncio.gather(self.a(host, behalf=behalf), self.aaaa(host, behalf=behalf))
        return merged(six, four)

    async def addresses_of(self, hosts: Sequence[str], *, behalf: str = "") -> dict[str, Answer[str]]:
        """The addresses of several hosts, asked for at once; without a task for those that are in the cache."""
        answers = {host: self._kept_addresses(host) for host in hosts}
        missing = [host for host, answer in answers.items() if answer is None]
        asked = await asyncio.gather(*(self.addresses(host, behalf=behalf) for host in missing))
        kept = {host: answer for host, answer in answers.items() if answer is not None}
        return kept | dict(zip(missing, asked, strict=True))

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()
        self._taken = 0

    async def close(self) -> None:
        """End the questions under way; those who wait for them are cancelled."""
        await self._questions.close()

    async def _look_up(
        self, name: str, kind: dns.rdatatype.RdataType, *, fresh: bool = False, behalf: str = ""
    ) -> Answer[Any]:
        key = (name.lower().rstrip("."), kind)
        if fresh:
            answer = await self._fresh(*key)
            self._counts[type(answer)].add()
            if kind == dns.rdatatype.MX:
                self._drop(key)
            else:
                self._keep(key, answer)
            return answer
        kept = self._kept(key)
        if kept is not None:
            return kept
        shared = key in self._questions
        answer = await self._questions.run(key, lambda: self._resolve(key, behalf))
        if shared and answer is _CROWDED:  # perhaps in the share of somebody else
            answer = await self._questions.run((key, behalf), lambda: self._resolve(key, behalf))
        return answer

    def _kept(self, key: _Key) -> Answer[Any] | None:
        entry = self._cache.get(key)
        # a clock that was set back must not keep an answer alive
        if entry is None or not entry.stored_at <= self._clock() < entry.expires_at:
            return None
        self._cache.move_to_end(key)
        return entry.answer

    def _kept_addresses(self, host: str) -> Answer[str] | None:
        name = host.lower().rstrip(".")
        four, six = self._kept((name, dns.rdatatype.A)), self._kept((name, dns.rdatatype.AAAA))
        return None if four is None or six is None else merged(six, four)

    async def _resolve(self, key: _Key, behalf: str) -> Answer[Any]:
        answer = await self._follow(*key, behalf)
        self._counts[type(answer)].add()
        if answer is not _CROWDED:  # it says nothing of the name
            self._keep(key, answer)
        return answer

    def _keep(self, key: _Key, answer: Answer[Any]) -> None:
        now = self._clock()
        match answer:
            case Found(ttl=ttl) | NotFound(ttl=ttl):
                until = now + ttl
            case CannotTell():
                until = now + CANNOT_TELL_TTL
        self._drop(key)
        entry = self._cache[key] = _Entry(answer, now, until, 1 + octets(answer) // PLACE)
        self._taken += entry.places
        while self._taken > self._cache_size:
            self._drop(next(iter(self._cache)))

    def _drop(self, key: _Key) -> None:
        entry = self._cache.pop(key, None)
        if entry is not None:
            self._taken -= entry.places

    async def _follow(self, text: str, kind: dns.rdatatype.RdataType, behalf: str = "") -> Answer[Any]:
        """Ask, and ask again for the end of a chain of aliases that the server did not follow itself."""
        try:
            name = dns.name.from_text(text)
        except (dns.exception.DNSException, UnicodeError):
            return NotFound(nxdomain=True)  # no zone can hold it
        seen = {name}
        secure = True
        for _ in range(ALIASES):
            owner = registered_domain(behalf or name.to_text(omit_final_dot=True).lower())
            try:
                async with asyncio.timeout(self._deadline.total_seconds()):
                    await self._slots.take(owner)
            except TimeoutError:
                return _CROWDED
            try:
                message = await ask(
                    self._nameservers(), name, kind, deadline=self._deadline, silence=self._silence
                )
            except NoAnswer as exc:
                return CannotTell(reason=str(exc), server=str(exc.server or ""))
            finally:
                self._slots.give_back(owner)
            answer = read(message, kind)
            if not isinstance(answer, dns.name.Name):
                return answer if secure or isinstance(answer, CannotTell) else replace(answer, secure=False)
            if answer in seen:
                return CannotTell(reason=f"{text} is an alias that leads back to itself")
            seen.add(answer)
            secure = secure and bool(message.flags & dns.flags.AD)  # of the steps; the end has its own
            name = answer
        return CannotTell(reason=f"{text} is an alias of more than {ALIASES} steps")

    async def _fresh(self, text: str, kind: dns.rdatatype.RdataType) -> Answer[Any]:
        servers = await self._authorities(text)
        if not servers:
            return await self._follow(text, kind)
        try:
            name = dns.name.from_text(text)
            message = await ask(servers, name, kind, deadline=self._deadline, recursion=False)
            answer = read(message, kind)
        except (NoAnswer, dns.exception.DNSException):
            return await self._follow(text, kind)
        if isinstance(answer, dns.name.Name):  # the alias leads into a zone that may be someone else's
            return await self._follow(answer.to_text(), kind)
        return answer

    async def _authorities(self, text: str) -> tuple[HostPort, ...]:
        labels = text.split(".")
        for start in range(len(labels) - 1):  # never the servers of a top-level domain
            servers = await self.ns(".".join(labels[start:]))
            if isinstance(servers, CannotTell):
                return ()
            if isinstance(servers, Found):
                hosts = servers.records[:AUTHORITIES]
                found = await asyncio.gather(*(self.addresses(host) for host in hosts))
                known = chain.from_iterable(answer.records for answer in found if isinstance(answer, Found))
                return tuple(HostPort(each, self._authority_port) for each in known if self._askable(each))
        return ()
