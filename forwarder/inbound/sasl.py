"""AUTH PLAIN and AUTH LOGIN (RFC 4954, RFC 4616): from the command to a name and a password.

It fails with the reply to give. What the client sent is never put into a reply, a log or an exception: half of all
mistakes people make here put the password where the name belongs.
"""

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from forwarder.mail import reply as replies
from forwarder.mail.reply import Reply

MECHANISMS = ("PLAIN", "LOGIN")
_USERNAME = "VXNlcm5hbWU6"  # "Username:", which some clients compare
_PASSWORD = "UGFzc3dvcmQ6"  # noqa: S105 - "Password:"

# Sends 334 and a challenge; the line that comes back, or None: it cannot be used.
Ask = Callable[[str], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What the client says it is called, and what is to prove it."""

    name: str
    password: str = field(repr=False)


async def exchange(arguments: bytes, ask: Ask) -> Presented | Reply:
    """Hold the exchange that ``AUTH arguments`` begins; a Reply when nothing came of it."""
    mechanism, _, initial = arguments.partition(b" ")
    initial = initial.strip(b" ")
    match mechanism.upper():
        case b"PLAIN":
            return await _plain(initial, ask)
        case b"LOGIN":
            return await _login(initial, ask)
        case b"":
            return replies.AUTH_SYNTAX
        case _:
            return replies.BAD_AUTH_MECHANISM


async def _plain(initial: bytes, ask: Ask) -> Presented | Reply:
    response = _decoded(initial) if initial else _answer(await ask(""))
    if isinstance(response, Reply):
        return response
    parts = response.split(b"\0")
    if len(parts) != 3:
        return replies.BAD_BASE64.saying("that is not what AUTH PLAIN wants")
    authorization, name, password = parts
    if authorization.lower() not in (b"", name.lower()):  # names of credentials have no case
        return replies.BAD_CREDENTIALS  # nobody acts for somebody else here
    return _presented(name, password)


async def _login(initial: bytes, ask: Ask) -> Presented | Reply:
    name = _decoded(initial) if initial else _answer(await ask(_USERNAME))
    if isinstance(name, Reply):
        return name
    password = _answer(await ask(_PASSWORD))
    if isinstance(password, Reply):
        return password
    return _presented(name, password)


def _answer(line: bytes | None) -> bytes | Reply:
    if line is None:
        return replies.BAD_BASE64
    if line == b"*":
        return replies.AUTH_CANCELLED
    return _decoded(line)


def _decoded(text: bytes) -> bytes | Reply:
    if text == b"=":  # RFC 4954 4: an initial response that is empty
        return b""
    try:
        return b64decode(text, validate=True)
    except binascii.Error:
        return replies.BAD_BASE64


def _presented(name: bytes, password: bytes) -> Presented | Reply:
    try:
        return Presented(name=name.decode("utf-8"), password=password.decode("utf-8"))
    except UnicodeDecodeError:
        return replies.BAD_CREDENTIALS
