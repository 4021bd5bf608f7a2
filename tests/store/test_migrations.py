"""The revisions build what ``store.tables`` says, from any state, whoever else tries at the same moment."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from forwarder.store import migrations
from forwarder.store.engine import Database, StoreUnavailable
from forwarder.store.tables import metadata


def differences(conn: Connection) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(conn, opts=options), metadata))


def constraints(conn: Connection) -> list[str]:
    """The CHECK constraints, which the comparison does not look at."""
    if conn.dialect.name == "sqlite":
        texts = conn.execute(
            text("SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ).scalars()
        return sorted(line.strip() for sql in texts for line in sql.splitlines() if "CHECK" in line)
    query = "SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' ORDER BY 1"
    return [line for line in conn.execute(text(query)).scalars() if line.startswith("ck_")]


async def test_the_revisions_build_the_tables(database_url: str) -> None:
    assert await asyncio.to_thread(migrations.state, database_url) == "empty"
    await asyncio.to_thread(migrations.upgrade, database_url)
    assert await asyncio.to_thread(migrations.state, database_url) == "current"
    database = await Database.open(database_url)
    assert await database.read(differences) == []
    built = await database.read(constraints)

    def build_anew(conn: Connection) -> list[str]:
        metadata.drop_all(conn)
        metadata.create_all(conn)
        return constraints(conn)

    assert await database.write(build_anew) == built
    assert len(built) == 6
    await database.close()


async def test_upgrading_again_changes_nothing(database_url: str) -> None:
    migrations.upgrade(database_url)  # in a thread of its own, so it may be called here too
    database = await Database.open(database_url)
    await database.write(lambda conn: conn.execute(text("UPDATE sequences SET value = 5")) and None)
    migrations.upgrade(database_url)
    assert await database.read(lambda conn: conn.execute(text("SELECT value FROM sequences")).scalar()) == 5
    await database.ready()
    await database.close()


def test_processes_that_start_together_take_turns(database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrations.upgrade, [database_url] * 4))
    assert migrations.state(database_url) == "current"


async def test_other_schemas_are_told_apart(database_url: str) -> None:
    await asyncio.to_thread(migrations.upgrade, database_url)
    database = await Database.open(database_url)
    await database.write(
        lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None
    )
    assert await asyncio.to_thread(migrations.state, database_url) == "newer"
    await database.close()


async def test_a_store_without_its_tables_is_not_ready(database_url: str) -> None:
    database = await Database.open(database_url)
    with pytest.raises(StoreUnavailable):
        await database.ready()
    await asyncio.to_thread(migrations.upgrade, database_url)
    await database.ready()
    await database.close()


def test_a_database_out_of_reach_is_trouble() -> None:
    for ask in (migrations.upgrade, migrations.state):
        with pytest.raises(StoreUnavailable):
            ask("postgresql://nobody@127.0.0.1:1/nowhere")
