"""One SMTP session: commands in, replies out, the same for the MX and for submission.

``Dialogue`` replaces aiosmtpd's command loop (it takes bare LF, counts nothing, and answers an exception with 500 and
its text), its reading of DATA a line at a time, its address parser and its log-in. What it decides itself is syntax,
order, time and number; who may send what to whom is decided by a ``Reception``, to which it hands parsed commands
and whole messages.

Promises: any bytes end in replies or a close, never in a traceback to the peer; an exception is 451 4.3.0 and its
text goes to the log only; every close of ours is announced, by a 421 or by the reply that was asked for.

Limits: a line has at most ``desk.line_limit`` octets, and a command other than AUTH ``COMMAND_LIMIT``; a longer line is
thrown away as it comes. Both are answered 500. Of commands that came together ``TURN`` are carried out, and then all
others of this process have their turn: else whoever sends recipients by the thousand keeps them from being served, and
the process from saying that it lives.
"""
# ruff: noqa: N802 - the verbs carry aiosmtpd's names

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from forwarder.inbound.connection import Connection, described_tls
from forwarder.inbound.data import SLICE, Excess, Share, normalized, read_content, smuggles, unstuffed
from forwarder.inbound.inlet import Expired, Gone, Stopped, TooLong
from forwarder.inbound.reception import AUTH_LIMIT, COMMAND_LIMIT, HANDSHAKE_SECONDS, LINGER_SECONDS
from forwarder.inbound.session import Transaction
from forwarder.mail import reply as replies
from forwarder.mail.content import has_bare_newline, head_too_large, line_too_long, mbox_line_as_field
from forwarder.mail.envelope import RequestError, parse_mail_args, parse_rcpt_args
from forwarder.mail.reply import Reply
from forwarder.store.trouble import StoreFull, StoreUnavailable

TURN = 10  # commands; more than come together with most messages
MOST_WAYS = 5000  # deliveries that one transaction may make, give or take the last recipient's; then 452
BEGINNING = 64 * 1024  # octets of a refused message that are looked at for the log: all of it may be one head
MEMORY_FULL = replies.STORAGE_FULL.saying("too much mail at once, try again later")  # RFC 5321 4.2.2: 452

log = structlog.get_logger(__name__)
_HTTP = frozenset(
    {b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"PATCH", b"PRI"}
)
_JUNK = frozenset({b"NOOP", b"RSET", b"VRFY", b"EXPN", b"HELP", b"EHLO", b"HELO", b"STARTTLS", b"ETRN"})


class Dialogue(Connection):
    """The commands of one session."""

    async def _converse(self) -> None:
        desk, inlet = self._desk, self._inlet
        refusal = await desk.reception.welcome(self.state)
        self._say(refusal or desk.greeting)
        self._closing = refusal is not None
        await self._flush()
        turn = TURN
        while not self._closing:
            self._counts = None
            try:
                line = await inlet.line(desk.line_limit, desk.command_seconds)
            except TooLong:
                answer: Reply | None = replies.COMMAND_TOO_LONG
            else:
                answer = await self._obey(line)
            if answer is not None:
                answer = self._weighed(answer)
                if self._counts is not None:
                    self._counts[answer.code // 100].add()
                self._say(answer)
            if self.state.farewell is not None and not self._closing:
                self._say(self.state.farewell)
                self._closing = True
            turn -= 1
            if self._closing or not inlet.has_line():
                await self._flush()
                turn = TURN
            elif not turn:  # the replies too: more commands may come meanwhile, and on and on
                await self._flush()
                await asyncio.sleep(0)
                if self.transport is None:  # nobody hears what the rest of them is answered
                    raise Gone
                turn = TURN

    async def _obey(self, line: bytes) -> Reply | None:
        """Carry out one command; None where it wrote its replies itself."""
        if not line.endswith(b"\r\n"):
            return self._unknown(line, replies.BAD_LINE_END)
        verb, _, arguments = line[:-2].partition(b" ")
        verb = verb.upper()
        method = _VERBS.get(verb)
        if method is None:
            return self._unknown(line, replies.UNKNOWN_COMMAND)
        if len(line) > COMMAND_LIMIT and verb != b"AUTH":
            return replies.COMMAND_TOO_LONG
        if verb in _JUNK:
            self.state.junk += 1
        self._counts = self._desk.answers.get(verb)
        try:
            return await method(self, arguments.strip(b" \t"))
        except RequestError as refused:
            return refused.reply
        except (Gone, Expired, Stopped, ConnectionError):
            raise
        except StoreUnavailable as trouble:
            if news := self._desk.telling.news(trouble):
                log.warning("a command met trouble of the store", service=self._desk.name, **news)
            return replies.STORAGE_FULL if isinstance(trouble, StoreFull) else replies.TROUBLE
        except Exception:
            log.exception("a command failed", service=self._desk.name, verb=verb.decode())
            return replies.TROUBLE

    def _unknown(self, line: bytes, otherwise: Reply) -> Reply:
        """What is said to a line that is no command of SMTP."""
        verb = line.rstrip(b"\r\n").partition(b" ")[0].upper()
        if verb in _HTTP or line.startswith(b"\x16\x03"):  # a browser, or TLS where it does not begin
            self._closing = True
            return replies.WRONG_PROTOCOL
        return otherwise

    def _weighed(self, answer: Reply) -> Reply:
        """The answer, unless it is one refusal or one empty command too many."""
        session, bounds = self.state, self._desk.bounds
        if answer.permanent:
            session.errors += 1
        if answer.code == 521 or (answer.code == 421 and not answer.enhanced.startswith("4.2.")):
            self._closing = True
        elif bounds.errors and session.errors >= bounds.errors:
            self._closing = True
            return replies.TOO_MANY_ERRORS
        elif bounds.junk_commands and session.junk >= bounds.junk_commands:
            self._closing = True
            return replies.TOO_MANY_COMMANDS
        return answer

    # The verbs; each takes what follows it.

    async def smtp_HELO(self, arguments: bytes) -> Reply:
        if not arguments:
            return replies.HELO_NEEDS_NAME
        self._greeted(arguments, extended=False)
        return replies.hello(self.hostname)

    async def smtp_EHLO(self, arguments: bytes) -> Reply:
        if not arguments:
            return replies.HELO_NEEDS_NAME
        self._greeted(arguments, extended=True)
        return self._desk.hello(self.state)

    async def smtp_MAIL(self, arguments: bytes) -> Reply:
        session, desk = self.state, self._desk
        if not session.helo:
            return replies.HELLO_FIRST
        if session.transaction is not None:
            return replies.MAIL_TWICE
        # Offered to all, used by who is logged in: others are to hear that they are not, not that AUTH= is unknown.
        command = parse_mail_args(
            arguments, size_limit=desk.bounds.size_limit, auth_offered=desk.reception.takes_log_ins
        )
        answer = await desk.reception.sender(session, command)
        if answer.positive:
            session.transaction = Transaction(reverse_path=command.path, smtputf8=command.smtputf8)
        return answer

    async def smtp_RCPT(self, arguments: bytes) -> Reply:
        session, desk = self.state, self._desk
        transaction = session.transaction
        if transaction is None:
            return replies.MAIL_FIRST if session.helo else replies.HELLO_FIRST
        if len(transaction.recipients) >= desk.bounds.recipients or transaction.ways >= MOST_WAYS:
            # RFC 5321 4.5.3.1.10: 452, and what was accepted stays accepted
            return replies.TOO_MANY_RECIPIENTS
        path = parse_rcpt_args(arguments, smtputf8=transaction.smtputf8)
        return await desk.reception.recipient(session, transaction, path)

    async def smtp_DATA(self, arguments: bytes) -> Reply:
        session, desk = self.state, self._desk
        transaction = session.transaction
        if transaction is None:
            return replies.MAIL_FIRST if session.helo else replies.HELLO_FIRST
        if arguments:
            return replies.BAD_ARGUMENTS
        if not transaction.recipients:
            return replies.NO_VALID_RECIPIENTS
        self._say(replies.START_INPUT)
        await self._flush()
        share = Share(desk.memory)
        try:
            return await self._receive(transaction, share)
        finally:
            share.release()
            session.transaction = None

    async def _receive(self, transaction: Transaction, share: Share) -> Reply:
        session, desk = self.state, self._desk
        limit = desk.bounds.size_limit
        raw = await read_content(
            self._inlet,
            limit=limit + limit // 3 + 1,  # room for the dots that stuffing added
            share=share,
            block_timeout=desk.bounds.data_timeout.total_seconds(),
            min_rate=desk.bounds.min_rate,
        )
        content = await self._checked(raw)
        if isinstance(content, Reply):
            beginning = b"" if isinstance(raw, Excess) else raw[:BEGINNING]
            desk.reception.refused(session, transaction, beginning, content)
            return content
        # Handed over and not kept: this frame waits until the message is stored, and a large one should not lie
        # in memory twice all the while.
        handed, octets = [content], len(content)
        del raw, content
        answer = await desk.reception.message(session, transaction, handed.pop())
        if answer.positive:  # as Postfix counts: whoever delivers mail may be mistaken now and then
            session.junk = session.errors = 0
            desk.received.add(octets)
        return answer

    async def _checked(self, raw: bytes | Excess) -> bytes | Reply:
        """The content as the sender meant it, or why it is refused whoever sent it."""
        bounds = self._desk.bounds
        if isinstance(raw, Excess):
            return replies.MESSAGE_TOO_BIG if raw is Excess.SIZE else MEMORY_FULL
        if has_bare_newline(raw):
            if not self._desk.normalize:
                return replies.SMUGGLING if smuggles(raw) else replies.BARE_NEWLINE
            content = normalized(raw) if len(raw) <= SLICE else await asyncio.to_thread(normalized, raw)
        else:
            content = unstuffed(raw)
        content = mbox_line_as_field(content)
        if len(content) > bounds.size_limit:  # RFC 1870 5 counts a line end as two octets
            return replies.MESSAGE_TOO_BIG
        if head_too_large(content):
            return replies.BAD_CONTENT.saying("the headers of the message are too large")
        if line_too_long(content, bounds.line_limit):
            return replies.LINE_TOO_LONG.saying(
                f"a line of the message is longer than {bounds.line_limit} octets"
            )
        return content

    async def smtp_RSET(self, arguments: bytes) -> Reply:
        if arguments:  # what is answered 501 has done nothing
            return replies.BAD_ARGUMENTS
        self.state.transaction = None
        return replies.OK

    async def smtp_NOOP(self, arguments: bytes) -> Reply:
        return replies.OK

    async def smtp_QUIT(self, arguments: bytes) -> Reply:
        if arguments:
            return replies.BAD_ARGUMENTS
        self._closing = True
        return replies.BYE

    async def smtp_VRFY(self, arguments: bytes) -> Reply:
        return replies.CANNOT_VERIFY if arguments else replies.BAD_ARGUMENTS

    async def smtp_HELP(self, arguments: bytes) -> Reply:
        return replies.HELP

    async def not_implemented(self, arguments: bytes) -> Reply:
        return replies.NOT_IMPLEMENTED

    async def smtp_AUTH(self, arguments: bytes) -> Reply:
        if not self.state.helo:
            return replies.HELLO_FIRST
        if self.state.transaction is not None:
            return replies.BAD_SEQUENCE  # RFC 4954 4
        return await self._desk.reception.log_in(self.state, arguments, self._ask)

    async def smtp_STARTTLS(self, arguments: bytes) -> Reply | None:
        desk, session = self._desk, self.state
        if arguments:
            return replies.BAD_ARGUMENTS
        if session.tls:
            return replies.TLS_ALREADY
        if desk.tls is None:
            return replies.NOT_IMPLEMENTED
        if desk.stopping:  # the line was here before: a handshake now would only hold up the end
            raise Stopped
        self._say(replies.START_TLS)
        self._write_out()
        # What came in the clear after STARTTLS may be somebody else's (CVE-2011-0411): gone before TLS begins.
        self._inlet.discard()
        await self._secure()
        session.forget()
        return None

    async def _secure(self) -> None:
        """The TLS handshake; Gone when it fails."""
        desk, transport = self._desk, self.transport
        assert desk.tls is not None
        if transport is None:
            raise Gone
        self._in_handshake = True
        try:
            secured = await desk.loop.start_tls(
                transport,
                self,
                desk.tls.context(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=LINGER_SECONDS,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError among them
            client = self.state.client
            log.info("a TLS handshake failed", service=desk.name, client=client, reason=type(error).__name__)
            self.abort()
            raise Gone from error
        finally:
            self._in_handshake = False
        if secured is None:
            raise Gone
        self.transport = secured
        self._inlet.attach(secured)
        self.state.tls = described_tls(secured)

    async def _ask(self, challenge: str) -> bytes | None:
        """One step of AUTH: 334, and the line that comes back without its CRLF; None when it is no line of AUTH."""
        self._out.append(b"334 " + challenge.encode("ascii") + b"\r\n")
        await self._flush()
        try:
            line = await self._inlet.line(AUTH_LIMIT, self._desk.command_seconds)
        except TooLong:
            return None
        return line[:-2] if line.endswith(b"\r\n") else None

    def _greeted(self, name: bytes, *, extended: bool) -> None:
        session = self.state
        session.transaction = None
        session.extended = extended
        session.helo = name.decode("utf-8", "backslashreplace")


_VERBS: dict[bytes, Callable[[Dialogue, bytes], Awaitable[Reply | None]]] = {
    b"HELO": Dialogue.smtp_HELO,
    b"EHLO": Dialogue.smtp_EHLO,
    b"MAIL": Dialogue.smtp_MAIL,
    b"RCPT": Dialogue.smtp_RCPT,
    b"DATA": Dialogue.smtp_DATA,
    b"RSET": Dialogue.smtp_RSET,
    b"NOOP": Dialogue.smtp_NOOP,
    b"QUIT": Dialogue.smtp_QUIT,
    b"VRFY": Dialogue.smtp_VRFY,
    b"EXPN": Dialogue.not_implemented,
    b"HELP": Dialogue.smtp_HELP,
    b"BDAT": Dialogue.not_implemented,
    b"ETRN": Dialogue.not_implemented,
    b"TURN": Dialogue.not_implemented,
    b"AUTH": Dialogue.smtp_AUTH,
    b"STARTTLS": Dialogue.smtp_STARTTLS,
}
