"""Starts engine processes quickly: one process imports the engine once, and forks for each start.

A cold start is for the most part imports, more than a second of CPU, and a campaign of thousands of kills cannot
afford it each time. What is forked goes through the same ``forwarder serve`` as a cold start, in a session of its
own, with nothing open and nothing shared but the code. Cold starts are measured by tests of their own.

    python -m tests.crash.nursery    reads a start a line, {"arguments": […], "environ": {…}, "log": path};
                                     says {"started": pid}, and {"ended": pid, "status": number} when it did
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Child:
    """A process that the nursery started; looks like ``subprocess.Popen`` as far as it is needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, status: int) -> None:
        self.returncode = status
        self._ended.set()


class Nursery:
    """The harness's side: ``start`` returns a Child."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._children: dict[int, Child] = {}
        self._started: queue.Queue[Child] = queue.Queue()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> Child:
        order = {"arguments": list(arguments), "environ": dict(environ), "log": str(log)}
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._started.get(timeout=60)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed under us: the end
            for line in self._process.stdout:
                said = json.loads(line)
                if "started" in said:
                    child = self._children[said["started"]] = Child(said["started"])
                    self._started.put(child)
                else:
                    self._children.pop(said["ended"]).end(said["status"])


def _say(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _grow(order: Mapping[str, Any]) -> int:
    """In the child: become what was ordered; the exit status."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.argv = ["forwarder", *order["arguments"]]
    from forwarder.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _serve() -> None:
    import forwarder.cli
    import forwarder.commands.serving
    import forwarder.process  # noqa: F401 - imported for the children

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    waiting = b""
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _reap()
        if 0 not in readable:
            continue
        block = os.read(0, 65536)
        if not block:
            return
        *lines, waiting = (waiting + block).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                status = 70
                try:
                    status = _grow(json.loads(line))
                finally:
                    os._exit(status)
            _say(started=pid)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(ended=pid, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _serve()
