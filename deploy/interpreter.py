"""Which Python `make` makes .venv of: prints its name or path. Runs on any Python from 3.6 on.

python3, as the PATH has it, unless that was compiled without optimisation, as version managers do by default, or is too
old, and the distribution's could run the engine: a Python without optimisation takes about a tenth more processor a
message (benchmarks/results.md).
"""

import json
import subprocess
import sys

OLDEST = (3, 11)
FIRST = "python3"
DISTRIBUTIONS = "/usr/bin/python3"

# Distributions optimise theirs without saying so; others are built with this switch, or without.
_QUESTION = """
import importlib.util, json, os, sys, sysconfig
prefix = os.path.realpath(sys.base_prefix)
print(json.dumps({
    "version": sys.version_info[:2],
    "prefix": prefix,
    "optimised": prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


def asked(python):
    """What an interpreter says of itself; None where there is none."""
    try:
        answer = subprocess.run([python, "-c", _QUESTION], stdout=subprocess.PIPE, check=True)  # noqa: S603 - of ours
    except (OSError, subprocess.CalledProcessError):
        return None
    return json.loads(answer.stdout.decode())


def chosen(first, distributions):
    """FIRST or DISTRIBUTIONS, from what each says of itself."""
    if distributions is None or tuple(distributions["version"]) < OLDEST or not distributions["venv"]:
        return FIRST
    if first is None or tuple(first["version"]) < OLDEST or not first["optimised"]:
        return DISTRIBUTIONS
    return FIRST


if __name__ == "__main__":
    python = chosen(asked(FIRST), asked(DISTRIBUTIONS))
    if python != FIRST:
        sys.stderr.write(
            f"Taking {python}: {FIRST} on the PATH is too old, or was compiled without optimisation. "
            f"To have it all the same: make PYTHON={FIRST}\n"
        )
    sys.stdout.write(python + "\n")
