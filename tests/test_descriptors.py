"""Who connects can never take all descriptors."""

import asyncio
import resource
from pathlib import Path

import pytest

from forwarder.config import Settings
from forwarder.descriptors import affordable, raise_limit, shares
from tests.harness import EngineProcess, House


@pytest.mark.parametrize(
    ("wanted", "room", "given"),
    [
        ((2000, 1000, 1000), 32_768, (2000, 1000, 1000)),
        ((2000, 1000, 1000), 3588, (1588, 1000, 1000)),
        ((2000, 1000, 1000), 512, (171, 170, 171)),
        ((2000, 5, 1000), 512, (254, 5, 253)),
        ((0, 1000, 1000), 10_000, (8000, 1000, 1000)),
        ((0, 0, 0), 300, (100, 100, 100)),
        ((2000, 1000, 1000), 1, (1, 1, 1)),  # 0 would be without limit
    ],
)
def test_each_has_what_it_wants_or_an_equal_part(
    wanted: tuple[int, int, int], room: int, given: tuple[int, int, int]
) -> None:
    names = ("mx", "submission", "api")
    assert shares(dict(zip(names, wanted, strict=True)), room) == dict(zip(names, given, strict=True))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of this process, as if it had them."""
    limits = [1024, 524_288]
    monkeypatch.setattr(resource, "getrlimit", lambda _what: tuple(limits))

    def set_limits(_what: int, wanted: tuple[int, int]) -> None:
        limits[:] = wanted

    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return limits


def test_half_of_the_descriptors_are_for_connections(limit: list[int]) -> None:
    settings = Settings.model_validate(
        {"hostname": "mx.test", "tls": {"certificate": "c.pem", "key": "k.pem"}, "mx": {"connections": 0}}
    )
    few = affordable(settings)
    assert (few.mx.connections, few.submission.connections, few.api.connections) == (171, 170, 171)
    assert affordable(few) == few
    raise_limit()
    assert limit == [524_288, 524_288]
    many = affordable(settings)
    assert (many.mx.connections, many.submission.connections, many.api.connections) == (260_144, 1000, 1000)


def test_who_does_not_listen_has_no_share(limit: list[int]) -> None:
    alone = affordable(Settings.model_validate({"hostname": "mx.test", "api": {"listen": ""}}))
    assert (alone.mx.connections, alone.submission.connections) == (512, 1000)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_the_engine_has_as_many_as_it_may_have(house: House) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with EngineProcess(house, limits="-Sn 256", workers={"processes": 2}) as engine:
        pid = engine.process.pid
        workers = children(pid)
        assert len(workers) == 2
        for process in (pid, *workers):
            assert resource.prlimit(process, resource.RLIMIT_NOFILE) == (most, most)


async def test_mail_goes_on_while_the_api_is_held_open(house: House) -> None:
    async with EngineProcess(house, limits="-n 120", workers={"processes": 1}) as engine:
        assert "there are descriptors for so many connections only" in engine.log()
        await house.host("example.com", {"*": "inbox@dest.test"})
        held = [await asyncio.open_connection("127.0.0.1", house.api_port) for _ in range(150)]
        for _, writer in held:
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: ")
        content = b"From: Ann <ann@out.test>\r\nSubject: hello\r\n\r\nhello\r\n"
        assert (await house.send("ann@out.test", "info@example.com", content)).code == 250
        await house.sink.wait_for(1)
        async with house.api() as client:
            assert (await client.get("/health/live")).status_code == 200
        for _, writer in held:
            writer.close()
