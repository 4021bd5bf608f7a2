"""Refuses an alias that would lead mail in a circle, before it is saved.

Most aliases lead elsewhere, and that is found with one look at the index of domains. Only an alias that leads to a
domain hosted here has rule sets read, in the transaction that saves it, so that two aliases saved at the same moment
cannot close a circle together unseen. What patterns with captures can do beyond the stand-in texts that are tried is
stopped when met, by the expansion of each recipient.

Limit: the checks of one request stop after PATIENCE seconds, with a refusal.
"""

import time
from collections.abc import Iterable

from sqlalchemy import Connection

from api.errors import Refusal
from api.validation import as_sentence
from forwarder.mail.address import Path
from forwarder.mail.rules import Alias, Mailbox, RuleSet, check_cycles, drive, parse_forward
from forwarder.store import aliases, domains
from forwarder.store.domains import Domain

PATIENCE = 1.0  # seconds


def circle(conn: Connection, domain: Domain, changed: Iterable[aliases.Alias]) -> tuple[int, str] | None:
    """The index of the first changed alias that leads in a circle, and the sentence; the changes are saved already."""
    rule_sets: dict[str, RuleSet | None] = {}

    def rule_set(name: str) -> RuleSet | None:
        if name not in rule_sets:
            rule_sets[name] = _read(conn, name)
        return rule_sets[name]

    def rules_for(address: Path) -> RuleSet | None:
        return rule_set(address.domain)

    deadline = time.monotonic() + PATIENCE
    for index, alias in enumerate(changed):
        if not alias.is_active or not _leads_here(conn, alias.forward):
            continue
        if time.monotonic() > deadline:
            raise Refusal(
                400, "These aliases lead through too many others to be checked; send fewer at once."
            )
        rules = rule_set(domain.name)
        if rules is None:
            return None
        found = drive(check_cycles(rules, _rule(alias)), rules_for)
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


def _read(conn: Connection, name: str) -> RuleSet | None:
    domain = domains.get(conn, name)
    if domain is None:
        return None
    rows, _ = aliases.list_aliases(conn, domain.id)
    return RuleSet(
        domain.name, domain.id, 0, [_rule(row) for row in rows if row.is_active or not row.is_skipped]
    )


def _rule(alias: aliases.Alias) -> Alias:
    return Alias.stored(
        alias.id, alias.pattern, alias.forward, alias.is_active, alias.when_disabled, alias.rank
    )
