"""Blocks of places that a process took from a shared count and gives out by itself, so that few hits are writes.

What happens often (messages of an account, requests to the API) would cost a durable write each. So a process takes a
block of places from the count that all processes share (``counters.hit_block``) and gives them out: the limit is never
passed, whatever runs in parallel. Places that a process took and did not give out are lost when the window ends. How
many make a block is the caller's to say.

A clock that is set back ends all blocks: they were of other windows, and what they say (used up, or without limit)
would hold until the clock is there again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

KEPT = 10_000  # blocks that a process remembers


@dataclass(slots=True)
class Block:
    """What a process holds of one count until ``resets_at``, when it is worth nothing any more."""

    resets_at: datetime
    left: int = 0  # places taken and not given out yet
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)  # those who arrive together share the write


K = TypeVar("K", bound=Hashable)
B = TypeVar("B", bound=Block)


class Blocks(Generic[K, B]):
    """A process's blocks by who is counted; what was used least recently is forgotten, and its places are lost."""

    def __init__(self, fresh: Callable[[datetime], B], *, window: timedelta) -> None:
        """``fresh`` makes an empty block that resets at the given time."""
        self._fresh = fresh
        self._window = window
        self._blocks: OrderedDict[K, B] = OrderedDict()
        self._asked: datetime | None = None  # the latest time it was asked at

    def of(self, who: K, now: datetime) -> B:
        """The block of somebody: an empty one if there is none yet, or its time is over."""
        if self._asked is not None and now < self._asked:
            self._blocks.clear()
        self._asked = now
        block = self._blocks.get(who)
        if block is None or now >= block.resets_at:
            block = self._blocks[who] = self._fresh(now + self._window)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(who)
        return block

    def known(self, who: K) -> B | None:
        """The block of somebody, whatever its age, without using it; None: there is none."""
        return self._blocks.get(who)
