"""The engine as a whole: mail through it, its health, how it starts, drains and takes a new configuration."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete, select

from forwarder.config import HostPort, Settings
from forwarder.mail.address import parse_address
from forwarder.mail.srs import Srs, SrsFault
from forwarder.net.listening import bound_socket
from forwarder.net.tls import self_signed
from forwarder.node import NodeError, Place
from forwarder.outbound.dispatcher import Dispatcher
from forwarder.process import Process
from forwarder.pulse import Pulse
from forwarder.serve import running
from forwarder.store import workers as worker_rows
from forwarder.store.engine import Database
from forwarder.store.queue import Queue
from forwarder.store.tables import workers
from forwarder.store.trouble import StoreUnavailable
from tests.free_ports import free_port
from tests.harness import EngineProcess, House, as_environment, wait_until
from tests.peers.client import Client, Closed
from tests.postgres import Server

MAIL = b"From: Ann <ann@out.test>\r\nSubject: hello\r\n\r\nhello\r\n"


async def test_mail_goes_through_and_every_step_is_logged(engine: House) -> None:
    answer = await engine.send("ann@out.test", "richard@example.com", MAIL)
    assert answer.code == 250
    (received,) = await engine.sink.wait_for(1)
    assert received.recipients == ("inbox@dest.test",)
    assert received.reverse_path.startswith("SRS0=")
    assert received.reverse_path.endswith("@mx.test")
    assert received.content.endswith(b"\r\n" + MAIL)
    await engine.wait_for_statuses("QUEUED", "DELIVERED", domain="example.com")
    await wait_until(engine.queue_is_empty)


async def test_an_alias_added_while_it_runs_is_in_force_at_once(engine: House) -> None:
    await engine.host("new.example", {"info": "person@dest.test"})
    answer = await engine.send("ann@out.test", "info@new.example", MAIL)
    assert answer.code == 250


async def test_the_health_shows_every_task(engine: House) -> None:
    async with engine.api() as api:
        live = await api.get("/health/live")
        assert live.status_code == 200

        async def ready() -> bool:
            return (await api.get("/health/ready")).status_code == 200

        await wait_until(ready)
        tasks = (await api.get("/health/ready")).json()["tasks"]
        chores = {
            f"chore {name}" for name in ("take-over", "journal", "counters", "changes", "plans", "domains")
        }
        others = {"heartbeat", "directory", "queue", "memory", "dispatcher", "claims", "strays", "api"}
        assert set(tasks) == {"probe store"} | others | chores


async def test_health_names_what_does_not_run(house: House) -> None:
    async with house.engine(), house.api() as api:
        engine = house.running
        assert engine is not None
        await wait_until(lambda: not engine.health().troubles)
        engine.dispatcher._loops["strays"].cancel()
        await wait_until(lambda: engine.health().troubles)
        assert engine.health().troubles == {"strays"}
        answer = await api.get("/health/ready")
        assert (answer.status_code, answer.json()["tasks"]["strays"]) == (503, False)
        assert (await api.get("/health/live")).status_code == 200


async def test_nothing_is_sent_before_the_leases_are_known_to_be_ours(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sure = asyncio.Event(), asyncio.Event()

    async def wait(_pulse: Pulse) -> None:
        asked.set()
        await sure.wait()

    monkeypatch.setattr(Pulse, "sure", wait)
    async with house.engine():
        await house.host("example.com", {"*": "inbox@dest.test"})
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await asyncio.wait_for(asked.wait(), 10)
        assert house.sink.connections == 0
        sure.set()
        await house.sink.wait_for(1)


async def test_no_mail_is_taken_while_others_may_take_us_for_dead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, silent = Pulse.alive, False
    monkeypatch.setattr(Pulse, "alive", lambda pulse: not silent and alive(pulse))
    async with house.engine():
        await house.host("example.com", {"*": "inbox@dest.test"})
        silent = True
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 451
        silent = False
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await house.sink.wait_for(1)
        await wait_until(house.queue_is_empty)
        assert len(house.sink.messages) == 1


def test_a_second_engine_of_a_process_is_another_worker_and_counts_in_another_region() -> None:
    given = Place(region=1, regions=2, worker_id="id", successor_of="dead")
    process = Process(lambda: Settings.model_validate({"hostname": "mx.test"}), given)
    places = []
    for _ in range(3):
        places += [process._next_place(), process._next_place()]  # the first does not come to serve
        process._generation += 1
    first = Place(region=2, regions=4, worker_id="id", successor_of="dead")
    second, third = Place(region=3, regions=4), Place(region=2, regions=4)
    assert places == [first, first, second, second, third, third]


async def test_an_engine_that_ended_has_written_what_it_refused_and_left_no_worker(house: House) -> None:
    """So that others of the same database need not wait until they take it for dead."""
    async with house.engine():
        await house.host("example.com", {"info": "inbox@dest.test"})
        answer = await house.send("ann@out.test", "nobody@example.com", MAIL)
        assert answer.code == 550
        url = house.settings.database.url
    house.database = await Database.open(url)
    try:
        assert await house.statuses("example.com") == ["REFUSED"]
        left = await house.database.read(lambda conn: conn.execute(select(workers.c.id)).all())
        assert left == []
    finally:
        await house.database.close()


async def test_who_leaves_withdraws_what_is_in_doubt_before_its_farewell(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards its row is gone, and what it held is anybody's: also what its client was told to send again."""
    left: list[str] = []
    farewell, withdraw = worker_rows.farewell, Queue.withdraw_doubtful

    async def withdrawn(queue: Queue, now: float) -> None:
        left.append("withdrawn")
        await withdraw(queue, now)

    async def farewelled(database: Database, worker_id: str, now: datetime) -> int:
        left.append("farewell")
        return await farewell(database, worker_id, now)

    monkeypatch.setattr(Queue, "withdraw_doubtful", withdrawn)
    monkeypatch.setattr(worker_rows, "farewell", farewelled)
    async with house.engine():
        left.clear()
    assert left == ["withdrawn", "farewell"]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(StoreUnavailable("it is away"), "StoreUnavailable('it is away')"), (TimeoutError(), "TimeoutError()")],
)
async def test_who_cannot_say_farewell_leaves_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch, trouble: Exception, reason: str
) -> None:
    async def away(*_: object) -> int:
        raise trouble

    async with house.engine():
        closing = house.database
        monkeypatch.setattr(worker_rows, "farewell", away)
    (told,) = [line for line in house.log.getvalue().splitlines() if "left without a farewell" in line]
    assert json.loads(told)["reason"] == reason
    with pytest.raises(Exception, match="clos"):
        await closing.write(lambda conn: conn.execute(select(workers.c.id)).all())


async def test_a_process_taken_for_dead_forgets_what_it_held(house: House) -> None:
    async with house.engine():
        await house.host("example.com", {"info": "inbox@dest.test"})
        engine = house.running
        assert engine is not None
        house.sink.play("dot", "hang")
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await house.sink.wait_for(1)
        assert len(engine.dispatcher.holding()) == 1
        await house.database.write(lambda conn: conn.execute(delete(workers)) and None)
        await engine._pulse.beat()
        assert list(engine.dispatcher.holding()) == []
        left = await house.database.read(lambda conn: conn.execute(select(workers.c.id)).scalars().all())
        assert left == [engine.worker_id]


async def test_what_a_claim_plans_for_its_own_death_is_no_later_than_a_retry(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_dispatcher: Dispatcher) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Dispatcher, "run", hang)
    async with house.engine():
        await house.host("example.com", {"info": "inbox@dest.test"})
        engine = house.running
        assert engine is not None
        assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
        now = datetime.now(UTC)
        (claimed,) = await engine.queue.claim_due(now, 10)
        assert claimed.next_attempt_at == now + timedelta(milliseconds=200)


async def test_a_new_certificate_is_looked_at_when_it_is_told(house: House) -> None:
    async with house.engine():
        engine = house.running
        assert engine is not None
        right = house.certificate.read_bytes()
        house.certificate.write_text("no certificate")
        engine.refresh_certificates()
        assert "the new certificate cannot be used; the old one stays" in house.log.getvalue()
        house.certificate.write_bytes(right)
        engine.refresh_certificates()
        assert "the certificate is loaded anew" in house.log.getvalue()


async def test_health_when_the_database_goes_away_and_comes_back(house: House) -> None:
    server = Server.start()
    try:
        async with house.engine(database={"url": server.database()}), house.api() as api:

            async def status() -> int:
                return (await api.get("/health/ready")).status_code

            await wait_until(lambda: _is(status, 200))
            before = set(house.running.health().tasks)  # type: ignore[union-attr]
            server.stop(signal.SIGQUIT)
            await wait_until(lambda: _is(status, 503))
            assert (await api.get("/health/live")).status_code == 200
            answer = await house.send("ann@out.test", "richard@example.com", MAIL)
            assert answer.code in (421, 451)
            server.restart()
            await wait_until(lambda: _is(status, 200), deadline=30)
            health = house.running.health()  # type: ignore[union-attr]
            assert set(health.tasks) == before
            assert all(health.tasks.values())
    finally:
        server.remove()


async def _is(status: object, wanted: int) -> bool:
    return await status() == wanted  # type: ignore[operator]


async def test_a_second_engine_on_the_same_data_is_refused(house: House) -> None:
    async with house.engine():
        with pytest.raises(NodeError, match="another engine is running"):
            async with running(house.settings):
                raise AssertionError("it runs")


async def test_a_database_of_a_newer_release_is_refused(house: House, postgres: Server) -> None:
    url = postgres.database()
    async with house.engine(database={"url": url}):
        pass
    postgres.sql("UPDATE alembic_version SET version_num = 'of-tomorrow'", url.rpartition("/")[2])
    with pytest.raises(NodeError, match="newer release"):
        async with house.engine(database={"url": url}):
            raise AssertionError("it runs")


async def test_ports_and_readiness_of_a_process(engine_process: EngineProcess) -> None:
    shown = json.loads(engine_process.ports_file.read_text())
    assert shown["pid"] == engine_process.process.pid
    assert {"mx", "api"} <= set(shown)
    async with Client("127.0.0.1", engine_process.house.mx_port) as client:
        assert client.greeting.code == 220
        assert client.greeting.text.startswith("mx.test ")


async def test_sigterm_when_idle_ends_soon_with_status_zero(engine_process: EngineProcess) -> None:
    async with Client("127.0.0.1", engine_process.house.mx_port) as idle:
        await idle.ehlo()
        began = time.monotonic()
        status = await engine_process.end()
        assert time.monotonic() - began < 5
        assert status == 0
        assert (await idle.read()).code == 421
    assert not engine_process.ports_file.exists()


async def test_sigterm_in_the_middle_of_a_message_gives_it_its_real_answer(
    engine_process: EngineProcess,
) -> None:
    house = engine_process.house
    await house.host("example.com", {"*": "inbox@dest.test"})
    async with Client("127.0.0.1", house.mx_port) as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<ann@out.test>\r\n")
        await client.say(b"RCPT TO:<richard@example.com>\r\n")
        assert (await client.say(b"DATA\r\n")).code == 354
        await client.send(b"Subject: half\r\n\r\nfirst\r\n")
        engine_process.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: _refused(house.mx_port))
        await client.send(b"second\r\n.\r\n")
        answer = await client.read()
        assert answer.code in (250, 421), answer
    assert await engine_process.end() == 0
    if answer.code == 250:
        async with EngineProcess(house):
            (received,) = await house.sink.wait_for(1)
            assert received.content.endswith(b"first\r\nsecond\r\n")


async def _refused(port: int) -> bool:
    try:
        async with Client("127.0.0.1", port) as client:
            return client.greeting.code == 421
    except (OSError, Closed):
        return True


async def test_sigterm_with_deliveries_in_flight_loses_and_doubles_nothing(house: House) -> None:
    house.sink.slowness = 0.5
    house.sink.play("dot", "slow")
    async with EngineProcess(house) as process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        for number in range(20):
            answer = await house.send(
                "ann@out.test", f"r{number}@example.com", b"Subject: %d\r\n\r\n" % number + MAIL
            )
            assert answer.code == 250
        began = time.monotonic()
        assert await process.end() == 0
        assert time.monotonic() - began < 30
        await process.start()
        await house.sink.wait_for(20)
        await wait_until(house.queue_is_empty)
    subjects = Counter(one.content.rpartition(b"\r\nSubject: ")[0] for one in house.sink.messages)
    assert len(house.sink.messages) == 20
    assert len(subjects) == 20


async def test_sighup_takes_a_new_configuration_without_a_gap(house: House) -> None:
    file = house.folder / "config.toml"
    values = house.values()
    file.write_text('[mx]\nsize_limit = "1 MiB"\n')
    # The keys of the file must not stand in the environment, which would win; the rest may.
    async with EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}) as process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        port = house.mx_port
        assert "SIZE 1048576" in await _features(port)
        async with Client("127.0.0.1", port) as before:
            await before.ehlo()
            file.write_text('[mx]\nsize_limit = "2 MiB"\n')
            process.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: "in force" in process.log())
            listeners = json.loads(process.ports_file.read_text())["mx"]
            port = int(listeners[0].rpartition(":")[2])
            assert "SIZE 2097152" in await _features(port)
        file.write_text('[mx]\nsize_limit = "nonsense"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "the old one stays" in process.log())
        assert "SIZE 2097152" in await _features(port)
    assert values["mx"]["listen"] == ["127.0.0.1:0"]


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.mark.parametrize("processes", [1, 2])
async def test_who_was_connected_to_an_engine_that_was_killed_is_not_counted_for_ever(
    house: House, processes: int
) -> None:
    """Also not when it was killed after a reload, whose engine counts in a place of its own."""
    file = house.folder / "config.toml"
    file.write_text("[mx]\nconnections_per_client = 3\n")
    environ = {"FORWARDER_CONFIG": str(file)}
    async with EngineProcess(house, environ=environ, workers={"processes": processes}) as process:
        file.write_text("[mx]\nconnections_per_client = 2\n")
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("in force") == processes)
        listeners = json.loads(process.ports_file.read_text())["mx"]
        port = int(listeners[0].rpartition(":")[2])
        async with Client("127.0.0.1", port), Client("127.0.0.1", port):
            await house.database.close()
            for pid in family(process.process.pid):
                os.kill(pid, signal.SIGKILL)
            await process.process.wait()
        await process.start()
        async with Client("127.0.0.1", house.mx_port) as back, Client("127.0.0.1", house.mx_port) as beside:
            assert (back.greeting.code, beside.greeting.code) == (220, 220)


async def test_the_lease_of_a_running_engine_stays(house: House) -> None:
    """The engine that begins beside the old one would take it for dead by a shorter lease."""
    file = house.folder / "config.toml"
    file.write_text('[workers]\nlease = "9s"\n')
    async with EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}) as process:
        file.write_text('[workers]\nlease = "2s"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "the configuration is unchanged" in process.log())
        assert "[workers] is taken over at the next start" in process.log()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_new_secret_on_top_signs_after_a_reload(house: House, processes: int) -> None:
    """The configuration is what it was: who rotates a secret that leaked must not go on with the old one."""
    async with EngineProcess(house, workers={"processes": processes}) as process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        secrets = Path(process.values["data_dir"]) / "keys" / "srs"
        old = secrets.read_bytes().split()
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("the configuration is unchanged") == processes)
        new = b"another-secret-of-more-than-16-characters"
        secrets.write_bytes(b"\n".join([new, *old]))
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("in force") == processes)
        listeners = json.loads(process.ports_file.read_text())["mx"]
        house.ports["mx"] = [("127.0.0.1", int(listeners[0].rpartition(":")[2]))]
        assert (await house.send("ann@out.test", "richard@example.com", MAIL)).code == 250
        (received,) = await house.sink.wait_for(1)
        sent_as, now = parse_address(received.reverse_path), datetime.now(UTC)
        by_the_new = Srs((new,), domain="mx.test", max_age_days=21).reverse(sent_as, now=now)
        by_the_old = Srs(tuple(old), domain="mx.test", max_age_days=21).reverse(sent_as, now=now)
        assert (str(by_the_new), by_the_old) == ("ann@out.test", SrsFault.FORGED)
        secrets.write_bytes(b"short")
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("the keys cannot be used") == processes)
        assert (await house.send("ann@out.test", "richard@example.com", MAIL)).code == 250


async def _features(port: int) -> str:
    async with Client("127.0.0.1", port) as client:
        return (await client.ehlo()).text


async def test_a_start_that_cannot_be_says_why_without_a_traceback(house: House) -> None:
    async with EngineProcess(house):
        taken = house.mx_port
    blocker = await asyncio.start_server(lambda r, w: None, "127.0.0.1", taken)
    try:
        values = house.values(mx={"listen": [f"127.0.0.1:{taken}"]})
        status, output = await _run(house.folder, as_environment(values))
    finally:
        blocker.close()
    assert status == 1
    assert "cannot listen" in output
    assert "Traceback" not in output


async def test_a_wrong_configuration_ends_with_status_two(tmp_path: Path) -> None:
    status, output = await _run(
        tmp_path, {"FORWARDER_HOSTNAME": "mx.test", "FORWARDER_MX__SIZE_LIMIT": "huge"}
    )
    assert status == 2
    assert "FORWARDER_MX__SIZE_LIMIT" in output
    assert "Traceback" not in output


async def _run(folder: Path, environ: dict[str, str]) -> tuple[int, str]:
    import sys

    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FORWARDER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forwarder", "serve"),
        cwd=folder,
        env=inherited | environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_api_answers_on_its_port(engine: House) -> None:
    async with httpx.AsyncClient(trust_env=False) as stranger:
        answer = await stranger.get(f"http://127.0.0.1:{engine.api_port}/v3/account")
    assert answer.status_code == 401


def test_the_revision_this_release_needs_is_alembics_head() -> None:
    from forwarder.schema import newest_revision
    from forwarder.store import migrations

    assert newest_revision() == migrations.newest()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_certificate_that_is_gone_leaves_the_old_configuration(house: House, processes: int) -> None:
    file = house.folder / "config.toml"
    file.write_text('[mx]\nsize_limit = "1 MiB"\n')
    certificate, key = self_signed(["mx.test"], house.folder / "own")
    tls = {"certificate": str(certificate), "key": str(key)}
    environ = {"FORWARDER_CONFIG": str(file)}
    async with EngineProcess(house, environ=environ, workers={"processes": processes}, tls=tls) as process:
        certificate.unlink()
        file.write_text('[mx]\nsize_limit = "2 MiB"\n')
        process.process.send_signal(signal.SIGHUP)
        refused = (
            "the new configuration cannot be used; the old one stays"  # the certificate has a line of its own
        )
        await wait_until(lambda: process.log().count(refused) == processes)
        assert "Traceback" not in process.log()
        assert "SIZE 1048576" in await _features(house.mx_port)


async def test_another_engine_on_the_same_ports_is_refused(house: House) -> None:
    async with EngineProcess(house):
        values = house.values(mx={"listen": [f"127.0.0.1:{house.mx_port}"]})
        values["data_dir"] = str(house.folder / "another")
        values["database"] = {"url": f"sqlite:///{house.folder / 'another' / 'forwarder.db'}"}
        status, output = await _run(house.folder, as_environment(values))
    assert status == 1
    assert "cannot listen" in output


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_new_listener_where_another_program_listens_leaves_the_old_configuration(
    house: House, processes: int
) -> None:
    file = house.folder / "config.toml"
    old, new = free_port(), free_port()

    def configure(listen: str, size: int = 1) -> None:
        file.write_text(f'[api]\nlisten = "{listen}"\n[mx]\nsize_limit = "{size} MiB"\n')

    async def answers(port: int) -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/health/live")
            except httpx.TransportError:
                return False  # the engine that goes had taken the connection, and closed it
            return answer.status_code == 200

    process = EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": processes})
    del process.values["api"]["listen"]  # the environment would win
    configure(f"127.0.0.1:{old}")

    async def reload(sign: str, count: int) -> None:
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count(sign) == count)

    async with process:
        with bound_socket(HostPort("127.0.0.1", new)) as other:  # which would share its port
            other.listen()
            configure(f"127.0.0.1:{new}")
            await reload("the old one stays", 1)
        assert f"cannot listen on 127.0.0.1:{new}" in process.log()
        assert "in force" not in process.log()
        await wait_until(lambda: answers(old))
        await reload("in force", processes)
        await wait_until(lambda: answers(new))
        configure(f"127.0.0.1:{new}", 2)  # its own listener is no other program's
        await reload("in force", 2 * processes)
        configure(f"0.0.0.0:{new}", 2)  # nor is what overlaps with it
        await reload("in force", 3 * processes)
        await wait_until(lambda: answers(new))
        assert process.log().count("the old one stays") == 1


@pytest.mark.parametrize("processes", [1, 2])
async def test_signals_are_heard_while_the_start_waits_for_the_database(house: House, processes: int) -> None:
    away = {"url": "postgresql://nobody@127.0.0.1:1/nothing"}
    process = EngineProcess(house, workers={"processes": processes}, database=away)
    starting = asyncio.create_task(process.start())
    await wait_until(lambda: process.output.exists() and "waits for the database" in process.log())
    process.process.send_signal(signal.SIGHUP)
    process.process.send_signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="the start waits for the database"):
        await starting
    assert process.process.returncode == 0  # -1, had it died of the first


@pytest.mark.parametrize("processes", [1, 2])
async def test_sigterm_is_obeyed_while_an_older_engine_drains(house: House, processes: int) -> None:
    file = house.folder / "config.toml"
    file.write_text('[mx]\nsize_limit = "1 MiB"\n')
    port = free_port()
    process = EngineProcess(
        house,
        environ={"FORWARDER_CONFIG": str(file)},
        workers={"processes": processes},
        mx={"listen": [f"127.0.0.1:{port}"]},
    )

    async def in_data() -> Client:
        while True:  # an older engine that has just closed its door says 421 to who had knocked
            client = Client("127.0.0.1", port)
            try:
                await client.open()
                await client.ehlo()
                for line in (b"MAIL FROM:<a@out.test>\r\n", b"RCPT TO:<info@example.com>\r\n", b"DATA\r\n"):
                    answer = await client.say(line)
            except (Closed, OSError):
                continue
            assert answer.code == 354
            return client

    async with process:
        await house.host("example.com", {"info": "person@dest.test"})
        held = [await in_data() for _ in range(4)]  # of several processes each has one, nearly surely
        file.write_text('[mx]\nsize_limit = "2 MiB"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("in force") == processes)
        held += [await in_data() for _ in range(4)]
        process.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: process.log().count("the engine drains") == processes)

        async def refused() -> bool:
            client = Client("127.0.0.1", port)
            try:
                answer = await client.open()
            except (OSError, Closed):
                return True
            await client.close()
            return answer.code == 421

        await wait_until(refused)
        assert process.process.returncode is None
        for client in held:
            await client.close()
        assert await asyncio.wait_for(process.process.wait(), 20) == 0
