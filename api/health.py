"""What the engine says of itself: the value behind ``/health/live`` and ``/health/ready``.

The roof makes it; the API only shows it. A trouble's text is for whoever runs the server; to the outside only its
name is shown, since a text may name a host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the engine is now."""

    ready: bool
    troubles: Mapping[str, str] = field(default_factory=dict)  # what is wrong, by name
    tasks: Mapping[str, bool] = field(default_factory=dict)  # whether each of the engine's own tasks runs
