"""The cache of rule sets: never stale where a refusal rests on it, fresh within a second elsewhere."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, update

from forwarder.mail.address import parse_address
from forwarder.mail.aliases import UNKNOWN
from forwarder.mail.expressions import RegexTable, table_of
from forwarder.store import directory as directory_room
from forwarder.store import rule_sets
from forwarder.store.changes import purge, touch
from forwarder.store.directory import Directory
from forwarder.store.engine import Database
from forwarder.store.migrations import upgrade
from forwarder.store.tables import accounts, aliases, domains
from forwarder.store.trouble import StoreUnavailable
from tests.postgres import Server
from tests.store.conftest import NOON, Stage, until

ANYBODY = parse_address("anybody@pied.example")


def host(name: str, *patterns: str) -> Any:
    def work(conn: Connection) -> None:
        account = conn.execute(
            insert(accounts).values(email=f"owner@{name}", created_at=NOON).returning(accounts.c.id)
        ).scalar_one()
        touch(conn, name, NOON)
        domain_id = conn.execute(
            insert(domains)
            .values(
                account_id=account,
                name=name,
                display=name,
                webhook_key="k",
                dkim_selector="s",
                added_at=NOON,
            )
            .returning(domains.c.id)
        ).scalar_one()
        for pattern in patterns:
            add(conn, domain_id, pattern)

    return work


def add(conn: Connection, domain_id: int, pattern: str) -> None:
    conn.execute(
        insert(aliases).values(
            domain_id=domain_id, pattern=pattern, forward="someone@dest.example", created_at=NOON
        )
    )


def add_to(name: str, pattern: str, at: datetime = NOON) -> Any:
    def work(conn: Connection) -> None:
        touch(conn, name, at)
        domain_id = conn.execute(domains.select().where(domains.c.name == name)).one().id
        add(conn, domain_id, pattern)

    return work


async def answers(directory: Directory, address: str, *, confirmed: bool = False) -> bool:
    path = parse_address(address)
    rules = await (directory.confirmed(path) if confirmed else directory.rule_set(path))
    return rules is not None and rules.resolve(path.local) is not UNKNOWN


class Counting:
    """A database that counts its reads and can be told to fail."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads = 0
        self.failing = False

    async def read(self, work: Any) -> Any:
        self.reads += 1
        if self.failing:
            raise StoreUnavailable
        return await self.database.read(work)


@pytest.fixture
async def here(stage: Stage) -> tuple[Database, Directory, Counting]:
    """Another process's database, our directory, and what it reads from."""
    counting = Counting(await stage.database())
    return await stage.database(), Directory(counting), counting  # type: ignore[arg-type]


async def test_a_domain_is_found_and_cached(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, counting = here
    await other.write(host("pied.example", "richard", "sales-*"))
    assert await answers(directory, "richard@pied.example")
    reads = counting.reads
    assert await answers(directory, "sales-eu@pied.example")
    assert not await answers(directory, "erlich@pied.example")
    assert counting.reads == reads


async def test_a_confirmed_answer_is_as_new_as_the_store(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, _ = here
    assert await directory.confirmed(ANYBODY) is None
    await other.write(host("pied.example"))
    assert await directory.confirmed(ANYBODY) is not None
    for n in range(5):
        assert not await answers(directory, f"new{n}@pied.example", confirmed=True)
        await other.write(add_to("pied.example", f"new{n}"))
        assert await answers(directory, f"new{n}@pied.example", confirmed=True)


async def test_a_change_elsewhere_is_in_force_within_a_second(
    here: tuple[Database, Directory, Counting],
) -> None:
    other, directory, _ = here
    await other.write(host("pied.example"))
    following = asyncio.create_task(directory.follow())
    assert not await answers(directory, "late@pied.example")
    assert await directory.rule_set(parse_address("a@young.example")) is None
    await other.write(add_to("pied.example", "late"))
    await other.write(host("young.example", "a"))

    async def seen() -> bool:
        return await answers(directory, "late@pied.example") and await answers(directory, "a@young.example")

    await until(seen, within=1.5)
    following.cancel()


async def test_a_guessing_attack_is_a_read_at_a_time(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, counting = here
    await other.write(host("pied.example", "richard"))
    await directory.confirmed(ANYBODY)
    before = counting.reads
    found = await asyncio.gather(
        *(answers(directory, f"guess{n}@pied.example", confirmed=True) for n in range(500))
    )
    assert not any(found)
    assert counting.reads - before <= 2


async def test_a_change_during_the_load_is_not_lost(stage: Stage) -> None:
    """The rows are read, then the domain changes and the change is seen, and only then the rows arrive."""
    other = await stage.database()
    await other.write(host("pied.example", "a"))
    inner = await stage.database()
    read_rows, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Counting):
        async def read(self, work: Any) -> Any:
            result = await super().read(work)
            if isinstance(result, rule_sets._Rows) and not read_rows.is_set():
                read_rows.set()
                await go_on.wait()
            return result

    directory = Directory(Slow(inner))  # type: ignore[arg-type]
    await directory.catch_up()
    loading = asyncio.create_task(answers(directory, "b@pied.example"))
    await asyncio.wait_for(read_rows.wait(), 5)
    await other.write(add_to("pied.example", "b"))
    await directory.catch_up()
    go_on.set()
    assert await asyncio.wait_for(loading, 5)
    assert await answers(directory, "b@pied.example")


async def test_changes_purged_unseen_empty_the_cache(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, _ = here
    await other.write(host("pied.example"))
    assert not await answers(directory, "a@pied.example")
    await other.write(add_to("pied.example", "a"))
    later = NOON.replace(hour=13)
    assert await other.write(lambda conn: purge(conn, later)) == 2
    await other.write(add_to("pied.example", "b", at=later))
    assert await answers(directory, "a@pied.example", confirmed=True)
    assert await answers(directory, "b@pied.example", confirmed=True)


async def test_some_changes_purged_unseen_empty_the_cache(here: tuple[Database, Directory, Counting]) -> None:
    """What is left of them begins later than where we had come to."""
    other, directory, _ = here
    await other.write(host("pied.example"))
    assert not await answers(directory, "a@pied.example")
    await other.write(add_to("pied.example", "a"))
    await other.write(host("else.example"))
    later = NOON.replace(hour=13)
    await other.write(lambda conn: purge(conn, later))
    await other.write(lambda conn: touch(conn, "else.example", later))
    assert await answers(directory, "a@pied.example", confirmed=True)


async def test_a_removed_domain_is_gone(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, _ = here
    await other.write(host("pied.example", "a"))
    assert await answers(directory, "a@pied.example")

    def remove(conn: Connection) -> None:
        touch(conn, "pied.example", NOON)
        conn.execute(delete(domains).where(domains.c.name == "pied.example"))

    await other.write(remove)
    assert await directory.confirmed(ANYBODY) is None


async def test_trouble_is_never_an_answer(here: tuple[Database, Directory, Counting]) -> None:
    other, directory, counting = here
    await other.write(host("pied.example", "a"))
    assert await answers(directory, "a@pied.example")
    counting.failing = True
    assert await answers(
        directory, "a@pied.example"
    )  # known: mail to it is still taken, as far as the store is asked
    for ask in (directory.confirmed(ANYBODY), directory.rule_set(parse_address("a@other.example"))):
        with pytest.raises(StoreUnavailable):
            await ask
    counting.failing = False
    assert await directory.confirmed(parse_address("a@other.example")) is None


async def test_following_goes_on_after_trouble(
    here: tuple[Database, Directory, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_room, "POLL", 0.01)
    other, directory, counting = here
    await other.write(host("pied.example"))
    assert not await answers(directory, "a@pied.example")
    following = asyncio.create_task(directory.follow())
    counting.failing = True
    reads = counting.reads

    async def failed_often() -> bool:
        return counting.reads >= reads + 3

    await until(failed_often)
    await other.write(add_to("pied.example", "a"))
    counting.failing = False

    await until(lambda: answers(directory, "a@pied.example"))
    following.cancel()


async def test_the_cache_is_bounded(stage: Stage) -> None:
    database = await stage.database()
    counting = Counting(database)
    directory = Directory(counting, capacity=6000)  # type: ignore[arg-type]
    for n in range(8):
        await database.write(host(f"d{n}.example", "a", "b"))
    for n in range(8):
        assert await answers(directory, f"a@d{n}.example")
        assert directory._domains.weight <= 6000
    reads = counting.reads
    assert await answers(directory, "a@d7.example")
    assert counting.reads == reads
    assert await answers(directory, "a@d0.example")
    assert counting.reads > reads


async def test_a_renamed_sequence_is_an_older_copy(here: tuple[Database, Directory, Counting]) -> None:
    """A database restored from a backup counts from an earlier version: nothing cached may survive that."""
    from forwarder.store.tables import sequences

    other, directory, _ = here
    await other.write(host("pied.example", "a"))
    assert await answers(directory, "a@pied.example")

    def restore(conn: Connection) -> None:
        conn.execute(update(sequences).values(value=0))
        conn.execute(delete(domains))

    await other.write(restore)
    assert await directory.confirmed(ANYBODY) is None


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A server that a test may restart."""
    server = Server.start()
    yield server
    server.remove()


async def test_another_server_is_another_copy_although_it_counts_the_same(own_postgres: Server) -> None:
    """A standby that was promoted may lack our last change, and have counted another by its number."""
    url = own_postgres.database()
    await asyncio.to_thread(upgrade, url)
    database = await Database.open(url, pool_size=2)
    directory = Directory(database)
    await database.write(host("pied.example", "a"))
    assert await answers(directory, "a@pied.example")
    assert not await answers(directory, "b@pied.example", confirmed=True)
    own_postgres.sql(
        "INSERT INTO aliases (domain_id, pattern, forward, created_at) "
        "SELECT id, 'b', 'someone@dest.example', now() FROM domains",
        url.rpartition("/")[2],
    )
    await directory.catch_up()
    assert not await answers(directory, "b@pied.example")
    own_postgres.stop()
    own_postgres.restart()
    await directory.catch_up()
    assert await answers(directory, "b@pied.example")
    await database.close()


async def test_expressions_are_compiled_in_a_thread_once_while_they_stay_the_same(
    here: tuple[Database, Directory, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    table_of.cache_clear()
    database, directory, _ = here
    await database.write(host("pied.example", "(compiled-in-a-thread|a)", "b"))
    prepared: list[tuple[str, bool]] = []
    prepare = RegexTable.prepare

    def watched(table: RegexTable, local: str) -> None:
        prepared.append((local, threading.current_thread() is threading.main_thread()))
        prepare(table, local)

    monkeypatch.setattr(RegexTable, "prepare", watched)
    at_once = [answers(directory, f"{name}@pied.example") for name in ("nobody", "a", "b")]
    assert await asyncio.gather(*at_once) == [False, True, True]
    assert not await answers(directory, "j\u00f6rg@pied.example")
    assert prepared == [("nobody", False), ("j\u00f6rg", False)]
    await database.write(add_to("pied.example", "c"))
    assert await answers(directory, "c@pied.example", confirmed=True)
    assert len(prepared) == 2
    await database.write(add_to("pied.example", "(compiled-as-well|d)"))
    assert await answers(directory, "d@pied.example", confirmed=True)
    assert prepared[2:] == [("d", False)]


HEAVY = [f"(?:[ab]*a[ab]{{30}}e{number})" for number in range(30)]  # of 38 instructions each, as RE2 counts


class Watch:
    """In which thread addresses were compared with expressions, and how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared: list[tuple[str, bool]] = []
        self.at_once = self.most = 0
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self._first = RegexTable.first
        monkeypatch.setattr(RegexTable, "first", lambda table, local: self._watched(table, local))

    def _watched(self, table: RegexTable, local: str) -> Any:
        in_loop = threading.current_thread() is threading.main_thread()
        self.compared.append((local, in_loop))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        if not in_loop:
            self.begun.release()
            assert self.go_on.wait(10)
        self.at_once -= 1
        return self._first(table, local)


async def test_many_expressions_are_compared_in_a_thread_one_address_of_an_account_at_a_time(
    here: tuple[Database, Directory, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, directory, _ = here
    await database.write(host("pied.example", *HEAVY, "*"))
    await database.write(host("hooli.example", *HEAVY, "*"))
    watch = Watch(monkeypatch)
    names = ("a", "b", "c")
    looks = [asyncio.create_task(directory.resolve(parse_address(f"{name}@pied.example"))) for name in names]
    looks.append(asyncio.create_task(directory.answers(parse_address("d@pied.example"))))
    looks.append(asyncio.create_task(directory.resolve(parse_address("e@hooli.example"))))
    for _ in range(2):  # the loop is free meanwhile: it waits for one of each account
        assert await asyncio.to_thread(watch.begun.acquire, timeout=10)
    assert (len(watch.compared), watch.most) == (2, 2)
    watch.go_on.set()
    *found, answered, _ = await asyncio.gather(*looks)
    assert [str(each.targets[0].destination) for each in found] == ["someone@dest.example"] * 3
    assert answered is True
    assert sorted(watch.compared) == [(name, False) for name in "abcde"]
    assert watch.most == 2


async def test_after_a_few_expressions_others_have_their_turn(
    here: tuple[Database, Directory, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, directory, _ = here
    await database.write(host("pied.example", "(a|b)+", "plain"))
    assert await answers(directory, "a@pied.example")
    watch = Watch(monkeypatch)
    asyncio.get_running_loop().call_soon(watch.compared.append, ("another", True))
    for name in ("aa", "bb"):  # as a client names them that waits for no reply
        await directory.resolve(parse_address(f"{name}@pied.example"))
    assert watch.compared[:2] == [("another", True), ("aa", True)]


async def test_compiled_expressions_weigh_what_they_take(here: tuple[Database, Directory, Counting]) -> None:
    table_of.cache_clear()
    database, directory, _ = here
    await database.write(host("pied.example", *HEAVY, "plain"))
    for turn in range(2):
        assert await answers(directory, "plain@pied.example", confirmed=True)
        # 38 instructions each at 130 octets; beside them the patterns, as text and as objects.
        assert 150_000 < directory.octets < 250_000
        await database.write(add_to("pied.example", f"plain{turn}"))  # read anew, compiled already
