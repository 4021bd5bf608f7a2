"""signatures; the substance follows"""
from collections.abc import Callable
from typing import TypeVar
from sqlalchemy import Connection
from forwarder.store.trouble import CommitUnknown as CommitUnknown, StoreFull as StoreFull, StoreUnavailable as StoreUnavailable
T = TypeVar("T")


class Database:
    dialect: str
    @classmethod
    async def open(cls, url: str, *, pool_size: int = 8) -> "Database": ...
    async def close(self) -> None: ...
    async def read(self, work: Callable[[Connection], T]) -> T: ...
    async def write(self, work: Callable[[Connection], T]) -> T: ...
    async def ready(self) -> None:
        """StoreUnavailable unless the store answers, is migrated, and its last fsync worked."""
