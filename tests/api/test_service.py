"""What is around the operations: the OpenAPI document, its page, health, metrics, and the server on a real socket."""

import asyncio
import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import httpx
import pytest

from api import app
from api.app import OPERATIONS
from api.health import Health
from forwarder.config import HostPort
from forwarder.store.claiming import next_due
from forwarder.store.trouble import StoreUnavailable
from forwarder.web import WebServer
from tests.api.desk import Desk

DOCUMENTED = """GET /account
GET /account/whitelabels
GET /domains
POST /domains
GET /domains/{domain}
PUT /domains/{domain}
DELETE /domains/{domain}
GET /domains/{domain}/check
GET /domains/{domain}/aliases
POST /domains/{domain}/aliases
GET /domains/{domain}/aliases/{alias}
PUT /domains/{domain}/aliases/{alias}
DELETE /domains/{domain}/aliases/{alias}
POST /domains/{domain}/aliases/bulk
GET /domains/{domain}/logs
GET /domains/{domain}/logs/{alias}
GET /domains/{domain}/credentials
POST /domains/{domain}/credentials
PUT /domains/{domain}/credentials/{username}
DELETE /domains/{domain}/credentials/{username}"""


def test_every_documented_endpoint_is_an_operation() -> None:
    ours = {f"{operation.method} {operation.path.removeprefix('/v3')}" for operation in OPERATIONS}
    assert set(DOCUMENTED.splitlines()) <= ours


async def test_the_openapi_document_is_3_1_and_lists_every_operation(desk: Desk) -> None:
    document = (await desk.get("http://api.test/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == {(operation.method, operation.path) for operation in OPERATIONS}
    text = json.dumps(document)
    for reference in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert reference in document["components"]["schemas"]


async def test_the_document_names_both_ways_to_present_a_key(desk: Desk) -> None:
    document = (await desk.get("http://api.test/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    named = {schemes[name]["scheme"] for one in document["security"] for name in one}
    assert named == {"basic", "bearer"}


async def test_the_document_is_made_of_the_models_that_check(desk: Desk) -> None:
    document = (await desk.get("http://api.test/openapi.json")).json()
    password = document["components"]["schemas"]["NewCredential"]["properties"]["password"]
    assert password["minLength"] == 6
    await desk.domain()
    fields = {"username": "a", "password": "short"}
    answer = await desk.post("/domains/piedpiper.com/credentials", fields)
    assert answer.json()["errors"]["password"] == ["This must have at least 6 characters."]


async def test_the_page_is_readable_without_any_outside_asset(desk: Desk) -> None:
    answer = await desk.get("http://api.test/docs")
    assert answer.headers["content-type"].startswith("text/html")
    for operation in OPERATIONS:
        assert operation.summary.replace("'", "&#x27;") in answer.text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(", answer.text)
    assert "<code>api</code>" in answer.text
    assert "`" not in answer.text
    assert "\\u" not in answer.text
    assert "1559652806000" in answer.text


async def test_the_page_shows_what_an_operation_takes_and_answers(desk: Desk) -> None:
    """Its examples are answers as the models have them, and its fields are marked as the models demand them."""
    text = (await desk.get("http://api.test/docs")).text
    for operation in OPERATIONS:
        _, found, rest = text.partition(f'<details id="{operation.name}">')
        assert found
        part = rest.partition("</details>")[0]
        example = re.search(r"<pre>(.*?)</pre>", part, re.DOTALL)
        assert example is not None
        operation.answer.model_validate(json.loads(unescape(example[1])))
        rows = re.findall(r"<tr><td>([^<]*)</td><td>body</td><td>(yes|)</td><td>([^<]*)", part)
        fields = operation.body.model_fields if operation.body is not None else {}
        wanted = {field.alias or name: field.is_required() for name, field in fields.items()}
        assert {name: required == "yes" for name, required, _ in rows} == wanted, operation.name
        assert not any("null" in about for _, _, about in rows)


async def test_live_and_ready(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("live", "ready"):
        assert (await desk.get(f"http://api.test/health/{path}")).status_code == 200
    desk.health = Health(troubles={"dispatcher"})
    answer = await desk.get("http://api.test/health/ready")
    assert (answer.status_code, answer.json()["troubles"]) == (503, ["dispatcher"])
    desk.health = Health()

    async def gone() -> None:
        raise StoreUnavailable

    async def silent() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(app, "READY_PATIENCE", 0.05)
    for trouble in (gone, silent):
        monkeypatch.setattr(desk.database, "ready", trouble)
        answer = await desk.get("http://api.test/health/ready")
        assert (answer.status_code, answer.json()["troubles"]) == (503, ["store"])
    assert (await desk.get("http://api.test/health/live")).status_code == 200


async def test_metrics_are_for_loopback_only(desk: Desk) -> None:
    assert "python_info" in (await desk.get("http://api.test/metrics")).text
    away = httpx.ASGITransport(app=desk.app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=away, base_url="http://api.test") as client:
        assert (await client.get("/metrics")).status_code == 404


async def test_metrics_tell_of_the_queue(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured() -> list[str]:
        text = (await desk.get("http://api.test/metrics")).text
        return [line for line in text.splitlines() if line.startswith(("forwarder_d", "forwarder_o"))][:4]

    assert await measured() == [
        'forwarder_deliveries{state="queued"} 0.0',
        'forwarder_deliveries{state="leased"} 0.0',
        'forwarder_deliveries{state="held"} 0.0',
        "forwarder_oldest_due_seconds 0.0",
    ]
    await desk.domain()
    await desk.mail("piedpiper.com", count=3)
    due = await desk.database.read(next_due)
    assert due is not None
    desk.now = due - timedelta(seconds=5)
    assert (await measured())[3] == "forwarder_oldest_due_seconds 0.0"  # nothing is due yet
    desk.now = due + timedelta(seconds=90)
    assert (await measured())[0] == 'forwarder_deliveries{state="queued"} 3.0'
    assert (await measured())[3] == "forwarder_oldest_due_seconds 90.0"

    async def away(*_work: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(desk.database, "read", away)
    answer = await desk.get("http://api.test/metrics")
    assert (answer.status_code, "python_info" in answer.text) == (200, True)
    assert "forwarder_deliveries" not in answer.text
    assert (
        'forwarder_dns_questions_total{answer="found"} 0.0' in answer.text
    )  # what was counted needs no store


@pytest.mark.parametrize(
    ("trusted", "headers", "status"),
    [
        ((), {"X-Forwarded-For": "203.0.113.9"}, 404),
        ((), {"X-Forwarded-For": "127.0.0.1"}, 404),
        ((), {"Forwarded": "for=127.0.0.1"}, 404),
        ((), {"X-Real-IP": "203.0.113.9"}, 404),
        ((), {"Via": "1.1 proxy"}, 404),
        (("127.0.0.0/8",), {}, 200),
        (("127.0.0.1",), {"X-Forwarded-For": "203.0.113.9"}, 404),
        (("127.0.0.1",), {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, 404),
        (("127.0.0.1",), {"X-Forwarded-For": "127.0.0.1"}, 200),
        (("127.0.0.1",), {"Forwarded": "for=127.0.0.1"}, 404),
        (("10.0.0.0/8",), {"X-Forwarded-For": "127.0.0.1"}, 404),
        (("127.0.0.1", "10.0.0.0/8"), {"X-Forwarded-For": "10.0.0.5"}, 404),
    ],
)
async def test_metrics_are_not_for_those_whom_a_proxy_lets_through(
    store_url: str, trusted: tuple[str, ...], headers: dict[str, str], status: int
) -> None:
    async with Desk(store_url, api={"trusted_proxies": list(trusted)}) as desk:
        server = WebServer(
            desk.app, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=trusted
        )
        await server.start()
        try:
            host, port = server.addresses[0]
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"http://{host}:{port}/metrics", headers=headers)
        finally:
            await server.stop()
    assert answer.status_code == status
    assert ("python_info" in answer.text) is (status == 200)


async def test_a_method_a_path_does_not_have_is_405_with_those_it_has(desk: Desk) -> None:
    answer = await desk.http.patch("/domains/piedpiper.com")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PUT")
    assert answer.json()["error"] == "This path has no such method; it has DELETE, GET, HEAD, PUT."
    answer = await desk.http.head("/account")
    assert answer.status_code == 200


async def test_bulk_is_also_the_name_an_alias_may_have(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"bulk": "a@gmail.com"})
    assert (await desk.get("/domains/piedpiper.com/aliases/bulk")).json()["alias"]["alias"] == "bulk"
    assert (await desk.delete("/domains/piedpiper.com/aliases/bulk")).status_code == 200


class Socket:
    """Raw requests to a real server, and their answers."""

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self.address = address
        self.key = key

    async def send(self, text: str) -> tuple[int, dict[str, str], Any]:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(text.replace("\n", "\r\n").replace("KEY", self.key).encode())
        await writer.drain()
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await reader.readexactly(int(headers["content-length"]))
        writer.close()
        await writer.wait_closed()
        return int(lines[0].split()[1]), headers, json.loads(body)


async def test_dots_in_a_path_are_names_and_lead_nowhere(desk: Desk) -> None:
    await desk.domain()
    server = WebServer(desk.app, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=())
    await server.start()
    try:
        socket = Socket(server.addresses[0], desk.key)
        head = "Host: api.test\nAuthorization: Basic api:KEY\nConnection: close\n\n"
        for path in (
            "/v3/domains/piedpiper.com/aliases/..",
            "/v3/domains/%2e%2e/aliases",
            "/v3/domains/..%2faccount",
            "/v3/domains/piedpiper.com/aliases/../../piedpiper.com",
            "/v3/domains/piedpiper.com/aliases/%FF",
            "/v3/domains/piedpiper.com/aliases/%00",
            "//v3/domains",
            "/v3///domains",
            "/v3/domains//aliases",
            "/v3/domains/piedpiper.com//",
        ):
            status, _, answer = await socket.send(f"GET {path} HTTP/1.1\n{head}")
            assert (status, answer["code"]) == (404, 404), path
    finally:
        await server.stop()


async def test_it_works_on_a_real_socket_as_curl_would_speak(desk: Desk) -> None:
    server = WebServer(desk.app, listen=HostPort("127.0.0.1", 0), connections=100, trusted_proxies=())
    await server.start()
    try:
        socket = Socket(server.addresses[0], desk.key)
        head = "Host: api.test\nAuthorization: Basic api:KEY\nConnection: close\n"
        body = '{"domain": "piedpiper.com"}'
        posted = f"POST /v3/domains/ HTTP/1.1\n{head}Content-Type: application/json\nContent-Length: {len(body)}\n\n"
        status, headers, answer = await socket.send(posted + body)
        assert (status, answer["domain"]["domain"]) == (200, "piedpiper.com")
        assert headers["content-type"] == "application/json"
        assert "x-ratelimit-remaining" in headers
        status, _, answer = await socket.send(
            f"DELETE /v3/domains/piedpiper.com/aliases/%2A HTTP/1.1\n{head}\n"
        )
        assert (status, answer) == (200, {"success": True})
        encoded = "a%2F%28b%7Cc%29"
        fields = json.dumps({"alias": "a/(b|c)", "forward": "x@gmail.com"})
        await socket.send(
            f"POST /v3/domains/piedpiper.com/aliases HTTP/1.1\n{head}Content-Type: application/json\n"
            f"Transfer-Encoding: chunked\n\n{len(fields):x}\n{fields}\n0\n\n"
        )
        status, _, answer = await socket.send(
            f"GET /v3/domains/piedpiper.com/aliases/{encoded} HTTP/1.1\n{head}\n"
        )
        assert (status, answer["alias"]["alias"]) == (200, "a/(b|c)")
        status, _, answer = await socket.send("GET /v3/account HTTP/1.1\nHost: x\nConnection: close\n\n")
        assert (status, answer["code"]) == (401, 401)
        announced = (
            f"POST /v3/domains HTTP/1.1\n{head}Content-Type: application/json\nContent-Length: 99999999\n\n"
        )
        status, _, answer = await socket.send(announced)
        assert (status, answer["code"]) == (413, 413)
    finally:
        await server.stop()
