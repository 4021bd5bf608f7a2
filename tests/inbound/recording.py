"""A reception that accepts everything and remembers it, to look at the dialogue alone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from forwarder.clock import utc_now
from forwarder.config import Settings
from forwarder.inbound.reception import COMMAND_LIMIT
from forwarder.inbound.rooms import InboundRooms
from forwarder.inbound.sasl import Ask
from forwarder.inbound.server import Server
from forwarder.inbound.session import Recipient, Session, Transaction
from forwarder.mail import address, reply
from forwarder.mail.envelope import MailCommand
from forwarder.mail.reply import Reply
from forwarder.net.tls import ServerTls
from forwarder.tally import Tally

MESSAGE = b"From: a@sender.test\r\nSubject: hello\r\n\r\nbody\r\n"


class Recording:
    """What the dialogue handed over; ``before_answer`` is awaited while a message is being stored."""

    takes_log_ins = False

    def __init__(self) -> None:
        self.messages: list[tuple[str, tuple[str, ...], bytes]] = []
        self.sessions: list[Session] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        self.in_message = asyncio.Event()
        self.refusals: list[tuple[bytes, int]] = []

    def extensions(self, session: Session) -> Sequence[str]:
        return ()

    async def welcome(self, session: Session) -> Reply | None:
        self.sessions.append(session)
        return None

    async def log_in(self, session: Session, arguments: bytes, ask: Ask) -> Reply:
        return reply.AUTH_NOT_HERE

    async def sender(self, session: Session, command: MailCommand) -> Reply:
        if command.path.local == "explode":
            raise RuntimeError("password=hunter2 host=db.internal")
        return reply.SENDER_OK

    async def recipient(self, session: Session, transaction: Transaction, path: address.Path) -> Reply:
        if path.local.startswith("unknown"):
            return reply.NO_SUCH_USER
        transaction.recipients.append(Recipient(path=path, ways=(None,), elsewhere=path))
        return reply.RECIPIENT_OK

    async def message(self, session: Session, transaction: Transaction, content: bytes) -> Reply:
        self.in_message.set()
        if self.before_answer is not None:
            await self.before_answer()
        recipients = tuple(recipient.path.wire() for recipient in transaction.recipients)
        self.messages.append((transaction.reverse_path.wire(), recipients, content))
        return reply.queued_as("0" * 32)

    def refused(self, session: Session, transaction: Transaction, content: bytes, reply: Reply) -> None:
        self.refusals.append((content, reply.code))

    async def close(self) -> None:
        return None


class Listening:
    """A server on a free port of the loopback, with what it recorded."""

    def __init__(self, server: Server, reception: Recording) -> None:
        self.server = server
        self.reception = reception

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    @property
    def messages(self) -> list[tuple[str, tuple[str, ...], bytes]]:
        return self.reception.messages


async def listen(
    data_dir: Path, *, tls: ServerTls | None = None, normalize: bool = False, **mx: Any
) -> Listening:
    """The dialogue as the MX would serve it, with these settings."""
    defaults = {"listen": ["127.0.0.1:0"], "connections_per_client": 0, "connections_per_minute": 0}
    settings = Settings.model_validate(
        {"hostname": "mx.test", "data_dir": str(data_dir), "mx": defaults | mx}
    )
    reception = Recording()
    nothing: Any = None
    rooms = InboundRooms(
        settings=settings,
        database=nothing,
        directory=nothing,
        queue=nothing,
        journal=nothing,
        ids=nothing,
        srs=nothing,
        intake=nothing,
        trace_secrets=(),
        tls=tls,
        screening=nothing,
        resolver=nothing,
        clock=utc_now,
        region=0,
        regions=1,
        tally=Tally(),
    )
    server = Server(
        name="mx",
        clients="mx",
        listen=settings.mx.listen,
        bounds=settings.mx,
        rooms=rooms,
        reception=reception,
        normalize=normalize,
        line_limit=COMMAND_LIMIT,
    )
    await server.start()
    return Listening(server, reception)


async def stop(listening: Listening) -> None:
    await listening.server.drain(timedelta(seconds=5))
