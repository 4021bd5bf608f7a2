"""signatures; the substance follows"""
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol

from forwarder.store.records import Delivery as Delivery
from forwarder.store.records import NewDelivery as NewDelivery
from forwarder.store.records import NewEvent as NewEvent
from forwarder.store.records import NewMessage as NewMessage
from forwarder.store.records import Outcome as Outcome
from forwarder.store.records import Settlement as Settlement
from forwarder.store.engine import Database


class Ids(Protocol):
    """Makes ids that sort by time; ``forwarder.mail.ids.IdSource`` is one."""

    def __call__(self) -> str: ...


class Queue:
    def __init__(self, database: Database, *, worker_id: str, local_name: str, ids: Callable[[], str], clock: Callable[[], datetime]) -> None: ...
    async def enqueue(self, message: NewMessage) -> None: ...
    async def claim_due(self, now: datetime, limit: int, exclude_domains: Collection[str] = ()) -> list[Delivery]: ...
    async def content(self, message_id: str) -> bytes | None: ...
    async def settle(self, settlement: Settlement) -> bool: ...
    async def release(self, delivery: Delivery, *, next_attempt_at: datetime) -> bool: ...
    async def next_due_at(self) -> datetime | None: ...
    async def withdraw(self, message_id: str) -> None: ...
    async def held(self) -> dict[str, int]:
        """id -> attempts of every delivery the store says this worker holds (to compare with memory)."""
    async def run(self) -> None:
        """task body: withdraws what an unknown COMMIT may have left."""
