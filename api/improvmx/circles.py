"""Refuses an alias that would lead mail in a circle, before it is saved.

Most aliases lead elsewhere, and that is found with one look at the index of domains for all of a request. Only an alias
that leads to a domain hosted here has rules read, in the transaction that saves it, so that two aliases saved at the
same moment cannot close a circle together unseen.

Nobody else can write meanwhile (on SQLite), so what one request may have followed is bounded (``mail.circles.Walk``).
"""

from collections.abc import Iterable

from sqlalchemy import Connection

from api.validation import as_sentence
from forwarder.mail.address import Path
from forwarder.mail.aliases import Alias, RuleSet
from forwarder.mail.circles import TooMany, Walk, check_cycles
from forwarder.mail.rules import drive
from forwarder.store import aliases, domains
from forwarder.store.domains import Domain
from forwarder.store.rule_sets import Within


def circle(conn: Connection, domain: Domain, changed: Iterable[aliases.Alias]) -> tuple[int, str] | None:
    """The index of the first changed alias that may not stay, and why; the changes are saved already."""
    walk = Walk(domain.account_id)
    within = Within(conn)
    active = [
        (index, alias, _domains_of(alias.forward)) for index, alias in enumerate(changed) if alias.is_active
    ]
    hosted = domains.hosted_among(conn, {name for _, _, names in active for name in names})

    def rules_for(address: Path) -> RuleSet | None:
        before = within.effort
        rules = within(address)
        walk.spend(within.effort - before)
        return rules

    for index, alias, names in active:
        # Where a capture stands in the domain, only following it can tell.
        if hosted.isdisjoint(names) and not any("$" in name for name in names):
            continue
        try:
            found = drive(check_cycles(domain.name, _rule(alias), walk), rules_for)
        except TooMany as error:
            found = str(error)
        if found is not None:
            return index, as_sentence(found)
    return None


def _domains_of(forward: str) -> set[str]:
    """The domains in a canonical list of destinations. Addresses are not parsed for it: there may be very many."""
    return {each.rpartition("@")[2] for each in forward.split(",") if "://" not in each}


def _rule(alias: aliases.Alias) -> Alias:
    return Alias.stored(
        alias.id, alias.pattern, alias.forward, alias.is_active, alias.when_disabled, alias.rank
    )
