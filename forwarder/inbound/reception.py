"""Between the dialogue and those who decide: what the one asks and the other answers."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forwarder.config import MxSection, SubmissionSection
from forwarder.inbound.data import Memory
from forwarder.inbound.limits import Doorkeeper
from forwarder.inbound.sasl import Ask
from forwarder.inbound.session import Session, Transaction
from forwarder.mail import reply as replies
from forwarder.mail.address import Path
from forwarder.mail.envelope import MailCommand
from forwarder.mail.reply import Reply
from forwarder.net.tls import ServerTls
from forwarder.store.telling import Telling
from forwarder.tally import CONNECTIONS, RECEIVED, REPLIES, Count, Tally

COMMAND_LIMIT = 2048  # octets with CRLF; RFC 5321 4.5.3.1.4 says 512 and extensions add to it
AUTH_LIMIT = 12288  # RFC 4954 4

HANDSHAKE_SECONDS = 30.0  # for TLS, whether it begins by STARTTLS or with the first byte
# For our last reply to be read. A close with unread bytes becomes a reset, which may take it along; one of TLS waits
# for that of the peer, and reads what comes instead: half a minute of it, if asyncio has its way.
LINGER_SECONDS = 2.0


class Reception(Protocol):
    """Who decides; one for all sessions of a service. May raise what the store raises: the dialogue says 451."""

    takes_log_ins: bool  # AUTH belongs to this service, and with it AUTH= of MAIL (RFC 4954 5)

    def extensions(self, session: Session) -> Sequence[str]:
        """What EHLO announces beyond what every dialogue can."""
        ...

    async def welcome(self, session: Session) -> Reply | None:
        """Before the greeting: a reply to close with, or None."""
        ...

    async def log_in(self, session: Session, arguments: bytes, ask: Ask) -> Reply:
        """AUTH, in its place."""
        ...

    async def sender(self, session: Session, command: MailCommand) -> Reply:
        """MAIL, well formed and in its place; a positive reply opens the transaction."""
        ...

    async def recipient(self, session: Session, transaction: Transaction, path: Path) -> Reply:
        """RCPT; a positive reply means that the recipient was added to the transaction."""
        ...

    def refused(self, session: Session, transaction: Transaction, content: bytes, reply: Reply) -> None:
        """The dialogue itself refused a message for its form.

        ``content`` is how it begins, empty where it was too big to keep.
        """
        ...

    async def message(self, session: Session, transaction: Transaction, content: bytes) -> Reply:
        """The content, its line ends all CRLF; a positive reply means that it is on disk."""
        ...

    async def close(self) -> None:
        """No session is left: finish what was written behind the replies."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Desk:
    """What all sessions of one service share."""

    name: str
    hostname: str
    bounds: MxSection | SubmissionSection
    normalize: bool  # bare CR and LF become CRLF; otherwise the message is refused
    reception: Reception
    doorkeeper: Doorkeeper
    tls: ServerTls | None
    loop: asyncio.AbstractEventLoop
    memory: Memory
    line_limit: int  # octets of a line: COMMAND_LIMIT, or AUTH_LIMIT where clients log in
    tally: Tally
    stopping: bool = False
    greeting: Reply = field(init=False)
    command_seconds: float = field(init=False)
    connections: Mapping[str, Count] = field(init=False)
    answers: Mapping[bytes, Mapping[int, Count]] = field(init=False)  # by the verb, and the first digit
    received: Count = field(init=False)
    telling: Telling = field(default_factory=Telling, init=False)  # of trouble of the store
    _hellos: dict[tuple[str, ...], Reply] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.greeting = replies.greeting(self.hostname)
        self.command_seconds = self.bounds.command_timeout.total_seconds()
        self.connections = self.tally.counts(CONNECTIONS, self.name)
        self.answers = {
            verb.encode(): {
                int(of[0]): count for of, count in self.tally.counts(REPLIES, self.name, verb).items()
            }
            for verb in dict(REPLIES.labels)["command"]
        }
        self.received = self.tally.count(RECEIVED, self.name)

    def hello(self, session: Session) -> Reply:
        """What EHLO is answered; made once for each set of extensions."""
        offered = ["8BITMIME", "SMTPUTF8", "PIPELINING", "ENHANCEDSTATUSCODES"]
        if self.tls is not None and not session.tls:
            offered.append("STARTTLS")
        extensions = (f"SIZE {self.bounds.size_limit}", *offered, *self.reception.extensions(session))
        known = self._hellos.get(extensions)
        if known is None:
            known = self._hellos[extensions] = replies.hello(self.hostname, extensions)
        return known
