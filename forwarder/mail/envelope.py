"""The arguments of MAIL and RCPT, which make the envelope.

What it does: parses what follows the verbs MAIL and RCPT, with the parameters SIZE (RFC 1870), BODY (RFC 6152),
SMTPUTF8 (RFC 6531) and AUTH (RFC 4954 5, where authentication is offered).

How it fails: ``RequestError`` carries the reply to give; nothing else is raised, whatever the bytes.

Limits, on purpose: the angle brackets are required; spaces after the colon are allowed, since old clients send them;
DSN parameters (RET, ENVID, NOTIFY, ORCPT) are refused with 555 as long as DSN is not offered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forwarder.mail import reply as replies
from forwarder.mail.address import AddressError, AddressFault, Path, parse_forward_path, parse_reverse_path
from forwarder.mail.reply import Reply

# The path ends at the first > that is not inside a quoted string; what follows is empty or a space and parameters.
_PATH = re.compile(
    rb" *+<"
    rb'([^<>"\x00-\x1f\x7f]*(?:"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"[^<>"\x00-\x1f\x7f]*)*)'
    rb">(?: ++([!-~ ]*+))?"
)
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_DIGITS = re.compile(r"[0-9]+")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")


class RequestError(Exception):
    """The command is refused with this reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


@dataclass(frozen=True, slots=True, kw_only=True)
class MailCommand:
    """What MAIL said that counts later; SIZE, BODY and AUTH are checked and set aside."""

    path: Path
    smtputf8: bool = False


def parse_mail_args(arguments: bytes, *, size_limit: int, auth_offered: bool = False) -> MailCommand:
    """What follows ``MAIL ``: ``FROM:<path> parameters``. Raises RequestError."""
    raw, rest = _path_and_parameters(arguments, b"FROM:", replies.MAIL_SYNTAX, replies.BAD_SENDER)
    smtputf8 = False
    if rest:
        parameters = _parameters(rest)
        if "SIZE" in parameters:
            _check_size(parameters.pop("SIZE"), size_limit)
        # BINARYMIME needs BDAT, which is not offered
        if "BODY" in parameters and (parameters.pop("BODY") or "").upper() not in ("7BIT", "8BITMIME"):
            raise RequestError(replies.BAD_PARAMETER)
        if "SMTPUTF8" in parameters:
            if parameters.pop("SMTPUTF8") is not None:
                raise RequestError(replies.BAD_PARAMETER)
            smtputf8 = True
        # RFC 4954 5: AUTH= is believed only between servers that trust each other; checked and set aside.
        if auth_offered and "AUTH" in parameters and not _XTEXT.fullmatch(parameters.pop("AUTH") or ""):
            raise RequestError(replies.BAD_PARAMETER)
        if parameters:
            raise RequestError(replies.UNKNOWN_PARAMETER)
    try:
        path = parse_reverse_path(raw, smtputf8=smtputf8)
    except AddressError as error:
        raise _refusal(error, replies.BAD_SENDER) from None
    return MailCommand(path=path, smtputf8=smtputf8)


def parse_rcpt_args(arguments: bytes, *, smtputf8: bool) -> Path:
    """What follows ``RCPT ``: ``TO:<path> parameters``. Raises RequestError; the null path is refused."""
    raw, rest = _path_and_parameters(arguments, b"TO:", replies.RCPT_SYNTAX, replies.BAD_RECIPIENT)
    if rest:
        _parameters(rest)
        raise RequestError(replies.UNKNOWN_PARAMETER)
    try:
        return parse_forward_path(raw, smtputf8=smtputf8)
    except AddressError as error:
        raise _refusal(error, replies.BAD_RECIPIENT) from None


def _refusal(error: AddressError, malformed: Reply) -> RequestError:
    if error.fault is AddressFault.NON_ASCII:
        return RequestError(replies.NON_ASCII_ADDRESS)
    return RequestError(malformed.saying(str(error)))


def _path_and_parameters(arguments: bytes, word: bytes, syntax: Reply, malformed: Reply) -> tuple[bytes, str]:
    if arguments[: len(word)].upper() != word:
        raise RequestError(syntax)
    matched = _PATH.fullmatch(arguments.rstrip(b" "), len(word))
    if matched is None:
        raise RequestError(malformed)
    raw, rest = matched.groups()
    return raw, rest.decode("ascii") if rest else ""


def _parameters(text: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for word in text.split():
        keyword, equals, value = word.partition("=")
        keyword = keyword.upper()
        # RFC 5321 4.1.1.11: a keyword may come once.
        if not _KEYWORD.fullmatch(keyword) or keyword in found or (equals and not value):
            raise RequestError(replies.BAD_PARAMETER)
        found[keyword] = value if equals else None
    return found


def _check_size(value: str | None, limit: int) -> None:
    if value is None or not _DIGITS.fullmatch(value):
        raise RequestError(replies.BAD_PARAMETER)
    # RFC 1870 5 allows 20 digits; a number beyond them is too big whatever it is, and is not worth converting.
    digits = value.lstrip("0") or "0"
    if len(digits) > 20 or int(digits) > limit:
        raise RequestError(replies.MESSAGE_TOO_BIG)
