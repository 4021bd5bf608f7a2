"""One serving process: told to end before its start is over, and what it tells who started it."""

import asyncio
import json
import signal
import socket
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from forwarder.node import notify
from forwarder.process import Process
from forwarder.serve import Engine, Place
from tests.harness import EngineProcess, House, wait_until
from tests.peers.client import Client


async def test_told_to_end_during_the_start_it_drains(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun to be said is answered, what is on the wire is written down, and it does not wait for the rest."""
    async with house.engine():
        await house.host("example.com", {"info": "person@dest.test"})
    starting: asyncio.Queue[Engine] = asyncio.Queue()

    async def hang(engine: Engine) -> None:  # the listeners of mail are open by now
        starting.put_nowait(engine)
        await asyncio.Event().wait()

    house.sink.slowness = 0.5
    house.sink.play("dot", "slow")
    process = Process(lambda: house.settings, Place())
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_open_api", hang)
        serving = asyncio.create_task(process.run(house.settings, lambda _engine: None, None))
        engine = await starting.get()
        house.ports = engine.ports
        whole = await house.send("ann@out.test", "info@example.com", b"Subject: whole\r\n\r\nx\r\n")
        assert whole.code == 250
        await wait_until(lambda: engine.dispatcher.load().dialling)
        async with house.client() as idle, house.client() as half:
            await half.ehlo()
            await half.say(b"MAIL FROM:<ann@out.test>\r\n")
            await half.say(b"RCPT TO:<info@example.com>\r\n")
            assert (await half.say(b"DATA\r\n")).code == 354
            await half.send(b"Subject: half\r\n\r\nfirst\r\n")
            process.end(timedelta(seconds=10))
            assert str(await idle.read()).startswith("421 4.3.2")
            answer = await half.say(b"second\r\n.\r\n")
            assert answer.code == 250, answer
        await asyncio.wait_for(serving, 15)
    async with house.engine():
        await house.sink.wait_for(2)
        await wait_until(house.queue_is_empty)
    subjects = [message.content.rpartition(b"Subject: ")[2] for message in house.sink.messages]
    assert sorted(subjects) == [b"half\r\n\r\nfirst\r\nsecond\r\n", b"whole\r\n\r\nx\r\n"]


async def test_who_has_little_time_to_end_cuts_what_is_on_the_wire(house: House) -> None:
    """As a worker whose supervisor is gone: its successor waits at the door."""
    async with house.engine():
        await house.host("example.com", {"info": "person@dest.test"})
    house.sink.play("dot", "hang")
    process = Process(lambda: house.settings, Place())
    begun: asyncio.Queue[Engine] = asyncio.Queue()
    serving = asyncio.create_task(process.run(house.settings, begun.put_nowait, None))
    engine = await begun.get()
    house.ports = engine.ports
    assert (await house.send("ann@out.test", "info@example.com", b"Subject: x\r\n\r\nx\r\n")).code == 250
    await house.sink.wait_for(1)
    process.end(timedelta(seconds=1))
    await asyncio.wait_for(serving, 15)  # of itself it would wait for 24 seconds
    async with house.engine():
        assert (await house.statuses("example.com"))[:2] == ["QUEUED", "SOFT-BOUNCE"]


@pytest.mark.parametrize("processes", [1, 2])
async def test_systemd_is_told_when_the_engine_serves(house: House, tmp_path: Path, processes: int) -> None:
    """A unit of ``Type=notify`` is ended by systemd when nobody says it."""
    told = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(told)
        systemd.settimeout(30)
        async with EngineProcess(house, environ={"NOTIFY_SOCKET": told}, workers={"processes": processes}):
            assert await asyncio.to_thread(systemd.recv, 100) == b"READY=1"


def test_systemd_may_listen_on_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"forwarder-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        systemd.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


async def test_an_impatient_person_s_second_interrupt_ends_it_at_once(house: House) -> None:
    house.sink.play("dot", "hang")
    async with EngineProcess(house) as process:
        await house.host("example.com", {"info": "person@dest.test"})
        answer = await house.send("ann@out.test", "info@example.com", b"Subject: x\r\n\r\nx\r\n")
        assert answer.code == 250
        await wait_until(lambda: b"DATA" in house.sink.commands)
        process.process.send_signal(signal.SIGINT)
        await wait_until(lambda: "the engine drains" in process.log())
        process.process.send_signal(signal.SIGINT)
        assert await process.process.wait() == 1
        assert "interrupted twice" in process.log()
        await house.database.close()
        house.sink.play("dot", "")
        await process.start()  # what was in flight is sent again
        await wait_until(house.queue_is_empty)


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_reload_does_not_change_the_database_below_a_running_engine(
    house: House, processes: int
) -> None:
    file, other = house.folder / "config.toml", house.folder / "other.db"
    file.write_text("")
    async with EngineProcess(
        house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": processes}
    ) as process:
        await house.host("example.com", {"info": "person@dest.test"})
        file.write_text(f'[workers]\nlease = "20s"\n[database]\nurl = "sqlite:///{other}"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("cannot change while running") == processes)
        answer = await house.send("ann@out.test", "info@example.com", b"Subject: x\r\n\r\nx\r\n")
        assert answer.code == 250
        await house.sink.wait_for(1)
        assert process.log().count("the old configuration stays") == processes
        assert "at the next start" not in process.log()  # nothing of it is taken over
        assert "in force" not in process.log()
        assert not other.exists()


async def test_who_is_connected_is_counted_by_the_engine_that_comes_after_one_that_could_not(
    house: House,
) -> None:
    """Two engines count side by side, each in a place of its own; whoever comes to a place clears it."""
    file = house.folder / "config.toml"
    file.write_text("[mx]\nconnections_per_client = 1\n")
    async with EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}) as process:
        await house.host("example.com", {"info": "person@dest.test"})
        async with house.client() as sending:
            await sending.ehlo()
            await sending.say(b"MAIL FROM:<ann@out.test>\r\n")
            await sending.say(b"RCPT TO:<info@example.com>\r\n")
            assert (await sending.say(b"DATA\r\n")).code == 354
            file.write_text("[mx]\nconnections_per_client = 1\nrecipients = 50\n")
            gone = house.certificate.rename(house.folder / "gone")
            process.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: "the new configuration cannot be used" in process.log())
            gone.rename(house.certificate)
            process.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: "in force" in process.log())
            listeners = json.loads(process.ports_file.read_text())["mx"]
            async with Client("127.0.0.1", int(listeners[0].rpartition(":")[2])) as another:
                assert str(another.greeting).startswith("421 4.7.0")
            assert (await sending.say(b"Subject: x\r\n\r\nx\r\n.\r\n")).code == 250


async def test_an_engine_that_does_not_serve_in_time_is_not_left_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By these tests: whoever never came in has nobody who would end it."""

    async def in_vain(*_given: object, **_named: object) -> None:
        raise AssertionError("in vain")

    monkeypatch.setattr("tests.harness.wait_until", in_vain)
    process = EngineProcess(house)
    with pytest.raises(AssertionError, match="in vain"):
        await process.start()
    assert process.process.returncode is not None
