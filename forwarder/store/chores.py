"""Background work that one process at a time does: who claims a chore does it.

A claim lasts ``for_`` and may be renewed by its owner; a process that dies in the middle loses it with time. After
``done`` nobody can claim the chore until ``every`` has passed.

A time that is further ahead than anybody would write was written while a clock was wrong, and holds nobody back: one
minute in a year to come must not end the work until that year. Clocks of two machines may differ by less.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, or_, update

from forwarder.store.engine import Database
from forwarder.store.rows import upsert
from forwarder.store.tables import chores


async def claim(
    database: Database,
    name: str,
    owner: str,
    *,
    now: datetime,
    for_: timedelta,
    every: timedelta = timedelta(0),
) -> bool:
    """Whether the chore is due and now the owner's to do."""
    until = now + for_
    free = or_(chores.c.owned_until <= now, chores.c.owned_until > until + for_, chores.c.owner == owner)
    due = or_(chores.c.done_at.is_(None), chores.c.done_at <= now - every, chores.c.done_at > now + every)

    def work(conn: Connection) -> bool:
        query = (
            upsert(conn, chores)
            .values(name=name, owner=owner, owned_until=until)
            .on_conflict_do_update(
                index_elements=["name"],
                set_={"owner": owner, "owned_until": until},
                where=and_(free, due),
            )
            .returning(chores.c.name)
        )
        return conn.execute(query).first() is not None

    return await database.write(work)


async def done(database: Database, name: str, owner: str, *, now: datetime) -> None:
    """The chore is done; whoever comes ``every`` later may claim it."""
    query = (
        update(chores)
        .where(chores.c.name == name, chores.c.owner == owner)
        .values(done_at=now, owned_until=now)
    )
    await database.write(lambda conn: conn.execute(query))
