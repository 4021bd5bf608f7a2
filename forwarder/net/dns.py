"""DNS look-ups with three answers: found, not found, cannot tell.

"Cannot tell" is never a no: whoever refuses or bounces mail does so on ``NotFound`` only. CNAMEs are followed, at
most eight; a loop is "cannot tell". Names come back in lower case without the final dot.

Answers are kept as long as their TTL says, between one second and one hour; negative ones as the SOA says (RFC 2308),
at most five minutes; "cannot tell" for three seconds, so that a dead zone is not asked for every message. Those who
ask the same at once share one question. The cache holds a fixed number of answers (the least recently used one
goes) and at most 256 questions are under way; the others wait inside their own deadline.

``fresh=True`` goes past the cache to the zone's own servers, for a person who has just changed a record and presses
"check"; when these cannot be asked (private addresses are left alone, port 53 may be filtered) the ordinary servers
are. Either way the answer renews the cache.

Limits: see ``forwarder.net.nameservers``.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from typing import Any, Generic, TypeVar, cast

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.reversename

from forwarder.config import HostPort
from forwarder.net.addresses import is_private
from forwarder.net.nameservers import NoAnswer, ask, system_nameservers

MIN_TTL = timedelta(seconds=1)
MAX_TTL = timedelta(hours=1)
MAX_NEGATIVE_TTL = timedelta(minutes=5)
CANNOT_TELL_TTL = timedelta(seconds=3)
ALIASES = 8
QUESTIONS = 256
AUTHORITIES = 3

Record = TypeVar("Record", covariant=True)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mx:
    """One MX record; ``host`` is "" for the root, which makes a null MX (RFC 7505)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[Record]):
    """Records, at least one; ``ttl`` is the lifetime they came with, after our bounds."""

    records: tuple[Record, ...]
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """The DNS says: there is no such record; ``nxdomain``: no such name at all."""

    nxdomain: bool
    ttl: timedelta = field(default=MIN_TTL, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotTell:
    """Nobody answered usefully; never to be taken for a no."""

    reason: str


Answer = Found[Record] | NotFound | CannotTell
_Key = tuple[str, dns.rdatatype.RdataType]


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer[Any]
    stored_at: datetime
    expires_at: datetime


class Resolver:
    """See the module; one for the process. ``deadline`` bounds one question with all its repetitions."""

    def __init__(
        self,
        nameservers: Sequence[HostPort] = (),
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        deadline: timedelta = timedelta(seconds=5),
        cache_size: int = 50_000,
        askable: Callable[[str], bool] = lambda address: not is_private(address),
        authority_port: int = 53,
    ) -> None:
        self._nameservers = tuple(nameservers) or system_nameservers()
        self._clock = clock
        self._deadline = deadline
        self._cache_size = cache_size
        self._askable = askable  # which addresses of a zone's own servers may be asked
        self._authority_port = authority_port
        self._cache: OrderedDict[_Key, _Kept] = OrderedDict()
        self._under_way: dict[_Key, asyncio.Task[Answer[Any]]] = {}
        self._slots = asyncio.Semaphore(QUESTIONS)

    async def mx(self, domain: str, *, fresh: bool = False) -> Answer[Mx]:
        """The MX records of a domain, as they came."""
        return await self._look_up(domain, dns.rdatatype.MX, fresh=fresh)

    async def a(self, host: str, *, fresh: bool = False) -> Answer[str]:
        """IPv4 addresses."""
        return await self._look_up(host, dns.rdatatype.A, fresh=fresh)

    async def aaaa(self, host: str, *, fresh: bool = False) -> Answer[str]:
        """IPv6 addresses."""
        return await self._look_up(host, dns.rdatatype.AAAA, fresh=fresh)

    async def txt(self, name: str, *, fresh: bool = False) -> Answer[bytes]:
        """TXT records; the strings of one record are joined without a space (RFC 7208 3.3, RFC 6376 3.6.2.2)."""
        return await self._look_up(name, dns.rdatatype.TXT, fresh=fresh)

    async def ns(self, domain: str, *, fresh: bool = False) -> Answer[str]:
        """The name servers of a zone."""
        return await self._look_up(domain, dns.rdatatype.NS, fresh=fresh)

    async def cname(self, name: str, *, fresh: bool = False) -> Answer[str]:
        """What this very name is an alias of."""
        return await self._look_up(name, dns.rdatatype.CNAME, fresh=fresh)

    async def ptr(self, address: str) -> Answer[str]:
        """The names of an address; ValueError when it is none."""
        try:
            name = dns.reversename.from_address(address)
        except dns.exception.SyntaxError as exc:
            raise ValueError(f"not an address: {address}") from exc
        return await self._look_up(name.to_text(), dns.rdatatype.PTR)

    async def addresses(self, host: str, *, fresh: bool = False) -> Answer[str]:
        """IPv6 and IPv4 addresses, alternating; what one family holds is found though the other cannot tell."""
        four, six = await asyncio.gather(self.a(host, fresh=fresh), self.aaaa(host, fresh=fresh))
        return _merged(six, four)

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    async def close(self) -> None:
        """End the questions under way; those who wait for them are cancelled."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, name: str, kind: dns.rdatatype.RdataType, *, fresh: bool = False) -> Answer[Any]:
        key = (name.lower().rstrip("."), kind)
        if fresh:
            answer = await self._fresh(*key)
            self._keep(key, answer)
            return answer
        kept = self._cache.get(key)
        if kept is not None and kept.stored_at <= self._clock() < kept.expires_at:
            self._cache.move_to_end(key)
            return kept.answer
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._resolve(key), name=f"dns {key[0]}")
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # shielded: one who gives up waiting must not take the answer from the others
        return await asyncio.shield(task)

    async def _resolve(self, key: _Key) -> Answer[Any]:
        answer = await self._follow(*key)
        self._keep(key, answer)
        return answer

    def _keep(self, key: _Key, answer: Answer[Any]) -> None:
        now = self._clock()
        match answer:
            case Found(ttl=ttl) | NotFound(ttl=ttl):
                until = now + ttl
            case CannotTell():
                until = now + CANNOT_TELL_TTL
        self._cache[key] = _Kept(answer, now, until)
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    async def _follow(self, text: str, kind: dns.rdatatype.RdataType) -> Answer[Any]:
        """Ask, and ask again for the end of a chain of aliases that the server did not follow itself."""
        try:
            name = dns.name.from_text(text)
        except (dns.exception.DNSException, UnicodeError):
            return NotFound(nxdomain=True)  # no zone can hold it
        seen = {name}
        for _ in range(ALIASES):
            try:
                async with asyncio.timeout(self._deadline.total_seconds()), self._slots:
                    message = await ask(self._nameservers, name, kind, deadline=self._deadline)
            except NoAnswer as exc:
                return CannotTell(reason=str(exc))
            except TimeoutError:
                return CannotTell(reason="too many questions are under way")
            answer = _read(message, kind)
            if not isinstance(answer, dns.name.Name):
                return answer
            if answer in seen:
                return CannotTell(reason=f"{text} is an alias that leads back to itself")
            seen.add(answer)
            name = answer
        return CannotTell(reason=f"{text} is an alias of more than {ALIASES} steps")

    async def _fresh(self, text: str, kind: dns.rdatatype.RdataType) -> Answer[Any]:
        servers = await self._authorities(text)
        if servers:
            try:
                name = dns.name.from_text(text)
                message = await ask(servers, name, kind, deadline=self._deadline, recursion=False)
                answer = _read(message, kind)
            except (NoAnswer, dns.exception.DNSException):
                return await self._follow(text, kind)
            if isinstance(answer, dns.name.Name):  # the alias leads into a zone that may be someone else's
                return await self._follow(answer.to_text(), kind)
            return answer
        return await self._follow(text, kind)

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


def _read(message: dns.message.QueryMessage, kind: dns.rdatatype.RdataType) -> Answer[Any] | dns.name.Name:
    """What an answer says; a name: the rest of a chain has to be asked for."""
    try:
        result = message.resolve_chaining()
    except dns.message.ChainTooLong:
        return CannotTell(reason="an alias leads back to itself")
    except dns.exception.DNSException as exc:
        return CannotTell(reason=f"the answer contradicts itself ({type(exc).__name__})")
    ttl = timedelta(seconds=result.minimum_ttl)
    if result.answer is not None:
        records = tuple(_record(rdata, kind) for rdata in result.answer)
        return Found(records=records, ttl=max(MIN_TTL, min(ttl, MAX_TTL)))
    nxdomain = message.rcode() == dns.rcode.NXDOMAIN
    authority = any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
    if result.cnames and not nxdomain and not authority:
        return result.canonical_name
    if not authority:  # RFC 2308 5: without an SOA a negative answer should not be kept
        ttl = MIN_TTL
    return NotFound(nxdomain=nxdomain, ttl=max(MIN_TTL, min(ttl, MAX_NEGATIVE_TTL)))


def _record(rdata: dns.rdata.Rdata, kind: dns.rdatatype.RdataType) -> Mx | str | bytes:
    fields = cast(Any, rdata)  # dnspython types rdata by class at run time
    match kind:
        case dns.rdatatype.MX:
            return Mx(preference=fields.preference, host=_text(fields.exchange))
        case dns.rdatatype.TXT:
            return b"".join(fields.strings)
        case dns.rdatatype.A | dns.rdatatype.AAAA:
            return cast(str, fields.address)
        case _:
            return _text(fields.target)


def _text(name: dns.name.Name) -> str:
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def _merged(first: Answer[_T], second: Answer[_T]) -> Answer[_T]:
    match first, second:
        case Found(), Found():
            pairs = zip_longest(first.records, second.records)
            both = tuple(record for pair in pairs for record in pair if record is not None)
            return Found(records=both, ttl=min(first.ttl, second.ttl))
        case (Found() as one, _) | (_, Found() as one):
            return one
        case (CannotTell() as one, _) | (_, CannotTell() as one):
            return one
        case NotFound(), NotFound():
            return NotFound(nxdomain=first.nxdomain and second.nxdomain)
        case _:
            return CannotTell(reason="no answer")
