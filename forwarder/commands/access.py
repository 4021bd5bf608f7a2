"""What a command works on: the settings, the open store, the vault.

``read`` and ``write`` open the store, do one thing in it and close it. It is brought up to date first where ``serve``
would do so too. Beside ConfigError and what the store raises, they fail with ``Failure``.
"""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.engine import Database
    from forwarder.store.vault import Vault

T = TypeVar("T")


def settings_of(config: str | None) -> "Settings":
    """The configuration that ``--config`` names, with logging set up for a person at a prompt; ConfigError."""
    from forwarder.config import load
    from forwarder.diagnostics import set_up

    settings = load(config, os.environ)
    # What rooms log goes to standard error, and only what a person at a prompt must know.
    set_up(settings.model_copy(update={"logs": settings.logs.model_copy(update={"level": "warning"})}))
    return settings


def make_data_dir(settings: "Settings") -> None:
    """The folder that SQLite needs, made where it is missing; Failure."""
    if not settings.database.url.startswith("sqlite"):
        return
    not_as_root(settings)
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            f"{settings.data_dir} cannot be made ({error.strerror}); "
            "data_dir must be writable for the user that runs this"
        ) from None


def not_as_root(settings: "Settings") -> None:
    """Failure where root would make files in another user's folder, with which the engine could not start."""
    from forwarder.keyring import keys_folder
    from forwarder.store.engine import sqlite_path

    if os.geteuid() != 0 or (path := sqlite_path(settings.database.url)) is None:
        return
    for made in (*(Path(path + end) for end in ("", ".lock", ".turn")), keys_folder(settings)):
        if made.exists():
            continue
        folder = next(each for each in made.absolute().parents if each.exists())
        if owner := folder.stat().st_uid:
            raise Failure(
                f"{folder} belongs to {_user(owner)}, and the engine could not use what root makes in it; "
                f"run this as that user: runuser -u {_user(owner)} -- …"
            )


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # of a container, say
        return str(number)


def with_store(config: str | None, work: "Callable[[Database, Settings], Coroutine[Any, Any, T]]") -> T:
    """Run ``work`` over the open database, brought up to date first where ``serve`` would do so too."""
    return _over(settings_of(config), work)


def _over(settings: "Settings", work: "Callable[[Database, Settings], Coroutine[Any, Any, T]]") -> T:
    import asyncio

    from forwarder.schema import check_schema
    from forwarder.store.engine import Database

    make_data_dir(settings)

    async def main() -> T:
        database = await Database.open(settings.database.url, pool_size=1)
        try:
            await check_schema(database, settings.database.url)
            return await work(database, settings)
        finally:
            await database.close()

    return asyncio.run(main())


def read(config: str | None, work: "Callable[[Connection, Settings], T]") -> T:
    """Ask the store one thing."""

    async def ask(database: "Database", settings: "Settings") -> T:
        return await database.read(lambda conn: work(conn, settings))

    return with_store(config, ask)


def write(config: str | None, work: "Callable[[Connection, Settings], T]") -> T:
    """Change one thing, durably when this returns."""

    async def change(database: "Database", settings: "Settings") -> T:
        return await database.write(lambda conn: work(conn, settings))

    return with_store(config, change)


def vault_of(settings: "Settings") -> "Vault":
    """The vault; its key is made, or refused, as ``serve`` would."""
    from forwarder.custody import check_keys
    from forwarder.keyring import open_store_key
    from forwarder.store.vault import Vault

    _over(settings, check_keys)
    return Vault(open_store_key(settings))
