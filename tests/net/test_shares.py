"""Places that many want: nobody who holds some takes what a newcomer needs."""

import asyncio
from collections.abc import Sequence

import pytest

from forwarder.net.shares import Shares


async def held(shares: Shares, wanted: Sequence[str]) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Who of those gets a place at once, and the tasks of all."""
    tasks = [asyncio.create_task(shares.take(holder), name=holder) for holder in wanted]
    await asyncio.sleep(0)
    return [task.get_name() for task in tasks if task.done()], tasks


async def given_up(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("places", "holders", "each"),
    [
        (256, 1, 128),
        (256, 16, 8),
        (0, 1, 0),
        (1, 1, 1),
    ],
)
async def test_a_holder_has_its_share_and_leaves_places(places: int, holders: int, each: int) -> None:
    shares = Shares(places)
    taken, tasks = await held(shares, [str(n) for _ in range(200) for n in range(holders)])
    assert {holder: taken.count(holder) for holder in taken} == {str(n): each for n in range(holders) if each}
    newcomers, more = await held(shares, [f"new{n}" for n in range(300)])
    assert len(newcomers) == places - holders * each
    await given_up([*tasks, *more])


async def test_who_waits_is_served_in_turns() -> None:
    shares = Shares(2)
    taken, _ = await held(shares, ["a", "b"])
    assert taken == ["a", "b"]
    _, tasks = await held(shares, ["c", "c", "d", "c"])
    order = []
    for holder in ("a", "c", "b"):
        shares.give_back(holder)
        await asyncio.sleep(0)
        order.append([task.get_name() for task in tasks if task.done()])
    assert order == [["c"], ["c", "d"], ["c", "c", "d"]]
    await given_up(tasks)


@pytest.mark.parametrize("late", [True, False])
async def test_who_gives_up_waiting_takes_no_place(late: bool) -> None:
    shares = Shares(1)
    await shares.take("a")
    _, tasks = await held(shares, ["b", "b", "c"])
    if late:  # it was its turn already
        shares.give_back("a")
    await given_up(tasks)
    if not late:
        shares.give_back("a")
    taken, _ = await held(shares, ["c", "b"])
    assert taken == ["c"]
