"""What ``forwarder check`` finds about the doors of this machine: the certificate, and the ports to listen on.

The ports are asked for as an engine would; what it has open already is read from ``data_dir``.
"""

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from forwarder.clock import utc_now
from forwarder.commands.finding import Finding

if TYPE_CHECKING:
    from forwarder.config import HostPort, Settings

CONNECT = 2.0  # seconds, to a port of this machine
RENEWED_BEFORE = timedelta(days=7)  # ACME clients renew a certificate weeks before its end


def check_listeners(settings: "Settings") -> Iterator[Finding]:
    """The certificate, then every listener that is configured, in order."""
    from forwarder.node import NodeError, open_listeners
    from forwarder.ports import has_ipv6, without_ipv6

    if settings.tls.configured:
        yield _certificate(settings)
    else:
        text = "no certificate: mail comes in clear, and submission does not listen; set [tls] certificate and key"
        yield Finding.advice("tls", text)
    try:
        engine = open_listeners(settings.data_dir)
    except NodeError as error:
        engine = {}  # nobody can tell
        yield Finding.wrong("data_dir", str(error))
    opened = (settings if has_ipv6() else without_ipv6(settings)).listeners
    for name, listeners in settings.listeners.items():
        for at in listeners:
            if at in opened[name]:
                yield _port(name, at, engine)
            else:
                text = "is left out, since this machine has no IPv6; mail comes by IPv4"
                yield Finding.advice(f"{name} {at}", text)


def _certificate(settings: "Settings") -> Finding:
    from pathlib import Path

    from forwarder.mail.dane import is_named
    from forwarder.net.tls import ServerTls, TlsFilesError, served

    file = Path(settings.tls.certificate)
    try:
        ServerTls(file, Path(settings.tls.key))
        since, until, names = served(file)
    except TlsFilesError as error:
        return Finding.wrong("tls", f"{error}; the engine does not start with them")
    except (OSError, ValueError):  # OpenSSL reads more than the other library
        return Finding.fine("tls", f"{file} and its key can be used")
    now, renew = utc_now(), "renew it; the new files are picked up without a restart"
    if not since <= now < until:
        when = f"ended on {until:%Y-%m-%d}" if now >= until else f"begins on {since:%Y-%m-%d}"
        return Finding.wrong("tls", f"{file} {when}, so that mail programs refuse it; {renew}")
    if not any(is_named(settings.hostname, name.lower()) for name in names):
        what = f"is for {', '.join(names)}, not for" if names else "does not name"
        text = f"{file} {what} {settings.hostname}; mail programs that are told this name refuse it"
        return Finding.advice("tls", text)
    if until - now < RENEWED_BEFORE:
        return Finding.advice("tls", f"{file} ends on {until:%Y-%m-%d}; {renew}")
    return Finding.fine("tls", f"{file} and its key can be used until {until:%Y-%m-%d}")


def _port(name: str, at: "HostPort", engine: Mapping[str, Sequence[str]] | None) -> Finding:
    """Whether the port can be had, or is had by the ``engine`` that runs; None: none does."""
    from forwarder.net.listening import bound_socket

    about = f"{name} {at}"
    try:
        bound_socket(at, shared=False).close()
    except OSError as error:
        # Without the privilege for low ports the system refuses one before it looks whether it is taken. Under systemd
        # the engine has that privilege, and a command of the same user has not.
        forbidden = isinstance(error, PermissionError)
        if error.errno == errno.EADDRINUSE or (forbidden and _answers(at)):
            if engine is None:
                text = "is in use, but no engine runs with this data_dir; stop what holds it (ss -ltnp)"
                return Finding.wrong(about, text)
            if str(at) in engine.get(name, ()):
                return Finding.fine(about, "is open; the engine runs")
            return Finding.advice(about, "is in use: by this engine, or else stop what holds it (ss -ltnp)")
        text = "needs a privilege: run as root, or give CAP_NET_BIND_SERVICE as deploy/forwarder.service does"
        return Finding.wrong(about, text if forbidden else str(error.strerror))
    return Finding.fine(about, "is free; the engine does not run here now")


def _answers(at: "HostPort") -> bool:
    """Whether somebody on this machine takes connections there."""
    from forwarder.net.listening import local_host

    try:
        socket.create_connection((local_host(at), at.port), timeout=CONNECT).close()
    except OSError:
        return False
    return True
