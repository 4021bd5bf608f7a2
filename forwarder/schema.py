"""Whether the database has the schema this release needs, asked before anything is served.

SQLite is ours alone: it is brought up to date at start. PostgreSQL is set up when it is empty; an older schema is
left for ``forwarder migrate``, since other nodes may still serve with it. While the store does not answer, the start
waits and says why: at once when that changes, else after 10 tries, after 20 more, and so on up to every 60. What
waiting cannot mend (an option that nobody knows, a damaged file) ends it.

A database that is up to date, as it nearly always is, is recognised by its revision alone: Alembic takes longer to
load than everything else that a start asks of the store.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from forwarder.node import NodeError
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.trouble import StoreUnavailable

T = TypeVar("T")
RETRY_EVERY = 1.0  # seconds
SAY_AGAIN_AFTER = 10  # tries; doubles up to
SAY_AT_LEAST_EVERY = 60
REVISIONS = Path(__file__).parent / "store" / "migrations" / "versions"

log = structlog.get_logger("schema")


async def wait_for_store(work: Callable[[], Awaitable[T]]) -> T:
    """What ``work`` brings, begun again until the store is there; NodeError when a person must decide."""
    said, silent, pause = "", 0, SAY_AGAIN_AFTER
    while True:
        try:
            return await work()
        except StoreUnavailable as error:
            trouble = explain(error)
        if not trouble.passes:
            raise NodeError(trouble.text)
        silent += 1
        if trouble.text != said or silent >= pause:
            log.warning("the start waits for the database", reason=trouble.text)
            pause = min(2 * pause, SAY_AT_LEAST_EVERY) if trouble.text == said else SAY_AGAIN_AFTER
            said, silent = trouble.text, 0
        await asyncio.sleep(RETRY_EVERY)


async def check_schema(database: Database, url: str) -> None:
    """Make the schema right where that is ours to do; NodeError where it is not; StoreUnavailable."""
    # Without an answer it is away, or empty: the slow way tells which.
    if await database.revision() != newest_revision():
        await asyncio.to_thread(_ensure, url)


def newest_revision() -> str:
    """The revision this release needs: the files of the migrations are numbered."""
    return max(path.name for path in REVISIONS.glob("[0-9]*.py")).partition("_")[0]


def _ensure(url: str) -> None:
    from forwarder.store import migrations

    state = migrations.state(url)
    if state == "newer":
        raise NodeError(
            "the database has the schema of a newer release; install that release on this machine, too (until then, "
            "only an engine of this one that serves already goes on), or name another database in [database] url"
        )
    if state == "old" and not url.startswith("sqlite"):
        raise NodeError(
            "the database has the schema of an older release; run `forwarder migrate` "
            "(it may run while other nodes serve), then start again"
        )
    if state != "current":
        migrations.upgrade(url)
        log.info("the database is set up" if state == "empty" else "the database is brought up to date")
