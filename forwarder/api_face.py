"""The API of one engine: its listener, and the look at the DNS of domains that it does by itself.

The API's modules are a third of all that an engine loads. They are loaded when the listener opens, or for the first
look at the DNS, so that mail need not wait for them.

Fails with what the listener and the store raise; where the configuration has no API, nothing is opened.
"""

import asyncio
import importlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from api.health import Health
from forwarder.config import Settings
from forwarder.mail.ids import IdSource
from forwarder.net.dns import Resolver
from forwarder.store.engine import Database
from forwarder.store.queue import Queue
from forwarder.store.vault import Vault
from forwarder.tally import Tally

if TYPE_CHECKING:
    from api.recheck import Recheck
    from forwarder.web import WebServer


class ApiFace:
    """What an engine shows over HTTP."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        resolver: Resolver,
        *,
        vault: Vault,
        queue: Queue,
        ids: IdSource,
        clock: Callable[[], datetime],
        health: Callable[[], Health],
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._database = database
        self._resolver = resolver
        self._vault = vault
        self._queue = queue
        self._ids = ids
        self._clock = clock
        self._health = health
        self._tally = tally
        self._server: WebServer | None = None
        self._recheck: Recheck | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """What is really listened on, once started."""
        return [] if self._server is None else self._server.addresses

    @property
    def tasks(self) -> dict[str, bool]:
        """Whether the listener runs, by the name that health gives it; empty where there is none."""
        return {} if self._server is None else {"api": self._server.alive}

    async def start(self) -> None:
        """Open the port; OSError says why it cannot be had."""
        listen = self._settings.api.listen
        if listen is None:
            return
        await asyncio.to_thread(importlib.import_module, "api.app")
        from api.app import build_app
        from forwarder.web import WebServer

        app = build_app(
            self._settings,
            self._database,
            self._resolver,
            self._clock,
            self._health,
            vault=self._vault,
            tally=self._tally,
        )
        self._server = WebServer(
            app,
            listen=listen,
            connections=self._settings.api.connections,
            trusted_proxies=self._settings.api.trusted_proxies,
        )
        await self._server.start()

    async def recheck_domains(self, now: datetime) -> int:
        """A round of looking at the DNS of domains that are due; how many there were."""
        from api.recheck import Recheck

        if self._recheck is None:
            self._recheck = Recheck(
                self._settings,
                self._database,
                self._resolver,
                self._queue,
                ids=self._ids,
                clock=self._clock,
            )
        return await self._recheck.round(now)

    async def stop(self) -> None:
        """Let requests under way end; harmless where nothing was opened."""
        if self._server is not None:
            await self._server.stop()
