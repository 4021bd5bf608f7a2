"""Several worker processes on one machine: they share the ports, and one that dies is replaced."""

import asyncio
import errno
import json
import os
import resource
import signal
from collections.abc import AsyncIterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest

from forwarder import supervisor
from forwarder.config import Settings, Source, parse
from forwarder.inbound.limits import ClientTable, table_path
from forwarder.node import NodeLock, forget_ports, notify, write_ports
from tests.free_ports import free_port
from tests.harness import EngineProcess, House, wait_until
from tests.peers.client import Closed
from tests.postgres import Server

MAIL = b"From: Ann <ann@out.test>\r\nSubject: hello\r\n\r\nhello\r\n"


@pytest.fixture
async def pair(house: House, database_url: str) -> AsyncIterator[EngineProcess]:
    """An engine of two workers, hosting example.com."""
    async with EngineProcess(house, workers={"processes": 2}, database={"url": database_url}) as process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        yield process


def children(process: EngineProcess) -> list[int]:
    pid = process.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def words_of(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def is_told(pid: int) -> bool:
    """Whether a process that is stopped has a SIGHUP before it."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    return int(status[status.index("ShdPnd:") + 1], 16) & 1 << (signal.SIGHUP - 1) != 0


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def open_files(pid: int) -> set[str]:
    """What a process has open, but for standard input, output and error."""
    folder = Path(f"/proc/{pid}/fd")
    return {os.readlink(folder / name) for name in os.listdir(folder) if int(name) > 2}


async def test_two_workers_share_the_work(pair: EngineProcess) -> None:
    house = pair.house
    assert len(children(pair)) == 2
    await asyncio.gather(
        *(house.send("ann@out.test", f"r{number}@example.com", MAIL) for number in range(20))
    )
    await house.sink.wait_for(20)
    await wait_until(house.queue_is_empty)
    assert len(house.sink.messages) == 20
    assert await pair.end() == 0


async def test_a_worker_that_dies_is_replaced_and_its_mail_goes_on(pair: EngineProcess) -> None:
    house = pair.house
    house.sink.play("dot", "hang")  # nothing is delivered before the death
    for number in range(10):
        assert (await house.send("ann@out.test", f"r{number}@example.com", MAIL)).code == 250
    first, second = children(pair)
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    await wait_until(lambda: len([pid for pid in children(pair) if pid not in (first, second)]) == 2)
    house.sink.behave()
    received = len(house.sink.messages)

    async def serves() -> bool:
        try:
            return (await house.send("ann@out.test", "late@example.com", MAIL)).code == 250
        except (OSError, Closed):
            return False

    await wait_until(serves)
    await house.sink.wait_for(received + 11)
    await wait_until(house.queue_is_empty)
    assert "a worker died" in pair.log()
    assert await pair.end() == 0


async def test_workers_leave_when_their_supervisor_is_killed(pair: EngineProcess) -> None:
    workers = children(pair)
    await pair.house.database.close()
    pair.process.kill()
    await pair.process.wait()
    await pair.start()  # waits for the lock, which the orphans hold until they are gone
    assert not any(alive(pid) for pid in workers)
    answer = await pair.house.send("ann@out.test", "richard@example.com", MAIL)
    assert answer.code == 250


async def test_sighup_reaches_every_worker(pair: EngineProcess) -> None:
    pair.process.send_signal(signal.SIGHUP)
    await wait_until(lambda: pair.log().count("the configuration is unchanged") == 2)


async def test_the_lines_of_all_processes_follow_a_new_configuration(house: House) -> None:
    """Which worker wrote a line stands in it after a reload too, and the supervisor writes as they do."""
    file = house.folder / "config.toml"
    file.write_text('[logs]\nformat = "json"\n')
    process = EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": 2})
    process.values.pop("logs")  # the environment would win
    async with process:
        file.write_text('[logs]\nformat = "console"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("the new configuration is in force") == 2)
        lines = [line for line in process.log().splitlines() if "the new configuration is in force" in line]
        assert sorted(line.rpartition(" ")[2] for line in lines) == ["process=0", "process=1"]
        os.kill(children(process)[0], signal.SIGKILL)
        await wait_until(lambda: "a worker died" in process.log())
        (said,) = [line for line in process.log().splitlines() if "a worker died" in line]
        assert not said.startswith("{")


async def test_first_workers_are_forked_and_a_successor_is_a_new_interpreter(pair: EngineProcess) -> None:
    workers = children(pair)
    assert {words_of(pid) for pid in workers} == {words_of(pair.process.pid)}
    assert {name_of(pid) for pid in workers} == {"forwarder/0", "forwarder/1"}
    first = next(pid for pid in workers if name_of(pid) == "forwarder/0")
    os.kill(first, signal.SIGKILL)  # at once: it has hardly served
    await wait_until(lambda: len(children(pair)) == 2 and first not in children(pair))
    (successor,) = set(children(pair)) - set(workers)
    await wait_until(lambda: name_of(successor) == "forwarder/0")
    assert "forwarder.worker" in words_of(successor)
    assert await pair.end() == 0


async def test_a_successor_takes_no_module_from_the_folder_that_the_engine_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor did not either: a command that is found by the PATH looks beside itself."""
    (tmp_path / "structlog.py").write_text("raise SystemExit(77)\n")
    monkeypatch.chdir(tmp_path)
    source = Source(origin="config.toml", text=f'hostname = "mx.test"\ndata_dir = "{tmp_path / "data"}"\n')
    over = supervisor.Supervisor(parse(source, {}), source=source, config_path=None, count=1)
    [worker] = over._workers
    lock = NodeLock.take(tmp_path / "data", patience=0)
    try:
        await over._replace(worker, lock, dead="nobody")
        assert isinstance(worker.process, asyncio.subprocess.Process)
        await worker.process.communicate(b"")  # nobody says go
        assert worker.process.returncode == 0
    finally:
        lock.release()


async def test_workers_share_the_lock_and_no_pipe_and_no_socket(pair: EngineProcess) -> None:
    everyone = [pair.process.pid, *children(pair)]
    held = [open_files(pid) for pid in everyone]
    assert all(any(file.endswith("/run/lock") for file in files) for files in held)
    for one, other in combinations(held, 2):
        assert not [file for file in one & other if file.startswith("socket:")]
    _, first, second = held
    assert not [file for file in first & second if file.startswith("pipe:")]


async def test_ctrl_c_reaches_the_supervisor_alone(pair: EngineProcess) -> None:
    workers = children(pair)
    assert [os.getsid(pid) for pid in workers] == workers
    os.killpg(pair.process.pid, signal.SIGINT)
    assert await pair.process.wait() == 0
    assert pair.log().count('"event": "the engine has ended"') == 2


async def test_an_impatient_person_s_second_ctrl_c_ends_all_at_once(pair: EngineProcess) -> None:
    """Be a worker at its work or not: one is stopped and could not even listen."""
    house, workers = pair.house, children(pair)
    house.sink.play("dot", "hang")
    assert (await house.send("ann@out.test", "info@example.com", MAIL)).code == 250
    await wait_until(lambda: b"DATA" in house.sink.commands)
    os.kill(workers[0], signal.SIGSTOP)
    os.killpg(pair.process.pid, signal.SIGINT)
    await wait_until(lambda: "the engine drains" in pair.log())
    os.killpg(pair.process.pid, signal.SIGINT)
    assert await asyncio.wait_for(pair.process.wait(), 15) == 1  # who drains takes 24 seconds
    assert "interrupted twice" in pair.log()
    assert not any(map(alive, workers))
    await house.database.close()
    house.sink.play("dot", "")
    await pair.start()  # what was in flight is sent again
    await wait_until(house.queue_is_empty)


@pytest.mark.parametrize("stopped", [0, 1])
async def test_a_worker_learns_that_the_supervisor_is_gone_whatever_its_sibling_does(
    pair: EngineProcess, stopped: int
) -> None:
    workers = children(pair)
    held, free = workers[stopped], workers[1 - stopped]
    await pair.house.database.close()
    os.kill(held, signal.SIGSTOP)
    try:
        pair.process.kill()
        await pair.process.wait()
        await wait_until(lambda: not alive(free))
    finally:
        os.kill(held, signal.SIGCONT)
    await wait_until(lambda: not alive(held))
    assert pair.log().count("the supervisor is gone") == 2


async def test_a_worker_that_cannot_start_ends_the_engine(house: House) -> None:
    armed = {"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": "start.after-keys:kill"}
    process = EngineProcess(house, environ=armed, workers={"processes": 2})
    with pytest.raises(AssertionError, match="a worker could not start"):
        await process.start()
    assert process.process.returncode == 1
    assert '"status": -9' in process.log()


async def test_sigterm_is_heard_while_the_start_waits_for_the_database(house: House) -> None:
    away = {"url": "postgresql://nobody@127.0.0.1:1/nothing"}
    process = EngineProcess(house, workers={"processes": 2}, database=away)
    starting = asyncio.create_task(process.start())
    await wait_until(lambda: process.output.exists() and "waits for the database" in process.log())
    process.process.send_signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="the start waits for the database"):
        await starting
    assert process.process.returncode == 0


def test_a_machine_without_room_for_a_worker_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_work: object, **_let_go: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(supervisor, "fork", full)
    listen = ["127.0.0.1:0"]
    settings = Settings.model_validate(
        {"hostname": "mx.test", "data_dir": str(tmp_path), "mx": {"listen": listen}, "api": {"listen": ""}}
    )
    source = Source(origin="environment", text="")
    assert supervisor.supervise(settings, source=source, config_path=None, count=2) == 1
    assert "no room for another process" in "".join(capsys.readouterr())
    NodeLock.take(tmp_path, patience=0).release()  # it is free again


async def test_a_worker_is_replaced_as_soon_as_there_is_room_again(pair: EngineProcess) -> None:
    pid, workers = pair.process.pid, children(pair)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # nothing more can be opened
    os.kill(workers[0], signal.SIGKILL)
    await wait_until(lambda: "there is no room for a worker" in pair.log())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    await wait_until(lambda: pair.log().count("the engine serves") == 3)
    assert len(children(pair)) == 2
    assert await pair.end() == 0


async def test_who_looks_after_no_worker_any_more_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ports that cannot be told of, with whatever is wrong that nobody foresaw."""
    told = asyncio.Event()

    async def unforeseen(*_given: object) -> None:
        told.set()
        raise RuntimeError("unforeseen")

    async def nothing(*_given: object) -> None:
        return

    monkeypatch.setattr(supervisor, "prepare", nothing)
    monkeypatch.setattr(supervisor.Supervisor, "_keep", unforeseen)
    lonely = supervisor_of(1, tmp_path / "data")
    assert await asyncio.wait_for(lonely.run(NodeLock(-1)), 10) == 1
    assert told.is_set()


def supervisor_of(count: int, data_dir: Path) -> supervisor.Supervisor:
    settings = Settings.model_validate({"hostname": "mx.test", "data_dir": str(data_dir)})
    source = Source(origin="config.toml", text="as it began")
    return supervisor.Supervisor(settings, source=source, config_path=None, count=count)


def test_a_worker_that_dies_again_and_again_is_started_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    worker = supervisor.Worker(0)
    source = Source(origin="environment", text="")

    def pause_after(seconds: float, *, serves: bool = True) -> float:
        nonlocal now
        worker.begin(source, source)
        worker.serves = serves
        now += seconds
        return worker.next_pause()

    pauses = [pause_after(1.0) for _ in range(10)]
    assert pauses == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert pause_after(60.0) == 30.0
    assert pause_after(61.0, serves=False) == 30.0
    assert [pause_after(61.0), pause_after(1.0)] == [0.0, 0.2]  # it had served for a while


def test_a_successor_is_told_of_what_came_while_it_started_and_not_of_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = supervisor_of(1, tmp_path)
    [worker] = over._workers
    told: list[int] = []
    monkeypatch.setattr(over, "_signal", lambda _worker, number: told.append(number))
    over._offers.make(Source(origin="config.toml", text="nobody obeys it"), over._settings)
    worker.begin(over._offers.latest, over._offers.in_force)
    over._opened(worker, over._offers.in_force.digest)
    assert told == []
    worker.begin(over._offers.latest, over._offers.in_force)
    over._offers.make(Source(origin="config.toml", text="new"), over._settings)
    over._opened(worker, over._offers.in_force.digest)
    assert told == [signal.SIGHUP]


@pytest.mark.parametrize("service", ["mx", "submission"])
def test_whom_a_dead_worker_had_let_in_counts_no_more_and_whom_another_had_does(
    tmp_path: Path, service: str
) -> None:
    """Each of its two regions: the engines of every other reload count in the second."""
    path = table_path(tmp_path, service)
    tables = [ClientTable(path, region=region, regions=4) for region in range(4)]
    cells = tables[0].cells("192.0.2.1")
    for number, table in enumerate(tables):
        for _ in range(10**number):
            table.entered(cells, 0)
    assert tables[0].open_of(cells) == 1111
    over = supervisor_of(2, tmp_path)
    over._forget_clients(over._workers[1])
    assert tables[0].open_of(cells) == 11
    over._forget_clients(over._workers[0])
    assert tables[0].open_of(cells) == 0


def test_readiness_is_told_once_when_all_serve_whoever_died_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervisor, "notify", told.append)
    over = supervisor_of(2, tmp_path)
    first, second = over._workers
    digest = over._offers.in_force.digest
    for worker in (first, second):
        worker.begin(over._offers.latest, over._offers.in_force)
    over._opened(first, digest)
    first.begin(over._offers.latest, over._offers.in_force)  # it died; another life
    over._opened(second, digest)
    assert told == []
    for worker in (first, second):
        over._opened(worker, digest)
        assert told == ["READY=1"]


def test_where_the_ports_are_is_said_when_all_serve_and_as_the_newest_in_force_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one obeyed a reload before another had begun to serve."""
    monkeypatch.setattr(supervisor.Supervisor, "_signal", lambda *_: None)
    over = supervisor_of(2, tmp_path)
    first, second = over._workers
    for worker in (first, second):
        worker.begin(over._offers.latest, over._offers.in_force)
    begun, new = over._offers.in_force, Source(origin="config.toml", text="new")
    values = {"hostname": "mx.test", "data_dir": str(tmp_path), "api": {"listen": "127.0.0.1:8081"}}
    over._offers.make(new, Settings.model_validate(values))
    file = tmp_path / "run" / "ports.json"
    over._opened(first, begun.digest)
    over._opened(first, new.digest)
    assert not file.exists()
    over._opened(second, begun.digest)
    assert json.loads(file.read_text())["api"] == ["127.0.0.1:8081"]


def test_a_readiness_that_nobody_hears_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "NOTIFY_SOCKET cannot be told" in "".join(capsys.readouterr())


async def test_a_successor_obeys_what_the_others_obey_whatever_the_file_says(house: House) -> None:
    file = house.folder / "config.toml"
    url = Settings.model_validate(house.values()).database.url
    other = f"sqlite:///{house.folder / 'other.db'}"

    def configure(size: str, url: str = url) -> None:
        lease = "2s" if "3" in size else "15s"
        database = f'[database]\nurl = "{url}"\n[workers]\nlease = "{lease}"\n'
        file.write_text(f"[mx]\nsize_limit = {size}\n{database}")

    process = EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": 2})
    configure('"1 MiB"')

    async def told(sign: str, count: int) -> None:
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count(sign) == count)

    async def sizes() -> set[str]:
        found = set()
        for _ in range(8):
            async with house.client() as client:
                found.add(
                    next(line for line in (await client.ehlo()).text.split("\n") if "SIZE" in line).strip()
                )
        return found

    async def replaced(served: int) -> None:
        os.kill(children(process)[0], signal.SIGKILL)
        await wait_until(lambda: process.log().count("the engine serves") == served)

    async with process:
        await house.host("example.com", {"*": "inbox@dest.test"})
        configure('"2 MiB"', other)
        await told("cannot change while running", 2)
        await replaced(3)
        assert await sizes() == {"SIZE 1048576"}
        for number in range(8):
            assert (await house.send("ann@out.test", f"r{number}@example.com", MAIL)).code == 250
        configure('"3 MiB"')
        await told("in force", 2)
        configure("nonsense")
        await told("the old one stays", 2)
        before = set(children(process))
        await replaced(6)  # two of them are the second engines of the reload
        assert await sizes() == {"SIZE 3145728"}
        (successor,) = set(children(process)) - before
        # By a shorter lease it would take its sibling, who keeps the old one, for dead.
        assert "FORWARDER_WORKERS__LEASE=15000ms" in environment_of(successor)


async def test_a_worker_that_is_starting_hears_of_a_new_configuration_when_it_serves(house: House) -> None:
    file = house.folder / "config.toml"
    file.write_text('[mx]\nsize_limit = "1 MiB"\n')
    environ = {"FORWARDER_CONFIG": str(file)}
    async with EngineProcess(house, environ=environ, workers={"processes": 2}) as process:
        first, second = children(process)
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: set(children(process)) - {first, second} != set())
        file.write_text('[mx]\nsize_limit = "2 MiB"\n')
        process.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: process.log().count("in force") == 2)
        assert process.log().count("a worker died") == 1


async def test_a_successor_takes_over_what_its_siblings_take_over_only_after_its_start(house: House) -> None:
    """As of a worker that its reload kills, while the other one is not done with it."""
    file = house.folder / "config.toml"
    file.write_text('[mx]\nsize_limit = "1 MiB"\n')
    environ = {"FORWARDER_CONFIG": str(file)}
    async with EngineProcess(house, environ=environ, workers={"processes": 2}) as process:
        late, victim = children(process)
        file.write_text('[mx]\nsize_limit = "2 MiB"\n')
        try:
            for pid in (late, victim):
                os.kill(pid, signal.SIGSTOP)
            await wait_until(lambda: is_stopped(late) and is_stopped(victim))
            process.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: is_told(late) and is_told(victim))
            os.kill(victim, signal.SIGKILL)
            await wait_until(lambda: process.log().count("the engine serves") == 3)
        finally:
            os.kill(late, signal.SIGCONT)
        await wait_until(lambda: process.log().count("in force") == 2)
        assert process.log().count("a worker died") == 1


def test_ports_that_cannot_be_written_down_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("in the way")
    write_ports(tmp_path, {"mx": [("127.0.0.1", 25)]})
    forget_ports(tmp_path)
    said = "".join(capsys.readouterr())
    assert said.count("cannot be made") == 2


async def test_what_is_armed_reaches_the_first_workers_and_not_their_successors(house: House) -> None:
    armed = {"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": "receive.after-dot:kill"}
    async with EngineProcess(house, environ=armed, workers={"processes": 2}) as pair:
        await house.host("example.com", {"*": "inbox@dest.test"})
        first = children(pair)

        async def taken() -> bool:
            try:
                return (await house.send("ann@out.test", "r@example.com", MAIL)).code == 250
            except (OSError, Closed):
                return False

        await wait_until(taken)
        assert set(children(pair)) != set(first)
        assert await pair.end() == 0
    assert '"status": -9' in pair.log()


async def test_a_worker_that_reloads_late_shares_the_new_port_of_its_sibling(house: House) -> None:
    file = house.folder / "config.toml"
    old, new = free_port(), free_port()
    file.write_text(f'[api]\nlisten = "127.0.0.1:{old}"\n')
    process = EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": 2})
    del process.values["api"]["listen"]  # the environment would win
    async with process:
        late, _ = children(process)
        [mx] = json.loads(process.ports_file.read_text())["mx"]
        os.kill(late, signal.SIGSTOP)
        try:
            file.write_text(f'[api]\nlisten = "127.0.0.1:{new}"\n')
            process.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: process.log().count("in force") == 1)
        finally:
            os.kill(late, signal.SIGCONT)
        await wait_until(lambda: process.log().count("in force") == 2)
        # `forwarder check` reads there which ports are the engine's own.
        await wait_until(lambda: json.loads(process.ports_file.read_text())["api"] == [f"127.0.0.1:{new}"])
        assert json.loads(process.ports_file.read_text())["mx"] == [mx] != ["127.0.0.1:0"]


async def test_a_worker_that_starts_while_the_database_is_away_waits_for_it(house: House) -> None:
    """One that died each time would be started again ever more seldom, and nobody would say why."""
    server = Server.start()
    try:
        async with EngineProcess(
            house, workers={"processes": 2}, database={"url": server.database()}
        ) as pair:
            await house.host("example.com", {"*": "inbox@dest.test"})
            server.stop(signal.SIGQUIT)
            victim, _ = children(pair)
            os.kill(victim, signal.SIGKILL)
            await wait_until(lambda: "the start waits for the database" in pair.log(), deadline=20)
            server.restart()
            await wait_until(lambda: pair.log().count("the engine serves") == 3, deadline=30)
            assert pair.log().count("a worker died") == 1
            assert "Traceback" not in pair.log()
    finally:
        server.remove()
