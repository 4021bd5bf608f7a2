"""What goes, what stays, and who does the work; on SQLite, since the statements are tested where they are written."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from sqlalchemy import Connection, select

from forwarder import housekeeping
from forwarder.config import Settings
from forwarder.housekeeping import Chore, chores_of, keep_house
from forwarder.mail.event import Status, Transport
from forwarder.mail.ids import IdSource
from forwarder.store import accounts, confirmations, counters, domains
from forwarder.store import changes as changes_room
from forwarder.store.changes import touch, touch_all
from forwarder.store.engine import Database
from forwarder.store.journal import Journal, RefusedLog
from forwarder.store.records import NewEvent
from forwarder.store.tables import changes, logs
from forwarder.store.tables import confirmations as requests
from forwarder.store.tables import counters as counted
from forwarder.store.trouble import StoreUnavailable
from tests.outbound.house import open_store

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_store(f"sqlite:///{tmp_path / 'test.db'}")
    yield opened
    await opened.close()


def chores(database: Database, **values: object) -> dict[str, Chore]:
    async def recheck(now: datetime) -> int:
        assert now == NOW
        return 3

    settings = Settings.model_validate({"hostname": "mx.test", **values})
    journal = Journal(database, ids=IdSource(clock=lambda: NOW, entropy=bytes), clock=lambda: NOW)
    return {each.name: each for each in chores_of(settings, database, journal, recheck, lambda: True)}


async def test_each_has_its_turns(database: Database) -> None:
    turns = {name: (chore.every, chore.patience) for name, chore in chores(database).items()}
    assert turns == {
        "take-over": (1.5 * SECOND, 15 * SECOND),
        "journal": (HOUR, HOUR),
        "counters": (HOUR, HOUR),
        "changes": (HOUR, HOUR),
        "plans": (HOUR, HOUR),
        "domains": (60 * SECOND, HOUR),
    }
    assert [name for name, chore in chores(database).items() if chore.everybodys] == ["take-over"]
    assert [name for name, chore in chores(database).items() if chore.by_age] == ["journal", "counters"]
    quick = chores(database, workers={"lease": "2s"})["take-over"]
    assert (quick.every, quick.patience) == (SECOND, 2 * SECOND)


async def test_logs_go_when_they_were_kept_for_as_long_as_was_said(database: Database) -> None:
    ids = IdSource(clock=lambda: NOW, entropy=bytes)
    journal = Journal(database, ids=ids, clock=lambda: NOW)
    made = {
        age: ids(NOW - age) for age in (7 * DAY + SECOND, 7 * DAY - SECOND)
    }  # the older first: ids increase
    for age, log_id in made.items():
        event = NewEvent(status=Status.REFUSED, code=550, message="5.1.1 no such user")
        journal.refused(
            RefusedLog(
                id=log_id,
                domain_id=None,
                alias=None,
                created_at=NOW - age,
                transport=Transport.SMTP,
                hostname="client.example",
                subject=None,
                sender_email="ann@out.test",
                recipient_email="nobody@example.com",
                event=event,
            )
        )
    await journal.flush()
    assert await chores(database, logs={"retention": "7d"})["journal"].work(NOW) == 1
    left = await database.read(lambda conn: conn.execute(select(logs.c.id)).scalars().all())
    assert left == [made[7 * DAY - SECOND]]


async def test_counters_and_requests_that_are_over_go(database: Database) -> None:
    await counters.hit(database, "over", window=HOUR, limit=1, now=NOW - HOUR)  # until 05:00
    await counters.hit(database, "counts", window=HOUR, limit=1, now=NOW)

    def ask(conn: Connection) -> None:
        owner = accounts.create(conn, "you@example.org", "default", NOW)
        domain = domains.add(conn, owner.id, "example.com", "example.com", NOW, dkim_selector="fwd")
        confirmations.ask(conn, domain, ["old@dest.test"], NOW - 8 * DAY)
        confirmations.ask(conn, domain, ["new@dest.test"], NOW - 6 * DAY)

    await database.write(ask)
    # A counter and a request, and the counts of the askings, each of a day that is over.
    assert await chores(database)["counters"].work(NOW) == 1 + 1 + 2
    [kept] = await database.read(lambda conn: conn.execute(select(counted.c.key)).scalars().all())
    assert kept.startswith("counts|")
    left = await database.read(lambda conn: conn.execute(select(requests.c.address)).scalars().all())
    assert left == ["new@dest.test"]


async def test_changes_go_when_whoever_follows_has_seen_them(database: Database) -> None:
    await database.write(lambda conn: touch(conn, "seen.test", NOW - HOUR - SECOND))
    await database.write(lambda conn: touch(conn, "new.test", NOW - HOUR + SECOND))
    assert await chores(database)["changes"].work(NOW) == 1
    left = await database.read(lambda conn: conn.execute(select(changes.c.domain)).scalars().all())
    assert left == ["new.test"]


async def test_very_many_changes_go_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a transaction of its own: mail is stored between two of them."""
    monkeypatch.setattr(changes_room, "CHANGES_AT_ONCE", 2)
    await database.write(lambda conn: touch_all(conn, ["a.test"] * 5, NOW - 2 * HOUR))
    await database.write(lambda conn: touch(conn, "b.test", NOW))
    written: list[int] = []

    async def write(work: Callable[[Connection], int]) -> int:
        written.append(await database.write(work))
        return written[-1]

    watched = cast(Database, SimpleNamespace(write=write))
    assert await chores(watched)["changes"].work(NOW) == 5
    assert written == [2, 2, 1, 0]
    left = await database.read(lambda conn: conn.execute(select(changes.c.domain)).scalars().all())
    assert left == ["b.test"]


@pytest.mark.parametrize(
    ("retry", "furthest"),
    [
        (
            {},
            timedelta(hours=8, minutes=48),
        ),  # the longest of the default delays with its spread, 4 h 24, twice
        ({"delays": ["3h", "1s"], "spread": 0}, 6 * HOUR),
        (
            {"delays": ["1s"]},
            HOUR / 2,
        ),  # what a worker dies of waits for a quarter of an hour, spread over two
    ],
)
async def test_what_is_planned_beyond_any_delay_is_brought_forward(
    database: Database, monkeypatch: pytest.MonkeyPatch, retry: dict[str, object], furthest: timedelta
) -> None:
    asked: list[tuple[timedelta, datetime]] = []
    counts = iter([2, 1, 0])

    def bring(_conn: Connection, *, beyond: datetime, now: datetime) -> int:
        asked.append((beyond - now, now))
        return next(counts)

    monkeypatch.setattr(housekeeping, "bring_forward", bring)
    assert await chores(database, retry=retry)["plans"].work(NOW) == 3
    assert asked == [(furthest, NOW)] * 3


async def test_domains_are_looked_at_again(database: Database) -> None:
    assert await chores(database)["domains"].work(NOW) == 3


class Over(Exception):
    """The turns that a test gave are over."""


class Processes:
    """Several on one database that have the same chore; each is given its turns."""

    def __init__(
        self,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        *,
        everybodys: bool = False,
        by_age: bool = False,
    ) -> None:
        self._database = database
        self._monkeypatch = monkeypatch
        self._everybodys = everybodys
        self._by_age = by_age
        self.done: list[tuple[str, timedelta]] = []  # by whom, and how long after NOW
        self.trouble: list[Exception] = []  # of the next attempts

    async def turns(self, owner: str, *times: timedelta, every: timedelta = HOUR) -> list[float]:
        """Let one of them have a turn at each of these times after NOW; how long it rested before each."""
        rests: list[float] = []

        async def rest(seconds: float) -> None:
            if len(rests) == len(times):
                raise Over
            rests.append(seconds)

        async def work(now: datetime) -> int:
            if self.trouble:
                raise self.trouble.pop()
            self.done.append((owner, now - NOW))
            return 1

        chore = Chore(
            name="it",
            every=every,
            patience=HOUR,
            work=work,
            everybodys=self._everybodys,
            by_age=self._by_age,
        )
        self._monkeypatch.setattr(housekeeping, "asyncio", SimpleNamespace(sleep=rest))
        with pytest.raises(Over):
            await keep_house(
                chore,
                self._database,
                owner=owner,
                clock=lambda: NOW + times[len(rests) - 1],
                seconds=lambda: sum(rests),
            )
        return rests


async def test_one_does_it_and_asks_more_often_than_it_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(database, monkeypatch)
    assert await processes.turns("a", 0 * SECOND, 60 * SECOND, HOUR - SECOND) == [60.0, 60.0, 60.0]
    await processes.turns("b", HOUR - SECOND, HOUR)
    await processes.turns("a", HOUR, 2 * HOUR - SECOND, 2 * HOUR)
    assert processes.done == [("a", 0 * SECOND), ("b", HOUR), ("a", 2 * HOUR)]


async def test_whose_work_failed_keeps_it_for_as_long_as_patience_lasts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(database, monkeypatch)
    for trouble in (RuntimeError("unforeseen"), RuntimeError("again")):  # the watchdog starts it anew
        processes.trouble = [trouble]
        with pytest.raises(RuntimeError, match=str(trouble)):
            await processes.turns("a", 0 * SECOND)
    await processes.turns("b", HOUR - SECOND)
    await processes.turns("a", HOUR - SECOND)
    assert processes.done == [("a", HOUR - SECOND)]
    processes.trouble = [RuntimeError("unforeseen")]
    with pytest.raises(RuntimeError):
        await processes.turns("a", 2 * HOUR)
    await processes.turns("b", 3 * HOUR)
    assert processes.done[1:] == [("b", 3 * HOUR)]


async def test_a_store_that_is_away_is_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for everybodys in (False, True):
        processes = Processes(database, monkeypatch, everybodys=everybodys)
        processes.trouble = [StoreUnavailable("it is away")]
        await processes.turns("a", 9 * HOUR, 9 * HOUR + SECOND)
        assert processes.done == [("a", 9 * HOUR + SECOND)]
        assert "a chore waits for the store" in capsys.readouterr().out


async def test_what_is_everybodys_each_does_at_each_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = Processes(database, monkeypatch, everybodys=True)
    for owner in "ab":
        assert await processes.turns(owner, 0 * SECOND, SECOND, every=1.5 * SECOND) == [1.5, 1.5]
    assert processes.done == [(owner, at) for owner in "ab" for at in (0 * SECOND, SECOND)]


async def test_nothing_goes_for_its_age_while_the_clock_may_be_wrong(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows a year to come for three minutes after the boot, and in the very minute in which the chore is due."""
    processes = Processes(database, monkeypatch, by_age=True)
    year, minutes = 365 * DAY, [turn * MINUTE for turn in range(1, 180)]
    wrong = {at: at + year for at in minutes if at <= 3 * MINUTE or at == 74 * MINUTE}
    await processes.turns("a", *(wrong.get(at, at) for at in minutes))
    # It is right again in the 4th minute and in the 75th, and has run evenly for ten more; then the hour is over.
    assert processes.done == [("a", 14 * MINUTE), ("a", 85 * MINUTE), ("a", 145 * MINUTE)]
