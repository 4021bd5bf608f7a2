"""Trouble of the store, told to the log: once when it begins or changes, then at most every AGAIN, with its number.

While a database is away, every message that is refused and every group that is not written meets it, hundreds of times
a second; the line that says what to do must not drown in those that say it again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from forwarder.store.faults import explain

AGAIN = 60.0  # seconds
REASONS = 20  # told apart at a time


@dataclass(slots=True)
class _Told:
    at: float
    met: float
    untold: int = 0


class Telling:
    """What one kind of work has met; belongs to one thread."""

    def __init__(self, *, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._told: dict[str, _Told] = {}

    def news(self, trouble: BaseException) -> dict[str, object] | None:
        """The fields of a line to say; None where it was said, and is counted. Not met for AGAIN, it is new."""
        cause = trouble.__cause__
        reason = explain(trouble).text if cause is not None else str(trouble)
        fields: dict[str, object] = {"reason": reason, "cause": repr(cause or trouble)}
        now = self._seconds()
        told = self._told.get(reason)
        if told is not None and now - told.met < AGAIN:
            told.met = now
            told.untold += 1
            if now - told.at < AGAIN:
                return None
            fields["times"] = told.untold
        elif len(self._told) >= REASONS:
            self._told.clear()
        self._told[reason] = _Told(at=now, met=now)
        return fields
