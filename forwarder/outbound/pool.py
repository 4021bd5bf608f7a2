"""Open sessions, kept for a few seconds and used again."""

from forwarder.config import OutboundSection
from forwarder.net.smtp_client import Session
from forwarder.outbound.route import Route


class Pool:
    """Sessions by (address, port)."""

    def __init__(self, settings: OutboundSection, *, hello: str) -> None:
        raise RuntimeError("being written")

    def reuse(self, route: Route) -> Session | None:
        """An idle, live session to one of the route's hosts; the caller owns it until ``release``."""
        raise RuntimeError("being written")

    async def open(self, route: Route, host: str, address: str) -> Session:
        """A new session; raises ``SessionFault``; an opportunistic handshake that fails is repeated in clear."""
        raise RuntimeError("being written")

    def release(self, route: Route, session: Session) -> None:
        """Give a session back; a broken or worn one is closed."""
        raise RuntimeError("being written")

    async def close(self) -> None:
        """QUIT everything idle; sessions released later are closed at once."""
        raise RuntimeError("being written")
