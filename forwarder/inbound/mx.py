"""The MX dialogue: what port 25 answers to MAIL, RCPT and DATA."""

from forwarder.inbound.intake import Rooms
from forwarder.inbound.server import Server


def build_server(rooms: Rooms) -> Server:
    """The server of the MX listeners of the settings; nothing is opened yet."""
    return Server(name="mx", listen=rooms.settings.mx.listen, make=lambda: __import__("asyncio").Protocol())
