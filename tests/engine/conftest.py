"""The whole engine with its neighbours, started from a furnished data folder: keys, schema and a hosted domain."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from tests.engine.town import ALIASES, Town
from tests.harness import House


def pytest_asyncio_loop_factories(
    config: object, item: object
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The engine is tested on the loop it runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder to be copied, and the API key of its account: making keys takes longer than most tests."""
    folder = tmp_path_factory.mktemp("furnished")
    made: list[str] = []

    async def furnish() -> None:
        async with House(folder) as house, house.engine():
            await house.host("example.com", ALIASES)
            made.append(house.api_key)

    # A thread, since this thread's event loop belongs to the tests.
    worker = threading.Thread(target=lambda: asyncio.run(furnish()))
    worker.start()
    worker.join()
    return folder / "data", made[0]


@pytest.fixture
async def town(tmp_path: Path, furnished: tuple[Path, str]) -> AsyncIterator[Town]:
    """The neighbourhood; ``town.engine(…)`` starts an engine with settings of the test's own."""
    async with Town(tmp_path, *furnished) as built:
        yield built


@pytest.fixture
async def engine(town: Town) -> AsyncIterator[Town]:
    """The engine with the settings of the harness, on SQLite, hosting ``example.com`` with ``ALIASES``."""
    async with town.engine():
        yield town


@pytest.fixture
async def either(town: Town, database_url: str) -> AsyncIterator[Town]:
    """The same on SQLite and on PostgreSQL."""
    async with town.engine(database={"url": database_url}):
        await town.host("example.com", ALIASES)
        yield town
