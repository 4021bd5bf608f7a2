"""Seals the private DKIM keys of domains with a key that is not in the database.

AES-256-GCM with a fresh nonce a seal; the domain and selector are bound in, so that a sealed key moved to another
row does not open there. ``WrongKey`` when it does not open: the wrong ``store.key``, or a damaged row.

``make_key`` (and ``make_keys``) and ``signer`` are CPU work of some 100 and 30 ms (RSA): call them in a thread.
"""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from forwarder.mail import seal
from forwarder.store.dkim_keys import DkimKey, NewDkimKey

_NONCE: Final = 12
ALGORITHMS: Final[tuple[seal.Algorithm, ...]] = ("rsa", "ed25519")  # <selector>1 and <selector>2


class WrongKey(Exception):
    """A sealed key does not open; the text is for the person who runs the server and holds nothing of it."""


class Vault:
    """Seals and opens with one 32-octet key."""

    def __init__(self, store_key: bytes) -> None:
        if len(store_key) != 32:
            raise ValueError("the store's key has 32 octets")
        self._cipher = AESGCM(store_key)

    def seal(self, plain: bytes, *, domain: str, selector: str) -> bytes:
        """Nonce and sealed text."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, _name(domain, selector))

    def open(self, sealed: bytes, *, domain: str, selector: str) -> bytes:
        """What was sealed under that domain and selector; WrongKey."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _name(domain, selector))
        except (InvalidTag, ValueError) as fault:
            raise WrongKey(
                f"the DKIM key {selector} of {domain} does not open: keys/store.key is not the one that sealed it"
            ) from fault


def make_keys(vault: Vault, domain: str, selector: str) -> tuple[NewDkimKey, ...]:
    """Fresh keys for a domain: ``<selector>1`` is RSA-2048, ``<selector>2`` Ed25519."""
    numbered = enumerate(ALGORITHMS, start=1)
    return tuple(make_key(vault, domain, f"{selector}{number}", algorithm) for number, algorithm in numbered)


def make_key(vault: Vault, domain: str, selector: str, algorithm: seal.Algorithm) -> NewDkimKey:
    """One fresh key under exactly this selector."""
    key = seal.generate(algorithm)
    return NewDkimKey(
        selector=selector,
        algorithm=algorithm,
        private_key=vault.seal(key.pem, domain=domain, selector=selector),
        public_record=key.record,
    )


def signer(vault: Vault, domain: str, key: DkimKey) -> seal.Signer:
    """A stored key, opened and loaded for signing."""
    pem = vault.open(key.private_key, domain=domain, selector=key.selector)
    return seal.Signer(domain=domain, selector=key.selector, key=seal.load_key(pem))


def _name(domain: str, selector: str) -> bytes:
    return f"dkim:{domain}:{selector}".encode()
