"""The report to the sender when mail is given up: one DSN, or a word in the log that nobody could be told.

A report goes to the reverse-path that came in with the message (``addressees`` says where that is), from the null
reverse-path, so that nothing ever answers it (RFC 5321 4.5.5, RFC 3464 2). Several recipients of one message that fail
in the same attempt share a report, in which each is named once. There is none about mail from the null reverse-path,
nor about mail written here: that ends the chain, and the event says ``double_bounce``.

The report names the alias the sender wrote to, and what was said of the first of its destinations that failed. Where
that alias leads, and to how many, is private and left out, with the name of the host that refused, unless
``outbound.disclose_destination`` is set; text of the refusing host that quotes the destination has it replaced. Of what
a webhook answered only the status is told.

The report is a ``NewMessage`` for ``Queue.settle`` to store in the transaction that records the failure: before it
the report could double, after it, it could get lost. Raises what the store raises when it is asked for the sender.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from forwarder.mail.address import Path
from forwarder.mail.dsn import MAX_FAILURES, SUBJECT, FailedRecipient, build_report
from forwarder.mail.event import Transport
from forwarder.mail.reply import TAKEN_ON
from forwarder.outbound.addressees import Addressee, Addressees
from forwarder.outbound.discretion import to_hide, without_destinations
from forwarder.outbound.parcel import Parcel, Verdict
from forwarder.store.records import NewDelivery, NewMessage


class Bounces:
    """Writes reports in the name of this host."""

    def __init__(
        self,
        *,
        hostname: str,
        sender_domain: str,
        disclose_destination: bool,
        addressees: Addressees,
        ids: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._hostname = hostname
        self._sender = f"mailer-daemon@{sender_domain}"  # the service's domain: the one that signs reports
        self._disclose = disclose_destination
        self._addressees = addressees
        self._ids = ids
        self._clock = clock

    async def report(
        self,
        parcel: Parcel,
        failed: Sequence[Verdict],
        content: bytes,
        *,
        lease: Callable[[str], bool],
        due: datetime | None,
    ) -> NewMessage | None:
        """The report about these failures of one message, or None when nobody may be told.

        What ``lease`` takes for a domain is delivered at once, and again at ``due`` should that fail.
        """
        if not parcel.can_be_bounced:
            return None
        now = self._clock()
        # A log-in was allowed its reverse-path; what came from outside, the owner of the alias has anyway.
        submitted = parcel.transport is Transport.SUBMISSION
        behalf = parcel.reverse_path if submitted else failed[0].delivery.recipient
        addressees = await self._addressees.of(parcel.reverse_path, behalf)
        to = addressees[0].recipient
        deliveries = tuple(
            self._delivery(
                each,
                leased_until=due if due and not each.taken_on and lease(each.domain) else None,
                now=now,
            )
            for each in addressees
        )
        identifier = self._ids()  # younger than those of the deliveries, so that their events sort
        message_id = f"<{identifier}@{self._hostname}>"
        named = self._named(failed)
        hidden = to_hide(failed)
        report = build_report(
            reporting_mta=self._hostname,
            sender=self._sender,
            to=to.wire(),
            failures=[self._failure(verdict, hidden, now) for verdict in named[:MAX_FAILURES]],
            others=max(0, len(named) - MAX_FAILURES),
            original=content,
            arrival_at=parcel.created_at,
            message_id=message_id,
            boundary=f"report-{identifier}",
            now=now,
        )
        return NewMessage(
            id=identifier,
            created_at=now,
            transport=Transport.REPORT,
            reverse_path=Path.null(),
            smtputf8=to.needs_smtputf8,
            signing_domain=None,
            content=report,
            hostname=self._hostname,
            message_id=message_id,
            subject=SUBJECT,
            sender_email=self._sender,
            sender_name=None,
            deliveries=deliveries,
        )

    def _delivery(self, to: Addressee, *, leased_until: datetime | None, now: datetime) -> NewDelivery:
        return NewDelivery(
            id=self._ids(),
            kind=to.kind,
            domain_id=to.domain_id,
            alias=to.alias,
            recipient=to.recipient,
            destination=to.destination,
            destination_domain=to.domain,
            leased=leased_until is not None,
            next_attempt_at=leased_until or now,
            discard=to.taken_on,
            dead_end=TAKEN_ON if to.taken_on else None,
        )

    def _named(self, failed: Sequence[Verdict]) -> Sequence[Verdict]:
        """One failure of each recipient; of each of its destinations, where these are named as well."""
        of_each: dict[tuple[Path, str], Verdict] = {}
        for verdict in failed:
            named = verdict.delivery.destination if self._disclose else ""
            of_each.setdefault((verdict.delivery.recipient, named), verdict)
        return list(of_each.values())

    def _failure(self, verdict: Verdict, hidden: Mapping[str, Path], now: datetime) -> FailedRecipient:
        delivery, reply = verdict.delivery, verdict.reply
        alias = delivery.recipient.wire()
        text = reply.text if self._disclose else without_destinations(reply.text, verdict, hidden)
        diagnostic = f"{reply.code} {reply.enhanced} {text}" if reply.enhanced else f"{reply.code} {text}"
        return FailedRecipient(
            address=alias,
            status=reply.enhanced,
            diagnostic=diagnostic,
            remote_mta=verdict.server or "" if self._disclose else "",
            destination=delivery.destination if self._disclose else "",
            last_attempt_at=now,
        )
