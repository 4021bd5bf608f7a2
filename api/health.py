"""What the engine says of itself: the value behind ``/health/live`` and ``/health/ready``.

The roof makes it; the API only shows it. What is wrong has a name and no text, which may name a host: the log has that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the engine is now."""

    troubles: Collection[str] = ()  # the names of what is wrong; empty: it can do its work
    tasks: Mapping[str, bool] = field(default_factory=dict)  # whether each of the engine's own tasks runs
