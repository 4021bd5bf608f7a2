"""Signatures and seals of outgoing mail: small messages on the event loop, large ones in threads.

Mail from outside and our own reports are signed by the service's domain only; submitted mail by the domain that its
author logged in for, or by the service when that domain has no key. Mail from outside is sealed with ARC as well,
where that is switched on, over the authentication results that our own reception recorded in the message.

Mail from outside whose author claims to be of a domain of the service (or of the organisation that owns it) gets no
DKIM signature unless our reception saw that domain prove it: ours would be aligned with that author, and turn a forgery
into mail that passes DMARC. Nor does mail whose author cannot be read, which may be shown as anybody's. The parcel
remembers (``borrows``), so that it gets no reverse-path of ours either.

A small message is signed on the event loop. To hand it to a thread and back costs a good part of a signature, and
where each core has a process of its own, the thread only contends with the loop for the interpreter lock. OpenSSL
releases that lock for the private-key work, and the store's writer goes on meanwhile.

The loop signs for about ``TURN`` in one turn, by an estimate of the effort. What is ready beyond that goes to the
threads, and so does whatever is large or needs much private-key work. A thread takes up to ``_BATCH`` waiting messages
at a time. Under load most messages are signed before they are committed (``prepare``), while the store is waited for:
afterwards all messages of a group would have to be signed in the same turn.

Nothing about a message makes this fail; a failing ``signers_for`` (the store is away) reaches the caller as it is.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property, partial
from typing import NamedTuple

from forwarder.errands import Errands
from forwarder.mail.arc import seal_arc
from forwarder.mail.authentication import own_results
from forwarder.mail.author import author, obscure
from forwarder.mail.canonical import Canonical
from forwarder.mail.event import Transport
from forwarder.mail.seal import Signer, sign
from forwarder.net.registered import registered_domain
from forwarder.outbound.parcel import Parcel
from forwarder.tally import SIGNED, Tally

# Up to here the octets cost no more than one RSA signature (0.25 ms), and the hand-over is worth sparing (0.1 ms).
INLINE_OCTETS = 128 * 1024
INLINE_HEAD = 16 * 1024  # octets
INLINE_SIGNATURES = 4  # two algorithms of DKIM, and the two signatures of an ARC set
# Milliseconds, as they are estimated: a look at the clock of the processor costs too much under load.
TURN = 1.0
_SIGNATURE = 0.3  # milliseconds
_KIB_OF_HEAD = 0.3  # milliseconds, when it is made of addresses alone; an ordinary one takes a twentieth
_BATCH = 16
_BATCH_BYTES = 512 * 1024


class _Order(NamedTuple):
    """One message to be signed."""

    content: bytes
    signers: Sequence[Signer]
    arc: Signer | None
    outside: bool  # it came from anybody on the Internet
    now: datetime

    def effort(self) -> float | None:
        """Milliseconds that the event loop needs at worst; None: it is nothing for the loop."""
        octets = len(self.content)
        signatures = len(self.signers) + 2 * (self.arc is not None)
        if octets > INLINE_OCTETS or signatures > INLINE_SIGNATURES:
            return None
        head = self.content.find(b"\r\n\r\n", 0, INLINE_HEAD)
        if head < 0:
            if octets > INLINE_HEAD:
                return None
            head = octets
        if not all(signer.quick for signer in self.signers) or not (self.arc is None or self.arc.quick):
            return None
        return signatures * _SIGNATURE + head / 1024 * _KIB_OF_HEAD


class _Sealed(NamedTuple):
    headers: bytes
    borrows: bool = False


class Signing:
    """The service's keys at work."""

    def __init__(
        self,
        *,
        service: Sequence[Signer],
        signers_for: Callable[[str, datetime], Awaitable[Sequence[Signer]]],
        arc: bool,
        authserv_id: str,
        threads: int,
        clock: Callable[[], datetime],
        tally: Tally,
        own_domains: Sequence[str] = (),
    ) -> None:
        """``own_domains``: whose SPF is ours to lend, beside those the service signs for."""
        self._service = tuple(service)
        self._own_names = (*own_domains, *(s.domain for s in service))
        self._signers_for = signers_for
        # RFC 8617 4.1.2: one signature a set; RSA is what every verifier of ARC knows.
        self._arc = next((s for s in self._service if s.algorithm == "rsa-sha256"), None) if arc else None
        self._authserv_id = authserv_id
        self._threads = max(1, threads)
        self._clock = clock
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="signing")
        self._waiting: deque[tuple[_Order, asyncio.Future[_Sealed]]] = deque()
        self._large = Errands("signing")
        self._busy = 0
        self._spent = 0.0  # on the loop, in this turn of it; milliseconds
        self._counts = tally.counts(SIGNED)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: until Python 3.12 each question is a system call."""
        return asyncio.get_running_loop()

    @cached_property
    def _own(self) -> frozenset[str]:
        """The organisations whose SPF is ours to lend, by their registered domains.

        Found when something is signed: loading the public suffix list is a tenth of a start.
        """
        return frozenset(map(registered_domain, self._own_names))

    async def headers(self, parcel: Parcel, content: bytes) -> bytes:
        """The header lines to prepend to a parcel's content; remembered in the parcel."""
        if parcel.sealed is None:
            parcel.sealed, parcel.borrows = await self._made(parcel, content)
        return parcel.sealed

    def prepare(self, parcel: Parcel, content: bytes) -> None:
        """Make what ``headers`` will be asked for, where no key has to be read and the loop has time for it."""
        if parcel.signing_domain is None and parcel.sealed is None:
            made = self._at_once(self._order(parcel, content, self._service))
            if made is not None:
                parcel.sealed, parcel.borrows = made

    def close(self) -> None:
        """Let the threads go; what is being signed is finished first."""
        self._executor.shutdown(wait=False, cancel_futures=False)

    async def _made(self, parcel: Parcel, content: bytes) -> _Sealed:
        signers: Sequence[Signer] = self._service
        if parcel.signing_domain is not None:
            signers = await self._signers_for(parcel.signing_domain, parcel.created_at) or self._service
        order = self._order(parcel, content, signers)
        made = self._at_once(order)
        if made is None and len(content) > INLINE_OCTETS:  # it may go to a hundred sites in the same moment
            return await self._large.run(parcel.message_id, partial(self._in_thread, order))
        return made or await self._in_thread(order)

    def _order(self, parcel: Parcel, content: bytes, signers: Sequence[Signer]) -> _Order:
        outside = parcel.transport is Transport.SMTP
        return _Order(
            content=content,
            signers=signers,
            arc=self._arc if outside else None,
            outside=outside,
            now=self._clock(),
        )

    def _at_once(self, order: _Order) -> _Sealed | None:
        """The order carried out on the event loop; None when it is too much for that, or for this turn."""
        if not order.signers and order.arc is None and not (order.outside and self._own_names):
            return _Sealed(b"")
        effort = order.effort() if self._spent < TURN else None
        if effort is None:
            return None
        if not self._spent:
            self._loop.call_soon(self._next_turn)
        self._spent += effort
        return self._counted(self._sign(order))

    def _counted(self, made: _Sealed) -> _Sealed:
        """Not in ``_sign``, which runs in threads as well."""
        self._counts["withheld" if made.borrows else "signed"].add()
        return made

    def _next_turn(self) -> None:
        self._spent = 0.0

    async def _in_thread(self, order: _Order) -> _Sealed:
        done: asyncio.Future[_Sealed] = self._loop.create_future()
        self._waiting.append((order, done))
        self._start()
        return await done

    def _start(self) -> None:
        while self._waiting and self._busy < self._threads:
            batch = [self._waiting.popleft()]
            volume = len(batch[0][0].content)
            fair = 1 + len(self._waiting) // (self._threads - self._busy)
            while self._waiting and len(batch) < min(_BATCH, fair) and volume < _BATCH_BYTES:
                volume += len(self._waiting[0][0].content)
                batch.append(self._waiting.popleft())
            self._busy += 1
            orders = [order for order, _ in batch]
            running = self._loop.run_in_executor(self._executor, self._sign_all, orders)
            running.add_done_callback(partial(self._finish, [done for _, done in batch]))

    def _finish(
        self, waiting: Sequence[asyncio.Future[_Sealed]], ended: asyncio.Future[list[_Sealed | Exception]]
    ) -> None:
        self._busy -= 1
        failure = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        results = ended.result() if failure is None else [failure] * len(waiting)
        for done, result in zip(waiting, results, strict=True):
            if done.done():
                continue  # whoever waited was cancelled
            if isinstance(result, _Sealed):
                done.set_result(self._counted(result))
            elif isinstance(result, asyncio.CancelledError):
                done.cancel()
            else:
                self._counts["failed"].add()
                done.set_exception(result)
        self._start()

    def _sign_all(self, orders: Sequence[_Order]) -> list[_Sealed | Exception]:
        """Runs in a thread; one bad message must not spoil the others."""
        results: list[_Sealed | Exception] = []
        for order in orders:
            try:
                results.append(self._sign(order))
            except Exception as error:  # noqa: BLE001 - handed to the one who waits for this message
                results.append(error)
        return results

    def _sign(self, order: _Order) -> _Sealed:
        message = Canonical(order.content)
        borrows = order.outside and self._borrows(message)
        signed = sign(message, order.signers, now=order.now) if order.signers and not borrows else b""
        if order.arc is None:
            return _Sealed(signed, borrows)
        found = own_results(message, self._authserv_id)
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

    def _borrows(self, message: Canonical) -> bool:
        """Whether a reader may see an author of our own organisation, and our reception saw no proof of it."""
        claimed = author(message)
        if not claimed.domain:
            return obscure(message, claimed)
        ours = {registered_domain(domain) for domain in claimed.domains} & self._own
        if not ours:
            return False
        found = own_results(message, self._authserv_id)
        return found is None or not ours.issubset(map(registered_domain, found.authenticated))
