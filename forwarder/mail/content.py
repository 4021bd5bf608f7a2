"""The bytes of a message: split, looked at, prepended to; never parsed whole and never written again.

What it does: splits head and body at the first empty line, looks headers up, counts hops, finds bare CR and LF and
long lines. What it shows to people (the subject) it decodes by RFC 2047.

What it promises: no function raises, whatever the bytes; all are linear in their input and bounded in their output;
nothing copies the body except what gives a new content (``prepend``, ``normalize_newlines``, and where there is
something to do ``mbox_line_as_field`` and ``headless_as_body``). The standard ``email`` package is not used: it
recurses on nested comments and parts.

Limits: ``headers`` gives at most 2,000 fields and ``first`` looks at 8 KiB of a field; what lies
beyond is for nobody's eyes, and is still sent on untouched. To refuse messages with many fields of one name, count
them with ``count_fields``, which sees them all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from forwarder.mail.words import decode_words, printable

MAX_LINE = 998  # octets without CRLF, RFC 5322 2.1.1
RECEIVED = b"received"
MAX_HEAD = 4 << 20  # octets
MAX_HEAD_LINES = 150_000
MAX_HEAD_FIELDS = 30_000
MAX_FIELDS = 2000
MAX_VALUE = 8192  # octets of one field that are looked at
_BLOCK = 128 * 1024  # octets
_FIELD_START = re.compile(rb"[!-9;-~]+[ \t]*:")
FIELD_END = re.compile(rb"\r\n(?![ \t])")  # RFC 5322 2.2.3
# With a time in it, and a field in the line that follows. The first time is enough: to go back for another one would
# read the line once more for each, and it may be as long as a message.
_MBOX_LINES = re.compile(
    rb"(?:>*+From (?![ \t]*:)(?>[^\r\n]*?\d\d:\d\d)[^\r\n]*+\r\n){1,10}+(?=[!-9;-~]++[ \t]*+:)",
)


class HeadFault(StrEnum):
    """What makes parsers disagree about a head."""

    NO_FIELD = "a line of the head is not a header field"
    FOLDED_FIRST = "the head begins with a continuation line"
    NUL = "NUL in the head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One header field."""

    name: bytes  # lower case, without blanks; empty for a line that is no field
    raw: bytes  # all its lines, final CRLF included
    value: bytes  # what follows the colon, folding and final CRLF included


def split(content: bytes) -> tuple[bytes, memoryview]:
    """The head, with the CRLF of its last line, and the body after the empty line, not copied.

    Without an empty line everything is head.
    """
    if content.startswith(b"\r\n"):
        return b"", memoryview(content)[2:]
    end = content.find(b"\r\n\r\n")
    if end < 0:
        return content, memoryview(b"")
    return content[: end + 2], memoryview(content)[end + 4 :]


def headers(head: bytes, limit: int = MAX_FIELDS) -> list[Header]:
    """The first ``limit`` fields of a head, in order; lines that are no field are kept with an empty name."""
    found: list[Header] = []
    position = 0
    while position < len(head) and len(found) < limit:
        end = _field_end(head, position)
        raw = head[position:end]
        name, colon, value = raw.partition(b":")
        if not colon or raw[0] in b" \t":
            name, value = b"", raw
        found.append(Header(name=name.strip().lower(), raw=raw, value=value))
        position = end
    return found


def _field_end(head: bytes, position: int) -> int:
    """Where the field that begins at ``position`` ends: after a CRLF that no blank follows (RFC 5322 2.2.3)."""
    end = FIELD_END.search(head, position)  # in one go: a field may be folded a hundred thousand times
    return len(head) if end is None else end.end()


class Fields:
    """The fields of a few names in a head: found in one pass over it, each cut out when it is asked for."""

    __slots__ = ("_head", "_values")

    def __init__(self, head: bytes, names: tuple[bytes, ...]) -> None:
        """``names`` in lower case."""
        self._head = head
        # Where the values begin. An expression that ignored case would take twelve times as long.
        self._values = values = dict[bytes, list[int]]()
        for field in _beginnings(names).finditer(b"\n" + head.lower()):
            values.setdefault(field[1], []).append(field.end() - 1)

    def raw(self, name: bytes) -> bytes | None:
        """What follows the colon in the first field of this name, cut at 8 KiB; None without one."""
        starts = self._values.get(name)
        return None if starts is None else self._cut(starts[0])

    def each(self, name: bytes, limit: int, octets: int = MAX_VALUE) -> list[bytes]:
        """The same of every field of this name, topmost first, ``limit`` at most, each cut at ``octets``."""
        return [self._cut(start, octets) for start in self._values.get(name, ())[:limit]]

    def text(self, name: bytes) -> str | None:
        """The same for people: unfolded, RFC 2047 decoded, printable, at most 1 KiB."""
        raw = self.raw(name)
        return None if raw is None else printable(decode_words(unfolded(raw)))

    def count(self, name: bytes) -> int:
        """How many fields of this name the whole head has."""
        return len(self._values.get(name, ()))

    def _cut(self, start: int, octets: int = MAX_VALUE) -> bytes:
        bounded = self._head[start : start + octets]
        return bounded[: _field_end(bounded, 0)]


@lru_cache(maxsize=64)
def _beginnings(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    return re.compile(rb"\n(" + b"|".join(map(re.escape, names)) + rb")[ \t]*+:")


def first_raw(head: bytes, name: bytes) -> bytes | None:
    """``Fields.raw`` of one name."""
    return Fields(head, (name,)).raw(name)


def first(head: bytes, name: bytes) -> str | None:
    """``Fields.text`` of one name."""
    return Fields(head, (name,)).text(name)


def unfolded(raw: bytes) -> str:
    """The value of a field as one line for people (RFC 5322 2.2.3); a tab, with which some fold, is a space."""
    return raw.replace(b"\r\n", b"").replace(b"\t", b" ").decode("utf-8", "replace").strip()


def count_fields(head: bytes, name: bytes) -> int:
    """How many fields of this name the whole head has."""
    return Fields(head, (name,)).count(name)


def count_received(head: bytes) -> int:
    """The hops the message has made (RFC 5321 6.3)."""
    return count_fields(head, RECEIVED)


def malformed_head(head: bytes) -> HeadFault | None:
    """The first thing that makes parsers disagree about a head, or None.

    Not for mail that is only passed on: much of it is a little wrong and harmless.
    """
    if b"\0" in head:
        return HeadFault.NUL
    if head[:1] in (b" ", b"\t"):
        return HeadFault.FOLDED_FIRST
    position = 0
    while position < len(head):
        field = _FIELD_START.match(head, position)
        if field is None or head[field.end() - 2 : field.end() - 1] in (b" ", b"\t"):
            return HeadFault.NO_FIELD
        position = _field_end(head, position)
    return None


def mbox_line_as_field(content: bytes) -> bytes:
    """The content with a first line as mailbox files have it (RFC 4155) made a field, as Postfix does it.

    It is none, so the head would end there for the next host, and all fields be text. What was in several mailboxes has
    several, ``>From`` the older ones. The very object without one.
    """
    found = _MBOX_LINES.match(content)
    if found is None:
        return content
    made = [b"X-Mailbox-Line: " + line for line in found[0].splitlines(keepends=True)]
    return b"".join((*made, content[found.end() :]))


def headless_as_body(content: bytes) -> bytes:
    """The content with an empty line before it if its first line is no field, as Postfix does it: then all is text.

    Fields that are put before it would else run on into the text, and a first line that begins with a blank would
    belong to the last of them. The very object where there is nothing to do.
    """
    if not content or content.startswith(b"\r\n") or _FIELD_START.match(content):
        return content
    return b"\r\n" + content


def has_bare_newline(content: bytes) -> bool:
    """Whether a CR or LF stands alone: the root of SMTP smuggling (RFC 5321 2.3.8)."""
    # It notes which line ends it sees, in one pass, with a CR at the end of a block kept in mind: half the time of
    # looking for a lone CR and counting both.
    seen = io.IncrementalNewlineDecoder(None, translate=False)
    for start in range(0, len(content), _BLOCK):
        seen.decode(str(content[start : start + _BLOCK], "latin-1"))
    seen.decode("", final=True)
    return seen.newlines not in (None, "\r\n")


def normalize_newlines(content: bytes) -> bytes:
    """Each CRLF, CR and LF as CRLF."""
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def line_too_long(content: bytes, limit: int = MAX_LINE) -> bool:
    """Whether a line has more than ``limit`` octets before its CRLF.

    Jumps to the last line end within reach instead of looking at every line: a line of 998 octets costs the same as
    a hundred short ones.
    """
    position, end = 0, len(content)
    while end - position > limit:
        position = content.rfind(b"\n", position, position + limit + 2) + 1
        if not position:
            return True
    return False


def ascii_head(parts: Iterable[bytes]) -> bool:
    """Whether the head is ASCII, of a content in several buffers, each made of whole lines."""
    for part in parts:
        head, end, _body = part.partition(b"\r\n\r\n")
        if not head.isascii():
            return False
        if end:
            return True
    return True


def head_too_large(content: bytes) -> bool:
    """Whether a head is beyond what anybody writes: 4 MiB, 150,000 lines, 30,000 fields.

    Every look at a message splits its head; without a bound, 25 MiB of three-octet fields cost a gigabyte.
    """
    end = content.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
    if end < 0:
        if len(content) > MAX_HEAD and not content.startswith(b"\r\n"):
            return True
        end = len(content)
    if end < MAX_HEAD_FIELDS * 2:
        return False
    lines = content.count(b"\n", 0, end)
    folded = content.count(b"\n ", 0, end) + content.count(b"\n\t", 0, end)
    return lines > MAX_HEAD_LINES or lines - folded > MAX_HEAD_FIELDS


def prepend(content: bytes, *fields: bytes) -> bytes:
    """The content with complete header fields (CRLF included) before it."""
    return b"".join((*fields, content))
