"""A guarded HTTP client for webhooks."""

from collections.abc import Mapping
from datetime import timedelta

from forwarder.net.dns import Resolver


class Blocked(Exception):
    """The URL leads where we do not go; str() is a sentence for a person."""


class Unreachable(Exception):
    """No answer within bounds; str() is a sentence for a person."""


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Raise ``Blocked`` for a URL that can be refused without asking the DNS."""
    raise RuntimeError("being written")


class GuardedClient:
    """POSTs to public addresses only."""

    def __init__(self, resolver: Resolver, *, allow_private: bool) -> None:
        raise RuntimeError("being written")

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout: timedelta
    ) -> tuple[int, str]:
        """The status and an excerpt of the answer; ``Blocked`` or ``Unreachable``."""
        raise RuntimeError("being written")

    async def close(self) -> None:
        """Close what is open."""
        raise RuntimeError("being written")
