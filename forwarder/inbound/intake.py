"""What the inbound rooms are given: the other rooms they talk to, and the hand-over of fresh mail.

``Rooms`` is one value, built by the roof, so that a listener's constructor does not take a dozen arguments. ``Intake``
is the outbound side as seen from here: inbound and outbound never import each other, the dispatcher satisfies this
protocol by its shape.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from forwarder.clock import utc_now
from forwarder.failpoint import reach

if TYPE_CHECKING:
    from forwarder.config import Settings
    from forwarder.inbound.screening import Screening
    from forwarder.mail.ids import IdSource
    from forwarder.mail.srs import Srs
    from forwarder.net.dns import Resolver
    from forwarder.net.tls import ServerTls
    from forwarder.store.directory import Directory
    from forwarder.store.engine import Database
    from forwarder.store.journal import Journal
    from forwarder.store.queue import Queue
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What a listener needs from the rest of the house."""

    settings: "Settings"
    database: "Database"
    directory: "Directory"
    queue: "Queue"
    journal: "Journal"
    ids: "IdSource"
    srs: "Srs"
    intake: Intake
    # Whose marks in X-Forwarder-Id are our own; empty: loops are not looked for.
    trace_secrets: tuple[bytes, ...] = ()
    tls: "ServerTls | None" = None  # None: STARTTLS is not offered, submission does not listen
    screening: "Screening | None" = None  # None: nothing is looked up about the client
    resolver: "Resolver | None" = None  # submission: which of a domain's records is missing
    clock: Callable[[], datetime] = utc_now
    region: int = 0  # this worker's place in the client table, 0 … regions - 1
    regions: int = 1  # worker processes on this machine
