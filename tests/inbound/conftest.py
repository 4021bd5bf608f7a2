"""Servers of this room for its tests."""

import shutil

import pytest
import uvloop
from argon2 import PasswordHasher

from forwarder.net.tls import ServerTls, self_signed
from forwarder.store import migrations, passwords
from tests.inbound import recording, rooms


def pytest_asyncio_loop_factories(config, item):
    """These rooms are tested on the loop they run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return self_signed(["mx.test"], tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificate):
    return ServerTls(*certificate)


@pytest.fixture
async def serve(tmp_path):
    """``await serve(tls=…, errors=3)``: a dialogue whose reception records."""
    started = []

    async def start(**options):
        started.append(await recording.listen(tmp_path, **options))
        return started[-1]

    yield start
    for listening in started:
        await recording.stop(listening)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
async def engine(request, tmp_path, empty_store, tls, monkeypatch):
    """Real rooms; ``await engine.start(mx={…})`` opens the listeners.

    On SQLite, unless the test asks for ``@on_both`` (see ``tests.inbound.rooms``).
    """
    # argon2 as it is, with a millisecond's parameters: its cost is not what is tested here
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    if getattr(request, "param", "sqlite") == "sqlite":
        path = tmp_path / "forwarder.db"
        shutil.copy(empty_store, path)
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("postgres").database()
        migrations.upgrade(url)
    engine = rooms.Engine(url, tmp_path, tls=tls)
    yield engine
    await engine.stop()
