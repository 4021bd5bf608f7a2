"""ARC (RFC 8617): validation of a chain and our seal on it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from forwarder.mail.canonical import Canonical
from forwarder.mail.seal import Signer
from forwarder.mail.verification import Answers


class ChainStatus(StrEnum):
    """The cv= words."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A judged chain."""

    status: ChainStatus
    sets: int = 0
    reason: str = ""


def needed_keys(content: bytes | Canonical) -> tuple[str, ...]:
    """TXT names to ask for."""
    return ()


def validate(content: bytes | Canonical, answers: Answers, *, now: datetime) -> Chain:
    """Judge the chain."""
    return Chain(status=ChainStatus.NONE)


def seal_arc(
    content: bytes | Canonical,
    *,
    signer: Signer,
    authserv_id: str,
    results: str,
    chain: ChainStatus,
    now: datetime,
) -> bytes:
    """The three headers of our set, to prepend; b"" when the chain must not be continued."""
    return b""
