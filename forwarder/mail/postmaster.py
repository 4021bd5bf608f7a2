"""The postmaster of this server itself (RFC 5321 4.5.1), an address of no hosted domain.

``is_at`` knows it, with our host name or without a domain; it leads where the configuration says, for mail from outside
as for mail of our own. ``rules`` answer for it as those of a hosted domain do, so that an alias which leads there is
followed like any other (``mail.rules``). They are of no account and in no store: what begins with the postmaster begins
with ``leads_to``.
"""

from __future__ import annotations

from dataclasses import dataclass

from forwarder.mail.address import Path, parse_address
from forwarder.mail.aliases import Alias, RuleSet
from forwarder.mail.destination import Mailbox
from forwarder.mail.pattern import AliasKind

_LOCAL = "postmaster"


@dataclass(frozen=True, slots=True)
class Postmaster:
    """Who answers for this server."""

    hostname: str
    leads_to: Path
    rules: RuleSet

    @classmethod
    def of(cls, hostname: str, address: str) -> Postmaster | None:
        """As the configuration names him; None: it names nobody."""
        if not address:
            return None
        leads_to = parse_address(address)
        box = Mailbox(template=leads_to.wire(), path=leads_to)
        alias = Alias(id=0, pattern=_LOCAL, kind=AliasKind.EXACT, destinations=(box,))
        return cls(hostname, leads_to, RuleSet(hostname, 0, 0, [alias], is_active=True))

    def is_at(self, path: Path) -> bool:
        """Whether mail to this address is his."""
        return path.domain in ("", self.hostname) and path.key == _LOCAL
