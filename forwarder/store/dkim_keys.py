"""The DKIM keys of domains: private halves sealed, public halves as the TXT record to publish.

Functions of a connection. ``private_key`` is what ``vault.Vault.seal`` made of the PEM; the key that opens
it is a file that is not in the database, so a copy of the database alone signs nothing.

A domain's keys are renewed in three steps: new ones *wait* beside those that sign until the DNS has their records
(``propose``); then they sign in their place (``adopt``); those that did are *retired*: their private halves are gone,
and their records stay in the DNS for ``UNDER_WAY``, since receivers verify mail that waited on its way. The new have
selectors that were never used (RFC 6376 3.1: who reuses one cannot be told from a forger).
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from forwarder.store import changes
from forwarder.store.conflict import insert_new
from forwarder.store.domains import Domain, take_row
from forwarder.store.rows import all_values, as_value
from forwarder.store.tables import dkim_keys, domains

UNDER_WAY = timedelta(days=7)  # RFC 5321 4.5.4.1: a server that has mail of ours tries for some five days


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDkimKey:
    """A key that was made and sealed, before it has a row."""

    selector: str
    algorithm: str  # rsa or ed25519
    private_key: bytes  # sealed
    public_record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DkimKey:
    """A stored key."""

    id: int
    domain_id: int
    selector: str
    algorithm: str
    private_key: bytes  # sealed
    public_record: str
    created_at: datetime
    is_waiting: bool
    retired_at: datetime | None


def add(conn: Connection, domain: Domain, key: NewDkimKey, now: datetime) -> DkimKey:
    """Store a key; AlreadyExists("selector")."""
    changes.touch(conn, domain.name, now)
    return _insert(conn, domain, key, now)


def replace(conn: Connection, domain: Domain, old: DkimKey, key: NewDkimKey, now: datetime) -> bool:
    """Store ``key`` in place of ``old``; False: that was gone already.

    The record that the DNS has for one that signs is wrong now: nothing is submitted as the domain until the new one
    is found.
    """
    changes.touch(conn, domain.name, now)
    if not conn.execute(delete(dkim_keys).where(dkim_keys.c.id == old.id)).rowcount:
        return False
    if not old.is_waiting:
        _forget_the_check(conn, domain)
    _insert(conn, domain, key, now, is_waiting=old.is_waiting)
    return True


def propose(
    conn: Connection, domain: Domain, keys: Sequence[NewDkimKey], now: datetime
) -> tuple[DkimKey, ...]:
    """Store keys that wait; those that wait already, where there are some. Missing("domain")."""
    changes.touch(conn, domain.name, now)
    take_row(conn, domain)
    if waiting := waiting_keys(conn, domain.id):
        return tuple(waiting)
    return tuple(_insert(conn, domain, key, now, is_waiting=True) for key in keys)


def adopt(
    conn: Connection, domain: Domain, waiting: Sequence[DkimKey], now: datetime, *, published: bool
) -> bool:
    """These keys sign from now on, and those that did are retired; False: they do not wait any more.

    ``published``: the DNS has their records. Where it has not, nothing is submitted as the domain until it has.
    """
    changes.touch(conn, domain.name, now)
    ids = [key.id for key in waiting]
    # All or none: one that was made anew meanwhile (``replace``) would be retired before it ever signed.
    if not ids or {*ids} != {key.id for key in waiting_keys(conn, domain.id)}:
        return False
    conn.execute(update(dkim_keys).where(dkim_keys.c.id.in_(ids)).values(is_waiting=False))
    others = (dkim_keys.c.domain_id == domain.id, dkim_keys.c.id.not_in(ids))
    too_old = dkim_keys.c.retired_at < now - UNDER_WAY
    conn.execute(delete(dkim_keys).where(*others, too_old))
    retired = update(dkim_keys).where(*others, dkim_keys.c.retired_at.is_(None))
    conn.execute(retired.values(retired_at=now, private_key=b""))
    selector = {"dkim_selector": waiting[0].selector[:-1]}
    conn.execute(update(domains).where(domains.c.id == domain.id).values(selector))
    if not published:
        _forget_the_check(conn, domain)
    return True


def fresh_selector(configured: str, day: date, taken: Sequence[str]) -> str | None:
    """A selector for a domain's new keys, to which each adds its number; None: the day has no letters left. Pure."""
    for letter in string.ascii_lowercase:
        fresh = f"{configured}-{day:%Y%m%d}{letter}"
        if not any(selector.startswith(fresh) for selector in taken):
            return fresh
    return None


def _forget_the_check(conn: Connection, domain: Domain) -> None:
    conn.execute(update(domains).where(domains.c.id == domain.id).values(sending_checked_at=None))


def _insert(
    conn: Connection, domain: Domain, key: NewDkimKey, now: datetime, *, is_waiting: bool = False
) -> DkimKey:
    values = {
        "domain_id": domain.id,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "private_key": key.private_key,
        "public_record": key.public_record,
        "created_at": now,
        "is_waiting": is_waiting,
    }
    return as_value(DkimKey, insert_new(conn, dkim_keys, values, clash="selector"))


def list_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    """The keys that sign a domain's mail, in the order of their selectors."""
    return [key for key in live_keys(conn, domain_id) if not key.is_waiting]


def live_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    """The keys that sign and those that wait: the DNS should have the records of all."""
    return [key for key in _all_keys(conn, domain_id) if key.retired_at is None]


def waiting_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    """The keys that will sign once their records are found."""
    return [key for key in _all_keys(conn, domain_id) if key.is_waiting]


def retired_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    """The keys that signed until others took their place; those of long ago are forgotten."""
    return [key for key in _all_keys(conn, domain_id) if key.retired_at is not None]


def _all_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    query = select(dkim_keys).where(dkim_keys.c.domain_id == domain_id).order_by(dkim_keys.c.selector)
    return all_values(conn, DkimKey, query)


def page(conn: Connection, *, after: int, limit: int) -> Sequence[tuple[str, DkimKey]]:
    """Keys of all domains, but for retired ones, with the names of these, by their ids, past the id ``after``."""
    query = (
        select(dkim_keys, domains.c.name.label("domain"))
        .join(domains, domains.c.id == dkim_keys.c.domain_id)
        .where(dkim_keys.c.id > after, dkim_keys.c.retired_at.is_(None))
        .order_by(dkim_keys.c.id)
        .limit(limit)
    )
    return [(row["domain"], as_value(DkimKey, row)) for row in conn.execute(query).mappings()]


def nth_from_the_end(conn: Connection, number: int) -> int:
    """The id after which ``number`` keys come; 0 where there are no more than these."""
    sealed = select(dkim_keys.c.id).where(dkim_keys.c.retired_at.is_(None))
    query = sealed.order_by(dkim_keys.c.id.desc()).offset(number).limit(1)
    return int(conn.execute(query).scalar_one_or_none() or 0)
