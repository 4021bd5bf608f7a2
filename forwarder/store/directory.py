"""The rule sets of hosted domains, cached in this process and never stale where it counts.

``rule_set`` serves from the cache, which ``follow`` keeps within POLL of the store: every change of what a domain does
with mail is announced in its own transaction (``changes.touch``), and caches drop the domains named there.
Domains that are not hosted here are cached too, so that mail to the rest of the world costs no look-up. ``resolve``
also keeps whole answers, as long as nothing changes anywhere: a busy recipient costs one look into a dictionary.

``confirmed`` asks the store first whether anything changed, in a read that began after the call: what it then gives is
true, and a refusal may rest on it. That read is one row by primary key, shared by all who ask at the same moment, so
that a dictionary attack makes one small read at a time and not one for each guess; except in a domain whose aliases are
too many to be held (``rule_sets``), where a name is a read by key until it is known.

Why the versions suffice: ``touch`` locks the sequence's row until its transaction ends, so versions become visible in
their order; a rule set is loaded with the version of the same moment, and is loaded again if the cache has seen a
newer one meanwhile. When rows of ``changes`` that we have not seen are purged, and when another server answers,
everything is loaded anew.

What is cached takes CAPACITY octets at most, as its makers weigh it, compiled expressions among it; what was used least
recently goes first. An address is compared with very many expressions in a thread, one address of an account at a time:
whoever saves them and names recipients there holds up nobody else's mail.

How it fails: StoreUnavailable, never None. ``follow`` goes on by itself when the store is back.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

import structlog

from forwarder.errands import Errands, unheard
from forwarder.mail.address import Path
from forwarder.mail.aliases import UNKNOWN, RuleSet
from forwarder.mail.postmaster import Postmaster
from forwarder.mail.rules import Expansion, expand
from forwarder.store.bounded import Bounded
from forwarder.store.changes import CHANGES_AT_ONCE, News, news_since
from forwarder.store.engine import Database
from forwarder.store.rule_sets import Known, Lines, read_domain, read_names
from forwarder.store.trouble import StoreUnavailable

POLL = 0.5  # seconds
CAPACITY = 64 * 1024 * 1024  # octets: three quarters for domains, an eighth for names, an eighth for answers
RELOADS = 5
PLAIN = 4  # steps and destinations of an answer that is kept
ANSWER = 600  # octets of memory: each of them
NAMES = 330  # octets of memory: the names for an address, their text aside

_Steps = Generator[Path, RuleSet | None, Expansion]
_T = TypeVar("_T")

_log = structlog.get_logger("forwarder.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """The exact aliases that could answer for an address of a domain whose names are not held."""

    lines: Lines
    version: int  # of the rules they fit: an answer of two versions was never true


class Directory:
    """This process's view of the hosted domains."""

    def __init__(
        self,
        database: Database,
        *,
        capacity: int = CAPACITY,
        require_confirmed: bool = False,
        postmaster: Postmaster | None = None,
    ) -> None:
        """``postmaster``: of this server itself, to whom aliases may lead."""
        self._database = database
        self._require_confirmed = require_confirmed
        self._postmaster = postmaster
        self._domains: Bounded[str, Known] = Bounded(capacity * 3 // 4)
        self._names: Bounded[str, _Names] = Bounded(capacity // 8)
        self._answers: Bounded[Path, Expansion] = Bounded(capacity // 8)
        self._position: int | None = None  # every change up to this version is in the cache
        self._server: object = None  # that told it
        self._turn = 0  # moves when what was found before may no longer be true
        self._loads = Errands("directory")
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._looking: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None

    @property
    def octets(self) -> int:
        """Of memory that the caches take, about."""
        return self._domains.weight + self._names.weight + self._answers.weight

    async def rule_set(self, address: Path) -> RuleSet | None:
        """Rules that answer for an address as its domain's do, at most a second old; None: not hosted here."""
        rules = await self._unprepared(address)
        if rules is not None and not rules.ready(address.local):
            await self._loads.run(
                f"{rules.domain} {rules.version} {address.local.isascii()}",
                partial(asyncio.to_thread, rules.prepare, address.local),
            )
            known = self._domains.peek(rules.domain)
            if known is not None and known.version == rules.version:
                self._put(rules.domain, known)  # it weighs more now
        return rules

    async def _unprepared(self, address: Path) -> RuleSet | None:
        known = self._domains.get(address.domain)
        if known is None:
            known = await self._loads.run(address.domain, lambda: self._load(address))
        if known.rules is None or known.names is None:
            return known.rules
        name = f"{address.key}@{address.domain}"
        names = self._names.get(name)
        if names is not None and names.version == known.version:
            return known.rules.with_names(names.lines)
        return await self._loads.run(name, lambda: self._load_names(address, known))

    async def hosts(self, domain: str) -> bool:
        """Whether a domain is hosted here, whoever's it is."""
        return await self.rule_set(Path(local="postmaster", domain=domain)) is not None

    async def confirmed(self, address: Path) -> RuleSet | None:
        """Rules that answer for an address as its domain's do in the store now."""
        await self.catch_up()
        return await self.rule_set(address)

    async def answers(self, address: Path) -> bool:
        """Whether an alias answers for an address in the store now."""
        rules = await self.confirmed(address)
        if rules is None:
            return False
        look = partial(rules.resolve, address.local)
        found = await self._aside(rules.account_id, look) if rules.takes_long else look()
        return found is not UNKNOWN

    async def resolve(self, recipient: Path) -> Expansion:
        """Where a recipient leads that a client names to us as its MX host; a trouble is confirmed by the store."""
        known = self._answers.get(recipient)
        if known is not None:
            return known
        turn = self._turn
        expansion = await self._for_certain(expand, recipient)
        if expansion.trouble is not None:
            return expansion
        size = len(expansion.steps) + len(expansion.targets)
        if self._turn == turn and size <= PLAIN:
            self._answers.put(recipient, expansion, size * ANSWER)
        return expansion

    async def resolve_ours(self, recipient: Path, *, account_id: int | None = None) -> Expansion:
        """The same for mail that is ours to send, for an account where it is known (``rules.expand``).

        The recipient of what comes back is the one that was followed: for the postmaster, where he leads.
        """
        if self._postmaster is not None and self._postmaster.is_at(recipient):
            recipient = self._postmaster.leads_to
        return await self._for_certain(partial(expand, at_door=False, account_id=account_id), recipient)

    async def resolve_for(self, recipient: Path, behalf: Path) -> Expansion:
        """The same for the account of an address that is hosted here, if it is."""
        rules = await self.rule_set(behalf)
        return await self.resolve_ours(recipient, account_id=rules.account_id if rules is not None else None)

    async def _for_certain(self, follow: Callable[[Path], _Steps], recipient: Path) -> Expansion:
        turn = self._turn
        expansion = await self._expanded(follow(recipient))
        if expansion.trouble is None:
            return expansion
        await self.catch_up()
        return expansion if self._turn == turn else await self._expanded(follow(recipient))

    async def _expanded(self, steps: _Steps) -> Expansion:
        rules: RuleSet | None = None
        whose: int | None = None  # of whom the expressions are that are compared beside the event loop
        while True:
            step = partial(_next, steps, rules)
            found = step() if whose is None else await self._aside(whose, step)
            if isinstance(found, Expansion):
                return found
            rules = await self._rules_for(found)
            if rules is not None and rules.takes_long:
                whose = rules.account_id
            elif rules is not None and rules.expressions:
                await asyncio.sleep(0)  # a client may name a thousand recipients at once

    async def _aside(self, account_id: int, work: Callable[[], _T]) -> _T:
        """Do in a thread what compares an address with very many expressions; for each account one after the other."""
        turn = self._turns.get(account_id)
        if turn is None:
            turn = self._turns[account_id] = asyncio.Lock()
        async with turn:
            return await asyncio.to_thread(work)

    async def _rules_for(self, address: Path) -> RuleSet | None:
        own = self._postmaster
        return own.rules if own is not None and own.is_at(address) else await self.rule_set(address)

    async def follow(self) -> None:
        """Task body: keep the cache within POLL of the store, as soon as there is one again."""
        failing = False
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.catch_up()
            except StoreUnavailable as error:
                if not failing:
                    _log.warning("the directory waits for the store", reason=repr(error.__cause__ or error))
                failing = True
            except Exception as error:  # noqa: BLE001 - this task must outlive what it has not foreseen
                _log.error("the directory was not followed; it is read anew", reason=repr(error))
                self._forget_everything()
            else:
                failing = False

    async def catch_up(self) -> None:
        """Return after a look at the changes that began after this call; those who call meanwhile share one."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_task(self._look_after(self._looking))
            self._next_look.add_done_callback(unheard)
        await asyncio.shield(self._next_look)

    async def _look_after(self, other: asyncio.Task[None] | None) -> None:
        if other is not None:
            await asyncio.wait([other])
        self._looking, self._next_look = self._next_look, None
        while True:
            look = partial(news_since, position=self._position, server=self._server)
            news = await self._database.read(look)
            self._apply(news)
            if len(news.domains) < CHANGES_AT_ONCE:
                return

    def _apply(self, news: News) -> None:
        if not news.complete:
            self._forget_everything()
        for version, domain in news.domains:
            known = self._domains.peek(domain)
            if known is not None and known.version < version:
                self._domains.forget(domain)
        if news.domains:
            self._turn += 1
            self._answers.clear()  # of whatever domain: they are made of several
        self._position, self._server = news.version, news.server

    async def _load(self, address: Path) -> Known:
        if self._position is None:
            await self.catch_up()
        for _ in range(RELOADS):
            known = await read_domain(self._database, address, require_confirmed=self._require_confirmed)
            if known.version >= (self._position or 0):
                self._put(address.domain, known)
                if known.names is not None:
                    self._remember_names(address, known.names, known.version)
                return known
        self._turn += 1
        return known  # the directory changes faster than we load: true when it was read, but not to be kept

    async def _load_names(self, address: Path, known: Known) -> RuleSet | None:
        """The rules for one more address of a domain whose names are not held."""
        assert known.rules is not None
        version, names = await read_names(self._database, address, known.rules.domain_id)
        if version > (self._position or 0):
            await self.catch_up()
        if self._domains.peek(address.domain) is known and version >= known.version:
            # No change of the domain is known of, up to a version that is not before the names': they fit its patterns.
            self._remember_names(address, names, known.version)
            return known.rules.with_names(names)
        return (await self._load(address)).answering

    def _put(self, domain: str, known: Known) -> None:
        compiled = known.rules.compiled if known.rules is not None else 0
        self._domains.put(domain, known, known.weight + compiled)

    def _remember_names(self, address: Path, names: Lines, version: int) -> None:
        key = f"{address.key}@{address.domain}"
        self._names.put(key, _Names(lines=names, version=version), NAMES + len(names))

    def _forget_everything(self) -> None:
        self._turn += 1
        self._domains.clear()
        self._names.clear()
        self._answers.clear()


def _next(steps: _Steps, rules: RuleSet | None) -> Path | Expansion:
    """The address that rules are asked for next, or what came of it all; from any thread."""
    try:
        return steps.send(rules)
    except StopIteration as finished:
        expansion: Expansion = finished.value
        return expansion
