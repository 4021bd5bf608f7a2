"""The revisions build what ``store.tables`` says, from any state, whoever else tries at the same moment."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Executable, insert, select, text

from forwarder.mail.address import parse_address
from forwarder.mail.aliases import Match
from forwarder.store import migrations
from forwarder.store.aliases import list_aliases
from forwarder.store.directory import Directory
from forwarder.store.dkim_keys import list_keys
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.sessions import LATER
from forwarder.store.tables import accounts, aliases, confirmations, dkim_keys, domains, metadata
from forwarder.store.trouble import StoreUnavailable

really_upgrade = command.upgrade


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


async def of_older_schema(url: str, monkeypatch: pytest.MonkeyPatch, revision: str, at: datetime) -> Database:
    """A database as a former release has it, in which an account hosts one domain; both have the id 1."""
    with monkeypatch.context() as then:
        then.setattr(command, "upgrade", lambda config, _newest: really_upgrade(config, revision))
        await asyncio.to_thread(migrations.upgrade, url)
    database = await Database.open(url)

    def host(conn: Connection) -> None:
        conn.execute(insert(accounts).values(id=1, email="r@hooli.test", plan="default", created_at=at))
        hosted = {"id": 1, "account_id": 1, "name": "piedpiper.com", "display": "piedpiper.com"}
        more = {"webhook_key": "k", "dkim_selector": "s", "added_at": at}
        conn.execute(insert(domains).values(hosted | more))

    await database.write(host)
    return database


async def test_aliases_of_an_older_schema_stay_and_act_as_before(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 3, 4, tzinfo=UTC)
    older = {"domain_id": 1, "forward": "r@gmail.com", "when_disabled": 421, "created_at": at}
    database = await of_older_schema(database_url, monkeypatch, "0002", at)

    def fill(conn: Connection) -> None:
        for pattern, is_active in (("on", True), ("off", False), ("(a|b)", True)):
            conn.execute(insert(aliases).values(older | {"pattern": pattern, "is_active": is_active}))

    await database.write(fill)
    await database.close()
    assert await asyncio.to_thread(migrations.state, database_url) == "old"
    await asyncio.to_thread(migrations.upgrade, database_url)
    database = await Database.open(database_url)
    found = await database.read(lambda conn: list_aliases(conn, 1)[0])
    shown = [(one.pattern, one.is_active, one.when_disabled, one.rank, one.is_skipped) for one in found]
    assert shown == [
        ("on", True, 421, None, False),
        ("off", False, 421, None, False),
        ("(a|b)", True, 421, None, False),
    ]
    rules = await Directory(database).confirmed(parse_address("off@piedpiper.com"))
    assert rules is not None
    assert isinstance(off := rules.resolve("off"), Match)
    assert (off.alias.active, off.alias.when_disabled) == (False, 421)
    await database.close()


async def test_a_worker_of_a_release_whose_schema_is_still_to_come_says_what_to_do(
    postgres_url: str,
) -> None:
    """It takes the place of one that died, after the release was installed and before ``forwarder migrate``."""
    database = await Database.open(postgres_url)
    for statement in (text("ALTER TABLE aliases DROP COLUMN is_skipped"), text("DROP TABLE confirmations")):
        await database.write(partial(did, statement))
    for query in (select(aliases), select(confirmations)):
        with pytest.raises(StoreUnavailable) as caught:
            await database.read(partial(did, query))
        assert "run `forwarder migrate`" in explain(caught.value).text
    await database.close()


def did(statement: Executable, conn: Connection) -> None:
    conn.execute(statement)


async def test_keys_of_an_older_schema_sign_on(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 3, 4, tzinfo=UTC)
    database = await of_older_schema(database_url, monkeypatch, "0005", at)

    def fill(conn: Connection) -> None:
        key = {"selector": "s1", "algorithm": "rsa", "private_key": b"sealed", "public_record": "p"}
        conn.execute(insert(dkim_keys).values(key | {"domain_id": 1, "created_at": at}))

    await database.write(fill)
    await database.close()
    await asyncio.to_thread(migrations.upgrade, database_url)
    database = await Database.open(database_url)
    (key,) = await database.read(lambda conn: list_keys(conn, 1))
    assert (key.selector, key.private_key, key.is_waiting, key.retired_at) == ("s1", b"sealed", False, None)
    await database.close()


async def test_upgrading_again_changes_nothing(database_url: str) -> None:
    migrations.upgrade(database_url)  # in a thread of its own, so it may be called here too
    database = await Database.open(database_url)
    await database.write(lambda conn: conn.execute(text("UPDATE sequences SET value = 5")) and None)
    migrations.upgrade(database_url)
    assert await database.read(lambda conn: conn.execute(text("SELECT value FROM sequences")).scalar()) == 5
    await database.ready()
    await database.close()


def test_an_index_of_a_large_table_has_its_time_and_its_lock_has_not(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def look(config: Any, _newest: str) -> None:
        conn = config.attributes["connection"]
        told.extend(
            conn.execute(text(f"SHOW {name}")).scalar() for name in ("statement_timeout", "lock_timeout")
        )
        told.append(conn.connection.driver_connection._config.command_timeout)

    monkeypatch.setattr(command, "upgrade", look)
    migrations.upgrade(postgres_url)
    assert told == ["1h", "8s", 3600 + LATER]  # the last is ours: the server speaks first


def test_processes_that_start_together_take_turns(database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrations.upgrade, [database_url] * 4))
    assert migrations.state(database_url) == "current"


def test_processes_that_make_the_file_together_take_turns(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for number in range(40):
            seen = threads.map(migrations.state, [f"sqlite:///{tmp_path / f'new{number}.db'}"] * 4)
            assert list(seen) == ["empty"] * 4


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
