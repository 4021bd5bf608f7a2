"""Which mail hosts are we: this host, and the other machines of its installation, by their names and addresses.

An installation is what the MX records of the domain for return addresses (``srs.domain``) name, when this host is among
them: bounces have to come to any of its machines, so the records are there, and a machine that is down stays one of
ours. Where each machine has a return domain of its own, it is alone.

A mail host is ours when it has the name of a machine, or an address that one has in the DNS, or an address that this
host listens on at the port that is dialled: many owners of a domain call us by a name of their own. Private addresses
of listeners mean this host to itself only, so that they count there and not for what others are told.

Nothing is kept (the resolver caches), and nothing raises for what the DNS answers.
"""

from collections.abc import Collection
from dataclasses import dataclass

from forwarder.config import Settings
from forwarder.net.addresses import is_private
from forwarder.net.answers import CannotTell, Found
from forwarder.net.dns import Resolver

HOSTS = 10  # mail hosts of a domain that are looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The host names of an installation; not ``complete``: the DNS could not tell whether there are more."""

    names: frozenset[str]
    complete: bool = True


class Ourselves:
    """Knows us among the hosts that the DNS names."""

    def __init__(self, resolver: Resolver, settings: Settings) -> None:
        self._resolver = resolver
        self._private_allowed = settings.outbound.allow_private_destinations
        self._listening = {each for each in settings.mx.listen if each.port == settings.outbound.port}
        self.hostname = settings.hostname.lower()
        # Its SPF record names all machines: mail comes from any of them with a return address there.
        self.shared_name = settings.srs.domain

    async def addresses(self) -> frozenset[str]:
        """Those at which this host would talk to itself; none when nothing of ours listens at the port we dial."""
        if not self._listening:
            return frozenset()
        answer = await self._resolver.addresses(self.hostname)
        return self._listened() | frozenset(answer.records if isinstance(answer, Found) else ())

    async def machines(self) -> Machines:
        """This host and the others of its installation."""
        alone = frozenset({self.hostname})
        if self.shared_name == self.hostname:
            return Machines(names=alone)
        match await self._resolver.mx(self.shared_name):
            case Found(records=records):
                named = frozenset(mx.host for mx in records if mx.host)
                return Machines(names=named if self.hostname in named else alone)
            case CannotTell():
                return Machines(names=alone, complete=False)
            case _:
                return Machines(names=alone)

    async def are_among(self, hosts: Collection[str]) -> bool | None:
        """Whether one of these mail hosts is ours; None: nobody could tell."""
        if self.hostname in hosts or not hosts:
            return self.hostname in hosts
        ours = await self.machines()
        if not ours.names.isdisjoint(hosts):
            return True
        names = sorted(filter(None, hosts))[:HOSTS]
        found = await self._resolver.addresses_of(list({*names, *ours.names}))
        own = {each for each in self._listened() if self._private_allowed or not is_private(each)}
        theirs: set[str] = set()
        unknown = not ours.complete
        for name, answer in found.items():
            unknown |= isinstance(answer, CannotTell)
            if isinstance(answer, Found):
                (own if name in ours.names else theirs).update(answer.records)
        return True if not own.isdisjoint(theirs) else None if unknown else False

    def _listened(self) -> frozenset[str]:
        return frozenset(each.host for each in self._listening) - {"0.0.0.0", "::"}  # noqa: S104
