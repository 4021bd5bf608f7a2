"""The schema's history, and how a database is brought to its newest state.

``upgrade(url)`` runs the revisions in ``versions`` that the database has not seen, in one transaction; a process that
dies half-way leaves the database as it was. Processes that start together take turns (PostgreSQL: an advisory lock;
SQLite: the turn to write). There is no way down: a backup is the way back.

An index of a large table takes its time, and a turn as long: up to PATIENCE. But nobody waits longer than the engine's
own statements do for a table that others use: whoever comes behind in the line for it, as mail does, waits with us.

A new revision: change ``store.tables``, write the file by hand after the form of ``script.py.mako``; the tests compare
what the revisions build with ``store.tables`` on both databases.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from forwarder.failpoint import reach
from forwarder.store import postgresql, sqlite
from forwarder.store.engine import make_private_file, postgres_dsn, sqlite_path
from forwarder.store.faults import trouble_of
from forwarder.store.rows import is_postgres
from forwarder.store.trouble import StoreUnavailable, WrongEncoding

T = TypeVar("T")

_ADVISORY_LOCK = 0x666F7277  # any number that is ours: "forw"
PATIENCE = 3600.0  # seconds


def upgrade(url: str) -> None:
    """Bring the database to the newest schema. Blocking; StoreUnavailable when it cannot be reached, or not be used."""
    # in a thread of its own, so that it may be called whether or not an event loop runs in this one
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_upgrade, url).result()


def state(url: str) -> Literal["empty", "old", "current", "newer"]:
    """How the database's schema stands to this version of the program. Blocking; StoreUnavailable.

    "newer" means a revision that this version does not know.
    """
    with ThreadPoolExecutor(1) as thread:
        revision = thread.submit(_guarded, url, current).result()
    if revision is None:
        return "empty"
    if revision == newest():
        return "current"
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    return "old" if revision in known else "newer"


def current(conn: Connection) -> str | None:
    """The revision of a database; None before the first."""
    return MigrationContext.configure(conn).get_current_revision()


@cache
def newest() -> str:
    """The revision that this version of the program needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "the migrations are part of the package"
    return head


def _upgrade(url: str) -> None:
    _guarded(url, _run, patience=PATIENCE)
    reach("migrate.after-commit")


def _guarded(url: str, work: Callable[[Connection], T], *, patience: float = postgresql.STATEMENT_LIMIT) -> T:
    """Run ``work`` in one transaction that nobody else is in; what is no fault of ``work`` becomes StoreUnavailable."""
    path = sqlite_path(url)
    try:
        if path is None:
            return asyncio.run(_on_postgres(postgres_dsn(url), work, patience))
        return _on_sqlite(path, work)
    except StoreUnavailable:
        raise  # it knows its cause already
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
        raise trouble from error


def _on_sqlite(path: str, work: Callable[[Connection], T]) -> T:
    make_private_file(path)
    engine = sqlite.make_engine(path, immediate=True)
    # The turn is taken before the file is opened: of two that make the journal of a new file a WAL at the same time,
    # SQLite refuses one at once, however long it may wait for a lock.
    with closing(sqlite.FairLock(path)) as turn, turn.held(), engine.connect() as conn, conn.begin():
        return work(conn)


async def _on_postgres(dsn: str, work: Callable[[Connection], T], patience: float) -> T:
    engine = postgresql.make_engine(dsn, pool_size=1, patience=patience)
    try:
        async with engine.begin() as conn:
            await conn.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            await conn.execute(text(f"SET LOCAL lock_timeout = {int(postgresql.STATEMENT_LIMIT * 1000)}"))
            return await conn.run_sync(work)
    finally:
        await engine.dispose()


def _run(conn: Connection) -> None:
    if is_postgres(conn) and current(conn) is None:
        _check_encoding(conn)
    config = _config()
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
    reach("migrate.before-commit")


def _check_encoding(conn: Connection) -> None:
    # Where a server was set up without a locale, its databases are SQL_ASCII: they keep what they are given.
    if conn.execute(text("SHOW server_encoding")).scalar_one() not in ("UTF8", "SQL_ASCII"):
        raise WrongEncoding


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
