"""What a code of PostgreSQL means depends on where it was said: about a statement's values, or about the connection."""

from contextlib import AsyncExitStack

import asyncpg
import pytest
from asyncpg.exceptions import InvalidParameterValueError
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from forwarder.store.faults import explain, trouble_of
from forwarder.store.postgresql import PostgresReaders, make_engine
from forwarder.store.tables import accounts
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from tests.store.conftest import Stage, as_delivery, delivered


@pytest.mark.parametrize(
    ("statement", "is_trouble"),
    [("INSERT INTO messages VALUES ($1)", False), (None, True)],  # None: while connecting
)
def test_an_invalid_value_is_an_item_s_fault_or_an_option_s(statement: str | None, is_trouble: bool) -> None:
    error = DBAPIError(statement, None, InvalidParameterValueError("no"))
    assert (trouble_of(error) is not None) is is_trouble


async def test_a_column_that_somebody_changes_keeps_nothing_from_being_settled(postgres_url: str) -> None:
    """What a connection has prepared before brings rows that asyncpg cannot read; a new connection is well."""
    async with AsyncExitStack() as opened:
        stage = Stage(postgres_url, opened)
        worker = await stage.worker()
        first, second = (stage.message(leased=True) for _ in range(2))
        for message in (first, second):
            await worker.queue.enqueue(message)
        assert await worker.queue.settle(delivered(as_delivery(first)))
        person = await asyncpg.connect(postgres_url)
        await person.execute("ALTER TABLE deliveries ALTER COLUMN attempts TYPE bigint")
        await person.close()
        assert await worker.queue.settle(delivered(as_delivery(second)))
        assert await worker.queue.leases() == {}


async def test_who_waits_for_a_lock_hears_of_it(postgres_url: str) -> None:
    engine = make_engine(postgres_url, pool_size=1, patience=0.2)
    readers = PostgresReaders(engine)
    await readers.read(lambda conn: conn.exec_driver_sql("SELECT 1") and None)
    person = await asyncpg.connect(postgres_url)
    async with person.transaction():
        await person.execute("LOCK TABLE accounts")
        with pytest.raises(StoreUnavailable) as caught:
            await readers.read(lambda conn: conn.execute(select(accounts.c.id)).all())
    assert "something else holds a lock" in explain(caught.value).text
    await person.close()
    await engine.dispose()


def test_a_column_that_was_changed_is_not_taken_for_a_wrong_address() -> None:
    misread = StoreUnavailable()
    misread.__cause__ = BufferError("unexpected trailing 4 bytes in buffer")
    assert "somebody has changed a column" in explain(misread).text


def test_a_commit_that_does_not_end_is_not_taken_for_a_wrong_address() -> None:
    unended = CommitUnknown()
    unended.__cause__ = TimeoutError()
    assert "a standby of synchronous_standby_names is away" in explain(unended).text
