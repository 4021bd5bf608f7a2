"""A migrated store of each kind, and what the tests put into it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from forwarder.mail.address import Path as MailPath
from forwarder.mail.address import parse_address
from forwarder.mail.event import DeliveryKind, Status, Transport
from forwarder.mail.ids import IdSource
from forwarder.store import workers
from forwarder.store.engine import Database
from forwarder.store.migrations import upgrade
from forwarder.store.queue import Queue
from forwarder.store.records import Delivery, NewDelivery, NewEvent, NewMessage, Outcome, Settlement
from tests.postgres import Server

NOON = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
LEASE = timedelta(seconds=30)  # of every worker here


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: Server) -> str:
    postgres.sql("CREATE DATABASE store_template")
    upgrade(postgres.url("store_template"))
    return "store_template"


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'store.db')}"


@pytest.fixture
def postgres_url(postgres: Server, postgres_template: str) -> Iterator[str]:
    url = postgres.database(postgres_template)
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(store_url)
    yield opened
    await opened.close()


class Stage:
    """A clock that stands still, ids, and workers with their queues, each on a connection of its own."""

    def __init__(self, url: str, opened: AsyncExitStack) -> None:
        self.url = url
        self.now = NOON
        self._opened = opened
        self._entropy = count(1)
        self.ids = IdSource(clock=self.clock, entropy=lambda n: next(self._entropy).to_bytes(n, "big"))

    def clock(self) -> datetime:
        return self.now

    async def database(self) -> Database:
        opened = await Database.open(self.url)
        self._opened.push_async_callback(opened.close)
        return opened

    async def worker(self, name: str = "a", *, alive: Callable[[], bool] = lambda: True) -> "Worker":
        database = await self.database()
        worker_id = self.ids()
        await workers.register(
            database,
            worker_id=worker_id,
            node=f"node-{name}",
            hostname="mx.example.net",
            pid=1,
            now=self.now,
            alive_for=LEASE,
        )
        queue = Queue(
            database,
            worker_id=worker_id,
            local_name="mx.example.net",
            ids=self.ids,
            clock=self.clock,
            alive=alive,
        )
        return Worker(worker_id, database, queue)

    def message(
        self,
        *destinations: str,
        leased: bool = False,
        discard: bool = False,
        due: timedelta = timedelta(0),
        domain_id: int | None = 7,
        content: bytes = b"Subject: hi\r\n\r\nbody\r\n",
        reverse_path: str = "gavin@hooli.example",
        subject: str | None = "hi",
    ) -> NewMessage:
        """A message for richard@piedpiper.example, on its way to the destinations."""
        deliveries = tuple(
            NewDelivery(
                id=self.ids(),
                kind=DeliveryKind.SMTP,
                domain_id=domain_id,
                alias="richard",
                recipient=parse_address("richard@piedpiper.example"),
                destination=destination,
                destination_domain=destination.partition("@")[2],
                leased=leased,
                next_attempt_at=self.now + due,
                discard=discard,
            )
            for destination in destinations or ("richard@dest.example",)
        )
        return NewMessage(
            id=self.ids(),
            created_at=self.now,
            transport=Transport.SMTP,
            reverse_path=parse_address(reverse_path) if reverse_path else MailPath.null(),
            smtputf8=False,
            signing_domain=None,
            content=content,
            hostname="client.hooli.example",
            message_id="<1@hooli.example>",
            subject=subject,
            sender_email="gavin@hooli.example",
            sender_name="Gavin Belson",
            deliveries=deliveries,
        )


class Worker:
    def __init__(self, worker_id: str, database: Database, queue: Queue) -> None:
        self.id = worker_id
        self.database = database
        self.queue = queue


@pytest.fixture
async def stage(store_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as opened:
        yield Stage(store_url, opened)


def delivered(delivery: Delivery) -> Settlement:
    event = NewEvent(
        status=Status.DELIVERED, code=250, message="Sent", local="mx.example.net", server="mx.dest.example"
    )
    return Settlement(delivery=delivery, outcome=Outcome.DELIVERED, event=event)


def soft(delivery: Delivery, at: datetime) -> Settlement:
    event = NewEvent(status=Status.SOFT_BOUNCE, code=450, message="4.2.1 later")
    return Settlement(delivery=delivery, outcome=Outcome.SOFT, event=event, next_attempt_at=at)


def hard(delivery: Delivery, report: NewMessage | None = None) -> Settlement:
    event = NewEvent(status=Status.HARD_BOUNCE, code=550, message="5.1.1 no such user")
    return Settlement(delivery=delivery, outcome=Outcome.HARD, event=event, report=report)


def as_delivery(message: NewMessage, index: int = 0) -> Delivery:
    """What the dispatcher makes of a fresh, leased delivery without asking the store."""
    fresh = message.deliveries[index]
    return Delivery(
        id=fresh.id,
        message_id=message.id,
        kind=fresh.kind,
        domain_id=fresh.domain_id,
        alias=fresh.alias,
        recipient=fresh.recipient,
        destination=fresh.destination,
        destination_domain=fresh.destination_domain,
        attempts=1,
        created_at=message.created_at,
        next_attempt_at=fresh.next_attempt_at,
        reverse_path=message.reverse_path,
        smtputf8=message.smtputf8,
        signing_domain=message.signing_domain,
        transport=message.transport,
        size=len(message.content),
    )


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 10.0) -> None:
    """Return when the condition holds; TimeoutError after that many seconds."""
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for in another process
            await asyncio.sleep(0.01)


def machine_steps(conn: Connection, work: Callable[[], object]) -> int:
    """How many instructions of SQLite's machine some work on this connection takes, to the next ten."""
    driver: Any = conn.connection.driver_connection
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    driver.set_progress_handler(tick, 10)
    try:
        work()
    finally:
        driver.set_progress_handler(None, 0)
    return ticks * 10
