"""The other rooms that a listener talks to: one value, built by the roof, instead of a dozen arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwarder.config import Settings
    from forwarder.inbound.intake import Intake
    from forwarder.inbound.screening import Screening
    from forwarder.mail.ids import IdSource
    from forwarder.mail.srs import Srs
    from forwarder.net.dns import Resolver
    from forwarder.net.tls import ServerTls
    from forwarder.store.directory import Directory
    from forwarder.store.engine import Database
    from forwarder.store.journal import Journal
    from forwarder.store.queue import Queue
    from forwarder.tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundRooms:
    """What a listener needs from the rest of the house."""

    settings: "Settings"
    database: "Database"
    directory: "Directory"
    queue: "Queue"
    journal: "Journal"
    ids: "IdSource"
    srs: "Srs"
    intake: "Intake"
    # Whose marks in X-Forwarder-Id are our own; empty: loops are not looked for.
    trace_secrets: tuple[bytes, ...]
    tls: "ServerTls | None"  # None: STARTTLS is not offered, submission does not listen
    screening: "Screening"
    resolver: "Resolver"  # submission: which of a domain's records is missing
    clock: Callable[[], datetime]
    region: int  # this worker's place in the client table, 0 … regions - 1
    regions: int  # worker processes on this machine
    tally: "Tally"
