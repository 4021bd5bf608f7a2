"""A message as JSON, for a webhook destination. Pure, bounded, and never raising for any bytes.

The object holds ``headers`` (a string for a field that occurs once, a list for one that occurs more often; of
``Delivered-To`` only the recipient that this post is for, which may stand nowhere in the message), ``to``,
``from``, ``subject``, ``message-id``, ``date``, ``return-path``, ``timestamp``, ``text``, ``html``, ``inlines`` and
``attachments``, the parts in base64. The walk through the MIME tree is an own one: the standard ``email`` package
recurses on what strangers nest. It goes ``_DEPTH`` levels deep and looks at ``_PARTS`` parts; what lies beyond is
left in the part that contains it, as one attachment of type ``application/octet-stream``. Character sets that are not
among the common ones are read as UTF-8 with replacement marks.

CPU work in proportion to the message, some of it with the interpreter locked: call it in a thread.
"""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from string import ascii_letters, digits
from urllib.parse import unquote_to_bytes

from forwarder.mail import content as mail
from forwarder.mail import display
from forwarder.mail.address import Path
from forwarder.mail.words import decode_words, known_charset, printable

_NOT_BASE64 = bytes({*range(256)} - {*ascii_letters.encode(), *digits.encode(), *b"+/"})
_DEPTH = 20
_PARTS = 500
_UNKNOWN = {"type": "application/octet-stream", "name": "", "encoding": "base64"}
_FIELDS = 500
_HEAD = 64 * 1024  # octets of a part's head that are looked at
_TEXT = 16 * 1024 * 1024  # octets of text decoded, of all parts together
_BLOCK = 64 * 1024  # octets of text decoded at once
_PARAMETER = re.compile(
    r';\s*([!#$%&\'*+.^_`|~0-9a-z-]{1,60})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.IGNORECASE
)
_ESCAPED = re.compile(r"\\(.)")
_DELIVERED_TO = "Delivered-To"
_FILE_NAMES = ("filename", "name")
_SHOWN_AS_ONE = ("multipart/alternative", "multipart/related", "multipart/signed")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A Content-Type or Content-Disposition: its word and its parameters."""

    word: str
    parameters: dict[str, str]


@dataclass(slots=True, eq=False)
class _Parts:
    """What the walk collects."""

    text: str | None = None
    html: str | None = None
    inlines: list[bytes] = field(default_factory=list)
    attachments: list[bytes] = field(default_factory=list)
    seen: int = 0
    text_left: int = _TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageJson:
    """The bodies to POST of one message; the recipient, in which alone they differ, stands between two pieces."""

    before: bytes
    after: bytes

    def to(self, recipient: Path) -> tuple[bytes, bytes]:
        """The body for one recipient in two pieces, of which the large one is shared by all."""
        return self.before + json.dumps(recipient.wire()).encode("ascii"), self.after


def message_json(content: bytes, *, reverse_path: Path, received_at: datetime) -> MessageJson:
    """The message, but for whom it came for."""
    head, _ = mail.split(content)
    parts = _Parts()
    _walk(content, 0, len(content), parts, 0, top=True)
    sender = display.mailbox(mail.first_raw(head, b"from") or b"")
    facts = {
        "headers": _headers(head),
        "to": [_person(found) for found in display.mailboxes(mail.first_raw(head, b"to") or b"")],
        "from": _person(sender),
        # Texts always: there are receivers that take null for a post that is not well formed, and refuse it for ever.
        "subject": mail.first(head, b"subject") or "",
        "message-id": mail.first(head, b"message-id") or "",
        "date": mail.first(head, b"date") or "",
        "return-path": {"name": "", "email": reverse_path.wire()},
        "timestamp": int(received_at.timestamp()),
        "text": parts.text,
        "html": parts.html,
    }
    before = json.dumps({"headers": {_DELIVERED_TO: ""}}).encode("ascii").removesuffix(b'""}}')
    # The base64 of the parts is joined in, not escaped again: it is most of the bytes.
    after = b"".join(
        (
            json.dumps(facts).encode("ascii")[len(before) + len('""') : -1],
            b', "inlines": [',
            b", ".join(parts.inlines),
            b'], "attachments": [',
            b", ".join(parts.attachments),
            b"]}",
        )
    )
    return MessageJson(before=before, after=after)


def _headers(head: bytes) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {_DELIVERED_TO: ""}  # first: it is cut out again
    for header in mail.headers(head, _FIELDS):
        name = printable(header.raw.partition(b":")[0].decode("ascii", "replace").strip(), 100)
        if not header.name or name.lower() == _DELIVERED_TO.lower():
            continue  # by that field receivers know whom it came for: what hops before us wrote must not say
        value = printable(decode_words(mail.unfolded(header.value[: mail.MAX_VALUE])), mail.MAX_VALUE)
        known = found.get(name)
        if known is None:
            found[name] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            found[name] = [known, value]
    return found


def _person(found: tuple[str | None, str | None]) -> dict[str, str]:
    email, name = found
    return {"name": name or "", "email": email or ""}


def _walk(
    content: bytes,
    start: int,
    end: int,
    parts: _Parts,
    depth: int,
    *,
    top: bool = False,
    shows: bool = False,
) -> None:
    """Sort the entity between two places, with its head, into what it is. Recursion ends at ``_DEPTH``.

    ``shows``: it is one of the parts that make up what is shown, and so no file, whatever its name.

    Places and not slices: each level of a nested message would hold a copy of all that it contains.
    """
    parts.seen += 1
    head_end, body_start = _bounds(content, start, end)
    head = content[start : min(head_end, start + _HEAD)]
    kind = _kind(mail.first_raw(head, b"content-type"), "text/plain")
    disposition = _kind(mail.first_raw(head, b"content-disposition"), "")
    boundary = kind.parameters.get("boundary", "").rstrip(" \t")  # RFC 2046 5.1.1: it ends in no blank
    if kind.word.startswith("multipart/") and boundary and depth < _DEPTH and parts.seen < _PARTS:
        found = False
        for part_start, part_end in _split(content, body_start, end, boundary.encode("utf-8", "replace")):
            found = True
            if parts.seen >= _PARTS:
                parts.attachments.append(_described(_UNKNOWN, content[part_start:end]))
                return
            _walk(content, part_start, part_end, parts, depth + 1, shows=kind.word in _SHOWN_AS_ONE)
        if found:
            return
        # No part of it is where its boundary says: readers show such a body as it is.
        kind = _Kind(word="text/plain", parameters={}) if top else kind
    if kind.word.startswith("multipart/") and not top:
        kind = _Kind(word=_UNKNOWN["type"], parameters={})
    octets = _decoded(
        content[body_start:end], (mail.first(head, b"content-transfer-encoding") or "").strip().lower()
    )
    name = _name(disposition, kind)
    is_file = disposition.word == "attachment" or (name and not top and not shows)
    if not is_file and _is_text(octets, kind, parts):
        return
    described = {
        "type": kind.word,
        "name": name,
        "encoding": "base64",
    }
    inline = disposition.word == "inline"
    identifier = mail.first(head, b"content-id")
    if identifier:
        described["cid"] = identifier.strip("<> ")
        inline = inline or disposition.word != "attachment"
    if inline:
        described.setdefault("cid", "")  # those who read them expect one
    (parts.inlines if inline else parts.attachments).append(_described(described, octets))


def _described(described: Mapping[str, str], octets: bytes) -> bytes:
    """One file of the payload."""
    head = json.dumps(described).encode("ascii")[:-1]
    return head + b', "content": "' + binascii.b2a_base64(octets, newline=False) + b'"}'


def _is_text(octets: bytes, kind: _Kind, parts: _Parts) -> bool:
    """Take a part as the message's text or HTML, if there is none yet."""
    if len(octets) > parts.text_left:
        return False
    if kind.word == "text/html" and parts.html is None:
        parts.html = _characters(octets, kind)
    elif kind.word == "text/plain" and parts.text is None:
        parts.text = _characters(octets, kind)
    else:
        return False
    parts.text_left -= len(octets)
    return True


def _bounds(content: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the head of an entity ends and where its body begins; without an empty line everything is head."""
    if content.startswith(b"\r\n", start, end):
        return start, start + 2
    blank = content.find(b"\r\n\r\n", start, end)
    return (end, end) if blank < 0 else (blank + 2, blank + 4)


def _split(content: bytes, start: int, end: int, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Where the parts of a multipart body are (RFC 2046 5.1.1); without a closing delimiter the last ends the body."""
    delimiter = b"--" + boundary
    at_once = content.startswith(delimiter, start, end)
    position = start if at_once else content.find(b"\r\n" + delimiter, start, end)
    part = -1
    while position >= 0:
        line = position if content.startswith(delimiter, position) else position + 2
        after = line + len(delimiter)
        closing = content.startswith(b"--", after, end)
        end_of_line = content.find(b"\r\n", after, end)
        if not closing and content[after : end_of_line if end_of_line >= 0 else end].strip(b" \t"):
            # A longer boundary that begins like ours.
            position = content.find(b"\r\n" + delimiter, after, end)
            continue
        if part >= 0:
            yield part, max(part, position)
        if closing or end_of_line < 0:
            return
        part = end_of_line + 2
        # A delimiter may follow at once: its CRLF is the one that ended this line.
        position = content.find(b"\r\n" + delimiter, end_of_line, end)
    if part >= 0:
        yield part, end


def _kind(raw: bytes | None, default: str) -> _Kind:
    text = (raw or b"").replace(b"\r\n", b"").decode("utf-8", "replace")
    word = text.partition(";")[0].strip().lower()
    parameters: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(text):
        # Without quotes a value ends at a blank; but scanners and scripts name files with blanks without them.
        bare = plain.strip() if name.lower() in _FILE_NAMES else "".join(plain.split(None, 1)[:1])
        parameters.setdefault(name.lower(), _ESCAPED.sub(r"\1", quoted) if quoted else bare)
    if default and word.count("/") != 1:  # RFC 2045 5.2: what is no type is plain text
        word = default
    return _Kind(word=printable(word, 100), parameters=parameters)


def _name(disposition: _Kind, kind: _Kind) -> str:
    """The file name: RFC 2231 (whole or in pieces), RFC 2047 as many write it, or plain."""
    for parameters, name in ((disposition.parameters, "filename"), (kind.parameters, "name")):
        if name in parameters:
            return printable(decode_words(parameters[name]), 255)
        pieces: list[str] = []
        while (
            piece := parameters.get(f"{name}*{len(pieces)}*", parameters.get(f"{name}*{len(pieces)}"))
        ) is not None:
            pieces.append(piece)
        extended = parameters.get(f"{name}*", "".join(pieces))
        if extended:
            charset, quote, rest = extended.partition("'")
            encoded = rest.partition("'")[2] if quote else extended
            return printable(_decode(unquote_to_bytes(encoded), charset if quote else "utf-8"), 255)
    return ""


def _decoded(body: bytes, encoding: str) -> bytes:
    """The octets of a part; text that is not in its encoding stays as it is."""
    if encoding == "base64":
        try:
            # Every character outside the alphabet is skipped (RFC 2045 6.8); with the interpreter locked, so quickly.
            letters = body.translate(None, _NOT_BASE64)
            return base64.b64decode(
                letters[: len(letters) - (len(letters) % 4 == 1)] + b"=" * (-len(letters) % 4)
            )
        except binascii.Error:
            return body
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body)
    return body


def _characters(octets: bytes, kind: _Kind) -> str:
    return _decode(octets, kind.parameters.get("charset", "utf-8"))


def _decode(octets: bytes, charset: str) -> str:
    known = known_charset(charset) or "utf-8"
    try:
        if len(octets) <= _BLOCK:
            return octets.decode(known, "replace")
        if known in ("utf-16", "utf16") and not octets.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            known = "utf-16le"  # as in one piece
        # In blocks: over octets that are no characters the interpreter is locked, two seconds for 16 MiB of them.
        decoder = codecs.getincrementaldecoder(known)("replace")
        pieces = [decoder.decode(octets[start : start + _BLOCK]) for start in range(0, len(octets), _BLOCK)]
        return "".join([*pieces, decoder.decode(b"", final=True)])
    except (LookupError, UnicodeError):
        return octets.decode("utf-8", "replace")
