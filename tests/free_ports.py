"""Ports for what is started a moment later, or again and again at the same place.

Asked for as port 0, the kernel gives one of those that outgoing connections take as their own: whatever connects
meanwhile may sit on it when it is to be bound. So they are taken from below that range.
"""

import random
import socket
from contextlib import suppress
from pathlib import Path

_LOWEST = 10_000


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on and no outgoing connection will take."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if ephemeral <= _LOWEST:
        raise RuntimeError(
            f"outgoing connections may take any port from {ephemeral} on; the tests need some between {_LOWEST} and "
            "there: sysctl net.ipv4.ip_local_port_range='32768 60999'"
        )
    for _ in range(100):
        port = random.randrange(_LOWEST, ephemeral)
        with suppress(OSError), socket.create_server((host, port)):
            return port
    raise RuntimeError(f"a hundred ports below {ephemeral} are all in use")
