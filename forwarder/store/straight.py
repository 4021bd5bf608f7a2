"""The statements of every message and of every second, straight to SQLite's driver.

SQLAlchemy looks up, wraps and unwraps each execution for some 50 µs; what is executed so often is always the same few
dozen statements, so they are compiled once and their text is given to the driver as it is. Errors come out as
SQLAlchemy's all the same, so that callers need not know which way a statement went.

Limits: no types are converted. Values, and constants in a statement, are what SQLite stores (times as microseconds),
and what comes back is the driver's cursor.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Executable

PIECE = 1024 * 1024
_DIALECT = sqlite.dialect(paramstyle="qmark")


def begin(conn: Connection) -> None:
    """Begin a transaction that writes."""
    run_text(conn, "BEGIN IMMEDIATE", ())


def begin_reading(conn: Connection) -> None:
    """Begin a transaction that sees one state of the database; ``rollback`` ends it."""
    run_text(conn, "BEGIN", ())


def commit(conn: Connection) -> None:
    """Make what was written since ``begin`` durable. An error, too, when SQLite has ended the transaction by itself."""
    driver: Any = conn.connection.driver_connection
    if not driver.in_transaction:  # then its commit() would do nothing, and say so to nobody
        raise _of_driver(conn, "COMMIT", sqlite3.OperationalError("no transaction is open"))
    _end(conn, driver.commit)


def rollback(conn: Connection) -> None:
    """Undo what was written since ``begin``."""
    driver: Any = conn.connection.driver_connection
    _end(conn, driver.rollback)


def _end(conn: Connection, act: Callable[[], object]) -> None:
    try:
        act()
    except sqlite3.Error as error:
        raise _of_driver(conn, "the end of a transaction", error) from error
    # SQLAlchemy believes in one since a statement went through it; SQLite has none any more.
    if conn.in_transaction():
        conn.rollback()


def run(conn: Connection, statement: Executable, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
    """Execute a statement that lives as long as the process; KeyError where one of its parameters is missing."""
    text, names, constants = _compiled(statement)
    return run_text(conn, text, [parameters[n] if n in parameters else constants[n] for n in names])


def run_text(conn: Connection, text: str, values: Sequence[Any]) -> sqlite3.Cursor:
    """Execute text with its values."""
    driver: Any = conn.connection.driver_connection
    try:
        cursor: sqlite3.Cursor = driver.execute(text, values)
    except sqlite3.Error as error:
        raise _of_driver(conn, text, error) from error
    return cursor


def write_blob(conn: Connection, table: str, column: str, row: int, octets: bytes) -> None:
    """Fill a blob that was inserted as ``zeroblob(size)``, piece by piece.

    As a parameter it would be copied twice on its way: by the driver, and into the row before that is cut to pages.
    """
    view = memoryview(octets)
    with _open_blob(conn, table, column, row, readonly=False) as blob:
        for start in range(0, len(view), PIECE):
            blob.write(view[start : start + PIECE])


def read_blob(conn: Connection, table: str, column: str, row: int) -> bytes:
    """A blob in one piece, put together from its pages once."""
    with _open_blob(conn, table, column, row, readonly=True) as blob:
        return blob.read()


@contextmanager
def _open_blob(
    conn: Connection, table: str, column: str, row: int, *, readonly: bool
) -> Iterator[sqlite3.Blob]:
    driver: Any = conn.connection.driver_connection
    try:
        with driver.blobopen(table, column, row, readonly=readonly) as blob:
            yield blob
    except sqlite3.Error as error:
        raise _of_driver(conn, f"blob of {table}", error) from error


def _of_driver(conn: Connection, text: str, error: sqlite3.Error) -> BaseException:
    return DBAPIError.instance(text, None, error, sqlite3.Error, hide_parameters=True, dialect=conn.dialect)


@cache
def _compiled(statement: Executable) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    compiled: Any = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
    constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
    return compiled.string, tuple(compiled.positiontup or ()), constants
