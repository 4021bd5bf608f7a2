"""The engine's own tasks: none ends silently."""

import asyncio
import contextlib
import io
import json
from datetime import timedelta

import pytest

from forwarder import watchdog
from forwarder.config import Settings
from forwarder.diagnostics import set_up
from forwarder.watchdog import Watchdog
from tests.harness import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "FIRST_PAUSE", 0.2)


async def test_a_task_that_fails_is_told_and_started_again() -> None:
    dog = Watchdog()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("a fault nobody thought of")
        await asyncio.Event().wait()

    dog.keep("worker", work)
    await wait_until(lambda: starts == 1 and dog.tasks() == {"worker": False})
    await wait_until(lambda: starts == 2)
    assert dog.tasks() == {"worker": True}
    await dog.stop()


async def test_a_task_that_returns_by_itself_is_started_again() -> None:
    dog = Watchdog()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1

    dog.keep("worker", work)
    await wait_until(lambda: starts >= 2)
    await dog.stop()


async def test_a_task_that_is_cancelled_with_all_others_ends() -> None:
    """As the event loop does it when the process ends by an error: it waits for all of them."""
    dog = Watchdog()
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    dog.keep("worker", work)
    await begun.wait()
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "worker"]
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    ended = task.cancelled()
    await dog.stop()
    assert ended


async def test_a_task_that_ends_when_ends_are_expected_is_left_alone() -> None:
    dog = Watchdog()
    told = asyncio.Event()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        await told.wait()

    dog.keep("worker", work)
    await wait_until(lambda: starts == 1)
    dog.expect_ends()
    told.set()
    # Nothing is left that could start it again.
    await asyncio.wait_for(asyncio.wait(list(dog._tasks.values())), 10)
    assert starts == 1
    await dog.stop()


async def test_a_probe_says_what_is_wrong_and_when_it_is_well_again() -> None:
    dog = Watchdog()
    answers: list[Exception | None] = [None]

    async def ask() -> None:
        if answers[0] is not None:
            raise answers[0]

    dog.probe("store", ask, every=timedelta(milliseconds=10), patience=timedelta(seconds=1))
    assert "store" in dog.troubles()  # nobody knows yet
    await wait_until(lambda: dog.troubles() == {})
    answers[0] = OSError("host db.internal is away")
    await wait_until(lambda: dog.troubles() == {"store": "failing"})
    answers[0] = None
    await wait_until(lambda: dog.troubles() == {})
    await dog.stop()


async def test_a_probe_without_an_answer_counts_as_trouble() -> None:
    dog = Watchdog()
    dog.probe("disk", asyncio.Event().wait, every=timedelta(seconds=1), patience=timedelta(milliseconds=20))
    await wait_until(lambda: dog.troubles() == {"disk": "no answer"})
    await dog.stop()


@pytest.mark.parametrize("first", ["failing", "no answer"])
async def test_trouble_of_a_probe_and_its_end_are_said_once_whatever_it_was(
    first: str,
) -> None:
    out = io.StringIO()
    set_up(Settings.model_validate({"hostname": "a", "logs": {"format": "json"}}), stream=out)
    dog = Watchdog()
    answers = {"it": first}
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        if answers["it"] == "failing":
            raise OSError("host db.internal is away")
        if answers["it"] == "no answer":
            await asyncio.Event().wait()

    async def asked_twice() -> None:
        before = asked
        await wait_until(lambda: asked >= before + 2)

    dog.probe("store", ask, every=timedelta(milliseconds=10), patience=timedelta(milliseconds=50))
    for answers["it"] in (first, "no answer", "failing", "", "", first, ""):
        await wait_until(lambda: dog.troubles() == ({"store": answers["it"]} if answers["it"] else {}))
        await asked_twice()
    await dog.stop()
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(one["event"], one.get("reason")) for one in said] == [
        ("a probe fails", first),
        ("a probe is well again", None),
    ] * 2
    assert ["error" in one for one in said] == [first == "failing", False] * 2


async def test_stop_ends_every_task() -> None:
    dog = Watchdog()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    dog.keep("worker", work)
    await asyncio.sleep(0)
    await dog.stop()
    assert ended.is_set()
    assert dog.tasks() == {}


async def test_stop_ends_who_returns_when_told_to_end() -> None:
    """Started again, it would not hear of it a second time."""
    dog = Watchdog()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    dog.keep("worker", work)
    await wait_until(lambda: starts == 1)
    await asyncio.wait_for(dog.stop(), 10)
    assert starts == 1


async def test_a_task_that_somebody_else_cancelled_in_its_depths_is_started_again() -> None:
    dog = Watchdog()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            awaited = asyncio.get_running_loop().create_future()
            awaited.cancel()
            await awaited
        await asyncio.Event().wait()

    dog.keep("worker", work)
    await wait_until(lambda: starts == 2)
    await dog.stop()
