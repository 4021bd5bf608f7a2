"""Whether the keys on disk are those of the database, asked before anything is served with them.

Keys are made for a fresh installation only: while the database holds no domain. Once it does, keys that are missing
were lost, or this is another machine of the same database to which they were not copied yet; new ones in their place
would make bounces to earlier SRS addresses unreadable, signatures wrong, and the domains' sealed keys useless. A
``store.key`` that does not open every sealed key is as bad.

Commands refuse to work with such keys, and ``forwarder check`` says so. An engine warns, makes what is missing, and
forwards mail all the same (``serve_with``): a server that is down would lose more. Of a ``store.key`` that is not the
right one it warns at each start; of SRS secrets and keys of the service, which nothing in the database tells apart from
others, only at the start that makes them.

Whoever has lost them for good says so with a file ``make-new-keys`` in data_dir: at the next start what is missing is
made, and so are the keys of domains that do not open, under the selectors they had. Nothing is submitted as such a
domain until its new DKIM record is found. The file is removed when all of that is durable; until then the next start
goes on with it.

Limits: a start and a command open the first 500 sealed keys and the last 500, some 25 microseconds each; ``forwarder
check`` and a renewal open all. A domain's new RSA key takes 100 ms.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import cast

import structlog
from sqlalchemy import Connection

from forwarder.clock import utc_now
from forwarder.config import Settings
from forwarder.keyring import (
    RENEW,
    KeyringError,
    keys_folder,
    lost_keys,
    make_missing_keys,
    missing_keys,
    open_store_key,
    way_on,
)
from forwarder.mail import seal
from forwarder.store import dkim_keys, domains
from forwarder.store.dkim_keys import DkimKey, NewDkimKey
from forwarder.store.engine import Database
from forwarder.store.vault import Vault, WrongKey, make_key

PAGE = 500  # sealed keys read at once; of one store.key as a rule, so that some tell of all

log = structlog.get_logger("custody")


class ForeignKeysError(KeyringError):
    """The keys on disk are not those that the database was used with."""


async def serve_with(database: Database, settings: Settings) -> None:
    """``check_keys`` for an engine that starts: what a person must decide is told, and mail is forwarded meanwhile."""
    try:
        await check_keys(database, settings, may_renew=True)
    except ForeignKeysError as error:
        log.warning("the keys are not those of this database", reason=str(error))
        await asyncio.to_thread(make_missing_keys, settings)


async def check_keys(
    database: Database, settings: Settings, *, may_renew: bool = False, thorough: bool = False
) -> None:
    """Make the keys right where that is ours to do; KeyringError where it is not; StoreUnavailable.

    ``may_renew``: heed the file ``make-new-keys``. ``thorough``: open every sealed key, however many there are.
    """
    renew = may_renew and await asyncio.to_thread((settings.data_dir / RENEW).exists)
    # The database before the disk: a fresh installation has its keys before its first domain, so that whoever sees
    # a domain and then no keys does not see a start that is under way elsewhere.
    hosting = await database.read(_hosts_something)
    missing = await asyncio.to_thread(missing_keys, settings)
    if missing and hosting and not renew:
        raise ForeignKeysError(lost_keys(settings, missing))
    await asyncio.to_thread(make_missing_keys, settings)
    vault = Vault(await asyncio.to_thread(open_store_key, settings))
    closed = await _that_do_not_open(database, vault, thorough=thorough or renew)
    if closed and not renew:
        names = sorted({name for name, _ in closed})
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ForeignKeysError(
            f"{keys_folder(settings) / 'store.key'} does not open the DKIM keys of {names[0]}{more} in the database; "
            f"{way_on(settings, 'lost for good')}"
        )
    if renew:
        await _renew(database, vault, closed)
        (settings.data_dir / RENEW).unlink(missing_ok=True)
        log.warning("new keys are made; publish the records that `forwarder domain dns NAME` prints")


def _hosts_something(conn: Connection) -> bool:
    return bool(domains.list_domains(conn, limit=1)[0])


async def _that_do_not_open(database: Database, vault: Vault, *, thorough: bool) -> list[tuple[str, DkimKey]]:
    closed: list[tuple[str, DkimKey]] = []
    before_the_last = partial(dkim_keys.nth_from_the_end, number=PAGE)
    after = 0
    while page := await database.read(partial(dkim_keys.page, after=after, limit=PAGE)):
        closed += [(name, key) for name, key in page if not _opens(vault, name, key)]
        last = page[-1][1].id
        after = last if thorough or after else max(last, await database.read(before_the_last))
    if closed and not thorough:
        return await _that_do_not_open(database, vault, thorough=True)
    return closed


def _opens(vault: Vault, domain: str, key: DkimKey) -> bool:
    try:
        vault.open(key.private_key, domain=domain, selector=key.selector)
    except WrongKey:
        return False
    return True


async def _renew(database: Database, vault: Vault, closed: Sequence[tuple[str, DkimKey]]) -> None:
    for name, old in closed:
        algorithm = cast("seal.Algorithm", old.algorithm)  # the table takes no other
        new = await asyncio.to_thread(make_key, vault, name, old.selector, algorithm)
        if await database.write(partial(_replace, name, old, new)):
            log.warning("a DKIM key that did not open is made anew", domain=name, selector=old.selector)


def _replace(name: str, old: DkimKey, new: NewDkimKey, conn: Connection) -> bool:
    domain = domains.get(conn, name)
    return domain is not None and dkim_keys.replace(conn, domain, old, new, utc_now())
