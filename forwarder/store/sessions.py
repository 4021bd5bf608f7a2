"""How a connection to PostgreSQL begins: what each is told, and whether it stays the one that was told.

A connection is told by a statement, not while it is opened: there a pooler refuses what it does not know, or leaves it
out where its operator says so (``ignore_startup_parameters``), and nobody would see that commits are not durable.

A pooler that gives each transaction another connection to the server (``pool_mode = transaction``) makes what one was
told hold for others, and not for it: SharedSessions. A pooler shows by the process id that it makes up for a
connection. Then, once for each ``Sessions``, one connection is marked, another looks whether it finds the mark, and the
first whether it still does.

A URL may name several hosts, and the one that died may answer nothing at all. asyncpg would wait for it until the time
for a connection is over, so each host has a share of that time to be the first that is asked.

Limits: a pooler that is switched over while the engine runs is found out at the next start. Hosts that stand after the
``?`` of a URL are asked as asyncpg does.
"""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import asyncpg

from forwarder.store.trouble import SharedSessions, UnusableUrl

CONNECT_LIMIT = 5.0  # seconds
LATER = 0.5  # seconds in which the server says itself that a statement took too long, and so that it was a statement
SILENT = 60.0  # seconds in which a host that did not answer is not the first to be asked

_MARK = "forwarder.mark"
_FOUND = "SELECT 1"  # what the server says of a query that found one row


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """Closing never fails: asyncpg cuts the connection where the server does not let go of it, and that will do.

    SQLAlchemy closes what broke in a task of its own, whose failure nobody hears when the caller's time is up;
    and a failure there would stand for that of the statement, which says whether to try again.
    """

    async def close(self, *, timeout: float | None = None) -> None:
        with suppress(Exception):
            await super().close(timeout=timeout)


class Sessions:
    """Opens connections to one URL, each told the settings."""

    def __init__(self, url: str, *, settings: Mapping[str, str], patience: float) -> None:
        """``settings`` are ours, and hold no quote."""
        self._urls = turns(url)
        self._first = 0  # of them
        self._again_at = 0.0  # monotonic: they are asked in their order again
        self._patience = patience
        told = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
        self._telling = f"SELECT {told}"
        self._kept = False  # a pooler has shown that it keeps a session for a connection

    async def begin(self) -> asyncpg.Connection:
        """A new connection. SharedSessions, UnusableUrl, and what asyncpg raises."""
        conn = await self._open()
        try:
            directly = f"SELECT 1 WHERE pg_backend_pid() = {conn.get_server_pid()}"
            # As one simple query, one way to the server and back; the status is that of the last.
            status = await conn.execute(f"{self._telling}; {directly}", timeout=CONNECT_LIMIT)
            if status != _FOUND and not self._kept:
                await self._prove(conn)
        except BaseException:
            conn.terminate()
            raise
        return conn

    async def _open(self) -> asyncpg.Connection:
        if self._first and time.monotonic() >= self._again_at:
            self._first = 0  # who is named first may be there again
        hosts = len(self._urls)
        *before, last = [(self._first + turn) % hosts for turn in range(hosts)]
        for first in before:
            with suppress(TimeoutError):
                return await self._begin_at(first)
        return await self._begin_at(last)

    async def _begin_at(self, first: int) -> asyncpg.Connection:
        conn = await self._connect(self._urls[first], CONNECT_LIMIT / len(self._urls))
        if first != self._first:
            self._first, self._again_at = first, time.monotonic() + SILENT
        return conn

    async def _connect(self, url: str, limit: float) -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                dsn=url,
                connection_class=_Connection,
                timeout=limit,
                command_timeout=self._patience + LATER,
                statement_cache_size=0,  # SQLAlchemy keeps the prepared statements
                server_settings={"application_name": "forwarder"},  # poolers know this one
            )
        except (LookupError, OverflowError, ValueError) as error:
            if isinstance(error, OSError | asyncpg.InterfaceError):  # a certificate; an option
                raise
            raise UnusableUrl from error  # a port above 65535, a host name that is none

    async def _prove(self, conn: asyncpg.Connection) -> None:
        mark = secrets.token_hex(8)
        look = f"SELECT 1 WHERE current_setting('{_MARK}', true) = '{mark}'"
        await conn.execute(f"SELECT set_config('{_MARK}', '{mark}', false)", timeout=CONNECT_LIMIT)
        other = await self._open()
        try:
            # Nearly always it comes to where the first has just been, or keeps that for itself for as long as it stays.
            await other.execute("BEGIN", timeout=CONNECT_LIMIT)
            if await other.execute(look, timeout=CONNECT_LIMIT) == _FOUND:
                raise SharedSessions
            await self._look_again(conn, look)
            # In the midst of a transaction the pooler would cut what this came to, and perhaps have one left to give.
            await other.execute("ROLLBACK", timeout=CONNECT_LIMIT)
        finally:
            other.terminate()
        for _ in range(2):  # where connections are given in turn, the next is another
            await self._look_again(conn, look)
        self._kept = True

    @staticmethod
    async def _look_again(conn: asyncpg.Connection, look: str) -> None:
        if await conn.execute(look, timeout=CONNECT_LIMIT) != _FOUND:
            raise SharedSessions


def turns(url: str) -> Sequence[str]:
    """The URL with each of its hosts as the first, the others behind it in their order."""
    scheme, separator, rest = url.partition("://")
    [authority] = re.findall(r"\A[^/?#]*", rest)
    login, at, named = authority.partition("@") if "@" in authority else ("", "", authority)
    hosts = named.split(",")
    if len(hosts) == 1:
        return [url]
    before, behind = f"{scheme}{separator}{login}{at}", rest[len(authority) :]
    if "[" in named:
        # urllib takes brackets only around the first host, before the last colon; behind the ? they may stand anywhere.
        behind, _, _ = behind.partition("#")
        before, behind = f"{before}{behind}{'&' if '?' in behind else '?'}host=", ""
    return [f"{before}{','.join(hosts[n:] + hosts[:n])}{behind}" for n in range(len(hosts))]
