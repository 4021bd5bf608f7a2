"""What the DNS of a hosted domain says, what it should say, what to do about it, and what becomes of the domain.

The zone's own servers are asked, so that a record that was just put right is seen at once; where they cannot be
reached, the usual resolver. Nothing found and nobody answered are told apart: trouble with the DNS never counts as a
record that is missing.

A look takes at most ``_ALL_QUESTIONS`` seconds; what can be is asked at once. Nothing raises for what the DNS answers.

By what is written down (``write_down``) a domain is active when its MX is right, and may send when SPF and both DKIM
records are. Trouble with the DNS makes nothing inactive that was active. Keys that wait for their records sign from
then on, when all of these are found.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from api.spf_way import obstacle
from forwarder.config import Settings
from forwarder.mail import records
from forwarder.mail.dmarc import parse_record
from forwarder.mail.spf_record import fault_of, without_faults
from forwarder.net.answers import Answer, CannotTell, Found, Mx, NotFound, texts_of
from forwarder.net.dns import Resolver
from forwarder.net.ourselves import Machines, Ourselves
from forwarder.net.registered import registered_domain
from forwarder.store import dkim_keys, domains
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain
from forwarder.store.engine import Database

_ONE_QUESTION = 3.5  # seconds; it may be asked twice
_ALL_QUESTIONS = 7.5  # of a look: a request has nine


class Kind(Enum):
    """The kinds of records that are asked for."""

    MX = "MX"
    TXT = "TXT"
    CNAME = "CNAME"
    NS = "NS"


_T = TypeVar("_T")
Ask = Callable[[str, Kind], Awaitable[Answer[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecord:
    """One kind of record: what is there, whether it is right, and what to do when it is not."""

    expected: str | Sequence[str]
    values: str | Sequence[str] | None
    valid: bool | None  # None: nobody could tell
    advice: str = ""

    def shown(self) -> Mapping[str, Any]:
        """As the API shows it."""
        return {"expected": self.expected, "valid": self.valid is True, "values": self.values}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """All that was found of a domain."""

    provider: str | None
    mx: CheckedRecord
    spf: CheckedRecord
    dkim: tuple[CheckedRecord, ...]  # of the keys that sign, or will when this is written down
    dmarc: CheckedRecord
    waiting: tuple[CheckedRecord, ...] = ()  # of keys that wait on, since not all of these are found
    found: tuple[DkimKey, ...] = ()  # the keys that waited, when all of their records are
    signing: frozenset[int]  # the ids of the keys that ``dkim`` is about

    @property
    def sending(self) -> bool | None:
        """Whether mail may be sent as the domain: SPF and DKIM; None: nobody could tell."""
        found = [self.spf.valid, *(key.valid for key in self.dkim)]
        return False if False in found else None if None in found else True

    def advice(self, *, sending: bool) -> str | None:
        """What to do, a line for each record, or None when all is right; DKIM and DMARC only where somebody sends."""
        needed = [self.mx, self.spf, *((*self.dkim, self.dmarc) if sending else ())]
        return "\n".join(record.advice for record in needed if record.valid is not True) or None


async def look(resolver: Resolver, domain: str, settings: Settings, keys: Sequence[DkimKey]) -> Checked:
    """Ask the DNS everything at once, for keys that sign and keys that wait; never raises for what it answers."""
    until = asyncio.get_running_loop().time() + _ALL_QUESTIONS
    ask = partial(_ask, resolver, until)
    ourselves = Ourselves(resolver, settings)
    signing, waiting = ([key for key in keys if key.is_waiting is waits] for waits in (False, True))
    mx, spf, dmarc, name_servers, *dkim = await asyncio.gather(
        _mx(ask, domain, ourselves, until),
        _spf(ask, resolver, domain, ourselves, until),
        _ask_dmarc(ask, domain),
        ask(domain, Kind.NS),
        *(_dkim(ask, domain, settings.hostname, key) for key in (*signing, *waiting)),
    )
    now, later = tuple(dkim[: len(signing)]), tuple(dkim[len(signing) :])
    complete = bool(later) and all(record.valid for record in later)
    servers = name_servers.records if isinstance(name_servers, Found) else ()
    return Checked(
        provider=records.provider(servers),
        mx=mx,
        spf=spf,
        dkim=later if complete else now,
        dmarc=_dmarc(dmarc, domain),
        waiting=() if complete else later,
        found=tuple(waiting) if complete else (),
        signing=frozenset(key.id for key in (waiting if complete else signing)),
    )


async def write_down(database: Database, domain: Domain, checked: Checked, now: datetime) -> Domain | None:
    """Write down what was found; None when the domain is gone, or signs with other keys by now.

    The look took seconds, and ``domain`` may have been read minutes before it. So what was found is compared with what
    the store holds now, which others may have written down meanwhile. That the records of former keys are there lets
    nothing be submitted under new ones.
    """

    def work(conn: Connection) -> Domain | None:
        if checked.found:
            dkim_keys.adopt(conn, domain, checked.found, now, published=True)
        while (known := domains.by_id(conn, domain.id)) is not None:
            if checked.signing != {key.id for key in dkim_keys.list_keys(conn, domain.id)}:
                return None
            changed = domains.record_check(conn, known, now, **_judged(known, checked, now))
            if changed is not None:
                return changed
        return None

    return await database.change(work)


def _judged(known: Domain, checked: Checked, now: datetime) -> dict[str, Any]:
    """What a domain is after a check; what nobody could tell stays as it was."""
    is_active = known.is_active if checked.mx.valid is None else checked.mx.valid
    had = known.sending_checked_at is not None
    sending = had if checked.sending is None else checked.sending
    broke = (known.is_active and not is_active) or (had and not sending)
    since, notified_at = known.broken_since, known.notified_at
    if broke and since is None:
        since = now
    elif is_active and checked.sending is not False and not broke:
        since = notified_at = None  # all that can be told is right again
    return {
        "is_active": is_active,
        "sending_ready": sending,
        "broken_since": since,
        "notified_at": notified_at,
    }


async def _by(until: float, asked: Awaitable[_T]) -> _T | None:
    """What is asked, or None when it is not there in time."""
    try:
        async with asyncio.timeout_at(until):
            return await asked
    except TimeoutError:
        return None


async def _ask(resolver: Resolver, until: float, name: str, kind: Kind) -> Answer[Any]:
    for fresh in (True, False):
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + _ONE_QUESTION, until)):
                match kind:
                    case Kind.MX:
                        return await resolver.mx(name, fresh=fresh)
                    case Kind.TXT:
                        return await resolver.txt(name, fresh=fresh)
                    case Kind.CNAME:
                        return await resolver.cname(name, fresh=fresh)
                    case Kind.NS:
                        return await resolver.ns(name)
        except TimeoutError:
            continue  # the zone's own servers may be silent towards us and not towards others
    return CannotTell(reason="no answer in time")


async def _ask_dmarc(ask: Ask, domain: str) -> Answer[Any]:
    """The domain's own record, or the one it inherits from its organisational domain (RFC 7489 6.6.3)."""
    answer = await ask(f"_dmarc.{domain}", Kind.TXT)
    if isinstance(answer, CannotTell) or records.dmarc_records(texts_of(answer)):
        return answer
    organisation = registered_domain(domain)
    if organisation == domain:
        return answer
    inherited = await ask(f"_dmarc.{organisation}", Kind.TXT)
    return inherited if records.dmarc_records(texts_of(inherited)) else answer


async def _mx(ask: Ask, domain: str, ourselves: Ourselves, until: float) -> CheckedRecord:
    hostname = ourselves.hostname
    expected = [hostname]
    match await ask(domain, Kind.MX):
        case Found(records=found):
            pairs = [(mx.preference, mx.host) for mx in found if isinstance(mx, Mx)]
            values = [host or "." for _, host in sorted(pairs)]
            first = records.first_mail_hosts(pairs)
            ours = await _by(until, ourselves.are_among(first))
            if ours:
                return CheckedRecord(expected=expected, values=values, valid=True)
            if ours is None:
                advice = _silence(f"the addresses of {', '.join(sorted(first)[:5])}, the MX of {domain}")
                return CheckedRecord(expected=expected, values=values, valid=None, advice=advice)
            listed = ", ".join(host or "." for host in sorted(first)[:5])
            advice = f"The MX records of {domain} lead to {listed} first; make {hostname} the most preferred."
            return CheckedRecord(expected=expected, values=values, valid=False, advice=advice)
        case NotFound():
            advice = f"{domain} has no MX record; add one with priority 10 that leads to {hostname}."
            return CheckedRecord(expected=expected, values=[], valid=False, advice=advice)
        case _:
            return CheckedRecord(
                expected=expected, values=[], valid=None, advice=_silence(f"the MX of {domain}")
            )


async def _spf(
    ask: Ask, resolver: Resolver, domain: str, ourselves: Ourselves, until: float
) -> CheckedRecord:
    shared = ourselves.shared_name
    answer = await ask(domain, Kind.TXT)
    if isinstance(answer, CannotTell):
        expected = records.merge_spf(None, shared)
        return CheckedRecord(
            expected=expected, values=None, valid=None, advice=_silence(f"the SPF of {domain}")
        )
    found = records.spf_records(texts_of(answer))
    values = found[0] if found else None
    expected = records.merge_spf(values, shared)
    if len(found) > 1:
        # RFC 7208 4.5: with more than one record, receivers use none.
        advice = f"{domain} has {len(found)} SPF records; keep one only: {expected}"
        return CheckedRecord(expected=expected, values=" ".join(found), valid=False, advice=advice)
    if values is not None and (fault := fault_of(values)):
        # RFC 7208 4.6: what is broken anywhere counts nowhere.
        expected = records.merge_spf(without_faults(values), shared)
        advice = (
            f"In the SPF record of {domain} {fault}, so that receivers use none of it; mend it: {expected}"
        )
        return CheckedRecord(expected=expected, values=values, valid=False, advice=advice)
    if values is not None:
        machines = await _by(until, ourselves.machines()) or Machines(names=frozenset(), complete=False)
        names = [name for name in (shared, *machines.names) if records.spf_includes(values, name)]
        if names:
            # What others publish need not be their newest: the usual resolver has it at hand.
            way = await _by(until, obstacle(values, names, resolver.txt))
            if not way:
                return CheckedRecord(expected=values, values=values, valid=True)
            expected = records.spf_with_ours_first(values, names[0])
            advice = f"Receivers do not come to ours in the SPF record of {domain}: {way}; put it first: {expected}"
            return CheckedRecord(expected=expected, values=values, valid=False, advice=advice)
        if not machines.complete:
            advice = _silence(f"the MX of {shared}")
            return CheckedRecord(expected=expected, values=values, valid=None, advice=advice)
    verb = "Add a TXT record to" if values is None else "Change the SPF record of"
    return CheckedRecord(expected=expected, values=values, valid=False, advice=f"{verb} {domain}: {expected}")


async def _dkim(ask: Ask, domain: str, hostname: str, key: DkimKey) -> CheckedRecord:
    name = records.dkim_name(domain, key.selector)
    target = records.dkim_target(domain, key.selector, hostname)
    expected = f"{target}." if target is not None else key.public_record
    alias = await ask(name, Kind.CNAME)
    leads_to = str(alias.records[0]).rstrip(".").lower() if isinstance(alias, Found) else None
    # A CNAME alone verifies nothing. Where it leads is asked by that name: the server's zone tells its newest.
    at = target if target is not None and leads_to == target else name
    answer = await ask(at, Kind.TXT)
    if isinstance(answer, CannotTell):
        return CheckedRecord(
            expected=expected, values=None, valid=None, advice=_silence(f"the DKIM record {at}")
        )
    texts = texts_of(answer)
    fault = records.key_fault(texts, key.public_record)
    if at == target:
        advice = f"The CNAME {name} is right, but {fault} where it leads; publish the key at {target} "
        advice += f"in the server's zone, as its only TXT record: {key.public_record}"
        return CheckedRecord(
            expected=expected, values=f"{target}.", valid=not fault, advice=advice if fault else ""
        )
    if not fault:
        return CheckedRecord(expected=key.public_record, values=texts[0], valid=True)
    if leads_to is not None:
        advice = f"The CNAME {name} leads to {leads_to}; it should lead to {target}."
        return CheckedRecord(expected=expected, values=f"{leads_to}.", valid=False, advice=advice)
    if texts:
        advice = f"At {name} {fault}; its only TXT record should be: {key.public_record}"
        return CheckedRecord(expected=key.public_record, values=" ".join(texts), valid=False, advice=advice)
    wanted = f"a TXT record {name}: {key.public_record}"
    if target is not None:
        wanted = f"a CNAME record {name} that leads to {target}, or {wanted}"
    return CheckedRecord(expected=expected, values=None, valid=False, advice=f"Add {wanted}")


def _dmarc(answer: Answer[Any], domain: str) -> CheckedRecord:
    name = f"_dmarc.{domain}"
    if isinstance(answer, CannotTell):
        return CheckedRecord(
            expected=records.DMARC, values=None, valid=None, advice=_silence(f"the DMARC record {name}")
        )
    found = records.dmarc_records(texts_of(answer))
    if len(found) == 1:
        right = parse_record([found[0].encode()]) is not None
        advice = "" if right else f"{name} names no policy; give it p=none, p=quarantine or p=reject."
        return CheckedRecord(expected=records.DMARC, values=found[0], valid=right, advice=advice)
    if found:
        advice = f"{name} has {len(found)} DMARC records; keep one only."
        return CheckedRecord(expected=records.DMARC, values=found[0], valid=False, advice=advice)
    advice = f"Add a TXT record {name}: {records.DMARC}"
    return CheckedRecord(expected=records.DMARC, values=None, valid=False, advice=advice)


def _silence(what: str) -> str:
    return f"No name server told {what}; try again in a minute."
