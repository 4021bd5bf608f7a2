"""Resolving recipients: many domains, many aliases in a domain, many patterns in a domain.

In this process, through the same ``Directory.resolve`` that RCPT uses, over a SQLite store. What counts is
that the cost of a recipient does not grow with how many others there are.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from benchmarks import fill, report
from benchmarks.bench import Bench
from forwarder.mail.address import Path as Address
from forwarder.mail.aliases import Alias, RuleSet
from forwarder.store import accounts, migrations
from forwarder.store.directory import CAPACITY, Directory
from forwarder.store.engine import Database
from forwarder.store.rule_sets import TOGETHER

T = TypeVar("T")


def now() -> datetime:
    return datetime.now(UTC)


async def resolved(bench: Bench) -> list[report.Section]:
    """Few and many domains through the store; one large domain and one of patterns in memory."""
    rows = []
    for domains, aliases in ((10, 100), (bench.times(10_000, least=100), 100), (20, bench.times(10_000))):
        bench.tell(f"{domains} domains × {aliases} aliases")
        rows.append(await _through_the_store(bench, domains, aliases))
    rows += [
        _in_memory(f"{count:,} exact aliases in one domain, in memory", [f"a{n}" for n in range(count)])
        for count in (100, 10_000)
    ]
    bench.tell("500 patterns")
    patterns = [f"(team|group){n}-[a-z]+" for n in range(500)]
    names = [f"group{n}-sales" for n in range(500)]
    rows.append(_in_memory("500 regular expressions in one domain", patterns, names))
    rows.append(_in_memory("500 regular expressions, none of which matches", patterns, ["nobody"]))
    return [
        report.Section(
            "Resolving recipients",
            "Recipients chosen evenly over all aliases, the worst case for a cache; microseconds a recipient. Through "
            "the store, *cold* is the first look at a domain, which reads its aliases as text in one statement, up to "
            f"{TOGETHER}; of more, the two that could answer. *Warm* comes after one look at each domain. The cache of "
            f"a process is bounded by {CAPACITY >> 20} MiB; the last column says what it took by its own estimate. In "
            "a domain too large to be held, a recipient that is not cached is a read by key. In memory, *cold* parses "
            "all aliases and makes the rule set of them, as is done with the patterns of a domain.",
            ("directory", "cold", "warm", "recipients/s, warm", "cache, MiB"),
            rows,
        )
    ]


async def _through_the_store(bench: Bench, domains: int, aliases: int) -> tuple[str, ...]:
    path = bench.root / f"directory-{domains}-{aliases}.db"
    url = f"sqlite:///{path}"
    migrations.upgrade(url)
    database = await Database.open(url)
    account = await database.write(lambda conn: accounts.create(conn, "a@b.test", "default", now()))
    fill.aliases(path, account_id=account.id, domains=domains, per_domain=aliases)
    chance = random.Random(1)
    try:
        order = list(range(domains))
        chance.shuffle(order)
        firsts = [f"a{n % aliases}@d{n}.test" for n in order]
        await _timed(Directory(database), firsts[:10])  # opens connections and compiles statements
        # Of few domains, the first look at each is taken several times.
        rounds = max(1, bench.times(500) // domains)
        cold = 0.0
        for _ in range(rounds):
            directory = Directory(database)
            await directory.catch_up()
            cold += await _timed(directory, firsts) / rounds
        picks = [
            f"a{chance.randrange(aliases)}@d{chance.randrange(domains)}.test"
            for _ in range(bench.times(20_000))
        ]
        warm = await _timed(directory, picks)
        held = directory.octets / 2**20
    finally:
        await database.close()
    name = f"{domains:,} domains × {aliases:,} aliases, SQLite"
    return name, f"{cold * 1e6:.0f}", f"{warm * 1e6:.1f}", f"{1 / warm:,.0f}", f"{held:.1f}"


async def _timed(directory: Directory, addresses: Sequence[str]) -> float:
    """Seconds a recipient."""
    paths = [Address.from_storage(address) for address in addresses]
    began = time.perf_counter()
    for path in paths:
        found = await directory.resolve(path)
        if found.trouble is not None:
            raise RuntimeError(f"{path.storage()} was not resolved: {found.trouble}")
    return (time.perf_counter() - began) / len(paths)


def _in_memory(name: str, patterns: Sequence[str], locals_: Sequence[str] | None = None) -> tuple[str, ...]:
    made = (Alias.stored(n, pattern, "u@dest.test", True, 550) for n, pattern in enumerate(patterns, 1))
    rules, build = _clocked(lambda: RuleSet("one.test", 1, 1, made))
    chance = random.Random(1)
    wanted = [chance.choice(locals_ or patterns) for _ in range(2000)]
    _, first = _clocked(lambda: rules.resolve(wanted[0]))
    _, all_of_them = _clocked(lambda: [rules.resolve(local) for local in wanted])
    each = all_of_them / len(wanted)
    return name, f"{(build + first) * 1e6:.0f}", f"{each * 1e6:.1f}", f"{1 / each:,.0f}", "–"


def _clocked(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
