"""Reading what a domain has for one address, in one statement that costs the same whatever else it has.

``read_domain`` reads a domain that is not known yet; ``read_names`` reads, of a known one, the two exact aliases that
could answer for another address. Both tell the directory's version of the same moment.

The exact aliases of a domain are read together, since mail for one of them announces mail for others. They stay text
(``Lines``), a tenth of what objects would take, and only the alias that answers is parsed. Where there are more than
TOGETHER, or more than ROOM octets of them, the two that could answer are taken by their unique index. The patterns,
which every address needs, have an index of their own.

What still grows is the cost of patterns: all of a domain's are read and parsed. And where destinations must be
confirmed, the first look at a domain reads all its aliases: what a capture makes is confirmed only if one names it.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sqlalchemy import Connection, TextClause, text

from forwarder.mail.address import Path
from forwarder.mail.aliases import Alias, RuleSet, names_for
from forwarder.store.confirmations import confirmed_of
from forwarder.store.engine import Database
from forwarder.store.rows import by_dialect, execute
from forwarder.store.tables import IS_PATTERN

TOGETHER = 256  # exact aliases
ROOM = 64 * 1024  # octets: a look-up walks through them
INLINE = 16 * 1024  # octets of patterns: more are parsed in a thread
ABSENT = 60  # octets of memory: a domain that is not hosted here
_ALL = 2**31 - 2
_RULE_SET = 600  # octets of memory: a rule set without its aliases
_PATTERN = 1500  # and what each pattern takes beside its text, parsed and compiled
_CONFIRMED = 150  # and each confirmed address
_COMPILED = 25  # look-ups that take as long as compiling an expression, at most 2.5 ms
_COMPILED_MOST = 2000  # and as compiling all of a domain's

_quoted = json.JSONEncoder(ensure_ascii=False).encode


class Lines:
    """Exact aliases as text, a JSON array a line, parsed when one answers."""

    __slots__ = ("_text",)

    def __init__(self, lines: str | None) -> None:
        self._text = f"\n{lines}\n".encode() if lines else b""

    def __len__(self) -> int:
        """Octets."""
        return len(self._text)

    def get(self, name: str, /) -> Alias | None:
        """The exact alias of that name, if there is one."""
        line = self._line(name)
        return _alias(line) if line else None

    def only(self, names: Iterable[str]) -> "Lines":
        """Those of some names."""
        found = filter(None, map(self._line, dict.fromkeys(names)))
        return Lines("\n".join(found))

    def _line(self, name: str) -> str:
        # JSON writes no end of line inside a text: after one, nothing stands but the name that begins a line.
        begin = b"\n[%b," % _quoted(name).encode("utf-8", "surrogatepass")
        start = self._text.find(begin) + 1
        return self._text[start : self._text.index(b"\n", start)].decode() if start else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store said of a domain."""

    version: int
    rules: RuleSet | None  # None: not hosted here
    names: Lines | None = None  # where ``rules`` holds no names: those of the address asked about
    weight: int = ABSENT  # octets of memory that ``rules`` takes, about

    @property
    def answering(self) -> RuleSet | None:
        """Rules that answer for the address asked about."""
        if self.rules is None or self.names is None:
            return self.rules
        return self.rules.with_names(self.names)


async def read_domain(database: Database, address: Path, *, require_confirmed: bool) -> Known:
    """What the domain of an address has for it. Raises StoreUnavailable."""
    found = await database.read(lambda conn: _read(conn, address, require_confirmed=require_confirmed))
    # Away from the connection: on PostgreSQL its work is done in the event loop, which must not be held up.
    if len(found.patterns) > INLINE:
        return await asyncio.to_thread(_parsed, address, found)
    return _parsed(address, found)


class Within:
    """Rules that answer for addresses, as they are within a transaction.

    A domain is read, and its patterns parsed, when it is first asked for. Where it has very many names, those that
    could answer are read for each address.

    ``effort``: what all of that took, counted in look-ups of one address. To read four patterns counts as one; to
    compile a regular expression as ``_COMPILED``, and those of one domain as no more than ``_COMPILED_MOST``.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._known: dict[str, Known] = {}
        self.effort = 0

    def __call__(self, address: Path) -> RuleSet | None:
        known = self._known.get(address.domain)
        if known is None:
            found = _read(self._conn, address, require_confirmed=False)
            known = self._known[address.domain] = _parsed(address, found)
            self.effort += found.patterns.count("\n") // 4
            if known.rules is not None:
                self.effort += min(known.rules.expressions * _COMPILED, _COMPILED_MOST)
            return known.answering
        if known.rules is None or known.names is None:
            return known.rules
        parameters = _name_parameters(address, known.rules.domain_id)
        _, lines = execute(self._conn, _of_names, parameters).fetchone()
        return known.rules.with_names(Lines(lines))


async def read_names(database: Database, address: Path, domain_id: int) -> tuple[int, Lines]:
    """The directory's version, and the exact aliases that could answer for an address. Raises StoreUnavailable."""
    parameters = _name_parameters(address, domain_id)
    version, lines = await database.read(lambda conn: execute(conn, _of_names, parameters).fetchone())
    return version, Lines(lines)


def _name_parameters(address: Path, domain_id: int) -> dict[str, Any]:
    name, bare = names_for(address.local)
    return {"domain_id": domain_id, "name": name, "bare": bare}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    version: int
    domain_id: int | None
    account_id: int
    patterns: str
    names: Lines
    apart: bool  # only the names of the address are here
    confirmed: frozenset[str] | None
    is_active: bool


def _read(conn: Connection, address: Path, *, require_confirmed: bool) -> _Rows:
    wanted = names_for(address.local)
    limit = _ALL if require_confirmed else TOGETHER
    parameters = {
        "domain": address.domain,
        "name": wanted[0],
        "bare": wanted[1],
        "limit": limit,
        "more": limit + 1,
    }
    row = execute(conn, _of_domain, parameters).fetchone()
    version, domain_id, account_id, is_active, count, patterns, lines = row
    names = Lines(lines)
    apart = count > limit
    confirmed = None
    if require_confirmed:
        confirmed = confirmed_of(conn, (forward for _, forward, *_ in chain(_split(patterns), _split(lines))))
    if not apart and (count > TOGETHER or len(names) > ROOM):
        names, apart = names.only(wanted), True
    return _Rows(
        version=version,
        domain_id=domain_id,
        account_id=account_id,
        patterns=patterns or "",
        names=names,
        apart=apart,
        confirmed=confirmed,
        is_active=bool(is_active),
    )


def _parsed(address: Path, found: _Rows) -> Known:
    if found.domain_id is None:
        return Known(version=found.version, rules=None)
    patterns = [_alias(line) for line in found.patterns.split("\n") if line]
    rules = RuleSet(
        address.domain,
        found.domain_id,
        found.version,
        patterns,
        names=Lines(None) if found.apart else found.names,
        account_id=found.account_id,
        confirmed=found.confirmed,
        is_active=found.is_active,
    )
    weight = (
        _RULE_SET + len(found.patterns) + _PATTERN * len(patterns) + _CONFIRMED * len(found.confirmed or ())
    )
    if found.apart:
        return Known(version=found.version, rules=rules, names=found.names, weight=weight)
    return Known(version=found.version, rules=rules, weight=weight + len(found.names))


def _split(lines: str | None) -> list[Any]:
    return list(map(json.loads, lines.split("\n"))) if lines else []


def _alias(line: str) -> Alias:
    pattern, forward, row_id, active, when_disabled, *rank = json.loads(line)
    return Alias.stored(row_id, pattern, forward, bool(active), when_disabled, *rank)


def _lines(postgres: bool, columns: str, where: str) -> str:
    """A subquery: aliases as text, a JSON array a line."""
    if postgres:
        together = f"string_agg(CAST(json_build_array({columns}) AS text), chr(10))"
    else:
        together = f"group_concat(json_array({columns}), char(10))"
    # Aliases that are skipped are as if they were not there.
    return f"(SELECT {together} FROM aliases WHERE (is_active OR NOT is_skipped) AND {where})"  # noqa: S608 - ours


_COLUMNS = "pattern, forward, id, is_active, when_disabled"


@by_dialect
def _of_domain(postgres: bool) -> TextClause:
    is_pattern = IS_PATTERN["postgresql" if postgres else "sqlite"]
    patterns = _lines(postgres, f"{_COLUMNS}, rank", f"domain_id = found.id AND {is_pattern}")
    is_name = f"domain_id = found.id AND NOT ({is_pattern})"
    all_names = _lines(postgres, _COLUMNS, is_name)
    two_names = _lines(postgres, _COLUMNS, f"{is_name} AND pattern IN (:name, :bare)")
    # Counting stops at the limit: it costs no more to find that there are very many. Materialized: counted once.
    return text(f"""
        WITH found AS MATERIALIZED (
            SELECT sequences.value AS version, domains.id AS id, domains.account_id AS account_id, domains.is_active, (
                SELECT count(*) FROM (
                    SELECT 1 FROM aliases WHERE domain_id = domains.id AND NOT ({is_pattern}) LIMIT :more
                ) AS counted
            ) AS names
            FROM sequences LEFT JOIN domains ON domains.name = :domain WHERE sequences.name = 'directory'
        )
        SELECT version, id, account_id, is_active, names, {patterns},
            CASE WHEN names <= :limit THEN {all_names} ELSE {two_names} END
        FROM found
    """)  # noqa: S608 - texts of ours


@by_dialect
def _of_names(postgres: bool) -> TextClause:
    is_pattern = IS_PATTERN["postgresql" if postgres else "sqlite"]
    is_one = f"domain_id = :domain_id AND NOT ({is_pattern}) AND pattern IN (:name, :bare)"
    names = _lines(postgres, _COLUMNS, is_one)
    return text(f"SELECT value, {names} FROM sequences WHERE name = 'directory'")  # noqa: S608 - texts of ours
