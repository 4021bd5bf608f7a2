"""Servers of this room for its tests."""

import pytest
import uvloop

from forwarder.net.tls import ServerTls, self_signed
from tests.inbound import recording


@pytest.fixture
def tls(tmp_path):
    return ServerTls(*self_signed(["mx.test"], tmp_path / "tls"))


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



def pytest_asyncio_loop_factories(config, item):
    """These rooms are tested on the loop they run on."""
    return {"uvloop": uvloop.new_event_loop}
