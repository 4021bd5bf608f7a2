"""Starts, kills, stops and drains engine processes, as an operator or the kernel would."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.crash.nursery import Child, Nursery
from tests.free_ports import free_port

PATIENCE = 30.0


class Node:
    """One ``forwarder serve`` with its own data folder; its ports stay the same over restarts."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str,
        sink_port: int,
        processes: int = 1,
        name: str = "mx1.crash.test",
        nursery: Nursery | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.name = name  # as it calls itself at EHLO
        self._nursery = nursery  # None: every start is a cold one
        self.port = free_port()
        self.api_port = free_port()
        self.process: subprocess.Popen[bytes] | Child | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").touch()
        self.environ = {
            "HOSTNAME": name,
            "DATA_DIR": str(folder / "data"),
            "DATABASE__URL": database_url or f"sqlite:///{folder}/data/forwarder.db",
            "MX__LISTEN": json.dumps([f"127.0.0.1:{self.port}"]),
            "MX__CONNECTIONS_PER_CLIENT": "0",
            "MX__CONNECTIONS_PER_MINUTE": "0",
            "SUBMISSION__LISTEN": "[]",
            "SUBMISSION__LISTEN_TLS": "[]",
            "API__LISTEN": f"127.0.0.1:{self.api_port}",
            "OUTBOUND__SMARTHOST": f"127.0.0.1:{sink_port}",
            "OUTBOUND__ALLOW_PRIVATE_DESTINATIONS": "true",
            "RETRY__DELAYS": '["1s", "1s", "2s"]',
            "SRS__DOMAIN": "srs.crash.test",
            "DKIM__ALGORITHMS": '["ed25519"]',
            "ARC__ENABLED": "false",
            "SCREENING__SPF": "false",
            "SCREENING__DKIM": "false",
            "SCREENING__DMARC": "false",
            "WORKERS__PROCESSES": str(processes),
            **(more or {}),
        }

    def command(self, *words: str) -> object:
        """One command with ``--json``; RuntimeError with its words when it fails."""
        done = subprocess.run(
            self._line(*words, "--json"),
            env=self._environment({}),
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"forwarder {' '.join(words)} failed: {done.stderr.decode()}{done.stdout.decode()}"
            )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def populate(self) -> None:
        """The one domain of the campaign, each of its addresses leading to the same local part at the sink."""
        self.command("migrate")
        self.command("account", "create", "owner@sink.test")
        self.command("domain", "add", "crash.test", "--account", "owner@sink.test")
        self.command("alias", "add", "crash.test", "(ok|soft|hard|drop|slow)-([0-9]+)", "$1-$2@sink.test")

    def start(
        self, extra: Mapping[str, str] | None = None, *, wait: bool = True, under: Sequence[str] = ()
    ) -> float:
        """Start; with ``wait``, return the seconds until it greets. A process that dies at once is not waited for.

        ``under`` is a command that runs the engine, such as a tracer: then the process is the tracer's.
        """
        begin = time.monotonic()
        words = ["serve", "--config", str(self.folder / "config.toml")]
        environ = self._environment(extra or {})
        if self._nursery is not None and not under:
            self.process = self._nursery.start(words, environ, self.folder / "serve.log")
        else:
            with (self.folder / "serve.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [*under, sys.executable, "-m", "forwarder", *words],
                    env=environ,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        if wait and not self.wait_until_ready():
            raise RuntimeError(f"the engine does not greet; see {self.folder / 'serve.log'}")
        return time.monotonic() - begin

    def wait_until_ready(self, seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive():
                return False
            with (
                contextlib.suppress(OSError),  # not yet
                socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection,
            ):
                if connection.recv(3) == b"220":
                    return True
            time.sleep(0.02)
        return False

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, *, supervisor_only: bool = False) -> None:
        """SIGKILL to every process at once, as a power cut does; ``supervisor_only`` leaves its workers, which drain.

        Workers have sessions of their own, so that the signal to the first one's group does not reach them.
        """
        if self.process is None:
            return
        workers = [] if supervisor_only else self._held_children()
        with contextlib.suppress(ProcessLookupError):  # it may have died of its own failpoint
            os.killpg(self.process.pid, signal.SIGKILL)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGKILL)
        self.process.wait()
        for worker in workers:
            select.select([worker], [], [])  # readable once it has ended
            os.close(worker)

    def _children(self) -> list[int]:
        assert self.process is not None
        try:
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:  # it has ended
            return []
        return [int(pid) for pid in found.split()]

    def _held_children(self) -> list[int]:
        """A descriptor of each: its id may be another's once it has ended."""
        held = []
        for pid in self._children():
            with contextlib.suppress(ProcessLookupError):
                held.append(os.pidfd_open(pid))
        return held

    def signal(self, number: int) -> None:
        if self.process is not None and self.alive():
            os.killpg(self.process.pid, number)

    def terminate(self) -> int:
        """SIGTERM to the first process; its exit status once it has drained."""
        if self.process is None:
            return 0
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def wait_for_death(self, seconds: float) -> bool:
        """True when the process ended in time: an armed failpoint was reached."""
        try:
            assert self.process is not None
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        self.kill()  # what is left of its group
        return True

    def wait_for_workers(self, seconds: float = PATIENCE) -> list[int]:
        """The process ids of the supervisor's workers, once all have served and there are as many as it keeps."""
        wanted = int(self.environ["WORKERS__PROCESSES"])
        deadline = time.monotonic() + seconds
        while True:
            found = self._children()
            if len(found) == wanted and (self.folder / "data" / "run" / "ports.json").exists():
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} workers of {wanted} run")
            time.sleep(0.05)

    def health(self, which: str = "ready") -> int:
        """The status of /health/ready or /health/live; 0 for no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=12)
        try:
            connection.request("GET", f"/health/{which}")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def statuses(self) -> set[str]:
        """The status of every event in the log."""
        listed = self.command("logs", "--domain", "crash.test")
        return set(re.findall(r'"status": *"([A-Z-]+)"', json.dumps(listed)))

    def queued(self) -> int:
        listed = self.command("queue", "list")
        assert isinstance(listed, dict)
        return len(listed["deliveries"])

    def _line(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "forwarder", *words, "--config", str(self.folder / "config.toml")]

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        forms = {f"FORWARDER_{key}": value for key, value in self.environ.items()}
        return {**os.environ, **forms, **extra}
