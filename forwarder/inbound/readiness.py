"""Whether the DNS of a domain lets mail pass that is sent as it, and if not, which record is missing.

The API's check writes down when all was in place; where it has not, the DNS is asked here and now, through the cache,
so that a sender is told what to do and is let through as soon as it is done.

Nothing here is a no for good: a look-up that cannot tell is 451.
"""

import asyncio
from collections.abc import Sequence

from forwarder.mail import records
from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply
from forwarder.net.dns import Answer, CannotTell, Found, Resolver
from forwarder.store import dkim_keys
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain
from forwarder.store.engine import Database


class Readiness:
    """Asks for the records that sending needs."""

    def __init__(self, database: Database, resolver: Resolver | None, *, hostname: str) -> None:
        self._database = database
        self._resolver = resolver
        self._hostname = hostname

    async def objection(self, domain: Domain) -> Reply | None:
        """Why nothing may be sent as this domain now, or None."""
        if domain.sending_checked_at is not None:
            return None
        if self._resolver is None:
            return _missing(domain, "the SPF and DKIM records of the domain")
        keys = await self._database.read(lambda conn: dkim_keys.list_keys(conn, domain.id))
        spf, *dkim = await asyncio.gather(
            self._spf(self._resolver, domain), *(self._dkim(self._resolver, domain, key) for key in keys)
        )
        found: Sequence[str | CannotTell | None] = [spf, *dkim]
        for missing in found:
            if isinstance(missing, str):
                return _missing(domain, missing)
        if any(isinstance(answer, CannotTell) for answer in found):
            return replies.CANNOT_TELL.saying(f"cannot look up the DNS of {domain.name} now, try again later")
        return None

    async def _spf(self, resolver: Resolver, domain: Domain) -> str | CannotTell | None:
        answer = await resolver.txt(domain.name)
        if isinstance(answer, CannotTell):
            return answer
        found = records.spf_records(_texts(answer))
        if len(found) == 1 and records.spf_includes(found[0], self._hostname):
            return None
        return f"the SPF record (TXT {domain.name}) with include:{self._hostname}"

    async def _dkim(self, resolver: Resolver, domain: Domain, key: DkimKey) -> str | CannotTell | None:
        name = records.dkim_name(domain.name, key.selector)
        target = records.dkim_target(domain.name, key.selector, self._hostname)
        alias = await resolver.cname(name)
        if isinstance(alias, Found) and alias.records[0].rstrip(".").lower() == target:
            return None
        answer = await resolver.txt(name)
        if isinstance(answer, CannotTell):
            return answer
        if any(records.same_key(text, key.public_record) for text in _texts(answer)):
            return None
        return f"the DKIM record ({name})"


def _texts(answer: Answer[bytes]) -> list[str]:
    return [text.decode("utf-8", "replace") for text in answer.records] if isinstance(answer, Found) else []


def _missing(domain: Domain, what: str) -> Reply:
    # RFC 3463 X.7.1 would blame the person; X.7.26 (RFC 7372) is for checks by a receiver. 5.7.0 is what is left.
    text = f"nothing can be sent as {domain.display} yet: {what} is missing or wrong in the DNS"
    return Reply(code=550, enhanced="5.7.0", text=text)
