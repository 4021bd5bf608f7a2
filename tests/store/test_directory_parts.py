"""What the directory keeps beside whole domains: names of domains too large to be held, and whole answers."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Row, delete, insert, update

from forwarder.mail.address import parse_address
from forwarder.mail.aliases import UNKNOWN
from forwarder.mail.rules import Trouble
from forwarder.store import rule_sets
from forwarder.store.changes import touch
from forwarder.store.directory import Directory
from forwarder.store.engine import Database
from forwarder.store.tables import aliases
from tests.store.conftest import NOON, Stage
from tests.store.test_directory import Counting, add_to, host


class Held(Counting):
    """Keeps the answer to the first read of a kind until it is told to let it go."""

    def __init__(self, database: Database, kind: Callable[[Any], bool]) -> None:
        super().__init__(database)
        self.kind: Callable[[Any], bool] | None = kind
        self.waiting, self.go_on = asyncio.Event(), asyncio.Event()

    async def read(self, work: Any) -> Any:
        result = await super().read(work)
        if self.kind is not None and self.kind(result):
            self.kind = None
            self.waiting.set()
            await self.go_on.wait()
        return result


def is_names(result: Any) -> bool:
    return isinstance(result, (tuple, Row)) and len(result) == 2


def is_elsewhere(result: Any) -> bool:
    return isinstance(result, rule_sets._Rows) and result.domain_id is None


def swap(conn: Connection) -> None:
    """``b`` goes, and from the same moment on a catch-all takes its mail elsewhere."""
    touch(conn, "pied.example", NOON)
    domain_id = conn.execute(aliases.select().where(aliases.c.pattern == "b")).one().domain_id
    conn.execute(delete(aliases).where(aliases.c.pattern == "b"))
    conn.execute(
        insert(aliases).values(domain_id=domain_id, pattern="*", forward="all@dest.example", created_at=NOON)
    )


def lead_a_to(forward: str) -> Callable[[Connection], None]:
    def work(conn: Connection) -> None:
        touch(conn, "pied.example", NOON)
        conn.execute(update(aliases).where(aliases.c.pattern == "a").values(forward=forward))

    return work


async def ends(directory: Directory, address: str) -> list[str] | Trouble:
    found = await directory.resolve(parse_address(address))
    return found.trouble or [str(target.destination) for target in found.targets]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Domains of three names are too large to be held."""
    monkeypatch.setattr(rule_sets, "TOGETHER", 2)


@pytest.mark.usefixtures("large")
async def test_each_name_of_a_large_domain_is_read_once(stage: Stage) -> None:
    counting = Counting(await stage.database())
    directory = Directory(counting)  # type: ignore[arg-type]
    await counting.database.write(host("pied.example", "a", "b", "c", "*-eu"))
    assert await directory.rule_set(parse_address("a@pied.example")) is not None
    for local, reads in (
        ("a", 0),
        ("A", 0),
        ("b", 1),
        ("b", 0),
        ("b+x", 1),
        ("x-eu", 1),
        ("none", 1),
        ("none", 0),
    ):
        before = counting.reads
        rules = await directory.rule_set(parse_address(f"{local}@pied.example"))
        assert rules is not None
        assert (rules.resolve(local) is UNKNOWN) == (local == "none")
        assert counting.reads - before == reads, local
    before = counting.reads
    await asyncio.gather(*(directory.rule_set(parse_address("c@pied.example")) for _ in range(10)))
    assert counting.reads - before == 1


@pytest.mark.usefixtures("large")
async def test_a_name_of_a_large_domain_is_never_refused_by_what_was_true_once(stage: Stage) -> None:
    other = await stage.database()
    directory = Directory(await stage.database())
    await other.write(host("pied.example", "a", "b", "c"))
    for n in range(5):
        assert await ends(directory, f"new{n}@pied.example") is Trouble.UNKNOWN
        await other.write(add_to("pied.example", f"new{n}"))
        assert await ends(directory, f"new{n}@pied.example") == ["someone@dest.example"]


@pytest.mark.usefixtures("large")
async def test_names_read_after_a_change_do_not_meet_the_patterns_before_it(stage: Stage) -> None:
    other = await stage.database()
    directory = Directory(await stage.database())
    await other.write(host("pied.example", "a", "b", "c"))
    assert await ends(directory, "a@pied.example") == ["someone@dest.example"]
    await other.write(swap)
    rules = await directory.rule_set(parse_address("b@pied.example"))
    assert rules is not None
    assert rules.resolve("b") is not UNKNOWN  # at no moment did nobody answer


@pytest.mark.usefixtures("large")
async def test_names_read_before_a_change_do_not_outlive_it(stage: Stage) -> None:
    other = await stage.database()
    held = Held(await stage.database(), is_names)
    directory = Directory(held)  # type: ignore[arg-type]
    await other.write(host("pied.example", "a", "b", "c"))
    assert await ends(directory, "a@pied.example") == ["someone@dest.example"]
    asking = asyncio.create_task(ends(directory, "b@pied.example"))
    await asyncio.wait_for(held.waiting.wait(), 5)
    await other.write(swap)
    await directory.catch_up()
    held.go_on.set()
    assert await asyncio.wait_for(asking, 5) == ["all@dest.example"]
    assert await ends(directory, "b@pied.example") == ["all@dest.example"]


@pytest.mark.usefixtures("large")
async def test_names_that_are_kept_do_not_outlive_a_change(stage: Stage) -> None:
    other = await stage.database()
    directory = Directory(await stage.database())
    await other.write(host("pied.example", "a", "b", "c", "d"))  # as many as make it large, also without "b"
    assert await ends(directory, "b@pied.example") == ["someone@dest.example"]
    await other.write(swap)
    await directory.catch_up()
    assert await ends(directory, "a@pied.example") == ["someone@dest.example"]  # its patterns are read anew
    assert await ends(directory, "b@pied.example") == ["all@dest.example"]


async def test_an_answer_is_kept_until_something_changes(stage: Stage) -> None:
    other = await stage.database()
    counting = Counting(await stage.database())
    directory = Directory(counting)  # type: ignore[arg-type]
    await other.write(host("pied.example", "a"))
    a = parse_address("a@pied.example")
    assert await ends(directory, "a@pied.example") == ["someone@dest.example"]
    kept, reads = await directory.resolve(a), counting.reads
    assert await directory.resolve(a) is kept
    assert counting.reads == reads
    await other.write(lead_a_to("x@dest.example"))
    assert await directory.resolve(a) is kept  # as far as this process knows
    await directory.catch_up()
    assert await ends(directory, "a@pied.example") == ["x@dest.example"]


async def test_an_answer_keeps_the_case_of_its_recipient(stage: Stage) -> None:
    directory = Directory(await stage.database())
    await directory._database.write(host("pied.example", "*"))
    await directory._database.write(
        lambda conn: conn.execute(update(aliases).values(forward="$1@dest.example")) and None
    )
    for local in ("Ann", "ann", "ANN") * 2:
        assert await ends(directory, f"{local}@pied.example") == [f"{local}@dest.example"]


async def test_an_answer_found_while_something_changed_is_not_kept(stage: Stage) -> None:
    other = await stage.database()
    held = Held(await stage.database(), is_elsewhere)
    directory = Directory(held)  # type: ignore[arg-type]
    await other.write(host("pied.example", "a"))
    await directory.catch_up()
    asking = asyncio.create_task(ends(directory, "a@pied.example"))
    await asyncio.wait_for(
        held.waiting.wait(), 5
    )  # the rules of pied.example are read, those of dest.example come
    await other.write(lead_a_to("x@dest.example"))
    await directory.catch_up()
    held.go_on.set()
    assert await asyncio.wait_for(asking, 5) == ["someone@dest.example"]  # true when it was asked
    assert await ends(directory, "a@pied.example") == ["x@dest.example"]


async def test_a_refusal_that_nothing_contradicts_is_one_more_read(stage: Stage) -> None:
    counting = Counting(await stage.database())
    directory = Directory(counting)  # type: ignore[arg-type]
    await counting.database.write(host("pied.example", "a"))
    assert await ends(directory, "a@pied.example") == ["someone@dest.example"]
    before = counting.reads
    assert await ends(directory, "none@pied.example") is Trouble.UNKNOWN
    assert counting.reads - before == 1


@pytest.mark.parametrize("together", [0, 256])
async def test_all_that_is_kept_is_within_the_bound(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(rule_sets, "TOGETHER", together)
    database = await stage.database()
    directory = Directory(database, capacity=20_000)
    for n in range(8):
        await database.write(host(f"d{n}.example", *(f"a{m}" for m in range(10))))
    for n in range(8):
        for m in range(10):
            assert await ends(directory, f"a{m}@d{n}.example") == ["someone@dest.example"]
            assert 0 < directory.octets <= 20_000
