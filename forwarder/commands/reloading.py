"""``forwarder check --reload``: whether the engine that runs here would take the configuration as it is written now.

SIGHUP has no answer: a configuration that cannot be used is told in the log alone, and the old one stays. So the unit
asks this first, as the engine's user and with its privileges, and ``systemctl reload`` fails with the reason.

Nothing is asked beside this machine, since a reload must not fail for what it does not need. So two refusals are not
foreseen: a database that is away, and another ``[database] url``, which only a restart takes.
"""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from forwarder.config import Settings


def check_reload(settings: "Settings") -> None:
    """Nothing where a reload would be heeded; else Failure, KeyringError or NodeError say why it would not."""
    from forwarder.config.units import parse_host_port
    from forwarder.keyring import open_keyring
    from forwarder.net.tls import ServerTls, TlsFilesError
    from forwarder.node import open_listeners
    from forwarder.ports import check_free, listenable

    opened = open_listeners(settings.data_dir)
    if opened is None:
        raise Failure(
            f"no engine runs with {settings.data_dir.absolute()}; a data_dir is changed by a restart, not by a reload"
        )
    open_keyring(settings)
    ours = [parse_host_port(at) for at in chain.from_iterable(opened.values())]
    check_free(listenable(settings), ours=ours)
    if settings.tls.configured:
        try:
            ServerTls(Path(settings.tls.certificate), Path(settings.tls.key))
        except TlsFilesError as error:
            raise Failure(f"{error}; [tls] names PEM files that this user can read") from error
