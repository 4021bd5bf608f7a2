"""REFUSED events: mail that was turned away at a hosted domain shows in that domain's log.

They are written behind the reply: the journal batches them, and drops them when its bound is reached. What is
bounded here is how much one client can make us write about one domain: a dictionary attack is not a write load. Within
a minute, ``PER_CLIENT`` refusals of one client at one domain are written and the rest are left out.

Limits: the counts live in this process; at most ``CLIENTS`` pairs are remembered, the oldest forgotten first.
"""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from forwarder.inbound.arrival import Facts, client_name
from forwarder.inbound.session import Session
from forwarder.mail.address import Path
from forwarder.mail.event import Status, Transport
from forwarder.mail.reply import Reply
from forwarder.net.addresses import client_of
from forwarder.store.journal import Journal, RefusedLog
from forwarder.store.records import NewEvent

PER_CLIENT = 30
WINDOW_SECONDS = 60.0
CLIENTS = 10_000


class Refusals:
    """Writes what was refused, as far as it may."""

    def __init__(
        self,
        journal: Journal,
        *,
        transport: Transport,
        local_name: str,
        ids: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._transport = transport
        self._local_name = local_name
        self._ids = ids
        self._clock = clock
        self._seen: OrderedDict[tuple[str, int], tuple[float, int]] = OrderedDict()

    def write(
        self,
        session: Session,
        reply: Reply,
        *,
        domain_id: int | None,
        alias: str | None,
        sender: Path,
        recipient: Path | None,
        seen: Facts | None = None,
    ) -> None:
        """Note one refusal at a hosted domain, with what was ``seen`` of the message if there is one already.

        ``recipient`` None: refused before one was named.

        Returns at once and never raises.
        """
        now = self._clock()
        if domain_id is None or not self._may(client_of(session.client), domain_id, now.timestamp()):
            return
        client = client_name(session)
        to = None if recipient is None else recipient.storage()
        event = NewEvent(
            status=Status.REFUSED,
            code=reply.code,
            message=f"{reply.enhanced} {reply.text}".strip(),
            local=self._local_name,
            server=client,
            recipient=to,
        )
        log = RefusedLog(
            id=self._ids(),
            domain_id=domain_id,
            alias=alias,
            created_at=now,
            transport=self._transport,
            hostname=client,
            message_id=seen.message_id if seen else None,
            subject=seen.subject if seen else None,
            # The address and the name of one person, in the form of the log of a message that is taken.
            sender_email=(seen.sender_email if seen else None) or sender.storage() or None,
            sender_name=seen.sender_name if seen else None,
            recipient_email=to,
            recipient_name=seen.name_of(recipient) if seen and recipient else None,
            event=event,
        )
        self._journal.refused(log)

    def _may(self, client: str, domain_id: int, now: float) -> bool:
        key = (client, domain_id)
        since, count = self._seen.pop(key, (now, 0))
        if not 0 <= now - since < WINDOW_SECONDS:  # below: the clock was set back
            since, count = now, 0
        self._seen[key] = (since, count + 1)
        if len(self._seen) > CLIENTS:
            self._seen.popitem(last=False)
        return count < PER_CLIENT
