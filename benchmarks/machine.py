"""What machine this is, what is missing on it, and how much processor time a set of process trees has used."""

import asyncio
import contextlib
import os
import platform
import runpy
import shutil
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

NEEDED = {
    "smtp-source": "postfix",
    "smtp-sink": "postfix",
    "postfix": "postfix",
    "postmap": "postfix",
    "opendkim": "opendkim",
    "postsrsd": "postsrsd",
    "openssl": "openssl",
}
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_TICKS = os.sysconf("SC_CLK_TCK")


def missing() -> dict[str, str]:
    """The programs that are not here, each with the Debian package that holds it."""
    return {name: package for name, package in NEEDED.items() if shutil.which(name, path=PATH) is None}


def environment() -> dict[str, str]:
    """Ours, with the places where Debian keeps these programs."""
    return {**os.environ, "PATH": PATH}


@asynccontextmanager
async def running(*command: str, stdout: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program for as long as the block runs."""
    process = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=stdout)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def listens(port: int, host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def wait_for_port(port: int, *, seconds: float, host: str = "127.0.0.1") -> None:
    """Return when something listens; RuntimeError when nothing does in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if listens(port, host):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on {host}:{port} after {seconds:.0f} s")


_interpreter = runpy.run_path(str(Path(__file__).parent.parent / "deploy" / "interpreter.py"))


def other_python() -> str | None:
    """Another build of the interpreter that runs this, of the same version: the distribution's, or that of the PATH."""
    asked = _interpreter["asked"]
    ours = asked(sys.executable)
    other: str = _interpreter["FIRST" if ours["prefix"] == "/usr" else "DISTRIBUTIONS"]
    theirs = asked(other)
    if theirs is None or theirs["version"] != ours["version"] or theirs["prefix"] == ours["prefix"]:
        return None
    return shutil.which(other)


def build(python: str) -> str:
    """How an interpreter was built, in a few words for a table."""
    said = _interpreter["asked"](python)
    if said["prefix"] == "/usr":
        return "the distribution's Python"
    return f"a Python built {'with' if said['optimised'] else 'without'} optimisation"


def facts() -> list[tuple[str, str]]:
    """The machine in a few lines, for the head of the results."""
    model, memory = "unknown", "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = f"{int(line.split()[1]) / 2**20:.0f} GiB"
            break
    return [
        ("processor", f"{model}, {os.cpu_count()} cores"),
        ("memory", memory),
        ("kernel", platform.release()),
        ("python", f"{sys.version.split()[0]}, {build(sys.executable)}"),
        ("sqlite", sqlite3.sqlite_version),
        ("openssl", ssl.OPENSSL_VERSION),
    ]


def _stat(pid: int) -> tuple[int, float, float]:
    """(parent, own seconds, seconds of children already reaped) of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (
        int(fields[1]),
        (int(fields[11]) + int(fields[12])) / _TICKS,
        (int(fields[13]) + int(fields[14])) / _TICKS,
    )


def tree(roots: Iterable[int]) -> set[int]:
    """The processes ``roots`` and all that descend from them and still live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(_stat(int(entry.name))[0], []).append(int(entry.name))
            except OSError:
                continue  # it ended while we looked
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Processor seconds, user and system, of the trees below ``roots``, ended children included."""
    total = 0.0
    for pid in tree(roots):
        try:
            _, own, reaped = _stat(pid)
        except OSError:
            continue  # ended; its parent has it as reaped
        total += own + reaped
    return total


def memory_bytes(roots: Iterable[int]) -> int:
    """Memory of the trees below ``roots``: proportional set size, in which a shared page counts once."""
    total = 0
    for pid in tree(roots):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
                    break
        except OSError:
            continue  # it ended, or is a thread of the kernel
    return total
