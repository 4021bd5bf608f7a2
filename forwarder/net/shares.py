"""Places that many want at once, shared so that nobody who holds some can take what a newcomer needs.

The first half of them is for whoever comes; of the other half a holder takes one, and only while it has no other. So a
hundred who hold theirs for long leave some to the next. Those who wait are served in turns, by holder.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Shares:
    """A number of places; a holder is whoever is to have no more than a share of them."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._reserve = places // 2
        self._held: Counter[str] = Counter()
        # By holder; whose turn is next comes first.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, holder: str) -> None:
        """A place for a holder, as soon as there is one for it."""
        if holder not in self._waiting and self._may_have(holder):
            self._give(holder)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(holder)  # it was our turn already
            else:
                self._leave(holder, turn)
            raise

    @asynccontextmanager
    async def place(self, holder: str) -> AsyncIterator[None]:
        """A place for a holder, for as long as the block lasts."""
        await self.take(holder)
        try:
            yield
        finally:
            self.give_back(holder)

    def give_back(self, holder: str) -> None:
        """A place that a holder had is free."""
        self._free += 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        while self._free and (following := next(filter(self._may_have, self._waiting), None)) is not None:
            turns = self._waiting.pop(following)
            turn = turns.popleft()
            if turns:
                self._waiting[following] = turns
            if not turn.done():
                self._give(following)
                turn.set_result(None)

    def _may_have(self, holder: str) -> bool:
        return self._free > self._reserve or (self._free > 0 and not self._held[holder])

    def _give(self, holder: str) -> None:
        self._free -= 1
        self._held[holder] += 1

    def _leave(self, holder: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(holder)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[holder]
