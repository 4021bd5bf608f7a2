"""Accounts and their API keys.

Functions of a connection, to be run as ``database.read(lambda c: accounts.get(c, …))`` or
``database.write(…)``. An account's e-mail address is its name for people: lower case, unique. Of an API key
only the SHA-256 is stored: the key is 256 random bits, so that no slow hash is needed and the digest cannot
be turned back. The key itself is shown once, by whoever made it (``new_key``). A revoked key stays as a
row, so that its name and last use can be read, until ``REVOKED_KEPT`` others of its account were revoked after it.

``set_lock`` is the operator's; whoever reads ``locked_at`` asks the store each time, so that it is in force at once
everywhere. ``take_row`` has the account's row for itself until the transaction ends. Whoever counts what an account has
before adding to it calls it first, which makes limits exact under parallel requests. Directory changes are announced
(``changes.touch``) before the account's row is taken, everywhere in this order: two transactions that each have one and
want the other would end in a deadlock.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update

from forwarder.store.conflict import AlreadyExists, LimitReached, insert_new
from forwarder.store.rows import all_values, as_value, as_values, by_dialect, columns_of, fetch, one_value
from forwarder.store.tables import accounts, api_keys

REVOKED_KEPT = 20  # keys of an account: whoever changes them every night would have thousands to look at
KEY_PREFIX = "fwd_"  # lets secret scanners and people recognise a key of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who owns domains."""

    id: int
    email: str
    plan: str
    created_at: datetime
    locked_at: datetime | None
    lock_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key after it was shown."""

    id: int
    account_id: int
    name: str
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made; ``secret`` is never stored."""

    secret: str
    digest: str
    prefix: str


def new_key() -> NewKey:
    """256 random bits, their digest, and the first characters for people to recognise the key by."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    return NewKey(secret=secret, digest=key_digest(secret), prefix=secret[: len(KEY_PREFIX) + 6])


def key_digest(secret: str) -> str:
    """SHA-256 in hex of a presented key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def create(conn: Connection, email: str, plan: str, now: datetime) -> Account:
    """A new account; AlreadyExists("email")."""
    values = {"email": email.lower(), "plan": plan, "created_at": now}
    return as_value(Account, insert_new(conn, accounts, values, clash="email"))


def get(conn: Connection, account_id: int) -> Account | None:
    """By id."""
    return one_value(conn, Account, select(accounts).where(accounts.c.id == account_id))


def by_email(conn: Connection, email: str) -> Account | None:
    """By e-mail address, whatever its case."""
    return one_value(conn, Account, select(accounts).where(accounts.c.email == email.lower()))


def list_accounts(conn: Connection) -> Sequence[Account]:
    """All accounts by id."""
    return all_values(conn, Account, select(accounts).order_by(accounts.c.id))


def set_plan(conn: Connection, account_id: int, plan: str) -> bool:
    """Move an account to another named set of limits; False: no such account."""
    return _set(conn, account_id, plan=plan)


def set_lock(conn: Connection, account_id: int, locked_at: datetime, reason: str | None) -> bool:
    """The account only reads and nobody sends for it; ``reason`` is shown to its owner. False: no such account."""
    return _set(conn, account_id, locked_at=locked_at, lock_reason=reason)


def lift_lock(conn: Connection, account_id: int) -> bool:
    """End what ``set_lock`` began; False: no such account."""
    return _set(conn, account_id, locked_at=None, lock_reason=None)


def _set(conn: Connection, account_id: int, **values: object) -> bool:
    return conn.execute(update(accounts).where(accounts.c.id == account_id).values(values)).rowcount == 1


def take_row(conn: Connection, account_id: int) -> bool:
    """Keep all others who would from the account's row until the transaction ends; False: it is gone.

    On SQLite there is one writer anyway.
    """
    taken = conn.execute(select(accounts.c.id).where(accounts.c.id == account_id).with_for_update())
    return taken.one_or_none() is not None


def add_key(
    conn: Connection,
    account_id: int,
    name: str,
    digest: str,
    prefix: str,
    now: datetime,
    *,
    limit: int | None = None,
) -> ApiKey:
    """Store the digest of a new key.

    AlreadyExists("name") among the keys in force, LimitReached("API keys").
    """
    take_row(conn, account_id)
    in_force = (api_keys.c.account_id == account_id) & api_keys.c.revoked_at.is_(None)
    if conn.execute(select(api_keys.c.id).where(in_force, api_keys.c.name == name)).first() is not None:
        raise AlreadyExists("name")  # the account's row is taken: nobody adds the same name meanwhile
    if limit is not None:
        count = conn.execute(select(func.count()).select_from(api_keys).where(in_force)).scalar_one()
        if count >= limit:
            raise LimitReached("API keys", limit)
    values = {"account_id": account_id, "name": name, "digest": digest, "prefix": prefix, "created_at": now}
    row = conn.execute(insert(api_keys).values(values).returning(*api_keys.c)).mappings().one()
    return as_value(ApiKey, row)


def list_keys(conn: Connection, account_id: int) -> Sequence[ApiKey]:
    """The keys of an account by id, those revoked last among them."""
    query = select(api_keys).where(api_keys.c.account_id == account_id).order_by(api_keys.c.id)
    return all_values(conn, ApiKey, query)


def revoke_key(conn: Connection, account_id: int, key_id: int, now: datetime) -> bool:
    """Void a key from now on; False: no such key in force in this account."""
    mine = (api_keys.c.id == key_id) & (api_keys.c.account_id == account_id) & api_keys.c.revoked_at.is_(None)
    if conn.execute(update(api_keys).where(mine).values(revoked_at=now)).rowcount != 1:
        return False
    revoked = (api_keys.c.account_id == account_id) & api_keys.c.revoked_at.is_not(None)
    order = (api_keys.c.revoked_at.desc(), api_keys.c.id.desc())
    kept = select(api_keys.c.id).where(revoked).order_by(*order).limit(REVOKED_KEPT)
    conn.execute(delete(api_keys).where(revoked, api_keys.c.id.not_in(kept)))
    return True


def by_key_digest(conn: Connection, digest: str) -> tuple[Account, ApiKey] | None:
    """Whose key this is; None for an unknown or revoked one."""
    found = fetch(conn, _by_digest, {"digest": digest})
    # The index already compared; this keeps the answer independent of how the database compares.
    if not found or not hmac.compare_digest(str(found[0][0]), digest):
        return None
    account, key = as_values(found[0][1:], Account, ApiKey)
    return account, key


@by_dialect
def _by_digest(_postgres: bool) -> Select[Any]:
    """Of every request to the API."""
    return (
        select(api_keys.c.digest, *columns_of(Account, accounts), *columns_of(ApiKey, api_keys))
        .select_from(api_keys.join(accounts))
        .where(api_keys.c.digest == bindparam("digest"), api_keys.c.revoked_at.is_(None))
    )


def key_used(conn: Connection, key_id: int, now: datetime) -> None:
    """Note the last use of a key."""
    conn.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now))
