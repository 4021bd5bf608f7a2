"""Signatures; the substance follows."""

from collections.abc import Callable
from datetime import datetime

from starlette.applications import Starlette

from api.health import Health
from forwarder.config import Settings
from forwarder.net.dns import Resolver
from forwarder.store.engine import Database
from forwarder.store.vault import Vault


def build_app(
    settings: Settings,
    database: Database,
    resolver: Resolver,
    clock: Callable[[], datetime],
    health: Callable[[], Health],
    *,
    vault: Vault,
) -> Starlette:
    """The REST face as one ASGI application."""
    del settings, database, resolver, clock, health, vault
    return Starlette()
