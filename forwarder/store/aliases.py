"""Aliases of a domain: a pattern and where it leads.

Functions of a connection. Patterns and forwards arrive canonical (``mail.pattern.parse_pattern``,
``mail.destination.canonical_forward``); the store only keeps one alias of a pattern a domain. Every change is announced
with ``changes.touch`` in the same transaction, before any row is taken. The limit of aliases is one of each domain; it
is counted when the account's row is taken, so parallel creates cannot pass it.

An alias is found by its pattern or by its id. A pattern of digits alone is a pattern first.

A disabled alias answers with its ``when_disabled``, unless it is skipped: then another one has its mail.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from forwarder.mail.address import fold
from forwarder.mail.pattern import AliasKind, classify, stored_name, too_large_together
from forwarder.store import accounts, changes
from forwarder.store import domains as domain_verbs
from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, TooLarge, insert_new
from forwarder.store.domains import Domain
from forwarder.store.rows import all_values, as_value, is_postgres, one_value
from forwarder.store.tables import IS_PATTERN, aliases, domains

_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """One alias as stored."""

    id: int
    domain_id: int
    pattern: str
    forward: str
    is_active: bool
    when_disabled: int
    created_at: datetime
    rank: float | None  # among the domain's regular expressions; None: in order of creation
    is_skipped: bool  # when it is not active: mail is looked after as if it were not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What became of the entries of a bulk request, each in the order given."""

    added: Sequence[Alias]
    updated: Sequence[Alias]
    failed: Sequence[Alias]  # existed already, and updating was not asked for; nothing was changed


def add(
    conn: Connection,
    domain: Domain,
    pattern: str,
    forward: str,
    now: datetime,
    *,
    is_active: bool = True,
    when_disabled: int = 550,
    rank: float | None = None,
    is_skipped: bool = False,
    limit: int | None = None,
) -> Alias:
    """A new alias; AlreadyExists("alias"), LimitReached("aliases"), TooLarge, Missing("domain")."""
    changes.touch(conn, domain.name, now)
    accounts.take_row(conn, domain.account_id)
    domain_verbs.take_row(conn, domain)
    if limit is not None and count(conn, domain.id) >= limit:
        if get(conn, domain.id, pattern) is not None:
            raise AlreadyExists("alias")
        raise LimitReached("aliases", limit)
    values = {
        "domain_id": domain.id,
        "pattern": pattern,
        "forward": forward,
        "is_active": is_active,
        "when_disabled": when_disabled,
        "created_at": now,
        "rank": rank,
        "is_skipped": is_skipped,
    }
    added = as_value(Alias, insert_new(conn, aliases, values, clash="alias"))
    _check_expressions(conn, domain, [pattern])
    return added


def get(conn: Connection, domain_id: int, pattern: str) -> Alias | None:
    """By pattern."""
    query = select(aliases).where(aliases.c.domain_id == domain_id, aliases.c.pattern == pattern)
    return one_value(conn, Alias, query)


def find(conn: Connection, domain_id: int, wanted: str) -> Alias | None:
    """The alias of that name, as written or as it would be stored, or of that id."""
    for pattern in dict.fromkeys((wanted, stored_name(wanted))):
        found = get(conn, domain_id, pattern)
        if found is not None:
            return found
    return by_id(conn, domain_id, wanted)


def by_id(conn: Connection, domain_id: int, name: str) -> Alias | None:
    """The alias of the id that a client wrote, which may be any text."""
    if not (name.isascii() and name.isdigit()) or len(name) > 19 or int(name) > _LARGEST_ID:
        return None
    query = select(aliases).where(aliases.c.domain_id == domain_id, aliases.c.id == int(name))
    return one_value(conn, Alias, query)


def count(conn: Connection, domain_id: int) -> int:
    """How many aliases a domain has."""
    query = select(func.count()).select_from(aliases).where(aliases.c.domain_id == domain_id)
    return int(conn.execute(query).scalar_one())


def list_aliases(
    conn: Connection,
    domain_id: int,
    *,
    starts_with: str = "",
    pattern_starts_with: str = "",
    contains: str = "",
    is_active: bool | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> tuple[Sequence[Alias], int]:
    """A page by id, and how many match in all.

    ``starts_with`` and ``contains`` look at the pattern and at each destination, all of them without case.
    """
    forward = func.lower(aliases.c.forward)
    wanted: list[ColumnElement[bool]] = [aliases.c.domain_id == domain_id]
    if is_active is not None:
        wanted.append(aliases.c.is_active.is_(is_active))
    if starts_with:
        begins = _holds(conn, literal(",") + forward, f",{starts_with}")
        wanted.append(or_(_pattern_begins(starts_with), begins))
    if pattern_starts_with:
        wanted.append(_pattern_begins(pattern_starts_with))
    if contains:
        pattern = func.lower(aliases.c.pattern)
        named = (_holds(conn, pattern, spelling) for spelling in _spellings(contains))
        wanted.append(or_(*named, _holds(conn, forward, contains)))
    condition = and_(*wanted)
    total = conn.execute(select(func.count()).select_from(aliases).where(condition)).scalar_one()
    page = select(aliases).where(condition).order_by(aliases.c.id).limit(limit).offset(offset)
    return all_values(conn, Alias, page), int(total)


def _pattern_begins(text: str) -> ColumnElement[bool]:
    lowered = func.lower(aliases.c.pattern)
    return or_(*(_like(lowered, f"{_escaped(spelling)}%") for spelling in _spellings(text)))


def _spellings(text: str) -> list[str]:
    # A name is stored folded, whatever it was written like; of an expression only the database lowers the letters.
    return sorted({text, fold(text)})


def _holds(conn: Connection, lowered: ColumnElement[str], text: str) -> ColumnElement[bool]:
    # Not LIKE, which compares letter by letter from each place: minutes for many letters in long destinations.
    place = func.strpos if is_postgres(conn) else func.instr
    return place(lowered, func.lower(text)) > 0


def _like(lowered: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    # Both sides are lowered by the database: which letters beyond ASCII that touches is its own affair.
    return lowered.like(func.lower(pattern), escape="/")


def _escaped(wanted: str) -> str:
    return re.sub(r"([/%_])", r"/\1", wanted)


def first_of_each(
    conn: Connection, domain_ids: Sequence[int], at_most: int, *, room: int
) -> dict[int, list[Alias]]:
    """The first ``at_most`` aliases of each domain, by domain id, in one statement.

    No more in all than have ``room`` characters of destinations: an alias may have 25 KB of them.
    """
    found: dict[int, list[Alias]] = {domain_id: [] for domain_id in domain_ids}
    for row in conn.execute(_first_of_each(domain_ids, at_most, room)).mappings():
        found[row["domain_id"]].append(as_value(Alias, row))
    return found


def _first_of_each(domain_ids: Sequence[int], at_most: int, room: int) -> Select[Any]:
    last = (
        select(aliases.c.id)
        .where(aliases.c.domain_id == domains.c.id)
        .order_by(aliases.c.id)
        .limit(1)
        .offset(at_most - 1)
        .scalar_subquery()
    )
    # The id of each domain's last alias to show: a window function would number them all. Materialized, or both
    # databases look it up again for every alias of the domain; and never null, so that it bounds a range of the index.
    bound = (
        select(domains.c.id, func.coalesce(last, literal_column(str(_LARGEST_ID))).label("last_id"))
        .where(domains.c.id.in_(domain_ids))
        .cte("bound")
        .prefix_with("MATERIALIZED")
    )
    order = (aliases.c.domain_id, aliases.c.id)
    taken = func.sum(func.length(aliases.c.forward)).over(order_by=order).label("taken")
    first = (
        select(aliases, taken)
        .join(bound, and_(bound.c.id == aliases.c.domain_id, aliases.c.id <= bound.c.last_id))
        .subquery()
    )
    return select(first).where(first.c.taken <= room).order_by(first.c.domain_id, first.c.id)


def update_alias(conn: Connection, domain: Domain, alias: Alias, now: datetime, **values: Any) -> Alias:
    """Set pattern, forward, is_active, when_disabled, rank, is_skipped (only what is given).

    AlreadyExists("alias"), TooLarge, Missing("alias").
    """
    unknown = values.keys() - {"pattern", "forward", "is_active", "when_disabled", "rank", "is_skipped"}
    if unknown:
        raise TypeError(f"an alias's {', '.join(sorted(unknown))} cannot be set")
    if values and classify(values.get("pattern", alias.pattern)) is not AliasKind.REGEX:
        values["rank"] = None  # only regular expressions have one; another is not to inherit it
    changes.touch(conn, domain.name, now)
    if not values:
        return alias
    change = update(aliases).where(aliases.c.id == alias.id).values(values).returning(*aliases.c)
    try:
        changed = one_value(conn, Alias, change)
    except IntegrityError as fault:
        raise AlreadyExists("alias") from fault
    if changed is None:
        raise Missing("alias")
    if "pattern" in values:
        _check_expressions(conn, domain, [values["pattern"]])
    return changed


def remove(conn: Connection, domain: Domain, alias: Alias, now: datetime) -> bool:
    """Remove an alias; False: it was gone already."""
    changes.touch(conn, domain.name, now)
    return conn.execute(delete(aliases).where(aliases.c.id == alias.id)).rowcount == 1


def remove_all(conn: Connection, domain: Domain, now: datetime) -> int:
    """Remove every alias of the domain; how many there were."""
    changes.touch(conn, domain.name, now)
    return conn.execute(delete(aliases).where(aliases.c.domain_id == domain.id)).rowcount


def bulk(
    conn: Connection,
    domain: Domain,
    entries: Sequence[tuple[str, str]],
    now: datetime,
    *,
    update_existing: bool,
    limit: int | None = None,
) -> Bulk:
    """Add many (pattern, forward) in one transaction; existing ones are updated or listed as failed.

    Of a pattern that comes twice the last counts in an update; else the first, and the others are failed.
    LimitReached("aliases"), TooLarge, Missing("domain").
    """
    changes.touch(conn, domain.name, now)
    accounts.take_row(conn, domain.account_id)
    domain_verbs.take_row(conn, domain)
    wanted = dict(entries if update_existing else reversed(entries))
    there = select(aliases).where(aliases.c.domain_id == domain.id, aliases.c.pattern.in_(list(wanted)))
    existing = {alias.pattern: alias for alias in all_values(conn, Alias, there)}
    times = Counter(pattern for pattern, _ in entries)  # in the order given
    new = [pattern for pattern in times if pattern not in existing]
    if new and limit is not None and count(conn, domain.id) + len(new) > limit:
        raise LimitReached("aliases", limit)
    added = _insert(conn, domain, [(pattern, wanted[pattern]) for pattern in new], now)
    _check_expressions(conn, domain, new)
    if not update_existing:
        known = existing | {alias.pattern: alias for alias in added}
        failed = [known[pattern] for pattern in times if pattern in existing or times[pattern] > 1]
        return Bulk(added=added, updated=(), failed=failed)
    if existing:
        change = (
            update(aliases).where(aliases.c.id == bindparam("alias_id")).values(forward=bindparam("leads_to"))
        )
        conn.execute(change, [{"alias_id": alias.id, "leads_to": wanted[p]} for p, alias in existing.items()])
    updated = [
        replace(existing[pattern], forward=wanted[pattern]) for pattern in times if pattern in existing
    ]
    return Bulk(added=added, updated=updated, failed=())


def _check_expressions(conn: Connection, domain: Domain, new: Iterable[str]) -> None:
    """TooLarge where the domain's expressions are, together with those among these that were just saved."""
    if not any(classify(pattern) is AliasKind.REGEX for pattern in new):
        return
    is_pattern = text(IS_PATTERN["postgresql" if is_postgres(conn) else "sqlite"])
    query = select(aliases.c.pattern).where(aliases.c.domain_id == domain.id, is_pattern)
    if too_large_together(conn.execute(query).scalars().all()):
        raise TooLarge


def _insert(
    conn: Connection, domain: Domain, entries: Sequence[tuple[str, str]], now: datetime
) -> Sequence[Alias]:
    if not entries:
        return ()
    rows = [
        {"domain_id": domain.id, "pattern": pattern, "forward": forward, "created_at": now}
        | {"is_active": True, "when_disabled": 550, "is_skipped": False}
        for pattern, forward in entries
    ]
    result = conn.execute(insert(aliases).returning(*aliases.c, sort_by_parameter_order=True), rows)
    return [as_value(Alias, row) for row in result.mappings()]
