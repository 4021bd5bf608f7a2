"""The canonical forms that DKIM and ARC hash (RFC 6376 section 3.4), over the bytes of one message.

``Canonical(content)`` splits a message once; every signature and every verification of that message then shares
its header fields, their canonical forms and its body hashes. Nothing is copied for a body that is already in canonical
form, which most are: two searches prove it, and the hash runs over a view of the content.

No input raises: a line without a colon, or a folded line before any header, becomes a nameless field that no
signature can select. Every step is linear in the size of the message, and so is the memory it takes.
A body without a final line end is hashed as if it had one, since that is how it will go over the wire.
"""

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum

from forwarder.mail.content import FIELD_END
from forwarder.mail.scan import literally

_CRLF = b"\r\n"
_MANY_CRLF = _CRLF * 2048
_NAME = re.compile(rb"([^\s:][^:\r\n]*):")
# Without VT, FF and bare CR or LF, at which bytes.split() splits too, although they are no white space to DKIM.
_ORDINARY = re.compile(rb"[^\r\n\x0b\x0c]*+(?:\r\n[^\r\n\x0b\x0c]*+)*+")
_find_two_spaces = literally(b"  ")
_find_space_at_end = literally(b" \r")
# Two spaces are written out, since an expression that begins with plain octets is searched for four times as fast.
_SPACES = re.compile(rb"   *")
_BLOCK = 256 * 1024
_TAB_TO_SPACE = bytes.maketrans(b"\t", b" ")


class Form(StrEnum):
    """The two canonicalisation algorithms."""

    SIMPLE = "simple"
    RELAXED = "relaxed"


class Canonical:
    """One message, split into header fields and body, with the hashes that were asked for so far."""

    __slots__ = ("_digests", "_relaxed", "body_start", "by_name", "content", "fields")

    def __init__(self, content: bytes) -> None:
        self.content = content
        head_end, self.body_start = _boundaries(content)
        self.fields: list[tuple[bytes, bytes]] = split_fields(content[:head_end])
        self.by_name = by_name = dict[bytes, list[bytes]]()
        for name, raw in self.fields:
            if name in by_name:
                by_name[name].append(raw)
            elif name:
                by_name[name] = [raw]
        self._digests: dict[Form, tuple[bytes, int]] = {}
        self._relaxed: dict[bytes, bytes] = {}

    def instances(self, name: bytes) -> list[bytes]:
        """The raw fields (with their final CRLF) of a lower-case name, topmost first."""
        return self.by_name.get(name, [])

    def canonical(self, raw: bytes, form: Form) -> bytes:
        """``canonical_field`` of one of its own. Every signature covers about the same fields."""
        if form is not Form.RELAXED:
            return canonical_field(raw, form)
        known = self._relaxed.get(raw)
        if known is None:
            known = self._relaxed[raw] = relaxed_field(raw)
        return known

    def body_hash(self, form: Form) -> bytes:
        """SHA-256 of the canonical body."""
        return self._body(form)[0]

    def body_length(self, form: Form) -> int:
        """Octets of the canonical body: what a ``l=`` tag is compared with."""
        return self._body(form)[1]

    def _body(self, form: Form) -> tuple[bytes, int]:
        known = self._digests.get(form)
        if known is None:
            known = self._digests[form] = _hash_body(self.content, self.body_start, form)
        return known


def split_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """Header fields as (lower-case name, raw bytes with final CRLF), in order, folded lines kept whole."""
    return [
        (found[1].rstrip(b" \t").lower() if (found := _NAME.match(piece)) else b"", piece + _CRLF)
        for piece in FIELD_END.split(head)
        if piece
    ]


def canonical_field(raw: bytes, form: Form) -> bytes:
    """A raw field in a canonical form, without the final CRLF."""
    return relaxed_field(raw) if form is Form.RELAXED else simple_field(raw)


def relaxed_field(raw: bytes) -> bytes:
    """RFC 6376 3.4.2 of one field, without the final CRLF."""
    return raw.partition(b":")[0].rstrip(b" \t").lower() + b":" + relaxed_value(raw)


def relaxed_value(raw: bytes) -> bytes:
    """What ``relaxed_field`` has after the colon."""
    value = raw.partition(b":")[2]
    if _ORDINARY.fullmatch(value):
        return b" ".join(value.split())
    return _collapse(value.replace(_CRLF, b"").translate(_TAB_TO_SPACE)).strip(b" ")


def simple_field(raw: bytes) -> bytes:
    """RFC 6376 3.4.1 of one field: as it is, without the final CRLF."""
    return raw.removesuffix(_CRLF)


def _boundaries(content: bytes) -> tuple[int, int]:
    """Where the head ends (after its last CRLF) and where the body begins."""
    if content.startswith(_CRLF):
        return 0, 2
    blank = content.find(b"\r\n\r\n")
    return (len(content), len(content)) if blank < 0 else (blank + 2, blank + 4)


def _hash_body(content: bytes, start: int, form: Form) -> tuple[bytes, int]:
    hasher, length = hashlib.sha256(), 0
    held = 0  # octets of line ends, which do not count unless text follows
    relaxing = form is Form.RELAXED and _needs_relaxing(content, start)
    for body, begin in _relaxed(content, start) if relaxing else ((content, start),):
        end = _end_of_text(body, begin)
        if end > begin:
            if held:
                for _ in range(held // len(_MANY_CRLF)):
                    hasher.update(_MANY_CRLF)
                hasher.update(_MANY_CRLF[: held % len(_MANY_CRLF)])
            hasher.update(memoryview(body)[begin:end])
            length += held + end - begin
            held = 0
        held += len(body) - end
    # An empty body is nothing when relaxed, and one CRLF when simple (RFC 6376 3.4.3, 3.4.4).
    if length or form is Form.SIMPLE:
        hasher.update(_CRLF)
        length += 2
    return hasher.digest(), length


def _relaxed(content: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """The body in relaxed form, some lines at a time: of 25 MiB, each step makes a copy."""
    whole = len(content) - start <= _BLOCK
    while start < len(content):
        end = content.find(_CRLF, start + _BLOCK) + 2
        if end < 2:
            end = len(content)
        lines = content[start:end]
        if whole or _needs_relaxing(lines, 0):
            if not lines.endswith(_CRLF):
                lines += _CRLF
            if b"\t" in lines:
                lines = lines.translate(_TAB_TO_SPACE)
            lines = _collapse(lines).replace(b" \r\n", _CRLF)
        yield lines, 0
        start = end


def _end_of_text(body: bytes, start: int) -> int:
    """Where the empty lines at the end begin, with the line end before them."""
    end = len(body)
    while body.endswith(_MANY_CRLF, start, end):
        end -= len(_MANY_CRLF)
    while body.endswith(_CRLF, start, end):
        end -= 2
    return end


def _needs_relaxing(content: bytes, start: int) -> bool:
    # A bare CR after a space is taken for a line end: that costs time, and changes nothing.
    return (
        content.find(b"\t", start) >= 0
        or _find_two_spaces(content, start) >= 0
        or _find_space_at_end(content, start) >= 0
        or content.endswith(b" ", start)
    )


def _collapse(text: bytes) -> bytes:
    """Runs of spaces become one."""
    if len(text) <= _BLOCK:
        return _SPACES.sub(b" ", text)
    # An object for each word of 25 MiB would be too much at once.
    blocks = (text[start : start + _BLOCK] for start in range(0, len(text), _BLOCK))
    text = b"".join([_SPACES.sub(b" ", block) for block in blocks])
    while b"  " in text:  # a run was cut; each pass halves what is left of it
        text = text.replace(b"  ", b" ")
    return text
