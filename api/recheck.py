"""Asks the DNS of all domains again and again, and tells their owners when something that was right breaks.

One call does one round: the domains that are due, a bounded number, some at a time. A domain is due every
``api.recheck_every``; a new one that is not active yet every ten minutes in its first week. Whoever runs this sees to
it that one process does it at a time; twice is harmless but for a second notice.

A notice goes to the domain's ``notification_email``, once for each time it breaks: as a message in the queue, with
the null reverse-path, so that it never makes a bounce. It is queued before it is noted as sent: a crash between the
two makes a second notice, not none.
"""

import asyncio
import textwrap
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import structlog

from api.findings import Checked, look, write_down
from api.letter import letter
from forwarder.config import Settings
from forwarder.mail.address import AddressError, parse_address
from forwarder.net.dns import Resolver
from forwarder.store import dkim_keys, domains
from forwarder.store.domains import Domain
from forwarder.store.engine import Database
from forwarder.store.records import NewMessage

ROUND = 500  # domains a call
AT_ONCE = 8
YOUNG = timedelta(days=7)
YOUNG_EVERY = timedelta(minutes=10)

log = structlog.get_logger("recheck")


class Mailbag(Protocol):
    """What takes a message to be delivered."""

    async def enqueue(self, message: NewMessage) -> None:
        """Durable on return."""


class Recheck:
    """The background look at all domains' DNS."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        resolver: Resolver,
        mailbag: Mailbag,
        *,
        ids: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._database = database
        self._resolver = resolver
        self._mailbag = mailbag
        self._ids = ids
        self._clock = clock

    async def round(self, now: datetime) -> int:
        """Check what is due; the number of domains checked. What one of them raises ends the round."""
        every = self._settings.api.recheck_every
        if not every:
            return 0
        due = await self._database.read(
            lambda conn: domains.due_for_check(
                conn,
                before=now - every,
                beyond=now + every,
                young_since=now - YOUNG,
                young_before=now - YOUNG_EVERY,
                limit=ROUND,
            )
        )
        some = asyncio.Semaphore(AT_ONCE)

        async def one(domain: Domain) -> None:
            async with some:
                await self.check(domain)

        try:
            async with asyncio.TaskGroup() as group:
                for domain in due:
                    group.create_task(one(domain))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # that the store is away is known by its own name
        return len(due)

    async def check(self, domain: Domain) -> None:
        """Check one domain, write it down, and tell its owner when it broke."""
        keys = await self._database.read(partial(dkim_keys.live_keys, domain_id=domain.id))
        checked = await look(self._resolver, domain.name, self._settings, keys)
        now = self._clock()
        changed = await write_down(self._database, domain, checked, now)
        if checked.found:
            log.info("a domain's new DKIM keys sign", domain=domain.name)
        if changed is None or changed.broken_since is None or changed.notified_at is not None:
            return
        sent = await self._tell(changed, checked, now)
        log.info("a domain's DNS broke", domain=changed.name, told=sent)
        await self._database.change(lambda conn: domains.set_notified(conn, changed.id, now))

    async def _tell(self, domain: Domain, checked: Checked, now: datetime) -> bool:
        if domain.notification_email is None:
            return False
        try:
            to = parse_address(domain.notification_email)
        except AddressError:
            return False
        subject = f"The DNS of {domain.name} needs your attention"
        hostname = self._settings.hostname
        lines = notice(domain, checked)
        message = letter(lines, to=to, subject=subject, hostname=hostname, ids=self._ids, now=now)
        await self._mailbag.enqueue(message)
        return True


def notice(domain: Domain, checked: Checked) -> list[str]:
    """What the owner is told, as the lines of a letter."""
    advice = checked.advice(sending=True) or "The records are right again while this is written."
    effect = (
        f"Mail for {domain.display} may no longer reach this server."
        if not domain.is_active
        else f"Mail sent as {domain.display} may no longer be accepted by others."
    )
    return [
        "Hello,",
        "",
        f"the DNS records of {domain.display} were right and are not any more.",
        effect,
        "",
        "What to do:",
        "",
        *(line for text in advice.splitlines() for line in _wrapped(text)),
        "",
        f"The records are looked at again by themselves; a look on demand is GET /v3/domains/{domain.name}/check.",
    ]


def _wrapped(text: str) -> list[str]:
    """At most 900 octets a line (RFC 5322 2.1.1): a DKIM key alone, which stays whole, is half of that."""
    width = 900 if text.isascii() else 225  # a character may be four octets
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
