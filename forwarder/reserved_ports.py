"""The ports that a supervisor holds for its workers: bound, and listened on by nobody here.

A port that cannot be had is known before any worker runs, and port 0 is the same port in all of them. A socket that
does not listen takes no connection from those that do. Ports that a new configuration does not name any more stay
reserved until the end.

Fails with ``NodeError``, which names the address.
"""

import socket
from collections.abc import Sequence
from itertools import chain

from forwarder.config import HostPort, Settings
from forwarder.net.listening import bound_socket
from forwarder.node import NodeError
from forwarder.ports import overlap

_VARIABLES = {  # what tells the workers where each service listens
    "mx": "FORWARDER_MX__LISTEN",
    "api": "FORWARDER_API__LISTEN",
    "submission": "FORWARDER_SUBMISSION__LISTEN",
    "submission-tls": "FORWARDER_SUBMISSION__LISTEN_TLS",
}


class ReservedPorts:
    """The sockets of one supervisor."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._by_service: dict[str, list[tuple[str, int]]] = {}  # those of the start

    @property
    def addresses(self) -> list[HostPort]:
        """All that are held."""
        return [HostPort(*opened.getsockname()[:2]) for opened in self._sockets]

    def reserve(self, settings: Settings) -> dict[str, str]:
        """Bind the port of every listener; the variables that tell the workers what port 0 became."""
        told: dict[str, str] = {}
        for name, listeners in settings.listeners.items():
            for listener in listeners:
                opened = self._bind(listener)
                self._by_service.setdefault(name, []).append(opened.getsockname()[:2])
            if _anywhere(listeners):
                told[_VARIABLES[name]] = ",".join(str(HostPort(*at)) for at in self._by_service[name])
        return told

    def add(self, settings: Settings) -> None:
        """Bind what a new configuration names and is not held yet."""
        held = self.addresses
        for listener in chain.from_iterable(settings.listeners.values()):
            if listener.port and not any(overlap(listener, own) for own in held):
                self._bind(listener)

    def places(self, settings: Settings) -> dict[str, Sequence[tuple[str, int]]]:
        """Where each service listens by these settings; what has port 0 stays where it was bound at the start."""
        return {
            name: self._by_service.get(name, listeners) if _anywhere(listeners) else listeners
            for name, listeners in settings.listeners.items()
        }

    def free(self) -> None:
        """Close all of them."""
        for opened in self._sockets:
            opened.close()

    def _bind(self, listener: HostPort) -> socket.socket:
        try:
            opened = bound_socket(listener)
        except OSError as error:
            raise NodeError(error.strerror) from error
        self._sockets.append(opened)
        return opened


def _anywhere(listeners: Sequence[HostPort]) -> bool:
    return any(listener.port == 0 for listener in listeners)
