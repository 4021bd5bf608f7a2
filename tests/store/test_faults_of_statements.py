"""What a code of PostgreSQL means depends on where it was said: about a statement's values, or about the connection."""

from contextlib import AsyncExitStack

import asyncpg
import pytest
from asyncpg.exceptions import InvalidParameterValueError
from sqlalchemy.exc import DBAPIError

from forwarder.store.faults import trouble_of
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
