"""Where a recipient leads: ``mail.rules.expand`` driven with the rule sets of the directory.

The rules are pure: they name the domain they need next and are sent its rule set. Here they get it from the cache,
which costs nothing; a refusal, and only a refusal, is decided anew with rule sets whose version was compared with the
store, so that an alias made a moment ago by another process is never called unknown.

Raises what the store raises: that is no answer about the recipient, and the dialogue says 451.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from forwarder.mail.address import Path
from forwarder.mail.rules import Expansion, RuleSet, expand


class RuleSets(Protocol):
    """The part of the directory that is needed here."""

    async def rule_set(self, domain: str) -> RuleSet | None: ...
    async def confirmed(self, domain: str) -> RuleSet | None: ...


async def resolve(directory: RuleSets, recipient: Path) -> Expansion:
    """The expansion of one recipient; a trouble in it is confirmed by the store."""
    expansion = await _drive(directory.rule_set, recipient)
    if expansion.trouble is not None:
        expansion = await _drive(directory.confirmed, recipient)
    return expansion


async def _drive(rule_set_of: Callable[[str], Awaitable[RuleSet | None]], recipient: Path) -> Expansion:
    expansion = expand(recipient)
    answer: RuleSet | None = None
    started = False
    while True:
        try:
            domain = expansion.send(answer) if started else next(expansion)
        except StopIteration as finished:
            result: Expansion = finished.value
            return result
        started = True
        answer = await rule_set_of(domain)
