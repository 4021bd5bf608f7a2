"""The secrets a node keeps on disk: SRS secrets, the service's DKIM keys, the key that seals keys in the database.

They live in ``<data_dir>/keys`` (folder 0700, files 0600):

    srs                 one secret a line, newest first; the first signs, all are accepted. Rotate: put a new line on
                        top, reload, and drop the oldest after ``srs.max_age_days``.
    dkim-<selector>.pem the service's private keys, ``<dkim.selector>1`` RSA and ``<dkim.selector>2`` Ed25519
    store.key           seals the domains' private DKIM keys in the database

Opening never makes one: whether keys that are missing are new or lost is for ``custody`` to say, which asks the
database. Promises: two processes that make keys at once end with the same ones, because a key appears by ``link`` of a
file that is already whole and synced, and whoever comes second reads what is there; nothing is ever overwritten. A key
file that others may read is tightened. Nodes that share a database must share this folder: copy it.

Fails with ``KeyringError``, whose text says which file and what to do, and holds nothing of the key.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forwarder.config import Settings
from forwarder.mail import seal

RENEW = "make-new-keys"  # in data_dir: a person says that what is missing or does not open is to be made anew
_OWNED = "it must belong to the user that runs this, with mode 0600 (a folder: 0700)"


class KeyringError(Exception):
    """A key cannot be read or made; the text is for the person who runs the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The secrets, loaded; never printed."""

    srs_secrets: tuple[bytes, ...] = field(repr=False)  # newest first
    service: tuple[seal.Signer, ...] = field(repr=False)  # one for each of dkim.algorithms, in that order
    store_key: bytes = field(repr=False)  # 32 octets

    def same_as(self, other: "Keyring") -> bool:
        """Whether both hold the same secrets; loaded keys do not compare by what they hold."""

        def held(one: "Keyring") -> tuple[object, ...]:
            public = tuple(seal.public_record(signer.key) for signer in one.service)
            return (one.srs_secrets, one.store_key, public)

        return held(self) == held(other)


def open_keyring(settings: Settings) -> Keyring:
    """The node's keys as they are on disk. Loading an RSA key takes some 40 ms."""
    missing = missing_keys(settings)
    if missing:
        raise KeyringError(lost_keys(settings, missing))
    folder = keys_folder(settings)
    return Keyring(
        srs_secrets=_srs_secrets(folder / "srs"),
        service=tuple(_signer(folder, settings, algorithm) for algorithm in settings.dkim.algorithms),
        store_key=open_store_key(settings),
    )


def keys_at_hand(settings: Settings) -> Keyring | None:
    """The keys, or None where they cannot be opened yet: for who has something else to wait for."""
    try:
        return open_keyring(settings)
    except KeyringError:
        return None


def missing_keys(settings: Settings) -> list[str]:
    """The names of the key files that this configuration needs and that are not there."""
    folder = keys_folder(settings)
    try:
        return [name for name in _files(settings) if not (folder / name).exists()]
    except OSError as error:
        raise KeyringError(f"{folder} cannot be read ({error.strerror}); {_OWNED}") from error


def make_missing_keys(settings: Settings) -> None:
    """Make what is not there. Takes some 100 ms when an RSA key is made."""
    folder = keys_folder(settings)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyringError(
            f"{folder} cannot be made ({error.strerror}); data_dir must be writable for the user that runs this"
        ) from error
    for name in missing_keys(settings):
        try:
            create_private(folder / name, _files(settings)[name]())
        except OSError as error:
            raise KeyringError(f"{folder / name} cannot be made ({error.strerror}); {_OWNED}") from error


def lost_keys(settings: Settings, missing: Sequence[str]) -> str:
    """What to do about keys that are not there and are not ours to make."""
    renewed = "lost for good"
    if all(name.endswith(".pem") for name in missing):
        renewed += ", or new because [dkim] selector or algorithms changed"
    return (
        f"{keys_folder(settings).absolute()} lacks {', '.join(missing)}, and keys are made by themselves only while "
        f"the database holds no domain; {way_on(settings, renewed)}"
    )


def way_on(settings: Settings, renewed: str) -> str:
    """How keys come back, and how new ones are made on purpose."""
    marker = (settings.data_dir / RENEW).absolute()
    return (
        f"restore {keys_folder(settings).absolute()} from the backup, or copy it from another machine with this "
        f"database. If they are {renewed}: touch {marker}, start again, and publish the DKIM records that "
        "`forwarder domain dns NAME` prints"
    )


def keys_folder(settings: Settings) -> Path:
    """Where the private keys of this machine are: to be backed up, and readable by nobody else."""
    return settings.data_dir / "keys"


def service_selector(settings: Settings, algorithm: str) -> str:
    """The selector under which the service's key of ``algorithm`` is published."""
    return f"{settings.dkim.selector}{1 if algorithm == 'rsa' else 2}"


def open_store_key(settings: Settings) -> bytes:
    """The key of the ``Vault``: 32 octets."""
    path = keys_folder(settings) / "store.key"
    try:
        key = bytes.fromhex(_read(path).strip().decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise KeyringError(f"{path} must hold 64 hexadecimal digits; restore it from a backup")
    return key


def _files(settings: Settings) -> dict[str, Callable[[], bytes]]:
    """Every file, and how it is made."""

    def service_key(algorithm: seal.Algorithm) -> Callable[[], bytes]:
        return lambda: seal.generate(algorithm).pem

    made: dict[str, Callable[[], bytes]] = {"srs": _random_line}
    for algorithm in settings.dkim.algorithms:
        made[f"dkim-{service_selector(settings, algorithm)}.pem"] = service_key(algorithm)
    return made | {"store.key": _random_line}


def _random_line() -> bytes:
    return secrets.token_hex(32).encode() + b"\n"


def _srs_secrets(path: Path) -> tuple[bytes, ...]:
    text = _read(path)
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found or any(len(secret) < 16 for secret in found):
        raise KeyringError(f"{path} must hold one secret of at least 16 characters a line, newest first")
    return found


def _signer(folder: Path, settings: Settings, algorithm: str) -> seal.Signer:
    selector = service_selector(settings, algorithm)
    path = folder / f"dkim-{selector}.pem"
    pem = _read(path)
    try:
        signer = seal.Signer(domain=settings.dkim.domain, selector=selector, key=seal.load_key(pem))
    except seal.UnusableKeyError as error:
        raise KeyringError(f"{path}: {error}; restore it from a backup") from error
    if not signer.algorithm.startswith(algorithm):
        raise KeyringError(
            f"{path} holds a key for {signer.algorithm}, not for {algorithm}; restore it from a backup"
        )
    return signer


def _read(path: Path) -> bytes:
    try:
        for private, mode in ((path.parent, 0o700), (path, 0o600)):
            if private.stat().st_mode & 0o077:
                private.chmod(mode)
        return path.read_bytes()
    except OSError as error:
        raise KeyringError(f"{path} cannot be read ({error.strerror}); {_OWNED}") from error


def create_private(path: Path, content: bytes) -> bool:
    """Make ``path`` (mode 0600) durably and at once whole; False when it was there already, untouched."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
