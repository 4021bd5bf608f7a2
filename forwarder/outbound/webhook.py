"""Webhooks: a message posted to the URL of an alias, and events posted to the webhook of a domain.

The message goes out as the JSON of ``payload``; an event as the JSON that the store wrote. Every body that belongs to
a domain is signed: ``X-Webhook-Signature: t=<seconds>,v1=<hex>``, where v1 is the HMAC-SHA-256 of ``<seconds>.<body>``
under the domain's webhook key, so that a receiver can tell our posts from forged and from replayed ones.
``X-Webhook-Id`` is the delivery's id and the same each time: a receiver that saw it may skip the repetition.

2xx is success. Anything else is tried three times in a row, with short pauses, and then later by the usual schedule
until the message is too old, 4xx as well: a receiver that is being repaired answers 404 too, and nobody's mail should
be lost for it. A URL that leads to an address we do not go to is given up at once, with the word ``blocked``.

A message may be six times as large as JSON, and lies there for as long as its receivers take. So those that are not
small share ``BODIES`` octets, of which no domain can have all. One that finds no room while a receiver may take is
tried later: its content is not to lie there all the time, either.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from forwarder import __version__
from forwarder.mail.event import DeliveryKind
from forwarder.mail.outcome import Scope, decide
from forwarder.mail.reply import Reply
from forwarder.mail.words import printable
from forwarder.net.http import Blocked, GuardedClient, Unreachable
from forwarder.outbound.budget import Budget
from forwarder.outbound.parcel import Carried, Job, Verdict
from forwarder.outbound.payload import MessageJson, message_json
from forwarder.store.records import Delivery

BODIES = 512 * 1024 * 1024  # octets, of messages as JSON
_GROWTH = 6  # octets that one of a message may become: those of a control character
_EXCERPT = 300
_AT_ONCE = 64 * 1024  # octets that are signed in the event loop, and of a message that waits for no room

KeyOf = Callable[[int], Awaitable[str | None]]


_NO_ROOM = Reply(
    code=452, enhanced="4.3.1", text="too many large messages are posted at once; tried again later"
)


class _NoRoom(Exception):
    """A message cannot be made JSON now."""


@dataclass(slots=True, eq=False)
class _Body:
    """A message as JSON, for as long as somebody posts it."""

    made: asyncio.Task[MessageJson]
    room: AsyncExitStack = field(default_factory=AsyncExitStack)
    posts: int = 0


class Webhooks:
    """Posts by way of a guarded client."""

    def __init__(
        self,
        *,
        client: GuardedClient,
        key_of: KeyOf,
        hostname: str,
        clock: Callable[[], datetime],
        timeout: timedelta,
        pauses: Sequence[timedelta] = (timedelta(seconds=0.5), timedelta(seconds=2)),
    ) -> None:
        """``timeout``: of one post; ``pauses``: between the posts in a row, so one less than these."""
        self._client = client
        self._key_of = key_of
        self._agent = f"Forwarder/{__version__} ({hostname})"
        self._timeout = timeout
        self._clock = clock
        self._bodies: dict[str, _Body] = {}  # by message
        self._room = Budget(BODIES)
        self._pauses = tuple(pauses)

    async def carry(self, job: Job, content: bytes) -> Carried:
        """Post a job, an event as it is or a message as JSON; each delivery of it has a URL of its own."""
        try:
            verdicts = await self._verdicts(job, content)
        except _NoRoom:
            action = decide(Scope.MESSAGE, _NO_ROOM, more_hosts=False)
            later = [Verdict(delivery=each, action=action, reply=_NO_ROOM) for each in job.deliveries]
            return Carried(verdicts=later, reached=True)  # which says nothing of the receiver
        reached = any(verdict.server is not None for verdict in verdicts)
        return Carried(verdicts=verdicts, reached=reached, trouble=None if reached else verdicts[-1].reply)

    async def _verdicts(self, job: Job, content: bytes) -> list[Verdict]:
        if job.kind is not DeliveryKind.WEBHOOK:
            return [await self._post(each, (content,)) for each in job.deliveries]
        async with self._body(job, content) as body:
            return [await self._post(each, body.to(each.recipient)) for each in job.deliveries]

    @asynccontextmanager
    async def _body(self, job: Job, content: bytes) -> AsyncIterator[MessageJson]:
        """A message as JSON, made once for all who post it meanwhile."""
        message_id = job.parcel.message_id
        known = self._bodies.get(message_id)
        if known is None:
            room = AsyncExitStack()
            made = asyncio.create_task(self._made(job, content, room))
            known = self._bodies[message_id] = _Body(made=made, room=room)
        known.posts += 1
        try:
            yield await asyncio.shield(known.made)
        finally:
            known.posts -= 1
            if not known.posts:
                del self._bodies[message_id]
                known.made.cancel()
                await known.room.aclose()

    async def _made(self, job: Job, content: bytes, room: AsyncExitStack) -> MessageJson:
        if len(content) > _AT_ONCE:
            whose = str(job.deliveries[0].domain_id)
            try:
                async with asyncio.timeout(self._timeout.total_seconds()):
                    await room.enter_async_context(self._room.hold(_GROWTH * len(content), whose))
            except TimeoutError:
                raise _NoRoom from None
        parcel = job.parcel
        return await asyncio.to_thread(
            message_json, content, reverse_path=parcel.reverse_path, received_at=parcel.created_at
        )

    async def _post(self, delivery: Delivery, body: Sequence[bytes]) -> Verdict:
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

    async def _headers(self, delivery: Delivery, body: Sequence[bytes]) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            "X-Webhook-Id": delivery.id,
        }
        key = await self._key_of(delivery.domain_id) if delivery.domain_id is not None else None
        if key and sum(map(len, body)) > _AT_ONCE:
            headers["X-Webhook-Signature"] = await asyncio.to_thread(signature, key, body, self._clock())
        elif key:
            headers["X-Webhook-Signature"] = signature(key, body, self._clock())
        return headers


def signature(key: str, body: Sequence[bytes], now: datetime) -> str:
    """The value of X-Webhook-Signature for a body in pieces."""
    seconds = str(int(now.timestamp()))
    digest = hmac.new(key.encode(), f"{seconds}.".encode(), hashlib.sha256)
    for piece in body:
        digest.update(piece)
    return f"t={seconds},v1={digest.hexdigest()}"


def _judged(status: int, excerpt: str) -> Reply:
    """An HTTP status as a reply: done, or to be tried again."""
    said = f"HTTP {status}" + (f": {printable(excerpt, _EXCERPT)}" if excerpt else "")
    if 200 <= status < 300:
        return Reply(code=250, enhanced="2.0.0", text=said)
    return Reply(code=451, enhanced="4.4.0", text=said)
