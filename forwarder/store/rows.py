"""Many rows in one statement, on either database.

``insert_many`` writes rows with a handful of statements whatever their number. ``Rows`` is a FROM clause of rows that
travel as one parameter, for UPDATE, DELETE and SELECT by many keys. ``one_value`` and ``all_values`` make dataclasses
of what a statement brings.

Why not ``executemany``: PostgreSQL would plan and check row by row; and SQLite's driver lets go of the interpreter
lock at every row, so that a busy event loop takes each of them a time slice away while the write lock is held. For the
same reason ``fetch`` brings a whole result of SQLite in one row of JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Label,
    LargeBinary,
    RowMapping,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql import Executable
from sqlalchemy.types import TypeEngine

from forwarder.failpoint import reach
from forwarder.store.straight import run, run_text
from forwarder.store.tables import UtcDateTime, at_micros, micros

S = TypeVar("S", covariant=True)
V = TypeVar("V")

_CHUNK = 50  # rows of one INSERT on SQLite; each number of rows is a statement that stays prepared


def is_postgres(conn: Connection) -> bool:
    """Which of the two databases this is a connection to."""
    return conn.dialect.name == "postgresql"


class Insert(NamedTuple):
    """Rows for a table; their values are in the order of ``columns``, times as aware datetimes."""

    table: Table
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    failpoint: str = ""  # reached before it


def insert_and_look(conn: Connection, inserts: Sequence[Insert], question: str) -> bool:
    """INSERT all of it, in this order, and whether the SELECT ``question`` finds anything.

    On PostgreSQL in one statement, since there each is a journey of its own: foreign keys are checked when it ends, and
    the question sees what was there before it.
    """
    postgres = is_postgres(conn)
    for insert in inserts:
        if insert.failpoint:
            reach(insert.failpoint)
        if not postgres:
            insert_many(conn, insert.table, insert.columns, insert.rows)
    if not postgres:
        return run_text(conn, question, ()).fetchone() is not None
    wanted = [insert for insert in inserts if insert.rows]
    text = _insert_and_look(tuple((insert.table, insert.columns) for insert in wanted), question)
    values = [list(column) for insert in wanted for column in zip(*insert.rows, strict=True)]
    return bool(conn.exec_driver_sql(text, tuple(values)).scalar_one())


@cache
def _insert_and_look(kinds: tuple[tuple[Table, tuple[str, ...]], ...], question: str) -> str:
    clauses: list[str] = []
    first = 1
    for table, columns in kinds:
        clauses.append(f"w{first} AS ({_unnest_insert(table, columns, first)})")
        first += len(columns)
    return f"{'WITH ' if clauses else ''}{', '.join(clauses)} SELECT EXISTS({question})"


def insert_many(
    conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """INSERT the rows; their values are in the order of ``columns``, times as aware datetimes."""
    if not rows:
        return
    if is_postgres(conn):
        # a list for each column: unnest turns them back into rows
        conn.exec_driver_sql(_unnest_insert(table, columns), tuple(map(list, zip(*rows, strict=True))))
        return
    times = _times_of(table, columns)
    for start in range(0, len(rows), _CHUNK):
        if start:
            reach("insert.next-rows")
        chunk = rows[start : start + _CHUNK]
        values = list(chain.from_iterable(chunk))
        for column in times:
            of_rows = slice(column, None, len(columns))
            values[of_rows] = [None if at is None else micros(at) for at in values[of_rows]]
        run_text(conn, _values_insert(table, columns, len(chunk)), values)


@cache
def _times_of(table: Table, columns: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(index for index, name in enumerate(columns) if isinstance(table.c[name].type, UtcDateTime))


@cache
def _values_insert(table: Table, columns: tuple[str, ...], size: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([row] * size)}"  # noqa: S608 - names of ours


@cache
def _unnest_insert(table: Table, columns: tuple[str, ...], first: int = 1) -> str:
    arrays = ", ".join(f"${n}::{_array_of(table.c[name])}" for n, name in enumerate(columns, first))
    return f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608 - names of ours


def _array_of(column: Column[Any]) -> str:
    match column.type:
        case UtcDateTime():
            return "timestamptz[]"
        case LargeBinary():
            return "bytea[]"
        case Boolean():
            return "boolean[]"
        case BigInteger():
            return "bigint[]"
        case Integer():
            return "integer[]"
        case _:
            return "text[]"


class Lasting(Generic[S]):
    """A statement for each dialect, as long as the process lives."""

    def __init__(self, build: Callable[[bool], S]) -> None:
        self._build = build
        self._built: dict[bool, S] = {}

    def __call__(self, conn: Connection) -> S:
        postgres = is_postgres(conn)
        if postgres not in self._built:
            self._built[postgres] = self._build(postgres)
        return self._built[postgres]


def by_dialect(build: Callable[[bool], S]) -> Lasting[S]:
    """A statement made once for each dialect, by a function told whether it is PostgreSQL's."""
    return Lasting(build)


class Rows:
    """Rows of named, typed columns bound as one parameter (SQLite: JSON; PostgreSQL: an array a column)."""

    def __init__(self, **columns: TypeEngine[Any]) -> None:
        self._columns = columns
        self._times = tuple(n for n, kind in enumerate(columns.values()) if isinstance(kind, UtcDateTime))
        self._sources = {True: self._unnest(), False: self._json_each()}

    def source(self, postgres: bool) -> FromClause:
        """The FROM clause in that dialect; its columns are named as given."""
        return self._sources[postgres]

    def values(self, conn: Connection, rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
        """The parameters to execute a statement over ``source`` with."""
        if is_postgres(conn):
            columns = list(zip(*rows, strict=True)) or [()] * len(self._columns)
            return {f"rows_{name}": list(column) for name, column in zip(self._columns, columns, strict=True)}
        plain = [list(row) for row in rows]
        for row in plain:
            for index in self._times:
                row[index] = micros(row[index])
        return {"rows": json.dumps(plain)}

    def holds(self, postgres: bool, column: ColumnElement[Any], name: str = "id") -> ColumnElement[bool]:
        """Whether a column of a table is one of the values of that name; as ``among``."""
        if postgres:
            return column == any_(self._array(name))
        return column.in_(select(self._sources[False].c[name]))

    def _array(self, name: str) -> BindParameter[Any]:
        return bindparam(f"rows_{name}", type_=ARRAY(self._columns[name]))

    def _unnest(self) -> FromClause:
        arrays = [self._array(name) for name in self._columns]
        columns = [Column(name, kind) for name, kind in self._columns.items()]
        return func.unnest(*arrays).table_valued(*columns, name="given").render_derived()

    def _json_each(self) -> FromClause:
        each = func.json_each(bindparam("rows", type_=Text())).table_valued("value")
        return select(
            *(
                func.json_extract(each.c.value, f"$[{index}]", type_=kind).label(name)
                for index, (name, kind) in enumerate(self._columns.items())
            )
        ).subquery("given")


def among(postgres: bool, column: ColumnElement[Any], found: Select[Any]) -> ColumnElement[bool]:
    """Whether a column of a table is one of those found.

    On PostgreSQL a condition that an index answers in any plan. How a join is made depends on statistics: a queue that
    was empty when they were made is taken for one row, and to walk its whole index, past all that is dead in it for as
    long as somebody's transaction could see it, looks as cheap as to look for one.
    """
    return column == any_(func.array(found.scalar_subquery())) if postgres else column.in_(found)


def execute(conn: Connection, statement: Lasting[Executable], parameters: dict[str, Any]) -> Any:
    """Run a statement with all its parameters, times as the database stores them; its cursor or result.

    A lasting one, since what is made of it to run it is kept for ever.
    """
    made = statement(conn)
    return conn.execute(made, parameters) if is_postgres(conn) else run(conn, made, parameters)


def fetch(conn: Connection, query: Lasting[Select[Any]], parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """All rows of a query, in its order; else as ``execute``."""
    made = query(conn)
    if is_postgres(conn):
        return [tuple(row) for row in conn.execute(made, parameters)]
    packed, readers = _packed(made)
    [text] = run(conn, packed, parameters).fetchone()
    return [
        tuple(
            value if reader is None or value is None else reader(value)
            for value, reader in zip(row, readers, strict=True)
        )
        for row in json.loads(text)
    ]


@cache
def _packed(query: Select[Any]) -> tuple[Select[Any], list[Callable[[Any], Any] | None]]:
    inner = query.subquery("found")
    array = func.json_group_array(func.json_array(*inner.c), type_=Text())
    return select(array), [_json_reader(column.type) for column in inner.c]


def _json_reader(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    if isinstance(kind, UtcDateTime):
        return at_micros
    return bool if isinstance(kind, Boolean) else None


def as_value(kind: type[V], row: RowMapping | Mapping[str, Any]) -> V:
    """A row as a dataclass, whose fields are named as the columns; columns without a field are left out."""
    return kind(**{name: row[name] for name in _fields(kind)})  # type: ignore[arg-type]  # a type has a hash


def columns_of(kind: Any, table: Table) -> list[Label[Any]]:
    """The columns of a table that are named as the fields of a dataclass, labelled to differ from those of others."""
    return [table.c[name].label(f"{table.name}_{name}") for name in _fields(kind)]


def as_values(row: Sequence[Any], *kinds: Any) -> Iterator[Any]:
    """A row of ``fetch``, made of the ``columns_of`` some dataclasses one after the other, as these."""
    start = 0
    for kind in kinds:
        names = _fields(kind)
        yield kind(**dict(zip(names, row[start : start + len(names)], strict=True)))
        start += len(names)


def one_value(conn: Connection, kind: type[V], statement: Executable) -> V | None:
    """The one row that a statement brings, as a dataclass; None where there is none."""
    row = conn.execute(statement).mappings().one_or_none()
    return None if row is None else as_value(kind, row)


def all_values(conn: Connection, kind: type[V], statement: Executable) -> list[V]:
    """All rows that a statement brings, each as a dataclass, in their order."""
    return [as_value(kind, row) for row in conn.execute(statement).mappings()]


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def upsert(conn: Connection, table: Table) -> Any:
    """An INSERT that knows ``on_conflict_do_update``; the two dialects spell it alike."""
    return postgresql.insert(table) if is_postgres(conn) else sqlite.insert(table)
