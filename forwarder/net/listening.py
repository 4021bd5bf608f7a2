"""Sockets to listen on, shared among the processes of one engine (SO_REUSEPORT).

A socket that is bound but does not listen takes no connection from those that do: whoever only wants to hold a port, or
to know that it can be had, never listens.

libuv takes one connection through a listening descriptor in a turn of the loop, and a turn lasts as long as those who
are served make it: a few dozen that keep us busy, and who comes next waits behind all that came before. So a loop
listens through several descriptors of one socket (``descriptors_of``), at the price of a system call each.
"""

import errno
import socket

from forwarder.config import HostPort

AT_ONCE = 8  # connections taken in one turn of the loop

_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what listens everywhere listens there


def bound_socket(at: HostPort, *, shared: bool = True) -> socket.socket:
    """A socket bound to an address, not listening; ``shared``: other processes of ours may bind it as well.

    OSError, of the kind and number that the system gave, says which address cannot be had, why, and what helps.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            at.host or None, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _named(error, at) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 has a socket of its own
        opened.setblocking(False)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _named(error, at) from error
    return opened


def descriptors_of(listener: socket.socket) -> list[socket.socket]:
    """The socket and its duplicates, for a loop to listen through; OSError as above, and none of them is left open."""
    found, at = [listener], HostPort(*listener.getsockname()[:2])
    try:
        found.extend(listener.dup() for _ in range(AT_ONCE - 1))
    except OSError as error:
        for opened in found:
            opened.close()
        raise _named(error, at) from error
    return found


def local_host(at: HostPort) -> str:
    """The host at which a process of this machine reaches what listens there."""
    return _LOCAL.get(at.host, at.host)


def _named(error: OSError, at: HostPort) -> OSError:
    text = f"cannot listen on {at}: {error.strerror}"
    if isinstance(error, PermissionError):
        text += "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    elif error.errno == errno.EADDRINUSE:
        text += "; stop what holds it (ss -ltnp shows that), or name another port"
    elif error.errno == errno.EADDRNOTAVAIL:
        text += "; this machine has no such address"
    return OSError(error.errno, text)
