"""Errands that several share: those who ask for the same thing at the same moment wait for one task.

``run`` begins the work for a key, or waits for that which is under way, and gives each who waits what it brings or
raises. Who gives up waiting ends nothing for the others. What has ended is begun anew by the next who asks, and kept
nowhere: a memory is the caller's, and so is a bound.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Errands:
    """The work under way of one kind, by what it is for."""

    def __init__(self, name: str) -> None:
        """``name``: what its tasks are called."""
        self._name = name
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._under_way

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the work for the key brings."""
        return await asyncio.shield(self.begin(key, work))

    def begin(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> "asyncio.Task[T]":
        """The task that works for the key; the caller must not cancel it."""
        task = self._under_way.get(key)
        if task is None or task.done():  # one that has ended may bring what was overtaken since
            task = asyncio.get_running_loop().create_task(work(), name=f"{self._name} {key}")
            self._under_way[key] = task
            task.add_done_callback(partial(self._ended, key))
        return task

    async def close(self) -> None:
        """End what is under way; those who wait for it are cancelled."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: Hashable, task: "asyncio.Task[Any]") -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
        unheard(task)


def unheard(ended: "asyncio.Future[Any]") -> None:
    """A callback: an error is for those who wait, and nobody's when all of them are gone."""
    if not ended.cancelled():
        ended.exception()
