"""What one process of a node does before any serves: the schema, the keys, leases of the node's dead made free."""

from datetime import UTC, datetime

import structlog

from forwarder.config import Settings
from forwarder.custody import serve_with
from forwarder.node import NodeError, node_id
from forwarder.schema import prepare_schema
from forwarder.store import workers
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.trouble import StoreUnavailable

log = structlog.get_logger("serve")


async def prepare(settings: Settings) -> None:
    """Return when store and keys are ready for this node's processes; NodeError, KeyringError: a person must decide."""
    try:
        await _prepare(settings)
    except StoreUnavailable as error:  # a file that is not ours to use; or it went away since it answered
        raise NodeError(explain(error).text) from error


async def _prepare(settings: Settings) -> None:
    database = await Database.open(settings.database.url, pool_size=1)
    try:
        await prepare_schema(database, settings.database.url)
        await serve_with(database, settings)
        released = await workers.release_node(database, node_id(settings.data_dir), datetime.now(UTC))
        if released:
            log.info("deliveries of an earlier run are due again", deliveries=released)
    finally:
        await database.close()
