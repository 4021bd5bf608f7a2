"""Databases that hold the newest schema already, and the API on one of them."""

import functools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api import operation
from forwarder.mail import seal
from forwarder.store import postgresql, writer
from forwarder.store.migrations import upgrade
from tests.api.desk import Desk


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def store_url(empty_store: Path, tmp_path: Path) -> str:
    """An empty SQLite database."""
    shutil.copy(empty_store, tmp_path / "api.db")
    return f"sqlite:///{tmp_path / 'api.db'}"


@pytest.fixture
async def desk(store_url: str) -> AsyncIterator[Desk]:
    """The API on SQLite."""
    async with Desk(store_url) as made:
        yield made


@pytest.fixture
def either_store_url(database_url: str) -> str:
    """An empty database of each kind, with the newest schema."""
    upgrade(database_url)
    return database_url


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for each request: of many at once the last would hear 503, rightly, where the machine is busy."""
    limits = (
        (operation, "PATIENCE"),
        (writer, "WAIT_LIMIT"),
        (postgresql, "CONNECT_LIMIT"),
        (postgresql, "TRANSACTION_LIMIT"),
    )
    for module, name in limits:
        monkeypatch.setattr(module, name, 60.0)
    monkeypatch.setattr(postgresql, "make_engine", functools.partial(postgresql.make_engine, patience=60.0))


@pytest.fixture(autouse=True)
def keys_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every domain here gets the same DKIM keys: an RSA key takes some 100 ms to make."""
    monkeypatch.setattr(seal, "generate", _generate)


@functools.cache
def _generate(algorithm: seal.Algorithm) -> seal.GeneratedKey:
    return _really_generate(algorithm)


_really_generate = seal.generate
