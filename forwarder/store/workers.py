"""The processes that hold leases, and taking over from those that died.

A row for each worker process; its leases in ``deliveries`` name the row. One heartbeat keeps all of a worker's leases;
``take_over`` frees those of workers whose ``alive_until`` passed, of which no row is left, and deletes their rows. A
worker that wakes after it was taken for dead learns it from its heartbeat (False), registers anew, and finds the
attempts of its old leases moved on: ``settle`` writes nothing for them.

What is freed is due at once while its attempts are few; from SUSPECT attempts on it keeps the time that was planned
when it was leased, so that a message which kills every worker that touches it does not do so all day.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, delete, literal, or_, select, update

from forwarder.failpoint import reach
from forwarder.mail.event import DeliveryState
from forwarder.store.engine import Database
from forwarder.store.rows import is_postgres, upsert
from forwarder.store.tables import IS_LEASED, UtcDateTime, deliveries, workers

ALIVE_FOR = timedelta(seconds=30)
SUSPECT = 3


async def register(
    database: Database,
    *,
    worker_id: str,
    node: str,
    hostname: str,
    pid: int,
    now: datetime,
    alive_for: timedelta = ALIVE_FOR,
) -> None:
    """Make the worker's row, or make it anew; leases under this id stay its own."""
    values = {
        "id": worker_id,
        "node": node,
        "hostname": hostname,
        "pid": pid,
        "started_at": now,
        "alive_until": now + alive_for,
    }

    def work(conn: Connection) -> None:
        conn.execute(
            upsert(conn, workers).values(values).on_conflict_do_update(index_elements=["id"], set_=values)
        )

    await database.write(work)


async def heartbeat(
    database: Database, worker_id: str, *, now: datetime, alive_for: timedelta = ALIVE_FOR
) -> bool:
    """Live on. False: the worker was taken for dead, its leases are others' now; it has to register again."""
    query = update(workers).where(workers.c.id == worker_id).values(alive_until=now + alive_for)
    return await database.write(lambda conn: conn.execute(query).rowcount == 1)


async def take_over(database: Database, now: datetime) -> int:
    """Free the leases of dead workers; how many there were."""
    if not await database.read(lambda conn: _dead(conn, now) or _ownerless(conn)):
        return 0  # nearly always: no transaction of the writer is needed to see that

    def work(conn: Connection) -> int:
        dead = _dead(conn, now, lock=True)
        reach("takeover.before-release")
        freed = _free(conn, [*dead, *_ownerless(conn)], now)
        conn.execute(delete(workers).where(workers.c.id.in_(dead)))
        return freed

    return await database.write(work)


async def release_node(database: Database, node: str, now: datetime) -> int:
    """Free the leases of every worker of a node, for whoever holds the node's lock and so knows that all are dead."""

    def work(conn: Connection) -> int:
        dead = conn.execute(select(workers.c.id).where(workers.c.node == node)).scalars().all()
        reach("takeover.before-release")
        freed = _free(conn, dead, now)
        conn.execute(delete(workers).where(workers.c.id.in_(dead)))
        return freed

    return await database.write(work)


async def farewell(database: Database, worker_id: str, now: datetime) -> int:
    """Leave in order: free what is still leased, delete the row."""

    def work(conn: Connection) -> int:
        freed = _free(conn, [worker_id], now)
        conn.execute(delete(workers).where(workers.c.id == worker_id))
        return freed

    return await database.write(work)


def _dead(conn: Connection, now: datetime, *, lock: bool = False) -> list[str]:
    query = select(workers.c.id).where(workers.c.alive_until < now).order_by(workers.c.id)
    if lock and is_postgres(conn):
        query = query.with_for_update(skip_locked=True)  # a heartbeat that holds the row is a sign of life
    return list(conn.execute(query).scalars())


def _ownerless(conn: Connection) -> list[str]:
    known = select(workers.c.id)
    query = (
        select(deliveries.c.lease_owner).where(IS_LEASED, deliveries.c.lease_owner.not_in(known)).distinct()
    )
    return [owner for owner in conn.execute(query).scalars() if owner is not None]


def _free(conn: Connection, owners: Sequence[str], now: datetime) -> int:
    if not owners:
        return 0
    query = (
        update(deliveries)
        .where(IS_LEASED, or_(*(deliveries.c.lease_owner == owner for owner in owners)))
        .values(
            state=DeliveryState.QUEUED.value,
            lease_owner=None,
            next_attempt_at=case(
                (deliveries.c.attempts < SUSPECT, literal(now, UtcDateTime())),
                else_=deliveries.c.next_attempt_at,
            ),
        )
    )
    return conn.execute(query).rowcount
