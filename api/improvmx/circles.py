"""Refuses an alias that would lead mail in a circle, before it is saved.

Most aliases lead elsewhere, and that is found with one look at the index of domains. Only an alias that leads to a
domain hosted here has rules read, in the transaction that saves it, so that two aliases saved at the same moment
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
from forwarder.store import aliases, domains, rule_sets
from forwarder.store.domains import Domain

PATIENCE = 1.0  # seconds


def circle(conn: Connection, domain: Domain, changed: Iterable[aliases.Alias]) -> tuple[int, str] | None:
    """The index of the first changed alias that leads in a circle, and the sentence; the changes are saved already."""
    deadline = time.monotonic() + PATIENCE
    whole: dict[str, RuleSet | None] = {}

    def check_patience() -> None:
        if time.monotonic() > deadline:
            raise Refusal(
                400, "These aliases lead through too many others to be checked; send fewer at once."
            )

    def rules_for(address: Path) -> RuleSet | None:
        if address.domain in whole:
            return whole[address.domain]
        check_patience()
        rules, answers_for_all = rule_sets.for_address(conn, address)
        if answers_for_all:
            whole[address.domain] = rules
        return rules

    for index, alias in enumerate(changed):
        if not alias.is_active or not _leads_here(conn, alias.forward):
            continue
        check_patience()
        found = drive(check_cycles(domain.name, _rule(alias)), rules_for)
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
