"""The outbound side built as the roof builds it: real store, real sessions, a sink and a DNS server as peers."""

import asyncio
import itertools
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import func, select

from forwarder.config import Settings
from forwarder.mail.address import Path, parse_address
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.ids import IdSource
from forwarder.mail.rules import Expansion, Trouble
from forwarder.mail.seal import Signer
from forwarder.mail.srs import Srs
from forwarder.net.dns import Resolver
from forwarder.net.http import GuardedClient
from forwarder.net.tls import client_context
from forwarder.outbound.addressees import Addressees
from forwarder.outbound.bounce import Bounces
from forwarder.outbound.delivery import Courier
from forwarder.outbound.dispatcher import Dispatcher
from forwarder.outbound.policies import Policies
from forwarder.outbound.pool import Pool
from forwarder.outbound.route import Router
from forwarder.outbound.signing import Signing
from forwarder.outbound.webhook import Webhooks
from forwarder.store.engine import Database
from forwarder.store.migrations import upgrade
from forwarder.store.queue import Queue
from forwarder.store.records import NewDelivery, NewMessage
from forwarder.store.tables import deliveries, events, logs, messages
from forwarder.tally import Tally
from tests.peers.dns_server import DnsServer
from tests.peers.sink import Sink

SECRET = b"a secret of the tests"
CONTENT = (
    b"Received: from origin.test by mx.forwarder.test; Fri, 20 Nov 2026 12:00:00 +0000\r\n"
    b"From: Ann <ann@origin.test>\r\nTo: alias@hosted.test\r\nSubject: hello\r\n"
    b"Date: Fri, 20 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@origin.test>\r\n\r\n"
    b"line one\r\n.dot\r\n\r\nlast line\r\n"
)


class OtherQueue:
    """A queue in place of the real one, whose every verb it has that a test's own does not say otherwise."""

    def __init__(self, real: Queue) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def open_store(url: str) -> Database:
    """A store with the newest schema; on SQLite a copy of the first one made."""
    if not url.startswith("sqlite:///"):
        await asyncio.to_thread(upgrade, url)
        return await Database.open(url)
    await asyncio.to_thread(_copy_store, FilePath(url.removeprefix("sqlite:///")))
    return await Database.open(url)


def _copy_store(file: FilePath) -> None:
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(_empty_store())


@cache
def _empty_store() -> bytes:
    with TemporaryDirectory() as folder:
        file = FilePath(folder) / "empty.db"
        upgrade(f"sqlite:///{file}")
        assert not file.with_name("empty.db-wal").exists()
        return file.read_bytes()


def trusting(certificates: Sequence[FilePath]) -> ssl.SSLContext | None:
    """A context for which these are authorities; None: there are none of the test's."""
    if not certificates:
        return None
    context = client_context(verify=True)
    for certificate in certificates:
        context.load_verify_locations(certificate)
    return context


async def _always() -> None:
    """The worker's leases are its own."""


async def _hosts_nothing(domain: str) -> bool:
    return False


async def _elsewhere(path: Path, behalf: Path) -> Expansion:
    """No domain is hosted here."""
    return Expansion(recipient=path, trouble=Trouble.NOT_HOSTED)


class House:
    """One worker's outbound side."""

    def __init__(
        self, settings: Settings, database: Database, dns: DnsServer, sink: Sink, **options: Any
    ) -> None:
        self.settings = settings
        self.database = database
        self.dns = dns
        self.sink = sink  # the destination
        self.origin: Sink  # the host of the senders: reports arrive there
        self.offset = timedelta(0)  # moves our clock
        self.ids = IdSource(clock=self.now, entropy=os.urandom)
        self.worker_id = self.ids()
        self.queue = Queue(
            database, worker_id=self.worker_id, local_name=settings.hostname, ids=self.ids, clock=self.now
        )
        # As the dispatcher has it.
        self.dispatched: Any = options.get("queue", lambda queue: queue)(self.queue)
        self.resolver = Resolver(settings.dns.nameservers, clock=self.now, deadline=timedelta(seconds=2))
        trusted = options.get("trusted", ())  # certificate files
        self.pool = Pool(settings.outbound, hello=settings.hostname, verifying=trusting(trusted))
        self.signers: dict[str, Sequence[Signer]] = {}
        self.signing = Signing(
            service=options.get("service", ()),
            signers_for=self._signers_for,
            arc=options.get("arc", False),
            authserv_id=settings.hostname,
            threads=2,
            clock=self.now,
            tally=Tally(),
        )
        self.client = GuardedClient(
            self.resolver,
            allow_private=settings.outbound.allow_private_destinations,
            verify=trusting(trusted),
        )
        self.policies = Policies(
            self.resolver, self.client, clock=self.now, port=options.get("policy_port", 443)
        )
        self.srs = Srs([SECRET], domain="srs.forwarder.test")
        self.webhook_keys: dict[int, str] = {}
        courier = Courier(
            pool=self.pool,
            srs=self.srs,
            signing=self.signing,
            webhooks=Webhooks(
                client=self.client,
                key_of=self._key_of,
                hostname=settings.hostname,
                clock=self.now,
                timeout=settings.outbound.webhook_timeout,
                pauses=(timedelta(0), timedelta(0)),
            ),
            trace_secret=SECRET,
            clock=self.now,
            tally=Tally(),
        )
        self.dispatcher = Dispatcher(
            queue=self.dispatched,
            courier=courier,
            router=Router(
                self.resolver,
                settings,
                policies=self.policies,
                hosted=_hosts_nothing,
                chance=random.Random(1),
            ),
            bounces=Bounces(
                hostname=settings.hostname,
                sender_domain="forwarder.test",
                disclose_destination=settings.outbound.disclose_destination,
                addressees=Addressees(
                    srs=self.srs, resolve=options.get("resolve", _elsewhere), clock=self.now
                ),
                ids=self.ids,
                clock=self.now,
            ),
            settings=settings,
            clock=self.now,
            jitter=options.get("jitter", lambda: 0.0),
            sure=options.get("sure", _always),
            tally=Tally(),
        )
        self._running: asyncio.Task[None] | None = None

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    async def start(self) -> None:
        self._running = asyncio.create_task(self.dispatcher.run())
        await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.dispatcher.drain(timedelta(seconds=1))
        if self._running is not None:
            await asyncio.wait_for(self._running, 5)
        await self.pool.close()
        await self.policies.close()
        await self.client.close()
        await self.resolver.close()
        self.signing.close()

    async def accept(self, *to: str, **options: Any) -> list[str]:
        """Take a message as inbound does (``message`` has the options); the ids of its deliveries."""
        message = self.message(*to, **options)
        await self.queue.enqueue(message)
        self.dispatcher.hand_over(message)
        return [delivery.id for delivery in message.deliveries]

    def message(
        self,
        *to: str,
        sender: str = "ann@origin.test",
        content: bytes = CONTENT,
        recipient: str = "alias@hosted.test",
        kind: DeliveryKind = DeliveryKind.SMTP,
        transport: Transport = Transport.SMTP,
        signing_domain: str | None = None,
        smtputf8: bool = False,
        in_memory: bool = True,
        domain_id: int | None = None,
        due: timedelta = timedelta(0),
    ) -> NewMessage:
        """A message as inbound makes them, with a delivery to each destination."""
        now = self.now()
        new = []
        for destination in to:
            domain = (
                destination.rpartition("@")[2] if kind is DeliveryKind.SMTP else destination.split("/")[2]
            )
            domain = domain.partition(":")[0]
            leased = in_memory and self.dispatcher.lease(domain)
            new.append(
                NewDelivery(
                    id=self.ids(),
                    kind=kind,
                    domain_id=domain_id,
                    alias="alias",
                    recipient=parse_address(recipient),
                    destination=destination,
                    destination_domain=domain,
                    leased=leased,
                    next_attempt_at=now + (timedelta(minutes=1) if leased else due),
                )
            )
        return NewMessage(
            id=self.ids(),
            created_at=now,
            transport=transport,
            reverse_path=parse_address(sender) if sender else Path.null(),
            smtputf8=smtputf8,
            signing_domain=signing_domain,
            content=content,
            hostname="client.origin.test",
            message_id="<1@origin.test>",
            subject="hello",
            sender_email="ann@origin.test",
            sender_name="Ann",
            deliveries=tuple(new),
        )

    async def events(self, log_id: str) -> list[tuple[str, int, str]]:
        query = (
            select(events.c.status, events.c.code, events.c.message)
            .where(events.c.log_id == log_id)
            .order_by(events.c.id)
        )
        rows = await self.database.read(lambda conn: conn.execute(query).all())
        return [(row.status, row.code, row.message) for row in rows]

    async def statuses(self, log_id: str) -> list[str]:
        return [status for status, _, _ in await self.events(log_id)]

    async def waiting(self) -> list[Any]:
        """The rows of the queue."""
        return await self.database.read(lambda conn: list(conn.execute(select(deliveries)).all()))

    async def counts(self) -> tuple[int, int]:
        """Messages and deliveries in the store."""
        return await self.database.read(
            lambda conn: (
                conn.execute(select(func.count()).select_from(messages)).scalar_one(),
                conn.execute(select(func.count()).select_from(deliveries)).scalar_one(),
            )
        )

    async def reports(self) -> list[Any]:
        """The logs of reports written here, oldest first."""
        query = select(logs).where(logs.c.transport == "report").order_by(logs.c.id)
        return await self.database.read(lambda conn: list(conn.execute(query).all()))

    async def until(self, condition: Callable[[], Any], seconds: float = 10) -> Any:
        """Wait for a condition, plain or awaitable."""
        value: Any = None
        for _ in itertools.count():
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            if (seconds := seconds - 0.01) < 0:
                raise AssertionError(f"it did not come to that; {self.dispatcher.load()}")
            await asyncio.sleep(0.01)
        return value

    async def until_statuses(self, log_id: str, *expected: str) -> list[tuple[str, int, str]]:
        """Wait for exactly these events of a delivery, in this order."""
        try:
            await self.until(lambda: self._has(log_id, list(expected)))
        except AssertionError as error:
            raise AssertionError(f"{await self.events(log_id)} is not {expected}; {error}") from None
        return await self.events(log_id)

    async def _has(self, log_id: str, expected: list[str]) -> bool:
        return await self.statuses(log_id) == expected

    async def _signers_for(self, domain: str, accepted_at: datetime) -> Sequence[Signer]:
        return self.signers.get(domain, ())

    async def _key_of(self, domain_id: int) -> str | None:
        return self.webhook_keys.get(domain_id)


@asynccontextmanager
async def house(
    folder: FilePath,
    *,
    outbound: dict[str, Any] | None = None,
    retry: dict[str, Any] | None = None,
    sink: dict[str, Any] | None = None,
    start: bool = True,
    url: str = "",
    **options: Any,
) -> AsyncIterator[House]:
    """A running house; the sink is the MX host of ``dest.test``, ``rooms.origin`` that of ``origin.test``."""
    async with AsyncExitStack() as stack:
        catcher = await stack.enter_async_context(Sink(**(sink or {})))
        origin = await stack.enter_async_context(Sink(host="127.0.0.2", port=catcher.port))
        dns = await stack.enter_async_context(DnsServer())
        dns.mail_host("dest.test", catcher.host)
        dns.mail_host("origin.test", origin.host)
        settings = Settings.model_validate(
            {
                "hostname": "mx.forwarder.test",
                "data_dir": str(folder),
                "dns": {"nameservers": [dns.address]},
                "outbound": {
                    "port": catcher.port,
                    "allow_private_destinations": True,
                    "connect_timeout": "1s",
                    "greeting_timeout": "1s",
                    "command_timeout": "1s",
                    "dot_timeout": "1s",
                    **(outbound or {}),
                },
                "retry": {"delays": ["1s"], "give_up_after": "1h", "spread": 0, **(retry or {})},
            }
        )
        database = await open_store(url or f"sqlite:///{folder / 'forwarder.db'}")
        stack.push_async_callback(database.close)
        rooms = House(settings, database, dns, catcher, **options)
        rooms.origin = origin
        stack.push_async_callback(rooms.stop)
        if start:
            await rooms.start()
        yield rooms
        assert not catcher.trouble
        assert not catcher.violations
