"""One attempt: the deliveries of a job, of one message to one site, in one transaction.

What goes out is the stored content, byte for byte, with header lines before it: signatures and seals (``prepare``),
then our trace (``mail.trace``) on top. The reverse-path of mail from outside becomes an SRS address, so that SPF of
the next hop looks at our domain; submitted mail keeps its own, a report has the null one. Mail whose author pretends
to be of our own domain keeps its reverse-path too; where that lends it our SPF all the same, reception has refused what
its domain asks to be careful with (``mail.authentication``).

A kept session of the site is used if there is one, else the hosts are dialled in the route's order until one takes
the message; trouble with one host or address leads to the next, a judgement about the message or a recipient does
not (``mail.outcome`` decides every time). Recipients are judged one by one: those a host did not take are tried at the
next host or later, those it took are delivered and never sent again. A session that breaks after the final dot
leaves the outcome unknown: no other host is tried then, since that would make a duplicate for certain, and the event
says ``delivery_unknown`` (RFC 1047; RFC 5321 4.5.3.2.6).

Nothing here raises for what peers do. What it raises is trouble of our own (a key that cannot be read, the store away),
of which the ``crew`` makes a temporary verdict.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

from forwarder import failpoint
from forwarder.mail import trace
from forwarder.mail.address import Path
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.outcome import (
    Action,
    Fault,
    Scope,
    decide,
    goes_apart,
    is_permanent,
    reply_for,
    wants_tls,
)
from forwarder.mail.reply import Reply
from forwarder.mail.srs import Srs
from forwarder.net.smtp_answers import Answered, SessionFault
from forwarder.net.smtp_client import ClientSession
from forwarder.outbound.parcel import Carried, Job, Parcel, Verdict
from forwarder.outbound.pool import Pool
from forwarder.outbound.route import MxHost, Route
from forwarder.outbound.signing import Signing
from forwarder.outbound.webhook import Webhooks
from forwarder.store.records import Delivery
from forwarder.tally import SENT, Tally

_DIALS = 10  # addresses tried in one attempt, of at most five hosts


class Courier:
    """Carries jobs to where they go."""

    def __init__(
        self,
        *,
        pool: Pool,
        srs: Srs,
        signing: Signing,
        webhooks: Webhooks,
        trace_secret: bytes,
        clock: Callable[[], datetime],
        tally: Tally,
    ) -> None:
        self._pool = pool
        self._srs = srs
        self._signing = signing
        self._webhooks = webhooks
        self._trace_secret = trace_secret
        self._clock = clock
        self._sent = tally.count(SENT)

    def prepare(self, parcel: Parcel, content: bytes) -> None:
        """Sign a message that will be carried, if that is a small thing."""
        self._signing.prepare(parcel, content)

    async def carry(self, job: Job, content: bytes) -> Carried:
        """Attempt a job once."""
        if job.kind is not DeliveryKind.SMTP:
            return await self._webhooks.carry(job, content)
        assert job.route is not None
        parcel = job.parcel
        buffers = [
            self._trace(parcel, job.deliveries) + await self._signing.headers(parcel, content),
            content,
        ]
        attempt = _Attempt(
            pool=self._pool,
            route=job.route,
            reverse_path=self._reverse_path(parcel),  # after the signatures: they find out whether it borrows
            deliveries=job.deliveries,
            buffers=buffers,
            smtputf8=parcel.smtputf8,
        )
        await attempt.run()
        carried = attempt.carried()
        if any(verdict.action is Action.DELIVERED for verdict in carried.verdicts):
            self._sent.add(sum(map(len, buffers)))
        return carried

    def _reverse_path(self, parcel: Parcel) -> Path:
        # An SRS address would make SPF pass for our domain, and so for the author that nobody has proved to be of it.
        if parcel.transport is not Transport.SMTP or parcel.borrows:
            return parcel.reverse_path
        # Inbound refuses what is too long to rewrite (``Srs.fits``). Of what was taken while our domain had a shorter
        # name a late bounce finds nobody; sent as it came it would lend its domain our address.
        return self._srs.forward(parcel.reverse_path, now=self._clock()) or Path.null()

    def _trace(self, parcel: Parcel, deliveries: Sequence[Delivery]) -> bytes:
        if parcel.is_report:
            return b""
        recipients = {delivery.recipient for delivery in deliveries}
        passages = [
            trace.Passage(delivery_id=delivery.id, mark=trace.mark(self._trace_secret, delivery.recipient))
            for delivery in deliveries[: trace.MOST_ENTRIES]
        ]
        # Submitted mail goes where its author said; there is no alias to tell about.
        only = next(iter(recipients)) if len(recipients) == 1 and parcel.transport is Transport.SMTP else None
        return trace.lines(passages, only)


class _Attempt:
    """The state of one attempt: who still waits for a host, and the verdicts so far."""

    def __init__(
        self,
        *,
        pool: Pool,
        route: Route,
        reverse_path: Path,
        deliveries: Sequence[Delivery],
        buffers: Sequence[bytes],
        smtputf8: bool,
    ) -> None:
        self._pool = pool
        self._route = route
        self._reverse_path = reverse_path.wire()
        self._buffers = buffers
        # Whom a host hangs up upon is not named first each time: those behind it would never be named.
        turn = (deliveries[0].attempts - 1) % len(deliveries)
        self._waiting = [*deliveries[turn:], *deliveries[:turn]]
        self._verdicts: list[Verdict] = []
        self._reached = False
        # Something so far failed in a way that another hour may mend.
        self._may_recover = not route.complete
        self._last: tuple[Reply, str | None] = (reply_for(Fault.INTERNAL), None)
        self._heard: dict[str, tuple[Reply, str | None]] = {}  # the last word about each delivery
        self._taken: list[Delivery] = []  # by a host that then broke off at another recipient
        self._smtputf8 = smtputf8
        # A host that did not announce 8BITMIME gets the octets all the same: changing them would break signatures.
        self._body8bit = not all(buffer.isascii() for buffer in buffers)

    async def run(self) -> None:
        """Try the kept session, then the hosts in order."""
        failpoint.reach("deliver.before-connect")
        skipped: set[str] = set()
        session = self._pool.reuse(self._route)
        if session is not None:
            # The peer may have closed a kept session meanwhile, which says nothing of the host: it is dialled again.
            judged = await self._send(session, session.host, more_hosts=True, kept=True)
            skipped = {session.host} if judged else skipped
        dials = list(self._dials())
        for place, (host, address) in enumerate(dials):
            if not self._waiting:
                return
            if host.name in skipped:
                continue
            more = place + 1 < len(dials)
            try:
                session = await self._pool.open(self._route, host, address)
            except SessionFault as fault:
                self._judge_all(Scope.SITE, fault.reply, host.name, more_hosts=more)
                continue
            skipped.add(host.name)
            more = any(other.name not in skipped for other, _ in dials[place + 1 :])
            await self._send(session, host.name, more_hosts=more)
            if self._taken:
                await self._send_to_taken(host, address, more_hosts=more)

    def carried(self) -> Carried:
        """What came of it; whoever is left after the last host waits for the next attempt."""
        for delivery in self._waiting:
            reply, server = self._heard.get(delivery.id, self._last)
            self._verdicts.append(
                Verdict(delivery=delivery, action=Action.RETRY_LATER, reply=reply, server=server)
            )
        self._waiting = []
        return Carried(
            verdicts=self._verdicts, reached=self._reached, trouble=None if self._reached else self._last[0]
        )

    def _dials(self) -> Iterator[tuple[MxHost, str]]:
        """An even share for each host, who leaves what it has no addresses for to those behind it.

        Were they given first come first served, two dead hosts of many addresses would hide the backup for ever.
        """
        hosts, left = self._pool.ordered(self._route), _DIALS
        for place, host in enumerate(hosts):
            for address in host.addresses[: -(-left // (len(hosts) - place))]:
                left -= 1
                yield host, address

    async def _send_to_taken(self, host: MxHost, address: str, *, more_hosts: bool) -> None:
        """Those whom the host had taken are named to it without the others: one whom it hangs up upon holds up nobody.

        Some do for a domain (Google: 421 4.7.0, "TLS required for RCPT domain, closing connection").
        """
        others, self._waiting, self._taken = self._waiting, self._taken, []
        try:
            session = await self._pool.open(self._route, host, address)
        except SessionFault as fault:
            self._judge_all(Scope.SITE, fault.reply, host.name, more_hosts=more_hosts)
        else:
            await self._send(session, host.name, more_hosts=more_hosts, apart=True)
        self._waiting += others

    async def _send(
        self,
        session: ClientSession,
        host: str,
        *,
        more_hosts: bool,
        kept: bool = False,
        apart: bool = False,
    ) -> bool:
        """Transactions over one session until the host has judged everyone who waits; False: it broke off."""
        asked: Sequence[Delivery] = self._waiting
        self._waiting = []
        while asked:
            # Several recipients may lead to one address; it is named once, or it might get as many copies.
            named = {
                address: place for place, address in enumerate(dict.fromkeys(d.destination for d in asked))
            }
            failpoint.reach("deliver.before-mail")
            try:
                answered = await session.send(
                    self._reverse_path,
                    list(named),
                    self._buffers,
                    smtputf8=self._smtputf8,
                    body8bit=self._body8bit,
                )
            except SessionFault as fault:
                self._pool.release(self._route, session)
                if not (kept or apart):
                    taken = {address for address, place in named.items() if fault.had_taken(place)}
                    self._taken = [one for one in asked if one.destination in taken]
                    asked = [one for one in asked if one.destination not in taken]
                self._broken(fault, asked, named, session, host, more_hosts=more_hosts, kept=kept)
                return False
            except BaseException:
                self._pool.release(self._route, session)
                raise
            self._reached = True
            failpoint.reach("deliver.after-dot-reply")
            if kept and answered.may_be_of_session:
                # Said in a session that served other mail before, this may be about the session (some hosts take a few
                # messages each, and answer 503 or 550 to the next MAIL, or refuse each RCPT by a policy): in a new one
                # it is about the message. Not what is said after the dot: then the host has read the message.
                self._waiting += asked
                session.leave()
                return False
            asked = self._judged(answered, asked, named, session, host, more_hosts=more_hosts)
            kept = True
        self._pool.release(self._route, session)
        return True

    def _judged(
        self,
        answered: Answered,
        asked: Sequence[Delivery],
        named: Mapping[str, int],
        session: ClientSession,
        host: str,
        *,
        more_hosts: bool,
    ) -> Sequence[Delivery]:
        """Sort the recipients by what was answered; those to be named to this host in another transaction.

        ``named``: the place of each address among those the host was told.
        """
        refused: list[tuple[Delivery, Scope, Reply]] = []
        for delivery in asked:
            scope, reply = answered.judge(named[delivery.destination])
            if reply.positive:
                self._verdict(delivery, Action.DELIVERED, reply, host)
            else:
                refused.append((delivery, *self._condemned(scope, reply, session)))
        if not refused:
            return ()
        left = {delivery.id for delivery, _, _ in refused}
        taken = {delivery.destination_domain for delivery in asked if delivery.id not in left}
        once_more: list[Delivery] = []
        for delivery, scope, reply in refused:
            beside = delivery.destination_domain in taken
            if taken and scope is Scope.RECIPIENT and goes_apart(reply, beside_its_domain=beside):
                self._last = self._heard[delivery.id] = (reply, host)
                once_more.append(delivery)
            else:
                self._judge(delivery, scope, reply, host, more_hosts=more_hosts)
        return once_more

    def _condemned(self, scope: Scope, reply: Reply, session: ClientSession) -> tuple[Scope, Reply]:
        """What a refusal condemns, and the reply that says so."""
        if not (session.fell_back and wants_tls(reply)):
            return scope, reply
        # It was in clear for trouble with TLS, which is the host's or ours, and no fault of the message.
        self._pool.try_tls_again(self._route, session)
        return Scope.SITE, reply_for(Fault.TLS, f"in clear it says {reply}")

    def _broken(
        self,
        fault: SessionFault,
        asked: Sequence[Delivery],
        named: Mapping[str, int],
        session: ClientSession,
        host: str,
        *,
        more_hosts: bool,
        kept: bool,
    ) -> None:
        # One recipient whom a host hangs up upon must not count against the site, or all its mail would wait for him.
        self._reached |= fault.at_recipient and fault.fault in (None, Fault.LOST)
        lost: list[Delivery] = []
        for delivery in asked:
            refusal = fault.refusal(named[delivery.destination])
            if refusal is None or (kept and fault.may_be_of_session):
                lost.append(delivery)
            else:  # was said before the session broke off, and stands
                scope, reply = self._condemned(Scope.RECIPIENT, refusal, session)
                self._judge(delivery, scope, reply, host, more_hosts=more_hosts)
        if fault.unknown:
            # The host may have the message: going on to another one would make a second copy for certain.
            reply = fault.reply
            unknown = reply.saying(f"delivery_unknown: {reply.text}; it will be sent again")
            self._reached = True
            for delivery in lost:
                self._verdict(delivery, Action.RETRY_LATER, unknown, host)
            return
        for delivery in lost:
            self._judge(delivery, fault.scope, fault.reply, host, more_hosts=more_hosts)

    def _judge_all(self, scope: Scope, reply: Reply, host: str, *, more_hosts: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for delivery in waiting:
            self._judge(delivery, scope, reply, host, more_hosts=more_hosts)

    def _judge(self, delivery: Delivery, scope: Scope, reply: Reply, host: str, *, more_hosts: bool) -> None:
        action = decide(scope, reply, more_hosts=more_hosts, others_may_recover=self._may_recover)
        self._last = self._heard[delivery.id] = (reply, host)
        self._may_recover = self._may_recover or not is_permanent(scope, reply)
        if action is Action.NEXT_HOST:
            self._waiting.append(delivery)
        else:
            self._verdict(delivery, action, reply, host)

    def _verdict(self, delivery: Delivery, action: Action, reply: Reply, host: str) -> None:
        self._verdicts.append(Verdict(delivery=delivery, action=action, reply=reply, server=host))
