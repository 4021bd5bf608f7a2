"""What an idle worker does every second leaves nothing behind.

The collector of a serving process looks at its oldest generation after millions of new objects only; what is tied in
cycles, as SQLAlchemy's statements are, would wait for that, some MiB a minute.
"""

import gc
from datetime import timedelta

from forwarder.store import workers
from tests.store.conftest import LEASE, NOON, Stage

TURNS = 50


async def test_looking_for_work_leaves_nothing_for_the_collector(stage: Stage) -> None:
    worker = await stage.worker()
    takeover = workers.Takeover(worker.database, lease=LEASE, every=timedelta(seconds=3))

    await worker.queue.enqueue(stage.message())

    async def look() -> None:
        (claimed,) = await worker.queue.claim_due(NOON, 50)
        assert await worker.queue.release(claimed, next_attempt_at=NOON)
        assert not await worker.queue.claim_due(NOON, 50, ("dest.example", "full.example"))
        await worker.queue.next_due_at()
        await worker.queue.leases()
        await takeover.look(NOON)
        await workers.heartbeat(worker.database, worker.id, now=NOON, alive_for=LEASE)
        await worker.database.ready()

    for _ in range(10):  # what is made once is made
        await look()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(TURNS):
            await look()
        left = len(gc.get_objects()) - before
    finally:
        gc.enable()
    # One statement that is made anew is 200 and more objects a turn.
    assert left < 30 * TURNS
