"""The ports that the configuration names: whether this machine can have them, and nobody else holds them."""

import ipaddress
import socket
from collections.abc import Collection, Sequence
from itertools import chain

import structlog

from forwarder.config import HostPort, Settings
from forwarder.net.listening import bound_socket
from forwarder.node import NodeError

log = structlog.get_logger("ports")


def check_free(settings: Settings, *, ours: Collection[HostPort] = ()) -> None:
    """NodeError when somebody listens on a port of ours: SO_REUSEPORT would share it with another engine, unsaid.

    ``ours`` is what this node has open already. What overlaps with that cannot be asked for and is taken to be free.
    Two listeners of ours would share a port in the same way: whoever connects would meet either.
    """
    _check_distinct(settings)
    for address in chain.from_iterable(settings.listeners.values()):
        if address.port == 0 or any(overlap(address, own) for own in ours):
            continue
        try:
            bound_socket(address, shared=False).close()
        except OSError as error:
            raise NodeError(error.strerror) from error


def _check_distinct(settings: Settings) -> None:
    """By what the names stand for; the texts are compared where the configuration is read."""
    known: dict[tuple[object, ...], HostPort] = {}
    for at in chain.from_iterable(settings.listeners.values()):
        try:
            family, *_, address = socket.getaddrinfo(
                at.host, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError:
            continue  # whoever binds it says so
        other = known.setdefault((family, address), at)
        if at.port and other is not at:
            raise NodeError(f"{other} and {at} are one address; give each listener a port of its own")


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
    if has_ipv6():
        return settings
    log.warning("this machine has no IPv6; listening on IPv4 only")
    return without_ipv6(settings)


def has_ipv6() -> bool:
    """Whether this machine has IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def without_ipv6(settings: Settings) -> Settings:
    """Without the listeners on ``[::]`` that mail could do without."""

    def kept(listeners: Sequence[HostPort]) -> tuple[HostPort, ...]:
        return tuple(at for at in listeners if at.host != "::")

    mx, submission = settings.mx, settings.submission
    return settings.model_copy(
        update={
            "mx": mx.model_copy(update={"listen": kept(mx.listen)}),
            "submission": submission.model_copy(
                update={"listen": kept(submission.listen), "listen_tls": kept(submission.listen_tls)}
            ),
        }
    )
