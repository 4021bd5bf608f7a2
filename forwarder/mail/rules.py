"""From a recipient to all its final destinations, through aliases that lead to domains hosted here.

What it does: ``expand`` follows aliases breadth first until only addresses elsewhere and URLs are left. It asks for
rule sets and is given them, so that it needs no store: it yields an address and is sent a ``RuleSet`` of its domain
that can answer for it, or None when the domain is not hosted here. Each address is asked for once. ``drive`` runs it,
and ``circles.check_cycles``, which has the same form, over a plain function.

What it promises: it ends. At most 10 aliases in a row, 1,000 destinations (one to which aliases of two accounts lead
counts twice), 2,000 look-ups, and no more of them among regular expressions than MAX_EFFORT allows: a look-up among all
that one domain may have can take some 100 ms. An address is followed once: a circle adds nothing to what was found
before it closed, so its branch stops there and the rest stands.

The parts are in rooms of their own: ``mail.pattern`` (the left side of an alias), ``mail.expressions`` (the regular
expressions of a domain), ``mail.destination`` (the right side), ``mail.aliases`` (the alias, and the rule set that
finds the one that answers).

How it fails: ``Expansion.trouble`` says why a recipient leads nowhere. A branch that leads nowhere beside others that
do not is listed in ``dead_ends`` and in the steps; but a branch that is to be tried later defers the whole recipient,
since nobody else would come back for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
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
_Key = tuple[str, str]  # the identity of a destination


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
    """The alias of another account by which the way goes on: what is behind it is for the log of that alias alone."""

    alias: str
    domain_id: int | None
    account_id: int


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
    def said(self) -> Reply | None:
        """What the log says of an address where a way ends beside others that do not; None: it discards."""
        if self.trouble is None:
            return replies.TAKEN_ON
        said = refusal(self.trouble)
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
    # Addresses that an alias of another account has, each for whom leads there.
    handed_on: tuple[Step, ...] = ()
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
    start = _Stop(identity(recipient), recipient, first_rules, None, 1)
    search = _Search(start)
    asked: dict[_Key, RuleSet | None] = {start.key: first_rules}
    while search.waiting and search.trouble is None:
        stop, step = search.look_up()
        for destination in step.leads_to:
            key = identity(destination)
            if key not in asked:
                asked[key] = (yield destination) if isinstance(destination, Path) else None
            search.lead(stop, step, key, destination, asked[key])
        search.bound(step)
    return search.expansion()


@dataclass(frozen=True, slots=True)
class _Stop:
    """An address that is looked up, and how the way comes there, or how it goes on behind it."""

    key: _Key
    address: Path
    rules: RuleSet
    theirs: Theirs | None
    depth: int


class _Search:
    """What ``expand`` knows so far.

    Ways of several accounts may come together at an address. It is followed, or gets its mail, once; of what becomes of
    it each account sees the first way of its own. Of a domain that is hosted for one of them alone both may be true.
    """

    def __init__(self, start: _Stop) -> None:
        self.waiting = deque([start])
        self.trouble: Trouble | None = None
        self._start, self._recipient, self._rules = start.key, start.address, start.rules
        self._effort = 0
        self._steps: dict[_Key, Step] = {}
        self._ends: list[tuple[Path | Url, Theirs | None]] = []
        self._handed_on: list[Step] = []
        # By aliases of which accounts; and whose are those that have their say there.
        self._reached = {start.key: {start.rules.account_id}}
        self._followed = {start.key: start.rules.account_id}
        # Ways of other accounts to what is followed anyway.
        self._again: list[tuple[_Key, Path, Theirs | None]] = []
        self._withheld: dict[tuple[_Key, int], Step] = {}

    def look_up(self) -> tuple[_Stop, Step]:
        """The next address that waits, as its way goes on behind it, and what answers there."""
        stop = self.waiting.popleft()
        rules = stop.rules
        step = self._steps[stop.key] = _look_up(rules, stop.address, stop.theirs)
        self._effort += rules.effort(step.kind)
        if step.leads_to and rules.account_id != self._whose(stop.theirs):
            self._handed_on.append(Step(address=stop.address, theirs=stop.theirs))
            theirs = Theirs(
                alias=step.alias or "", domain_id=rules.domain_id or None, account_id=rules.account_id
            )
            stop = replace(stop, theirs=theirs)
        return stop, step

    def lead(
        self, stop: _Stop, step: Step, key: _Key, destination: Path | Url, hosted: RuleSet | None
    ) -> None:
        """Go on to where an alias leads; ``hosted``: the rules of that domain, if there are any."""
        whose = stop.rules.account_id
        if isinstance(destination, Path):
            # Back to the recipient is a circle, whoever leads there: that address has the mail.
            if hosted is not None and not hosted.answers_to(whose) and key != self._start:
                hosted = None
            if stop.rules.withholds(destination, step.label, hosted):
                waits = Step(address=destination, trouble=Trouble.UNCONFIRMED, theirs=stop.theirs)
                self._withheld.setdefault((key, whose), waits)
                return
        reached = self._reached.setdefault(key, set())
        if whose in reached:
            return
        # Whether a domain is hosted is asked for this account, whatever it is for another that comes to it.
        if not isinstance(destination, Path) or hosted is None:
            self._ends.append((destination, stop.theirs))
        elif key in self._followed:
            self._again.append((key, destination, stop.theirs))
        else:
            self._followed[key] = hosted.account_id
            self.waiting.append(_Stop(key, destination, hosted, stop.theirs, stop.depth + 1))
        reached.add(whose)

    def bound(self, step: Step) -> None:
        """End it where it is too much, or where a branch is to be tried later."""
        lookups = len(self._steps) + len(self._withheld) + len(self._again) + len(self.waiting)
        too_costly = self.waiting and self._effort > MAX_EFFORT
        if len(self._ends) > MAX_TARGETS or lookups > MAX_LOOKUPS or too_costly:
            self.trouble = Trouble.TOO_MANY
        elif self.waiting and self.waiting[-1].depth > MAX_DEPTH:
            self.trouble = Trouble.LOOP
        elif step.trouble is Trouble.DISABLED_DEFER:
            self.trouble = Trouble.DISABLED_DEFER

    def expansion(self) -> Expansion:
        """What came of it."""
        unconfirmed = [
            step for (key, whose), step in self._withheld.items() if whose not in self._reached.get(key, ())
        ]
        steps = (*self._steps.values(), *unconfirmed)
        dead_ends = [step for step in steps if step.trouble is not None]
        trouble = self.trouble
        if trouble is None and not self._ends:
            trouble = min(
                (step.trouble for step in dead_ends if step.trouble), key=_rank, default=Trouble.LOOP
            )
        alias = steps[0].alias
        targets: tuple[Target, ...] = ()
        if trouble is None and alias is not None:
            self._note_again(dead_ends)
            domain_id, domain = self._rules.domain_id, self._recipient.domain
            targets = tuple(
                Target(
                    destination=destination, alias=alias, domain_id=domain_id, domain=domain, theirs=theirs
                )
                for destination, theirs in self._ends
            )
        return Expansion(
            recipient=self._recipient,
            targets=targets,
            trouble=trouble,
            domain_id=self._rules.domain_id,
            account_id=self._rules.account_id,
            alias=alias,
            dead_ends=tuple(dead_ends),
            handed_on=tuple(self._handed_on),
            steps=steps,
        )

    def _note_again(self, dead_ends: list[Step]) -> None:
        """What is at the end of the ways that came to an address after another account's."""
        for key, address, theirs in self._again:
            step = self._steps[key]
            if step.trouble is not None:
                dead_ends.append(replace(step, theirs=theirs))
            elif self._followed[key] != self._whose(theirs):
                self._handed_on.append(Step(address=address, theirs=theirs))

    def _whose(self, theirs: Theirs | None) -> int:
        return self._rules.account_id if theirs is None else theirs.account_id


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
