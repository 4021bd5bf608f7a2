"""signatures; the substance follows"""
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING
from sqlalchemy import Connection
from forwarder.store.engine import Database

if TYPE_CHECKING:
    from forwarder.mail.rules import RuleSet


def touch(conn: Connection, domain: str, now: datetime) -> None:
    """To be called, in the same transaction, by every change of what a domain does with mail."""


class Directory:
    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None: ...
    async def rule_set(self, domain: str) -> "RuleSet | None": ...
    async def confirmed(self, domain: str) -> "RuleSet | None": ...
    async def follow(self) -> None: ...
