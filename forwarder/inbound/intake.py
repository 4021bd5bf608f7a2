"""The hand-over of fresh mail to the outbound side.

``Intake`` is that side as seen from here: inbound and outbound never import each other, the dispatcher satisfies this
protocol by its shape.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from forwarder.failpoint import reach

if TYPE_CHECKING:
    from forwarder.store.records import NewMessage


CALM = 0.005  # seconds


class Intake(Protocol):
    """Where accepted mail goes on, in this process."""

    def lease(self, destination_domain: str) -> bool:
        """Whether there is room to deliver there now; True makes the delivery leased to this process."""
        ...

    def hand_over(self, message: "NewMessage") -> None:
        """Take the leased deliveries of a message that is committed. Must not raise."""
        ...

    def prepare(self, message: "NewMessage") -> Callable[[], None]:
        """Do beforehand what can be done of a message that is being committed; its hand-over. Must not raise."""
        ...


class HandOver:
    """Hands fresh mail over, in the turn of the loop after the one that wrote its reply.

    Whoever the reply has woken may be waiting for this very processor, a client of this machine for one: unless we give
    way, it is read when we have signed the message, 0.7 ms later. Only at light load, when this message is the first
    for ``CALM`` seconds: else we would wait for others once a message, all sessions of this process with it.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, hand_over: Callable[[], None]) -> None:
        now = time.monotonic()
        if now - self._last > CALM:
            os.sched_yield()
        self._last = now
        reach("receive.after-reply")
        hand_over()
