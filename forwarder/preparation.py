"""What one process of a node does before any serves: the schema, the keys, leases of the node's dead made free.

What an earlier run had counted is forgotten: of one that was killed, clients would be taken for connected for ever.
"""

import asyncio
from functools import partial

import structlog

from forwarder import tally
from forwarder.clock import utc_now
from forwarder.config import Settings, run_folder
from forwarder.custody import serve_with
from forwarder.inbound.limits import SERVICES, clear_table, table_path
from forwarder.node import NodeError, node_id
from forwarder.schema import check_schema, wait_for_store
from forwarder.store import workers
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.trouble import StoreUnavailable

log = structlog.get_logger("preparation")


async def prepare(settings: Settings) -> None:
    """Return when store and keys are ready for this node's processes; NodeError, KeyringError: a person must decide.

    Waits for a store that is away, or whose disk is full.
    """
    await asyncio.to_thread(_forget_counts, settings)
    try:
        database = await Database.open(settings.database.url, pool_size=1)
    except StoreUnavailable as error:  # a file that is not ours to use
        raise NodeError(explain(error).text) from error
    try:
        await wait_for_store(partial(_prepare, database, settings))
    finally:
        await database.close()


def _forget_counts(settings: Settings) -> None:
    try:
        tally.forget(run_folder(settings.data_dir))
    except OSError as error:
        log.warning("what an earlier run had counted stays", reason=error.strerror)
    for service in SERVICES:
        try:
            clear_table(table_path(settings.data_dir, service))
        except OSError as error:  # a full disk: its counts only make us refuse too early
            log.warning("what an earlier run had counted stays", reason=error.strerror)


async def _prepare(database: Database, settings: Settings) -> None:
    await check_schema(database, settings.database.url)
    await serve_with(database, settings)
    released = await workers.release_node(database, node_id(settings.data_dir), utc_now())
    if released:
        log.info("deliveries of an earlier run are due again", deliveries=released)
