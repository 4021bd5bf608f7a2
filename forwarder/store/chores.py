"""signatures; the substance follows"""
from datetime import datetime, timedelta
from forwarder.store.engine import Database


async def claim(database: Database, name: str, owner: str, *, now: datetime, for_: timedelta, every: timedelta = timedelta(0)) -> bool: ...
async def done(database: Database, name: str, owner: str, *, now: datetime) -> None: ...
