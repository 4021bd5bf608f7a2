"""Campaigns for the tests of this folder: one engine node or several, on SQLite or PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.crash.campaign import Campaign
from tests.postgres import Server

MakeCampaign = Callable[..., Campaign]


@pytest.fixture
def campaign_on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeCampaign]:
    """``campaign_on("postgresql", nodes=3)``: running, ended with the test."""
    with ExitStack() as stack:

        def make(kind: str = "sqlite", **options: Any) -> Campaign:
            if kind == "postgresql":
                server: Server = request.getfixturevalue("postgres")
                url = server.database()
                stack.callback(server.drop, url)
                options["database_url"] = url
            return stack.enter_context(Campaign(tmp_path, **options))

        yield make


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A PostgreSQL that a test may stop; durable, as in production."""
    server = Server.start(fsync="on", full_page_writes="on")
    yield server
    server.remove()
