"""signatures; the substance follows"""
from dataclasses import dataclass
from datetime import datetime, timedelta
from forwarder.store.engine import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    allowed: bool
    value: int  # in this window, this hit included if it was allowed
    resets_at: datetime


async def hit(database: Database, key: str, *, window: timedelta, limit: int, now: datetime, amount: int = 1) -> Counted: ...
async def purge(database: Database, now: datetime) -> int: ...
