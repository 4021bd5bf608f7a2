"""How many descriptors this process may have open, and how many of them those who connect may take.

Where none is left, no listener can accept a connection, not even to say that there are too many: clients are closed
without a word, and queue, DNS and deliveries stand still as well. So the start raises the limit, which is 1,024 on most
systems whatever the machine can do, to what this user may have. The connections of all services together may take one
half of it; the other half is for files, the database, look-ups and mail on its way out.

Limits: while a new configuration is taken over, two engines share the descriptors, and each takes such a half.
"""

import math
import resource
from collections.abc import Mapping
from contextlib import suppress

import structlog

from forwarder.config import Settings

SERVICES = ("mx", "submission", "api")

log = structlog.get_logger("descriptors")


def raise_limit() -> None:
    """As many as this user may have, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems have a lower limit that they do not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def affordable(settings: Settings) -> Settings:
    """With no more connections than there are descriptors for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return settings
    listeners = settings.listeners
    wanted: dict[str, int] = {
        name: getattr(settings, name).connections
        for name in SERVICES
        if listeners.get(name) or listeners.get(f"{name}-tls")
    }
    given = shares(wanted, limit // 2)
    if any(given[name] < wanted[name] for name in wanted):
        log.warning(
            "there are descriptors for so many connections only; raise ulimit -n", descriptors=limit, **given
        )
    return settings.model_copy(
        update={
            name: getattr(settings, name).model_copy(update={"connections": share})
            for name, share in given.items()
        }
    )


def shares(wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """What each gets of the room: what it wants, or an equal part of what those leave who want less.

    To want 0 is to want all there is.
    """
    given: dict[str, int] = {}
    left = room
    modest_first = sorted(wanted, key=lambda name: wanted[name] or math.inf)
    for number, name in enumerate(modest_first):
        part = max(1, left // (len(modest_first) - number))
        given[name] = min(wanted[name] or part, part)
        left -= given[name]
    return given
