"""One SMTP session to one MX host."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from forwarder.mail.outcome import Scope
from forwarder.mail.reply import Reply
from forwarder.net.tls import TlsMode


class Phase(StrEnum):
    """How far a session had come."""

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "hello"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    DOT = "dot"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each phase may take."""

    connect: timedelta = timedelta(seconds=30)
    greeting: timedelta = timedelta(seconds=60)
    command: timedelta = timedelta(seconds=60)
    data: timedelta = timedelta(seconds=180)  # between two blocks of content
    dot: timedelta = timedelta(seconds=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the peer announced."""

    esmtp: bool = False
    pipelining: bool = False
    starttls: bool = False
    eightbitmime: bool = False
    smtputf8: bool = False
    size: int | None = None  # None: not announced or no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What was answered to one message; ``final`` is set when the content was sent and judged."""

    mail: Reply
    recipients: tuple[Reply, ...] = ()  # in the order asked; empty when MAIL was refused
    data: Reply | None = None  # only when DATA was refused
    final: Reply | None = None
    local: bool = False  # ``mail`` is our own word: the peer announced that it cannot take this message

    def judge(self, index: int) -> tuple[Scope, Reply]:
        """The reply that decides the fate of one recipient, and what it condemns if it is not a success."""
        raise RuntimeError("being written")


class SessionFault(Exception):
    """The session is over; ``reply`` is the peer's (421, 554 greeting, …) or, when ``local``, our wording."""

    def __init__(self, phase: Phase, reply: Reply, *, local: bool = True, unknown: bool = False) -> None:
        super().__init__(f"{phase}: {reply.code} {reply.enhanced} {reply.text}")
        self.phase = phase
        self.reply = reply
        self.scope = Scope.SITE
        self.local = local
        self.unknown = unknown  # the content went out whole and nobody said what became of it


@dataclass(slots=True)
class Session:
    """One connection; not for use by two tasks at once."""

    host: str
    address: str
    port: int
    features: Features = field(default_factory=Features)
    tls: str = ""  # "TLSv1.3 TLS_AES_256_GCM_SHA384", "" in clear
    sent: int = 0  # messages

    @classmethod
    async def connect(
        cls,
        host: str,
        address: str,
        port: int,
        *,
        hello: str,
        tls: TlsMode = TlsMode.OPPORTUNISTIC,
        timeouts: Timeouts = Timeouts(),
        local_address: str = "",
    ) -> "Session":
        """Dial, read the greeting, EHLO, STARTTLS; raises ``SessionFault``."""
        raise RuntimeError("being written")

    async def send(
        self,
        reverse_path: str,
        recipients: Sequence[str],
        content: bytes,
        *,
        smtputf8: bool = False,
        body8bit: bool = False,
    ) -> Transaction:
        """One message; paths in wire form without angle brackets, "" for the null reverse-path."""
        raise RuntimeError("being written")

    async def quit(self) -> None:
        """QUIT, wait briefly, close; never raises."""
        raise RuntimeError("being written")
