"""How often and when a credential was used: counted in memory, written a second later, all credentials at once.

A crash loses the last second of it: it is for people to look at. Quotas are counted elsewhere, exactly.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import Connection

from forwarder.store import credentials
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable

DELAY = 1.0  # seconds

log = structlog.get_logger(__name__)


class Usage:
    """Behind the reply."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self._counts: dict[int, int] = {}
        self._writing: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    def note(self, credential_id: int) -> None:
        """One message was sent with this credential."""
        self._counts[credential_id] = self._counts.get(credential_id, 0) + 1
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_later())

    async def close(self) -> None:
        """Write what is left."""
        self._ending.set()
        if self._writing is not None:
            await self._writing
        await self._write()

    async def _write_later(self) -> None:
        while self._counts:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DELAY):
                    await self._ending.wait()
            await self._write()  # what is used meanwhile waits for the next round
        self._writing = None

    async def _write(self) -> None:
        counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            await self._database.change(partial(_add, counts=counts, now=self._clock()))
        except StoreUnavailable as trouble:
            log.warning(
                "the usage of credentials was not written", credentials=len(counts), reason=str(trouble)
            )


def _add(conn: Connection, *, counts: Mapping[int, int], now: datetime) -> None:
    for credential_id in sorted(counts):
        credentials.used(conn, credential_id, now, messages=counts[credential_id])
