"""How many messages a day may be forwarded for an account (``daily_quota`` of its plan), over all processes.

The count of the day (UTC) is shared, and a process takes blocks of it (``store.blocks``): as many places as it has
given out before, a thousandth of the limit at most, so that few are left over when the day, or the process, ends.

A message is counted after its dot, once for each account that its recipients belong to, and refused, 452 4.2.2, when
nothing is left; from then on recipients are refused at RCPT. How it fails: StoreUnavailable, when a block has to be
taken.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from forwarder.config import Plan
from forwarder.store import accounts, counters
from forwarder.store.blocks import Block, Blocks
from forwarder.store.engine import Database

DAY = timedelta(days=1)
_UNCOUNTED = timedelta(minutes=1)  # how long an account is believed to have no limit


@dataclass(slots=True)
class _Messages(Block):
    """Messages that this process may still take for an account."""

    given: int = 0  # messages counted in this block's time
    unlimited: bool = False
    used_up: bool = False


class ForwardingQuota:
    """Counts for all sessions of the MX."""

    def __init__(
        self, database: Database, plan_of: Callable[[str], Plan], *, clock: Callable[[], datetime]
    ) -> None:
        """``plan_of``: the limits of a plan's name (``Settings.plan``)."""
        self._database = database
        self._plan_of = plan_of
        self._clock = clock
        self._blocks: Blocks[int, _Messages] = Blocks(_Messages, window=DAY)

    def used_up(self, account_id: int) -> bool:
        """Whether the day's places are known to be gone; asks nobody, so that RCPT never waits for a write."""
        return self._blocks.of(account_id, self._clock()).used_up

    async def count(self, account_ids: Iterable[int]) -> bool:
        """Count one message for each account, or for none: False where one has no place left, or when it raises."""
        blocks: list[_Messages] = []
        counted = False
        try:
            for account_id in account_ids:
                block = self._blocks.of(account_id, self._clock())
                if not (block.unlimited or block.left > 0 or await self._refill(account_id, block)):
                    return False
                block.left -= 1
                block.given += 1
                blocks.append(block)
            counted = True
        finally:
            if not counted:
                _give_back(blocks)
        return True

    def give_back(self, account_ids: Iterable[int]) -> None:
        """The message that was counted was not stored after all."""
        known = (self._blocks.known(account_id) for account_id in account_ids)
        _give_back(block for block in known if block is not None and block.given > 0)

    async def _refill(self, account_id: int, block: _Messages) -> bool:
        async with block.busy:
            if block.unlimited or block.left > 0 or block.used_up:
                return not block.used_up
            account = await self._database.read(lambda conn: accounts.get(conn, account_id))
            plan = self._plan_of(account.plan if account else "default")
            if not plan.daily_quota:
                block.unlimited = True
                block.resets_at = self._clock() + _UNCOUNTED
                return True
            wanted = max(1, min(block.given, plan.daily_quota // 1000))
            taken, counted = await counters.hit_block(
                self._database,
                f"forward:{account_id}",
                window=DAY,
                limit=plan.daily_quota,
                now=self._clock(),
                wanted=wanted,
            )
            block.resets_at = counted.resets_at
            if taken:
                block.left += taken
                return True
            block.used_up = True
            # The plan may be changed meanwhile.
            block.resets_at = min(block.resets_at, self._clock() + _UNCOUNTED)
            return False


def _give_back(blocks: Iterable[_Messages]) -> None:
    for block in blocks:
        block.left += 1
        block.given -= 1
        block.used_up = False
