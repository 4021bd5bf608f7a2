"""Work that those share who ask for it at the same moment."""

import asyncio
import gc

import pytest

from forwarder.errands import Errands


class Work:
    """Counts how often it is begun, and ends when it is told how."""

    def __init__(self) -> None:
        self.begun = 0
        self.ends: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.begun += 1
        return await self.ends


@pytest.fixture
def errands() -> Errands:
    return Errands("test")


async def test_those_who_ask_at_once_share_what_it_brings(errands: Errands) -> None:
    work = Work()
    asking = [asyncio.create_task(errands.run("a", work)) for _ in range(3)]
    await asyncio.sleep(0)
    assert ("a" in errands, "b" in errands, len(errands)) == (True, False, 1)
    work.ends.set_result("found")
    assert await asyncio.gather(*asking) == ["found"] * 3
    assert (work.begun, len(errands)) == (1, 0)


async def test_each_key_has_work_of_its_own(errands: Errands) -> None:
    first, second = Work(), Work()
    first.ends.set_result("one")
    second.ends.set_result("two")
    assert await asyncio.gather(errands.run("a", first), errands.run("b", second)) == ["one", "two"]


async def test_who_gives_up_ends_nothing_for_the_others(errands: Errands) -> None:
    work = Work()
    impatient, patient = (asyncio.create_task(errands.run("a", work)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    work.ends.set_result("found")
    assert await patient == "found"


async def test_all_who_wait_hear_of_an_error(errands: Errands) -> None:
    work = Work()
    asking = [asyncio.create_task(errands.run("a", work)) for _ in range(2)]
    work.ends.set_exception(LookupError("gone"))
    assert [str(each) for each in await asyncio.gather(*asking, return_exceptions=True)] == ["gone"] * 2


async def test_an_error_that_nobody_waits_for_is_nobodys(errands: Errands) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    work = Work()
    task = errands.begin("a", work)
    work.ends.set_exception(LookupError("gone"))
    await asyncio.wait([task])
    await asyncio.sleep(0)
    del work, task
    gc.collect()
    assert told == []


async def test_nobody_joins_what_has_ended(errands: Errands) -> None:
    """What it brought may be older than what was heard of since."""
    old, new = Work(), Work()
    old.ends.set_result("old")
    new.ends.set_result("new")
    ended = errands.begin("a", old)
    await asyncio.sleep(0)
    assert ended.done()
    assert "a" in errands  # it is told so in the next turn of the loop
    begun = errands.begin("a", new)
    assert await begun == "new"
    assert len(errands) == 0


async def test_closing_ends_the_work(errands: Errands) -> None:
    asking = asyncio.create_task(errands.run("a", Work()))
    await asyncio.sleep(0)
    await errands.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
