"""Statements of the process's whole life, run straight on the driver."""

import pytest
from sqlalchemy import Connection, Select, Text, bindparam, event, literal, select
from sqlalchemy.exc import IntegrityError

from forwarder.store.engine import Database
from forwarder.store.recording import DELIVERY_COLUMNS, LOG_COLUMNS, MESSAGE_COLUMNS, record_events
from forwarder.store.rows import Insert, by_dialect, execute, insert_and_look
from forwarder.store.tables import deliveries, logs, messages
from tests.store.conftest import NOON


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


MESSAGE = ("m" * 32, NOON, "smtp", "a@b.example", False, None, 4, b"body")
WAY = ("x", "x@y.example", "z@w.example", "w.example")
DELIVERY = ("d" * 32, "m" * 32, "smtp", None, *WAY, "queued", 0, NOON, NOON, None)


async def test_rows_of_several_tables_go_in_at_once_and_a_question_with_them(
    database: Database, store_url: str
) -> None:
    statements: list[str] = []

    def work(conn: Connection) -> bool:
        event.listen(conn, "before_cursor_execute", lambda *given: statements.append(given[2]))
        return insert_and_look(
            conn,
            [
                Insert(messages, MESSAGE_COLUMNS, [MESSAGE]),
                Insert(deliveries, DELIVERY_COLUMNS, [DELIVERY]),
                Insert(logs, LOG_COLUMNS, []),
            ],
            "SELECT 1 FROM messages WHERE id < 'm'",
        )

    assert not await database.write(work)
    if "postgresql" in store_url:
        assert len(statements) == 1  # each would be a journey to the server
    stored = select(messages.c.content, messages.c.created_at, deliveries.c.destination).join_from(
        messages, deliveries
    )
    assert await database.read(lambda conn: conn.execute(stored).all()) == [(b"body", NOON, "z@w.example")]
    asked = "SELECT 1 FROM messages WHERE id >= 'm'"
    assert await database.write(lambda conn: insert_and_look(conn, [], asked))


async def test_rows_whose_parent_is_missing_are_refused(database: Database) -> None:
    orphan = Insert(deliveries, DELIVERY_COLUMNS, [DELIVERY])
    with pytest.raises(IntegrityError):
        await database.write(lambda conn: insert_and_look(conn, [orphan], "SELECT 1"))


async def test_where_nothing_is_told_nobody_looks_for_webhooks(database: Database, store_url: str) -> None:
    """What a notification leaves behind is settled without a journey for events that there are none of."""
    statements: list[str] = []

    def work(conn: Connection) -> None:
        event.listen(conn, "before_cursor_execute", lambda *given: statements.append(given[2]))
        if "sqlite" in store_url:  # there they go straight to the driver
            conn.connection.driver_connection.set_trace_callback(statements.append)
        record_events(conn, [])

    await database.write(work)
    assert [text for text in statements if "webhook" in text] == []
