"""The submission dialogue: what ports 587 and 465 answer."""

from forwarder.inbound.intake import Rooms
from forwarder.inbound.server import Server


def build_servers(rooms: Rooms) -> list[Server]:
    """One server for STARTTLS, one for TLS from the first byte, as far as the settings ask for them."""
    return []
