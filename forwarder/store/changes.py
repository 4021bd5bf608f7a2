"""Notices that a domain does something else with mail from now on, for the caches of all processes.

Functions of a connection. Each notice is a row with a number, its version; ``touch`` locks the row that counts them
until its transaction ends, so that versions become visible in their order and ``news_since`` passes over none. Who has
slept for so long that notices were purged meanwhile, or sees an older copy of the database, is told that the news are
not complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from forwarder.store.rows import by_dialect, execute
from forwarder.store.tables import changes, sequences

CHANGES_AT_ONCE = 10_000

_version = by_dialect(lambda _postgres: select(sequences.c.value).where(sequences.c.name == "directory"))


@dataclass(frozen=True, slots=True)
class News:
    """What has changed up to a version; the domains by the versions of their changes, CHANGES_AT_ONCE at most."""

    version: int
    domains: tuple[tuple[int, str], ...]
    complete: bool  # False: some changes are not known by name any more


def touch(conn: Connection, domain: str, now: datetime) -> None:
    """To be called, in the same transaction, by every change of what a domain does with mail."""
    touch_all(conn, [domain], now)


def touch_all(conn: Connection, names: Sequence[str], now: datetime) -> None:
    """``touch`` for many domains at once."""
    if not names:
        return
    bump = (
        update(sequences)
        .where(sequences.c.name == "directory")
        .values(value=sequences.c.value + len(names))
        .returning(sequences.c.value)
    )
    first = conn.execute(bump).scalar_one() - len(names) + 1
    rows = [{"version": first + n, "domain": name, "changed_at": now} for n, name in enumerate(names)]
    conn.execute(insert(changes), rows)


def news_since(conn: Connection, position: int | None) -> News:
    """What has changed since a version; None: since ever, of which nobody knows the names."""
    [version] = execute(conn, _version, {}).fetchone()
    if position is None or version < position:  # the first look; or the database is an older copy of itself
        return News(version, (), complete=False)
    if version == position:
        return News(version, (), complete=True)
    query = (
        select(changes.c.version, changes.c.domain)
        .where(changes.c.version > position)
        .order_by(changes.c.version)
        .limit(CHANGES_AT_ONCE)
    )
    rows = tuple((row.version, row.domain) for row in conn.execute(query))
    if not rows or rows[0][0] != position + 1:
        return News(version, (), complete=False)
    return News(rows[-1][0], rows, complete=True)


def purge(conn: Connection, older_than: datetime) -> int:
    """Delete the first of them, CHANGES_AT_ONCE at most; a cache that has not seen one of them loads all anew."""
    old = (
        select(changes.c.version)
        .where(changes.c.changed_at < older_than)
        .order_by(changes.c.version)
        .limit(CHANGES_AT_ONCE)
    )
    return conn.execute(delete(changes).where(changes.c.version.in_(old))).rowcount
