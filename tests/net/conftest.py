"""Peers for the tests of this folder."""

from collections.abc import AsyncIterator

import pytest

from tests.peers.sink import Sink


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as peer:
        yield peer
        assert peer.violations == []
        assert peer.trouble == []
