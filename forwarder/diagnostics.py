"""What the engine says about itself, on standard error: one line an event.

JSON when nobody watches, columns and colours on a terminal (``logs.format``). Rooms write with ``structlog`` or with
the standard ``logging``; both end here. Mail itself is recorded in the journal, which the logs API serves, not here.

One dialect: an event is a sentence of plain words without a full stop, which says what happened and, after a
semicolon, what is done about it ("the new certificate cannot be used; the old one stays"). What varies stands in
fields: ``reason`` for trouble in words, a plural (``deliveries=3``) for how many, ``ids`` for which.

Promises: one event is one line and, in JSON, one object. A field holds at most 1,024 octets, and what does not print
(control characters, line separators, lone surrogates) is escaped, whoever wrote it (CWE-117). Fields whose name says
that they hold a secret are blanked. An exception becomes its type, its text and the places it passed, on the same line.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from forwarder.config import Settings
from forwarder.mail.words import printable

FIELD_LIMIT = 1024  # octets
_SECRET = re.compile(r"passw|secret|token|api_?key|authorization|credential_key|private", re.IGNORECASE)
_QUIET = ("mail.log", "mail.debug", "uvicorn.access", "sqlalchemy", "alembic", "httpx", "httpcore", "asyncio")

EventDict = MutableMapping[str, Any]


def set_up(settings: Settings, *, stream: TextIO | None = None, **always: object) -> None:
    """Send all logging to ``stream`` (standard error); ``always`` stands in every line, as ``worker=2``."""
    out = stream or sys.stderr
    level = getattr(logging, settings.logs.level.upper())
    console = settings.logs.format == "console" or (settings.logs.format == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with(always),
        _exception_on_one_line,
        _printable_fields,
    ]
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty() and not os.environ.get("NO_COLOR"), pad_event_to=0)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=True, default=repr)
    )
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: Lines(out),
        cache_logger_on_first_use=False,  # a new configuration must reach loggers that were used before
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_of_logger, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            keep_exc_info=False,
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        # They format a line a command or a query; what matters of it reaches us as exceptions.
        logging.getLogger(name).setLevel(max(level, logging.ERROR if name == "mail.log" else logging.WARNING))


class Lines:
    """Writes whole lines. A stream that is closed or full costs the line, never the work it tells of."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def msg(self, line: str) -> None:
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except (OSError, ValueError):
            return

    log = debug = info = warn = warning = error = err = exception = critical = fatal = failure = msg


def describe(error: BaseException) -> dict[str, str]:
    """An exception as two fields: what it says, and the places it passed, innermost first."""
    return {"error": f"{type(error).__name__}: {error}", "where": _places(error.__traceback__)}


def _places(trace: TracebackType | None) -> str:
    frames: Iterable[traceback.FrameSummary] = reversed(traceback.extract_tb(trace, limit=-12))
    return " < ".join(f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno} {f.name}" for f in frames)


def _with(always: Mapping[str, object]) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return {**event, **always}

    return add


def _name_of_logger(_logger: Any, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event


def _exception_on_one_line(_logger: Any, _method: str, event: EventDict) -> EventDict:
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else None
    if given is True:
        error = sys.exc_info()[1]
    elif isinstance(given, tuple):
        error = given[1]
    if error is not None:
        event.update(describe(error))
    return event


def _printable_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if key.startswith("_"):
            continue
        if _SECRET.search(key):
            event[key] = "(not shown)"
        elif isinstance(value, str):
            event[key] = printable(value, FIELD_LIMIT)
        elif not isinstance(value, int | float | None):
            text = value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)
            event[key] = printable(text, FIELD_LIMIT)
    return event
