"""config.toml and the environment -> one frozen Settings value; every default and every unit is here.

Promises: what ``load`` returns is complete and checked, so that no other room looks at a file or at the
environment for settings. An unknown key is an error, in the file and in the environment
alike; all problems are reported at once, each with where it stands, its key, what is wrong, and what to
write instead.

Units are written, never guessed: sizes ``"25 MiB"``, durations ``"5m"`` or ``"1h30m"``, listeners
``"host:port"`` or ``"[::]:25"``. The environment form of ``[mx] size_limit`` is
``FORWARDER_MX__SIZE_LIMIT``, of ``hostname`` ``FORWARDER_HOSTNAME``; lists are separated by commas. The
environment wins over the file.

Relative paths start at the working directory. The database's URL may hold a password and is left out of
``repr``.

    units.py     endpoints, sizes, durations
    settings.py  the sections and their defaults
    load.py      file and environment -> Settings, or a ConfigError for a person; in two steps, ``read`` and ``parse``
"""

from forwarder.config.load import ConfigError, Source, load, parse, read
from forwarder.config.settings import (
    MxSection,
    OutboundSection,
    Plan,
    Settings,
    SubmissionSection,
    run_folder,
)
from forwarder.config.units import HostPort

__all__ = [
    "ConfigError",
    "HostPort",
    "MxSection",
    "OutboundSection",
    "Plan",
    "Settings",
    "Source",
    "SubmissionSection",
    "load",
    "parse",
    "read",
    "run_folder",
]
