"""The processes that hold leases, and taking over from those that died.

A row for each worker process; its leases in ``deliveries`` name the row. One heartbeat keeps all of a worker's leases;
``Takeover`` frees the leases of workers whose heart has stopped, or whose row is gone, and deletes their rows.

A worker is dead when its ``alive_until`` has stood still for a whole lease, by the monotonic clock of the process that
looks. Wall clocks of two machines differ, and people set them; no living worker must lose its deliveries for that.
While the store takes no changes nobody can beat, so the process that looks, whose own heartbeat fails too, begins its
watch anew. A worker that wakes after it was taken for dead learns so from its heartbeat (False). It registers again,
and finds that the attempts of its old leases have moved on: ``settle`` writes nothing for them.

A freed delivery is due at once while its attempts are few. From SUSPECT attempts on it keeps the time that was planned
when it was leased: a message may be killing every worker that touches it, and must not do so all day. Where several
deliveries are suspected, they are spread over as much time again, so that the innocent ones are not sent, and lost,
beside the guilty one for ever.
"""

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, Update, case, delete, literal, or_, select, update

from forwarder.failpoint import reach
from forwarder.mail.event import DeliveryState
from forwarder.store.engine import Database
from forwarder.store.rows import Rows, by_dialect, execute, is_postgres, upsert
from forwarder.store.tables import IS_LEASED, Id, UtcDateTime, deliveries, workers

SUSPECT = 3


async def register(
    database: Database,
    *,
    worker_id: str,
    node: str,
    hostname: str,
    pid: int,
    now: datetime,
    alive_for: timedelta,
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


async def heartbeat(database: Database, worker_id: str, *, now: datetime, alive_for: timedelta) -> bool:
    """Live on. False: the worker was taken for dead, its leases are others' now; it has to register again."""
    query = update(workers).where(workers.c.id == worker_id).values(alive_until=now + alive_for)
    return await database.write_aside(lambda conn: conn.execute(query).rowcount == 1)


class Takeover:
    """What one process knows of the others' signs of life; asked every few seconds."""

    def __init__(
        self,
        database: Database,
        *,
        lease: timedelta,
        every: timedelta,
        steady: Callable[[], bool] = lambda: True,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """``steady``: whether the signs of life of the process that looks come through."""
        self._database = database
        self._steady = steady
        self._lease = lease.total_seconds()
        # Whoever could not look for so long (it was stopped, the store was away) knows nothing of the others: they may
        # have been kept from beating by the same trouble. It begins anew.
        self._blind = max(self._lease / 2, 3 * every.total_seconds())
        self._seconds = seconds
        self._looked = seconds()
        # ``alive_until``, and since when we see it stand there.
        self._signs: dict[str, tuple[datetime, float]] = {}

    async def look(self, now: datetime) -> int:
        """Free the leases of dead workers; how many there were. ``now`` is when they become due."""
        began = self._seconds()
        if began - self._looked > self._blind or not self._steady():
            self._signs.clear()
        signs, ownerless = await self._database.read(lambda conn: (_signs(conn), _ownerless(conn)))
        self._looked = self._seconds()
        known = self._signs
        self._signs = {
            worker: known[worker] if worker in known and known[worker][0] == until else (until, self._looked)
            for worker, until in signs.items()
        }
        dead = {
            worker: until for worker, (until, since) in self._signs.items() if began - since >= self._lease
        }
        if not dead and not ownerless:
            return 0  # nearly always: no transaction of the writer is needed to see that

        def work(conn: Connection) -> int:
            silent = [worker for worker, until in _signs(conn, dead).items() if until == dead[worker]]
            reach("takeover.before-release")
            freed = _free(conn, [*silent, *_ownerless(conn)], now)
            conn.execute(delete(workers).where(workers.c.id.in_(silent)))
            return freed

        return await self._database.write(work)


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


def _signs(conn: Connection, of: Collection[str] | None = None) -> dict[str, datetime]:
    """The ``alive_until`` of all workers; of those named, locked."""
    query = select(workers.c.id, workers.c.alive_until).order_by(workers.c.id)
    if of is not None:
        query = query.where(workers.c.id.in_(of))
        if is_postgres(conn):
            # A heartbeat that holds the row is a sign of life.
            query = query.with_for_update(skip_locked=True)
    return {row.id: row.alive_until for row in conn.execute(query)}


def _ownerless(conn: Connection) -> list[str]:
    known = select(workers.c.id)
    query = (
        select(deliveries.c.lease_owner).where(IS_LEASED, deliveries.c.lease_owner.not_in(known)).distinct()
    )
    return [owner for owner in conn.execute(query).scalars() if owner is not None]


def _free(conn: Connection, owners: Sequence[str], now: datetime) -> int:
    if not owners:
        return 0
    theirs = (IS_LEASED, or_(*(deliveries.c.lease_owner == owner for owner in owners)))
    suspects = (
        select(deliveries.c.id, deliveries.c.message_id, deliveries.c.next_attempt_at)
        .where(*theirs, deliveries.c.attempts >= SUSPECT)
        .order_by(deliveries.c.id)
        .with_for_update()  # (SQLite has no need of it, and leaves it out)
    )
    planned = [(row.id, row.message_id, row.next_attempt_at) for row in conn.execute(suspects)]
    freed = (
        update(deliveries)
        .where(*theirs)
        .values(
            state=DeliveryState.QUEUED.value,
            lease_owner=None,
            next_attempt_at=case(
                (deliveries.c.attempts < SUSPECT, literal(now, UtcDateTime())),
                else_=deliveries.c.next_attempt_at,
            ),
        )
    )
    count = conn.execute(freed).rowcount
    if len(planned) > 1:
        execute(conn, _plan_anew, _PLANS.values(conn, spread(planned, now)))
    return count


def spread(planned: Sequence[tuple[str, str, datetime]], now: datetime) -> list[tuple[str, datetime]]:
    """Deliveries, with their messages and planned times: those of each message later by another share of the time.

    By messages, since what is due apart is sent apart, which makes copies for who is reached by several recipients.
    """
    places = {message: place for place, message in enumerate(dict.fromkeys(row[1] for row in planned))}
    return [
        (id_, at + max(at - now, timedelta(0)) * places[message] / len(places))
        for id_, message, at in planned
    ]


_PLANS = Rows(id=Id, at=UtcDateTime())


@by_dialect
def _plan_anew(postgres: bool) -> Update:
    given = _PLANS.source(postgres)
    return update(deliveries).where(deliveries.c.id == given.c.id).values(next_attempt_at=given.c.at)
