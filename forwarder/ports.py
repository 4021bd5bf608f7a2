"""Sockets to listen on: shared among our processes, and asked for only where the machine can have them.

``listening_socket`` binds without listening. A socket that is bound but does not listen takes no connection from those
that do, so the supervisor may hold the port while its workers serve on it.
"""

import ipaddress
import socket
from collections.abc import Collection
from itertools import chain

import structlog

from forwarder.config import HostPort, Settings
from forwarder.node import NodeError

log = structlog.get_logger("ports")


def listening_socket(address: HostPort, *, shared: bool = True) -> socket.socket:
    """A bound socket; ``shared``: other processes of ours may bind the port as well."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((address.host, address.port))
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def check_free(settings: Settings, *, ours: Collection[HostPort] = ()) -> None:
    """NodeError when somebody listens on a port of ours: SO_REUSEPORT would share it with another engine, unsaid.

    ``ours`` is what this node has open already. What overlaps with that cannot be asked for and is taken to be free.
    """
    for address in chain.from_iterable(settings.listeners.values()):
        if address.port == 0 or any(overlap(address, own) for own in ours):
            continue
        try:
            listening_socket(address, shared=False).close()
        except OSError as error:
            raise NodeError(f"cannot listen on {address}: {refusal(error)}") from error


def overlap(one: HostPort, other: HostPort) -> bool:
    """Whether a socket bound to one is, or for a name may be, in the way of the other; ``[::]`` is IPv6 only here."""
    if one.port != other.port or (":" in one.host) != (":" in other.host):
        return False
    try:
        first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    except ValueError:
        return True
    return first == second or first.is_unspecified or second.is_unspecified


def listenable(settings: Settings) -> Settings:
    """Without listeners on ``[::]`` where the machine has no IPv6, which the default would ask for in vain."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        log.warning("this machine has no IPv6; listening on IPv4 only")
        changed = {
            name: getattr(settings, name).model_copy(
                update={
                    key: tuple(at for at in getattr(getattr(settings, name), key) if at.host != "::")
                    for key in keys
                }
            )
            for name, keys in {"mx": ("listen",), "submission": ("listen", "listen_tls")}.items()
        }
        return settings.model_copy(update=changed)
    return settings


def refusal(error: OSError) -> str:
    """Why an address cannot be had, and what helps."""
    text = error.strerror or str(error)
    if isinstance(error, PermissionError):
        text += "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    return text
