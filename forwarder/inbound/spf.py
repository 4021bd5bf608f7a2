"""SPF (RFC 7208) of one client and sender: the evaluation of the ``spf`` library over our own resolver.

The library asks DNS in the middle of its evaluation and waits. Here it never waits: it runs over the answers known
so far and those that the resolver remembers, stops at the first one that is missing, the resolver fetches that one
(for MX records, the addresses of all hosts at once), and it runs again. An evaluation takes a tenth of a millisecond,
half a one where big services are included, and RFC 7208 section 4.6.4 bounds the number of answers; ``MAX_ROUNDS``
bounds it whatever the library counts, and the bounds below the work of each round: what goes beyond them is made to be
read slowly. A domain without an SPF record, and one that cannot have any, costs no evaluation.

Nothing raises but cancellation: DNS trouble is TEMPERROR, a record the library stumbles over is PERMERROR.
The explanation (exp=) is never fetched: it is text of a stranger that we would not repeat.
"""

import asyncio
import ipaddress
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from forwarder.mail.address import Path
from forwarder.mail.dmarc import SpfResult
from forwarder.mail.spf_record import LONGEST, ends_in_label
from forwarder.mail.verification import AuthResult
from forwarder.net.answers import Answer, CannotTell, Found, Mx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's old escapes warn when it is compiled for the first time
    import spf

MAX_ROUNDS = 40
MAX_MX = 10  # RFC 7208 4.6.4
MAX_TERM = 300  # octets; a name has 253
MAX_TERMS = 350  # of a record; there is room for no more networks in it
MAX_MACROS = 60  # of a record
MAX_DOTS = 30  # beside a macro; for each the library looks for wrong ones in the whole text
MAX_NAME = 253
MAX_ADDRESSES = 1000  # of all names together; RFC 7208 4.6.4 bounds the names, a hundred of them
NETWORKS = 8192  # that are remembered; the records of the biggest services hold some hundreds
_NETWORK = re.compile(r"[-+?~]?ip[46]:[0-9a-f:.]{2,45}(?:/[0-9]{1,3})?\Z", re.IGNORECASE)
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})+\Z")
_QUERY_NAME = re.compile(r"[ -~]{1,253}\Z")
_RECORD = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)

_AT_HAND = frozenset({"TXT", "A", "AAAA"})
Question = tuple[str, str]  # name and type, as the library asks
# What DNS said: records as the library wants them, [] for none, None when it could not tell.
Known = dict[Question, list[Any] | None]


class Questions(Protocol):
    """What SPF, and screening, ask of a resolver."""

    def kept(self, name: str, kind: str) -> Answer[Any] | None: ...
    async def txt(self, name: str) -> Answer[bytes]: ...
    async def a(self, host: str) -> Answer[str]: ...
    async def aaaa(self, host: str) -> Answer[str]: ...
    async def mx(self, domain: str) -> Answer[Mx]: ...
    async def ptr(self, address: str) -> Answer[str]: ...


class Sender(NamedTuple):
    """Who sent a message, as far as SPF looks."""

    client_address: str
    helo: str
    reverse_path: Path
    receiver: str  # our own name

    @property
    def identity(self) -> str:
        """Whether the reverse-path is looked at or, when that is null, the HELO name (RFC 7208 2.4)."""
        return "helo" if self.reverse_path.is_null else "mailfrom"

    @property
    def domain(self) -> str:
        """Whose record decides."""
        name = self.helo if self.reverse_path.is_null else self.reverse_path.domain
        return name.lower().removesuffix(".")

    def result(self, result: AuthResult, reason: str = "") -> SpfResult:
        """What was found of this sender."""
        return SpfResult(result=result, identity=self.identity, domain=self.domain, reason=reason)


class _Missing(Exception):
    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self.question = question


class _Evaluation(spf.query):  # type: ignore[misc]
    """The library's evaluation, over answers that are already here.

    The records of big services are lists of networks, and reading each takes the library as long as all the rest of
    the evaluation. So what it makes of one is remembered.
    """

    answers: "SpfCheck"
    addresses = 0  # that were compared

    def validate_mechanism(self, mechanism: str) -> tuple[Any, ...]:
        if _NETWORK.match(mechanism):
            return _network_mechanism(mechanism)
        return tuple(super().validate_mechanism(mechanism))

    def expand_domain(self, text: str) -> str:
        """As the library has it (RFC 7208 7.1), which takes the square of the last label to find that it is none."""
        last = spf.RE_CHAR.split(text)[-1]  # what follows the last macro
        if last and not ends_in_label(last):
            raise spf.PermError("not a domain", text)
        return self.expand(text)

    def expand(self, text: str, stripdot: bool = True) -> str:
        if "%" in text and text.count(".") > MAX_DOTS:
            raise spf.PermError("too many labels", text)
        return str(super().expand(text, stripdot))

    def cidrmatch(self, addresses: Sequence[str], bits: int) -> bool:
        return any(self.ipaddr in _network(address, bits) for address in addresses)

    def dns(self, name: str, qtype: str, cnames: Any = None, ignore_void: bool = False) -> list[Any]:
        question = (str(name).lower().removesuffix("."), qtype)
        if not _QUERY_NAME.match(question[0]) or any(
            not 0 < len(part) < 64 for part in question[0].split(".")
        ):
            records: list[Any] | None = []
        else:
            records = self.answers.of(question)
        if records is None:
            raise spf.TempError("DNS cannot tell")
        if qtype == "TXT" and any(map(_is_too_long, records)):
            raise spf.PermError("the record, or a term of it, is too long")
        if qtype in ("A", "AAAA"):
            self.addresses += len(records)
            if self.addresses > MAX_ADDRESSES:
                raise spf.PermError("too many addresses")
        if not records and not ignore_void:
            self._found_nothing()
        return list(records)

    def _found_nothing(self) -> None:
        self.void_lookups += 1
        if self.void_lookups > spf.MAX_VOID_LOOKUPS:
            raise spf.PermError("too many look-ups without an answer")

    def dns_mx(self, domain: str) -> list[str]:
        """RFC 7208 4.6.4 bounds the terms that find nothing. The library counts each host of an ``mx`` term.

        Those of many domains have no address to compare with that of a client of IPv6.
        """
        hosts = self.dns(domain, "MX")
        if len(hosts) > MAX_MX:
            raise spf.PermError("too many MX records")
        found = [address for _, host in hosts if host for address in self.dns(host, self.A, ignore_void=True)]
        if hosts and not found:
            self._found_nothing()
        return found

    def validated_ptrs(self) -> list[str]:
        """RFC 7208 5.5: at most ten names, and one whose address cannot be told, or that has none, is skipped."""
        return [name for name in self.dns_ptr(self.i)[: spf.MAX_PTR] if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns(name, self.A, ignore_void=True), self.cidrmax))
        except spf.TempError:
            return False

    def get_explanation(self, spec: str) -> None:
        return None


@lru_cache(maxsize=NETWORKS)
def _network_mechanism(mechanism: str) -> tuple[Any, ...]:
    """As the library reads ``ip4:`` or ``ip6:``, which has nothing to do with the sender."""
    anybody = spf.query(i="192.0.2.1", s="postmaster@localhost.test", h="localhost.test")
    return tuple(anybody.validate_mechanism(mechanism))


@lru_cache(maxsize=NETWORKS)
def _network(address: str, bits: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(address).supernet(new_prefix=bits)


def _is_too_long(record: Sequence[bytes]) -> bool:
    [text] = record
    if len(text) <= MAX_TERM or not _RECORD.match(text):
        return False
    terms = text.split(b" ")
    return (
        len(text) > LONGEST
        or len(terms) > MAX_TERMS
        or max(map(len, terms)) > MAX_TERM
        or text.count(b"%") > MAX_MACROS
    )


class SpfCheck:
    """SPF of one sender, and what is known of the DNS while it is looked at."""

    _missing: Question | None = None  # what the latest evaluation could not go on without

    def __init__(self, resolver: Questions, sender: Sender) -> None:
        self._resolver = resolver
        self._sender = sender
        self._known: Known = {}

    def at_hand(self) -> SpfResult | None:
        """The result where the resolver remembers all that it takes; None: it has to be ``asked``."""
        try:
            return self._judged()
        except _Missing as missing:
            self._missing = missing.question
            return None

    async def asked(self) -> SpfResult:
        """The result, over what DNS answers."""
        for _ in range(MAX_ROUNDS):
            if self._missing is not None:
                await self._fetch(self._missing)
            if (found := self.at_hand()) is not None:
                return found
        return self._sender.result(AuthResult.PERMERROR, "too many look-ups")

    def of(self, question: Question) -> list[Any] | None:
        """Records as the library wants them, [] for none, None where DNS cannot tell; _Missing."""
        if question not in self._known:
            name, kind = question
            # Not MX: the addresses of its hosts, if they have to be asked for, are asked for together.
            kept = self._resolver.kept(name, kind) if kind in _AT_HAND else None
            if kept is None:
                raise _Missing(question)
            self._known[question] = _records(kind, kept)
        return self._known[question]

    def _judged(self) -> SpfResult:
        sender = self._sender
        domain = sender.domain
        if not _is_host_name(domain):
            return sender.result(AuthResult.NONE)
        texts = self.of((domain, "TXT"))
        if texts is None:
            return sender.result(AuthResult.TEMPERROR, "DNS cannot tell")
        if not any(_RECORD.match(text) for [text] in texts):
            return sender.result(AuthResult.NONE)
        return sender.result(self._evaluated(domain))

    def _evaluated(self, domain: str) -> AuthResult:
        sender = self._sender
        address = "" if sender.reverse_path.is_null else f"{sender.reverse_path.local}@{domain}"
        helo = sender.helo if _is_host_name(sender.helo.lower().removesuffix(".")) else "unknown"
        try:
            query = _Evaluation(i=sender.client_address, s=address, h=helo, receiver=sender.receiver)
            query.answers = self
            if address:  # the library divides at the first @, which may stand in a quoted local part
                local, _, query.o = address.rpartition("@")
                query.l, query.d = local or "postmaster", query.o  # RFC 7208 4.3
            return AuthResult(query.check()[0])
        except _Missing:
            raise
        except Exception:  # noqa: BLE001 - the record of a stranger broke the library: the record's fault
            return AuthResult.PERMERROR

    async def _fetch(self, question: Question) -> None:
        """Ask for one answer, and for those that will be asked for next."""
        name, kind = question
        records = self._known[question] = await self._ask(name, kind)
        hosts: list[str] = []
        if kind == "MX":
            hosts = [host for _, host in records or ()]
        elif kind == "PTR":
            hosts = records or []
        client = self._sender.client_address
        kind = "AAAA" if ":" in client and not client.lower().startswith("::ffff:") else "A"
        wanted = [
            (host.lower().removesuffix("."), kind) for host in hosts[:MAX_MX] if _QUERY_NAME.match(host)
        ]
        new = [one for one in dict.fromkeys(wanted) if one not in self._known]
        await asyncio.gather(*map(self._fetch, new))

    async def _ask(self, name: str, kind: str) -> list[Any] | None:
        match kind:
            case "TXT":
                return _records(kind, await self._resolver.txt(name))
            case "A":
                return _records(kind, await self._resolver.a(name))
            case "AAAA":
                return _records(kind, await self._resolver.aaaa(name))
            case "PTR":
                # RFC 7208 5.5: trouble with the PTR record means that nothing matches, not that nothing can be told.
                return _records(kind, await self._resolver.ptr(self._sender.client_address)) or []
            case "MX":
                return _records(kind, await self._resolver.mx(name))
        return []


def _is_host_name(text: str) -> bool:
    return len(text) <= MAX_NAME and _HOST_NAME.match(text) is not None


def _records(kind: str, answer: Answer[Any]) -> list[Any] | None:
    if isinstance(answer, CannotTell):
        return None
    records: Sequence[Any] = answer.records if isinstance(answer, Found) else ()
    match kind:
        case "TXT":
            return [[text] for text in records]
        case "MX":
            return [(mx.preference, mx.host) for mx in records]
    return list(records)
