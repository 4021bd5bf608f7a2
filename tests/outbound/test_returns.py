"""What goes back to the store unattempted, beside a store and a window that write down what they are told."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forwarder.outbound.returns import Returns
from forwarder.store.trouble import StoreUnavailable

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass
class Told:
    """The store and the window: which deliveries are due when, and which were let go."""

    due: dict[str, datetime] = field(default_factory=dict)
    let: list[tuple[str, str]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    async def release(self, delivery: Any, *, next_attempt_at: datetime) -> None:
        if delivery.id in self.away:
            self.away.remove(delivery.id)
            raise StoreUnavailable("away")
        assert delivery.id not in self.due
        self.due[delivery.id] = next_attempt_at

    def let_go(self, parcel: Any, deliveries: list[Any]) -> None:
        self.let += [(parcel.message_id, delivery.id) for delivery in deliveries]


def job(message: str, *names: str) -> Any:
    parcel = SimpleNamespace(message_id=message)
    return SimpleNamespace(parcel=parcel, deliveries=[SimpleNamespace(id=name) for name in names])


def returns_to(told: Told) -> Returns:
    return Returns(cast("Any", told), cast("Any", told), clock=lambda: NOW)


async def test_each_goes_back_due_after_its_own_pause() -> None:
    told = Told()
    returns = returns_to(told)
    returns.add(job("one", "a", "b"), timedelta(seconds=5))
    returns.add(job("two", "c"), timedelta(minutes=2))
    assert (told.due, told.let) == ({}, [])
    await returns.give_back(until=None)
    assert told.due == {
        "a": datetime(2026, 11, 21, 12, 0, 5, tzinfo=UTC),
        "b": datetime(2026, 11, 21, 12, 0, 5, tzinfo=UTC),
        "c": datetime(2026, 11, 21, 12, 2, tzinfo=UTC),
    }
    assert told.let == [("one", "a"), ("one", "b"), ("two", "c")]
    await returns.give_back(until=None)  # nothing is left, or a delivery would be released twice
    assert len(told.let) == 3


@pytest.mark.parametrize("count", [200, 201, 450])
async def test_of_many_each_goes_back_once_and_none_is_left(count: int) -> None:
    told = Told()
    returns = returns_to(told)
    names = [f"{number}" for number in range(count)]
    returns.add(job("one", *names), timedelta(0))
    await returns.give_back(until=None)
    assert list(told.due) == names
    assert told.let == [("one", name) for name in names]


async def test_only_what_the_store_did_not_take_stays_in_the_window() -> None:
    told = Told(away={"b"})
    returns = returns_to(told)
    returns.add(job("one", "a", "b", "c"), timedelta(seconds=5))
    await returns.give_back(until=None)
    assert told.let == [("one", "a"), ("one", "c")]
    await returns.give_back(until=None)
    assert told.let == [("one", "a"), ("one", "c"), ("one", "b")]
    assert told.due["b"] == NOW + timedelta(seconds=5)
