"""What an error of a database driver means: trouble of the store, or a refusal of the data.

The one place that reads SQLSTATEs and SQLite's result codes. Unknown means trouble of the store, which is temporary.

``explain`` says what the trouble is to the person who runs the server. The words are ours: those of the driver name
hosts, users and statements, and are left for the log of this process.
"""

import errno
import os
import socket
import sqlite3
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from forwarder.store.trouble import (
    CommitUnknown,
    Misplaced,
    SharedSessions,
    StoreFull,
    StoreUnavailable,
    UnusableUrl,
    WrongEncoding,
)

_SQLITE_FULL = 13
_SQLITE_FILE = frozenset({8, 10, 14})  # READONLY, IOERR, CANTOPEN
_DISK_FULL = "53100"
_CROWDED = "53300"
_CONFLICTS = frozenset({"40001", "40P01"})  # serialization failure, deadlock: the same again may work
_LOST = ("08", "57P")  # connection exceptions; the server is shutting down or starting
# Of the URL, which go to the server as they are: its name, its value.
_BAD_OPTION = frozenset({"42704", "22023"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What is wrong with the store and what to do, without a name or a secret of it."""

    text: str
    passes: bool = True  # False: waiting mends nothing


_LOGIN = Explained(
    text="the database refuses the user or the password in [database] url; mend them there, or let the user in "
    "(ALTER ROLE … PASSWORD, pg_hba.conf)"
)
_ABSENT = Explained(
    text="the server has no database of the name in [database] url; make it with createdb, or name another"
)
_FORBIDDEN = Explained(
    text="the database does not allow its user what the engine needs; make the user in [database] url its owner"
)
_OPTION = Explained(
    text="the database does not know an option after the ? of [database] url, or its value; mend it or leave it out "
    "(sslmode=verify-ca and verify-full need sslrootcert=FILE)",
    passes=False,
)
_NO_DATABASE = Explained(
    text="the file that [database] url names is not an SQLite database; name another, or restore it from the backup",
    passes=False,
)
_DAMAGED = Explained(
    text="the database is damaged; stop whatever uses it and restore it from the backup", passes=False
)
_MISPLACED = Explained(
    text="the file of the database, or the -wal beside it, was removed or replaced while the engine uses it; nothing "
    "is taken until the engine is started again, with the right file in its place (if only the -wal is gone, it is)",
    passes=False,
)
_READ_ONLY = Explained(
    text="the database takes no changes: it is a standby, or it or its user is set to read only; name the primary in "
    "[database] url, or its hosts all with target_session_attrs=read-write"
)
_ENCODING = Explained(
    text="the encoding of the database cannot hold all letters; make it anew: createdb --encoding=UTF8 "
    "--template=template0",
    passes=False,
)
_SHARED = Explained(
    text="the pooler that [database] url names gives each transaction another connection to the database; set its "
    "pool_mode to session, or name the database itself",
    passes=False,
)
_URL = Explained(
    text="[database] url names a host or a port that cannot be; mend it: "
    "postgresql://user:password@host:port/database",
    passes=False,
)
_REFUSED = Explained(
    text="the database, or a pooler before it, refuses the connection; its log says why (a pooler may not take the "
    "options after the ? of [database] url)"
)
_BUSY = Explained(text="the database does not take more connections or work now; see what else uses it")
_HELD = Explained(
    text="a statement takes the database too long: something else holds a lock that it waits for, or its machine has "
    "too much to do; pg_stat_activity shows which"
)
_UNENDED = Explained(
    text="the database does not end a COMMIT in time: its disk hangs, or a standby of synchronous_standby_names is "
    "away; pg_stat_activity shows what it waits for"
)
_CHANGED = Explained(
    text="somebody has changed a column of the database while this process was connected to it; it connects anew, and "
    "goes on by itself"
)
_SCHEMA = Explained(
    text="the database lacks a table or a column that this release needs; run `forwarder migrate`, and mail goes on"
)
_STARTING = Explained(text="the database is starting or shutting down; it has to run for the engine to serve")
_TLS = Explained(
    text="the database and the engine do not agree on TLS; check the ssl options in [database] url, its certificate "
    "files, and what the server offers"
)
_CHECK = "check host and port in [database] url, and that it runs"
_BY_STATE = {
    "08P01": _REFUSED,
    "28": _LOGIN,
    "3D": _ABSENT,
    "42501": _FORBIDDEN,
    "42703": _SCHEMA,
    "42P01": _SCHEMA,
    "42704": _OPTION,
    "22023": _OPTION,
    "25006": _READ_ONLY,
    "53": _BUSY,
    "55P03": _HELD,
    "57014": _HELD,
    "57P": _STARTING,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
_BY_SQLITE_CODE = {5: _BUSY, 6: _BUSY, 11: _DAMAGED, 26: _NO_DATABASE}  # BUSY, LOCKED, CORRUPT, NOTADB


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
    if isinstance(error, OSError | TimeoutError) or _is_misread(error):
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
    connecting = error.statement is None  # of a statement, such a code is about its values
    if (connecting and state in _BAD_OPTION) or any(_is_bad_option(one) for one in _causes(error)):
        return StoreUnavailable()
    if state.startswith(("22", "23")):
        return None
    # asyncpg's own refusal to encode a value is an InterfaceError and a ValueError at once.
    if original is not None and isinstance(original.__cause__, ValueError):
        return None
    return StoreUnavailable()


def explain(trouble: BaseException) -> Explained:
    """What StoreUnavailable stands for; the cause is found in ``__cause__``."""
    for error in _causes(trouble):
        if isinstance(error, StoreFull) or _is_full(error):
            return Explained(text="the disk of the database is full; make room")
        if _is_misread(error):
            return _CHANGED
        if isinstance(error, CommitUnknown) and isinstance(error.__cause__, TimeoutError):
            return _UNENDED
        if isinstance(error, Misplaced):
            return _MISPLACED
        if isinstance(error, WrongEncoding):
            return _ENCODING
        if isinstance(error, SharedSessions):
            return _SHARED
        if isinstance(error, UnusableUrl):
            return _URL
        if _is_bad_option(error):
            return _OPTION
        if isinstance(error, _of_asyncpg("TargetServerAttributeNotMatched")):
            return _READ_ONLY
        state = sqlstate(error)
        for length in (5, 3, 2):
            if state[:length] in _BY_STATE:
                return _BY_STATE[state[:length]]
        if isinstance(error, sqlite3.Error):
            code: int = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF in _BY_SQLITE_CODE:
                return _BY_SQLITE_CODE[code & 0xFF]
            if code & 0xFF in _SQLITE_FILE:
                return _file("SQLite cannot open or write it")
        if isinstance(error, OSError):
            return _of_system(error)
    cause = trouble.__cause__
    if cause is not None and (state := sqlstate(cause)) and not state.startswith(_LOST):
        return Explained(
            text=f"the database does not do what the engine asks of it (SQLSTATE {state}); its own log says why"
        )
    named = f" ({type(cause).__name__})" if cause is not None else ""
    return Explained(text=f"the database does not answer{named}; check [database] url, and that it runs")


def _of_system(error: OSError) -> Explained:
    if isinstance(error, ssl.SSLError) or "SSL" in str(error):
        return _TLS
    if isinstance(error, TimeoutError):
        return Explained(text=f"the database does not answer in time; {_CHECK}")
    if isinstance(error, socket.gaierror):
        return Explained(text=f"the database does not answer: its host name is not known; {_CHECK}")
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    files = (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError, FileExistsError)
    if isinstance(error, files) or error.errno == errno.EROFS:
        named = os.path.basename(error.filename) if isinstance(error.filename, str) else ""
        return _file(f"{why}: {named}" if named else why)
    return Explained(text=f"the database does not answer: {why}; {_CHECK}")


def _file(why: str) -> Explained:
    text = (
        f"the file of the database ([database] url; by default forwarder.db in data_dir), or one beside it, or with "
        f"PostgreSQL its socket or a certificate that the url names, cannot be used ({why}); it must be there, and "
        "writable where it is not a certificate, for the user that runs this"
    )
    return Explained(text=text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first; what SQLAlchemy wraps comes after its wrapper."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = (following.orig if isinstance(following, DBAPIError) else None) or following.__cause__


def _is_bad_option(error: BaseException) -> bool:
    """asyncpg's own refusal of an option; a ValueError as well, and yet not about data."""
    return isinstance(error, _of_asyncpg("ClientConfigurationError"))


def _is_misread(error: BaseException) -> bool:
    """asyncpg's word for a row of another shape than its statement had when this connection prepared it.

    Somebody has changed a column's type meanwhile. It is so until the connection is another one.
    """
    return isinstance(error, BufferError)


def _is_full(error: BaseException) -> bool:
    original = error.orig if isinstance(error, DBAPIError) else error
    code: int = getattr(original, "sqlite_errorcode", 0)
    return isinstance(original, sqlite3.Error) and code & 0xFF == _SQLITE_FULL


def is_conflict(error: BaseException) -> bool:
    """Whether the server ended the transaction in favour of another: a deadlock or a serialization failure."""
    return sqlstate(error) in _CONFLICTS


def is_crowded(error: BaseException) -> bool:
    """Whether the server, or the role, has all the connections that it may have."""
    return sqlstate(error) == _CROWDED


def may_work_again(error: BaseException) -> bool:
    """Whether the same transaction, which is certainly not in force, is worth trying at once."""
    state = sqlstate(error)
    if state:
        return state in _CONFLICTS or state.startswith(_LOST)
    return _is_misread(error) or (isinstance(error, DBAPIError) and error.connection_invalidated)


def ended_for_certain(error: BaseException) -> bool:
    """Whether a failed COMMIT was refused in words, so that nothing of it is in force."""
    if _is_full(error):
        # SQLite writes the frame that makes the others valid last, and says "full" of a write only, never of an fsync:
        # where there was no room for one frame, no frame of this transaction counts.
        return True
    state = sqlstate(error)
    return bool(state) and not state.startswith(_LOST)
