"""Fixtures for all tests: databases, a whole engine in this process, a whole engine as a person starts it."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from tests.commandline import Cli
from tests.harness import EngineProcess, House
from tests.postgres import Server


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test sets up for logging ends with it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One PostgreSQL for the session; ``postgres.database()`` makes an empty database."""
    server = Server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind we support."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    url = server.database()
    yield url
    server.drop(url)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A destination and a DNS server, and ``house.engine(…)`` to start engines with settings of the test's own."""
    async with House(tmp_path) as built:
        yield built


@pytest.fixture
async def engine(house: House, database_url: str) -> AsyncIterator[House]:
    """A whole engine in this process, on SQLite and on PostgreSQL, hosting ``example.com``.

    Mail for destinations at ``dest.test`` goes to ``engine.sink``. See ``tests.harness.House`` for what it offers.
    """
    async with house.engine(database={"url": database_url}):
        await house.host("example.com", {"*": "inbox@dest.test"})
        yield house


@pytest.fixture
async def engine_process(house: House) -> AsyncIterator[EngineProcess]:
    """``python -m forwarder serve`` with one process, ready; ended by its id."""
    async with EngineProcess(house) as process:
        yield process


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("FORWARDER_CONFIG", "FORWARDER_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Cli(tmp_path, capsys)


@pytest.fixture
def hosted(cli: Cli) -> Cli:
    """With an account and ``example.com``."""
    cli.json("account", "create", "you@example.org")
    cli.json("domain", "add", "example.com", "--account", "you@example.org")
    return cli
