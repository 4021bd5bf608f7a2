"""The schema's history, and how a database is brought to its newest state.

``upgrade(url)`` runs the revisions in ``versions`` that the database has not seen, in one transaction; a process that
dies half-way leaves the database as it was. Processes that start together take turns (PostgreSQL: an advisory lock;
SQLite: the write lock). There is no way down: a backup is the way back.

A new revision: change ``store.tables``, then ``alembic revision --autogenerate`` is not needed for a table or two;
write the file by hand from ``script.py.mako``, and the tests compare what the revisions build with ``store.tables``.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from forwarder.failpoint import reach
from forwarder.store import postgresql, sqlite
from forwarder.store.engine import make_private_file, postgres_dsn, sqlite_path
from forwarder.store.faults import trouble_of

_ADVISORY_LOCK = 0x666F7277  # any number that is ours: "forw"


def upgrade(url: str) -> None:
    """Bring the database to the newest schema. Blocking; StoreUnavailable when it cannot be reached."""
    # in a thread of its own, so that it may be called whether or not an event loop runs in this one
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_upgrade, url).result()


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
    path = sqlite_path(url)
    try:
        if path is None:
            asyncio.run(_upgrade_postgres(postgres_dsn(url)))
        else:
            make_private_file(path)
            _upgrade_sqlite(path)
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
        raise trouble from error
    reach("migrate.after-commit")


def _upgrade_sqlite(path: str) -> None:
    engine = sqlite.make_engine(path, immediate=True)
    with engine.connect() as conn, conn.begin():
        _run(conn)


async def _upgrade_postgres(dsn: str) -> None:
    engine = postgresql.make_engine(dsn, pool_size=1)
    try:
        async with engine.begin() as conn:
            await conn.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            await conn.run_sync(_run)
    finally:
        await engine.dispose()


def _run(conn: Connection) -> None:
    config = _config()
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
    reach("migrate.before-commit")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
