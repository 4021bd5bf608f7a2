"""What a start says of a database it cannot use: the reason, what to do, and no secret; and for how long it waits."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from forwarder import schema
from forwarder.config import Settings
from forwarder.node import NodeError
from forwarder.preparation import prepare
from forwarder.schema import check_schema, wait_for_store
from forwarder.store.engine import Database
from forwarder.store.faults import Explained, explain
from forwarder.store.migrations import upgrade
from forwarder.store.trouble import StoreUnavailable
from tests.postgres import Server

SECRETS = ("bertram", "hunter2", "127.0.0.1", "hidden", "SELECT")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A PostgreSQL that wants a password of one user, and lets another do nothing."""
    server = Server.start()
    server.sql("CREATE ROLE bertram LOGIN PASSWORD 'right'")
    server.sql("CREATE ROLE bertram_idle LOGIN")
    server.sql("CREATE ROLE bertram_reader LOGIN SUPERUSER")
    server.sql("ALTER ROLE bertram_reader SET default_transaction_read_only = on")
    server.sql("CREATE DATABASE hidden")
    server.sql("CREATE DATABASE hidden_latin ENCODING LATIN1 TEMPLATE template0")
    rules = server.folder / "data" / "pg_hba.conf"
    rules.write_text("host all bertram 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    server.stop()
    server.restart()
    yield server
    server.remove()


async def explained(url: str) -> Explained:
    database = await Database.open(url, pool_size=1)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await check_schema(database, url)
    finally:
        await database.close()
    return explain(caught.value)


@pytest.mark.parametrize(
    ("url", "words", "passes"),
    [
        ("postgresql://bertram:hunter2@127.0.0.1:{port}/hidden", "refuses the user or the password", True),
        ("postgresql://bertram2:hunter2@127.0.0.1:{port}/hidden", "refuses the user or the password", True),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden2", "no database of the name", True),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden", "does not allow its user", True),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden?hunter2=1", "option after the ?", False),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden?sslmode=hunter2", "option after the ?", False),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden?client_encoding=no", "option after the ?", False),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden?sslmode=require", "agree on TLS", True),
        ("postgresql://bertram_idle@127.0.0.1:{port}/hidden?sslmode=verify-full", "need sslrootcert", False),
        ("postgresql://bertram_reader@127.0.0.1:{port}/hidden", "takes no changes", True),
        (
            "postgresql://bertram_idle@127.0.0.1:{port}/hidden?target_session_attrs=read-only",
            "takes no changes",
            True,
        ),
        ("postgresql://postgres@127.0.0.1:{port}/hidden?search_path=hunter2", "(SQLSTATE 3F000)", True),
        ("postgresql://postgres@127.0.0.1:{port}/hidden_latin", "createdb --encoding=UTF8", False),
        ("postgresql://bertram:hunter2@127.0.0.1:1/hidden", "Connection refused", True),
        ("postgresql://bertram:hunter2@127.0.0.1:65536/hidden", "a host or a port that cannot be", False),
        ("postgresql://bertram:hunter2@hidden..invalid/hidden", "a host or a port that cannot be", False),
        ("postgresql://bertram:hunter2@127.0.0.1:{port},/hidden", "a host or a port that cannot be", False),
        (
            "postgresql://bertram_idle@127.0.0.1:{port}/hidden?sslmode=verify-ca&sslrootcert=/nowhere",
            "a certificate that the url names, cannot be used (No such file",
            True,
        ),
        ("postgresql://bertram:hunter2@hidden.invalid/hidden", "host name is not known", True),
        ("postgresql://bertram:hunter2@/hidden?host=/nowhere", "No such file", True),
    ],
)
async def test_what_is_wrong_with_postgresql_is_said_without_a_secret(
    guarded: Server, url: str, words: str, passes: bool
) -> None:
    found = await explained(url.format(port=guarded.port))
    assert words in found.text
    assert found.passes is passes
    assert not [secret for secret in SECRETS if secret in found.text]


def broken(path: Path, how: str) -> str:
    url = f"sqlite:///{path}"
    if how == "junk":
        path.write_bytes(b"hunter2 is no database" * 100)
        return url
    upgrade(url)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    return url


@pytest.mark.parametrize(("how", "words"), [("junk", "not an SQLite database"), ("damaged", "is damaged")])
async def test_a_file_that_is_no_database_ends_the_start(tmp_path: Path, how: str, words: str) -> None:
    url = broken(tmp_path / "hidden.db", how)
    found = await explained(url)
    assert words in found.text
    assert not found.passes
    values = {"hostname": "mx.test", "data_dir": str(tmp_path / "data"), "database": {"url": url}}
    with pytest.raises(NodeError, match=words):
        await prepare(Settings.model_validate(values))


async def test_a_file_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "hidden.db").mkdir()
    url = f"sqlite:///{tmp_path}/hidden.db"
    values = {"hostname": "mx.test", "data_dir": str(tmp_path / "data"), "database": {"url": url}}
    with pytest.raises(NodeError, match=r"cannot be used \(Is a directory: hidden.db\)"):
        await prepare(Settings.model_validate(values))


async def test_a_lock_beside_the_file_that_cannot_be_had_is_trouble_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "hidden.db.lock").mkdir()
    with pytest.raises(StoreUnavailable) as caught:
        await Database.open(f"sqlite:///{tmp_path}/hidden.db")
    assert "Is a directory" in explain(caught.value).text


def test_trouble_without_a_cause_and_of_a_full_disk() -> None:
    assert "does not answer; check" in explain(StoreUnavailable()).text
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = 13
    trouble = StoreUnavailable()
    trouble.__cause__ = full
    assert "make room" in explain(trouble).text
    trouble.__cause__ = trouble  # whoever raises it from itself
    assert "does not answer" in explain(trouble).text


async def test_why_a_start_waits_is_said_again_and_again_and_at_once_when_it_changes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def away(database: Database, url: str) -> None:
        nonlocal tries
        tries += 1
        trouble = StoreUnavailable()
        if 100 < tries <= 120:
            trouble.__cause__ = ConnectionRefusedError(111, "hunter2")
        if tries <= 250:
            raise trouble

    monkeypatch.setattr(schema, "RETRY_EVERY", 0)
    monkeypatch.setattr(schema, "check_schema", away)
    database = await Database.open(database_url, pool_size=1)
    said: list[int] = []
    with capture_logs(processors=[lambda _log, _name, event: said.append(tries) or event]) as logs:
        await wait_for_store(lambda: schema.check_schema(database, database_url))
    await database.close()
    assert said == [1, 11, 31, 71, 101, 111, 121, 131, 151, 191]
    assert {entry["event"] for entry in logs} == {"the start waits for the database"}
    assert [("refused" in entry["reason"]) for entry in logs] == [False] * 4 + [True] * 2 + [False] * 4


async def test_an_option_nobody_knows_ends_the_wait(guarded: Server) -> None:
    url = f"postgresql://bertram_idle@127.0.0.1:{guarded.port}/hidden?hunter2=1"
    database = await Database.open(url, pool_size=1)
    try:
        with pytest.raises(NodeError, match="option after the"):
            await wait_for_store(lambda: check_schema(database, url))
    finally:
        await database.close()


async def test_counts_that_cannot_be_forgotten_are_no_reason_not_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk: they only make the engine refuse clients too early."""
    (tmp_path / "run" / "clients-mx").mkdir(parents=True)
    url = f"sqlite:///{tmp_path / 'forwarder.db'}"
    values = {"hostname": "mx.test", "data_dir": str(tmp_path), "database": {"url": url}}
    await prepare(Settings.model_validate(values))
    assert "what an earlier run had counted stays" in capsys.readouterr().out
