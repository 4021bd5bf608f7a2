"""Several worker processes on one machine: starts them, replaces one that dies, passes signals on.

The workers share the ports (SO_REUSEPORT). The supervisor holds the node's lock, prepares the store once, and binds
every port without listening, so that a port that cannot be had is known before any worker runs and port 0 means the
same port in all of them. A worker that dies is said so and replaced, at once the first time and then with a pause that
doubles up to thirty seconds; its successor frees the leases of the dead at its start. A worker that dies before it ever
served, while the engine starts, ends the engine: the cause is in its last line.

SIGTERM and SIGHUP go to every worker. The supervisor never touches mail.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog
import uvloop

from forwarder.config import HostPort, Settings
from forwarder.inbound.limits import clear_region, table_path
from forwarder.mail.ids import new_id
from forwarder.node import NodeError, NodeLock, forget_ports, notify, write_ports
from forwarder.ports import listenable, listening_socket, refusal

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0  # seconds of service after which a death counts as the first again
PATIENCE = 35.0  # seconds: a worker drains for at most 30

log = structlog.get_logger("supervisor")


class Worker:
    """One place among the workers, and the process that fills it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | None = None
        self.worker_id = ""
        self.served = False
        self.pause = 0.0
        self.started_at = 0.0


class Supervisor:
    """Keeps ``count`` workers running."""

    def __init__(self, settings: Settings, *, config_path: str | None, count: int) -> None:
        self._settings = settings
        self._config_path = config_path
        self._workers = [Worker(index) for index in range(count)]
        self._environ: dict[str, str] = dict(os.environ)
        self._ends = asyncio.Event()
        self._failed = False

    async def run(self, lock: NodeLock) -> int:
        """Until told to end; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ends.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        reserved, ports = self._reserve()
        try:
            # They start while we prepare, and wait for the word: importing is most of a start.
            for worker in self._workers:
                await self._spawn(worker, lock, successor_of="")
            await _prepare(self._settings)
            self._environ.pop("FORWARDER_FAILPOINT", None)  # what a test arms dies once, not its successors
            keepers = [asyncio.create_task(self._keep(worker, lock, ports)) for worker in self._workers]
            await self._ends.wait()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)
        finally:
            await self._end_workers()
            forget_ports(self._settings.data_dir)
            for opened in reserved:
                opened.close()
        return 1 if self._failed else 0

    def _reserve(self) -> tuple[list[socket.socket], dict[str, list[tuple[str, int]]]]:
        """Bind every listener's port; the environment tells the workers what port 0 became."""
        settings = self._settings
        wanted: dict[str, tuple[str, tuple[HostPort, ...]]] = {
            "mx": ("FORWARDER_MX__LISTEN", settings.mx.listen),
            "api": ("FORWARDER_API__LISTEN", (settings.api.listen,) if settings.api.listen else ()),
        }
        if settings.tls.configured:
            wanted["submission"] = ("FORWARDER_SUBMISSION__LISTEN", settings.submission.listen)
            wanted["submission-tls"] = ("FORWARDER_SUBMISSION__LISTEN_TLS", settings.submission.listen_tls)
        reserved: list[socket.socket] = []
        ports: dict[str, list[tuple[str, int]]] = {}
        for name, (variable, listeners) in wanted.items():
            for listener in listeners:
                try:
                    reserved.append(listening_socket(listener))
                except OSError as error:
                    raise NodeError(f"cannot listen on {listener}: {refusal(error)}") from error
                ports.setdefault(name, []).append(reserved[-1].getsockname()[:2])
            if any(listener.port == 0 for listener in listeners):
                self._environ[variable] = ",".join(str(HostPort(*at)) for at in ports[name])
        return reserved, ports

    async def _spawn(self, worker: Worker, lock: NodeLock, *, successor_of: str) -> None:
        worker.worker_id = new_id(datetime.now(UTC), os.urandom(8))
        worker.served = False
        worker.started_at = time.monotonic()
        arguments = [
            *("--index", str(worker.index), "--of", str(len(self._workers)), "--id", worker.worker_id),
            *(("--config", self._config_path) if self._config_path else ()),
            *(("--successor-of", successor_of) if successor_of else ()),
        ]
        worker.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "forwarder.worker", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(lock.descriptor,),
            env=self._environ,
            start_new_session=True,  # Ctrl-C reaches the supervisor, which drains them in order
        )

    async def _keep(self, worker: Worker, lock: NodeLock, ports: Mapping[str, list[tuple[str, int]]]) -> None:
        """See one worker through its lives."""
        first = True
        while True:
            process = worker.process
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"go\n")
            worker.served = (await process.stdout.readline()).strip() == b"ready"
            if worker.served and first:
                first = False
                if all(other.served for other in self._workers):
                    write_ports(self._settings.data_dir, ports)
                    notify("READY=1")
                    log.info("all workers serve", workers=len(self._workers))
            status = await process.wait()
            if first:
                log.error("a worker could not start; ending", worker=worker.index, status=status)
                self._failed = True
                self._ends.set()
                return
            if time.monotonic() - worker.started_at > STEADY_AFTER:
                worker.pause = 0.0
            log.error(
                "a worker died; starting another",
                worker=worker.index,
                pid=process.pid,
                status=status,
                pause=worker.pause,
            )
            for service in ("mx", "submission"):
                for region in (worker.index * 2, worker.index * 2 + 1):
                    path = table_path(self._settings.data_dir, service)
                    clear_region(path, region=region, regions=len(self._workers) * 2)
            await asyncio.sleep(worker.pause)
            worker.pause = min(max(worker.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            await self._spawn(worker, lock, successor_of=worker.worker_id)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.send_signal(number)

    async def _end_workers(self) -> None:
        self._pass_on(signal.SIGTERM)
        living = [w.process for w in self._workers if w.process is not None and w.process.returncode is None]
        if not living:
            return
        waits = {asyncio.create_task(process.wait()) for process in living}
        _, late = await asyncio.wait(waits, timeout=PATIENCE)
        if late:
            log.error("a worker did not end in time; killing it")
            for process in living:
                if process.returncode is None:
                    process.kill()
            await asyncio.wait(waits)


async def _prepare(settings: Settings) -> None:
    from forwarder.preparation import prepare  # the store's modules, imported while the workers import theirs

    await prepare(settings)


def supervise(settings: Settings, *, config_path: str | None, count: int) -> int:
    """Serve with ``count`` worker processes; the exit status."""

    async def main() -> int:
        def waiting() -> None:
            log.warning("data_dir is in use; waiting for it", data_dir=str(settings.data_dir))

        lock = await asyncio.to_thread(NodeLock.take, settings.data_dir, waiting=waiting)
        try:
            return await Supervisor(listenable(settings), config_path=config_path, count=count).run(lock)
        finally:
            lock.release()

    try:
        return uvloop.run(main())
    except NodeError as error:
        log.error("the engine cannot start", reason=str(error))
        return 1
