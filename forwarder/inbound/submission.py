"""Submission: what ports 587 and 465 decide about mail from people who log in.

A log-in speaks for one address of a hosted domain, or, where its owner lets it, for every alias of that domain. It may
send to anybody; recipients at domains hosted here go through their aliases without leaving the machine. The message is
completed as RFC 6409 says, and leaves signed by the customer's domain (``signing_domain``), which is why whom it
claims to be from is read strictly (``authorship``) and bare newlines are normalised before.

Promises: nothing is asked for, nor taken, in the clear; a refusal for what the message claims names the address; quotas
are counted in the store before the message is, exactly, whatever runs in parallel; a message that is not taken gives
its places back (``quotas``). Trouble of ours is 4xx.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import structlog

from forwarder.failpoint import reach
from forwarder.inbound.arrival import Composer, client_name, facts, received, shown
from forwarder.inbound.authenticator import Authenticator, Denied
from forwarder.inbound.authorship import claimed
from forwarder.inbound.completion import missing_fields, without_blind_copies
from forwarder.inbound.disk import Disk
from forwarder.inbound.intake import HandOver
from forwarder.inbound.quotas import Quotas
from forwarder.inbound.readiness import Readiness
from forwarder.inbound.reception import AUTH_LIMIT
from forwarder.inbound.refusals import Refusals
from forwarder.inbound.resolution import Resolution
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.sasl import MECHANISMS, Ask, exchange
from forwarder.inbound.server import Server
from forwarder.inbound.session import Recipient, Session, Transaction
from forwarder.inbound.usage import Usage
from forwarder.mail import content as contents
from forwarder.mail import reply as replies
from forwarder.mail.address import AddressError, Path, parse_path
from forwarder.mail.authentication import remove_forged
from forwarder.mail.envelope import MailCommand
from forwarder.mail.event import Transport
from forwarder.mail.reply import Reply
from forwarder.store.credentials import Login
from forwarder.store.records import NewMessage
from forwarder.store.trouble import CommitUnknown, StoreUnavailable

log = structlog.get_logger(__name__)


def build_servers(rooms: InboundRooms) -> list[Server]:
    """One server for STARTTLS, one for TLS from the first byte, as far as the settings ask for them.

    None without a certificate: passwords do not travel in the clear.
    """
    settings = rooms.settings.submission
    if rooms.tls is None or not (settings.listen or settings.listen_tls):
        return []
    reception = SubmissionReception(rooms)
    listeners = (("submission", settings.listen, False), ("submission-tls", settings.listen_tls, True))
    return [
        Server(
            name=name,
            clients="submission",
            listen=listen,
            bounds=settings,
            rooms=rooms,
            reception=reception,
            normalize=True,
            line_limit=AUTH_LIMIT,
            implicit_tls=implicit_tls,
        )
        for name, listen, implicit_tls in listeners
        if listen
    ]


class SubmissionReception:
    """Decides for all sessions of submission."""

    takes_log_ins = True

    def __init__(self, rooms: InboundRooms) -> None:
        settings = rooms.settings
        self._rooms = rooms
        self._loop = asyncio.get_running_loop()
        self._settings = settings.submission
        self._disk = Disk(settings.data_dir, rooms.database.spare)
        self._hostname = settings.hostname
        self._authenticator = Authenticator(
            rooms.database, settings.submission, clock=rooms.clock, tally=rooms.tally
        )
        self._readiness = Readiness(rooms.database, rooms.resolver, settings)
        self._resolution = Resolution(rooms)
        self._quotas = Quotas(rooms.database, settings.plan, clock=rooms.clock)
        self._hand_over = HandOver()
        self._usage = Usage(rooms.database, clock=rooms.clock)
        self._composer = Composer(
            transport=Transport.SUBMISSION,
            ids=rooms.ids,
            intake=rooms.intake,
            first_delay=settings.retry.delays[0],
        )
        self._refusals = Refusals(
            rooms.journal,
            transport=Transport.SUBMISSION,
            local_name=settings.hostname,
            ids=rooms.ids,
            clock=rooms.clock,
        )

    def extensions(self, session: Session) -> Sequence[str]:
        return ("AUTH " + " ".join(MECHANISMS),) if session.tls else ()

    async def welcome(self, session: Session) -> Reply | None:
        try:
            barred = await self._authenticator.barred(session.client)
        except StoreUnavailable:
            return replies.SERVICE_TROUBLE
        return replies.TOO_MANY_FAILED_LOGINS if barred else None

    async def close(self) -> None:
        self._authenticator.close()
        await self._usage.close()
        await self._rooms.journal.flush()

    async def log_in(self, session: Session, arguments: bytes, ask: Ask) -> Reply:
        if not session.tls:
            return replies.AUTH_NEEDS_TLS
        if session.login is not None:
            return replies.AUTH_ALREADY
        presented = await exchange(arguments, ask)
        if isinstance(presented, Reply):
            return presented
        try:
            found = await self._authenticator.log_in(presented.name, presented.password, session.client)
        except StoreUnavailable:
            log.warning("a log-in was not verified: trouble of the store", client=session.client)
            return replies.AUTH_TROUBLE
        if isinstance(found, Login):
            session.login = found
            return replies.AUTHENTICATED
        log.info("a log-in failed", client=session.client, reason=found.name)
        if found is Denied.BARRED:
            return replies.TOO_MANY_FAILED_LOGINS
        if found is not Denied.WRONG:
            return replies.AUTH_TROUBLE
        session.failed_logins += 1
        if session.failed_logins >= self._settings.failures_per_connection:
            session.farewell = replies.TOO_MANY_FAILED_LOGINS
        return replies.BAD_CREDENTIALS

    async def sender(self, session: Session, command: MailCommand) -> Reply:
        login = session.login
        if login is not None:  # a session may outlive its password, its credential and its domain
            login = session.login = await self._authenticator.renewed(login)
        if login is None:
            return replies.AUTH_REQUIRED if session.tls else replies.TLS_REQUIRED
        refusal = await self._refusal_of(login, command.path)
        if refusal is not None:
            self._refusals.write(
                session,
                refusal,
                domain_id=login.domain.id,
                alias=login.credential.username,
                sender=command.path,
                recipient=None,
            )
            return refusal
        if not await self._disk.takes(self._settings.size_limit):
            return replies.STORAGE_FULL
        return replies.SENDER_OK

    async def _refusal_of(self, login: Login, sender: Path) -> Reply | None:
        # A read receipt has the null reverse-path (RFC 8098 3); its From is checked like any other.
        if not sender.is_null:
            try:
                parse_path(sender.wire(), smtputf8=True)  # what is said of it must be able to come back
            except AddressError as error:
                return replies.BAD_SENDER.saying(str(error))
            refusal = await self._objection(login, sender)
            if refusal is not None:
                return refusal
        return await self._readiness.objection(login.domain) if self._settings.require_dns else None

    async def recipient(self, session: Session, transaction: Transaction, path: Path) -> Reply:
        found = await self._resolution.find(path, sender=session.login)
        if isinstance(found, Recipient):
            transaction.add(found)
            return replies.RECIPIENT_OK
        login = session.login
        assert login is not None
        # The log of a domain hosted here tells of it as it would had the mail come to the MX.
        logs = [] if found.domain_id is None else [(found.domain_id, found.alias)]
        if found.account_id != login.domain.account_id:
            logs.append((login.domain.id, login.credential.username))
        for domain_id, alias in logs:
            self._refusals.write(
                session,
                found.reply,
                domain_id=domain_id,
                alias=alias,
                sender=transaction.reverse_path,
                recipient=path,
            )
        return found.reply

    def refused(self, session: Session, transaction: Transaction, content: bytes, reply: Reply) -> None:
        login = session.login
        assert login is not None
        seen = facts(shown(contents.split(content)[0]))
        for recipient in transaction.recipients:
            self._refusals.write(
                session,
                reply,
                domain_id=login.domain.id,
                alias=login.credential.username,
                sender=transaction.reverse_path,
                recipient=recipient.path,
                seen=seen,
            )

    async def message(self, session: Session, transaction: Transaction, content: bytes) -> Reply:
        reach("receive.after-dot")
        login = session.login
        assert login is not None
        now = self._rooms.clock()
        head = contents.split(content)[0]
        # RFC 8601 5: in our name nobody else speaks.
        if contents.count_fields(head, b"authentication-results"):
            content = await asyncio.to_thread(remove_forged, content, self._hostname)
            head = contents.split(content)[0]
        places = await self._refusal(login, head) or await self._quotas.take(login)
        if isinstance(places, Reply):
            self.refused(session, transaction, head, places)
            return places
        message = self._composed(session, transaction, login, content, head, now)
        del content  # what came is let go of
        reach("receive.before-enqueue")
        try:
            await self._rooms.queue.enqueue(message)
        except StoreUnavailable as trouble:
            if not isinstance(trouble, CommitUnknown):  # then it may be stored after all
                await self._quotas.give_back(places)
            raise
        reach("receive.before-reply")
        # After the reply: the dialogue writes it before the loop comes round again.
        self._loop.call_soon(self._accepted, message, login)
        return replies.queued_as(message.id)

    def _composed(
        self,
        session: Session,
        transaction: Transaction,
        login: Login,
        content: bytes,
        head: bytes,
        now: datetime,
    ) -> NewMessage:
        """What is stored of a content: with the fields it lacks and its trace, without the blind copies."""
        deliveries = self._composer.deliveries(
            transaction,
            facts(shown(head)),
            now=now,
            sender_domain_id=login.domain.id,
            sender_alias=login.credential.username,
        )
        identifier = self._rooms.ids(now)
        trail = received(
            session,
            transaction,
            hostname=self._hostname,
            identifier=identifier,
            now=now,
            show_client=self._settings.show_client_address,
        )
        added = missing_fields(head, message_id=f"{identifier}@{login.domain.name}", now=now)
        return self._composer.message(
            transaction,
            deliveries,
            contents.prepend(without_blind_copies(content, head), trail, added),
            facts(shown(added + head)),
            identifier=identifier,
            now=now,
            hostname=client_name(session),
            signing_domain=login.domain.name,
        )

    def _accepted(self, message: NewMessage, login: Login) -> None:
        self._hand_over(partial(self._rooms.intake.hand_over, message))
        self._usage.note(login.credential.id)

    async def _refusal(self, login: Login, head: bytes) -> Reply | None:
        if contents.count_received(head) > self._settings.max_hops:
            return replies.TOO_MANY_HOPS
        paths = claimed(head)
        if isinstance(paths, Reply):
            return paths
        for path in paths:
            refusal = await self._objection(login, path)
            if refusal is not None:
                return refusal
        return None

    async def _objection(self, login: Login, path: Path) -> Reply | None:
        """Why this log-in may not send as an address, or None."""
        domain, credential = login.domain, login.credential
        if path.domain == domain.name:
            if path.key == credential.username:
                return None
            if not credential.is_limited and await self._rooms.directory.answers(path):
                return None
        own = f"{credential.username}@{domain.name}"  # a reply is ASCII (RFC 5321 2.4), and escapes are no address
        allowed = own if credential.is_limited else f"{own} or another address of {domain.name}"
        return replies.POLICY_REFUSAL.saying(
            f"{path.wire()} is not an address of yours; you may send as {allowed}"
        )
