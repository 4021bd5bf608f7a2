"""The secrets a node keeps on disk: SRS secrets, the service's DKIM keys, the key that seals keys in the database.

They live in ``<data_dir>/keys`` (folder 0700, files 0600) and are made at first use:

    srs                 one secret a line, newest first; the first signs, all are accepted. Rotate: put a new line on
                        top, and drop the oldest after ``srs.max_age_days``.
    dkim-<selector>.pem the service's private keys, ``<dkim.selector>1`` RSA and ``<dkim.selector>2`` Ed25519
    store.key           seals the domains' private DKIM keys in the database

Promises: two processes that start at once end with the same keys, because a key appears by ``link`` of a file that
is already whole and synced, and whoever comes second reads what is there; nothing is ever overwritten. A key file
that others may read is tightened. Nodes that share a database must share this folder: copy it.

Fails with ``KeyringError``, whose text says which file and what to do, and holds nothing of the key.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forwarder.config import Settings
from forwarder.mail import seal


class KeyringError(Exception):
    """A key cannot be read or made; the text is for the person who runs the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The secrets, loaded; never printed."""

    srs_secrets: tuple[bytes, ...] = field(repr=False)  # newest first
    service: tuple[seal.Signer, ...] = field(repr=False)  # one for each of dkim.algorithms, in that order
    store_key: bytes = field(repr=False)  # 32 octets


def open_keyring(settings: Settings) -> Keyring:
    """The node's keys, made first where they are missing. Takes some 100 ms when an RSA key is made."""
    folder = settings.data_dir / "keys"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise KeyringError(
            f"{folder} cannot be made ({error.strerror}); data_dir must be writable for the user that runs this"
        ) from error
    return Keyring(
        srs_secrets=_srs_secrets(folder / "srs"),
        service=tuple(_signer(folder, settings, algorithm) for algorithm in settings.dkim.algorithms),
        store_key=_store_key(folder / "store.key"),
    )


def service_selector(settings: Settings, algorithm: str) -> str:
    """The selector under which the service's key of ``algorithm`` is published."""
    return f"{settings.dkim.selector}{1 if algorithm == 'rsa' else 2}"


def _srs_secrets(path: Path) -> tuple[bytes, ...]:
    text = _read_or_make(path, lambda: secrets.token_hex(32).encode() + b"\n")
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found or any(len(secret) < 16 for secret in found):
        raise KeyringError(f"{path} must hold one secret of at least 16 characters a line, newest first")
    return found


def _signer(folder: Path, settings: Settings, algorithm: str) -> seal.Signer:
    selector = service_selector(settings, algorithm)
    path = folder / f"dkim-{selector}.pem"
    pem = _read_or_make(path, lambda: seal.generate("rsa" if algorithm == "rsa" else "ed25519").pem)
    try:
        signer = seal.Signer(domain=settings.dkim.domain, selector=selector, key=seal.load_key(pem))
    except seal.UnusableKeyError as error:
        raise KeyringError(f"{path}: {error}; mend it, or move it away to have a new one made") from error
    if not signer.algorithm.startswith(algorithm):
        raise KeyringError(f"{path} holds a key for {signer.algorithm}, not for {algorithm}; move it away")
    return signer


def _store_key(path: Path) -> bytes:
    text = _read_or_make(path, lambda: secrets.token_hex(32).encode() + b"\n").strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise KeyringError(f"{path} must hold 64 hexadecimal digits; restore it from a backup")
    return key


def _read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    try:
        if not path.exists():
            create_private(path, make())
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path.read_bytes()
    except OSError as error:
        raise KeyringError(
            f"{path} cannot be read or made ({error.strerror}); "
            "it must belong to the user that runs this, with mode 0600"
        ) from error


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
