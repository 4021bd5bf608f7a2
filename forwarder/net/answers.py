"""What the DNS says: found, not found, cannot tell; and the reading of a message as one of them.

Pure. ``read`` follows the chain of aliases within a message; where the chain leaves it, the name to ask for next is
the result. Lifetimes are bounded here, so that nobody else has to.

``secure``: the name server says that it validated the answer (AD, RFC 4035 3.2.3). It is as true as the way to that
server is safe; who forges it can only make us demand more than we would.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Generic, TypeVar, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype

from forwarder.mail.dane import Tlsa

MIN_TTL = timedelta(seconds=1)
MAX_TTL = timedelta(hours=1)
MAX_NEGATIVE_TTL = timedelta(minutes=5)
_RECORD = 64  # octets of an object

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
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """The DNS says: there is no such record; ``nxdomain``: no such name at all."""

    nxdomain: bool
    ttl: timedelta = field(default=MIN_TTL, compare=False)
    secure: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotTell:
    """Nobody answered usefully; never to be taken for a no."""

    reason: str  # strangers may read it, in a report or in the log of a message
    server: str = ""  # of whom the reason tells, for whoever runs this engine


Answer = Found[Record] | NotFound | CannotTell


def read(message: dns.message.QueryMessage, kind: dns.rdatatype.RdataType) -> Answer[Any] | dns.name.Name:
    """What an answer says; a name: the rest of a chain has to be asked for."""
    try:
        result = message.resolve_chaining()
    except dns.message.ChainTooLong:
        return CannotTell(reason="an alias leads back to itself")
    except dns.exception.DNSException as exc:
        return CannotTell(reason=f"the answer contradicts itself ({type(exc).__name__})")
    ttl = timedelta(seconds=result.minimum_ttl)
    secure = bool(message.flags & dns.flags.AD)
    if result.answer is not None:
        records = tuple(_record(rdata, kind) for rdata in result.answer)
        return Found(records=records, ttl=max(MIN_TTL, min(ttl, MAX_TTL)), secure=secure)
    nxdomain = message.rcode() == dns.rcode.NXDOMAIN
    authority = any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
    if result.cnames and not nxdomain and not authority:
        return result.canonical_name
    if not authority:  # RFC 2308 5: without an SOA a negative answer should not be kept
        ttl = MIN_TTL
    return NotFound(nxdomain=nxdomain, ttl=max(MIN_TTL, min(ttl, MAX_NEGATIVE_TTL)), secure=secure)


def _record(rdata: dns.rdata.Rdata, kind: dns.rdatatype.RdataType) -> Mx | Tlsa | str | bytes:
    fields = cast(Any, rdata)  # dnspython types rdata by class at run time
    match kind:
        case dns.rdatatype.MX:
            return Mx(preference=fields.preference, host=_text(fields.exchange))
        case dns.rdatatype.TXT:
            return b"".join(fields.strings)
        case dns.rdatatype.A | dns.rdatatype.AAAA:
            return cast(str, fields.address)
        case dns.rdatatype.TLSA:
            return Tlsa(fields.usage, fields.selector, fields.mtype, fields.cert)
        case _:
            return _text(fields.target)


def texts_of(answer: Answer[bytes]) -> list[str]:
    """The TXT records of an answer as text, whatever octets stand in them; none where there is none."""
    return [text.decode("utf-8", "replace") for text in answer.records] if isinstance(answer, Found) else []


def octets(answer: Answer[Any]) -> int:
    """How much memory an answer takes, about."""
    if not isinstance(answer, Found):
        return 0
    return sum(_RECORD + len(_longest_field(record)) for record in answer.records)


def _longest_field(record: Any) -> str | bytes:
    match record:
        case Mx(host=host):
            return host
        case Tlsa(data=data):
            return data
        case _:
            return cast("str | bytes", record)


def _text(name: dns.name.Name) -> str:
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def merged(first: Answer[_T], second: Answer[_T]) -> Answer[_T]:
    """Two answers as one: what either found, in turns; else what either cannot tell; else what is not there."""
    match first, second:
        case Found(), Found():
            pairs = zip_longest(first.records, second.records)
            both = tuple(record for pair in pairs for record in pair if record is not None)
            return Found(records=both, ttl=min(first.ttl, second.ttl), secure=first.secure and second.secure)
        case (Found() as one, _) | (_, Found() as one):
            return one
        case (CannotTell() as one, _) | (_, CannotTell() as one):
            return one
        case NotFound(), NotFound():
            return NotFound(nxdomain=first.nxdomain and second.nxdomain)
