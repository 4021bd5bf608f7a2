"""What a submitted message lacks, and what it must not carry on (RFC 6409 8.2 to 8.5).

Message-ID, Date and a recipient field are added where they are missing, in front of the head, so that nothing that is
there moves; Bcc is taken out, since all would read it. Everything else stays byte for byte.

Pure; linear; bytes in, bytes out.
"""

import re
from datetime import datetime
from email.utils import format_datetime

from forwarder.mail import content as contents

_BLIND = re.compile(rb"^(?:resent-)?bcc[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE | re.MULTILINE)


def missing_fields(head: bytes, *, message_id: str, now: datetime) -> bytes:
    """The fields to put in front, complete with CRLF; empty when nothing is missing."""
    there = contents.Fields(head, (b"message-id", b"date", b"to", b"cc"))
    added = []
    if not there.count(b"message-id"):
        added.append(f"Message-ID: <{message_id}>\r\n")
    if not there.count(b"date"):
        added.append(f"Date: {format_datetime(now)}\r\n")
    if not there.count(b"to") and not there.count(b"cc"):
        added.append("To: undisclosed-recipients:;\r\n")  # RFC 5322 3.6.3 allows none; some receivers do not
    return "".join(added).encode("ascii")


def without_blind_copies(content: bytes, head: bytes) -> bytes:
    """The content with its Bcc and Resent-Bcc fields gone."""
    shown = _BLIND.sub(b"", head)
    return content if shown == head else shown + content[len(head) :]
