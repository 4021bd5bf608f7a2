"""Signatures and seals of outgoing mail, made in threads.

Mail from outside and our own reports are signed by the service's domain only; submitted mail by the domain that its
author logged in for, or by the service when that domain has no key. Mail from outside is sealed with ARC as well,
where that is switched on, over the authentication results that our own reception recorded in the message.

Mail from outside whose author claims to be of a domain of the service (or of the organisation that owns it) gets no
DKIM signature unless our reception saw that domain prove it: ours would be aligned with that author, and turn a forgery
into mail that passes DMARC. The parcel remembers (``borrows``), so that it gets no reverse-path of ours either.

The private-key work is OpenSSL's and releases the interpreter lock, so it runs beside the event loop. What waits is
taken together, up to ``_BATCH`` messages a hand-over to a thread, since the hand-over costs a good part of a
signature: under load it is shared, at rest nobody waits for it. Nothing about a message makes this fail; a failing
``signers_for`` (the store is away) reaches the caller as it is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple

from forwarder.mail.arc import seal_arc
from forwarder.mail.authentication import Recorded, recorded
from forwarder.mail.author import author
from forwarder.mail.canonical import Canonical
from forwarder.mail.event import Transport
from forwarder.mail.seal import Signer, sign
from forwarder.net.registered import registered_domain
from forwarder.outbound.parcel import Parcel

_BATCH = 16
_BATCH_BYTES = 512 * 1024


@dataclass(slots=True, eq=False)
class _Order:
    """One message to be signed."""

    content: bytes
    signers: Sequence[Signer]
    arc: Signer | None
    outside: bool  # it came from anybody on the Internet
    now: datetime
    done: asyncio.Future["_Sealed"]


class _Sealed(NamedTuple):
    headers: bytes
    borrows: bool = False


class Signing:
    """The service's keys at work."""

    def __init__(
        self,
        *,
        service: Sequence[Signer],
        signers_for: Callable[[str], Awaitable[Sequence[Signer]]],
        arc: bool,
        authserv_id: str,
        threads: int,
        clock: Callable[[], datetime],
        own_domains: Sequence[str] = (),
    ) -> None:
        """``own_domains``: whose SPF is ours to lend, beside those the service signs for."""
        self._service = tuple(service)
        self._own = {registered_domain(name) for name in (*own_domains, *(s.domain for s in service))}
        self._signers_for = signers_for
        # RFC 8617 4.1.2: one signature a set; RSA is what every verifier of ARC knows.
        self._arc = next((s for s in self._service if s.algorithm == "rsa-sha256"), None) if arc else None
        self._authserv_id = authserv_id
        self._threads = max(1, threads)
        self._clock = clock
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="signing")
        self._waiting: deque[_Order] = deque()
        self._busy = 0

    async def headers(self, parcel: Parcel, content: bytes) -> bytes:
        """The header lines to prepend to a parcel's content; remembered in the parcel."""
        if parcel.sealed is None:
            parcel.sealed, parcel.borrows = await self._made(parcel, content)
        return parcel.sealed

    def close(self) -> None:
        """Let the threads go; what is being signed is finished first."""
        self._executor.shutdown(wait=False, cancel_futures=False)

    async def _made(self, parcel: Parcel, content: bytes) -> _Sealed:
        signers: Sequence[Signer] = self._service
        if parcel.signing_domain is not None:
            signers = await self._signers_for(parcel.signing_domain) or self._service
        outside = parcel.transport is Transport.SMTP
        arc = self._arc if outside else None
        if not signers and arc is None and not (outside and self._own):
            return _Sealed(b"")
        done: asyncio.Future[_Sealed] = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _Order(content=content, signers=signers, arc=arc, outside=outside, now=self._clock(), done=done)
        )
        self._start()
        return await done

    def _start(self) -> None:
        while self._waiting and self._busy < self._threads:
            batch = [self._waiting.popleft()]
            volume = len(batch[0].content)
            fair = 1 + len(self._waiting) // (self._threads - self._busy)
            while self._waiting and len(batch) < min(_BATCH, fair) and volume < _BATCH_BYTES:
                volume += len(self._waiting[0].content)
                batch.append(self._waiting.popleft())
            self._busy += 1
            running = asyncio.get_running_loop().run_in_executor(self._executor, self._sign_all, batch)
            running.add_done_callback(partial(self._finish, batch))

    def _finish(self, batch: Sequence[_Order], ended: asyncio.Future[list[_Sealed | Exception]]) -> None:
        self._busy -= 1
        failure = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        results = ended.result() if failure is None else [failure] * len(batch)
        for order, result in zip(batch, results, strict=True):
            if order.done.done():
                continue  # whoever waited was cancelled
            if isinstance(result, _Sealed):
                order.done.set_result(result)
            elif isinstance(result, asyncio.CancelledError):
                order.done.cancel()
            else:
                order.done.set_exception(result)
        self._start()

    def _sign_all(self, batch: Sequence[_Order]) -> list[_Sealed | Exception]:
        """Runs in a thread; one bad message must not spoil the others."""
        results: list[_Sealed | Exception] = []
        for order in batch:
            try:
                results.append(self._sign(order))
            except Exception as error:  # noqa: BLE001 - handed to the one who waits for this message
                results.append(error)
        return results

    def _sign(self, order: _Order) -> _Sealed:
        message = Canonical(order.content)
        found = recorded(message, self._authserv_id) if order.outside else None
        borrows = order.outside and self._borrows(message, found)
        signed = sign(message, order.signers, now=order.now) if order.signers and not borrows else b""
        if order.arc is None:
            return _Sealed(signed, borrows)
        results, status = (found.text, found.chain) if found is not None else ("none", None)
        seal = seal_arc(
            message,
            signer=order.arc,
            authserv_id=self._authserv_id,
            results=results,
            chain=status,
            now=order.now,
        )
        return _Sealed(signed + seal, borrows)

    def _borrows(self, message: Canonical, found: Recorded | None) -> bool:
        """Whether a reader may see an author of our own organisation, and our reception saw no proof of it."""
        claimed = author(message).domain
        if not claimed:  # none, several, or not to be read: then the name of ours anywhere in it is too much
            fields = [raw.lower() for raw in message.instances(b"from")]
            return any(own.encode() in raw for own in self._own for raw in fields)
        ours = registered_domain(claimed)
        proved = found.authenticated if found is not None else frozenset()
        return ours in self._own and ours not in map(registered_domain, proved)
