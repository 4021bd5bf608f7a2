"""Reports that come back: what a DSN from another system says about a delivery of ours.

``read_report`` looks for the trace we left in the header of the original (``X-Forwarder-Id``, see ``trace``) and for
the failed recipients, since one report tells of all who failed together. It is made for what hosts really send: reports
of every age, cut short, wrongly encoded, or no MIME at all. A message without trace and without a delivery-status part
is no report. It never raises, reads the first 512 KiB of a message, at most 20 parts of it and 200 recipients, and is
linear.

Nothing in a report is proven: anybody can write one. The caller decides what it may change.
"""

import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from forwarder.mail import trace
from forwarder.mail.content import Fields, split
from forwarder.mail.words import printable

MAX_OCTETS = 512 * 1024
MAX_PARTS = 20
MAX_GROUPS = 200
_BOUNDARY = re.compile(rb'boundary[ \t]*=[ \t]*(?:"([^"\r\n]{1,200})"|([^;\s"]{1,200}))', re.IGNORECASE)
# With the lines that follow as ``trace.lines`` folds them.
_TRACE_LINES = re.compile(
    rb"^[ \t>]{0,10}x-forwarder-id:([^\r\n]{0,2000}(?:\r\n[ \t>]{1,10}[0-9a-f]{32}-[0-9a-f]{16},?){0,199}+)",
    re.IGNORECASE | re.MULTILINE,
)
# A comment may follow, as in any structured field (RFC 5322 3.2.2).
_ACTION = re.compile(rb"[a-z]*", re.IGNORECASE)
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
# RFC 6533 3: EmbeddedUnicodeChar
_EMBEDDED = re.compile(r"\\x\{(10[0-9A-F]{4}|[0-9A-F]{2,5})\}", re.IGNORECASE)

_READ = (
    b"content-type",
    b"content-transfer-encoding",
    b"action",
    b"status",
    b"diagnostic-code",
    b"final-recipient",
    b"original-recipient",
)

_Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedRecipient:
    """What a report says of one recipient; "" for what it does not."""

    action: str = ""  # failed, delayed, delivered, relayed, expanded
    status: str = ""  # enhanced status code
    diagnostic: str = ""  # one line, printable
    recipient: str = ""
    original: str = ""  # as we named it, where the other system says so: it may lead on under another name


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedReport(ReturnedRecipient):
    """What a report says, of the first failed recipient or else of the first."""

    # The deliveries that the original went through, ours and those of others who have this program: a transaction each,
    # the latest first.
    hops: tuple[tuple[trace.Passage, ...], ...] = ()
    others: tuple[ReturnedRecipient, ...] = ()  # who failed as well

    @property
    def passages(self) -> tuple[trace.Passage, ...]:
        """Those of all hops."""
        return tuple(passage for hop in self.hops for passage in hop)


def read_report(content: bytes) -> ReturnedReport | None:
    """The report in a message, or None when it is not one."""
    content = content[:MAX_OCTETS]
    told: list[_Fields] | None = None
    original = b""
    for fields, body in _parts(content):
        kind = fields.get(b"content-type", b"").strip().lower()
        if kind.startswith((b"message/delivery-status", b"message/global-delivery-status")):
            told = told or _recipients(_decoded(fields, body))
        elif kind.startswith((b"text/rfc822-headers", b"message/rfc822", b"message/global")):
            original = original or split(_decoded(fields, body).lstrip(b"\r\n"))[0]
    traces = Fields(original, (trace.ID_FIELD,))
    hops = _hops(traces.each(trace.ID_FIELD, trace.MOST_FIELDS, trace.MOST_OCTETS))
    if not hops:
        # Reports without MIME quote the original's header in their text.
        lines = islice(_TRACE_LINES.finditer(bytes(split(content)[1])), trace.MOST_FIELDS)
        hops = _hops(line[1] for line in lines)
    if told is None and not hops:
        return None
    first, *others = map(_told, told or [{}])
    return ReturnedReport(
        action=first.action,
        status=first.status,
        diagnostic=first.diagnostic,
        recipient=first.recipient,
        original=first.original,
        hops=hops,
        others=tuple(others),
    )


def _hops(values: Iterable[bytes]) -> tuple[tuple[trace.Passage, ...], ...]:
    """What each field names; as many deliveries in all as one may name."""
    hops: list[tuple[trace.Passage, ...]] = []
    left = trace.MOST_ENTRIES
    for value in values:
        named = tuple(trace.passages(value)[:left])
        left -= len(named)
        hops += [named] if named else []
    return tuple(hops)


def _told(fields: _Fields) -> ReturnedRecipient:
    status = _STATUS.search(_text(fields, b"status"))
    original = _address(_text(fields, b"original-recipient"))
    return ReturnedRecipient(
        action=_action(fields),
        status=status[0] if status else "",
        diagnostic=_after_type(_text(fields, b"diagnostic-code")),
        recipient=_address(_text(fields, b"final-recipient")) or original,
        original=original,
    )


def _parts(content: bytes) -> list[tuple[_Fields, bytes]]:
    """The parts of the outermost multipart, each with its header."""
    head, body = split(content)
    kind = _fields(head).get(b"content-type", b"")
    boundary = _BOUNDARY.search(kind)
    if not kind.strip().lower().startswith(b"multipart/") or boundary is None:
        return []
    delimiter = b"\r\n--" + (boundary[1] or boundary[2])
    pieces = (b"\r\n" + bytes(body)).split(delimiter, MAX_PARTS + 1)[1 : MAX_PARTS + 1]
    parts = []
    for piece in pieces:
        if piece.startswith(b"--"):
            break
        _, _, part = piece.partition(b"\r\n")
        part_head, part_body = split(part)
        parts.append((_fields(part_head), bytes(part_body)))
    return parts


def _fields(head: bytes) -> _Fields:
    """The first field of each name that is read; of half a megabyte of others no object is made."""
    seen = Fields(head, _READ)
    return {name: b" ".join(raw.split()) for name in _READ if (raw := seen.raw(name)) is not None}


def _decoded(fields: _Fields, body: bytes) -> bytes:
    try:
        match fields.get(b"content-transfer-encoding", b"").strip().lower():
            case b"base64":
                return binascii.a2b_base64(body)
            case b"quoted-printable":
                return binascii.a2b_qp(body)
    except binascii.Error:
        return b""
    return body


def _recipients(body: bytes) -> list[_Fields]:
    """The groups of the failed recipients, else that of the first; none when there is none."""
    groups = [_fields(group + b"\r\n") for group in body.split(b"\r\n\r\n", MAX_GROUPS)]
    described = [group for group in groups if b"action" in group or b"final-recipient" in group]
    failed = [group for group in described if _action(group) == "failed"]
    return failed or described[:1]


def _action(fields: _Fields) -> str:
    found = _ACTION.match(fields.get(b"action", b""))
    assert found is not None  # it matches nothing as well
    return found[0].decode().lower()


def _text(fields: _Fields, name: bytes) -> str:
    return printable(fields.get(name, b"").decode("utf-8", "backslashreplace"), 1000)


def _after_type(value: str) -> str:
    """``smtp; 550 no`` is ``550 no``."""
    kind, semicolon, rest = value.partition(";")
    return rest.strip() if semicolon and kind.strip().replace("-", "").isalnum() else value


def _address(value: str) -> str:
    """``rfc822; a@x.org`` is ``a@x.org``; some write it in angle brackets, as in a command."""
    bare = _after_type(value).strip("<>")
    if value[:5].lower() != "utf-8":
        return bare
    return _EMBEDDED.sub(lambda found: chr(int(found[1], 16)), bare)
