"""A reader of delivery status notifications (RFC 3464), on bytes, with no library.

It asks of a report what a mail program would: that it is a multipart/report with a name of its own, that its
machine-readable part names a failed recipient, and that the returned header fields show which message it is about.
"""

import re
from dataclasses import dataclass


class NotAReport(ValueError):
    """The sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one says."""

    name: str  # its Message-ID: the same report sent twice bears the same
    about: str  # the X-Ledger number of the returned message
    failed: list[str]


def read(content: bytes) -> Report:
    """The report that these octets are."""
    head, _, body = content.partition(b"\r\n\r\n")
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", head)
    kind = re.search(rb"(?im)^content-type:\s*multipart/report\b(.*)$", unfolded)
    if kind is None:
        raise NotAReport("it is not a multipart/report")
    boundary = re.search(rb'boundary="?([^";\r]+)"?', kind.group(1))
    if boundary is None:
        raise NotAReport("it names no boundary")
    if not re.search(rb"(?im)^auto-submitted:\s*auto-", unfolded):
        raise NotAReport("it does not say that it was made by a machine")
    name = re.search(rb"(?im)^message-id:\s*(<[^<>\s]+>)\s*$", unfolded)
    if name is None:
        raise NotAReport("it has no Message-ID")
    parts = body.split(b"--" + boundary.group(1))
    if len(parts) < 4 or not parts[-1].startswith(b"--"):
        raise NotAReport("its parts are not closed")
    status = next(
        (part for part in parts if re.search(rb"(?im)^content-type:\s*message/delivery-status", part)), None
    )
    if status is None:
        raise NotAReport("it has no message/delivery-status part")
    failed = []
    for group in re.split(rb"\r\n\r\n", status)[1:]:
        if re.search(rb"(?im)^action:\s*failed\s*$", group):
            address = re.search(rb"(?im)^(?:original|final)-recipient:\s*rfc822;\s*(\S+)", group)
            if address is None or not re.search(rb"(?im)^status:\s*5\.\d+\.\d+", group):
                raise NotAReport("a failed recipient has no address or no status")
            failed.append(address.group(1).decode("ascii", "replace").lower())
    number = re.search(rb"(?im)^x-ledger:\s*([0-9a-f]{32})\s*$", parts[-2])
    if number is None or not failed:
        raise NotAReport("it does not show what it is about")
    return Report(name.group(1).decode("ascii", "replace"), number.group(1).decode(), failed)
