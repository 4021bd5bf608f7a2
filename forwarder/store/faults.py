"""What an error of a database driver means: trouble of the store, or a refusal of the data.

The one place that reads SQLSTATEs and SQLite's result codes. Unknown means trouble of the store, which is temporary.
"""

import sqlite3
import sys
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from forwarder.store.trouble import StoreFull, StoreUnavailable

_SQLITE_FULL = 13
_DISK_FULL = "53100"
_CONFLICTS = frozenset({"40001", "40P01"})  # serialization failure, deadlock: the same again may work
_LOST = ("08", "57P")  # connection exceptions; the server is shutting down or starting


def _of_asyncpg(*names: str) -> tuple[Any, ...]:
    """Classes of asyncpg; none while it is not loaded, as on SQLite: then nobody can have raised one."""
    asyncpg = sys.modules.get("asyncpg")
    return tuple(getattr(asyncpg, name) for name in names) if asyncpg is not None else ()


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error from PostgreSQL; "" when the server said nothing."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    for candidate in (error, error.__cause__):
        if isinstance(candidate, _of_asyncpg("PostgresError")):
            return str(getattr(candidate, "sqlstate", "") or "")
    return ""


def trouble_of(error: BaseException) -> StoreUnavailable | None:
    """The trouble that an error stands for; None when the data, not the store, is to blame."""
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, IntegrityError):
        return None
    if isinstance(error, DBAPIError):
        return _of_driver(error)
    if isinstance(error, SQLAlchemyError | sqlite3.Error):
        return StoreUnavailable()
    if isinstance(error, _of_asyncpg("PostgresError", "InterfaceError")):
        return StoreUnavailable()
    if isinstance(error, OSError | TimeoutError):
        return StoreUnavailable()
    return None


def _of_driver(error: DBAPIError) -> StoreUnavailable | None:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        if _is_full(error):
            return StoreFull()
        wrong_value = (
            sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError | sqlite3.ProgrammingError
        )
        return None if isinstance(original, wrong_value) else StoreUnavailable()
    state = sqlstate(error)
    if state == _DISK_FULL:
        return StoreFull()
    if state.startswith(("22", "23")):
        return None
    # asyncpg's own refusal to encode a value is an InterfaceError and a ValueError at once.
    if original is not None and isinstance(original.__cause__, ValueError):
        return None
    return StoreUnavailable()


def _is_full(error: BaseException) -> bool:
    original = error.orig if isinstance(error, DBAPIError) else error
    code: int = getattr(original, "sqlite_errorcode", 0)
    return isinstance(original, sqlite3.Error) and code & 0xFF == _SQLITE_FULL


def is_conflict(error: BaseException) -> bool:
    """Whether the server ended the transaction in favour of another: a deadlock or a serialization failure."""
    return sqlstate(error) in _CONFLICTS


def may_work_again(error: BaseException) -> bool:
    """Whether the same transaction, which is certainly not in force, is worth trying at once."""
    state = sqlstate(error)
    if state:
        return state in _CONFLICTS or state.startswith(_LOST)
    return isinstance(error, DBAPIError) and error.connection_invalidated


def ended_for_certain(error: BaseException) -> bool:
    """Whether a failed COMMIT was refused in words, so that nothing of it is in force."""
    if _is_full(error):
        # SQLite writes the frame that makes the others valid last, and says "full" of a write only, never of an fsync:
        # where there was no room for one frame, no frame of this transaction counts.
        return True
    state = sqlstate(error)
    return bool(state) and not state.startswith(_LOST)
