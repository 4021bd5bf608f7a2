"""DKIM public keys: the TXT record (RFC 6376 section 3.6.1, RFC 8463) and the check of one signature.

Whatever a domain publishes, ``read_key`` answers with a usable key or raises ``KeyRecordError`` with a reason fit for
an Authentication-Results header. RSA keys outside 1,024 to 8,192 bits are unusable: the weak ones by RFC 8301
section 3.2, the long ones, as those with a long exponent, because they cost us more than they cost the sender.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from forwarder.mail.tags import TagListError, decode_base64, parse_tags, without_white

MIN_RSA_BITS = 1024
MAX_RSA_BITS = 8192
KEYS_KEPT = 256  # some KiB each
MAX_EXPONENT_BITS = 64  # nearly all have 17; with as many as the key has, a check takes fifty times as long
# How an RSA key begins, by itself (RFC 8017 A.1.1) or with its kind before it (RFC 3279 2.3.1). No other is read: of
# one for Diffie-Hellman the library checks the numbers while it reads them, for a minute if a record is full of them.
_RSA = re.compile(
    rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)(?:\x02|\x30[\x0b\x0d]\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01)",
    re.DOTALL,
)


class KeyRecordError(ValueError):
    """No usable key in the record; the text is a short reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A published key and the limits its owner put on it."""

    key: rsa.RSAPublicKey | ed25519.Ed25519PublicKey
    strict: bool  # t=s: the i= of a DKIM-Signature must be of exactly the signing domain

    def verifies(self, algorithm: str, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` is this key's over ``data``, by the algorithm of the signature's ``a=``."""
        try:
            match self.key, algorithm:
                case rsa.RSAPublicKey(), "rsa-sha256":
                    self.key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
                case ed25519.Ed25519PublicKey(), "ed25519-sha256":
                    digest = hashes.Hash(hashes.SHA256())
                    digest.update(data)
                    self.key.verify(signature, digest.finalize())
                case _:
                    return False
        except (InvalidSignature, ValueError):
            return False
        return True


def read_key(records: Sequence[bytes]) -> PublicKey:
    """The first usable key among the TXT records of a name; the reason of the last one when none is."""
    fault = KeyRecordError("no key")
    for record in records[:10]:
        try:
            return _parse(record)
        except KeyRecordError as error:
            fault = error
    raise fault


def key_tags(record: bytes) -> dict[str, str]:
    """The tags of a key record that may be used for mail, its key not looked at yet; KeyRecordError."""
    try:
        tags = parse_tags(record)
    except TagListError as error:
        raise KeyRecordError("the key record is malformed") from error
    if tags.get("v", "DKIM1") != "DKIM1" or ("v" in tags and next(iter(tags)) != "v"):
        raise KeyRecordError("not a DKIM key record")
    if "p" not in tags:
        raise KeyRecordError("the key record holds no key")
    if not tags["p"]:
        raise KeyRecordError("the key is revoked")
    if "sha256" not in _words(tags.get("h", "sha256")):
        raise KeyRecordError("the key does not allow sha256")
    if not _words(tags.get("s", "*")) & {"*", "email"}:
        raise KeyRecordError("the key is not for mail")
    return tags


# Senders and those who send for them have few keys, and each makes many signatures.
@lru_cache(maxsize=KEYS_KEPT)
def _parse(record: bytes) -> PublicKey:
    tags = key_tags(record)
    octets = decode_base64(tags["p"])
    if octets is None:
        raise KeyRecordError("the key is not base64")
    return PublicKey(key=_load(tags.get("k", "rsa").lower(), octets), strict="s" in _words(tags.get("t", "")))


def _words(value: str) -> set[str]:
    return set(without_white(value).lower().split(":"))


def _load(kind: str, octets: bytes) -> rsa.RSAPublicKey | ed25519.Ed25519PublicKey:
    try:
        if kind == "ed25519":
            # RFC 8463 section 4.2: the bare 32 octets, not a SubjectPublicKeyInfo.
            return ed25519.Ed25519PublicKey.from_public_bytes(octets)
        key = serialization.load_der_public_key(octets) if kind == "rsa" and _RSA.match(octets) else None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRecordError("the key cannot be read") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise KeyRecordError("unknown kind of key")
    if fault := rsa_fault(key):
        raise KeyRecordError(fault)
    return key


def rsa_fault(key: rsa.RSAPublicKey) -> str:
    """What keeps a key from being used, as a reason; "": it is strong, and its signatures are quickly checked."""
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return f"unacceptable key of {key.key_size} bits"
    if key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        return "unacceptable key with a long exponent"
    return ""
