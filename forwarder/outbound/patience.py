"""When a claim is worth its while: how long it waits for more room in the window. Pure; the dispatcher acts on it.

A claim costs the store about as much for two deliveries as for two hundred. So a claim that could take only a few
waits until settled deliveries have made room for ``enough``, or ``POLL`` seconds are over.

Two kinds of room are counted: ``free``, the places in the window, and ``room``, those of them that deliveries may take
whose route has to be looked up. After a wait in which only ``room`` stayed short, claims go on without further waits:
they may bring deliveries whose route is known. The first claim that brings one which may not wait for its route ends
that (``end``).
"""

POLL = 1.0  # seconds; also between looks at the store when nothing is known to be due


class Patience:
    """See the module; ``enough``: as many deliveries are worth a claim."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.until: float | None = None  # until when room is waited for; None: no claim waits

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
