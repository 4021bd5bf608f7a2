"""The listeners: sockets, the sessions that live on them, and how they end.

``Server`` opens every listen address in the running loop (no thread, no loop of its own) with SO_REUSEPORT, so that
several worker processes share a port and the kernel spreads connections among them.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forwarder.config import HostPort


class Server:
    """One service (MX or submission) on one or several addresses."""

    def __init__(
        self, *, name: str, listen: "Sequence[HostPort]", make: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self.name = name
        self.addresses: list[tuple[str, int]] = []  # what is really listened on, once started
        self._listen = listen
        self._make = make

    async def start(self) -> None:
        """Open the sockets; OSError names the address that cannot be had."""

    def stop_accepting(self) -> None:
        """Close the listening sockets; idle sessions are told 421 4.3.2."""

    async def drain(self, grace: timedelta) -> None:
        """Stop accepting, let mail in flight have its real answer, close what is left after the grace."""
