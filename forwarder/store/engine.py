"""The database behind one face: SQLite by default, PostgreSQL for several processes and nodes.

``read`` and ``write`` run synchronous functions of a connection, the same for both databases. ``write`` joins the
next group commit (``writer``) and returns when its COMMIT is durable. Every failure to reach or use the database is
StoreUnavailable (StoreFull when its disk is full, CommitUnknown when COMMIT was sent and not answered), in bounded
time, about ten seconds; what the data is refused for (IntegrityError, or what the function itself raises) reaches the
caller whose data it was, and nobody else.

There is no setting that makes a commit less durable.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from forwarder.store import sqlite
from forwarder.store.room import spare
from forwarder.store.rows import is_postgres
from forwarder.store.trouble import StoreUnavailable
from forwarder.store.writer import Writer
from forwarder.tally import Tally

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from forwarder.store.postgresql import PostgresReaders

T = TypeVar("T")


def sqlite_path(url: str) -> str | None:
    """The file of a ``sqlite:///path`` URL; None for PostgreSQL; ValueError for anything else."""
    if url.startswith("postgresql"):
        return None  # asyncpg reads it: several hosts are more than make_url takes
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("the store needs a file: sqlite:///path/to/forwarder.db")
        return parsed.database
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return None
    raise ValueError(f"{parsed.get_backend_name()} is not a database of ours; use sqlite or postgresql")


def postgres_dsn(url: str) -> str:
    """The URL as asyncpg takes it: without SQLAlchemy's driver name."""
    scheme, separator, rest = url.partition("://")
    return scheme.partition("+")[0] + separator + rest


_ROOM = 64 * 1024  # octets that a message may need


class Database:
    """One open store; made by ``open``, in the event loop that will use it."""

    writer: Writer
    _readers: "sqlite.SqliteReaders | PostgresReaders"

    def __init__(self, *, dialect: str, path: str | None, engine: "AsyncEngine | None", tally: Tally) -> None:
        self.dialect = dialect
        self._engine = engine
        if engine is not None:
            # A tenth of a start, and SQLite needs none of it.
            from forwarder.store.postgresql import PostgresReaders, PostgresWriter

            self._readers = PostgresReaders(engine)
            self.writer = PostgresWriter(engine, tally)
        else:
            assert path is not None
            self._readers = sqlite.SqliteReaders(path)
            self.writer = sqlite.SqliteWriter(path, tally)

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 8, tally: Tally | None = None) -> "Database":
        """Open without asking the database anything: a store that is down now may be up in a second.

        ``tally``: that of an engine; a command counts for nobody.
        """
        tally = tally or Tally()
        path = sqlite_path(url)
        if path is None:
            from forwarder.store import postgresql

            engine = postgresql.make_engine(postgres_dsn(url), pool_size=pool_size)
            return cls(dialect="postgresql", path=None, engine=engine, tally=tally)
        await asyncio.to_thread(make_private_file, path)
        try:
            return cls(dialect="sqlite", path=path, engine=None, tally=tally)
        except OSError as error:
            raise StoreUnavailable("the files beside the store cannot be opened") from error

    async def close(self) -> None:
        """Write what waits, then let go of every connection."""
        await self.writer.close()
        if isinstance(self._readers, sqlite.SqliteReaders):
            await asyncio.to_thread(self._readers.close)
        else:
            await self._readers.close()
        if self._engine is not None:
            await self._engine.dispose()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a connection that cannot write (SQLite: in one snapshot)."""
        return await self._readers.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in the next group commit; it may run again when others in the group fail."""
        return await self.writer.write(work)

    async def change(self, work: Callable[[Connection], T]) -> T:
        """As ``write``, but on PostgreSQL in a transaction of its own, one after the other: for what people change.

        That may have to wait for a row that somebody has locked, and mail must not wait with it.
        """
        return await self.writer.change(work)

    async def write_aside(self, work: Callable[[Connection], T]) -> T:
        """As ``write``, but on PostgreSQL past what waits for a lock: for signs of life, which must not be late."""
        return await self.writer.write_aside(work)

    async def spare(self) -> int:
        """Octets of SQLite's file that nothing stands in; 0 for PostgreSQL, whose disk is not ours to judge."""
        return await self.read(spare) if self.dialect == "sqlite" else 0

    async def revision(self) -> str | None:
        """The schema's revision as the database says it; None when it says nothing, for whatever reason."""
        try:
            found = await self.read(
                lambda conn: conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
            )
        except (SQLAlchemyError, StoreUnavailable):
            return None
        return None if found is None else str(found)

    async def ready(self) -> None:
        """StoreUnavailable unless the store answers, has its tables, and can commit."""
        if self.writer.failing:  # only a commit can tell whether the cause is gone
            await self.writer.write(_touch, writes=True)
        await self.read(lambda conn: conn.execute(text("SELECT value FROM sequences LIMIT 1")).first())


def _touch(conn: Connection) -> None:
    """A change that reaches the disk and means nothing."""
    if not is_postgres(conn):
        conn.exec_driver_sql("PRAGMA user_version = 0")  # a row that stays as it is would not be written
        return
    # It takes the room of a message: a small row finds some in its page on a disk that is full for mail.
    id_ = os.urandom(16).hex()
    conn.exec_driver_sql(
        "INSERT INTO messages (id, created_at, transport, reverse_path, smtputf8, size, content) "
        "VALUES ($1, now(), 'report', '', false, 0, $2)",
        (id_, os.urandom(_ROOM)),
    )
    conn.exec_driver_sql("DELETE FROM messages WHERE id = $1", (id_,))


def check_access(path: str | os.PathLike[str]) -> None:
    """OSError as if a file were opened to be written to; it is not opened."""
    if not os.access(path, os.R_OK | os.W_OK):
        number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), path)


def make_private_file(path: str) -> None:
    """Create the file and its folder if need be, readable by its owner only; SQLite gives its other files the same.

    One that exists is not opened. Whoever closes any descriptor of it takes away the locks that SQLite holds in this
    process (fcntl(2)); then the next program that leaves the database believes to be the last one, and deletes the
    write-ahead log while we write to it: https://www.sqlite.org/howtocorrupt.html, section 2.2.
    """
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if os.path.isdir(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path) from None
            check_access(path)
        os.chmod(path, 0o600)
    except OSError as error:
        raise StoreUnavailable("the file of the store cannot be opened") from error
