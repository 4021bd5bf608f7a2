"""Where a report goes: to the sender of the message it is about, who may be somebody of ours.

A sender elsewhere gets it by the MX of its domain. A sender at a domain hosted here (who wrote by submission, say) gets
it where its alias leads: the MX hosts of that domain are we ourselves. So does the postmaster of this server. An SRS
address of ours stands for the sender it was made from: mail that we forwarded and that came round again must not take
its report in another circle.

An address of ours that no alias answers for is left as it is: where the domain's mail goes to other hosts, they know
it; where it comes to us, nobody can be told and the log says so.

Raises what the store raises.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from forwarder.mail.address import Path
from forwarder.mail.destination import Url, identity
from forwarder.mail.event import DeliveryKind
from forwarder.mail.rules import Expansion, Step, Target
from forwarder.mail.srs import Srs


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressee:
    """One destination of a report; ``domain_id`` and ``alias`` are those of a sender of ours."""

    recipient: Path
    destination: str
    domain: str
    kind: DeliveryKind = DeliveryKind.SMTP
    domain_id: int | None = None
    alias: str | None = None
    taken_on: bool = False  # an alias of another account has it: this one is for the log alone


class Addressees:
    """Finds whom to tell."""

    def __init__(
        self,
        *,
        srs: Srs,
        resolve: Callable[[Path, Path], Awaitable[Expansion]],
        clock: Callable[[], datetime],
    ) -> None:
        """``resolve``: where an address of ours leads, for the account of the second."""
        self._srs = srs
        self._resolve = resolve
        self._clock = clock

    async def of(self, reverse_path: Path, behalf: Path) -> tuple[Addressee, ...]:
        """At least one; the recipient is the same in all. ``behalf``: whose account is trusted with the report."""
        origin = self._srs.reverse(reverse_path, now=self._clock())
        sender = origin if isinstance(origin, Path) else reverse_path
        expansion = await self._resolve(sender, behalf)
        if expansion.targets:
            # Where ways of two accounts meet, each may spell the mailbox in its own way; it gets one copy.
            spelled = {identity(each.destination): each.destination for each in reversed(expansion.targets)}
            ends = (
                replace(each, destination=spelled[identity(each.destination)]) for each in expansion.targets
            )
            told = (_taken_on(sender, expansion.targets[0], step) for step in expansion.handed_on)
            return (*(_addressee(sender, target) for target in ends), *told)
        to = expansion.recipient  # the sender; or where the postmaster of this server leads
        return (Addressee(recipient=sender, destination=to.storage(), domain=to.domain),)


def _addressee(sender: Path, target: Target) -> Addressee:
    to = target.destination
    domain_id, alias = target.owner
    return Addressee(
        recipient=sender,
        destination=to.url if isinstance(to, Url) else to.storage(),
        domain=to.host if isinstance(to, Url) else to.domain,
        kind=DeliveryKind.WEBHOOK if isinstance(to, Url) else DeliveryKind.SMTP,
        domain_id=domain_id,
        alias=alias,
    )


def _taken_on(sender: Path, target: Target, step: Step) -> Addressee:
    domain_id, alias = replace(target, theirs=step.theirs).owner
    return Addressee(
        recipient=sender,
        destination=step.address.storage(),
        domain=step.address.domain,
        domain_id=domain_id,
        alias=alias,
        taken_on=True,
    )
