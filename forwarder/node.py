"""One node: a data_dir that one engine at a time may use, the node's id, and the ports that were really opened.

``<data_dir>/run`` holds

    lock        an exclusive flock for as long as any process of this engine lives: the supervisor takes it and hands
                the descriptor to its workers, so that a supervisor that was killed does not open the door while its
                workers still deliver
    node        a number of this folder's own, of which the id is made that this node's workers have in the database
    tally-…     what the processes count for ``/metrics`` (``forwarder.tally``)
    ports.json  where the listeners are, for those who asked for port 0 (tests, the demo) and for ``forwarder check``

Whoever holds the lock knows that every worker row of this node in the database belongs to the dead. ``notify`` tells
systemd that the engine serves.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from forwarder.config import HostPort, run_folder
from forwarder.keyring import create_private
from forwarder.store.engine import check_access
from forwarder.tally import Tally

log = structlog.get_logger("node")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A unit with ProtectSystem=strict, as deploy/ has it, shows the engine a disk that is in order as one that is not.
_READ_ONLY = (
    "mount it so that it can be written (the kernel's log may say why it was not: dmesg); under systemd, a data_dir "
    "that is not in the unit's StateDirectory has to stand in its ReadWritePaths="
)
LOCK_PATIENCE = 10.0  # seconds: longer than the orphans of a killed supervisor need to leave


class NodeError(Exception):
    """This node cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of the processes of a node this engine is in."""

    region: int = 0  # in the shared table of clients
    regions: int = 1
    worker_id: str = ""  # "": a fresh one
    successor_of: str = ""  # the id of a worker that died: its leases are released at start

    def shown(self) -> dict[str, Any]:
        """What tells its log lines from those of others; nothing where there are none."""
        return {"process": self.region} if self.regions > 1 else {}


class NodeLock:
    """The lock of a data_dir; released by ``release`` or by the end of every process that holds its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(
        cls,
        data_dir: Path,
        *,
        patience: float = LOCK_PATIENCE,
        waiting: Callable[[], None] = lambda: None,
    ) -> "NodeLock":
        """Take the lock, waiting up to ``patience`` seconds; ``waiting`` is called once when it is not free."""
        folder = made_run_folder(data_dir)
        check_usable(data_dir)
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise NodeError(_unusable(folder / "lock", error)) from error
        deadline = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise NodeError(
                        f"another engine is running with data_dir {data_dir}; "
                        "stop it first, or give this one a data_dir of its own"
                    ) from None
            else:
                return cls(descriptor)
            if not told:
                waiting()
                told = True
            time.sleep(0.05)

    def release(self) -> None:
        """Let another engine have the folder."""
        os.close(self.descriptor)


def open_listeners(data_dir: Path) -> dict[str, list[str]] | None:
    """Where the engine that runs with this folder listens, as far as ``write_ports`` said; None while none runs.

    NodeError where the folder holds what an engine could not use. Makes nothing.
    """
    folder = run_folder(data_dir)
    check_usable(data_dir)
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            said = json.loads((folder / "ports.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # it is starting, or its disk is full
            return {}
        return {name: found for name, found in said.items() if name != "pid"}
    finally:
        os.close(descriptor)
    return None


def check_usable(data_dir: Path) -> None:
    """NodeError where another user's files are in ``run``, as root's are once it has served here by hand."""
    folder = run_folder(data_dir)
    try:
        # Whoever owns ports.json: it is replaced and never opened for writing.
        files = [path for path in folder.iterdir() if not path.name.startswith("ports.")]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise NodeError(_unusable(folder, error)) from error
    for path in sorted(files):
        try:
            check_access(path)
        except OSError as error:
            raise NodeError(_unusable(path, error)) from error


def _unusable(path: Path, error: OSError) -> str:
    cannot = f"{path} cannot be used ({error.strerror})"
    if error.errno == errno.EROFS:
        return f"{cannot}; {_READ_ONLY}"
    mend = "everything in data_dir must belong to the user that runs this, so give it to that user (chown -R)"
    return f"{cannot}; {mend}"


def made_run_folder(data_dir: Path) -> Path:
    """``run_folder``, made where it is missing; NodeError."""
    folder = run_folder(data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        owned = "data_dir must be writable for the user that runs this"
        mend = _READ_ONLY if error.errno == errno.EROFS else owned
        raise NodeError(f"{folder} cannot be made ({error.strerror}); {mend}") from error
    return folder


def node_id(data_dir: Path) -> str:
    """The node's id: of this folder in this machine, for as long as the machine runs.

    Whoever holds the lock takes the leases of all that has the id, so no two locks may share it. A folder is copied
    with what is kept in it, as in the image of a machine: its place in the file system and the machine's boot tell the
    copies from each other. Workers of before a boot are found dead by their silence, as those of other nodes are.
    """
    folder = made_run_folder(data_dir)
    path = folder / "node"
    if not path.exists():
        create_private(path, os.urandom(16).hex().encode())
    place = folder.stat()
    parts = path.read_text(encoding="ascii").strip(), _boot(), place.st_dev, place.st_ino
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:32]


def _boot() -> str:
    """What no two running machines share."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()  # not Linux


def write_ports(data_dir: Path, ports: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """Say where the listeners ``mx``, ``submission``, ``submission-tls`` and ``api`` are, at once whole.

    Where that cannot be written, on a full disk, a warning takes its place: mail does not need it.
    """
    shown = {name: [str(HostPort(host, port)) for host, port in found] for name, found in ports.items()}
    try:
        path = made_run_folder(data_dir) / "ports.json"
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            draft.write_text(json.dumps({"pid": os.getpid(), **shown}), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except (NodeError, OSError) as error:
        log.warning("where the ports are cannot be written down", reason=str(error))


def forget_ports(data_dir: Path) -> None:
    """Take back what ``write_ports`` said."""
    try:
        (made_run_folder(data_dir) / "ports.json").unlink(missing_ok=True)
    except (NodeError, OSError) as error:
        log.warning("where the ports were stays written down", reason=str(error))


def shared_tally(data_dir: Path, place: Place) -> Tally:
    """The counters of all processes of this node; on a full disk, with a warning, those of one alone."""
    try:
        return Tally.shared(made_run_folder(data_dir), region=place.region, regions=place.regions)
    except (NodeError, OSError) as error:
        log.warning("what this process counts is not shared with the others", reason=str(error))
        return Tally()


def notify(state: str) -> None:
    """Tell systemd, when it is systemd that waits (``Type=notify``); where nobody hears it, a warning is all."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
                link.connect("\0" + address[1:] if address.startswith("@") else address)
                link.sendall(state.encode())
        except OSError as error:
            log.warning("NOTIFY_SOCKET cannot be told", state=state, reason=str(error))
