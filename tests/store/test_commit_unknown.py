"""The link to PostgreSQL is cut at COMMIT: what was answered 451 is withdrawn, what was settled is settled once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from urllib.parse import urlsplit

import pytest
from sqlalchemy import update

from forwarder.store.tables import deliveries, events, logs, messages
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from tests.store.conftest import NOON, Stage, as_delivery, delivered, hard, until
from tests.store.test_queue import rows, sizes


class Cutter:
    """A TCP relay to the server that cuts every link when COMMIT passes, before or after the server has it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut: str | None = None  # "before" or "after" the server got it; once

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
                        if how == "after":
                            up_writer.write(data)
                            await up_reader.read(65536)  # the server's answer, which nobody will hear
                        break
                    up_writer.write(data)
            finally:
                back.cancel()
                for end in (writer, up_writer):
                    end.transport.abort()
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
    held = await worker.queue.held()
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
