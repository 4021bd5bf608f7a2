"""The MX: what port 25 decides about mail from anybody on the Internet.

A recipient is taken when an alias of a domain hosted here answers for it, when it is an SRS address that we made and
that is not too old (a bounce, or an automatic answer, on its way back to the sender), or when it is the postmaster
of this host. Everything else is refused in the session, so that nothing has to be bounced later.

Promises: a refusal of a recipient was confirmed by the store; trouble of ours is 451 or 452; 250 after the dot is
said when the message, its deliveries and its QUEUED events are committed, or when every recipient's alias discards,
and then the log says so. REFUSED events and late bounces are written behind the reply.

Limits: a message that one of its recipients sees again (``mail.trace``) is refused for all of them.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from forwarder.failpoint import reach
from forwarder.inbound.arrival import Composer, Facts, client_name, facts, looked_up, received, shown
from forwarder.inbound.disk import Disk
from forwarder.inbound.forwarding_quota import ForwardingQuota
from forwarder.inbound.intake import HandOver
from forwarder.inbound.late_bounce import LateBounces
from forwarder.inbound.reception import COMMAND_LIMIT
from forwarder.inbound.refusals import Refusals
from forwarder.inbound.resolution import Refused, Resolution
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.sasl import Ask
from forwarder.inbound.server import Server
from forwarder.inbound.session import Recipient, Session, Transaction
from forwarder.mail import content as contents
from forwarder.mail import reply as replies
from forwarder.mail import trace
from forwarder.mail.address import Path
from forwarder.mail.envelope import MailCommand
from forwarder.mail.event import Transport
from forwarder.mail.reply import Reply
from forwarder.store.trouble import CommitUnknown, StoreUnavailable

log = structlog.get_logger(__name__)


def build_server(rooms: InboundRooms) -> Server:
    """The server of the MX listeners of the settings; nothing is opened yet."""
    settings = rooms.settings.mx
    return Server(
        name="mx",
        clients="mx",
        listen=settings.listen,
        bounds=settings,
        rooms=rooms,
        reception=MxReception(rooms),
        normalize=settings.bare_newline == "normalize",
        line_limit=COMMAND_LIMIT,
    )


class MxReception:
    """Decides for all sessions of the MX."""

    takes_log_ins = False

    def __init__(self, rooms: InboundRooms) -> None:
        self._rooms = rooms
        self._loop = asyncio.get_running_loop()
        self._hostname = rooms.settings.hostname
        self._size_limit = rooms.settings.mx.size_limit
        self._disk = Disk(rooms.settings.data_dir, rooms.database.spare)
        self._max_hops = rooms.settings.mx.max_hops
        self._resolution = Resolution(rooms)
        self._hand_over = HandOver()
        self._quota = ForwardingQuota(rooms.database, rooms.settings.plan, clock=rooms.clock)
        self._composer = Composer(
            transport=Transport.SMTP,
            ids=rooms.ids,
            intake=rooms.intake,
            first_delay=rooms.settings.retry.delays[0],
        )
        self._refusals = Refusals(
            rooms.journal,
            transport=Transport.SMTP,
            local_name=self._hostname,
            ids=rooms.ids,
            clock=rooms.clock,
        )
        self._late_bounces = LateBounces(
            rooms.journal, secrets=rooms.trace_secrets, local_name=self._hostname
        )

    def extensions(self, session: Session) -> Sequence[str]:
        return ()

    async def welcome(self, session: Session) -> Reply | None:
        return None

    async def log_in(self, session: Session, arguments: bytes, ask: Ask) -> Reply:
        return replies.AUTH_NOT_HERE

    async def close(self) -> None:
        await self._late_bounces.close()
        await self._rooms.journal.flush()

    async def sender(self, session: Session, command: MailCommand) -> Reply:
        if not self._rooms.srs.fits(command.path):
            return replies.SENDER_TOO_LONG
        if await self._disk.takes(self._size_limit):
            return replies.SENDER_OK
        log.warning("the disk is nearly full", path=str(self._rooms.settings.data_dir))
        return replies.STORAGE_FULL

    async def recipient(self, session: Session, transaction: Transaction, path: Path) -> Reply:
        found = await self._resolution.find(path)
        if isinstance(found, Refused) and found.reply.permanent and transaction.reverse_path.is_null:
            found = await self._resolution.sender_of_ours(path) or found
        if isinstance(found, Recipient):
            others = transaction.recipients  # all alike
            if others and others[0].reports_only != found.reports_only:
                # The one reply after the dot could not take the message for one of them and refuse it for the other.
                return replies.TOO_MANY_RECIPIENTS
            if not (found.account_id and self._quota.used_up(found.account_id)):
                transaction.add(found)
                return replies.RECIPIENT_OK
            way = found.ways[0]
            found = Refused(
                reply=replies.OVER_QUOTA,
                domain_id=way.domain_id if way else None,
                alias=way.alias if way else None,
            )
        self._refusals.write(
            session,
            found.reply,
            domain_id=found.domain_id,
            alias=found.alias,
            sender=transaction.reverse_path,
            recipient=path,
        )
        return found.reply

    def refused(self, session: Session, transaction: Transaction, content: bytes, reply: Reply) -> None:
        self._note_refused_message(session, transaction, facts(shown(contents.split(content)[0])), reply)

    async def message(self, session: Session, transaction: Transaction, content: bytes) -> Reply:
        reach("receive.after-dot")
        rooms = self._rooms
        now = rooms.clock()
        content = contents.headless_as_body(content)
        head = contents.split(content)[0]
        fields = looked_up(head)
        seen = facts(fields)
        refusal = await self._no_report(transaction, content) or self._circling(transaction, fields)
        added = b""
        if refusal is None:
            screened = await rooms.screening.examine(
                client_address=session.client,
                helo=session.helo,
                reverse_path=transaction.reverse_path,
                content=content,
            )
            refusal, added, content = screened.reply, screened.headers, screened.content
            del screened  # it would hold what came beside what is stored
        whose = {recipient.account_id for recipient in transaction.recipients if recipient.account_id}
        if refusal is None and not await self._quota.count(whose):
            refusal = replies.OVER_QUOTA
        if refusal is not None:
            self._note_refused_message(session, transaction, seen, refusal)
            return refusal
        deliveries = self._composer.deliveries(transaction, seen, now=now)
        identifier = rooms.ids(now)
        trail = received(session, transaction, hostname=self._hostname, identifier=identifier, now=now)
        content = contents.prepend(content, trail, added)  # what came is let go of
        message = self._composer.message(
            transaction,
            deliveries,
            content,
            seen,
            identifier=identifier,
            now=now,
            hostname=client_name(session),
        )
        reach("receive.before-enqueue")
        try:
            prepared = await rooms.queue.enqueue(message, meanwhile=partial(rooms.intake.prepare, message))
        except StoreUnavailable as trouble:
            if not isinstance(trouble, CommitUnknown):  # then it may be stored after all
                self._quota.give_back(whose)
            raise
        reach("receive.before-reply")
        # After the reply: the dialogue writes it before the loop comes round again.
        self._loop.call_soon(self._hand_over, prepared or partial(rooms.intake.hand_over, message))
        if transaction.reverse_path.is_null:
            self._late_bounces.look_at(content, head)
        return replies.queued_as(identifier)

    async def _no_report(self, transaction: Transaction, content: bytes) -> Reply | None:
        """The refusal of what was taken as a report about mail of ours and is none; StoreUnavailable."""
        if not all(recipient.reports_only for recipient in transaction.recipients):
            return None
        return None if await self._late_bounces.is_about_ours(content) else replies.NO_SUCH_USER

    def _circling(self, transaction: Transaction, fields: contents.Fields) -> Reply | None:
        """The refusal of a message that has been here before, or has made too many hops."""
        if fields.count(contents.RECEIVED) > self._max_hops:
            return replies.TOO_MANY_HOPS
        if not fields.count(trace.ID_FIELD):
            return None
        marks = trace.certain(fields.each(trace.ID_FIELD, trace.MOST_FIELDS, trace.MOST_OCTETS))
        secrets = self._rooms.trace_secrets
        if any(trace.is_among(secrets, recipient.path, marks) for recipient in transaction.recipients):
            return replies.OUR_OWN_LOOP
        return None

    def _note_refused_message(
        self, session: Session, transaction: Transaction, seen: Facts, refusal: Reply
    ) -> None:
        for recipient in transaction.recipients:
            target = recipient.ways[0] if recipient.ways else None
            if target is not None:
                self._refusals.write(
                    session,
                    refusal,
                    domain_id=target.domain_id,
                    alias=target.alias,
                    sender=transaction.reverse_path,
                    recipient=recipient.path,
                    seen=seen,
                )
