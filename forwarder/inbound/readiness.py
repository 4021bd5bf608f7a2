"""Whether the DNS of a domain lets mail pass that is sent as it, and if not, which record is missing.

The API's check writes down when all was in place; where it has not, the DNS is asked here and now, through the cache,
so that a sender is told what to do. A no is never said from the cache alone: the zone's own servers are asked, for a
domain every ``AGAIN_AFTER`` seconds at most, so that mail goes out as soon as the records are there.

Nothing here is a no for good: a look-up that cannot tell is 451.
"""

import asyncio
import math
import time
from collections.abc import Sequence

from forwarder.config import Settings
from forwarder.mail import records
from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply
from forwarder.mail.spf_record import fault_of
from forwarder.net.answers import CannotTell, Found, texts_of
from forwarder.net.dns import Resolver
from forwarder.net.ourselves import Ourselves
from forwarder.store import dkim_keys
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain
from forwarder.store.engine import Database

AGAIN_AFTER = 30.0  # seconds
REMEMBERED = 1000  # domains


class Readiness:
    """Asks for the records that sending needs."""

    def __init__(
        self,
        database: Database,
        resolver: Resolver,
        settings: Settings,
    ) -> None:
        self._database = database
        self._resolver = resolver
        self._settings = settings
        self._hostname = settings.hostname
        self._asked: dict[str, float] = {}  # when a domain's own servers were asked

    async def objection(self, domain: Domain) -> Reply | None:
        """Why nothing may be sent as this domain now, or None."""
        if domain.sending_checked_at is not None:
            return None
        keys = await self._database.read(lambda conn: dkim_keys.list_keys(conn, domain.id))
        found = await self._look(domain, keys)
        if any(isinstance(missing, str) for missing in found) and self._may_ask_again(domain.name):
            found = await self._look(domain, keys, fresh=True)
        missing = [each for each in found if isinstance(each, str)]
        if missing:
            return _missing(domain, " and ".join(missing))
        if any(isinstance(answer, CannotTell) for answer in found):
            return replies.CANNOT_TELL.saying(f"cannot look up the DNS of {domain.name} now, try again later")
        return None

    async def _look(
        self, domain: Domain, keys: Sequence[DkimKey], *, fresh: bool = False
    ) -> Sequence[str | CannotTell | None]:
        """Of SPF and of each key: which record is missing, or None; CannotTell."""
        return await asyncio.gather(
            self._spf(domain, fresh=fresh), *(self._dkim(domain, key, fresh=fresh) for key in keys)
        )

    def _may_ask_again(self, name: str) -> bool:
        now = time.monotonic()
        if now < self._asked.get(name, -math.inf) + AGAIN_AFTER:
            return False
        self._asked.pop(name, None)
        self._asked[name] = now
        if len(self._asked) > REMEMBERED:
            del self._asked[next(iter(self._asked))]  # the one asked longest ago
        return True

    async def _spf(self, domain: Domain, *, fresh: bool) -> str | CannotTell | None:
        answer = await self._resolver.txt(domain.name, fresh=fresh)
        if isinstance(answer, CannotTell):
            return answer
        found = records.spf_records(texts_of(answer))
        ourselves = Ourselves(self._resolver, self._settings)
        shared = ourselves.shared_name
        if len(found) == 1 and (fault := fault_of(found[0])):
            return f"the SPF record (TXT {domain.name}), in which {fault}"
        if len(found) == 1:
            machines = await ourselves.machines()
            if any(records.spf_includes(found[0], name) for name in (shared, *machines.names)):
                return None
            if not machines.complete:
                return CannotTell(reason=f"the MX of {shared}")
        return f"the SPF record (TXT {domain.name}) with include:{shared}"

    async def _dkim(self, domain: Domain, key: DkimKey, *, fresh: bool) -> str | CannotTell | None:
        name = records.dkim_name(domain.name, key.selector)
        target = records.dkim_target(domain.name, key.selector, self._hostname)
        alias = await self._resolver.cname(name, fresh=fresh)
        if isinstance(alias, Found) and alias.records[0].rstrip(".").lower() == target:
            name = target  # where the key must stand: a CNAME alone verifies nothing
        answer = await self._resolver.txt(name, fresh=fresh)
        if isinstance(answer, CannotTell):
            return answer
        fault = records.key_fault(texts_of(answer), key.public_record)
        return f"the DKIM record ({name}, where {fault})" if fault else None


def _missing(domain: Domain, what: str) -> Reply:
    # RFC 3463 X.7.1 would blame the person; X.7.26 (RFC 7372) is for checks by a receiver. 5.7.0 is what is left.
    text = f"nothing can be sent as {domain.name} yet: missing or wrong in the DNS: {what}"
    return Reply(code=550, enhanced="5.7.0", text=text)
