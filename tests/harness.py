"""A whole engine for tests, with a destination and a DNS server beside it; all on loopback, ephemeral ports.

    async with House(tmp_path) as house, house.engine(mx={"size_limit": "1 MiB"}):
        await house.host("example.com", {"info": "person@dest.test"})
        await house.send("someone@out.test", "info@example.com", b"Subject: x\\r\\n\\r\\nhello\\r\\n")
        (received,) = await house.sink.wait_for(1)
        await house.wait_for_statuses("QUEUED", "DELIVERED")

``EngineProcess`` is the same engine as a person starts it: ``python -m forwarder serve`` in a process of its own.
Waiting is for conditions, with a deadline; nothing sleeps to let time pass.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from forwarder.clock import utc_now
from forwarder.config import Settings
from forwarder.diagnostics import set_up
from forwarder.keyring import create_private, open_keyring
from forwarder.mail.ids import IdSource
from forwarder.mail.seal import GeneratedKey, generate
from forwarder.net.tls import self_signed
from forwarder.serve import Engine, running
from forwarder.store import accounts, aliases, credentials, dkim_keys, domains
from forwarder.store.dkim_keys import NewDkimKey
from forwarder.store.engine import Database
from forwarder.store.journal import Journal, LogEntry
from forwarder.store.passwords import hash_password
from forwarder.store.vault import Vault
from tests.peers import client as smtp
from tests.peers.dns_server import DnsServer
from tests.peers.sink import Sink

ACCOUNT = "owner@example.org"
DEADLINE = 15.0  # seconds


@cache
def keys_for_tests() -> dict[str, GeneratedKey]:
    """One RSA and one Ed25519 key for every engine and domain of the session: making RSA keys is slow."""
    return {"rsa": generate("rsa"), "ed25519": generate("ed25519")}


def put_keys(settings: Settings) -> None:
    """Give an engine that has no service keys yet those of the session."""
    folder = settings.data_dir / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, key in enumerate(keys_for_tests().values(), start=1):
        create_private(folder / f"dkim-{settings.dkim.selector}{number}.pem", key.pem)


async def wait_until(
    condition: Callable[[], Awaitable[object] | object], *, deadline: float = DEADLINE, what: str = ""
) -> Any:
    """The first true value of ``condition``, sync or async; AssertionError at the deadline."""
    ends = time.monotonic() + deadline
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < ends, f"waited {deadline} s in vain for {what or condition}"
        await asyncio.sleep(0.02)


class House:
    """The surroundings of an engine, and the engine of the test in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sink = Sink()
        self.dns = DnsServer()
        self.settings: Settings
        self.ports: Mapping[str, Sequence[tuple[str, int]]] = {}
        self.running: Engine | None = None
        self.database: Database
        self.api_key = ""
        self.log = io.StringIO()  # what an engine in this process says about itself
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.sink)
        await self._stack.enter_async_context(self.dns)
        self.dns.mail_host("dest.test", self.sink.host)
        self.certificate, self.key = self_signed(["mx.test", "localhost"], self.folder)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def values(self, **sections: Any) -> dict[str, Any]:
        """Settings for a test: quick retries, everything on loopback; ``sections`` add to or replace keys."""
        values: dict[str, Any] = {
            "hostname": "mx.test",
            "data_dir": str(self.folder / "data"),
            "mx": {"listen": ["127.0.0.1:0"], "connections_per_minute": 0},
            "submission": {
                "listen": ["127.0.0.1:0"],
                "listen_tls": ["127.0.0.1:0"],
                "require_dns": False,
                "connections_per_minute": 0,
            },
            "tls": {"certificate": str(self.certificate), "key": str(self.key)},
            "api": {"listen": "127.0.0.1:0", "rate": 0},
            "dns": {"nameservers": [self.dns.address], "timeout": "2s"},
            "outbound": {"port": self.sink.port, "allow_private_destinations": True},
            "retry": {"delays": ["200ms"], "give_up_after": "1h", "spread": 0.0},
            "workers": {"processes": 1},
            "logs": {"level": "debug", "format": "json"},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
        return values

    @contextlib.asynccontextmanager
    async def engine(self, **sections: Any) -> AsyncIterator["House"]:
        """A whole engine in this process for as long as the block lasts."""
        self.settings = Settings.model_validate(self.values(**sections))
        set_up(self.settings, stream=self.log)
        put_keys(self.settings)
        async with running(self.settings) as engine:
            self.running, self.ports, self.database = engine, engine.ports, engine.database
            try:
                yield self
            finally:
                self.running = None

    # --- the directory

    async def account(self, email: str = ACCOUNT, plan: str = "default") -> str:
        """An account with an API key, which is returned; ``house.api`` uses it."""
        key = accounts.new_key()

        def work(conn: Any) -> None:
            made = accounts.create(conn, email, plan, utc_now())
            accounts.add_key(conn, made.id, "test", key.digest, key.prefix, utc_now())

        await self.database.write(work)
        self.api_key = self.api_key or key.secret
        return key.secret

    async def host(self, name: str, patterns: Mapping[str, str], *, account: str = ACCOUNT) -> domains.Domain:
        """Host a domain with these aliases (pattern -> forward); its account is made when it is missing."""
        if await self.database.read(lambda conn: accounts.by_email(conn, account)) is None:
            await self.account(account)
        vault = Vault(open_keyring(self.settings).store_key)
        keys = [
            NewDkimKey(
                selector=f"{self.settings.dkim.selector}{number}",
                algorithm=algorithm,
                private_key=vault.seal(
                    made.pem, domain=name, selector=f"{self.settings.dkim.selector}{number}"
                ),
                public_record=made.record,
            )
            for number, (algorithm, made) in enumerate(keys_for_tests().items(), start=1)
        ]

        def work(conn: Any) -> domains.Domain:
            owner = accounts.by_email(conn, account)
            assert owner is not None
            made = domains.add(
                conn, owner.id, name, name, utc_now(), dkim_selector=self.settings.dkim.selector
            )
            for key in keys:
                dkim_keys.add(conn, made, key, utc_now())
            for pattern, forward in patterns.items():
                aliases.add(conn, made, pattern, forward, utc_now())
            return made

        return await self.database.write(work)

    async def domain(self, name: str) -> domains.Domain:
        found = await self.database.read(lambda conn: domains.get(conn, name))
        assert found is not None, f"{name} is not hosted"
        return found

    async def credential(self, login: str, password: str, *, is_limited: bool = False) -> None:
        """A log-in of a hosted domain."""
        username, _, name = login.partition("@")
        domain = await self.domain(name)
        digest = await asyncio.to_thread(hash_password, password)
        await self.database.write(
            lambda conn: credentials.add(conn, domain, username, digest, utc_now(), is_limited=is_limited)
        )

    # --- mail

    def port(self, listener: str) -> int:
        """``mx``, ``submission``, ``submission-tls`` or ``api``."""
        return self.ports[listener][0][1]

    @property
    def mx_port(self) -> int:
        return self.port("mx")

    @property
    def api_port(self) -> int:
        return self.port("api")

    def client(self, listener: str = "mx", *, tls: ssl.SSLContext | None = None) -> smtp.Client:
        """A raw client of a listener."""
        return smtp.Client("127.0.0.1", self.port(listener), tls=tls)

    async def send(self, reverse_path: str, recipients: str | Sequence[str], content: bytes) -> smtp.Answer:
        """One message through the MX; the last answer."""
        to = [recipients] if isinstance(recipients, str) else list(recipients)
        return await smtp.send(
            "127.0.0.1", self.mx_port, reverse_path.encode(), [one.encode() for one in to], content
        )

    # --- what became of it

    async def logs(self, domain: str | None = None, limit: int = 100) -> list[LogEntry]:
        """The journal, newest first."""
        domain_id = None if domain is None else (await self.domain(domain)).id
        journal = Journal(self.database, ids=IdSource(clock=utc_now, entropy=os.urandom), clock=utc_now)
        return await journal.page(domain_id, limit=limit)

    async def events(self, domain: str | None = None) -> list[tuple[str, int, str]]:
        """(status, code, message) of every event, oldest first."""
        found = [event for entry in await self.logs(domain) for event in entry.events]
        return [(str(e.status), e.code, e.message) for e in sorted(found, key=lambda e: e.id)]

    async def statuses(self, domain: str | None = None) -> list[str]:
        return [status for status, _, _ in await self.events(domain)]

    async def wait_for_statuses(self, *expected: str, domain: str | None = None) -> None:
        """Until the events are exactly these, in this order."""
        seen: list[str] = []

        async def look() -> bool:
            seen[:] = await self.statuses(domain)
            return seen == list(expected)

        try:
            await wait_until(look)
        except AssertionError:
            raise AssertionError(f"expected events {list(expected)}, have {seen}") from None

    async def queue_is_empty(self) -> bool:
        from sqlalchemy import func, select

        from forwarder.store.tables import messages

        return (
            await self.database.read(lambda c: c.execute(select(func.count()).select_from(messages)).scalar())
            == 0
        )

    def api(self) -> httpx.AsyncClient:
        """A client of the API with the key of the house's account."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.api_port}",
            auth=("api", self.api_key),
            trust_env=False,
            timeout=DEADLINE,
        )


def as_environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings in their environment form."""
    found: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, nested in value.items():
                add(f"{name}__{key}".upper(), nested)
        elif isinstance(value, list | tuple):
            found[name] = ",".join(map(str, value))
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)

    for key, value in values.items():
        add(f"FORWARDER_{key.upper()}", value)
    return found


class EngineProcess:
    """``python -m forwarder serve`` with the settings of a house; ready when entered, ended by its id.

    ``limits`` are what ``ulimit`` is told before, such as ``-n 1024``.
    """

    def __init__(
        self, house: House, *, environ: Mapping[str, str] | None = None, limits: str = "", **sections: Any
    ) -> None:
        self.house = house
        self.values = house.values(**sections)
        self.output = house.folder / "serve.log"
        self.process: asyncio.subprocess.Process
        self._environ = dict(environ or {})
        self._limited = ("/bin/sh", "-c", f'ulimit {limits} && exec "$@"', "sh") if limits else ()

    @property
    def ports_file(self) -> Path:
        return Path(self.values["data_dir"]) / "run" / "ports.json"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()
        if error is not None:
            sys.stderr.write(self.log()[-4000:])

    async def start(self) -> None:
        """Start it and wait until it serves; the house's ports and store are then its."""
        self.ports_file.unlink(missing_ok=True)
        put_keys(Settings.model_validate(self.values))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FORWARDER_")}
        with self.output.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(*self._limited, sys.executable, "-m", "forwarder", "serve"),
                env=inherited | as_environment(self.values) | self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            await wait_until(self._serves, what="the engine to serve")
        except AssertionError:  # it was never entered, so nobody else ends it
            self.process.kill()
            await self.process.wait()
            sys.stderr.write(self.log()[-4000:])
            raise
        assert self.process.returncode is None, self.log()
        shown = json.loads(self.ports_file.read_text())
        self.house.ports = {
            name: [(at.rpartition(":")[0].strip("[]"), int(at.rpartition(":")[2])) for at in listeners]
            for name, listeners in shown.items()
            if name != "pid"
        }
        self.house.settings = Settings.model_validate(self.values)
        self.house.database = await Database.open(self.house.settings.database.url, pool_size=2)

    def _serves(self) -> bool:
        return self.process.returncode is not None or self.ports_file.exists()

    def log(self) -> str:
        return self.output.read_text(errors="replace")

    async def end(self, how: signal.Signals = signal.SIGTERM, *, deadline: float = 40) -> int:
        """Tell it to end, and wait; its exit status."""
        if hasattr(self.house, "database"):
            await self.house.database.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)
        try:
            async with asyncio.timeout(deadline):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError(f"the engine did not end within {deadline} s\n{self.log()}") from None
