"""The Sender Rewriting Scheme: reverse-paths that pass SPF here and find their way back.

What it does: ``forward`` writes ``a@x.org`` as ``SRS0=<hash>=<day>=x.org=a@<our domain>``; an SRS address of another
forwarder becomes ``SRS1=<hash>=<that forwarder>==…@<our domain>``, so that a chain of forwarders never grows.
``reverse`` undoes it for bounces.

What it promises: ``reverse(forward(x)) == x``; nobody without a secret can make an address that ``reverse`` accepts,
so bounces cannot be used as a relay; an SRS0 address is void ``max_age_days`` after it was made. The hash is an
HMAC-SHA-256 cut to 40 bits and written in lower-case base32: no ``/``, and letters that survive a change of case. What
it covers is lower-cased first, since some hosts lower-case local parts. The first secret signs, all of them verify: put
a new one in front, take the old one away after ``max_age_days``.

Limits: a rewritten local part may be longer than the 64 octets of RFC 5321 4.5.3.1.1. It is sent so, as libsrs2 and
postsrsd do: the RFC asks receivers not to enforce the limit where they can, nearly all take it, and a stateless short
form could not hold the address; we take such addresses back (``mail.address`` knows them). A path that would pass the
254 octets of a path has no rewritten form: sent on as it is, SPF would pass for it wherever its domain trusts our
addresses, as those hosted here do, whoever wrote it.
SRS1 addresses carry no day: the forwarder that made the SRS0 inside checks that. Existing practice:
https://www.libsrs2.net/srs/srs.pdf.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

from forwarder.mail.address import MAX_PATH, AddressError, Path, parse_domain, parse_reverse_path

_OVERHEAD = 24  # octets at most that rewriting adds to a path and our domain
_HASH_LENGTH = 8  # base32 digits: 40 bits; a guess costs a RCPT, and 20 errors end a session
_DAY_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DAYS = 1024  # two base32 digits
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SKEW_DAYS = 1  # another of our machines may be past midnight already
_SRS0 = re.compile(r"SRS0[=+-]([^=]*)=([^=]*)=([^=]*)=(.*)", re.IGNORECASE | re.DOTALL)
_SRS1 = re.compile(r"SRS1[=+-]([^=]*)=([^=]*)=([=+-].*)", re.IGNORECASE | re.DOTALL)
_ANY = re.compile(r"SRS([01])[=+-]", re.IGNORECASE)


class SrsFault(StrEnum):
    """Why an address cannot be reversed."""

    NOT_SRS = "not an SRS address of this host"
    MALFORMED = "an SRS address that is not well formed"
    FORGED = "an SRS address whose hash is not ours"
    EXPIRED = "an SRS address that is too old"


class Srs:
    """Rewrites for one domain of ours. Without state: it only knows its secrets."""

    def __init__(self, secrets: Sequence[bytes], domain: str, max_age_days: int = 21) -> None:
        if not secrets or min(map(len, secrets)) < 16:
            raise ValueError("SRS needs at least one secret of 16 octets or more")
        if not 0 < max_age_days < _DAYS // 2:
            raise ValueError("the age of SRS addresses is from 1 to 511 days")
        self._secrets = tuple(secrets)
        self._domain = parse_domain(domain)
        self._max_age_days = max_age_days

    @property
    def domain(self) -> str:
        """The domain the rewritten paths have."""
        return self._domain

    def forward(self, path: Path, *, now: datetime) -> Path | None:
        """The reverse-path to send with, or None: too long. The null path and those of our own domain stay."""
        if path.is_null or not path.domain or path.domain == self._domain:
            return path
        local = self._chained(path) or self._wrapped(path, now)
        rewritten = Path(local=local, domain=self._domain)
        return rewritten if len(rewritten.wire().encode()) <= MAX_PATH else None

    def fits(self, path: Path) -> bool:
        """Whether ``forward`` has a form of a path that a client gives us; it is as long on any day."""
        octets = len(path.wire().encode()) + len(self._domain) + _OVERHEAD
        return octets <= MAX_PATH or self.forward(path, now=_EPOCH) is not None

    def _wrapped(self, path: Path, now: datetime) -> str:
        day = _day(now)
        stamp = _DAY_ALPHABET[day >> 5] + _DAY_ALPHABET[day & 31]
        digest = _digest(self._secrets[0], "SRS0", stamp, path.domain, path.local)
        return f"SRS0={digest}={stamp}={path.domain}={path.local}"

    def _chained(self, path: Path) -> str | None:
        """The SRS1 form of another forwarder's address; None for one that is none or only looks like it."""
        if _ANY.match(path.local) is None:
            return None
        if _SRS0.fullmatch(path.local):
            first_hop, inside = path.domain, path.local[4:]
        else:
            parts = _SRS1.fullmatch(path.local)
            if parts is None or not _is_domain(parts[2]):
                return None
            first_hop, inside = parts[2].lower(), parts[3]
        return f"SRS1={_digest(self._secrets[0], 'SRS1', first_hop, inside)}={first_hop}={inside}"

    def reverse(self, path: Path, *, now: datetime) -> Path | SrsFault:
        """The path an address of ours was made from, or why there is none.

        Mail that came by here twice, with another forwarder between, has an SRS1 address with one of our own inside.
        """
        kind = _ANY.match(path.local)
        if path.domain != self._domain or kind is None:
            return SrsFault.NOT_SRS
        if kind[1] == "0":
            return self._unwrap(path.local, now)
        inside = self._unchain(path.local)
        if isinstance(inside, Path) and inside.domain == self._domain:
            return self._unwrap(inside.local, now)
        return inside

    def _unwrap(self, text: str, now: datetime) -> Path | SrsFault:
        parts = _SRS0.fullmatch(text)
        if parts is None:
            return SrsFault.MALFORMED
        digest, stamp, domain, local = parts.groups()
        if not self._is_ours(digest, "SRS0", stamp, domain, local):
            return SrsFault.FORGED
        if len(stamp) != 2 or not set(stamp.upper()) <= set(_DAY_ALPHABET):
            return SrsFault.MALFORMED
        high, low = map(_DAY_ALPHABET.index, stamp.upper())
        age = (_day(now) - (high << 5 | low)) % _DAYS
        if self._max_age_days < age < _DAYS - _SKEW_DAYS:
            return SrsFault.EXPIRED
        return _restored(local, domain)

    def _unchain(self, text: str) -> Path | SrsFault:
        parts = _SRS1.fullmatch(text)
        if parts is None:
            return SrsFault.MALFORMED
        digest, first_hop, inside = parts.groups()
        if not self._is_ours(digest, "SRS1", first_hop, inside):
            return SrsFault.FORGED
        return _restored("SRS0" + inside, first_hop)

    def _is_ours(self, digest: str, *covered: str) -> bool:
        given = digest.lower().encode("utf-8", "replace")
        found = False
        for secret in self._secrets:  # all of them, always: the time tells nothing
            found |= hmac.compare_digest(given, _digest(secret, *covered).encode())
        return found


def _digest(secret: bytes, *covered: str) -> str:
    # "=" cannot occur in a stamp or a domain, so joining with it is unambiguous.
    # Not hmac.digest, which lets go of the interpreter lock for these few octets: having it again takes much longer.
    raw = hmac.new(secret, "=".join(covered).lower().encode("utf-8", "replace"), "sha256").digest()
    return base64.b32encode(raw[:5]).decode().lower()[:_HASH_LENGTH]


def _day(now: datetime) -> int:
    return (now - _EPOCH).days % _DAYS


def _is_domain(text: str) -> bool:
    try:
        parse_reverse_path(f"x@{text}", smtputf8=False)
    except AddressError:
        return False
    return True


def _restored(local: str, domain: str) -> Path | SrsFault:
    """What was inside, checked like any address: our hash proves who wrote it, not that it can be sent."""
    try:
        path = parse_reverse_path(Path(local=local, domain=domain).wire(), smtputf8=True)
    except AddressError:
        return SrsFault.MALFORMED
    return SrsFault.MALFORMED if path.is_null else path
