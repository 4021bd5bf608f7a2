"""schemathesis reads our OpenAPI document and tries what it allows and what it forbids, always the same examples.

Every answer must be one the document describes, in the shape it describes, and never a server error.
"""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import OPERATIONS
from api.operation import Operation
from forwarder.config import HostPort
from forwarder.web import WebServer
from tests.api.desk import Desk

EXAMPLES = 8  # a mode and operation
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
QUIET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


class Served:
    """The API in a thread with an event loop of its own, since schemathesis calls it from this one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with Desk(self._url) as desk:
            await desk.domain("piedpiper.com", {"richard": "richard@gmail.com"})
            self.rule = (await desk.get("/domains/piedpiper.com/rules")).json()["rules"][0]["id"]
            fields = {"username": "richard", "password": "abc123"}
            await desk.post("/domains/piedpiper.com/credentials", fields)
            await desk.mail("piedpiper.com", count=3)
            server = WebServer(desk.app, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=())
            await server.start()
            host, port = server.addresses[0]
            self.base, self.key = f"http://{host}:{port}", desk.key
            self._ready.set()
            await self._over.wait()
            await server.stop()


@pytest.fixture(scope="module")
def served(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("schema") / "api.db"
    shutil.copy(empty_store, path)
    made = Served(f"sqlite:///{path}")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.base}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_answer_is_as_the_document_says(
    served: Served, schema: Any, operation: Operation, mode: GenerationMode
) -> None:
    ours = {"domain": "piedpiper.com", "alias": "richard", "username": "richard", "rule": served.rule}
    seen: set[int] = set()

    @QUIET
    @given(case=schema[operation.path][operation.method].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if operation.method != "DELETE":  # the domain must still be there for the next one
            case.path_parameters = {**(case.path_parameters or {}), **_known(operation, ours)}
        response = case.call(base_url=served.base, auth=("api", served.key))
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    run()
    assert seen
    if mode is GenerationMode.POSITIVE and operation.method == "GET":
        assert 200 in seen


def _known(operation: Operation, ours: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in ours.items() if f"{{{name}}}" in operation.path}
