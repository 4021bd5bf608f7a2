"""Statements of the process's whole life, run straight on the driver."""

import pytest
from sqlalchemy import Select, Text, bindparam, literal, select

from forwarder.store.engine import Database
from forwarder.store.rows import by_dialect, execute


@by_dialect
def _echo(postgres: bool) -> Select[tuple[str, str]]:
    return select(bindparam("said", type_=Text()), literal("always"))


async def test_a_parameter_that_is_missing_is_an_error_and_not_null(sqlite_url: str) -> None:
    database = await Database.open(sqlite_url)
    try:
        assert await database.read(lambda conn: execute(conn, _echo, {"said": "x"}).fetchone()) == (
            "x",
            "always",
        )
        with pytest.raises(KeyError):
            await database.read(lambda conn: execute(conn, _echo, {}).fetchone())
    finally:
        await database.close()
