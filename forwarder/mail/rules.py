"""From a recipient to all its final destinations, through aliases that lead to domains hosted here.

What it does: ``expand`` follows aliases breadth first until only addresses elsewhere and URLs are left. It asks for
rule sets and is given them, so that it needs no store: it yields an address and is sent a ``RuleSet`` of its domain
that can answer for it, or None when the domain is not hosted here. Each address is asked for once. ``drive`` runs it,
and ``circles.check_cycles``, which has the same form, over a plain function.

What it promises: it ends. At most 10 aliases in a row, 1,000 destinations, 2,000 look-ups, and no more of them among
regular expressions than MAX_EFFORT allows: a look-up among all that one domain may have can take some 100 ms. An
address is followed once: a circle adds nothing to what was found before it closed, so its branch stops there and the
rest stands.

The parts are in rooms of their own: ``mail.pattern`` (the left side of an alias), ``mail.expressions`` (the regular
expressions of a domain), ``mail.destination`` (the right side), ``mail.aliases`` (the alias, and the rule set that
finds the one that answers).

How it fails: ``Expansion.trouble`` says why a recipient leads nowhere. A branch that leads nowhere beside others that
do not is listed in ``dead_ends`` and in the steps; but a branch that is to be tried later defers the whole recipient,
since nobody else would come back for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, assert_never

from forwarder.mail import reply as replies
from forwarder.mail.address import Path
from forwarder.mail.aliases import Alias, RuleSet, Unknown
from forwarder.mail.destination import Url, identity
from forwarder.mail.pattern import MAX_PROGRAMS, AliasKind
from forwarder.mail.reply import Reply

MAX_DEPTH = 10  # aliases in a row
MAX_TARGETS = 1000
MAX_LOOKUPS = 2000
MAX_EFFORT = 4 * MAX_PROGRAMS  # instructions of expressions that addresses are compared with


class Trouble(StrEnum):
    """Why a recipient, or a branch of it, leads nowhere."""

    NOT_HOSTED = "the domain is not hosted here"
    UNKNOWN = "no alias answers, or what the pattern of the one that does captured makes no address"
    DISABLED_DEFER = "the alias is disabled and asks to try later"
    DISABLED_REFUSE = "the alias is disabled and refuses"
    DISCARD = "the alias is disabled and discards"
    LOOP = "the aliases lead in a circle, or through too many aliases in a row"
    TOO_MANY = "the aliases lead to too many destinations, or to too many regular expressions"
    UNCONFIRMED = "its owner has not confirmed yet that mail may be forwarded to it"


def refusal(trouble: Trouble) -> Reply | None:
    """The reply to RCPT; None for DISCARD, which accepts."""
    match trouble:
        case Trouble.NOT_HOSTED:
            return replies.RELAY_DENIED
        case Trouble.UNKNOWN:
            return replies.NO_SUCH_USER
        case Trouble.DISABLED_DEFER:
            return replies.ADDRESS_DEFERS
        case Trouble.DISABLED_REFUSE:
            return replies.ADDRESS_DISABLED
        case Trouble.DISCARD:
            return None
        case Trouble.LOOP:
            return replies.ROUTING_LOOP
        case Trouble.TOO_MANY:
            return replies.TOO_MANY_DESTINATIONS
        case Trouble.UNCONFIRMED:
            return replies.UNCONFIRMED_DESTINATION
    assert_never(trouble)


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """Where the way came to an alias of another account: what is behind it is for the log of that alias alone."""

    address: Path
    alias: str
    domain_id: int | None
    account_id: int
    before: Theirs | None = None  # where it had come to yet another; None: to that of the recipient


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A final destination of a recipient."""

    destination: Path | Url
    alias: str  # the pattern that answered for the recipient itself
    domain_id: int  # of the recipient's domain
    domain: str
    theirs: Theirs | None = None

    @property
    def owner(self) -> tuple[int | None, str]:
        """The domain and the alias whose log tells what becomes of the mail."""
        if self.theirs is None:
            return self.domain_id, self.alias
        return self.theirs.domain_id, self.theirs.alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One look-up, for people who ask why."""

    address: Path
    alias: str | None = None
    kind: AliasKind | None = None
    label: str | None = None
    leads_to: tuple[Path | Url, ...] = ()
    trouble: Trouble | None = None
    theirs: Theirs | None = None

    @property
    def dead_end(self) -> Reply | None:
        """What is said of a branch that leads nowhere beside others that do not; None: it discards, or leads on."""
        said = None if self.trouble is None else refusal(self.trouble)
        return said if said is None or said.permanent else replies.POLICY_REFUSAL.saying(f"{self.trouble}")

    def __str__(self) -> str:
        """The look-up as a sentence."""
        who = self.address.display()
        if self.alias is None:
            return f"{who}: {self.trouble or 'it is delivered there'}"
        kind = "" if self.kind is None else f"{_KIND_WORDS[self.kind]} "
        label = "" if self.label is None else f", for the part before +{self.label}"
        if self.trouble is not None:
            return f"{who}: {kind}{self.alias} answers{label}, but {self.trouble}"
        return f"{who}: {kind}{self.alias} answers{label}; it leads to {', '.join(map(str, self.leads_to))}"


_KIND_WORDS = {
    AliasKind.EXACT: "the alias",
    AliasKind.REGEX: "the regular expression",
    AliasKind.WILDCARD: "the wildcard",
    AliasKind.CATCH_ALL: "the catch-all",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """Where a recipient leads."""

    recipient: Path
    targets: tuple[Target, ...] = ()  # empty exactly when there is trouble
    trouble: Trouble | None = None
    domain_id: int | None = None  # None: not hosted here
    account_id: int | None = None  # whose domain it is
    alias: str | None = None  # the pattern that answered for the recipient, if one did
    dead_ends: tuple[Step, ...] = ()  # branches that lead nowhere
    steps: tuple[Step, ...] = ()


def expand(
    recipient: Path, *, at_door: bool = True, account_id: int | None = None
) -> Generator[Path, RuleSet | None, Expansion]:
    """Follow the aliases of a recipient; yields addresses, is sent the rules of their domains or None.

    ``at_door``: a client names the recipient to us as its MX host. Else the mail is ours to send, for ``account_id``
    where that is known, and a domain that is only said to be hosted here is none (``RuleSet.answers_to``); the same
    goes for where an alias leads, by the account of the alias.
    """
    first_rules = yield recipient
    if first_rules is None or not (at_door or first_rules.answers_to(account_id)):
        step = Step(address=recipient, trouble=Trouble.NOT_HOSTED)
        return Expansion(recipient=recipient, trouble=Trouble.NOT_HOSTED, steps=(step,))
    steps: list[Step] = []
    found: dict[tuple[str, str], tuple[Path | Url, Theirs | None]] = {}
    seen = {identity(recipient)}
    waiting: deque[tuple[int, Path, RuleSet, Theirs | None]] = deque([(1, recipient, first_rules, None)])
    trouble: Trouble | None = None
    effort = 0
    while waiting and trouble is None:
        depth, address, rules, theirs = waiting.popleft()
        step = _look_up(rules, address, theirs)
        whose = first_rules.account_id if theirs is None else theirs.account_id
        if step.leads_to and rules.account_id != whose:
            theirs = Theirs(
                address=address,
                alias=step.alias or "",
                domain_id=rules.domain_id or None,
                account_id=rules.account_id,
                before=theirs,
            )
        steps.append(step)
        effort += rules.effort(step.kind)
        for destination in step.leads_to:
            key = identity(destination)
            if key in seen:
                continue
            seen.add(key)
            if isinstance(destination, Path):
                hosted = yield destination
                if hosted is not None and not hosted.answers_to(rules.account_id):
                    hosted = None
                if rules.confirmed is not None and rules.withholds(destination, step.label, hosted):
                    steps.append(Step(address=destination, trouble=Trouble.UNCONFIRMED, theirs=theirs))
                    continue
                if hosted is not None:
                    waiting.append((depth + 1, destination, hosted, theirs))
                    continue
            found[key] = destination, theirs
        lookups = len(steps) + len(waiting)
        if len(found) > MAX_TARGETS or lookups > MAX_LOOKUPS or (waiting and effort > MAX_EFFORT):
            trouble = Trouble.TOO_MANY
        elif waiting and waiting[-1][0] > MAX_DEPTH:
            trouble = Trouble.LOOP
        elif step.trouble is Trouble.DISABLED_DEFER:
            trouble = Trouble.DISABLED_DEFER
    dead_ends = tuple(step for step in steps if step.trouble is not None)
    if trouble is None and not found:
        trouble = min((step.trouble for step in dead_ends if step.trouble), key=_rank, default=Trouble.LOOP)
    alias = steps[0].alias
    targets: tuple[Target, ...] = ()
    if trouble is None and alias is not None:
        domain_id, domain = first_rules.domain_id, recipient.domain
        targets = tuple(
            Target(destination=destination, alias=alias, domain_id=domain_id, domain=domain, theirs=theirs)
            for destination, theirs in found.values()
        )
    return Expansion(
        recipient=recipient,
        targets=targets,
        trouble=trouble,
        domain_id=first_rules.domain_id,
        account_id=first_rules.account_id,
        alias=alias,
        dead_ends=dead_ends,
        steps=tuple(steps),
    )


def borders(ends: Iterable[Target | Step | None]) -> Iterable[Theirs]:
    """Where the ways to these came to other accounts, each once: whose alias led there is told no more than that."""
    found: dict[Path, Theirs] = {}
    for end in ends:
        theirs = None if end is None else end.theirs
        while theirs is not None:
            found[theirs.address] = theirs
            theirs = theirs.before
    return found.values()


def _rank(trouble: Trouble) -> int:
    """What may end well within the hour comes before what is final, and a refusal before a discard."""
    return 0 if trouble is Trouble.UNCONFIRMED else 2 if trouble is Trouble.DISCARD else 1


def _look_up(rules: RuleSet, address: Path, theirs: Theirs | None) -> Step:
    answer = rules.resolve(address.local)
    if isinstance(answer, Unknown):
        return Step(address=address, trouble=Trouble.UNKNOWN, theirs=theirs)
    return Step(
        address=address,
        alias=answer.alias.pattern,
        kind=answer.alias.kind,
        label=answer.label,
        leads_to=answer.destinations,
        trouble=None if answer.alias.active else _when_disabled(answer.alias),
        theirs=theirs,
    )


def _when_disabled(alias: Alias) -> Trouble:
    match alias.when_disabled:
        case 250:
            return Trouble.DISCARD
        case 550:
            return Trouble.DISABLED_REFUSE
        case _:  # 421; and what nobody wrote is our trouble, so it waits
            return Trouble.DISABLED_DEFER


Result = TypeVar("Result")


def drive(
    steps: Generator[Path, RuleSet | None, Result], rule_set: Callable[[Path], RuleSet | None]
) -> Result:
    """Run ``expand`` or ``check_cycles`` over a function that gives rule sets at once."""
    try:
        address = next(steps)
        while True:
            address = steps.send(rule_set(address))
    except StopIteration as end:
        result: Result = end.value
        return result
