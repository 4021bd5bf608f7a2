"""The guarded client: where it goes, and that it goes nowhere else."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpcore
import pytest

from forwarder.config import HostPort
from forwarder.net import deadlines, http_wire
from forwarder.net.dns import Resolver
from forwarder.net.http import Blocked, GuardedClient, Page, Unreachable, check_url
from forwarder.net.tls import self_signed
from tests.free_ports import free_port
from tests.peers.dns_server import DnsServer
from tests.peers.webhook_server import WebhookServer

SOON = timedelta(seconds=3)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def hooks() -> AsyncIterator[WebhookServer]:
    async with WebhookServer() as server:
        yield server


def resolver(dns: DnsServer) -> Resolver:
    return Resolver([HostPort(dns.host, dns.port)], deadline=timedelta(seconds=0.5))


@pytest.fixture
async def client(dns: DnsServer) -> AsyncIterator[GuardedClient]:
    it = GuardedClient(resolver(dns), allow_private=True)
    yield it
    await it.close()


BLOCKED = [
    "http://127.0.0.1/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://127.1/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/",
    "http://0.0.0.0/",
    "http://[64:ff9b::7f00:1]/",
    "http://[fd00::1]/",
    "http://[fe80::1%25eth0]/",
    "http://１２７.0.0.1/",
    "http://localhost/",
    "http://x.localhost/",
    "http://intranet/",
    "http://printer.local./",
    "http://router.home.arpa/",
    "http://metadata.google.internal/",
    "http://%31%32%37.0.0.1/",
    "http://example.com\\@127.0.0.1/",
    "http://a@127.0.0.1/",
    "https://exa mple.com/",
    "https://example.com/\n",
    "file:///etc/passwd",
    "gopher://example.com/",
    "ftp://example.com/",
    "//example.com/",
    "example.com",
    "http://",
    "http:///x",
    "http://example.com:99999/",
    "http://example.com:0/",
    "https://example.com/" + "x" * 2048,
]


@pytest.mark.parametrize("url", BLOCKED)
async def test_a_url_that_is_refused_when_saved_and_when_called(dns: DnsServer, url: str) -> None:
    with pytest.raises(Blocked) as raised:
        check_url(url)
    assert str(raised.value)
    client = GuardedClient(resolver(dns))
    with pytest.raises(Blocked):
        await client.post(url, b"{}", {}, SOON)
    assert dns.queries == []
    await client.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/x?y=1",
        "http://example.com:8080/",
        "https://bücher.example/",
        "https://1.1.1.1/",
        "https://user:password@example.com/",
        "https://example.com/#@127.0.0.1",
    ],
)
def test_a_url_that_is_fine(url: str) -> None:
    try:
        check_url(url)
    except Blocked as refusal:
        pytest.fail(f"{url} is refused: {refusal}")


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"]])
async def test_a_name_with_a_private_address_is_refused_without_a_connection(
    dns: DnsServer, hooks: WebhookServer, addresses: list[str]
) -> None:
    dns.set("hooks.example.test", "A", addresses)
    client = GuardedClient(resolver(dns))
    with pytest.raises(Blocked, match="private address"):
        await client.post(f"http://hooks.example.test:{hooks.port}/", b"{}", {}, SOON)
    assert hooks.connections == 0
    await client.close()


async def test_a_post_arrives(dns: DnsServer, hooks: WebhookServer, client: GuardedClient) -> None:
    dns.set("hooks.example.test", "A", ["127.0.0.1"])
    hooks.answer(202, body=b"thanks")
    url = f"http://hooks.example.test:{hooks.port}/x?y=1"
    answer = await client.post(url, b'{"a": 1}', {"Content-Type": "application/json", "X-Sign": "s"}, SOON)
    assert answer == (202, "thanks")
    (request,) = hooks.requests
    assert (request.method, request.target, request.body) == ("POST", "/x?y=1", b'{"a": 1}')
    assert request.headers["host"] == f"hooks.example.test:{hooks.port}"
    assert request.headers["x-sign"] == "s"


async def test_a_body_in_pieces_is_one_body_at_each_address(
    dns: DnsServer, hooks: WebhookServer, client: GuardedClient
) -> None:
    dns.set("hooks.example.test", "A", ["127.0.0.2", "127.0.0.1"])  # nobody listens at the first
    url = f"http://hooks.example.test:{hooks.port}/"
    assert (await client.post(url, (b'{"a": ', b"1}"), {}, SOON))[0] == 200
    (request,) = hooks.requests
    assert (request.body, request.headers["content-length"]) == (b'{"a": 1}', "8")
    assert "transfer-encoding" not in request.headers


async def test_an_ipv4_address_is_tried_before_one_of_ipv6(
    dns: DnsServer, hooks: WebhookServer, client: GuardedClient
) -> None:
    dns.set("hooks.example.test", "A", ["127.0.0.1"])
    dns.set("hooks.example.test", "AAAA", ["::1"])  # nobody listens there
    assert (await client.post(f"http://hooks.example.test:{hooks.port}/", b"{}", {}, SOON))[0] == 200


async def test_an_address_that_takes_no_connection_is_passed(
    dns: DnsServer, hooks: WebhookServer, client: GuardedClient
) -> None:
    dns.set("hooks.example.test", "A", ["127.0.0.2", "127.0.0.3", hooks.host])
    assert await client.post(f"http://hooks.example.test:{hooks.port}/", b"{}", {}, SOON) == (200, "")
    assert len(hooks.requests) == 1
    with pytest.raises(Unreachable):
        await client.post(f"http://hooks.example.test:{free_port()}/", b"{}", {}, SOON)


@pytest.mark.parametrize("tls", [False, True])
async def test_an_address_that_swallows_what_is_sent_to_it_is_passed_in_time(
    dns: DnsServer, tls: bool, tmp_path: Path
) -> None:
    pair = self_signed(["hooks.example.test"], tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(*pair)
    client = GuardedClient(
        resolver(dns), allow_private=True, verify=ssl.create_default_context(cafile=str(pair[0]))
    )
    async with WebhookServer(host="::1", tls=serving if tls else None) as hooks:
        with contextlib.ExitStack() as stack:
            # Full with one connection: it says nothing to the next. Or it takes that, and is silent in the handshake.
            hole = stack.enter_context(
                socket.create_server(("127.0.0.2", hooks.port), backlog=9 if tls else 0)
            )
            for _ in range(0 if tls else 2):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(hole.getsockname())
            dns.set("hooks.example.test", "A", ["127.0.0.2"])
            dns.set("hooks.example.test", "AAAA", ["::1"])
            url = f"{'https' if tls else 'http'}://hooks.example.test:{hooks.port}/"
            assert await client.post(url, b"{}", {}, SOON) == (200, "")
    assert len(hooks.requests) == 1
    await client.close()


async def test_a_redirect_is_a_result_and_not_followed(hooks: WebhookServer, client: GuardedClient) -> None:
    status, _ = await client.post(hooks.at(f"/redirect?to={hooks.url}"), b"{}", {}, SOON)
    assert status == 302
    assert len(hooks.requests) == 1


async def test_no_host_sets_cookies_for_another_at_its_address(
    dns: DnsServer, hooks: WebhookServer, client: GuardedClient
) -> None:
    for name in ("one.example.test", "two.example.test"):
        dns.set(name, "A", ["127.0.0.1"])
        hooks.answer(200, {"Set-Cookie": "session=secret"})
        await client.post(f"http://{name}:{hooks.port}/", b"{}", {}, SOON)
    assert [request.headers.get("cookie") for request in hooks.requests] == [None, None]


@pytest.mark.parametrize("status", [200, 404, 500, 503])
async def test_any_status_is_a_result(hooks: WebhookServer, client: GuardedClient, status: int) -> None:
    assert (await client.post(hooks.at(f"/status/{status}"), b"{}", {}, SOON))[0] == status


async def test_an_endless_answer_is_cut(hooks: WebhookServer, client: GuardedClient) -> None:
    status, excerpt = await client.post(hooks.at("/endless"), b"{}", {}, SOON)
    assert (status, excerpt) == (200, "x" * 4096)


async def test_informational_answers_without_end_are_no_answer(client: GuardedClient) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="it said more than 128 KiB"):
            await client.post(f"http://127.0.0.1:{port}/", b"", {}, timedelta(seconds=10))


async def test_little_is_read_at_once_and_others_have_their_turn_between() -> None:
    class Ready(httpcore.AsyncNetworkStream):
        """Everything is there already, as it often is within TLS."""

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            return b"x" * max_bytes

    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    stream = http_wire.Stream(Ready())
    for _ in range(32):
        assert len(await stream.read(65_536)) == 4096
    with pytest.raises(httpcore.ReadError):
        await stream.read(65_536)
    task.cancel()
    assert turns >= 32


async def test_a_body_goes_out_in_pieces_each_when_there_is_room() -> None:
    class Slow(httpcore.AsyncNetworkStream):
        """Takes one piece, and the next when it is let."""

        def __init__(self) -> None:
            self.pieces: list[bytes] = []
            self.room = asyncio.Semaphore(1)

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:
            await self.room.acquire()
            self.pieces.append(buffer)

    slow = Slow()
    body = bytes(range(256)) * 1024 + b"end"
    writing = asyncio.create_task(http_wire.Stream(slow).write(body))
    for _ in range(5):
        await asyncio.sleep(0)
    assert list(map(len, slow.pieces)) == [65_536]
    for _ in range(4):
        slow.room.release()
    await writing
    assert list(map(len, slow.pieces)) == [65_536] * 4 + [3]
    assert b"".join(slow.pieces) == body


async def test_what_was_answered_while_the_process_was_stopped_is_heard(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a receiver that said 200 would be posted to again."""
    monkeypatch.setattr(deadlines, "HELD_UP", 0.2)
    loop, asked, stopped = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def receive(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4096)
            loop.call_soon_threadsafe(asked.set)
            stopped.wait(10)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = threading.Thread(target=receive, args=(listener,))
        receiver.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        await client._client()  # which takes its time
        posting = asyncio.create_task(client.post(url, b"{}", {}, timedelta(seconds=2)))
        await asyncio.wait(
            [asyncio.ensure_future(asked.wait()), posting], return_when=asyncio.FIRST_COMPLETED
        )
        stopped.set()
        receiver.join()
        time.sleep(2.3)  # noqa: ASYNC251 - nobody runs meanwhile, as after SIGSTOP
        assert await posting == (200, "")


@pytest.mark.parametrize("held_up", [1e-6, 60.0])
async def test_silence_is_silence_after_a_stop_too(
    client: GuardedClient, hooks: WebhookServer, monkeypatch: pytest.MonkeyPatch, held_up: float
) -> None:
    monkeypatch.setattr(deadlines, "HELD_UP", held_up)  # 1e-6: every timer rings too late
    with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
        await client.post(hooks.at("/hang"), b"{}", {}, timedelta(seconds=0.1))


async def test_receivers_that_hang_keep_no_other_from_being_asked(
    hooks: WebhookServer, client: GuardedClient
) -> None:
    hanging = [asyncio.create_task(client.post(hooks.at("/hang"), b"{}", {}, SOON * 10)) for _ in range(150)]
    await hooks.wait_for(150)
    assert await client.post(hooks.url, b"{}", {}, SOON) == (200, "")
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_what_the_first_requests_need_is_loaded_once(
    hooks: WebhookServer, client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = 0
    load = client._open

    def counted() -> Any:
        nonlocal loaded
        loaded += 1
        return load()

    monkeypatch.setattr(client, "_open", counted)
    posts = await asyncio.gather(*(client.post(hooks.url, b"{}", {}, SOON) for _ in range(5)))
    assert posts == [(200, "")] * 5
    assert loaded == 1


@contextlib.asynccontextmanager
async def begun(*, stalls: bool) -> AsyncIterator[str]:
    """The URL of a host that answers 200 with five octets of a hundred, and then is silent or hangs up."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        await writer.drain()
        if stalls:
            await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        finally:
            over.set()


@pytest.mark.parametrize("stalls", [True, False])
async def test_a_body_that_stalls_or_breaks_off_does_not_change_the_status(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch, stalls: bool
) -> None:
    monkeypatch.setattr("forwarder.net.http.EXCERPT_TIME", 0.1)
    async with begun(stalls=stalls) as url:
        status, excerpt = await client.post(url, b"", {}, SOON)
    assert status == 200
    assert excerpt in ("begun", "")  # what had come when it stalled is not always handed on


async def test_silence_ends_in_time(hooks: WebhookServer, client: GuardedClient) -> None:
    with pytest.raises(Unreachable, match=r"within 0\.1 s"):
        await client.post(hooks.at("/hang"), b"{}", {}, timedelta(seconds=0.1))


async def test_what_another_hour_may_mend(
    dns: DnsServer, hooks: WebhookServer, client: GuardedClient
) -> None:
    dns.fault("broken.example.test", "servfail")
    for url in (
        hooks.at("/drop"),
        "http://broken.example.test/",
        "http://missing.example.test/",
        "http://127.0.0.1:1/",
    ):
        with pytest.raises(Unreachable):
            await client.post(url, b"{}", {}, SOON)


async def test_the_certificate_is_verified_for_the_name_not_the_address(
    dns: DnsServer, tmp_path: Path
) -> None:
    certificate, key = self_signed(["hooks.example.test"], tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    dns.set("hooks.example.test", "A", ["127.0.0.1"])
    dns.set("other.example.test", "A", ["127.0.0.1"])
    async with WebhookServer(tls=server) as hooks:
        client = GuardedClient(resolver(dns), allow_private=True, verify=trusting)
        status, _ = await client.post(f"https://hooks.example.test:{hooks.port}/", b"{}", {}, SOON)
        assert status == 200
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            await client.post(f"https://other.example.test:{hooks.port}/", b"{}", {}, SOON)
        assert len(hooks.requests) == 1
        await client.close()


# --- GET


async def test_a_page(dns: DnsServer, hooks: WebhookServer, client: GuardedClient) -> None:
    dns.set("pages.example.test", "A", ["127.0.0.1"])
    hooks.answer(200, {"Content-Type": "Text/Plain; charset=utf-8"}, b"x" * 100)
    page = await client.get(f"http://pages.example.test:{hooks.port}/x?y=1", SOON, limit=100)
    assert page == Page(status=200, media_type="text/plain", body=b"x" * 100)
    (request,) = hooks.requests
    assert (request.method, request.target, request.body) == ("GET", "/x?y=1", b"")
    assert request.headers["host"] == f"pages.example.test:{hooks.port}"
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("target", ["/status/404", "/redirect?to=http://127.0.0.1/"])
async def test_any_status_of_a_page_is_a_result(
    hooks: WebhookServer, client: GuardedClient, target: str
) -> None:
    page = await client.get(hooks.at(target), SOON, limit=100)
    assert (page.status, page.media_type, page.body) == (404 if "404" in target else 302, "", b"")
    assert len(hooks.requests) == 1


async def test_a_page_that_is_not_whole_is_none(hooks: WebhookServer, client: GuardedClient) -> None:
    hooks.answer(200, body=b"x" * 101)
    with pytest.raises(Unreachable, match="more than 100 octets"):
        await client.get(hooks.url, SOON, limit=100)
    with pytest.raises(Unreachable, match="more than 65536 octets"):
        await client.get(hooks.at("/endless"), SOON, limit=65_536)


@pytest.mark.parametrize("stalls", [True, False])
async def test_a_page_that_stalls_or_breaks_off_has_not_come(client: GuardedClient, stalls: bool) -> None:
    async with begun(stalls=stalls) as url:
        with pytest.raises(Unreachable):
            await client.get(url, timedelta(seconds=0.2), limit=1000)


async def test_a_page_at_a_private_address_is_not_asked_for(dns: DnsServer, hooks: WebhookServer) -> None:
    dns.set("pages.example.test", "A", ["127.0.0.1"])
    client = GuardedClient(resolver(dns))
    with pytest.raises(Blocked, match="private address"):
        await client.get(f"http://pages.example.test:{hooks.port}/", SOON, limit=100)
    assert hooks.connections == 0
    await client.close()


async def test_the_environment_names_no_proxy(
    hooks: WebhookServer, dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    client = GuardedClient(resolver(dns), allow_private=True)
    assert (await client.post(hooks.url, b"{}", {}, SOON))[0] == 200
    await client.close()


async def test_no_receiver_makes_us_compute_in_a_group_of_its_own(dns: DnsServer) -> None:
    opened = GuardedClient(resolver(dns))._open()
    context = opened._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert not [each["name"] for each in context.get_ciphers() if each["name"].startswith("DHE-")]
    await opened.aclose()
