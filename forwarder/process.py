"""The life of one serving process: its engine, its signals, a new configuration in place of the old one.

SIGTERM and SIGINT drain and end with exit status 0; a second SIGINT (Ctrl-C, by an impatient person) ends at once.
SIGHUP loads certificates, keys and the configuration again: what is wrong with a new configuration, a port that another
program listens on included, is said, and the old one stays. A changed configuration, or keys that changed, are taken
over without a gap: a second engine opens the same ports beside the first, which then drains.

A worker of a supervisor reads a pipe: ``go`` starts it, the end of the stream means that the supervisor is gone, and
then it drains in a few seconds, so that the next supervisor finds the door open. It answers ``ready`` on another, with
the digest of the configuration that it obeys from then on.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from forwarder import allocator
from forwarder.config import ConfigError, HostPort, Settings
from forwarder.descriptors import affordable
from forwarder.diagnostics import set_up
from forwarder.keyring import Keyring, KeyringError, keys_at_hand, open_keyring
from forwarder.node import NodeError, NodeLock, Place, forget_ports, notify, write_ports
from forwarder.ports import check_free, listenable
from forwarder.preparation import prepare
from forwarder.schema import wait_for_store
from forwarder.serve import GRACE, Engine
from forwarder.store.trouble import StoreUnavailable

ORPHAN_GRACE = timedelta(seconds=3)
# New objects, and turns of each generation: a message makes a few hundred, no cycles.
COLLECT_AFTER = (20_000, 10, 10)

log = structlog.get_logger("process")


async def first_of(work: Coroutine[Any, Any, object], ends: asyncio.Event) -> bool:
    """Whether ``work`` ended before the event came; else it is cancelled. Raises what ``work`` raises."""
    working, ending = asyncio.create_task(work), asyncio.create_task(ends.wait())
    await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if working.done():
        await working
        return True
    working.cancel()
    await asyncio.wait({working})
    return False


class Process:
    """One process that serves."""

    def __init__(self, load: Callable[[], Settings], place: Place) -> None:
        self._load = load
        self._place = place
        self._generation = 0  # of the next engine; what does not come to serve has none
        self._ends = asyncio.Event()
        self._reloads = asyncio.Event()
        self._grace = GRACE
        self._draining: asyncio.Task[None] | None = None

    async def run(
        self, settings: Settings, started: Callable[[Engine], None], keyring: Keyring | None
    ) -> None:
        """Serve until told to end; ``started`` is called whenever an engine has opened its ports."""
        place = self._next_place()
        begun: list[Engine] = []

        async def begin() -> None:
            engine = Engine(settings, place, keyring=keyring)
            await engine.start(grace=lambda: self._grace)
            begun.append(engine)

        if not await self.unless_ended(wait_for_store(begin)) and not begun:
            return
        (engine,) = begun
        self._generation += 1
        # What was imported and built lives as long as the process: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()
        started(engine)
        while not self._ends.is_set():
            waits = {asyncio.create_task(event.wait()) for event in (self._ends, self._reloads)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if self._reloads.is_set() and not self._ends.is_set():
                self._reloads.clear()
                engine = await self._reload(engine, started)
        log.info("the engine drains")
        stopping = [asyncio.create_task(engine.stop(grace=self._grace))]
        if self._draining is not None:  # an older one, which began to earlier
            stopping.append(self._draining)
        await asyncio.gather(*stopping)
        log.info("the engine has ended")

    def end(self, grace: timedelta = GRACE) -> None:
        """Drain within ``grace`` and return from ``run``."""
        self._grace = grace
        self._ends.set()

    async def unless_ended(self, work: Coroutine[Any, Any, object]) -> bool:
        """Wait for ``work``; False when told to end meanwhile."""
        return await first_of(work, self._ends)

    def listen_to_signals(self) -> None:
        """From now on; what comes before ``run`` serves is done as soon as it does."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.end)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.set)

    def _interrupted(self) -> None:
        if self._ends.is_set():
            log.warning("interrupted twice: leaving at once; what is in flight is sent again later")
            os._exit(1)
        self.end()

    def _next_place(self) -> Place:
        """Two regions of the client table a process: the old engine counts in one while the new one starts."""
        place = self._place
        if self._generation:
            place = replace(place, worker_id="", successor_of="")
        return replace(place, region=place.region * 2 + self._generation % 2, regions=place.regions * 2)

    async def _reload(self, engine: Engine, started: Callable[[Engine], None]) -> Engine:
        """The engine that serves from now on: another with what has changed, or the same, and then it is said why."""
        engine.refresh_certificates()
        settings = self._wanted(engine.settings)
        if settings is None:
            return engine
        try:
            keyring = await asyncio.to_thread(open_keyring, settings)
        except KeyringError as error:
            log.error(
                "the keys cannot be used; the old configuration and the old ones stay", reason=str(error)
            )
            return engine
        if settings == engine.settings and engine.keyring is not None and keyring.same_as(engine.keyring):
            log.info("the configuration is unchanged")
            return engine
        if self._draining is not None and not await self.unless_ended(asyncio.wait({self._draining})):
            return engine
        successor = Engine(settings, self._next_place(), keyring=keyring)
        try:
            # Of several, the supervisor has asked: here, who comes second would find its sibling.
            if self._place.regions == 1:
                ours = [HostPort(*at) for found in engine.ports.values() for at in found]
                check_free(settings, ours=ours)
            await successor.start()
        except (KeyringError, NodeError, OSError, StoreUnavailable) as error:
            log.error("the new configuration cannot be used; the old one stays", reason=str(error))
            return engine
        except Exception:  # nobody foresaw it: no reason to stop serving
            log.exception("the new configuration cannot be used; the old one stays")
            return engine
        self._generation += 1
        set_up(settings, **self._place.shown())
        started(successor)
        log.info("the new configuration is in force")
        self._draining = asyncio.create_task(engine.stop())
        return successor

    def _wanted(self, now: Settings) -> Settings | None:
        """The configuration as it is written by now, with what cannot change meanwhile; None: it is said why not."""
        try:
            settings = affordable(listenable(self._load()))
        except ConfigError as error:
            log.error("the new configuration has mistakes; the old one stays", problems=str(error))
            return None
        except Exception:  # nobody foresaw it: no reason to stop serving
            log.exception("the new configuration cannot be read; the old one stays")
            return None
        if (settings.data_dir, settings.database.url) != (now.data_dir, now.database.url):
            log.error(
                "data_dir and database.url cannot change while running; the old configuration stays until a restart"
            )
            return None
        if settings.workers != now.workers:
            # Of two engines side by side with two leases, one would take the other for dead.
            log.warning("[workers] is taken over at the next start; what it was stays")
            settings = settings.model_copy(update={"workers": now.workers})
        return settings


def serve_alone(load: Callable[[], Settings], settings: Settings) -> int:
    """The whole engine in this one process; the exit status."""

    async def main() -> None:
        process = Process(load, Place())
        lock = await asyncio.to_thread(take_lock, settings)
        process.listen_to_signals()  # not while it waits for the lock, in a thread that nobody could stop
        try:
            keyring = asyncio.create_task(asyncio.to_thread(keys_at_hand, settings))  # needs no store
            if not await process.unless_ended(prepare(settings)):
                return

            def started(engine: Engine) -> None:
                write_ports(engine.settings.data_dir, engine.ports)
                notify("READY=1")

            opening = affordable(listenable(settings))
            check_free(opening)
            await process.run(opening, started, await keyring)
            forget_ports(settings.data_dir)
        finally:
            lock.release()

    return _run_to_its_end(main)


def serve_as_worker(
    load: Callable[[], Settings],
    settings: Settings,
    place: Place,
    *,
    hears: int,
    says: int,
    taken: Callable[[], str],
) -> int:
    """One worker of a supervisor, which holds the lock and has prepared the node.

    ``taken`` names the configuration that was loaded last; the supervisor is told of it when it is in force.
    """

    async def main() -> None:
        process = Process(load, place)
        process.listen_to_signals()
        words = await _stream(hears)
        keyring = await asyncio.to_thread(keys_at_hand, settings)  # while the supervisor prepares the store
        told = asyncio.create_task(words.readline())
        if not await process.unless_ended(asyncio.wait_for(told, None)) or told.result().strip() != b"go":
            return
        orphaned = asyncio.create_task(_when_orphaned(words, process))

        def started(_engine: Engine) -> None:
            with suppress(BrokenPipeError):  # the supervisor is gone; the other pipe says it too
                os.write(says, f"ready {taken()}\n".encode())

        await process.run(affordable(listenable(settings)), started, keyring)
        orphaned.cancel()

    return _run_to_its_end(main)


def take_lock(settings: Settings) -> NodeLock:
    """The lock of the node, waited for if need be, which is said; NodeError. Blocking."""

    def waiting() -> None:
        log.warning("data_dir is in use; waiting for it", data_dir=str(settings.data_dir))

    return NodeLock.take(settings.data_dir, waiting=waiting)


async def _stream(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader


async def _when_orphaned(words: asyncio.StreamReader, process: Process) -> None:
    while await words.readline():
        continue
    log.warning("the supervisor is gone; draining")
    process.end(ORPHAN_GRACE)


def _run_to_its_end(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a process's whole life in an event loop of its own; the exit status."""
    import uvloop

    allocator.set_up()
    try:
        uvloop.run(main())
    except (KeyringError, NodeError) as error:
        log.error("the engine cannot start", reason=str(error))
        return 1
    return 0
