"""The API on a database of its own, in this process, with a DNS server beside it; the clock is the test's."""

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx
from starlette.applications import Starlette

from api.app import build_app
from api.health import Health
from forwarder.config import Settings
from forwarder.mail.address import parse_address
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.ids import IdSource
from forwarder.net.dns import Resolver
from forwarder.store import accounts
from forwarder.store.engine import Database
from forwarder.store.queue import Queue
from forwarder.store.records import NewDelivery, NewMessage
from forwarder.store.vault import Vault
from forwarder.tally import Tally
from tests.harness import wait_until
from tests.peers.dns_server import DnsServer

NOW = datetime(2026, 3, 4, 5, 6, 7, 891000, tzinfo=UTC)
NOW_MS = 1772600767891
EMAIL = "richard@hooli.test"


class Desk:
    """``desk.get("/domains")`` and its like send as ``desk.email``; answers are httpx responses."""

    def __init__(self, url: str, **sections: Any) -> None:
        self.url = url
        self.email = EMAIL
        self.now = NOW
        self.dns = DnsServer()
        self.health = Health()
        self._sections = sections
        self.database: Database
        self.app: Starlette
        self.key = ""
        self.http: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        await self.dns.start()
        api = {"rate": 1_000_000, "failures_per_minute": 1_000_000} | self._sections.pop("api", {})
        values = {
            "hostname": "mx.forwarder.test",
            "database": {"url": self.url},
            "dns": {"nameservers": [self.dns.address], "timeout": "1s"},
            "api": api,
        }
        self.settings = Settings.model_validate(values | self._sections)
        self.database = await Database.open(self.url)
        self.resolver = Resolver(
            self.settings.dns.nameservers, clock=self.clock, deadline=self.settings.dns.timeout
        )
        self.vault = Vault(bytes(range(32)))
        self.app = self.another_app()
        self.key = await self.account(self.email)
        self.http = self.client(self.key)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()
        await self.resolver.close()
        await self.database.close()
        await self.dns.close()

    def clock(self) -> datetime:
        return self.now

    def another_app(self, database: Database | None = None) -> Starlette:
        """A further application, on its own connections when given some, as another process has it."""
        return build_app(
            self.settings,
            database or self.database,
            self.resolver,
            self.clock,
            lambda: self.health,
            vault=self.vault,
            tally=Tally(),
        )

    def client(self, key: str | None, app: Starlette | None = None) -> httpx.AsyncClient:
        """A client that sends as the owner of ``key``; None: without one."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app or self.app, client=("127.0.0.1", 40000)),
            base_url="http://api.test/v3",
            auth=None if key is None else ("api", key),
        )

    async def account(self, email: str, plan: str = "default") -> str:
        """An account with a key, which is returned."""
        key = accounts.new_key()

        def work(conn: Any) -> None:
            made = accounts.create(conn, email, plan, self.now)
            accounts.add_key(conn, made.id, "first", key.digest, key.prefix, self.now)

        await self.database.write(work)
        return key.secret

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, **more)

    async def post(self, path: str, fields: Any = None, **more: Any) -> httpx.Response:
        return await self.http.post(path, **({"json": fields} if fields is not None else {}), **more)

    async def put(self, path: str, fields: Any = None, **more: Any) -> httpx.Response:
        return await self.http.put(path, **({"json": fields} if fields is not None else {}), **more)

    async def delete(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.delete(path, **more)

    async def domain(self, name: str = "piedpiper.com", aliases: Mapping[str, str] | None = None) -> None:
        """A domain through the API; its ``*`` goes when ``aliases`` are given, as clients have it."""
        answer = await self.post("/domains", {"domain": name})
        assert answer.status_code == 200, answer.text
        if aliases is not None:
            assert (await self.delete(f"/domains/{name}/aliases/*")).status_code == 200
            for alias, forward in aliases.items():
                added = await self.post(f"/domains/{name}/aliases", {"alias": alias, "forward": forward})
                assert added.status_code == 200, added.text

    async def mail(
        self,
        domain: str,
        *,
        alias: str = "richard",
        count: int = 1,
        discard: bool = False,
        subject: str = "Hello",
    ) -> list[str]:
        """So many messages in the queue, a second apart; the ids of their logs, oldest first."""
        ids = IdSource(clock=self.clock, entropy=os.urandom)
        queue = Queue(
            self.database, worker_id=ids(), local_name="mx.forwarder.test", ids=ids, clock=self.clock
        )
        hosted = await self.database.read(lambda conn: _domain(conn, domain))
        made = []
        for _ in range(count):
            self.now += timedelta(seconds=1)
            delivery = NewDelivery(
                id=ids(),
                kind=DeliveryKind.SMTP,
                domain_id=hosted,
                alias=alias,
                recipient=parse_address(f"richard@{domain}"),
                recipient_name="Richard Hendricks",
                destination="richard.hendricks@gmail.com",
                destination_domain="gmail.com",
                leased=False,
                next_attempt_at=self.now,
                discard=discard,
            )
            await queue.enqueue(
                NewMessage(
                    id=ids(),
                    created_at=self.now,
                    transport=Transport.SMTP,
                    reverse_path=parse_address("gavin@hooli.com"),
                    smtputf8=False,
                    signing_domain=None,
                    content=b"Subject: x\r\n\r\nx\r\n",
                    hostname="mail.hooli.com",
                    message_id="<1@hooli.com>",
                    subject=subject,
                    sender_email="gavin@hooli.com",
                    sender_name="Gavin Belson",
                    deliveries=(delivery,),
                )
            )
            made.append(delivery.id)

        async def anybodys() -> bool:
            return not await queue.leases()

        await wait_until(anybodys, what="the queue to let go of what nobody leased")
        return made


def _domain(conn: Any, name: str) -> int:
    from forwarder.store import domains

    found = domains.get(conn, name)
    assert found is not None
    return found.id


def files(folder: Path) -> list[Path]:
    """Everything in a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def together(*calls: Any) -> list[Any]:
    """All at once, all answers."""
    return list(await asyncio.gather(*calls))
