"""Notices that a domain does something else with mail from now on, for the caches of all processes.

Functions of a connection. Each notice is a row with a number, its version; ``touch`` locks the row that counts them
until its transaction ends, so that versions become visible in their order and ``news_since`` passes over none. Who has
slept for so long that notices were purged meanwhile, or sees an older copy of the database, is told that the news are
not complete. So is who sees another server, or one that was started anew: a standby in the place of the primary may
lack its last changes, and have counted others by their numbers since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, literal_column, select, update

from forwarder.store.rows import by_dialect, execute
from forwarder.store.tables import changes, sequences

CHANGES_AT_ONCE = 10_000


@by_dialect
def _standing(postgres: bool) -> Select[Any]:
    server = func.pg_postmaster_start_time() if postgres else literal_column("0")
    return select(sequences.c.value, server).where(sequences.c.name == "directory")


@dataclass(frozen=True, slots=True)
class News:
    """What has changed up to a version; the domains by the versions of their changes, CHANGES_AT_ONCE at most."""

    version: int
    server: object  # which one says so; equal as long as it is the same
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


def news_since(conn: Connection, position: int | None, server: object) -> News:
    """What has changed since a version that a server told; None: since ever, of which nobody knows the names."""
    version, here = execute(conn, _standing, {}).fetchone()
    if position is None or server != here or version < position:
        return News(version, here, (), complete=False)
    if version == position:
        return News(version, here, (), complete=True)
    query = (
        select(changes.c.version, changes.c.domain)
        .where(changes.c.version > position)
        .order_by(changes.c.version)
        .limit(CHANGES_AT_ONCE)
    )
    rows = tuple((row.version, row.domain) for row in conn.execute(query))
    if not rows or rows[0][0] != position + 1:
        return News(version, here, (), complete=False)
    return News(rows[-1][0], here, rows, complete=True)


def purge(conn: Connection, older_than: datetime) -> int:
    """Delete the first of them, CHANGES_AT_ONCE at most; a cache that has not seen one of them loads all anew."""
    old = (
        select(changes.c.version)
        .where(changes.c.changed_at < older_than)
        .order_by(changes.c.version)
        .limit(CHANGES_AT_ONCE)
    )
    return conn.execute(delete(changes).where(changes.c.version.in_(old))).rowcount
