"""Several worker processes on one machine: starts them, replaces those that die, passes signals on.

The supervisor holds the node's lock, prepares the store once, and holds the ports that the workers share
(``reserved_ports``). It never touches mail.

The first workers are forked from it: loading modules is most of a start, so it is done once, and the workers share the
memory that the modules take. It forks before it has a thread or an event loop, which no fork survives (``forked`` says
what a child must not inherit). For the same reason the successor of a worker that died is a new interpreter, ``python
-m forwarder.worker``: it starts a second later, and has nothing of a process that was running for months. To keep a
process for nothing but forking would be one more that can die.

The death of a worker is logged, and a successor started: at once the first time, then after a pause that doubles up to
thirty seconds, and again and again while the machine has no room for another process. The successor frees the leases
of the dead at its start, and obeys the configuration that the others obey (``offers``). A worker that dies before it
ever served, while the engine starts, ends the engine: the cause is in its last line.

SIGTERM goes to every worker; a second SIGINT (Ctrl-C, by an impatient person) kills them, which loses nothing. SIGHUP
goes to every worker that serves, and to one that is starting as soon as it does; but not where the new configuration
names a port that another program listens on. The workers, who share their ports, would share that one too, and could
not tell the other program from a sibling.
"""

import asyncio
import gc
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import IO

import structlog
import uvloop

from forwarder.clock import utc_now
from forwarder.config import ConfigError, Settings, Source, parse, read
from forwarder.diagnostics import set_up
from forwarder.forked import Forked, fork
from forwarder.inbound.limits import SERVICES, clear_region, table_path
from forwarder.keyring import KeyringError
from forwarder.mail.ids import new_id
from forwarder.node import NodeError, NodeLock, Place, forget_ports, notify, write_ports
from forwarder.offers import Offers
from forwarder.ports import check_free, listenable
from forwarder.preparation import prepare
from forwarder.process import first_of, take_lock
from forwarder.process import serve_as_worker as serve_as_worker  # loaded here, shared with every worker
from forwarder.reserved_ports import ReservedPorts
from forwarder.worker import work

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
STEADY_AFTER = 60.0  # seconds of service after which a death counts as the first again
PATIENCE = 35.0  # seconds: a worker drains for at most 30

log = structlog.get_logger("supervisor")


class Worker:
    """One place among the workers, and the process that fills it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | Forked | None = None
        self.worker_id = ""
        self.offered: Source | None = None  # what the others had been told to read when this life began
        self.told: Source | None = None  # what it was given, or told to read since
        self.serves = False
        self.has_served = False  # in this life or an earlier one
        self.started_at = 0.0
        self._pause = 0.0

    def begin(self, offered: Source, given: Source) -> None:
        """Another life, under another id; ``offered`` is what the workers were last told to read."""
        self.offered = offered
        self.told = given
        self.worker_id = new_id(utc_now(), os.urandom(8))
        self.serves = False
        self.started_at = time.monotonic()

    def next_pause(self) -> float:
        """Seconds to wait before its next life."""
        if self.serves and time.monotonic() - self.started_at > STEADY_AFTER:
            self._pause = 0.0
        pause, self._pause = self._pause, min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        return pause


class Supervisor:
    """Keeps ``count`` workers running."""

    def __init__(self, settings: Settings, *, source: Source, config_path: str | None, count: int) -> None:
        self._settings = settings
        self._offers = Offers(source, settings)
        self._announced = False
        self._config_path = config_path
        self._workers = [Worker(index) for index in range(count)]
        self._environ: dict[str, str] = dict(os.environ)
        self._ends = asyncio.Event()
        self._failed = False
        self._ports = ReservedPorts()

    def fork_workers(self) -> None:
        """Reserve the ports and make the first workers; before there is a thread or an event loop."""
        try:
            self._environ |= self._ports.reserve(self._settings)
            for worker in self._workers:
                worker.begin(self._offers.latest, self._offers.in_force)
                worker.process = fork(partial(self._work, worker), let_go=self._let_go)
        except OSError as error:  # its elders leave when our ends of their pipes close, with us
            self._ports.free()
            raise NodeError(f"there is no room for another process: {error.strerror}") from error
        except NodeError:
            self._ports.free()
            raise

    def _work(self, worker: Worker, hears: int, says: int) -> int:
        """In the child."""
        os.environ.update(self._environ)
        place = Place(region=worker.index, regions=len(self._workers), worker_id=worker.worker_id)
        return work(self._offers.in_force, self._config_path, place, hears=hears, says=says)

    def _let_go(self) -> None:
        """In a child: what it must not hold."""
        self._ports.free()
        for elder in self._workers:
            if isinstance(elder.process, Forked):
                elder.process.let_go()

    async def run(self, lock: NodeLock) -> int:
        """Until told to end; the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ends.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        for worker in self._workers:
            if isinstance(worker.process, Forked):
                await worker.process.adopt()
        try:
            # The store may wait for a database that is away.
            if not await first_of(prepare(self._settings), self._ends):
                return 0
            self._environ.pop("FORWARDER_FAILPOINT", None)  # what a test arms dies once, not its successors
            keepers = {asyncio.create_task(self._keep(worker, lock)) for worker in self._workers}
            ending = asyncio.create_task(self._ends.wait())
            await asyncio.wait({ending, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ending, *keepers):
                task.cancel()
            for outcome in await asyncio.gather(*keepers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.error("a worker cannot be looked after any more; ending", exc_info=outcome)
                    self._failed = True
        finally:
            await self._end_workers()
            forget_ports(self._settings.data_dir)
            self._ports.free()
        return 1 if self._failed else 0

    def _interrupted(self) -> None:
        if self._ends.is_set():
            log.warning("interrupted twice: leaving at once; what is in flight is sent again later")
            self._failed = True
            for worker in self._workers:
                self._signal(worker, signal.SIGKILL)  # one that hangs would hear nothing else
        self._ends.set()

    async def _replace(self, worker: Worker, lock: NodeLock, *, dead: str) -> None:
        """A new process in the place of the worker ``dead``; OSError: there is no room for one now."""
        worker.begin(self._offers.latest, self._offers.in_force)
        in_force = self._offers.in_force
        with _in_memory(in_force.text) as given:
            arguments = [
                *("--index", str(worker.index), "--of", str(len(self._workers)), "--id", worker.worker_id),
                *(("--config", self._config_path) if self._config_path else ()),
                *("--successor-of", dead),
                *("--origin", in_force.origin, "--text-from", str(given.fileno())),
            ]
            worker.process = await asyncio.create_subprocess_exec(
                # -P and the path: what lies in the folder we were started from is no module of ours.
                *(sys.executable, "-P", "-m", "forwarder.worker", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(lock.descriptor, given.fileno()),
                # The others keep the lease that they began with: by a shorter one they would be taken for dead.
                env=self._environ
                | {
                    "FORWARDER_WORKERS__LEASE": milliseconds(self._settings.workers.lease),
                    "PYTHONPATH": os.pathsep.join(sys.path),
                },
                start_new_session=True,  # Ctrl-C reaches the supervisor, which drains them in order
            )

    async def _keep(self, worker: Worker, lock: NodeLock) -> None:
        """See one worker through its lives."""
        while True:
            process = worker.process
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(OSError, RuntimeError):  # it has ended already; RuntimeError: uvloop says it so
                process.stdin.write(b"go\n")
            async for line in process.stdout:
                word, _, digest = line.decode("ascii", "replace").strip().partition(" ")
                if word == "ready":
                    self._opened(worker, digest)
            status = await process.wait()
            if not worker.has_served:
                log.error("a worker could not start; ending", worker=worker.index, status=status)
                self._failed = True
                self._ends.set()
                return
            pause, dead = worker.next_pause(), worker.worker_id
            log.error(
                "a worker died; starting another",
                worker=worker.index,
                pid=process.pid,
                status=status,
                pause=pause,
            )
            try:
                self._forget_clients(worker)
            except OSError as error:
                # A full disk: its counts only make us refuse too early.
                log.warning("what a dead worker had counted stays", reason=error.strerror)
            while True:
                await asyncio.sleep(pause)
                try:
                    await self._replace(worker, lock, dead=dead)
                    break
                except OSError as error:
                    pause = worker.next_pause()
                    reason = error.strerror or str(error)
                    log.error(
                        "there is no room for a worker", worker=worker.index, reason=reason, pause=pause
                    )

    def _opened(self, worker: Worker, digest: str) -> None:
        """A worker has opened its ports: it has begun to serve, or has taken over a new configuration."""
        if worker.serves:
            self._obeyed(digest)
        else:
            self._served(worker)

    def _obeyed(self, digest: str) -> None:
        settings = self._offers.obeyed(digest)
        if settings is None:
            return
        set_up(settings)  # our own lines follow [logs] too
        self._write_ports()
        for worker in self._workers:  # who began after the others were told, but before they obeyed
            if worker.serves and self._is_behind(worker):
                self._tell(worker)

    def _served(self, worker: Worker) -> None:
        worker.serves = worker.has_served = True
        # It was starting when the others were told of another, or took over what they had been told of before.
        if worker.offered is not self._offers.latest or self._is_behind(worker):
            self._tell(worker)
        if not self._announced and all(other.serves for other in self._workers):
            self._announced = True
            self._write_ports()
            notify("READY=1")
            log.info("all workers serve", workers=len(self._workers))

    def _write_ports(self) -> None:
        if self._announced:  # who waits for the file waits until all serve
            write_ports(self._settings.data_dir, self._ports.places(self._offers.settings_in_force))

    def _forget_clients(self, worker: Worker) -> None:
        for service in SERVICES:
            for region in (worker.index * 2, worker.index * 2 + 1):
                path = table_path(self._settings.data_dir, service)
                clear_region(path, region=region, regions=len(self._workers) * 2)

    def _reload(self) -> None:
        """Pass SIGHUP on when the ports that are new can be had."""
        try:
            with suppress(ConfigError):  # every worker says it
                source = read(self._config_path, self._environ)
                settings = listenable(parse(source, self._environ))
                check_free(settings, ours=self._ports.addresses)
                self._ports.add(settings)
                self._offers.make(source, settings)
        except NodeError as error:
            log.error("the new configuration cannot be used; the old one stays", reason=str(error))
            return
        except Exception:  # nobody foresaw it: the workers have the same before them
            log.exception("the new configuration cannot be read")
        for worker in self._workers:
            if worker.serves:
                self._tell(worker)

    def _is_behind(self, worker: Worker) -> bool:
        """Whether the newest configuration that it heard of does not stand any more."""
        return worker.told is not None and not self._offers.stands(worker.told)

    def _tell(self, worker: Worker) -> None:
        worker.told = self._offers.latest
        self._signal(worker, signal.SIGHUP)

    def _signal(self, worker: Worker, number: signal.Signals) -> None:
        if worker.process is not None and worker.process.returncode is None:
            worker.process.send_signal(number)

    async def _end_workers(self) -> None:
        for worker in self._workers:
            self._signal(worker, signal.SIGTERM)
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


def milliseconds(duration: timedelta) -> str:
    """A duration as the configuration has it."""
    return f"{duration // timedelta(milliseconds=1)}ms"


def _in_memory(text: str) -> IO[bytes]:
    """A file to read the text from, on no disk: it may hold a password, and a disk may be full."""
    file = open(os.memfd_create("configuration"), "w+b")  # noqa: SIM115 - the caller closes it
    file.write(text.encode())
    file.seek(0)
    return file


def supervise(settings: Settings, *, source: Source, config_path: str | None, count: int) -> int:
    """Serve with ``count`` worker processes; the exit status."""
    try:
        lock = take_lock(settings)
        try:
            opening = listenable(settings)
            check_free(opening)
            supervisor = Supervisor(opening, source=source, config_path=config_path, count=count)
            supervisor.fork_workers()
            gc.enable()  # what was loaded is frozen: little is left to look at
            return uvloop.run(supervisor.run(lock))
        finally:
            lock.release()
    except (KeyringError, NodeError) as error:
        log.error("the engine cannot start", reason=str(error))
        return 1
