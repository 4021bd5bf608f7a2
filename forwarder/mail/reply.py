"""Replies: every one we give, named, and the reading of what peers say.

What it does: ``Reply`` is a code, an enhanced code (RFC 3463) and a text; ``wire()`` is its bytes, made once. The
constants below are the replies the two dialogues give; ``parse_reply`` reads a peer's.

What it promises: a reply on the wire is ASCII, without control characters, in lines of at most 512 octets
(RFC 5321 4.5.3.1.5); a peer's reply is bounded to 1 KiB of printable text whatever came. Our own trouble is always
4xx and says nothing about what broke.

How it fails: ``parse_reply`` never raises; what cannot be understood becomes a temporary reply that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from forwarder.mail.words import printable

MAX_TEXT = 1024  # characters kept of a peer's text
_LINE_TEXT = 480  # of ours on one line: 512 less code, enhanced code and CRLF
_PEER_LINE = re.compile(rb"([2-5][0-9][0-9])(?:[ -]|$)")
_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?: |$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An SMTP reply. A ``text`` of several lines (LF) becomes a multi-line reply."""

    code: int
    enhanced: str  # "5.1.1", or "" where RFC 2034 has none (greeting, EHLO, 354) or the peer gave none
    text: str
    positive: bool = field(init=False, repr=False, compare=False)  # 2xx: done
    _wire: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive", 200 <= self.code < 300)

    @property
    def temporary(self) -> bool:
        """4xx: another time may be better."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5xx: the same again will fail again."""
        return 500 <= self.code < 600

    def __str__(self) -> str:
        """One line for logs and events: ``550 5.1.1 no such user``."""
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text.replace("\n", " "))))

    def wire(self) -> bytes:
        """The bytes to send, CRLF included."""
        if self._wire is None:
            object.__setattr__(self, "_wire", self._encode())
        assert self._wire is not None
        return self._wire

    def _encode(self) -> bytes:
        if self.text.isascii() and self.text.isprintable() and len(self.text) <= _LINE_TEXT:
            return f"{self.code} {self.enhanced}{' ' if self.enhanced else ''}{self.text}\r\n".encode()
        # RFC 2034 4: the enhanced code begins every line of a multi-line reply.
        enhanced = f"{self.enhanced} " if self.enhanced else ""
        lines = [
            enhanced + printable(line, _LINE_TEXT).encode("ascii", "backslashreplace").decode()[:_LINE_TEXT]
            for line in self.text.split("\n")
        ]
        *first, last = lines
        return ("".join(f"{self.code}-{line}\r\n" for line in first) + f"{self.code} {last}\r\n").encode()

    def saying(self, text: str) -> Reply:
        """The same reply with another text."""
        return Reply(code=self.code, enhanced=self.enhanced, text=text)


def _reply(code: int, enhanced: str, text: str) -> Reply:
    return Reply(code=code, enhanced=enhanced, text=text)


# --- success -----------------------------------------------------------------------------------------------------
HELP = _reply(214, "2.0.0", "https://www.rfc-editor.org/rfc/rfc5321")  # RFC 5321 4.1.1.8
BYE = _reply(221, "2.0.0", "closing the connection")  # RFC 5321 4.1.1.10
AUTHENTICATED = _reply(235, "2.7.0", "authentication succeeded")  # RFC 4954 6
OK = _reply(250, "2.0.0", "ok")  # RFC 5321 4.2.3
SENDER_OK = _reply(250, "2.1.0", "sender ok")  # RFC 3463 3.2
TAKEN_ON = _reply(250, "2.1.5", "an alias of another account here has it")  # for the log
RECIPIENT_OK = _reply(250, "2.1.5", "recipient ok")  # RFC 3463 3.2
# RFC 5321 3.5.3: 252 says the same about users that exist and users that do not.
CANNOT_VERIFY = _reply(252, "2.5.0", "cannot verify the user, but will accept mail and attempt delivery")
START_TLS = _reply(220, "2.0.0", "ready to start TLS")  # RFC 3207 4
START_INPUT = _reply(354, "", "end data with <CR><LF>.<CR><LF>")  # RFC 5321 4.1.1.4

# --- temporary: our trouble, or too much at once -------------------------------------------------------------------
TOO_MANY_CONNECTIONS = _reply(421, "4.7.0", "too many connections from your address, try again later")
# RFC 5321 4.3.2: 421 at any time
TOO_MANY_ERRORS = _reply(421, "4.7.0", "too many errors, closing the connection")
TOO_MANY_COMMANDS = _reply(421, "4.7.0", "too many commands without mail, closing the connection")
TOO_MANY_FAILED_LOGINS = _reply(421, "4.7.0", "too many failed log-ins, try again later")
SERVER_BUSY = _reply(421, "4.3.2", "too many connections, try again later")
SHUTTING_DOWN = _reply(421, "4.3.2", "the service is restarting, try again in a moment")  # RFC 5321 3.8
TIMED_OUT = _reply(421, "4.4.2", "timed out waiting for you, closing the connection")  # RFC 5321 4.5.3.2.7
SERVICE_TROUBLE = _reply(421, "4.3.0", "temporary failure, try again later")  # before a transaction
# RFC 5321 4.2.2: local error in processing
TROUBLE = _reply(451, "4.3.0", "temporary failure, try again later")
CANNOT_TELL = _reply(451, "4.4.3", "cannot look that up at the moment, try again later")
# A disabled alias may be set to answer 421. The session stays open: other recipients are not to suffer for it.
ADDRESS_DEFERS = _reply(421, "4.2.1", "this address does not take mail at the moment, try again later")
UNCONFIRMED_DESTINATION = _reply(
    450, "4.2.1", "the destination of this address has not been confirmed by its owner yet, try again later"
)
STORAGE_FULL = _reply(452, "4.3.1", "storage is full, try again later")  # RFC 5321 4.2.2
OVER_QUOTA = _reply(452, "4.2.2", "the daily quota of this address is used up, try again later")
# RFC 5321 4.5.3.1.10
TOO_MANY_RECIPIENTS = _reply(452, "4.5.3", "too many recipients, send the rest in another transaction")
AUTH_TROUBLE = _reply(454, "4.7.0", "temporary authentication failure, try again later")  # RFC 4954 6

# --- permanent: the command ----------------------------------------------------------------------------------------
# RFC 5321 4.2.4: 500 unknown, 502 known, not done
UNKNOWN_COMMAND = _reply(500, "5.5.2", "command not recognised")
BAD_LINE_END = _reply(500, "5.5.2", "a command ends in CRLF")  # RFC 5321 2.3.8
COMMAND_TOO_LONG = _reply(500, "5.5.2", "the command line is too long")  # RFC 5321 4.5.3.1.9
BAD_ARGUMENTS = _reply(501, "5.5.4", "syntax error in the arguments")
BAD_SENDER = _reply(501, "5.1.7", "the sender's address is not well formed")
SENDER_TOO_LONG = _reply(
    553, "5.1.7", "the sender's address is too long to be written into a return address of ours"
)
BAD_RECIPIENT = _reply(501, "5.1.3", "the recipient's address is not well formed")
MAIL_SYNTAX = _reply(501, "5.5.4", "syntax: MAIL FROM:<address>")
RCPT_SYNTAX = _reply(501, "5.5.4", "syntax: RCPT TO:<address>")
AUTH_SYNTAX = _reply(501, "5.5.4", "syntax: AUTH mechanism")
HELO_NEEDS_NAME = _reply(501, "5.5.4", "say which host you are")
BAD_BASE64 = _reply(501, "5.5.2", "that is not base64")  # RFC 4954 4
AUTH_CANCELLED = _reply(501, "5.0.0", "authentication cancelled")  # RFC 4954 4
NOT_IMPLEMENTED = _reply(502, "5.5.1", "command not implemented")
WRONG_PROTOCOL = _reply(521, "5.7.0", "this is an SMTP server; goodbye")
BAD_SEQUENCE = _reply(503, "5.5.1", "bad sequence of commands")  # RFC 5321 4.1.4
HELLO_FIRST = _reply(503, "5.5.1", "say EHLO or HELO first")
MAIL_FIRST = _reply(503, "5.5.1", "MAIL first")
MAIL_TWICE = _reply(503, "5.5.1", "a transaction is already open")
NO_VALID_RECIPIENTS = _reply(554, "5.5.1", "no valid recipients")  # RFC 5321 3.3, RFC 2920 3.1
TLS_ALREADY = _reply(503, "5.5.1", "TLS is already active")  # RFC 3207 4.2
AUTH_ALREADY = _reply(503, "5.5.1", "already authenticated")  # RFC 4954 4
AUTH_NOT_HERE = _reply(503, "5.5.1", "authentication is not offered on this port")
UNKNOWN_PARAMETER = _reply(555, "5.5.4", "parameter not recognised or not implemented")  # RFC 5321 4.1.1.11
BAD_PARAMETER = _reply(501, "5.5.4", "a parameter is not well formed")
BAD_AUTH_MECHANISM = _reply(504, "5.5.4", "authentication mechanism not supported")  # RFC 4954 4

# --- permanent: who may do what ------------------------------------------------------------------------------------
AUTH_REQUIRED = _reply(530, "5.7.0", "authentication required")  # RFC 4954 6
TLS_REQUIRED = _reply(530, "5.7.0", "issue STARTTLS first")  # RFC 3207 4
BAD_CREDENTIALS = _reply(535, "5.7.8", "the user name or the password is wrong")  # RFC 4954 6
# RFC 4954 6, RFC 5248
AUTH_NEEDS_TLS = _reply(538, "5.7.11", "authentication needs TLS, issue STARTTLS first")

# --- permanent: the recipient --------------------------------------------------------------------------------------
NO_SUCH_USER = _reply(550, "5.1.1", "no such address here")  # RFC 3463 3.2
# A forged or expired SRS address: tell nothing.
BAD_RETURN_ADDRESS = _reply(550, "5.1.1", "no such address here")
ADDRESS_DISABLED = _reply(550, "5.2.1", "this address does not take mail")  # RFC 3463 3.3
RELAY_DENIED = _reply(554, "5.7.1", "relay access denied")  # RFC 5321 3.6.1
NON_ASCII_ADDRESS = _reply(553, "5.6.7", "this address needs the SMTPUTF8 extension")  # RFC 6531 3.5
ROUTING_LOOP = _reply(
    550, "5.4.6", "the aliases of this address lead in a circle, or through too many aliases in a row"
)  # RFC 3463 3.5
TOO_MANY_DESTINATIONS = _reply(
    550, "5.4.6", "the aliases of this address lead to too many destinations, or regular expressions"
)

# --- permanent: the message ----------------------------------------------------------------------------------------
BARE_NEWLINE = _reply(550, "5.5.2", "bare <CR> or <LF> in the message; RFC 5321 2.3.8 wants <CR><LF>")
SMUGGLING = _reply(521, "5.5.2", "bare <CR> or <LF> around the final dot; closing the connection")
LINE_TOO_LONG = _reply(500, "5.5.2", "a line of the message is longer than 998 octets")  # RFC 5322 2.1.1
MESSAGE_TOO_BIG = _reply(552, "5.3.4", "the message is larger than the limit")  # RFC 1870 6.2, 6.3
TOO_MANY_HOPS = _reply(554, "5.4.6", "too many hops, this message is going in circles")  # RFC 5321 6.3
OUR_OWN_LOOP = _reply(554, "5.4.6", "this message has already been through here for this address")
BAD_CONTENT = _reply(554, "5.6.0", "the message is not well formed")  # RFC 3463 3.7
BAD_HEADERS = _reply(550, "5.6.0", "the headers of the message are not well formed")
POLICY_REFUSAL = _reply(550, "5.7.1", "refused by policy")  # RFC 3463 3.8


def greeting(hostname: str) -> Reply:
    """220 (RFC 5321 4.2: the name comes first)."""
    return _reply(220, "", f"{hostname} ESMTP ready")


def hello(hostname: str, extensions: tuple[str, ...] = ()) -> Reply:
    """250 to HELO (no extensions) or EHLO (RFC 5321 4.1.1.1)."""
    return _reply(250, "", "\n".join((hostname, *extensions)))


def queued_as(identifier: str) -> Reply:
    """250 after DATA: the message is on disk under this id."""
    return _reply(250, "2.0.0", f"queued as {identifier}")


_UNINTELLIGIBLE = _reply(451, "4.5.0", "the server's reply could not be understood")


def parse_reply(lines: bytes) -> Reply:
    """What a peer said, whole (all lines of a multi-line reply), as a Reply; never raises.

    The caller bounds how much it reads. Every line must carry the same code (RFC 5321 4.2.1); otherwise, or
    without a code of 200 to 599, the reply is 451 4.5.0 with the text quoted. An enhanced code is kept when its class
    agrees with the code (RFC 2034 4).
    """
    bounded = lines[: 8 * MAX_TEXT]
    if len(bounded) < len(lines):  # cut between lines: half a line would spoil a 250
        bounded = bounded[: bounded.rfind(b"\n") + 1] or bounded
    code = 0
    enhanced = ""
    texts: list[str] = []
    for line in bounded.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n"):
        matched = _PEER_LINE.match(line)
        if matched is None or (code and int(matched[1]) != code):
            shown = printable(bounded.decode("utf-8", "backslashreplace").strip(), 200)
            return _UNINTELLIGIBLE.saying(
                f"{_UNINTELLIGIBLE.text}: {shown}" if shown else _UNINTELLIGIBLE.text
            )
        code = int(matched[1])
        text = line[4:].decode("utf-8", "backslashreplace")
        status = _ENHANCED.match(text)
        if status is not None and int(status[1]) == code // 100:
            enhanced = enhanced or status[0].rstrip()
            text = text[status.end() :]
        texts.append(text.strip())
    return Reply(code=code, enhanced=enhanced, text=printable(" ".join(filter(None, texts)), MAX_TEXT))
