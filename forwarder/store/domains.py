"""Domains: whose they are, what their DNS said, and where their events go.

Functions of a connection. Every change of what a domain does with mail is announced with
``changes.touch`` in the same transaction, first thing (see ``accounts`` for the order of locks). Names
are unique over all accounts: the first to add a domain has it. Removing a domain removes its aliases,
credentials and keys; its queued mail and its journal outlive it.

``account_id=None`` looks over all accounts: for the command line and background work, never for a request.
"""

import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, delete, func, or_, select, update

from forwarder.store import accounts, changes
from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, insert_new
from forwarder.store.rows import all_values, as_value, as_values, by_dialect, columns_of, fetch, one_value
from forwarder.store.tables import domains

_AT_ONCE = 5000  # names in one statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One hosted domain; ``name`` in A-labels, ``display`` in U-labels."""

    id: int
    account_id: int
    name: str
    display: str
    is_active: bool
    notification_email: str | None
    webhook: str | None
    webhook_key: str
    whitelabel: str | None
    dkim_selector: str
    added_at: datetime
    checked_at: datetime | None
    sending_checked_at: datetime | None
    broken_since: datetime | None
    notified_at: datetime | None


def add(
    conn: Connection,
    account_id: int,
    name: str,
    display: str,
    now: datetime,
    *,
    dkim_selector: str,
    notification_email: str | None = None,
    webhook: str | None = None,
    whitelabel: str | None = None,
    limit: int | None = None,
) -> Domain:
    """A new domain without aliases or keys.

    AlreadyExists("domain"), LimitReached("domains"), Missing("account").
    """
    changes.touch(conn, name, now)
    if not accounts.take_row(conn, account_id):
        raise Missing("account")
    if limit is not None and count(conn, account_id) >= limit:
        # A name that is taken is told as such even to an account that is full: retries of a create see why.
        if get(conn, name) is not None:
            raise AlreadyExists("domain")
        raise LimitReached("domains", limit)
    values = {
        "account_id": account_id,
        "name": name,
        "display": display,
        "is_active": False,
        "notification_email": notification_email,
        "webhook": webhook,
        "webhook_key": secrets.token_hex(32),
        "whitelabel": whitelabel,
        "dkim_selector": dkim_selector,
        "added_at": now,
    }
    return as_value(Domain, insert_new(conn, domains, values, clash="domain"))


def get(conn: Connection, name: str, *, account_id: int | None = None) -> Domain | None:
    """By name, within one account or over all."""
    query, which = (_by_name, {}) if account_id is None else (_by_name_of_account, {"account_id": account_id})
    found = fetch(conn, query, {"name": name, **which})
    return next(as_values(found[0], Domain)) if found else None


def _named() -> Select[Any]:
    return select(*columns_of(Domain, domains)).where(domains.c.name == bindparam("name"))


_by_name = by_dialect(lambda _postgres: _named())
_by_name_of_account = by_dialect(
    lambda _postgres: _named().where(domains.c.account_id == bindparam("account_id"))
)


def by_id(conn: Connection, domain_id: int) -> Domain | None:
    """By id, over all accounts."""
    return one_value(conn, Domain, select(domains).where(domains.c.id == domain_id))


def hosted_among(conn: Connection, names: Iterable[str], *, account_id: int | None = None) -> set[str]:
    """Those of these domains that are hosted here, within one account or over all."""
    wanted = list(names)
    found: set[str] = set()
    for start in range(0, len(wanted), _AT_ONCE):
        query = select(domains.c.name).where(domains.c.name.in_(wanted[start : start + _AT_ONCE]))
        if account_id is not None:
            query = query.where(domains.c.account_id == account_id)
        found.update(conn.execute(query).scalars())
    return found


def count(conn: Connection, account_id: int) -> int:
    """How many domains an account has."""
    query = select(func.count()).select_from(domains).where(domains.c.account_id == account_id)
    return int(conn.execute(query).scalar_one())


def list_domains(
    conn: Connection,
    account_id: int | None = None,
    *,
    starts_with: str = "",
    is_active: bool | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> tuple[Sequence[Domain], int]:
    """A page by id, and how many match in all."""
    wanted: list[ColumnElement[bool]] = []
    if account_id is not None:
        wanted.append(domains.c.account_id == account_id)
    if is_active is not None:
        wanted.append(domains.c.is_active.is_(is_active))
    if starts_with:
        prefix = unicodedata.normalize("NFC", starts_with).lower()
        wanted.append(
            or_(
                domains.c.name.startswith(prefix, autoescape=True),
                func.lower(domains.c.display).startswith(prefix, autoescape=True),
            )
        )
    condition = and_(True, *wanted)
    total = conn.execute(select(func.count()).select_from(domains).where(condition)).scalar_one()
    page = select(domains).where(condition).order_by(domains.c.id).limit(limit).offset(offset)
    return all_values(conn, Domain, page), int(total)


def whitelabels(conn: Connection, account_id: int) -> Sequence[str]:
    """The distinct parents' domains that an account's domains name, in order."""
    query = (
        select(domains.c.whitelabel)
        .where(domains.c.account_id == account_id, domains.c.whitelabel.is_not(None))
        .distinct()
        .order_by(domains.c.whitelabel)
    )
    return [str(row[0]) for row in conn.execute(query)]


def update_domain(conn: Connection, domain: Domain, now: datetime, **values: Any) -> Domain:
    """Set notification_email, webhook, whitelabel, webhook_key (only what is given); Missing("domain")."""
    unknown = values.keys() - {"notification_email", "webhook", "whitelabel", "webhook_key"}
    if unknown:
        raise TypeError(f"a domain's {', '.join(sorted(unknown))} cannot be set")
    changes.touch(conn, domain.name, now)
    if not values:
        return domain
    row = _update(conn, domain.id, values)
    if row is None:
        raise Missing("domain")
    return row


def remove(conn: Connection, domain: Domain, now: datetime) -> bool:
    """Remove a domain with its aliases, credentials and keys; False: it was gone already."""
    changes.touch(conn, domain.name, now)
    return conn.execute(delete(domains).where(domains.c.id == domain.id)).rowcount == 1


def take_row(conn: Connection, domain: Domain) -> None:
    """As ``accounts.take_row``; Missing("domain")."""
    taken = conn.execute(select(domains.c.id).where(domains.c.id == domain.id).with_for_update())
    if taken.one_or_none() is None:
        raise Missing("domain")


def due_for_check(
    conn: Connection,
    *,
    before: datetime,
    beyond: datetime,
    young_since: datetime,
    young_before: datetime,
    limit: int,
) -> Sequence[Domain]:
    """The domains whose DNS is to be asked, the longest waiting first.

    Those not asked since ``before``; those added after ``young_since`` that are not active yet and were not asked
    since ``young_before``: their owners are just setting them up; and those found broken whose owner was not told.
    Asked ``beyond`` that time means by a clock that was wrong, and does not count.
    """
    asked = domains.c.checked_at
    young = and_(domains.c.is_active.is_(False), domains.c.added_at > young_since, asked < young_before)
    untold = and_(domains.c.broken_since.is_not(None), domains.c.notified_at.is_(None))
    query = (
        select(domains)
        .where(or_(domains.c.checked_at.is_(None), asked < before, asked > beyond, young, untold))
        .order_by(asked.is_not(None), asked, domains.c.id)
        .limit(limit)
    )
    return all_values(conn, Domain, query)


def record_check(
    conn: Connection,
    domain: Domain,
    now: datetime,
    *,
    is_active: bool,
    sending_ready: bool,
    broken_since: datetime | None,
    notified_at: datetime | None,
) -> Domain | None:
    """What the DNS said just now.

    Announced only when mail is affected: a check is not a change. None, and nothing is written: the domain is gone, or
    another check of it was written down since it was read.
    """
    sending_checked_at = now if sending_ready else None
    if (domain.sending_checked_at is None) != (sending_checked_at is None) or domain.is_active != is_active:
        changes.touch(conn, domain.name, now)
    values = {
        "is_active": is_active,
        "checked_at": now,
        "sending_checked_at": sending_checked_at,
        "broken_since": broken_since,
        "notified_at": notified_at,
    }
    as_read = (domains.c[name].is_not_distinct_from(getattr(domain, name)) for name in values)
    return _update(conn, domain.id, values, *as_read)


def set_notified(conn: Connection, domain_id: int, now: datetime) -> None:
    """The owner was told that the DNS broke."""
    conn.execute(update(domains).where(domains.c.id == domain_id).values(notified_at=now))


def _update(
    conn: Connection, domain_id: int, values: dict[str, Any], *only_where: ColumnElement[bool]
) -> Domain | None:
    change = update(domains).where(domains.c.id == domain_id, *only_where).values(values)
    return one_value(conn, Domain, change.returning(*domains.c))
