"""DMARC (RFC 7489) and the Authentication-Results header (RFC 8601)."""

from collections.abc import Sequence
from dataclasses import dataclass

from forwarder.mail.arc import Chain
from forwarder.mail.verification import AuthResult, SignatureResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfResult:
    """SPF of one session."""

    result: AuthResult
    domain: str = ""
    identity: str = "mailfrom"  # or "helo"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DmarcResult:
    """DMARC of one message."""

    result: AuthResult
    domain: str = ""  # of the From header
    policy: str = "none"  # what the domain asks for: none, quarantine, reject
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that screening found out."""

    spf: SpfResult | None = None
    dkim: Sequence[SignatureResult] = ()
    dmarc: DmarcResult | None = None
    arc: Chain | None = None


def results_text(results: Results) -> str:
    """The part after the authserv-id."""
    return "none"


def authentication_results_header(authserv_id: str, results: Results) -> bytes:
    """The header to prepend."""
    return b""


def remove_forged(content: bytes, authserv_id: str) -> bytes:
    """Content without Authentication-Results headers that claim to be ours."""
    return content


def recorded(content: bytes, authserv_id: str) -> tuple[str, str] | None:
    """Our own recorded results of a stored message: (text after the authserv-id, chain status)."""
    return None
