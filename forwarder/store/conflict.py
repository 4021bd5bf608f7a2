"""Why the store refused a change that was well-formed: somebody else has it, a limit is reached, or it came too late.

All are raised inside the transaction, so nothing of the refused change remains; they reach only the caller whose change
it was. None says anything about other accounts. ``insert_new`` is how rows come in that may clash.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, insert
from sqlalchemy.exc import IntegrityError


class AlreadyExists(Exception):
    """A unique constraint refused the row.

    ``field`` names what clashed (domain, alias, username, email, name, selector).
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"this {field} already exists")
        self.field = field


class LimitReached(Exception):
    """The account may not have more of ``what`` (domains, aliases, credentials, API keys) than ``limit``."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"limited to {limit} {what}")
        self.what = what
        self.limit = limit


class TooLarge(Exception):
    """The regular expressions of a domain would be larger together than a domain's may be."""

    def __init__(self) -> None:
        super().__init__(
            "the regular expressions of this domain are too large together; use fewer, or simpler ones"
        )


class Missing(Exception):
    """What the change was about is gone: removed by another request in the meantime, or never there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this {what} is not there")
        self.what = what


def insert_new(conn: Connection, table: Table, values: Mapping[str, Any], *, clash: str) -> RowMapping:
    """Insert one row and return it as it is stored; AlreadyExists(clash) where a constraint refuses it."""
    try:
        return conn.execute(insert(table).values(values).returning(*table.c)).mappings().one()
    except IntegrityError as fault:
        raise AlreadyExists(clash) from fault
