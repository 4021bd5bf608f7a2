"""DKIM verification (RFC 6376, 8301, 8463) over TXT answers fetched beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from forwarder.mail.canonical import Canonical

# TXT records by name, each record as its joined octets. Empty: the name has none. A name that is absent: DNS could
# not tell.
Answers = Mapping[str, Sequence[bytes]]


class AuthResult(StrEnum):
    """Result words of Authentication-Results (RFC 8601 section 2.7)."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"  # SPF only
    NEUTRAL = "neutral"
    POLICY = "policy"  # a signature that holds, but that we do not count
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureResult:
    """What one DKIM-Signature header is worth. Only PASS counts for DMARC."""

    result: AuthResult
    domain: str  # d=, lower case; "" when it could not be read
    selector: str = ""
    algorithm: str = ""
    identity: str = ""  # i=
    signature: str = ""  # the first 8 characters of b=: tells two signatures of one domain apart
    reason: str = ""


def needed_keys(content: bytes | Canonical) -> tuple[str, ...]:
    """TXT names to ask for."""
    return ()


def verify(content: bytes | Canonical, answers: Answers, *, now: datetime) -> list[SignatureResult]:
    """The result of each signature, topmost first."""
    return []
