"""Where mail for a domain goes: MX hosts in the order to try them (RFC 5321 5.1).

``mail_hosts``, ``permitted`` and ``usable_hosts`` decide, over answers of the DNS; ``Router`` asks and hands over. What
the DNS cannot tell is temporary (4.4.3); what it denies is permanent: no such domain, or no host of it with an address
(5.1.2), null MX (5.1.10, RFC 7505).

Bounds: names are looked up ten at a time until one of them can be dialled, thirty at most (a domain whose first thirty
do not exist has no host), and five hosts tried, six addresses each. Private addresses are left out unless the operator
allows them, and mail whose hosts have no others is refused (5.4.4). Hosts of the same or a worse preference than our
own are left out (RFC 5321 5.1); when none remains, mail would loop (5.4.6). Our own are those of our hostname and those
whose address we listen on, at the port we would dial. Address literals as a domain are refused.

A loop ends in 5.4.6 only for a domain that is not ours to answer for. Mail that the DNS leads back to us for a domain
that we host, or that is a name of this server, goes to our own MX listener, as any other host would bring it: when the
mail was taken, the domain was not here yet, or its records were not looked at. The listener counts hops and knows our
marks, so that circles end there. Where it is not known (port 0, no listener) the mail waits (4.4.6).

``Route.site`` names the set of MX hosts, so that all domains of one provider share connections and concurrency.

Where the domain enforces an MTA-STS policy (RFC 8461), hosts that it does not name are left out, and the rest are
``verified``: spoken to only over TLS with a certificate for their name. When none remains the mail waits (4.7.5): the
policy may be changed. Such a route has a site of its own.

Where the name server says that it validated the MX records and the addresses of a host, and the host has TLSA records
likewise (DANE, RFC 7672), it is spoken to only over TLS, and only when its certificate is one that they mean; records
none of which we can use demand TLS alone (2.2). A host whose TLSA records cannot be looked up is left out (2.1.2). Both
hold where both apply: DANE does not excuse from a policy, nor the other way round (RFC 8461 2).

A smarthost takes everything and its address may be private; its trouble is ours and so temporary, whatever the DNS
says of it, and it itself at its door. No policy of the domains is asked for then: it is the smarthost that speaks to
their hosts.

Limits: DANE needs a validating resolver; the name an MX host is an alias of is not asked for TLSA records. What a host
says before TLS counts as its word, so a 554 at its door ends a delivery although a policy is in force. A host that is
we ourselves under another name is known by its address only: not where its address was not looked up, nor where the
policy has left it out. A preference class is shuffled (RFC 5321 5.1), so one message may meet another host than the
next.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from forwarder.config import HostPort, Settings
from forwarder.mail.dane import Tlsa, usable
from forwarder.mail.mta_sts import StsPolicy
from forwarder.mail.outcome import Fault, reply_for
from forwarder.mail.reply import Reply
from forwarder.net.addresses import is_private, written_address
from forwarder.net.answers import Answer, CannotTell, Found, Mx, NotFound
from forwarder.net.dns import Resolver
from forwarder.net.listening import local_host
from forwarder.net.ourselves import Ourselves
from forwarder.outbound.policies import Policies

NAMES = 10  # of mail hosts, looked up at a time
NAMES_IN_ALL = 30
HOSTS = 5  # of a route
ADDRESSES = 6  # of a host
SITE = 1000  # characters of the name of a site


@dataclass(frozen=True, slots=True, kw_only=True)
class MxHost:
    """One host to try, with its addresses in the order to try them."""

    name: str
    addresses: tuple[str, ...]
    rank: int = 0  # of its preference among those of the domain, the best 0
    # What its certificate has to match; empty: TLS is demanded, with any; None: DANE does not apply to it.
    tlsa: tuple[Tlsa, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Hosts in order; ``site`` is the key under which connections and concurrency are shared."""

    site: str
    hosts: tuple[MxHost, ...]
    port: int
    # False: another host could not be looked up just now, and may take what these refuse; or these may, later.
    complete: bool = True
    # The domain demands TLS with a certificate for the host's name (RFC 8461 4).
    verified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoute:
    """No way to go; ``reply`` is our wording."""

    reply: Reply


_LOOP = NoRoute(reply=reply_for(Fault.LOOP))


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRule:
    """Which addresses may be dialled: our own never, private ones where the operator says so."""

    own_addresses: frozenset[str] = frozenset()
    private_allowed: bool = False


class Router:
    """Routes by domain; keeps nothing (the resolver caches)."""

    def __init__(
        self,
        resolver: Resolver,
        settings: Settings,
        *,
        policies: Policies,
        hosted: Callable[[str], Awaitable[bool]],
        chance: random.Random | None = None,
    ) -> None:
        """``hosted``: whether a domain is hosted here; may raise, as the store does."""
        self._resolver = resolver
        self._hosted = hosted
        self._own_names = settings.own_names
        self._listen = settings.mx.listen
        self._policies = policies if settings.outbound.mta_sts else None
        self._ourselves = Ourselves(resolver, settings)
        self._outbound = settings.outbound
        # shuffling hosts of equal preference is no secret
        self._chance = chance or random.Random()  # noqa: S311

    async def route(self, domain: str) -> Route | NoRoute:
        """Never raises for what the DNS says."""
        found = await self._by_dns(domain)
        if found != _LOOP:
            return found
        ours = domain in self._own_names or await self._hosted(domain)
        return self._own_door() if ours else found

    async def _by_dns(self, domain: str) -> Route | NoRoute:
        if self._outbound.smarthost is not None:
            return await self._smarthost(self._outbound.smarthost)
        if domain.startswith("[") or not domain:
            return NoRoute(reply=reply_for(Fault.NO_DOMAIN, "mail to address literals is not carried"))
        answer, demands = await self._ask(domain)
        names = mail_hosts(domain, answer, own_name=self._ourselves.hostname)
        if not isinstance(names, NoRoute):
            names = permitted(names, demands)
        if isinstance(names, NoRoute):
            return names
        # a name that stands there with several preferences counts once, where it is best
        candidates = list(dict.fromkeys(name for group in names for name in self._shuffled(group)))
        rule = AddressRule(
            own_addresses=await self._ourselves.addresses(),
            private_allowed=self._outbound.allow_private_destinations,
        )
        found = await self._addresses_of(candidates[:NAMES_IN_ALL], rule, domain)
        candidates = _us_first([name for name in candidates if name in found], names, found, rule)
        hosts = usable_hosts(candidates, found, rule)
        if isinstance(hosts, NoRoute):
            return hosts
        place = _places(names)
        hosts = tuple(replace(host, rank=place[host.name]) for host in hosts)
        complete = not any(isinstance(found[name], CannotTell) for name in candidates)
        hosts, unknown = held_to_dane(hosts, await self._tlsa_of(hosts, answer, found))
        if not hosts:
            return NoRoute(reply=reply_for(Fault.DNS, unknown))
        return Route(
            site=_site(names, hosts, verified=demands is not None),
            hosts=hosts,
            port=self._outbound.port,
            complete=complete and not unknown,
            verified=demands is not None,
        )

    async def _ask(self, domain: str) -> tuple[Answer[Mx], StsPolicy | None]:
        if self._policies is None:
            return await self._resolver.mx(domain), None
        return await asyncio.gather(self._resolver.mx(domain), self._policies.in_force(domain))

    async def _addresses_of(
        self, names: Sequence[str], rule: AddressRule, domain: str
    ) -> dict[str, Answer[str]]:
        """Of ten names, and of ten more while none can be dialled: nobody is without hosts for the first ten."""
        found: dict[str, Answer[str]] = {}
        for start in range(0, len(names), NAMES):
            batch = await self._resolver.addresses_of(names[start : start + NAMES], behalf=domain)
            found |= batch
            if any(_decides(answer, rule) for answer in batch.values()):
                break
            if all(isinstance(answer, CannotTell) for answer in batch.values()):
                break  # the DNS is away: it will not tell more of others
        return found

    async def _tlsa_of(
        self, hosts: Sequence[MxHost], mx: Answer[Mx], found: Mapping[str, Answer[str]]
    ) -> dict[str, Answer[Tlsa]]:
        """The TLSA records of those hosts that signed zones lead to."""
        if not self._outbound.dane or isinstance(mx, CannotTell) or not mx.secure:
            return {}
        names = [host.name for host in hosts if _is_secure(found[host.name])]
        answers = await asyncio.gather(*(self._resolver.tlsa(name, self._outbound.port) for name in names))
        return dict(zip(names, answers, strict=True))

    async def _smarthost(self, smarthost: HostPort) -> Route | NoRoute:
        try:
            address = written_address(smarthost.host)
        except ValueError as exc:
            return NoRoute(reply=reply_for(Fault.DNS, f"smarthost: {exc}"))
        if address is not None:
            addresses: tuple[str, ...] = (address,)
        else:
            match await self._resolver.addresses(smarthost.host):
                case Found(records=records):
                    addresses = records[:ADDRESSES]
                case NotFound():
                    return NoRoute(
                        reply=reply_for(Fault.DNS, f"the smarthost {smarthost.host} has no address")
                    )
                case CannotTell(reason=reason):
                    return NoRoute(reply=reply_for(Fault.DNS, f"the smarthost {smarthost.host}: {reason}"))
        host = MxHost(name=smarthost.host, addresses=addresses)
        # Not complete: it is of our own choosing, and a 554 at its door is not the end of everybody's mail.
        return Route(site=f"smarthost {smarthost}", hosts=(host,), port=smarthost.port, complete=False)

    def _own_door(self) -> Route | NoRoute:
        for at in self._listen:
            if at.port:
                host = MxHost(name=self._ourselves.hostname, addresses=(local_host(at),))
                return Route(site=f"this host {at}", hosts=(host,), port=at.port)
        return NoRoute(reply=reply_for(Fault.OWN_DOOR))

    def _shuffled(self, names: Sequence[str]) -> list[str]:
        return self._chance.sample(names, len(names)) if len(names) > 1 else list(names)


def mail_hosts(domain: str, answer: Answer[Mx], *, own_name: str) -> list[list[str]] | NoRoute:
    """Names to try, best first, in groups of equal preference."""
    match answer:
        case CannotTell(reason=reason):
            return NoRoute(reply=reply_for(Fault.DNS, reason))
        case NotFound(nxdomain=True):
            return NoRoute(reply=reply_for(Fault.NO_DOMAIN))
        case NotFound():
            # RFC 5321 5.1: without an MX the domain is its own host, as with preference 0
            return _LOOP if domain == own_name else [[domain]]
        case Found(records=records):
            if all(mx.host == "" for mx in records):
                return NoRoute(reply=reply_for(Fault.NULL_MX))
            return _without_us([mx for mx in records if mx.host], own_name)


def _without_us(records: Sequence[Mx], own_name: str) -> list[list[str]] | NoRoute:
    groups = []
    for _, group in groupby(sorted(set(records)), key=lambda mx: mx.preference):
        names = [mx.host for mx in group]
        if own_name in names:
            break
        groups.append(names)
    return groups or _LOOP


def permitted(groups: Sequence[Sequence[str]], demands: StsPolicy | None) -> list[list[str]] | NoRoute:
    """The names that the policy of the domain allows for; all of them where it demands nothing."""
    if demands is None:
        return [list(group) for group in groups]
    named = [[name for name in group if demands.names(name)] for group in groups]
    left_out = [name for group in groups for name in group if not demands.names(name)]
    return [group for group in named if group] or NoRoute(
        reply=reply_for(Fault.POLICY, ", ".join(left_out[:HOSTS]))
    )


def held_to_dane(
    hosts: Sequence[MxHost], answers: Mapping[str, Answer[Tlsa]]
) -> tuple[tuple[MxHost, ...], str]:
    """The hosts with what DANE demands of them, and why some are left out; "": none is.

    ``answers``: the TLSA records by host name, as far as they were asked for.
    """
    kept: list[MxHost] = []
    unknown = ""
    for host in hosts:
        match answers.get(host.name):
            case CannotTell(reason=reason):
                unknown = unknown or reason
            case Found(records=records, secure=True):
                kept.append(replace(host, tlsa=tuple(filter(usable, records))))
            case _:
                kept.append(host)
    return tuple(kept), unknown


def _is_secure(answer: Answer[str]) -> bool:
    return isinstance(answer, Found) and answer.secure


def _site(groups: Sequence[Sequence[str]], hosts: Sequence[MxHost], *, verified: bool) -> str:
    site = " ".join(sorted({name for group in groups for name in group}))
    # Parentheses come escaped in names of the DNS, so no set of hosts is called like this.
    if verified:
        site += " (verified)"
    held = sorted(host.name for host in hosts if host.tlsa is not None)
    if held:
        site += f" (DANE: {' '.join(held)})"
    # Sites are remembered by the thousand, and a zone may name hundreds of hosts.
    return site if len(site) <= SITE else f"({hashlib.sha256(site.encode()).hexdigest()})"


def _us_first(
    candidates: Sequence[str],
    groups: Sequence[Sequence[str]],
    answers: Mapping[str, Answer[str]],
    rule: AddressRule,
) -> list[str]:
    """Hosts that are we ourselves before the others of their preference, which are then left out with them."""
    place = _places(groups)

    def is_other(name: str) -> bool:
        answer = answers[name]
        return not (isinstance(answer, Found) and rule.own_addresses.intersection(answer.records))

    return sorted(candidates, key=lambda name: (place[name], is_other(name)))


def _places(groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """The best preference that each name has, counted from 0."""
    place: dict[str, int] = {}
    for number, group in enumerate(groups):
        for name in group:
            place.setdefault(name, number)
    return place


def usable_hosts(
    names: Sequence[str], answers: Mapping[str, Answer[str]], rule: AddressRule
) -> tuple[MxHost, ...] | NoRoute:
    """The hosts to try, or why there is none; what might change in an hour outranks what will not."""
    hosts: list[MxHost] = []
    private = False
    unknown = ""
    for name in names:
        match answers[name]:
            case Found(records=records):
                if rule.own_addresses.intersection(records):
                    # RFC 5321 5.1: we are this host; it and what is worse is not for us to dial
                    if not hosts and not unknown:
                        return _LOOP
                    break
                allowed = _allowed(records, rule)
                private |= not allowed
                if allowed:
                    hosts.append(MxHost(name=name, addresses=allowed))
            case CannotTell(reason=reason):
                unknown = unknown or reason
            case NotFound():
                continue
    if hosts:
        return tuple(hosts[:HOSTS])
    if unknown:
        return NoRoute(reply=reply_for(Fault.DNS, unknown))
    if private:
        return NoRoute(reply=reply_for(Fault.PRIVATE))
    return NoRoute(reply=reply_for(Fault.NO_HOST))


def _decides(answer: Answer[str], rule: AddressRule) -> bool:
    """Whether a host can be dialled, or is we ourselves."""
    if not isinstance(answer, Found):
        return False
    return bool(rule.own_addresses.intersection(answer.records)) or bool(_allowed(answer.records, rule))


def _allowed(records: Collection[str], rule: AddressRule) -> tuple[str, ...]:
    allowed = records if rule.private_allowed else [each for each in records if not is_private(each)]
    return tuple(allowed)[:ADDRESSES]
