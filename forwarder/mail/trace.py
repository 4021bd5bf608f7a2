"""The trace we leave on forwarded mail: ``X-Forwarder-Id`` and ``X-Forwarded-To``.

``X-Forwarder-Id: <delivery id>-<mark>[, …]`` names every delivery of one outbound transaction. The id finds the
delivery again when the message comes back inside a DSN. The mark is a keyed digest of the recipient (the alias address
that accepted the message), so that this engine, and only an engine with the same key, can see that the same alias
already forwarded the message: a loop (RFC 5321 6.3 leaves the means to us; counting ``Received`` fields is the
other one). A bare digest would let a reader test guesses about Bcc recipients; with a keyed one he would have to ask
at our door, by mail that bears it, and be seen in the log of whom he guessed.

Where a transaction has several recipients, all its copies bear the marks of all of them. Who gets such a copy may be a
mailing list, or a person whose mail goes on, and sends it to another of them, through whom this very copy never went.
A Delivered-To field has one address (RFC 9228 4), and Postfix makes a copy for each; we would have to give each
recipient a transaction of its own. So a mark beside those of others is no proof of a loop: the alias forwards the
message once more, now with a mark of its own, and a real loop ends there (``certain``).

``X-Forwarded-To: <alias address>`` says to the reader why the message came. It names the alias, never the private
destination, and is left out where deliveries of several recipients share one transaction, since each copy would
then tell its reader who the others are.

Limits: at most ``MOST_ENTRIES`` deliveries are named or read in a field, and ``MOST_FIELDS`` are read; a message that
passed more transactions is stopped by its hop count, and one of more recipients that all lead to one address may come
by once more.
"""

import hmac
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from forwarder.mail.address import Path

MOST_ENTRIES = 200
MOST_FIELDS = 50
MOST_OCTETS = 16 * 1024  # of a field that are read; 200 entries take 10.6 KB as we fold them
ID_FIELD = b"x-forwarder-id"

_ENTRY = re.compile(rb"\b([0-9a-f]{32})-([0-9a-f]{16})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One delivery that a message went through, as its trace tells."""

    delivery_id: str
    mark: str


@lru_cache(maxsize=4096)  # aliases are few, and each gets much mail
def mark(secret: bytes, recipient: Path) -> str:
    """16 hex digits that stand for the recipient; the local part counts in lower case, as in our look-ups."""
    identity = f"{recipient.key}@{recipient.domain}".encode()
    # Not hmac.digest, which lets go of the interpreter lock for these few octets.
    return hmac.new(secret, b"forwarder trace\0" + identity, "sha256").hexdigest()[:16]


def lines(passages: Sequence[Passage], forwarded_to: Path | None) -> bytes:
    """The header lines to prepend to one transaction's copy, folded at each entry, ending in CRLF."""
    named = b",\r\n\t".join(f"{p.delivery_id}-{p.mark}".encode() for p in passages[:MOST_ENTRIES])
    head = b"X-Forwarder-Id: " + named + b"\r\n"
    if forwarded_to is None or forwarded_to.needs_smtputf8:
        return head
    return head + b"X-Forwarded-To: " + forwarded_to.wire().encode("ascii") + b"\r\n"


def passages(value: bytes) -> list[Passage]:
    """The deliveries named by the value of one ``X-Forwarder-Id`` field."""
    found = islice(_ENTRY.finditer(value), MOST_ENTRIES)
    return [Passage(delivery_id=entry[1].decode(), mark=entry[2].decode()) for entry in found]


def certain(values: Iterable[bytes]) -> Set[str]:
    """The marks of those who have forwarded a message for certain, by the values of its ``X-Forwarder-Id`` fields.

    That is who is named alone in a field, or in two.
    """
    seen, found = set[str](), set[str]()
    for value in values:
        marks = {passage.mark for passage in passages(value)}
        found |= marks if len(marks) == 1 else marks & seen
        seen |= marks
    return found


def is_among(secrets: Sequence[bytes], recipient: Path, marks: Set[str]) -> bool:
    """Whether one of these marks stands for this recipient, under any of our secrets."""
    return any(mark(secret, recipient) in marks for secret in secrets)
