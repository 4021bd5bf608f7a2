"""One SMTP session to one MX host: send, quit; ``smtp_opening`` begins it.

Promises: what is sent is what was given, octet for octet, with dots doubled (RFC 5321 4.5.2) and nothing else
touched; the paths on the wire are those given, character for character. MAIL, every RCPT and DATA go out in one
write when the peer announces PIPELINING. Every wait has a deadline (``Timeouts``). Recipients are answered one by
one; content goes to those accepted. When the peer takes DATA although it took no recipient, it gets a lone dot
(RFC 2920 3.1); where it took one and not MAIL, it is left, or that recipient might get an empty message.

How it fails: ``SessionFault`` when the session is over, whoever ended it; its ``reply`` is the peer's (a 421, a
554 greeting) or stands for the failure (``mail.outcome.reply_for``), its ``unknown`` says that the content had gone
out whole and nobody said what became of it (RFC 1047: the next attempt may make a duplicate). A refusal of the
message or of a recipient is no fault: ``Answered`` holds it, and the session lives on. What the peer's
announcements rule out (SIZE, SMTPUTF8) is answered without asking, in the same form, marked ``local``.

MAIL that was refused decides for all recipients, whatever the peer says to the RCPTs and DATA pipelined behind it
(most say 503): a 421 to it is the session's, any other refusal the message's, also when the peer hangs up after it.

A 421 to one RCPT is that recipient's while the peer goes on answering (some servers mean only the mailbox by it, and
one busy mailbox must not hold up the rest); a 503 from then on means it again. When it hangs up, it is the session's.

Without 8BITMIME 8-bit content is sent as it is: converting would break every signature in it, and no server in use
strips the eighth bit. SMTPUTF8 is demanded of the peer only when an address or a header field holds non-ASCII text.

Precondition: content consists of lines that end in CRLF, without a bare CR or LF (``mail.content`` sees to that before
anything is stored); it is not scanned again here.

Limits: no BDAT, no AUTH. Why aiosmtplib is not used: see ``forwarder.net.smtp_wire``.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from forwarder.failpoint import reach
from forwarder.mail.content import ascii_head
from forwarder.mail.outcome import Fault, Stage, reply_for
from forwarder.mail.reply import Reply
from forwarder.mail.scan import stuffed
from forwarder.net.smtp_answers import (
    Answered,
    Features,
    SessionFault,
    among,
    fault_at,
    over,
    stage_of,
)
from forwarder.net.smtp_wire import PATIENCE, Wire, WireTrouble

BLOCK = 256 * 1024  # octets of content between two looks at the peer
FAREWELL = 2.0  # seconds we wait for the answer to QUIT

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_END = b".\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each step may take."""

    connect: timedelta = timedelta(seconds=30)
    greeting: timedelta = timedelta(seconds=300)
    command: timedelta = timedelta(seconds=300)  # each
    data: timedelta = timedelta(seconds=180)  # between two blocks of content; the answer to DATA
    dot: timedelta = timedelta(seconds=600)


class ClientSession:
    """One connection, used by one task at a time; made by ``smtp_opening.open_session``."""

    def __init__(self, wire: Wire, host: str, *, features: Features, tls: str, timeouts: Timeouts) -> None:
        self.host = host
        self.features = features
        self.tls = tls  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" in clear
        self.fell_back = False  # in clear, since TLS, which the host offers, failed
        self.sent = 0  # transactions so far
        self._wire = wire
        self._command = timeouts.command.total_seconds()
        self._data = timeouts.data.total_seconds()
        self._dot = timeouts.dot.total_seconds()
        self._dirty = False  # the peer holds the beginning of a transaction
        self._answers: Sequence[Reply] = ()  # to the RCPTs of the transaction under way, MAIL being accepted

    async def send(
        self,
        reverse_path: str,
        recipients: Sequence[str],
        content: bytes | Sequence[bytes],
        *,
        smtputf8: bool = False,
        body8bit: bool = False,
    ) -> Answered:
        """One message. Paths in wire form without angle brackets, "" for the null reverse-path.

        ``content`` may come in several buffers, each made of whole lines, sent one after the other as one content.
        ``SessionFault`` ends the session; ValueError for a path with control characters (a mistake of the caller).
        """
        parts = (content,) if isinstance(content, bytes) else tuple(content)
        size = sum(map(len, parts))
        paths = [_path(path) for path in (reverse_path, *recipients)]
        plain = [path.isascii() for path in paths]
        ascii_mail = plain[0] and not (smtputf8 and not ascii_head(parts))
        international = not (ascii_mail and all(plain))
        if international and not self.features.smtputf8:
            if not (ascii_mail and any(plain[1:])):
                return Answered(mail=reply_for(Fault.SMTPUTF8), local=True)
            return await self._send_to_some(reverse_path, recipients, plain[1:], parts, body8bit=body8bit)
        if self.features.size is not None and size > self.features.size:
            return Answered(mail=reply_for(Fault.TOO_BIG, f"{self.features.size} octets"), local=True)
        mail = b"MAIL FROM:<" + paths[0] + b">" + self._parameters(size, body8bit, international)
        commands = [mail, *(b"RCPT TO:<" + path + b">" for path in paths[1:])]
        self.sent += 1
        self._answers = ()
        try:
            if self.features.pipelining:
                return await self._pipelined(commands, parts)
            return await self._stepwise(commands, parts)
        except SessionFault as fault:
            fault.answers = tuple(self._answers)
            self.abort()
            raise
        except BaseException:
            self.abort()
            raise

    @property
    def usable(self) -> bool:
        """Open as far as we know, and silent: the peer has neither hung up nor said 421 meanwhile."""
        return self._wire.usable

    async def quit(self) -> None:
        """QUIT, wait for the answer, but not long, close; never raises."""
        try:
            if self._wire.usable:
                self._wire.write([b"QUIT\r\n"], expecting=1)
                await self._wire.read(1, FAREWELL)
        except WireTrouble:
            return  # we were leaving anyway
        finally:
            self.abort()

    def leave(self) -> None:
        """QUIT and close without waiting for the answer."""
        if self._wire.usable:
            self._wire.write([b"QUIT\r\n"], expecting=1)
        self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()

    # --- a transaction

    async def _send_to_some(
        self,
        reverse_path: str,
        recipients: Sequence[str],
        plain: Sequence[bool],
        parts: Sequence[bytes],
        *,
        body8bit: bool,
    ) -> Answered:
        """Only some need SMTPUTF8 (the alias that leads to them may have others): the rest get theirs."""
        some = [path for path, is_plain in zip(recipients, plain, strict=True) if is_plain]
        try:
            return (await self.send(reverse_path, some, parts, body8bit=body8bit)).among(plain)
        except SessionFault as fault:
            fault.answers = among(fault.answers, plain) if fault.answers else ()
            raise

    def _parameters(self, size: int, body8bit: bool, international: bool) -> bytes:
        parameters = b" SIZE=%d" % size if self.features.size_known else b""
        if body8bit and self.features.eightbitmime:
            parameters += b" BODY=8BITMIME"
        return parameters + b" SMTPUTF8" if international else parameters

    async def _pipelined(self, commands: Sequence[bytes], parts: Sequence[bytes]) -> Answered:
        reset = [b"RSET"] if self._dirty else []
        expecting = len(reset) + len(commands) + 1
        self._dirty = True
        self._wire.write([b"\r\n".join((*reset, *commands, b"DATA", b""))], expecting=expecting, data=True)
        try:
            replies = await self._wire.read(expecting, self._command)
        except WireTrouble as trouble:
            said = trouble.replies[len(reset) :]
            if said and not said[0].positive:
                # Refused, and hung up upon (RFC 7504 lets 521 do so): the refusal counts, not the loss.
                return await self._go_on(said[0], (), None, parts)
            self._answers = said[1 : len(commands)]
            raise over(stage_of(len(said), len(commands)), trouble) from trouble
        mail, *answers, data = replies[len(reset) :]
        return await self._go_on(mail, answers, data, parts)

    async def _stepwise(self, commands: Sequence[bytes], parts: Sequence[bytes]) -> Answered:
        if self._dirty:
            await self._ask(b"RSET", Stage.MAIL)
        self._dirty = True
        time = asyncio.get_running_loop().time
        end = time() + PATIENCE * self._command
        mail = await self._ask(commands[0], Stage.MAIL)
        answers: list[Reply] = []
        self._answers = answers
        data = None
        if mail.positive:
            for command in commands[1:]:
                answers.append(await self._ask(command, Stage.RCPT))
                if time() > end:
                    raise fault_at(Stage.RCPT, Fault.TIMEOUT, "the envelope takes too long")
        if any(answer.positive for answer in answers):
            data = await self._ask(b"DATA", Stage.DATA)
        return await self._go_on(mail, answers, data, parts)

    async def _go_on(
        self, mail: Reply, answers: Sequence[Reply], data: Reply | None, parts: Sequence[bytes]
    ) -> Answered:
        """From the answers to the envelope; ``data`` is None where DATA was not said."""
        if mail.code == 421:
            raise SessionFault(Stage.MAIL, mail)
        wanted = mail.positive and any(answer.positive for answer in answers)
        if data is not None and data.code == 354 and not wanted:
            if any(answer.positive for answer in answers):  # without MAIL; a dot would be mail to them
                self.abort()
            else:
                await self._end_of_nothing()
        if not mail.positive:
            self._dirty = False
            return Answered(mail=mail)
        self._answers = answers
        if data is not None and data.code == 421:
            raise SessionFault(Stage.DATA, data)
        if not wanted and data is None and answers[-1].code == 421:
            raise SessionFault(Stage.RCPT, answers[-1])  # not known whether it hangs up: most do
        if not wanted:
            return Answered(mail=mail, recipients=tuple(answers))
        assert data is not None
        if data.code != 354:
            if not (data.temporary or data.permanent):
                raise fault_at(Stage.DATA, Fault.PROTOCOL, f"DATA was answered {data.code}")
            return Answered(mail=mail, recipients=tuple(answers), data=data)
        reach("deliver.before-content")
        final = await self._content(parts)
        if final.code == 421:
            raise SessionFault(Stage.DOT, final)
        self._dirty = False
        return Answered(mail=mail, recipients=tuple(answers), final=final)

    async def _end_of_nothing(self) -> None:
        """The lone dot. Whoever hangs up upon it has answered all the same, and nothing of the message was sent."""
        self._wire.write([_END], expecting=0)
        try:
            await self._wire.read(1, self._dot)
        except WireTrouble:
            self.abort()

    async def _content(self, parts: Sequence[bytes]) -> Reply:
        early = None if self._wire.calm else await self._early_answer()
        if early is not None:
            return early
        end = _END if parts[-1].endswith(b"\r\n") else b"\r\n" + _END
        if sum(map(len, parts)) > BLOCK:
            for block in (block for part in parts for block in _stuffed_blocks(part)):
                self._wire.write([block], expecting=0)  # the 354 made the answer due
                early = await self._early_answer()
                if early is not None:
                    return early
            self._wire.write([end], expecting=0)
        else:
            self._wire.write([*map(stuffed, parts), end], expecting=0)
        reach("deliver.before-dot-reply")
        final = await reply_at(self._wire, Stage.DOT, self._dot)
        if not (final.positive or final.temporary or final.permanent):
            raise over(Stage.DOT, WireTrouble(Fault.PROTOCOL, f"the dot was answered {final.code}"))
        return final

    async def _early_answer(self) -> Reply | None:
        """A refusal said in the middle of the content; the rest of it is not sent, so the session ends."""
        try:
            await self._wire.drain(self._data)
        except WireTrouble as trouble:
            raise over(Stage.DATA, trouble) from trouble
        if not self._wire.answered:
            return None
        reply = await reply_at(self._wire, Stage.DATA, self._data)
        if not (reply.temporary or reply.permanent):
            raise fault_at(Stage.DATA, Fault.PROTOCOL, "the content was answered before its end")
        self.abort()
        return reply

    # --- one step

    async def _ask(self, command: bytes, stage: Stage) -> Reply:
        self._wire.write([command + b"\r\n"], expecting=1, data=stage is Stage.DATA)
        return await reply_at(self._wire, stage, self._data if stage is Stage.DATA else self._command)


async def reply_at(wire: Wire, stage: Stage, timeout: float) -> Reply:
    """The next reply; ``SessionFault`` where none comes within so many seconds."""
    try:
        return (await wire.read(1, timeout))[0]
    except WireTrouble as trouble:
        raise over(stage, trouble) from trouble


def _path(path: str) -> bytes:
    if not (path.isascii() and path.isprintable()) and _CONTROL.search(path):
        raise ValueError("a path holds a control character")
    return path.encode()


def _stuffed_blocks(part: bytes) -> Iterator[bytes | memoryview]:
    """Whole lines with their dots doubled, a block at a time: a copy of all would lie there for each session."""
    view = memoryview(part)
    start = 0
    while start < len(part):
        end = len(part)
        if end - start > BLOCK:
            end = part.rfind(b"\n", start, start + BLOCK) + 1 or part.find(b"\n", start) + 1 or end
        yield stuffed(view[start:end])
        start = end
