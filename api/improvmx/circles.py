"""Refuses an alias that would lead mail in a circle, before it is saved.

Most aliases lead elsewhere, and that is found with one look at the index of domains. Only an alias that leads to a
domain hosted here has rules read, in the transaction that saves it, so that two aliases saved at the same moment
cannot close a circle together unseen.

Nobody else can write meanwhile (on SQLite), so what one request may have followed is bounded (``mail.circles.Walk``).
"""

from collections.abc import Iterable

from sqlalchemy import Connection

from api.validation import as_sentence
from forwarder.mail.address import Path
from forwarder.mail.circles import TooMany, Walk, check_cycles
from forwarder.mail.rules import Alias, Mailbox, RuleSet, drive, parse_forward
from forwarder.store import aliases, domains
from forwarder.store.domains import Domain
from forwarder.store.rule_sets import Within


def circle(conn: Connection, domain: Domain, changed: Iterable[aliases.Alias]) -> tuple[int, str] | None:
    """The index of the first changed alias that may not stay, and why; the changes are saved already."""
    walk = Walk(domain.account_id)
    within = Within(conn)

    def rules_for(address: Path) -> RuleSet | None:
        parsed = within.parsed
        rules = within(address)
        walk.spend(within.parsed - parsed)
        return rules

    for index, alias in enumerate(changed):
        if not alias.is_active or not _leads_here(conn, alias.forward):
            continue
        try:
            found = drive(check_cycles(domain.name, _rule(alias), walk), rules_for)
        except TooMany as error:
            found = str(error)
        if found is not None:
            return index, as_sentence(found)
    return None


def _leads_here(conn: Connection, forward: str) -> bool:
    wanted: set[str] = set()
    for destination in parse_forward(forward, plain_http=True):
        if isinstance(destination, Mailbox):
            name = destination.template.rpartition("@")[2]
            if "$" in name:
                return True  # the capture decides
            wanted.add(name)
    return bool(wanted) and domains.any_hosted(conn, wanted)


def _rule(alias: aliases.Alias) -> Alias:
    return Alias.stored(
        alias.id, alias.pattern, alias.forward, alias.is_active, alias.when_disabled, alias.rank
    )
