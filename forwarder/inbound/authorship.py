"""Whom a submitted message claims to be from, read as strictly as its signature will be believed.

What readers see as the author must be what we checked: exactly one From with exactly one address; Sender, if there is
one, and every Resent-From and Resent-Sender likewise (RFC 6409 8.1, RFC 5322 3.6.6). An address that stands unquoted
beside the one in brackets must be the sender's too, since some readers show it; a display name may be in any character
set where no reader can take a part of it for an address. A head in which parsers disagree about what a field is
(``From : x``, a first line that is folded, NUL) is refused: one of them would show another author (Composition Kills,
USENIX Security 2020).

Pure. It fails with the reply to give.
"""

from forwarder.mail import content as contents
from forwarder.mail import reply as replies
from forwarder.mail.address import Path, parse_address
from forwarder.mail.author import is_plain, mailboxes
from forwarder.mail.reply import Reply

_SINGLE = (b"from", b"sender")
_LISTS = (b"resent-from", b"resent-sender")
_ONCE = (b"from", b"sender", b"to", b"cc", b"subject", b"date", b"message-id", b"reply-to")  # RFC 5322 3.6
_LONGEST = 64 * 1024  # octets of all these fields: each character is looked at, in the event loop
_MOST = 100  # addresses of all these fields


def claimed(head: bytes) -> list[Path] | Reply:
    """Every address the message claims to be from, the author's first."""
    fault = contents.malformed_head(head)
    if fault is not None:
        return replies.BAD_HEADERS.saying(f"the headers of the message are not well formed: {fault.value}")
    fields = contents.headers(head)
    if len(fields) >= contents.MAX_FIELDS:
        return replies.BAD_HEADERS.saying("the message has too many header fields")
    for name in _ONCE:
        if sum(field.name == name for field in fields) > 1:
            return replies.BAD_HEADERS.saying(f"the message has more than one {_shown(name)} header")
    if sum(len(field.value) for field in fields if field.name in _SINGLE + _LISTS) > _LONGEST:
        return replies.BAD_HEADERS.saying("the headers that say whom the message is from are too long")
    found: list[Path] = []
    for name in _SINGLE + _LISTS:
        for field in fields:
            if field.name != name:
                continue
            read = _read(field)
            if isinstance(read, Reply):
                return read
            paths, beside = read
            if name in _SINGLE and len(paths) != 1:
                return replies.BAD_HEADERS.saying(f"the {_shown(name)} header must hold exactly one address")
            found += paths + beside
            if len(found) > _MOST:
                return replies.BAD_HEADERS.saying("the message claims to be from too many addresses")
        if name == b"from" and not found:
            return replies.BAD_HEADERS.saying("the message has no From header")
    return found


def _read(field: contents.Header) -> tuple[list[Path], list[Path]] | Reply:
    """The addresses of a field, and those beside them."""
    octets = field.value.replace(b"\r\n", b"")
    text = octets.decode("utf-8", "replace")
    if "\ufffd" in text and not is_plain(text):
        return replies.BAD_HEADERS.saying(
            f"the {_shown(field.name)} header is neither ASCII nor UTF-8; encode the name in it as RFC 2047 says"
        )
    try:
        found = mailboxes(text, strict=True)
        paths = [_path(address) for address in found.listed]
    except ValueError:
        return replies.BAD_HEADERS.saying(
            f"the {_shown(field.name)} header holds no address that can be read"
        )
    try:
        return paths, [_path(address) for address in found.beside]
    except ValueError:
        return replies.BAD_HEADERS.saying(
            f"the {_shown(field.name)} header holds an @ beside the address in brackets; put the name in quotes"
        )


def _path(address: str) -> Path:
    path = parse_address(address)
    if "=?" in path.local:  # some readers decode it (RFC 2047 5 forbids it there)
        raise ValueError("an encoded word in an address")
    if "\ufffd" in address:
        raise ValueError("octets that are no characters")
    return path


def _shown(name: bytes) -> str:
    return name.decode().title()
