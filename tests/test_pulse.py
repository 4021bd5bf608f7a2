"""The sign of life: when leases are ours, when they are not, and who waits until that is known."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from forwarder.pulse import Pulse
from forwarder.store import workers
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASE = timedelta(seconds=12)


class Stage:
    """A pulse whose clock and whose store's answers the test sets."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = NOON
        self.answer: bool | Exception = True
        self.told: list[str] = []
        monkeypatch.setattr(workers, "heartbeat", self._heartbeat)
        self.pulse = Pulse(
            cast(Database, None),  # only handed on to the heartbeat
            "w",
            lease=LEASE,
            clock=lambda: self.now,
            register=self._register,
            lost=lambda: self.told.append("lost"),
            seconds=seconds,
        )

    async def _heartbeat(self, *_: Any, now: datetime, alive_for: timedelta) -> bool:
        assert (now, alive_for) == (self.now, LEASE)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def _register(self, now: datetime) -> None:
        assert now == self.now
        self.told.append("registered")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


async def test_alive_from_a_beat_until_the_lease_is_over(stage: Stage) -> None:
    assert not stage.pulse.alive()
    await stage.pulse.begin()
    stage.now += LEASE - timedelta(microseconds=1)
    assert stage.pulse.alive()
    stage.now += timedelta(microseconds=1)
    assert not stage.pulse.alive()  # from this moment on another may take over


async def test_a_clock_that_was_set_back_keeps_nobody_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    stage = Stage(monkeypatch, seconds=lambda: seconds)
    await stage.pulse.begin()
    stage.now -= timedelta(hours=1)
    seconds += 11.9
    assert stage.pulse.alive()
    seconds += 0.1  # the lease is over for all whose clocks go on
    assert not stage.pulse.alive()
    await stage.pulse.beat()
    assert stage.pulse.alive()


async def test_steady_while_beats_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    stage = Stage(monkeypatch, seconds=lambda: seconds)
    assert not stage.pulse.steady()
    await stage.pulse.begin()
    seconds += 5.9
    assert stage.pulse.steady()
    seconds += 0.2  # half a lease without one
    assert not stage.pulse.steady()
    await stage.pulse.beat()
    assert stage.pulse.steady()


async def test_a_late_beat_that_finds_its_row_keeps_everything(stage: Stage) -> None:
    await stage.pulse.begin()
    stage.now += LEASE * 3
    waiting = asyncio.ensure_future(stage.pulse.sure())
    await asyncio.sleep(0)
    assert not waiting.done()
    await stage.pulse.beat()
    await asyncio.wait_for(waiting, 1)
    assert stage.told == ["registered"]


async def test_a_process_taken_for_dead_forgets_before_it_goes_on(stage: Stage) -> None:
    await stage.pulse.begin()
    stage.now += LEASE * 3
    stage.answer = False
    waiting = asyncio.ensure_future(stage.pulse.sure())
    await asyncio.sleep(0)
    await stage.pulse.beat()
    assert stage.told == ["registered", "lost", "registered"]
    await asyncio.wait_for(waiting, 1)


async def test_a_store_that_is_away_keeps_nobody_alive(stage: Stage) -> None:
    await stage.pulse.begin()
    stage.now += LEASE
    stage.answer = StoreUnavailable()
    with pytest.raises(StoreUnavailable):
        await stage.pulse.beat()
    assert not stage.pulse.alive()
    assert stage.told == ["registered"]  # nothing is forgotten: the leases may still be ours


async def test_a_beat_that_the_store_did_not_take_is_made_again_soon(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While we are alive still: a lease must not end between the store's return and the next turn."""
    await stage.pulse.begin()
    answers: list[bool | Exception] = [True, StoreUnavailable(), StoreUnavailable(), True]
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if not answers:
            raise asyncio.CancelledError
        stage.answer = answers.pop(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await stage.pulse.run()
    assert pauses == [3.0, 3.0, 1.0, 1.0, 3.0]
