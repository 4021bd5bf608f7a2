"""The rule sets of hosted domains, cached in this process and never stale where it counts.

``rule_set`` serves from the cache, which ``follow`` keeps within POLL of the store: every change of what a domain does
with mail adds a row to ``changes`` (``touch``) in its own transaction, and caches drop the domains named there.
Domains that are not hosted here are cached too, so that mail to the rest of the world costs no look-up.

``confirmed`` asks the store first whether anything changed, in a read that began after the call: what it then gives is
true, and a refusal may rest on it. That read is one row by primary key, shared by all who ask at the same moment, so
that a dictionary attack makes one small read at a time and not one for each guess.

Why the versions suffice: ``touch`` locks the sequence's row until its transaction ends, so versions become visible in
their order; a rule set is loaded with the version read before its rows, and is loaded again if the cache has seen a
newer one meanwhile. When rows of ``changes`` that we have not seen are purged, everything is loaded anew.

How it fails: StoreUnavailable, never None. ``follow`` goes on by itself when the store is back.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, delete, insert, not_, or_, select, update

from forwarder.mail.address import Path
from forwarder.mail.rules import Alias, Expansion, RuleSet, expand
from forwarder.store.confirmed import confirmed_of
from forwarder.store.engine import Database, StoreUnavailable
from forwarder.store.rows import fetch
from forwarder.store.tables import aliases, changes, domains, sequences

POLL = 0.5  # seconds
CAPACITY = 250_000  # aliases, and domains, in the cache
CHANGES_AT_ONCE = 10_000
LARGE = 500  # aliases: a set of more is built in a thread
RELOADS = 5

_log = structlog.get_logger("forwarder.store")
_VERSION = select(sequences.c.value).where(sequences.c.name == "directory")


def touch(conn: Connection, domain: str, now: datetime) -> None:
    """To be called, in the same transaction, by every change of what a domain does with mail."""
    bump = (
        update(sequences)
        .where(sequences.c.name == "directory")
        .values(value=sequences.c.value + 1)
        .returning(sequences.c.value)
    )
    version = conn.execute(bump).scalar_one()
    conn.execute(insert(changes).values(version=version, domain=domain, changed_at=now))


def touch_all(conn: Connection, names: Sequence[str], now: datetime) -> None:
    """``touch`` for many domains at once."""
    if not names:
        return
    bump = (
        update(sequences)
        .where(sequences.c.name == "directory")
        .values(value=sequences.c.value + len(names))
        .returning(sequences.c.value)
    )
    first = conn.execute(bump).scalar_one() - len(names) + 1
    rows = [{"version": first + n, "domain": name, "changed_at": now} for n, name in enumerate(names)]
    conn.execute(insert(changes), rows)


def purge_changes(conn: Connection, older_than: datetime) -> int:
    """Delete notices of changes; a cache that has not seen one of them loads everything anew."""
    return conn.execute(delete(changes).where(changes.c.changed_at < older_than)).rowcount


@dataclass(frozen=True, slots=True)
class _Known:
    rules: RuleSet | None  # None: not hosted here
    version: int
    weight: int


@dataclass(frozen=True, slots=True)
class _News:
    version: int
    domains: tuple[tuple[int, str], ...]
    complete: bool  # False: some changes are not known by name any more


class Directory:
    """This process's view of the hosted domains."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime],
        capacity: int = CAPACITY,
        require_confirmed: bool = False,
    ) -> None:
        self._database = database
        self._require_confirmed = require_confirmed
        self._clock = clock
        self._capacity = capacity
        self._cache: OrderedDict[str, _Known] = OrderedDict()  # least recently used first
        self._weight = 0
        self._position: int | None = None  # every change up to this version is in the cache
        self._loads: dict[str, asyncio.Task[RuleSet | None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None

    async def rule_set(self, domain: str) -> RuleSet | None:
        """The rules of a domain, at most a second old; None: not hosted here."""
        known = self._cache.get(domain)
        if known is not None:
            self._cache.move_to_end(domain)
            return known.rules
        load = self._loads.get(domain)
        if load is None:
            load = asyncio.get_running_loop().create_task(self._load(domain))
            self._loads[domain] = load
            load.add_done_callback(lambda ended: self._loaded(domain, ended))
        return await asyncio.shield(load)

    async def confirmed(self, domain: str) -> RuleSet | None:
        """The rules of a domain as the store has them now."""
        await self._catch_up()
        return await self.rule_set(domain)

    async def resolve(self, recipient: Path) -> Expansion:
        """Where a recipient leads; a trouble in it is confirmed by the store."""
        expansion = await _driven(expand(recipient), self.rule_set)
        if expansion.trouble is not None:
            expansion = await _driven(expand(recipient), self.confirmed)
        return expansion

    async def follow(self) -> None:
        """Task body: keep the cache within POLL of the store, as soon as there is one again."""
        failing = False
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._catch_up()
            except StoreUnavailable as error:
                if not failing:
                    _log.warning("store.directory_not_followed", error=repr(error.__cause__ or error))
                failing = True
            except Exception as error:  # noqa: BLE001 - this task must outlive what it has not foreseen
                _log.error("store.directory_failed", error=repr(error))
                self._forget_everything()
            else:
                failing = False

    async def _catch_up(self) -> None:
        """Return after a look at the changes that began after this call; callers share one."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_task(self._look_after(self._looking))
            self._next_look.add_done_callback(_seen)
        await asyncio.shield(self._next_look)

    async def _look_after(self, other: asyncio.Task[None] | None) -> None:
        if other is not None:
            await asyncio.wait([other])
        self._looking, self._next_look = self._next_look, None
        while True:
            news = await self._database.read(partial(_news, position=self._position))
            self._apply(news)
            if len(news.domains) < CHANGES_AT_ONCE:
                return

    def _apply(self, news: _News) -> None:
        if not news.complete:
            self._forget_everything()
        for version, domain in news.domains:
            known = self._cache.get(domain)
            if known is not None and known.version < version:
                self._forget(domain)
        self._position = news.version

    async def _load(self, domain: str) -> RuleSet | None:
        if self._position is None:
            await self._catch_up()
        for _ in range(RELOADS):
            version, rules, weight = await self._read(domain)
            if version >= (self._position or 0):
                self._remember(domain, _Known(rules, version, weight))
                return rules
        return rules  # the directory changes faster than we load: true when it was read, but not to be kept

    async def _read(self, domain: str) -> tuple[int, RuleSet | None, int]:
        version, owner, rows, confirmed = await self._database.read(
            lambda conn: _rows_of(conn, domain, self._require_confirmed)
        )
        if owner is None:
            return version, None, 1
        domain_id, account_id = owner

        def build() -> RuleSet:
            stored = (Alias.stored(*row) for row in rows)
            return RuleSet(domain, domain_id, version, stored, account_id=account_id, confirmed=confirmed)

        rules = await asyncio.to_thread(build) if len(rows) > LARGE else build()
        return version, rules, 1 + len(rows)

    def _loaded(self, domain: str, ended: "asyncio.Task[RuleSet | None]") -> None:
        self._loads.pop(domain, None)
        _seen(ended)

    def _remember(self, domain: str, known: _Known) -> None:
        self._forget(domain)
        self._cache[domain] = known
        self._weight += known.weight
        while self._weight > self._capacity and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._weight -= dropped.weight

    def _forget(self, domain: str) -> None:
        known = self._cache.pop(domain, None)
        if known is not None:
            self._weight -= known.weight

    def _forget_everything(self) -> None:
        self._cache.clear()
        self._weight = 0


def _seen(ended: "asyncio.Task[Any]") -> None:
    """An error is the waiters'; when all of them are gone it is nobody's."""
    if not ended.cancelled():
        ended.exception()


def _news(conn: Connection, position: int | None) -> _News:
    version: int = conn.execute(_VERSION).scalar_one()
    if position is None or version < position:  # the first look; or the database is an older copy of itself
        return _News(version, (), complete=False)
    if version == position:
        return _News(version, (), complete=True)
    query = (
        select(changes.c.version, changes.c.domain)
        .where(changes.c.version > position)
        .order_by(changes.c.version)
        .limit(CHANGES_AT_ONCE)
    )
    rows = tuple((row.version, row.domain) for row in conn.execute(query))
    if not rows or rows[0][0] != position + 1:
        return _News(version, (), complete=False)
    return _News(rows[-1][0], rows, complete=True)


_Rows = tuple[int, tuple[int, int] | None, list[tuple[Any, ...]], frozenset[str] | None]


def _rows_of(conn: Connection, domain: str, require_confirmed: bool) -> _Rows:
    """Version, ids of the domain and its account, rows of its aliases, those of their addresses that are confirmed."""
    version: int = conn.execute(_VERSION).scalar_one()  # first: what is read after it is at least as new
    owner = conn.execute(select(domains.c.id, domains.c.account_id).where(domains.c.name == domain)).first()
    if owner is None:
        return version, None, [], None
    domain_id, account_id = owner
    query = (
        select(
            aliases.c.id,
            aliases.c.pattern,
            aliases.c.forward,
            aliases.c.is_active,
            aliases.c.when_disabled,
            aliases.c.rank,
        )
        .where(aliases.c.domain_id == domain_id, or_(aliases.c.is_active, not_(aliases.c.is_skipped)))
        .order_by(aliases.c.id)
    )
    rows = fetch(conn, query, {})
    confirmed = confirmed_of(conn, (row[2] for row in rows)) if require_confirmed else None
    return version, (domain_id, account_id), rows, confirmed


async def _driven(
    steps: Generator[str, RuleSet | None, Expansion], rule_set: Callable[[str], Awaitable[RuleSet | None]]
) -> Expansion:
    try:
        domain = next(steps)
        while True:
            domain = steps.send(await rule_set(domain))
    except StopIteration as finished:
        expansion: Expansion = finished.value
        return expansion
