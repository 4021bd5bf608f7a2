"""When a claim is worth its while: how long it waits for more room in the window. Pure; the dispatcher acts on it.

A claim costs the store about as much for two deliveries as for two hundred. So one that could take only a few waits,
for ``POLL`` seconds at most, and less where settled deliveries make room for a good one before. Room is counted twice:
places in the window that are free, and those of them for deliveries whose route has to be looked up. Once such a wait
is over, claims go on as long as only the second is short, until one brings what nobody can be asked for (``end``).
"""

POLL = 1.0  # seconds; also between looks at the store when nothing is known to be due


class Patience:
    """See the module; ``enough``: deliveries that a claim is worth its while for."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.until: float | None = None  # as long, room is waited for; None: no claim waits

    def wait(self, now: float, free: int, room: int) -> float:
        """The seconds for which a claim waits now; 0: it does not."""
        if min(free, room) < self.enough:
            if self.until is None:
                self.until = now + POLL
            if now < self.until:
                return self.until - now
        if room >= self.enough or free < self.enough:
            self.until = None
        return POLL if free <= 0 else 0.0

    def end(self) -> None:
        """Claims bring nothing that is of use: the next one waits again."""
        self.until = None
