"""``forwarder check`` about this machine: its ports and its folder."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forwarder.commands.listeners import _port, check_listeners
from forwarder.config import HostPort, Settings
from forwarder.net.listening import bound_socket
from forwarder.node import NodeLock, write_ports
from tests.commandline import Cli


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


@pytest.fixture
def taken(cli: Cli) -> Iterator[HostPort]:
    """The port of the configured MX, on which somebody listens."""
    with bound_socket(HostPort("127.0.0.1", 0)) as opened:
        opened.listen()
        at = HostPort(*opened.getsockname())
        cli.config.write_text(cli.config.read_text().replace("127.0.0.1:0", str(at), 1))
        yield at


def about(cli: Cli, what: str) -> list[tuple[str, str]]:
    """Grade and text of the findings about something."""
    found = json.loads(cli("check", "--json")[1])["findings"]
    return [(one["grade"], one["text"]) for one in found if one["about"] == what]


def test_a_port_that_another_program_holds_must_be_mended(cli: Cli, taken: HostPort) -> None:
    """No engine runs, and none could start: a system comes with a mail server of its own."""
    text = "is in use, but no engine runs with this data_dir; stop what holds it (ss -ltnp)"
    assert about(cli, f"mx {taken}") == [("wrong", text)]


def test_a_port_of_the_engine_that_runs_is_fine(cli: Cli, taken: HostPort) -> None:
    lock = NodeLock.take(cli.config.parent / "data", patience=0)
    try:
        [(grade, _)] = about(cli, f"mx {taken}")
        assert grade == "advice"  # it may be starting: nobody can tell whose port it is
        write_ports(cli.config.parent / "data", {"mx": [("127.0.0.1", taken.port)]})
        assert about(cli, f"mx {taken}") == [("fine", "is open; the engine runs")]
    finally:
        lock.release()
    assert about(cli, f"mx {taken}")[0][0] == "wrong"  # whatever was written down
    with pytest.raises(OSError, match="stop what holds it"):
        bound_socket(taken, shared=False)


def test_a_port_that_is_free_is_said_to_be(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    cli.config.write_text(cli.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
    text = "is free; the engine does not run here now"
    assert about(cli, f"mx 127.0.0.1:{port}") == [("fine", text)]


@pytest.mark.parametrize("at", ["0.0.0.0", "127.0.0.1"])
def test_a_low_port_that_the_engine_has_is_not_found_wanting_a_privilege(
    monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The engine has the privilege from its unit, who asks has not: EACCES then comes before EADDRINUSE."""

    def refused(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("forwarder.net.listening.bound_socket", refused)
    with socket.create_server(("127.0.0.1", 0)) as engine:
        port = engine.getsockname()[1]
        found = _port("mx", HostPort(at, port), {})
        assert (found.grade, found.text.partition(":")[0]) == ("advice", "is in use")
    found = _port("mx", HostPort(at, port), None)
    assert (found.grade, found.text.partition(":")[0]) == ("wrong", "needs a privilege")


def test_what_the_engine_leaves_out_without_ipv6_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *more: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *more, **named)

    monkeypatch.setattr(socket, "socket", Socket)
    values = {
        "hostname": "mx.test",
        "mx": {"listen": ["127.0.0.1:0", "[::]:25", "[::1]:25"]},
        "api": {"listen": "[::]:8080"},
    }
    grades = {found.about: found.grade for found in check_listeners(Settings.model_validate(values))}
    assert grades == {
        "tls": "advice",
        "mx 127.0.0.1:0": "fine",
        "mx [::]:25": "advice",  # it stands in the default, and the engine serves without it
        "mx [::1]:25": "wrong",
        "api [::]:8080": "wrong",
    }


def test_what_root_left_in_the_folder_must_be_mended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who served once by hand as root has files there that the engine cannot use."""
    data = cli.config.parent / "data"
    NodeLock.take(data, patience=0).release()
    assert about(cli, "data_dir") == []
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "lock")
    [(grade, text)] = about(cli, "data_dir")
    assert grade == "wrong"
    assert text.startswith(f"{data / 'run' / 'lock'} cannot be used (Permission denied); ")
    assert "must belong to the user that runs this" in text


def test_a_file_system_that_is_read_only_is_not_taken_for_files_of_another_user(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux mounts a disk that fails so; whose the files are has nothing to do with it."""
    data = cli.config.parent / "data"
    NodeLock.take(data, patience=0).release()
    cli("domain", "list")
    was = os.statvfs

    def read_only(path: str | os.PathLike[str]) -> os.statvfs_result:
        found = list(was(path))
        found[8] |= os.ST_RDONLY  # f_flag
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", read_only)
    monkeypatch.setattr(os, "access", lambda *_: False)
    [(grade, text)] = about(cli, "data_dir")
    assert grade == "wrong"
    assert text.startswith(f"{data / 'run' / 'lock'} cannot be used (Read-only file system); mount it ")
    [(_, text)] = about(cli, "database")
    assert "(Read-only file system: forwarder.db)" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_makes_no_files_in_another_user_s_folder(cli: Cli) -> None:
    """The engine, which runs as that user, could not open them."""
    data = cli.config.parent / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    said = cli.fails("account", "list")
    assert said.startswith(f"forwarder: {data} belongs to nobody, ")
    [(grade, text)] = about(cli, "database")
    assert (grade, text) == ("wrong", said.removeprefix("forwarder: ").rstrip())
    assert list(data.iterdir()) == []
    os.chown(data, 0, 0)
    assert cli("account", "list")[0] == 0
    (data / "keys").mkdir()
    os.chown(data, 65534, 65534)
    assert cli("account", "list")[0] == 0  # all is there: nothing is made


def test_a_file_beside_the_database_that_cannot_be_used_is_named(cli: Cli) -> None:
    assert cli("account", "list")[0] == 0
    lock = cli.config.parent / "data" / "forwarder.db.turn"
    lock.unlink()
    lock.mkdir()
    assert "(Is a directory: forwarder.db.turn)" in cli.fails("account", "list")


def test_a_disk_that_is_short_of_room_must_be_mended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses all mail then, and is ready all the same: a message of 25 MiB wants 37.5 (inbound.disk)."""
    data = cli.config.parent / "data"
    [(grade, _)] = about(cli, "disk")
    assert grade == "fine"
    was = os.statvfs

    def short(path: str | os.PathLike[str]) -> os.statvfs_result:
        found = list(was(path))
        found[1], found[4] = 4096, 37 * 256  # f_frsize, f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", short)
    text = f"{data} has 37 MiB free, too little to take mail, which is refused with 452; make room"
    assert about(cli, "disk") == [("wrong", text)]
    assert cli("check")[0] == 1
