"""TLS contexts for both directions."""

import ssl
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path


class TlsMode(StrEnum):
    """What a session to an MX host asks of TLS."""

    OFF = "off"  # never
    OPPORTUNISTIC = "opportunistic"  # when offered, any certificate (RFC 7435)
    REQUIRED = "required"  # encrypted or not at all, any certificate
    VERIFIED = "verified"  # encrypted, certificate valid for the host name


class ServerTls:
    """The certificate we serve; reloaded when its files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        raise RuntimeError("being written")

    def context(self) -> ssl.SSLContext:
        """Always the same context; looks whether the files changed."""
        raise RuntimeError("being written")

    def refresh(self) -> bool:
        """Load changed files; False: nothing new or the new ones are bad (``trouble`` says why)."""
        raise RuntimeError("being written")


def client_context(*, verify: bool) -> ssl.SSLContext:
    """For sessions to MX hosts."""
    raise RuntimeError("being written")


def self_signed(hostnames: Sequence[str], into: Path) -> tuple[Path, Path]:
    """Write certificate.pem and key.pem for tests and the demo; their paths."""
    raise RuntimeError("being written")
