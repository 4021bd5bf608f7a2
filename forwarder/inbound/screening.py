"""Authentication of inbound mail: SPF, DKIM, ARC and DMARC of one message, after DATA and before it is stored.

``examine`` answers with a refusal or with the message to store: without the Authentication-Results headers that
falsely claim to be ours, and with the true one to prepend. All DNS answers are asked for at once and waited for
``time_limit`` in all; what is missing then is a temperror in the header. Mail is refused only for what is known: a
message that fails the policy p=reject of its author's domain (550 5.7.1), or that names several authors, or one that
cannot be read and may be shown as anybody's (554 5.6.0). What cannot be told although p=reject depends on it is to
be sent again (451). Mail that bears our own seal, unbroken, of having passed does not meet p=reject again: another
machine of ours sent it on, or this one (``outbound.route``). Else DNS trouble and our own faults hold no mail up:
``examine`` raises only where it cannot tell which headers are forged (cancellation apart).

A message can name sixty keys in zones that never answer, so the keys of all messages have ``KEYS`` questions at once
between them: strangers cannot take the resolver from policies, SPF and the mail that goes out.

A small message is judged on the spot; hashing a large one, or many signatures, is done in a thread, off the event
loop. At most 10 DKIM signatures and one ARC chain of 50 sets are looked at.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

import structlog

from forwarder.clock import utc_now
from forwarder.inbound.spf import Questions, Sender, SpfCheck
from forwarder.mail import arc, dmarc, verification
from forwarder.mail.address import Path
from forwarder.mail.authentication import (
    Results,
    authentication_results_header,
    borrowed_spf,
    passed_before,
    remove_forged,
    verdict,
)
from forwarder.mail.author import Author, author, obscure
from forwarder.mail.canonical import Canonical
from forwarder.mail.dmarc import SpfResult
from forwarder.mail.reply import BAD_CONTENT, CANNOT_TELL, Reply
from forwarder.mail.verification import AuthResult
from forwarder.net.answers import Answer, CannotTell, Found
from forwarder.net.registered import registered_domain

log = structlog.get_logger(__name__)

# Up to here a message is judged on the event loop, as most are: a hop to a thread and back costs more than the work.
SMALL_OCTETS = 64 * 1024
SMALL_HEAD = 16 * 1024  # octets; fields of a few octets each cost more than any body
FEW_KEYS = 3
KEYS = 96  # questions for keys at once, of all messages; the resolver has 256

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What to do with a message: refuse it with ``reply``, or store ``headers`` followed by ``content``."""

    reply: Reply | None
    headers: bytes
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brief:
    """What has to be known about a message before it can be judged."""

    message: Canonical
    content: bytes  # without forged headers
    author: Author
    policies: tuple[str, ...]  # the names of TXT records to ask for
    keys: tuple[str, ...]  # likewise, each once


class Screening:
    """Judges one message after DATA."""

    def __init__(
        self,
        resolver: Questions,
        *,
        authserv_id: str,
        clock: Callable[[], datetime] = utc_now,
        spf: bool = True,
        dkim: bool = True,
        dmarc: bool = True,
        dmarc_reject: bool = True,
        arc: bool = True,
        time_limit: timedelta = timedelta(seconds=5),
        own_names: Sequence[str] = (),
    ) -> None:
        """``own_names``: in whose organisations this server sends; without any nobody can borrow their SPF."""
        self._resolver = resolver
        self._authserv_id = authserv_id
        self._clock = clock
        self._spf = spf
        self._dkim = dkim
        self._dmarc = dmarc
        self._reject = dmarc_reject
        self._arc = arc
        self._time_limit = time_limit.total_seconds()
        self._looks = spf or dkim or dmarc or arc
        self._own_names = tuple(own_names)
        self._questions_for_keys = asyncio.Semaphore(KEYS)
        self._nothing_seen = authentication_results_header(authserv_id, Results())

    async def examine(
        self, *, client_address: str, helo: str, reverse_path: Path, content: bytes
    ) -> Screened:
        """Judge one message. ``content`` is what DATA brought, before any header of ours."""
        try:
            if not self._looks:
                return self._unseen(content)
            small = len(content) <= SMALL_OCTETS and content.find(b"\r\n\r\n", 0, SMALL_HEAD) >= 0
            brief = await self._run(small, self._brief, content)
            answers, spf = await self._ask(
                brief, Sender(client_address, helo, reverse_path, receiver=self._authserv_id)
            )
            small = small and len(brief.keys) <= FEW_KEYS
            results = await self._run(small, self._judge, brief, answers, spf)
            passed = passed_before(results, self._own_names)
            return Screened(
                reply=verdict(results, reject=self._reject, passed=passed)
                or borrowed_spf(results, reverse_path, ours=self._ours)
                or self._doubtful(brief.message, brief.author, spf),
                headers=authentication_results_header(self._authserv_id, results),
                content=brief.content,
            )
        except Exception:
            # Our fault is not the sender's: the message goes on, and nothing is said about its authenticity.
            log.exception("a screening failed")
            return self._unseen(content)

    def _unseen(self, content: bytes) -> Screened:
        return Screened(
            reply=None, headers=self._nothing_seen, content=remove_forged(content, self._authserv_id)
        )

    @cached_property
    def _own(self) -> frozenset[str]:
        """The organisations in whose names this server sends, by their registered domains.

        Found when something is judged: loading the public suffix list is a tenth of a start.
        """
        return frozenset(map(registered_domain, self._own_names))

    def _ours(self, domain: str) -> bool:
        return registered_domain(domain) in self._own

    def _doubtful(self, message: Canonical, claimed: Author, spf: SpfResult | None) -> Reply | None:
        """The refusal of mail that could pass for somebody else's because of how it is sent on, or None."""
        # Sent on under a name of ours, it might pass for our mail. Sent on under its own, it might pass for mail of a
        # domain that trusts our address.
        if obscure(message, claimed):
            return BAD_CONTENT.saying("the author in the From header cannot be read")
        # Mail that names us beside somebody else goes on as it came, too. So it is taken only if its sender is who it
        # says, or if the sender's domain has no SPF record that might trust our address.
        if not claimed.others or not any(map(self._ours, claimed.domains)):
            return None
        match None if spf is None else spf.result:
            case AuthResult.PASS | AuthResult.NONE:
                return None
            case AuthResult.TEMPERROR:
                return CANNOT_TELL.saying("whose mail this is cannot be told at the moment, try again later")
        return BAD_CONTENT.saying("the From header names another address beside the one in brackets")

    async def _run(self, small: bool, work: Callable[..., _T], *arguments: Any) -> _T:
        if small:
            return work(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, functools.partial(work, *arguments))

    def _brief(self, content: bytes) -> _Brief:
        message = Canonical(content)
        keys: tuple[str, ...] = ()
        if self._dkim:
            keys += verification.needed_keys(message)
        if self._arc:
            keys += arc.needed_keys(message)
        claimed = author(message)
        policies = dmarc.record_names(claimed, registered_domain) if self._dmarc else ()
        return _Brief(
            message=message,
            content=remove_forged(content, self._authserv_id, message),
            author=claimed,
            policies=policies,
            keys=tuple(dict.fromkeys(keys)),
        )

    async def _ask(
        self, brief: _Brief, sender: Sender
    ) -> tuple[dict[str, tuple[bytes, ...]], SpfResult | None]:
        """TXT answers by name (absent: cannot tell) and SPF, as far as they were there in time.

        Where all is at hand, as of most senders it is, there is no task and no turn of the loop.
        """
        answers: dict[str, tuple[bytes, ...]] = {}
        spf: list[SpfResult] = []

        def note(name: str, answer: Answer[bytes]) -> None:
            if not isinstance(answer, CannotTell):
                answers[name] = tuple(answer.records) if isinstance(answer, Found) else ()

        async def text(name: str) -> None:
            note(name, await self._resolver.txt(name))

        async def key(name: str) -> None:
            async with self._questions_for_keys:
                await text(name)

        wanted: list[Coroutine[Any, Any, None]] = []
        for name in dict.fromkeys(brief.policies + brief.keys):
            if (kept := self._resolver.kept(name, "TXT")) is not None:
                note(name, kept)
            else:
                wanted.append(text(name) if name in brief.policies else key(name))
        if self._spf:
            check = SpfCheck(self._resolver, sender)
            if (at_hand := check.at_hand()) is not None:
                spf.append(at_hand)
            else:

                async def ask() -> None:
                    spf.append(await check.asked())

                wanted.append(ask())
        await _within(self._time_limit, wanted)
        if self._spf and not spf:
            spf.append(sender.result(AuthResult.TEMPERROR, "DNS did not answer"))
        return answers, spf[0] if spf else None

    def _judge(self, brief: _Brief, answers: dict[str, tuple[bytes, ...]], spf: SpfResult | None) -> Results:
        now = self._clock()
        signatures = verification.verify(brief.message, answers, now=now) if self._dkim else []
        policy, others = None, []
        if self._dmarc:
            policy, *others = dmarc.evaluate(
                brief.author, answers, spf=spf, dkim=signatures, organisational=registered_domain
            )
        chain = arc.validate(brief.message, answers, now=now) if self._arc else None
        return Results(spf=spf, dkim=signatures, dmarc=policy, others=others, arc=chain)


async def _within(limit: float, work: list[Coroutine[Any, Any, None]]) -> None:
    """Run all at once, ``limit`` seconds at most; what did not finish, or failed, has left no answer."""
    tasks = [asyncio.ensure_future(one) for one in work]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, timeout=limit)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a look-up failed", exc_info=error)
    finally:
        for task in tasks:
            task.cancel()
