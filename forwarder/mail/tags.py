"""Tag lists (RFC 6376 section 3.2): ``v=1; a=rsa-sha256; ...`` as DKIM and ARC write them.

DMARC writes the same, but what it cannot read is to be passed over (``mail.dmarc``).

``parse_tags`` is strict about structure (a tag without ``=``, a bad tag name, a tag given twice) and says so with
``TagListError``; what the values mean is for the caller. Linear; the input is at most ``MAX_OCTETS`` long.
"""

import binascii
import re

MAX_OCTETS = 16 * 1024
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_WHITE = str.maketrans("", "", " \t\r\n")


class TagListError(ValueError):
    """Not a tag list; the text names the flaw."""


def parse_tags(value: bytes) -> dict[str, str]:
    """Tags by name (case-sensitive), values without the white space around them."""
    if len(value) > MAX_OCTETS:
        raise TagListError("the tag list is too long")
    parts = value.decode("utf-8", "replace").split(";")
    if not parts[-1].strip():  # one semicolon may close the list
        parts.pop()
    tags: dict[str, str] = {}
    for part in parts:
        name, equals, text = part.partition("=")
        name = name.strip(" \t\r\n")
        if not equals or not _NAME.match(name):
            raise TagListError("a tag has no name or no value")
        if name in tags:
            raise TagListError(f"the tag {name}= is given twice")
        tags[name] = text.strip(" \t\r\n")
    return tags


def without_white(value: str) -> str:
    """A value with its folding removed."""
    return value.translate(_WHITE)


def decode_base64(value: str) -> bytes | None:
    """Octets of a base64 value that may be folded; None when it is not base64."""
    try:
        return binascii.a2b_base64(without_white(value).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def blank_signature(raw: bytes) -> bytes:
    """A signature field with the value of ``b=`` removed and all else untouched (RFC 6376 3.5, 3.7)."""
    parts = raw.removesuffix(b"\r\n").split(b";")
    head, colon, first = parts[0].partition(b":")
    parts[0] = first
    for index, part in enumerate(parts):
        name, equals, _ = part.partition(b"=")
        if equals and name.strip() == b"b":
            parts[index] = name + equals
    return head + colon + b";".join(parts) + b"\r\n"
