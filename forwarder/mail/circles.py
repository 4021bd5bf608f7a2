"""The circle that an alias would close, found before it is saved.

``check_cycles`` follows an alias as ``rules.expand`` follows its mail, depth first, and in the same form: it yields an
address and is sent a ``RuleSet`` of its domain that can answer for it, or None. It goes where the mail would go: a
domain that is another account's is entered only where its MX records were found to lead here.

What it tells a person names only addresses that aliases of theirs lead to: where another account's alias leads is that
account's to know, and is shown as ``…``.

Bounds: the checks of one request share a ``Walk``, which follows each address once and ends with ``TooMany`` when it
has cost too much. What a pattern with captures can do beyond the stand-in texts that are tried is stopped when met, by
the expansion of each recipient.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from forwarder.mail.address import Path
from forwarder.mail.aliases import Alias, Match, RuleSet
from forwarder.mail.destination import Mailbox, identity
from forwarder.mail.pattern import AliasKind, Captures, RuleError, groups_of
from forwarder.mail.rules import MAX_DEPTH

# An address asked for and a destination read count as one each; what rules cost is counted in the same.
MAX_EFFORT = 10_000
INSTRUCTIONS = 100  # of expressions: to run so many counts as one


class TooMany(RuleError):
    """The aliases lead through more than anybody may have followed."""


@dataclass(slots=True)
class Walk:
    """What the checks of one request have in common; ``account_id``: whose aliases they are."""

    account_id: int
    effort: int = 0
    done: set[tuple[str, str]] = field(default_factory=set)  # followed to all their ends, without a circle

    def spend(self, effort: int) -> None:
        """Count what was looked at; TooMany."""
        self.effort += effort
        if self.effort > MAX_EFFORT:
            raise TooMany("these aliases lead through too many others to be checked; send fewer at once")


@dataclass(frozen=True, slots=True)
class _Hop:
    path: Path
    shown: bool  # an alias of the account leads there


@dataclass(slots=True)
class _Branch:
    account_id: int  # of the alias that leads there
    ahead: list[Path]


def check_cycles(domain: str, alias: Alias, walk: Walk) -> Generator[Path, RuleSet | None, str | None]:
    """The circle that ``alias`` closes, as a sentence for a person, or None. Raises TooMany.

    The rules of its domain are asked for too, as they will be, with the alias in them and active. For a pattern with
    captures a stand-in text is followed.
    """
    exact = alias.kind is AliasKind.EXACT
    roots = [Path(local=alias.pattern, domain=domain)] if exact else _probes(alias)
    branches = [_Branch(walk.account_id, roots)]
    chain: dict[tuple[str, str], _Hop] = {}
    while branches:
        branch = branches[-1]
        if not branch.ahead:
            branches.pop()
            if chain:
                walk.done.add(chain.popitem()[0])
            continue
        address = branch.ahead.pop()
        key = identity(address)
        if key in chain:
            circle = list(chain.values())[list(chain).index(key) :]
            return f"this alias would lead in a circle: {_arrows([*circle, chain[key]])}"
        if key in walk.done:
            continue
        walk.spend(1)
        rules = yield address
        if rules is None or not rules.answers_to(branch.account_id):
            continue
        hop = _Hop(address, shown=branch.account_id == walk.account_id)
        if len(chain) >= MAX_DEPTH:
            return f"this alias would lead through more than {MAX_DEPTH} aliases: {_arrows([*chain.values(), hop])}"
        answer = rules.resolve(address.local)
        leads_to = answer.destinations if isinstance(answer, Match) else ()
        kind = answer.alias.kind if isinstance(answer, Match) else None
        walk.spend(len(leads_to) + rules.effort(kind) // INSTRUCTIONS)
        chain[key] = hop
        branches.append(_Branch(rules.account_id, [each for each in leads_to if isinstance(each, Path)]))
    return None


def _probes(alias: Alias) -> list[Path]:
    """Where a pattern leads when each of its groups took a stand-in text."""
    count, names = groups_of(alias.pattern)
    stand_ins = Captures(groups=("probe",) * count, names=dict.fromkeys(names, "probe"))
    filled = [box.fill(stand_ins) for box in alias.destinations if isinstance(box, Mailbox)]
    return [path for path in filled if path is not None]


def _arrows(hops: Sequence[_Hop]) -> str:
    words: list[str] = []
    for hop in hops:
        if hop.shown:
            words.append(hop.path.display())
        elif words[-1:] != ["…"]:
            words.append("…")
    return " → ".join(words)
