"""The MX and submission over a real store, without the outbound side: what was stored is looked at in the store."""

import asyncio
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from forwarder.config import Settings
from forwarder.inbound import mx, submission
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.screening import Screened
from forwarder.inbound.server import Server
from forwarder.mail.address import display_domain
from forwarder.mail.ids import IdSource
from forwarder.mail.srs import Srs
from forwarder.net.tls import ServerTls
from forwarder.store import accounts, aliases, credentials, domains, workers
from forwarder.store.directory import Directory
from forwarder.store.engine import Database
from forwarder.store.journal import Journal, LogEntry
from forwarder.store.passwords import hash_password
from forwarder.store.queue import Queue
from forwarder.store.records import NewMessage
from forwarder.store.tables import deliveries, messages
from forwarder.tally import Tally
from tests.peers.client import Answer, Client

SECRET = b"a secret of these tests, 32 octets"
ADDRESS = "127.0.0.1"

on_both = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Handed:
    """An intake that takes what it is told to and remembers it."""

    def __init__(self) -> None:
        self.takes = False
        self.messages: list[NewMessage] = []
        self.prepared: list[NewMessage] = []
        self.news = asyncio.Event()  # something was prepared

    def lease(self, destination_domain: str) -> bool:
        return self.takes

    def hand_over(self, message: NewMessage) -> None:
        self.messages.append(message)

    def prepare(self, message: NewMessage) -> Callable[[], None]:
        self.prepared.append(message)
        self.news.set()
        return partial(self.hand_over, message)


class Unscreened:
    """A screening that looks at nothing, so that what is stored is what was sent."""

    async def examine(self, *, content: bytes, **_: Any) -> Screened:
        return Screened(reply=None, headers=b"", content=content)


class Engine:
    """Listeners with real rooms behind them."""

    def __init__(self, url: str, folder: Path, *, tls: ServerTls | None) -> None:
        self.url = url
        self.folder = folder
        self.intake = Handed()
        self.ids = IdSource(clock=utc_now, entropy=os.urandom)
        self.srs = Srs([SECRET], "mx.test")
        self.servers: dict[str, Server] = {}
        self.database: Database
        self.rooms: InboundRooms
        self._tls = tls
        self._following: asyncio.Task[None] | None = None

    def settings(self, **sections: Any) -> Settings:
        values: dict[str, Any] = {
            "hostname": "mx.test",
            "data_dir": str(self.folder),
            "mx": {"listen": [f"{ADDRESS}:0"], "connections_per_minute": 0},
            "submission": {
                "listen": [f"{ADDRESS}:0"],
                "listen_tls": [f"{ADDRESS}:0"],
                "connections_per_minute": 0,
                "require_dns": False,
            },
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
        return Settings.model_validate(values)

    async def start(self, **sections: Any) -> "Engine":
        """Open the store and the listeners; sections add to the settings, other names replace rooms."""
        rooms = {
            name: sections.pop(name)
            for name in ("screening", "directory", "resolver", "clock")
            if name in sections
        }
        settings = self.settings(**sections)
        self.database = await Database.open(self.url)
        worker = self.ids()
        await workers.register(
            self.database,
            worker_id=worker,
            node="test",
            hostname="mx.test",
            pid=os.getpid(),
            now=utc_now(),
            alive_for=settings.workers.lease,
        )
        queue = Queue(self.database, worker_id=worker, local_name="mx.test", ids=self.ids, clock=utc_now)
        directory = Directory(self.database)
        self._following = asyncio.create_task(directory.follow())
        given: dict[str, Any] = {
            "settings": settings,
            "database": self.database,
            "directory": directory,
            "queue": queue,
            "journal": Journal(self.database, ids=self.ids, clock=utc_now),
            "ids": self.ids,
            "srs": self.srs,
            "intake": self.intake,
            "trace_secrets": (SECRET,),
            "tls": self._tls,
            "screening": Unscreened(),
            "resolver": None,
            "clock": utc_now,
            "region": 0,
            "regions": 1,
            "tally": Tally(),
        }
        self.rooms = InboundRooms(**(given | rooms))
        for server in (mx.build_server(self.rooms), *submission.build_servers(self.rooms)):
            await server.start()
            self.servers[server.name] = server
        return self

    async def stop(self) -> None:
        for server in self.servers.values():
            await server.drain(timedelta(seconds=5))
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            await self.database.close()

    def client(self, server: str = "mx", **options: Any) -> Client:
        return Client(ADDRESS, self.servers[server].addresses[0][1], **options)

    async def send(
        self,
        sender: bytes,
        recipients: list[bytes],
        content: bytes,
        *,
        hello: bytes = b"client.test",
        **options: Any,
    ) -> list[Answer]:
        """One message through the MX; every answer from MAIL on."""
        async with self.client(**options) as client:
            await client.ehlo(hello)
            return await client.message(sender, recipients, content)

    async def host(
        self, name: str, forwards: dict[str, str], *, account: str = "owner@example.org", active: bool = False
    ) -> domains.Domain:
        """A hosted domain with aliases, in force for this process at once or within a second."""

        def work(conn: Any) -> domains.Domain:
            owner = accounts.by_email(conn, account) or accounts.create(conn, account, "default", utc_now())
            made = domains.add(conn, owner.id, name, display_domain(name), utc_now(), dkim_selector="fwd")
            for pattern, forward in forwards.items():
                aliases.add(conn, made, pattern, forward, utc_now())
            if active:
                domains.record_check(
                    conn,
                    made,
                    utc_now(),
                    is_active=True,
                    sending_ready=False,
                    broken_since=None,
                    notified_at=None,
                )
            return made

        return await self.database.write(work)

    async def disable(self, domain: domains.Domain, pattern: str, code: int) -> None:
        def work(conn: Any) -> None:
            alias = aliases.get(conn, domain.id, pattern)
            assert alias is not None
            aliases.update_alias(conn, domain, alias, utc_now(), is_active=False, when_disabled=code)

        await self.database.write(work)

    async def credential(
        self, domain: domains.Domain, username: str, password: str, *, is_limited: bool = False
    ) -> credentials.Credential:
        digest = await asyncio.to_thread(hash_password, password)
        return await self.database.write(
            lambda conn: credentials.add(conn, domain, username, digest, utc_now(), is_limited=is_limited)
        )

    async def contents(self) -> list[bytes]:
        """The stored messages, oldest first."""
        query = select(messages.c.content).order_by(messages.c.id)
        return await self.database.read(lambda conn: [bytes(row[0]) for row in conn.execute(query)])

    async def deliveries(self) -> list[Any]:
        """Every queued delivery with its message's reverse-path, oldest first."""
        query = (
            select(
                deliveries.c.id,
                deliveries.c.recipient,
                deliveries.c.destination,
                deliveries.c.alias,
                deliveries.c.domain_id,
                deliveries.c.kind,
                deliveries.c.state,
                deliveries.c.attempts,
                messages.c.reverse_path,
                messages.c.signing_domain,
                messages.c.smtputf8,
                messages.c.transport,
            )
            .join(messages, messages.c.id == deliveries.c.message_id)
            .order_by(deliveries.c.id)
        )
        return await self.database.read(lambda conn: list(conn.execute(query)))

    async def destinations(self) -> list[str]:
        return [row.destination for row in await self.deliveries()]

    async def logs(self, domain: domains.Domain | None = None) -> list[LogEntry]:
        """Newest first; what is written behind replies is waited for."""
        await self.rooms.journal.flush()
        return await self.rooms.journal.page(None if domain is None else domain.id, limit=500)


def fresh_password() -> str:
    return secrets.token_urlsafe(12)
