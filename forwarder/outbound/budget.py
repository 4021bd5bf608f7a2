"""A number of bytes shared by those who load big contents: who finds too little left waits, first come first served.

Contents are held while a site takes them, which a slow one does for hours. So a site that holds some may take more only
as long as it holds no more than is still free: there is always something left for another, which passes it by.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """Bytes that may be held at once. One holder alone may have more than all, so that nothing waits for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._held: Counter[str] = Counter()  # of what is taken, by the site it is for
        self._waiting: deque[tuple[int, str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int, site: str) -> AsyncIterator[None]:
        """Hold ``size`` bytes of the budget for a site."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, site, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size, site)  # it was our turn already
            else:
                self._let_in()  # those behind may have waited for us alone
            raise
        try:
            yield
        finally:
            self._give_back(size, site)

    def _give_back(self, size: int, site: str) -> None:
        self._taken -= size
        self._held[site] -= size
        if not self._held[site]:
            del self._held[site]
        self._let_in()

    def _let_in(self) -> None:
        passed_by = []
        while self._waiting:
            size, site, turn = self._waiting[0]
            free = self._limit - self._taken
            if self._taken and size > free and not turn.done():
                break
            self._waiting.popleft()
            if turn.done():
                continue
            if self._held[site] and self._held[site] + size > free:
                passed_by.append((size, site, turn))
                continue
            self._taken += size
            self._held[site] += size
            turn.set_result(None)
        self._waiting.extendleft(reversed(passed_by))
