"""A cache bounded by the octets that it takes; what was used least recently goes first.

Whoever puts a value in says what it weighs, since only its maker knows. Callers measure or estimate; ENTRY is added for
the key's place in the cache. One value heavier than the bound is kept until the next one comes.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

ENTRY = 200  # octets: a place in the dictionary, its link, the weight beside the value

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Values by key, within ``capacity`` octets."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.weight = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, used now."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def peek(self, key: K) -> V | None:
        """The value, without using it."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value of ``weight`` octets, used now; what is used least recently goes until it fits."""
        self.forget(key)
        self._entries[key] = (value, weight + ENTRY)
        self.weight += weight + ENTRY
        while self.weight > self.capacity and len(self._entries) > 1:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.weight -= dropped

    def forget(self, key: K) -> None:
        """Keep it no longer; harmless if it is not there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.weight -= entry[1]

    def clear(self) -> None:
        """Keep nothing."""
        self._entries.clear()
        self.weight = 0
