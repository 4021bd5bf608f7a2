"""Credentials: who may send as a domain.

Functions of a connection. ``username`` is the left part of the address, lower case; the log-in name is the
whole address. Passwords arrive hashed (argon2id); nothing here sees one. ``changed_at`` moves with every
change of the password or the permission, so that a cache of verified log-ins can tell that it is old.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, select, update

from forwarder.store import accounts, changes
from forwarder.store import domains as domain_verbs
from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, insert_new
from forwarder.store.domains import Domain
from forwarder.store.rows import all_values, as_value, as_values, by_dialect, columns_of, fetch, one_value
from forwarder.store.tables import accounts as account_table
from forwarder.store.tables import credentials, domains


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One log-in for sending."""

    id: int
    domain_id: int
    username: str
    password_hash: str
    is_limited: bool  # true: may send as its own address only
    usage: int
    created_at: datetime
    changed_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A credential with what submission must know of its domain and account."""

    credential: Credential
    domain: Domain
    account_plan: str
    account_locked: bool


def add(
    conn: Connection,
    domain: Domain,
    username: str,
    password_hash: str,
    now: datetime,
    *,
    is_limited: bool = False,
    limit: int | None = None,
) -> Credential:
    """A new credential.

    AlreadyExists("username"), LimitReached("credentials") of the domain, Missing("domain").
    """
    changes.touch(conn, domain.name, now)
    accounts.take_row(conn, domain.account_id)
    domain_verbs.take_row(conn, domain)
    if limit is not None and count(conn, domain.id) >= limit:
        if get(conn, domain.id, username) is not None:
            raise AlreadyExists("username")
        raise LimitReached("credentials", limit)
    values = {
        "domain_id": domain.id,
        "username": username.lower(),
        "password_hash": password_hash,
        "is_limited": is_limited,
        "usage": 0,
        "created_at": now,
        "changed_at": now,
    }
    return as_value(Credential, insert_new(conn, credentials, values, clash="username"))


def get(conn: Connection, domain_id: int, username: str) -> Credential | None:
    """By the left part of its address."""
    query = select(credentials).where(
        credentials.c.domain_id == domain_id, credentials.c.username == username.lower()
    )
    return one_value(conn, Credential, query)


def for_login(conn: Connection, username: str, domain_name: str) -> Login | None:
    """The credential of ``username@domain_name`` with its domain and account."""
    found = fetch(conn, _login, {"username": username.lower(), "domain": domain_name})
    if not found:
        return None
    [(plan, locked_at, *row)] = found
    credential, domain = as_values(row, Credential, Domain)
    return Login(
        credential=credential, domain=domain, account_plan=plan, account_locked=locked_at is not None
    )


@by_dialect
def _login(_postgres: bool) -> Select[Any]:
    """Of every submitted message."""
    columns = (*columns_of(Credential, credentials), *columns_of(Domain, domains))
    return (
        select(account_table.c.plan, account_table.c.locked_at, *columns)
        .select_from(credentials.join(domains).join(account_table))
        .where(domains.c.name == bindparam("domain"), credentials.c.username == bindparam("username"))
    )


def count(conn: Connection, domain_id: int) -> int:
    """How many credentials a domain has."""
    query = select(func.count()).select_from(credentials).where(credentials.c.domain_id == domain_id)
    return int(conn.execute(query).scalar_one())


def list_credentials(conn: Connection, domain_id: int) -> Sequence[Credential]:
    """All of a domain by id; bounded by the account's limit."""
    query = select(credentials).where(credentials.c.domain_id == domain_id).order_by(credentials.c.id)
    return all_values(conn, Credential, query)


def update_credential(
    conn: Connection, domain: Domain, username: str, now: datetime, **values: Any
) -> Credential:
    """Set password_hash, is_limited (only what is given) and void cached log-ins; Missing("credential")."""
    unknown = values.keys() - {"password_hash", "is_limited"}
    if unknown:
        raise TypeError(f"a credential's {', '.join(sorted(unknown))} cannot be set")
    changes.touch(conn, domain.name, now)
    mine = (credentials.c.domain_id == domain.id) & (credentials.c.username == username.lower())
    change = update(credentials).where(mine).values(values | {"changed_at": now}).returning(*credentials.c)
    changed = one_value(conn, Credential, change)
    if changed is None:
        raise Missing("credential")
    return changed


def renew_hash(conn: Connection, credential: Credential, password_hash: str) -> bool:
    """Store the same password hashed anew; cached log-ins stay. False: the credential has changed meanwhile."""
    same = (credentials.c.id == credential.id) & (credentials.c.password_hash == credential.password_hash)
    return conn.execute(update(credentials).where(same).values(password_hash=password_hash)).rowcount == 1


def remove(conn: Connection, domain: Domain, username: str, now: datetime) -> bool:
    """Remove a credential; False: there is none of that name."""
    changes.touch(conn, domain.name, now)
    mine = (credentials.c.domain_id == domain.id) & (credentials.c.username == username.lower())
    return conn.execute(delete(credentials).where(mine)).rowcount == 1


def used(conn: Connection, credential_id: int, now: datetime, *, messages: int = 1) -> None:
    """Count what was sent and note when."""
    values = {"usage": credentials.c.usage + messages, "last_used_at": now}
    conn.execute(update(credentials).where(credentials.c.id == credential_id).values(values))
