"""Where a recipient leads, for the MX and for submission.

``Directory.resolve`` asks the cache, which costs nothing; a refusal, and only a refusal, is decided anew with rule sets
whose version was compared with the store: an alias made a moment ago by another process is never called unknown.

Addresses of this host itself come first: an SRS address leads back to the sender it was made from, the postmaster
where the configuration says. Both are then resolved as if the mail had been for them.

Raises what the store raises: that is no answer about the recipient, and the dialogue says 451.
"""

from dataclasses import dataclass
from functools import partial

from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.session import Recipient
from forwarder.mail import reply as replies
from forwarder.mail.address import Path
from forwarder.mail.postmaster import Postmaster
from forwarder.mail.reply import Reply
from forwarder.mail.rules import Step, Target, Theirs, Trouble, refusal
from forwarder.mail.srs import SrsFault
from forwarder.store import credentials
from forwarder.store.credentials import Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A recipient that is not taken; the domain and alias are those of the log that says so, if there is one."""

    reply: Reply
    domain_id: int | None = None
    alias: str | None = None
    account_id: int | None = None  # whose domain it is


class Resolution:
    """Finds the way of each recipient."""

    def __init__(self, rooms: InboundRooms) -> None:
        self._database = rooms.database
        self._directory = rooms.directory
        self._srs = rooms.srs
        self._clock = rooms.clock
        self._postmaster = Postmaster.of(rooms.settings.hostname, rooms.settings.postmaster)

    async def find(self, path: Path, *, sender: Login | None = None) -> Recipient | Refused:
        """The recipient with its ways. ``sender``: who logged in, and may send to domains that are not hosted here."""
        elsewhere = self._of_this_host(path)
        if isinstance(elsewhere, Reply):
            return Refused(reply=elsewhere)
        if elsewhere is None and sender is None:
            expansion = await self._directory.resolve(path)
        else:
            account_id = sender.domain.account_id if sender is not None else None
            expansion = await self._directory.resolve_ours(elsewhere or path, account_id=account_id)
        trouble = expansion.trouble
        told = (*expansion.dead_ends, *expansion.handed_on) if trouble is None else ()
        if sender is not None and sender.domain.account_id != expansion.account_id:
            told = (*told, _of_sender(sender, path))
        if trouble is None:
            return Recipient(
                path=path,
                ways=expansion.targets,
                account_id=expansion.account_id,
                told=told,
            )
        if trouble is Trouble.NOT_HOSTED and (sender is not None or elsewhere is not None):
            return Recipient(path=path, ways=(None,), elsewhere=elsewhere or path)
        reply = refusal(trouble)
        if reply is not None:
            return Refused(
                reply=reply,
                domain_id=expansion.domain_id,
                alias=expansion.alias,
                account_id=expansion.account_id,
            )
        assert expansion.domain_id is not None
        swallowed = Target(
            destination=path, alias=expansion.alias or "", domain_id=expansion.domain_id, domain=path.domain
        )
        return Recipient(path=path, ways=(swallowed,), discarded=True, told=told)

    async def sender_of_ours(self, path: Path) -> Recipient | None:
        """The address of a credential that no alias answers for: reports about what it sent come back to it.

        There is nowhere to forward them to; the log of the delivery they are about is told, and the domain's log says
        that the report was discarded.
        """
        find = partial(credentials.for_login, username=path.key, domain_name=path.domain)
        login = await self._database.read(find)
        if login is None:
            return None
        way = Target(
            destination=path, alias=login.credential.username, domain_id=login.domain.id, domain=path.domain
        )
        return Recipient(path=path, ways=(way,), discarded=True, reports_only=True)

    def _of_this_host(self, path: Path) -> Path | Reply | None:
        """Where an address of this host itself leads; None when it is not one."""
        if path.domain == self._srs.domain:
            sender = self._srs.reverse(path, now=self._clock())
            if isinstance(sender, Path):
                return sender
            if sender is not SrsFault.NOT_SRS:
                return replies.BAD_RETURN_ADDRESS
        if self._postmaster is not None and self._postmaster.is_at(path):
            return self._postmaster.leads_to
        return None if path.domain else replies.NO_SUCH_USER


def _of_sender(sender: Login, path: Path) -> Step:
    """For the log of who sends to a domain of another account, where the rest is told."""
    credential = Theirs(
        alias=sender.credential.username, domain_id=sender.domain.id, account_id=sender.domain.account_id
    )
    return Step(address=path, theirs=credential)
