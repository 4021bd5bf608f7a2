"""DNS questions with three answers: found, not found, cannot tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from forwarder.config import HostPort

Record = TypeVar("Record", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mx:
    """One MX record; ``host`` is lower case without the final dot, "" for the root (a null MX)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[Record]):
    """Records, at least one; ``ttl`` is the lifetime they came with, after our bounds."""

    records: tuple[Record, ...]
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """The DNS says: there is no such record; ``nxdomain``: no such name at all."""

    nxdomain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotTell:
    """Nobody answered usefully; never to be taken for a no."""

    reason: str


Answer = Found[Record] | NotFound | CannotTell


class Resolver:
    """Cached, coalesced, bounded look-ups."""

    def __init__(
        self,
        nameservers: Sequence[HostPort] = (),
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        deadline: timedelta = timedelta(seconds=8),
        cache_size: int = 20_000,
    ) -> None:
        raise RuntimeError("being written")

    async def mx(self, domain: str) -> Answer[Mx]:
        """The MX records of a domain."""
        raise RuntimeError("being written")

    async def a(self, host: str) -> Answer[str]:
        """IPv4 addresses."""
        raise RuntimeError("being written")

    async def aaaa(self, host: str) -> Answer[str]:
        """IPv6 addresses."""
        raise RuntimeError("being written")

    async def addresses(self, host: str) -> Answer[str]:
        """IPv6 and IPv4 addresses, alternating."""
        raise RuntimeError("being written")

    async def txt(self, name: str) -> Answer[bytes]:
        """TXT records, the strings of each joined."""
        raise RuntimeError("being written")

    async def ns(self, domain: str) -> Answer[str]:
        """Name servers of a zone."""
        raise RuntimeError("being written")

    async def cname(self, name: str) -> Answer[str]:
        """The alias target of this very name."""
        raise RuntimeError("being written")

    async def ptr(self, address: str) -> Answer[str]:
        """Names of an address."""
        raise RuntimeError("being written")

    async def authoritative(self, name: str, kind: str) -> Answer[str] | Answer[bytes] | Answer[Mx]:
        """Fresh: asked of the zone's own servers; kind is "MX", "TXT", "A", "AAAA", "CNAME" or "NS"."""
        raise RuntimeError("being written")

    def forget(self) -> None:
        """Empty the cache."""
        raise RuntimeError("being written")
