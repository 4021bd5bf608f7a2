"""The link to PostgreSQL is cut at COMMIT: what was answered 451 is withdrawn, what was settled is settled once."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import update

from forwarder.store.tables import deliveries, events, logs, messages
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from forwarder.store.writer import Item
from tests.store.conftest import NOON, Stage, as_delivery, delivered, hard, until
from tests.store.test_queue import forgotten, rows, sizes


class Cutter:
    """A TCP relay to the server that cuts every link when COMMIT passes, before or after the server has it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut: str | None = None  # "before" or "after" the server did it, or "during" that; once

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.create_task(self._back(up_reader, writer))
            try:
                while data := await reader.read(65536):
                    if self.cut and b"COMMIT" in data:
                        how, self.cut = self.cut, None
                        back.cancel()
                        await asyncio.gather(back, return_exceptions=True)
                        if how != "before":
                            up_writer.write(data)
                        if how == "after":
                            await up_reader.read(65536)  # the server's answer, which nobody will hear
                        break
                    up_writer.write(data)
            finally:
                back.cancel()
                writer.transport.abort()
                up_writer.close()  # what it was sent arrives
                await asyncio.gather(back, return_exceptions=True)
        finally:
            self._tasks.discard(task)

    @staticmethod
    async def _back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()


@pytest.fixture
async def cutter(postgres_url: str) -> AsyncIterator[Cutter]:
    port = urlsplit(postgres_url).port
    assert port is not None
    made = Cutter(port)
    yield made
    await made.stop()


class Disk:
    """Lets COMMIT hang in the server, as a disk would that does not write, for as long as it is ``asleep``."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Every COMMIT of a message that was sent meanwhile waits until the end of the block."""
        held = await asyncpg.connect(self._url)
        try:
            await held.execute(
                """
                CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
                    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
                CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
                    FOR EACH ROW EXECUTE FUNCTION hang();
                SELECT pg_advisory_lock(1);
                """
            )
            yield
        finally:
            await held.close()


@pytest.fixture
def disk(postgres_url: str) -> Disk:
    return Disk(postgres_url)


@pytest.fixture
async def stage(postgres_url: str, cutter: Cutter) -> AsyncIterator[Stage]:
    port = await cutter.start()
    parts = urlsplit(postgres_url)
    async with AsyncExitStack() as opened:
        yield Stage(f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}", opened)


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("leased", [True, False])
async def test_a_message_answered_451_is_withdrawn(
    stage: Stage, cutter: Cutter, how: str, leased: bool
) -> None:
    worker = await stage.worker()
    kept = stage.message(leased=True)
    await worker.queue.enqueue(kept)
    cutter.cut = how
    lost = [stage.message("a@dest.example", "b@dest.example", leased=leased) for _ in range(3)]
    results = await asyncio.gather(*map(worker.queue.enqueue, lost), return_exceptions=True)
    assert {type(result) for result in results} == {CommitUnknown}
    assert len(await rows(worker.database, messages)) == (4 if how == "after" else 1)
    caring = asyncio.create_task(worker.queue.run())

    async def withdrawn() -> bool:
        return await sizes(worker.database) == (1, 1, 1, 1)

    await until(withdrawn)
    caring.cancel()
    assert [row.id for row in await rows(worker.database, messages)] == [kept.id]
    assert await worker.queue.settle(delivered(as_delivery(kept)))


@pytest.mark.parametrize("leased", [True, False])
async def test_a_message_whose_commit_hangs_for_long_is_withdrawn_when_it_ends(
    stage: Stage, cutter: Cutter, disk: Disk, leased: bool
) -> None:
    worker = await stage.worker()
    kept = stage.message(leased=True)
    await worker.queue.enqueue(kept)
    lost = stage.message("a@dest.example", "b@dest.example", leased=leased)
    async with disk.asleep():
        cutter.cut = "during"
        with pytest.raises(CommitUnknown):
            await worker.queue.enqueue(lost)
        much_later = time.monotonic() + 3600
        for _ in range(3):
            await worker.queue.withdraw_doubtful(much_later)
        assert await sizes(worker.database) == (1, 1, 1, 1)

    async def appeared() -> bool:
        return await sizes(worker.database) == (2, 3, 3, 3)

    await until(appeared)
    # Nothing of it is sent by us, or offered to others, before it is withdrawn.
    for claiming in (await stage.worker("b"), worker):
        assert await claiming.queue.claim_due(NOON + timedelta(minutes=1), 10) == []
    assert await worker.queue.leases() == {kept.deliveries[0].id: 1}
    await worker.queue.withdraw_doubtful(much_later)
    assert [row.id for row in await rows(worker.database, messages)] == [kept.id]
    assert await sizes(worker.database) == (1, 1, 1, 1)
    await until(partial(forgotten, worker, much_later))


async def test_a_doubt_outlasts_the_group_that_was_given_up_for_late(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its COMMIT has no number before it is sent: what is tried again may have a later one."""
    worker = await stage.worker()
    lost = stage.message(leased=True)
    begun, go_on = asyncio.Event(), asyncio.Event()
    transact = worker.database.writer._transact  # type: ignore[attr-defined]

    async def slow(part: list[Item]) -> list[object]:
        if part[0].value is lost:
            begun.set()
            await go_on.wait()
        result: list[object] = await transact(part)
        return result

    monkeypatch.setattr(worker.database.writer, "_transact", slow)
    waiting = asyncio.create_task(worker.queue.enqueue(lost))
    await begun.wait()
    worker.database.writer.expire_now(time.monotonic())
    with pytest.raises(CommitUnknown):
        await waiting
    much_later = time.monotonic() + 3600
    for _ in range(3):
        await worker.queue.withdraw_doubtful(much_later)
    go_on.set()

    async def appeared() -> bool:
        return await sizes(worker.database) == (1, 1, 1, 1)

    await until(appeared)
    await worker.queue.withdraw_doubtful(much_later)
    assert await sizes(worker.database) == (0, 0, 0, 0)
    await until(partial(forgotten, worker, much_later))


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_settlement_is_tried_again_and_counts_once(stage: Stage, cutter: Cutter, how: str) -> None:
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    report = stage.message("gavin@hooli.example", leased=True, reverse_path="", domain_id=None)
    bounced = hard(as_delivery(message), report)
    cutter.cut = how
    with pytest.raises(CommitUnknown):
        await worker.queue.settle(bounced)
    assert await worker.queue.settle(bounced)  # True either way: the DSN is ours to send
    assert [row.id for row in await rows(worker.database, messages)] == [report.id]
    steps = [
        row.status for row in await rows(worker.database, events) if row.log_id == message.deliveries[0].id
    ]
    assert steps == ["QUEUED", "HARD-BOUNCE"]
    assert not await worker.queue.settle(bounced)


async def test_leases_taken_without_our_knowing_can_be_found(stage: Stage, cutter: Cutter) -> None:
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message("a@dest.example", "b@dest.example"))
    cutter.cut = "after"
    with pytest.raises(StoreUnavailable):
        await worker.queue.claim_due(NOON, 10)
    held = await worker.queue.leases()
    assert len(held) == 2
    assert await worker.queue.give_back(held) == 2
    assert [d.attempts for d in await worker.queue.claim_due(NOON, 10)] == [1, 1]


async def test_a_link_cut_before_commit_is_noticed_by_nobody(stage: Stage, cutter: Cutter) -> None:
    """The connection died while it lay in the pool: the group is certain not to be in force and is tried again."""
    worker = await stage.worker()
    await worker.queue.enqueue(stage.message())
    await cutter.stop()
    assert cutter._server is not None
    cutter._server = await asyncio.start_server(
        cutter._serve, "127.0.0.1", urlsplit(stage.url).port, reuse_address=True
    )
    await worker.queue.enqueue(stage.message())
    assert len(await rows(worker.database, deliveries)) == 2
    assert len(await rows(worker.database, logs)) == 2


@pytest.mark.parametrize("how", ["before", "after"])
async def test_of_two_that_settle_one_delivery_one_has_its_report_stored(
    stage: Stage, cutter: Cutter, how: str
) -> None:
    """Nobody hears the COMMIT, and before it is tried again the lease is somebody else's, who reports too."""
    worker = await stage.worker()
    message = stage.message(leased=True)
    await worker.queue.enqueue(message)
    ours = stage.message("gavin@hooli.example", leased=True, reverse_path="", domain_id=None)
    cutter.cut = how
    with pytest.raises(CommitUnknown):
        await worker.queue.settle(hard(as_delivery(message), ours))
    if how == "before":
        taken = update(deliveries).values(lease_owner="another", attempts=2)
        await worker.database.write(lambda conn: conn.execute(taken))
    assert await worker.queue.settle(hard(as_delivery(message), ours)) is (how == "after")
    assert [row.id for row in await rows(worker.database, messages) if row.id == ours.id] == (
        [ours.id] if how == "after" else []
    )
