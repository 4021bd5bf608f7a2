"""Aliases, and the rule set of a domain that finds the one that answers for a recipient.

What it does: ``RuleSet.resolve`` takes a local part and gives the alias that answers and the destinations it leads to,
captures filled in; or UNKNOWN. Exactly one alias answers, in this order: the exact one; the exact one for what stands
before ``+`` (the rest is the label); the first regular expression by rank, which is the order of creation unless
somebody set another; the partial wildcard with the most literal characters; ``*``. ``Alias.place`` is that order as one
number. A disabled alias answers too: it takes the recipient and says how to refuse it.

What it promises: a rule set never changes; it is made in linear time and compiles expressions only when asked for one,
or beforehand (``prepare``) where many would hold up others.
With 10,000 exact aliases and 500 expressions a look-up stays far below 50 ms. The exact aliases may be kept elsewhere
(``Names``) and may be no more than those of ``names_for`` one address: for that address it answers as the whole would.

How it fails: a capture that makes no address is UNKNOWN; nothing raises.

The label is put on a destination only at providers known to deliver ``user+label@`` to ``user``, and only on an
address that has none of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from forwarder.mail.address import AddressError, Path, fold, parse_address
from forwarder.mail.destination import (
    Destination,
    Url,
    mailbox_key,
    parse_forward,
)
from forwarder.mail.expressions import table_of
from forwarder.mail.pattern import (
    MAX_PATTERN,
    NO_CAPTURES,
    AliasKind,
    Captures,
    RuleError,
    classify,
    star_match,
)

# Providers that deliver user+label@ to user@.
LABEL_PROVIDERS = frozenset(
    {
        "fastmail.com",
        "gmail.com",
        "hey.com",
        "icloud.com",
        "mailfence.com",
        "outlook.com",
        "protonmail.com",
        "runbox.com",
        "yandex.com",
        "yandex.ru",
    }
)


class Unknown(Enum):
    """No alias answers, or what the pattern of the one that does captured makes no address."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


QUICK = 1000  # instructions of expressions that a local part is compared with in the event loop
LAST_RANK = 1e12  # regular expressions stand between 0 and this, both excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A pattern and where it leads."""

    id: int  # by order of creation
    pattern: str  # canonical
    kind: AliasKind
    destinations: tuple[Destination, ...]
    active: bool = True
    when_disabled: int = 550  # 250: take and discard, 421: try later, 550: refuse
    rank: float | None = None  # among the regular expressions; None: in order of creation

    @property
    def place(self) -> float:
        """When it is asked: lowest first, and of equal ones the older. Exact names stand at 0, all together."""
        return place(self.id, self.pattern, self.rank)

    @staticmethod
    def stored(
        row_id: int,
        pattern: str,
        forward: str,
        active: bool,
        when_disabled: int,
        rank: float | None = None,
    ) -> Alias:
        """An alias from its row; never raises.

        A row that cannot be read (another version wrote it) becomes an alias that answers 421: that is our trouble,
        and not to be solved by letting the catch-all have its mail.
        """
        try:
            destinations = parse_forward(forward, plain_http=True)
        except RuleError:
            destinations, active, when_disabled = (), False, 421
        return Alias(
            id=row_id,
            pattern=pattern,
            kind=classify(pattern),
            destinations=destinations,
            active=active,
            when_disabled=when_disabled,
            rank=rank,
        )


def place(row_id: int, pattern: str, rank: float | None) -> float:
    """``Alias.place`` of a row."""
    match classify(pattern):
        case AliasKind.EXACT:
            return 0.0
        case AliasKind.REGEX:
            return float(row_id if rank is None else rank)  # SQLite gives a new row's back as it was sent
        case AliasKind.WILDCARD:
            return LAST_RANK + MAX_PATTERN - (len(pattern) - pattern.count("*"))
        case AliasKind.CATCH_ALL:
            return LAST_RANK + 2 * MAX_PATTERN


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The alias that answers for a recipient."""

    alias: Alias
    label: str | None  # what followed + when the alias answered for what stood before it
    destinations: tuple[Path | Url, ...]  # empty when the alias is disabled


class Names(Protocol):
    """Exact aliases, each found by its pattern; a dict will do."""

    def get(self, name: str, /) -> Alias | None:
        """The exact alias of that name, if there is one."""


def names_for(local: str) -> tuple[str, str]:
    """The only two exact aliases that could answer for a local part: its own, and that of what stands before ``+``."""
    key = fold(local)
    return key, key.partition("+")[0]


class RuleSet:
    """The aliases of a domain at one version. Immutable.

    ``names``: its exact aliases, where they are not among ``aliases``. ``confirmed``: those of their addresses that
    their owners confirmed (``mailbox_key``); None where none need be. ``is_active``: the domain's MX records were found
    to lead here.
    """

    __slots__ = (
        "_catch_all",
        "_names",
        "_regexes",
        "_table",
        "_wildcards",
        "account_id",
        "confirmed",
        "domain",
        "domain_id",
        "is_active",
        "version",
    )

    def __init__(
        self,
        domain: str,
        domain_id: int,
        version: int,
        aliases: Iterable[Alias],
        *,
        names: Names | None = None,
        account_id: int = 0,
        confirmed: frozenset[str] | None = None,
        is_active: bool = False,
    ) -> None:
        self.domain = domain
        self.domain_id = domain_id
        self.version = version
        self.account_id = account_id
        self.confirmed = confirmed
        self.is_active = is_active
        exact: dict[str, Alias] = {}
        self._catch_all: Alias | None = None
        regexes: list[Alias] = []
        wildcards: list[Alias] = []
        for alias in aliases:
            match alias.kind:
                case AliasKind.EXACT:
                    exact[alias.pattern] = alias
                case AliasKind.CATCH_ALL:
                    self._catch_all = alias
                case AliasKind.REGEX:
                    regexes.append(alias)
                case AliasKind.WILDCARD:
                    wildcards.append(alias)
        self._names: Names = exact if names is None else names
        regexes.sort(key=lambda alias: (alias.place, alias.id))
        wildcards.sort(key=lambda alias: (alias.place, alias.id))
        self._regexes = tuple(regexes)
        self._table = table_of(tuple(alias.pattern for alias in regexes))
        self._wildcards = tuple((alias.pattern.split("*"), alias) for alias in wildcards)

    def __repr__(self) -> str:
        return f"RuleSet({self.domain!r}, version={self.version})"

    @property
    def expressions(self) -> int:
        """How many regular expressions there are."""
        return len(self._regexes)

    def effort(self, kind: AliasKind | None) -> int:
        """Instructions of expressions that an answer took: by an alias of this kind, or by none."""
        return 0 if kind is AliasKind.EXACT else self._table.instructions

    @property
    def takes_long(self) -> bool:
        """Whether ``resolve`` may hold up others by a millisecond and more: it is then for a thread. Once ``ready``."""
        return self._table.instructions > QUICK

    @property
    def compiled(self) -> int:
        """Octets that its expressions take, about, as far as they are prepared."""
        return self._table.memory

    def ready(self, local: str) -> bool:
        """Whether ``resolve`` answers for a local part at once; else ``prepare`` is to be called, in a thread."""
        return self._table.ready(local)

    def prepare(self, local: str) -> None:
        """Compile the expressions that a local part is compared with."""
        self._table.prepare(local)

    def with_names(self, names: Names) -> RuleSet:
        """The same rules with other exact aliases: those that a domain of very many has for one address."""
        other = copy(self)
        other._names = names  # noqa: SLF001 - nobody else has it yet
        return other

    def answers_to(self, account_id: int | None) -> bool:
        """Whether mail of an account may take this short way to the domain instead of that by its MX records.

        Anybody may add any domain: until its records lead here it is another's, but for those who added it.
        """
        return self.is_active or (account_id is not None and account_id == self.account_id)

    def withholds(self, destination: Path, label: str | None, hosted: RuleSet | None) -> bool:
        """Whether an address that an alias of ours leads to must be confirmed by its owner first.

        ``label``: what was put on it from the recipient. ``hosted``: the rules of its domain, if it is hosted here;
        domains of one account need no leave of each other.
        """
        if self.confirmed is None or (hosted is not None and hosted.account_id == self.account_id):
            return False
        if mailbox_key(destination) in self.confirmed:
            return False
        bare = destination.local.removesuffix(f"+{label}") if label else destination.local
        return mailbox_key(Path(local=bare, domain=destination.domain)) not in self.confirmed

    def resolve(self, local: str) -> Match | Unknown:
        """Which alias answers for a local part (``Path.local``), and where it leads."""
        key, bare = names_for(local)
        alias = self._names.get(key)
        if alias is not None:
            return _answer(alias, None, NO_CAPTURES)
        if bare != key:
            alias = self._names.get(bare)
            if alias is not None:
                return _answer(alias, local.partition("+")[2], NO_CAPTURES)
        if self._regexes:
            found = self._table.first(local)
            if found is not None:
                return _answer(self._regexes[found[0]], None, found[1])
        # Captures keep the case in which the sender wrote, where folding left each character in its place: lower()
        # only ever adds some, while fold() may also compose what it added away again.
        written = local if len(local) == len(key) and local.lower() == key else key
        for pieces, alias in self._wildcards:
            taken = star_match(pieces, key)
            if taken is not None:
                return _answer(alias, None, Captures(groups=_as_written(pieces, taken, written)))
        if self._catch_all is not None:
            return _answer(self._catch_all, None, Captures(groups=(local,)))
        return UNKNOWN


def _as_written(pieces: list[str], taken: tuple[str, ...], written: str) -> tuple[str, ...]:
    position = 0
    found: list[str] = []
    for piece, text in zip(pieces, taken, strict=False):
        position += len(piece)
        found.append(written[position : position + len(text)])
        position += len(text)
    return tuple(found)


def _answer(alias: Alias, label: str | None, captures: Captures) -> Match | Unknown:
    if not alias.active:
        return Match(alias=alias, label=label, destinations=())
    filled: list[Path | Url] = []
    for destination in alias.destinations:
        if isinstance(destination, Url):
            filled.append(destination)
            continue
        path = destination.fill(captures)
        if path is None:
            return UNKNOWN
        filled.append(_with_label(path, label) if label else path)
    return Match(alias=alias, label=label, destinations=tuple(filled))


def _with_label(path: Path, label: str) -> Path:
    if path.domain not in LABEL_PROVIDERS or "+" in path.local:
        return path
    try:
        labelled = parse_address(Path(local=f"{path.local}+{label}", domain=path.domain).wire())
    except AddressError:  # too long with it
        return path
    # A label that needs quoting reaches nobody: such providers have no quoted mailboxes.
    return path if labelled.wire().startswith('"') else labelled
