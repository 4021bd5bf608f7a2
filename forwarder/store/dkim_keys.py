"""The DKIM keys of domains: private halves sealed, public halves as the TXT record to publish.

Functions of a connection. ``private_key`` is what ``vault.Vault.seal`` made of the PEM; the key that opens
it is a file that is not in the database, so a copy of the database alone signs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from forwarder.store import changes
from forwarder.store.conflict import insert_new
from forwarder.store.domains import Domain
from forwarder.store.rows import all_values, as_value
from forwarder.store.tables import dkim_keys, domains


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


def add(conn: Connection, domain: Domain, key: NewDkimKey, now: datetime) -> DkimKey:
    """Store a key; AlreadyExists("selector")."""
    changes.touch(conn, domain.name, now)
    return _insert(conn, domain, key, now)


def replace(conn: Connection, domain: Domain, old: DkimKey, key: NewDkimKey, now: datetime) -> bool:
    """Store ``key`` in place of ``old``; False: that was gone already.

    The record that the DNS has for it is wrong now: nothing is submitted as the domain until the new one is found.
    """
    changes.touch(conn, domain.name, now)
    if not conn.execute(delete(dkim_keys).where(dkim_keys.c.id == old.id)).rowcount:
        return False
    conn.execute(update(domains).where(domains.c.id == domain.id).values(sending_checked_at=None))
    _insert(conn, domain, key, now)
    return True


def _insert(conn: Connection, domain: Domain, key: NewDkimKey, now: datetime) -> DkimKey:
    values = {
        "domain_id": domain.id,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "private_key": key.private_key,
        "public_record": key.public_record,
        "created_at": now,
    }
    return as_value(DkimKey, insert_new(conn, dkim_keys, values, clash="selector"))


def list_keys(conn: Connection, domain_id: int) -> Sequence[DkimKey]:
    """The keys of a domain in the order of their selectors."""
    query = select(dkim_keys).where(dkim_keys.c.domain_id == domain_id).order_by(dkim_keys.c.selector)
    return all_values(conn, DkimKey, query)


def page(conn: Connection, *, after: int, limit: int) -> Sequence[tuple[str, DkimKey]]:
    """Keys of all domains with the names of these, in the order of their ids, past the id ``after``."""
    query = (
        select(dkim_keys, domains.c.name.label("domain"))
        .join(domains, domains.c.id == dkim_keys.c.domain_id)
        .where(dkim_keys.c.id > after)
        .order_by(dkim_keys.c.id)
        .limit(limit)
    )
    return [(row["domain"], as_value(DkimKey, row)) for row in conn.execute(query).mappings()]


def nth_from_the_end(conn: Connection, number: int) -> int:
    """The id after which ``number`` keys come; 0 where there are no more than these."""
    query = select(dkim_keys.c.id).order_by(dkim_keys.c.id.desc()).offset(number).limit(1)
    return int(conn.execute(query).scalar_one_or_none() or 0)
