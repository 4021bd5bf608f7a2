"""Whether the database has the schema this release needs, asked before anything is served.

SQLite is ours alone: it is brought up to date at start. PostgreSQL is set up when it is empty; an older schema is
left for ``forwarder migrate``, since other nodes may still serve with it. While the store does not answer, the start
waits and says so.
"""

import asyncio

import structlog

from forwarder.node import NodeError
from forwarder.store import migrations
from forwarder.store.trouble import StoreUnavailable

RETRY_EVERY = 1.0  # seconds
SAY_EVERY = 10  # tries

log = structlog.get_logger("schema")


async def prepare_schema(url: str) -> None:
    """Return when the schema is right; NodeError when a person must decide."""
    tries = 0
    while True:
        try:
            return await asyncio.to_thread(ensure_schema, url)
        except StoreUnavailable as error:
            if tries % SAY_EVERY == 0:
                log.warning("the start waits for the database", reason=str(error))
            tries += 1
            await asyncio.sleep(RETRY_EVERY)


def ensure_schema(url: str) -> None:
    """Blocking; StoreUnavailable when the database does not answer."""
    state = migrations.state(url)
    if state == "newer":
        raise NodeError(
            "the database was made by a newer release of this engine; install that release, "
            "or name another database in [database] url"
        )
    if state == "old" and not url.startswith("sqlite"):
        raise NodeError(
            "the database has the schema of an older release; run `forwarder migrate` "
            "(it may run while other nodes serve), then start again"
        )
    if state != "current":
        migrations.upgrade(url)
        log.info("the database is set up" if state == "empty" else "the database is brought up to date")
