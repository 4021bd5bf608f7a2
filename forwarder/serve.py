"""The roof: builds every room from Settings, starts them in order, stops them in the reverse.

Order of start: keys, store, worker row, directory, queue, outbound, listeners, API. Mail is taken only when all that
can deliver it stands. Order of the stop, within ``GRACE``: listeners stop accepting and finish what they are reading,
while the dispatcher finishes what is on the wire; what is left is given back to the store; the worker says farewell,
which frees its leases at once.

An ``Engine`` is all that one process needs to serve: no state of it is global, so a process may run two at a time,
as it does while it takes over a new configuration. ``running`` is the same for a test:

    async with running(settings) as engine:
        engine.ports["mx"]

Fails with ``NodeError`` (``StartError`` is one) or ``KeyringError``; their texts say what to do. While the store does
not answer, the start waits for it.
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from api.health import Health
from forwarder import allocator
from forwarder.api_face import ApiFace
from forwarder.clock import utc_now
from forwarder.config import HostPort, Settings
from forwarder.domain_keys import DomainKeys
from forwarder.failpoint import reach
from forwarder.housekeeping import chores_of, keep_house
from forwarder.inbound import mx, submission
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.screening import Screening
from forwarder.inbound.server import Server
from forwarder.keyring import Keyring, open_keyring
from forwarder.mail.ids import IdSource
from forwarder.mail.postmaster import Postmaster
from forwarder.mail.srs import Srs
from forwarder.net.dns import Resolver
from forwarder.net.http import GuardedClient
from forwarder.net.registered import registered_domain
from forwarder.net.tls import ServerTls, TlsFilesError
from forwarder.node import NodeError, NodeLock, Place, forget_ports, node_id, shared_tally, write_ports
from forwarder.outbound.addressees import Addressees
from forwarder.outbound.bounce import Bounces
from forwarder.outbound.delivery import Courier
from forwarder.outbound.dispatcher import Dispatcher
from forwarder.outbound.policies import Policies
from forwarder.outbound.pool import Pool
from forwarder.outbound.route import Router
from forwarder.outbound.signing import Signing
from forwarder.outbound.webhook import Webhooks
from forwarder.ports import listenable
from forwarder.preparation import prepare
from forwarder.pulse import Pulse
from forwarder.store import workers
from forwarder.store.directory import Directory
from forwarder.store.engine import Database
from forwarder.store.journal import Journal
from forwarder.store.queue import IF_WORKER_DIES, Queue
from forwarder.store.trouble import StoreUnavailable
from forwarder.store.vault import Vault
from forwarder.watchdog import Watchdog

GRACE = timedelta(seconds=30)
MAIL_GRACE = timedelta(seconds=24)  # of GRACE: the rest is for giving back, the API and the farewell
PROBE_EVERY = timedelta(seconds=1)
PROBE_PATIENCE = timedelta(seconds=3)

log = structlog.get_logger("serve")


class StartError(NodeError):
    """The engine cannot start; the text is for the person who runs it."""


class Engine:
    """Everything one process serves mail with."""

    def __init__(
        self,
        settings: Settings,
        place: Place | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        keyring: Keyring | None = None,
    ) -> None:
        """``keyring``: opened already, beside something else; loading an RSA key takes 40 ms."""
        self.settings = settings
        self.ports: dict[str, list[tuple[str, int]]] = {}
        self.watchdog = Watchdog()
        self._place = place or Place()
        self._clock = clock
        self.keyring = keyring
        self._ids = IdSource(clock=clock, entropy=os.urandom)
        self.worker_id = self._place.worker_id or self._ids()
        self._drains: list[Callable[[timedelta], Awaitable[None]]] = []  # of what has mail in hand
        self._closing = AsyncExitStack()  # the end of what was begun, the newest first
        self._servers: list[Server] = []
        self._tls: ServerTls | None = None

    async def start(self, *, grace: Callable[[], timedelta] = lambda: GRACE) -> None:
        """Open, bind and begin everything, in order; where something fails, what was begun ends, and it is raised.

        So it does when cancelled. Mail may be under way by then: it has the ``grace`` of that moment to end in order.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(grace=grace())
            raise

    async def _start(self) -> None:
        settings = self.settings
        keyring = self.keyring
        if keyring is None:
            keyring = self.keyring = await asyncio.to_thread(open_keyring, settings)
        reach("start.after-keys")
        self._tally = await asyncio.to_thread(shared_tally, settings.data_dir, self._place)
        database = settings.database
        self.database = await Database.open(database.url, pool_size=database.pool_size, tally=self._tally)
        self._closing.push_async_callback(self.database.close)
        self._pulse = Pulse(
            self.database,
            self.worker_id,
            lease=settings.workers.lease,
            clock=self._clock,
            register=self._register,
            lost=lambda: self.dispatcher.forget(),
        )
        await self._pulse.begin()
        self._build(keyring)
        self._keep()
        for server in self._servers:
            await _listen(server)
            self.ports[server.name] = list(server.addresses)
        # The first loads the public suffix list.
        await asyncio.to_thread(registered_domain, settings.hostname)
        await self._open_api()
        shown = {name: ", ".join(str(HostPort(*at)) for at in found) for name, found in self.ports.items()}
        log.info("the engine serves", worker=self.worker_id, **shown)

    async def _register(self, now: datetime) -> None:
        """This process's row, and the leases of the one it replaces made free."""
        if self._place.successor_of:
            await workers.farewell(self.database, self._place.successor_of, now)
        await workers.register(
            self.database,
            worker_id=self.worker_id,
            node=node_id(self.settings.data_dir),
            hostname=socket.gethostname(),
            pid=os.getpid(),
            now=now,
            alive_for=self.settings.workers.lease,
        )

    def _build(self, keyring: Keyring) -> None:
        settings, clock, ids, database = self.settings, self._clock, self._ids, self.database
        vault = Vault(keyring.store_key)
        self.directory = Directory(
            database,
            require_confirmed=settings.require_confirmed_destinations,
            postmaster=Postmaster.of(settings.hostname, settings.postmaster),
        )
        self.journal = Journal(database, ids=ids, clock=clock)
        self.queue = Queue(
            database,
            worker_id=self.worker_id,
            local_name=settings.hostname,
            ids=ids,
            clock=clock,
            alive=self._pulse.alive,
            if_worker_dies=min(IF_WORKER_DIES, settings.retry.delays[-1]),
        )
        dns = settings.dns
        self.resolver = Resolver(
            dns.nameservers, clock=clock, deadline=dns.timeout, cache_size=dns.cache, tally=self._tally
        )
        self._api = ApiFace(
            settings,
            database,
            self.resolver,
            vault=vault,
            queue=self.queue,
            ids=ids,
            clock=clock,
            health=self.health,
            tally=self._tally,
        )
        srs = Srs(keyring.srs_secrets, domain=settings.srs.domain, max_age_days=settings.srs.max_age_days)
        self.dispatcher = self._outbound(keyring, srs, DomainKeys(database, vault))
        self._drains.append(self.dispatcher.drain)
        self._closing.push_async_callback(self._farewell)
        if settings.tls.configured:
            try:
                self._tls = ServerTls(Path(settings.tls.certificate), Path(settings.tls.key))
                self._tls.refresh()  # which says so if it has ended
            except TlsFilesError as error:
                raise StartError(f"{error}; [tls] names PEM files that this user can read") from error
        rooms = InboundRooms(
            settings=settings,
            database=database,
            directory=self.directory,
            queue=self.queue,
            journal=self.journal,
            ids=ids,
            srs=srs,
            intake=self.dispatcher,
            trace_secrets=keyring.srs_secrets,
            resolver=self.resolver,
            tls=self._tls,
            screening=self._screening(),
            clock=clock,
            region=self._place.region,
            regions=self._place.regions,
            tally=self._tally,
        )
        if settings.mx.listen:
            self._servers.append(mx.build_server(rooms))
        self._servers.extend(submission.build_servers(rooms))
        self._drains.extend(server.drain for server in self._servers)

    def _screening(self) -> Screening:
        # Also with every check switched off: it takes out forged results in our name, which sealing would trust.
        wanted = self.settings.screening
        return Screening(
            self.resolver,
            authserv_id=self.settings.hostname,
            clock=self._clock,
            spf=wanted.spf,
            dkim=wanted.dkim,
            dmarc=wanted.dmarc,
            dmarc_reject=wanted.dmarc_reject,
            arc=self.settings.arc.enabled,
            own_names=self.settings.own_names,
        )

    def _outbound(self, keyring: Keyring, srs: Srs, keys: DomainKeys) -> Dispatcher:
        settings, clock, hostname = self.settings, self._clock, self.settings.hostname
        signing = Signing(
            service=keyring.service,
            signers_for=keys.signers,
            arc=settings.arc.enabled,
            authserv_id=hostname,
            threads=max(1, len(os.sched_getaffinity(0)) // max(1, self._place.regions // 2)),
            clock=clock,
            own_domains=(settings.dkim.domain, settings.srs.domain),
            tally=self._tally,
        )
        self._closing.callback(signing.close)
        pool = Pool(settings.outbound, hello=hostname)
        self._closing.push_async_callback(pool.close)
        client = GuardedClient(self.resolver, allow_private=settings.outbound.allow_private_destinations)
        self._closing.push_async_callback(client.close)
        policies = Policies(self.resolver, client, clock=clock)
        self._closing.push_async_callback(policies.close)
        courier = Courier(
            pool=pool,
            srs=srs,
            signing=signing,
            webhooks=Webhooks(
                client=client,
                key_of=keys.webhook_key,
                hostname=hostname,
                clock=clock,
                timeout=settings.outbound.webhook_timeout,
            ),
            trace_secret=keyring.srs_secrets[0],
            clock=clock,
            tally=self._tally,
        )
        return Dispatcher(
            queue=self.queue,
            courier=courier,
            router=Router(self.resolver, settings, policies=policies, hosted=self.directory.hosts),
            bounces=Bounces(
                hostname=hostname,
                sender_domain=settings.dkim.domain,
                disclose_destination=settings.outbound.disclose_destination,
                addressees=Addressees(srs=srs, resolve=self.directory.resolve_for, clock=clock),
                ids=self._ids,
                clock=clock,
            ),
            settings=settings,
            clock=clock,
            jitter=random.random,
            sure=self._pulse.sure,
            tally=self._tally,
        )

    def _keep(self) -> None:
        watch = self.watchdog
        self._closing.push_async_callback(watch.stop)
        watch.probe("store", self.database.ready, every=PROBE_EVERY, patience=PROBE_PATIENCE)
        watch.keep("heartbeat", self._pulse.run)
        watch.keep("directory", self.directory.follow)
        watch.keep("queue", self.queue.run)
        watch.keep("memory", allocator.tidy)
        watch.keep("dispatcher", self.dispatcher.run)
        chores = chores_of(
            self.settings, self.database, self.journal, self._api.recheck_domains, self._pulse.steady
        )
        for chore in chores:
            turns = partial(keep_house, chore, self.database, owner=self.worker_id, clock=self._clock)
            watch.keep(f"chore {chore.name}", turns)

    async def _open_api(self) -> None:
        """Behind the listeners of mail, which need not wait for it."""
        self._closing.push_async_callback(self._api.stop)
        await _listen(self._api)
        if self._api.addresses:
            self.ports["api"] = list(self._api.addresses)

    def health(self) -> Health:
        """What ``/health`` answers."""
        tasks = {**self.watchdog.tasks(), **self.dispatcher.tasks(), **self._api.tasks}
        stopped = {name for name, runs in tasks.items() if not runs}
        return Health(troubles=stopped.union(self.watchdog.troubles()), tasks=tasks)

    def refresh_certificates(self) -> None:
        """Load the certificate's files again if they changed or were bad; a bad pair leaves the old one in use."""
        if self._tls is not None:
            self._tls.refresh(again=True)

    async def stop(self, *, grace: timedelta = GRACE) -> None:
        """Drain and close; bounded by ``grace`` and a few seconds."""
        self.watchdog.expect_ends()
        for server in self._servers:
            server.stop_accepting()
        mail_grace = min(grace, MAIL_GRACE)
        drains = [drain(mail_grace) for drain in self._drains]
        for failed in await asyncio.gather(*drains, return_exceptions=True):
            if isinstance(failed, Exception):
                log.error("a drain failed", exc_info=failed)
        await self._closing.aclose()

    async def _farewell(self) -> None:
        try:
            async with asyncio.timeout(3):
                await self.journal.flush()
                await self.queue.withdraw_doubtful(time.monotonic())
                await workers.farewell(self.database, self.worker_id, self._clock())
        except (TimeoutError, StoreUnavailable) as error:
            log.warning("left without a farewell; others take over in time", reason=repr(error))


async def _listen(server: Server | ApiFace) -> None:
    try:
        await server.start()
    except OSError as error:
        raise StartError(error.strerror or str(error)) from error


@asynccontextmanager
async def running(
    settings: Settings, *, clock: Callable[[], datetime] = utc_now, grace: timedelta = timedelta(seconds=5)
) -> AsyncIterator[Engine]:
    """A whole engine in this process and loop, for as long as the block lasts."""
    settings = listenable(settings)
    lock = NodeLock.take(settings.data_dir, patience=0.5)
    try:
        await prepare(settings)
        engine = Engine(settings, clock=clock)
        await engine.start()
        write_ports(settings.data_dir, engine.ports)
        try:
            yield engine
        finally:
            await engine.stop(grace=grace)
            forget_ports(settings.data_dir)
    finally:
        lock.release()
