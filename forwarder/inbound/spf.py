"""SPF (RFC 7208) of one client and sender: the evaluation of the ``spf`` library over our own resolver.

The library asks DNS in the middle of its evaluation and waits. Here it never waits: it runs over the answers known
so far, stops at the first one that is missing, the resolver fetches that one (for MX records, the addresses of all
hosts at once), and it runs again. An evaluation takes a tenth of a millisecond, and RFC 7208 section 4.6.4 bounds the
number of answers; ``MAX_ROUNDS`` bounds it whatever the library counts, and ``MAX_RECORD`` the work of each round. A
domain without an SPF record, and one that cannot have any, costs no evaluation.

Nothing raises but cancellation: DNS trouble is TEMPERROR, a record the library stumbles over is PERMERROR.
The explanation (exp=) is never fetched: it is text of a stranger that we would not repeat.
"""

import asyncio
import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from forwarder.mail.address import Path
from forwarder.mail.dmarc import SpfResult
from forwarder.mail.verification import AuthResult
from forwarder.net.answers import Answer, CannotTell, Found, Mx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the library's old escapes warn when it is compiled for the first time
    import spf

MAX_ROUNDS = 40
MAX_MX = 10  # RFC 7208 4.6.4
MAX_RECORD = 4096  # octets; RFC 7208 3.4 wants 450, and evaluation is repeated for each answer
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})+\Z")
_QUERY_NAME = re.compile(r"[ -~]{1,253}\Z")
_RECORD = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)

Question = tuple[str, str]  # name and type, as the library asks
# What DNS said: records as the library wants them, [] for none, None when it could not tell.
Known = dict[Question, list[Any] | None]


class Questions(Protocol):
    """What SPF, and screening, ask of a resolver."""

    def kept_txt(self, name: str) -> Answer[bytes] | None: ...
    async def txt(self, name: str) -> Answer[bytes]: ...
    async def a(self, host: str) -> Answer[str]: ...
    async def aaaa(self, host: str) -> Answer[str]: ...
    async def mx(self, domain: str) -> Answer[Mx]: ...
    async def ptr(self, address: str) -> Answer[str]: ...


class _Missing(Exception):
    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self.question = question


class _Evaluation(spf.query):  # type: ignore[misc]
    """The library's evaluation, over answers that are already here."""

    known: Known

    def dns(self, name: str, qtype: str, cnames: Any = None, ignore_void: bool = False) -> list[Any]:
        question = (str(name).lower().removesuffix("."), qtype)
        if not _QUERY_NAME.match(question[0]) or any(
            not 0 < len(part) < 64 for part in question[0].split(".")
        ):
            records: list[Any] | None = []
        elif question in self.known:
            records = self.known[question]
        else:
            raise _Missing(question)
        if records is None:
            raise spf.TempError("DNS cannot tell")
        if qtype == "TXT" and any(len(text) > MAX_RECORD and _RECORD.match(text) for [text] in records):
            raise spf.PermError("the record is too long")
        if not records and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError("too many look-ups without an answer")
        return list(records)

    def validated_ptrs(self) -> list[str]:
        """RFC 7208 5.5: at most ten names, and one whose address cannot be told is skipped."""
        return [name for name in self.dns_ptr(self.i)[: spf.MAX_PTR] if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
        except spf.TempError:
            return False

    def get_explanation(self, spec: str) -> None:
        return None


async def check_spf(
    resolver: Questions, *, client_address: str, helo: str, reverse_path: Path, receiver: str
) -> SpfResult:
    """The result for the reverse-path, or for the HELO name when that is null (RFC 7208 2.4)."""
    identity = "helo" if reverse_path.is_null else "mailfrom"
    domain = (helo if reverse_path.is_null else reverse_path.domain).lower().removesuffix(".")
    if not _HOST_NAME.match(domain) or len(domain) > 253:
        return SpfResult(result=AuthResult.NONE, identity=identity, domain=domain)
    texts = await resolver.txt(domain)
    if isinstance(texts, CannotTell):
        return SpfResult(
            result=AuthResult.TEMPERROR, identity=identity, domain=domain, reason="DNS cannot tell"
        )
    if not isinstance(texts, Found) or not any(_RECORD.match(text) for text in texts.records):
        return SpfResult(result=AuthResult.NONE, identity=identity, domain=domain)
    known: Known = {(domain, "TXT"): [[text] for text in texts.records]}
    helo = helo if _HOST_NAME.match(helo.lower().removesuffix(".")) else "unknown"
    sender = "" if reverse_path.is_null else f"{reverse_path.local}@{domain}"
    for _ in range(MAX_ROUNDS):
        try:
            result = _evaluate(
                known, client_address=client_address, sender=sender, helo=helo, receiver=receiver
            )
        except _Missing as missing:
            await _fetch(resolver, missing.question, known, client_address)
        else:
            return SpfResult(result=result, identity=identity, domain=domain)
    return SpfResult(
        result=AuthResult.PERMERROR, identity=identity, domain=domain, reason="too many look-ups"
    )


def _evaluate(known: Known, *, client_address: str, sender: str, helo: str, receiver: str) -> AuthResult:
    try:
        query = _Evaluation(i=client_address, s=sender, h=helo, receiver=receiver)
        query.known = known
        if sender:  # the library divides at the first @, which may stand in a quoted local part
            local, _, query.o = sender.rpartition("@")
            query.l, query.d = local or "postmaster", query.o  # RFC 7208 4.3
        return AuthResult(query.check()[0])
    except _Missing:
        raise
    except Exception:  # noqa: BLE001 - the record of a stranger broke the library: the record's fault
        return AuthResult.PERMERROR


async def _fetch(resolver: Questions, question: Question, known: Known, client_address: str) -> None:
    """Ask for one answer, and for those that will be asked for next."""
    name, kind = question
    match kind:
        case "TXT":
            known[question] = _records(await resolver.txt(name), lambda text: [text])
        case "A":
            known[question] = _records(await resolver.a(name))
        case "AAAA":
            known[question] = _records(await resolver.aaaa(name))
        case "PTR":
            # RFC 7208 5.5: trouble with the PTR record means that nothing matches, not that nothing can be told.
            known[question] = _records(await resolver.ptr(client_address)) or []
        case "MX":
            known[question] = _records(await resolver.mx(name), lambda mx: (mx.preference, mx.host))
        case _:
            known[question] = []
    records = known[question] or []
    hosts = [host for _, host in records] if kind == "MX" else records if kind == "PTR" else []
    kind = "AAAA" if ":" in client_address and not client_address.lower().startswith("::ffff:") else "A"
    wanted = [(host.lower().removesuffix("."), kind) for host in hosts[:MAX_MX] if _QUERY_NAME.match(host)]
    await asyncio.gather(
        *(_fetch(resolver, one, known, client_address) for one in dict.fromkeys(wanted) if one not in known)
    )


def _records(answer: Answer[Any], shape: Any = lambda record: record) -> list[Any] | None:
    if isinstance(answer, CannotTell):
        return None
    records: Sequence[Any] = answer.records if isinstance(answer, Found) else ()
    return [shape(record) for record in records]
