"""Webhooks: a message posted to the URL of an alias, and events posted to the webhook of a domain.

The message goes out as the JSON of ``payload``; an event as the JSON that the store wrote. Every body that belongs to
a domain is signed: ``X-Webhook-Signature: t=<seconds>,v1=<hex>``, where v1 is the HMAC-SHA-256 of ``<seconds>.<body>``
under the domain's webhook key, so that a receiver can tell our posts from forged and from replayed ones.
``X-Webhook-Id`` is the delivery's id and the same each time: a receiver that saw it may skip the repetition.

2xx is success. Anything else is tried three times in a row, with short pauses, and then later by the usual schedule
until the message is too old, 4xx as well: a receiver that is being repaired answers 404 too, and nobody's mail should
be lost for it. A URL that leads to an address we do not go to is given up at once, with the word ``blocked``.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from forwarder import __version__
from forwarder.mail.event import DeliveryKind
from forwarder.mail.outcome import Scope, decide
from forwarder.mail.reply import Reply
from forwarder.mail.words import printable
from forwarder.net.http import Blocked, GuardedClient, Unreachable
from forwarder.outbound.parcel import Carried, Job, Parcel, Verdict
from forwarder.outbound.payload import message_json
from forwarder.store.records import Delivery

_EXCERPT = 300
_AT_ONCE = 64 * 1024  # octets that are signed in the event loop

KeyOf = Callable[[int], Awaitable[str | None]]


class Webhooks:
    """Posts by way of a guarded client."""

    def __init__(
        self,
        *,
        client: GuardedClient,
        key_of: KeyOf,
        hostname: str,
        clock: Callable[[], datetime],
        timeout: timedelta = timedelta(seconds=30),
        pauses: Sequence[timedelta] = (timedelta(seconds=0.5), timedelta(seconds=2)),
    ) -> None:
        self._client = client
        self._key_of = key_of
        self._agent = f"Forwarder/{__version__} ({hostname})"
        self._timeout = timeout
        self._clock = clock
        # By message, for as long as somebody posts it.
        self._bodies: WeakValueDictionary[str, asyncio.Task[bytes]] = WeakValueDictionary()
        self._pauses = tuple(pauses)  # between the attempts in a row, so one less than these

    async def carry(self, job: Job, content: bytes) -> Carried:
        """Post a job; each delivery of it has a URL of its own."""
        body = content
        if job.kind is DeliveryKind.WEBHOOK:
            made = self._body(job.parcel, content)
            body = await asyncio.shield(made)
        verdicts = [await self._post(delivery, body) for delivery in job.deliveries]
        reached = any(verdict.server is not None for verdict in verdicts)
        return Carried(verdicts=verdicts, reached=reached, trouble=None if reached else verdicts[-1].reply)

    def _body(self, parcel: Parcel, content: bytes) -> asyncio.Task[bytes]:
        """The message as JSON, made once for all who post it meanwhile: it may be six times as large as the message."""
        made = self._bodies.get(parcel.message_id)
        if made is None:
            work = asyncio.to_thread(
                message_json, content, reverse_path=parcel.reverse_path, received_at=parcel.created_at
            )
            made = self._bodies[parcel.message_id] = asyncio.create_task(work)
        return made

    async def _post(self, delivery: Delivery, body: bytes) -> Verdict:
        server: str | None = None
        reply = Reply(code=451, enhanced="4.4.1", text="not tried")
        for pause in (*self._pauses, None):
            try:
                status, excerpt = await self._client.post(
                    delivery.destination, body, await self._headers(delivery, body), self._timeout
                )
            except Blocked as blocked:
                reply = Reply(
                    code=550, enhanced="5.7.1", text=f"blocked: {printable(str(blocked), _EXCERPT)}"
                )
                break
            except Unreachable as unreachable:
                reply = Reply(code=451, enhanced="4.4.1", text=printable(str(unreachable), _EXCERPT))
            else:
                server = delivery.destination_domain
                reply = _judged(status, excerpt)
                if reply.positive:
                    break
            if pause is not None:
                await asyncio.sleep(pause.total_seconds())
        action = decide(Scope.MESSAGE, reply, more_hosts=False)
        return Verdict(delivery=delivery, action=action, reply=reply, server=server)

    async def _headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            "X-Webhook-Id": delivery.id,
        }
        key = await self._key_of(delivery.domain_id) if delivery.domain_id is not None else None
        if key and len(body) > _AT_ONCE:
            headers["X-Webhook-Signature"] = await asyncio.to_thread(signature, key, body, self._clock())
        elif key:
            headers["X-Webhook-Signature"] = signature(key, body, self._clock())
        return headers


def signature(key: str, body: bytes, now: datetime) -> str:
    """The value of X-Webhook-Signature."""
    seconds = str(int(now.timestamp()))
    digest = hmac.new(key.encode(), f"{seconds}.".encode(), hashlib.sha256)
    digest.update(body)
    return f"t={seconds},v1={digest.hexdigest()}"


def _judged(status: int, excerpt: str) -> Reply:
    """An HTTP status as a reply: done, or to be tried again."""
    said = f"HTTP {status}" + (f": {printable(excerpt, _EXCERPT)}" if excerpt else "")
    if 200 <= status < 300:
        return Reply(code=250, enhanced="2.0.0", text=said)
    return Reply(code=451, enhanced="4.4.0", text=said)
