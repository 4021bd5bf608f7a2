"""Blocks of a shared count: whose they are, and when they are worth nothing any more."""

from datetime import UTC, datetime, timedelta

import pytest

from forwarder.store import blocks
from forwarder.store.blocks import Block, Blocks

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def test_a_block_stays_until_its_time_is_over() -> None:
    of_accounts: Blocks[int, Block] = Blocks(Block, window=DAY)
    first = of_accounts.of(1, NOW)
    first.left = 3
    assert of_accounts.of(2, NOW) is not first
    assert of_accounts.of(1, NOW + DAY - timedelta(seconds=1)) is first
    second = of_accounts.of(1, NOW + DAY)
    assert (second.left, second.resets_at) == (0, NOW + 2 * DAY)


def test_a_clock_that_is_set_back_ends_all_blocks() -> None:
    of_accounts: Blocks[int, Block] = Blocks(Block, window=DAY)
    ahead = [of_accounts.of(who, NOW + 3650 * DAY) for who in (1, 2)]
    now = [of_accounts.of(who, NOW) for who in (1, 2)]
    assert not any(block in ahead for block in now)
    assert [block.resets_at for block in now] == [NOW + DAY] * 2
    assert [of_accounts.of(who, NOW) for who in (1, 2)] == now


def test_the_block_used_least_recently_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "KEPT", 2)
    of_accounts: Blocks[int, Block] = Blocks(Block, window=DAY)
    first = of_accounts.of(1, NOW)
    of_accounts.of(2, NOW)
    of_accounts.of(1, NOW)
    of_accounts.of(3, NOW)
    assert of_accounts.known(1) is first
    assert of_accounts.known(2) is None
