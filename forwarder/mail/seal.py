"""DKIM signing (RFC 6376, RFC 8463): RSA and Ed25519, relaxed/relaxed, over one pass of the message.

``sign`` makes the headers to prepend; ``Signer`` is a loaded key with its names. The private-key work is OpenSSL's,
which releases the interpreter lock: call it in a thread. Content must be what will be sent, CRLF line ends and all:
normalise first, sign afterwards.

Promises: never ``l=``; From, To, Cc, Subject, Date, Reply-To, MIME-Version and Content-Type are each signed once
more often than they occur, so that a second one added later breaks the signature (RFC 6376 8.15). Time is an
argument. Signing never raises for any content; keys that are not RSA of 1,024 to 8,192 bits or Ed25519 are refused with
``UnusableKeyError`` when loaded.

Limits: of a header that occurs more than 20 times only the lowest 20 are covered.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Literal, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from forwarder.mail.canonical import Canonical, Form, relaxed_field, relaxed_value
from forwarder.mail.public_key import MAX_RSA_BITS, MIN_RSA_BITS

_PADDING, _SHA256 = padding.PKCS1v15(), hashes.SHA256()
PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Algorithm = Literal["rsa", "ed25519"]

OVERSIGNED = (
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"reply-to",
    b"mime-version",
    b"content-type",
)
# Signed as often as present: what a reader, a mailing list or a threading view relies on (RFC 6376 5.4.1).
SIGNED = (
    b"message-id",
    b"in-reply-to",
    b"references",
    b"sender",
    b"content-transfer-encoding",
    b"content-id",
    b"content-description",
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
    b"list-id",
    b"list-help",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"auto-submitted",
    b"feedback-id",
)
SIGNED_BY_ARC = (*SIGNED, b"dkim-signature")  # RFC 8617 4.1.2
MAX_INSTANCES = 20
LINE_LENGTH = 76
_LINES = re.compile(rb".{1,%d}" % (LINE_LENGTH - 4))
_COVERABLE = {name: name for name in (*OVERSIGNED, *SIGNED_BY_ARC)}
_SELECTION_KEPT = 100  # fields of a header whose selection is remembered


class UnusableKeyError(ValueError):
    """A private key we cannot sign with; the text is for a person and holds nothing of the key."""


class GeneratedKey(NamedTuple):
    """A new key: PKCS#8 PEM to keep secret, and the TXT record to publish."""

    pem: bytes
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A loaded private key and the names under which its public half is published."""

    domain: str
    selector: str
    key: PrivateKey
    algorithm: str = field(init=False)  # the ``a=`` value
    quick: bool = field(init=False)  # well below a millisecond a signature; RSA of 4,096 bits takes 2

    def __post_init__(self) -> None:
        bits = self.key.key_size if isinstance(self.key, rsa.RSAPrivateKey) else 0
        object.__setattr__(self, "algorithm", "rsa-sha256" if bits else "ed25519-sha256")
        object.__setattr__(self, "quick", bits <= 2048)

    def signature(self, data: bytes) -> bytes:
        """Base64 of the signature over ``data``."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return base64.b64encode(self.key.sign(data, _PADDING, _SHA256))
        # RFC 8463 section 3: Ed25519 signs the SHA-256 of the data, not the data.
        return base64.b64encode(self.key.sign(hashlib.sha256(data).digest()))


def sign(message: Canonical, signers: Sequence[Signer], *, now: datetime) -> bytes:
    """One DKIM-Signature header for each signer, ready to be prepended."""
    covered = signed_fields(message)
    return b"".join(
        message_signature(b"DKIM-Signature", b"v=1", message, covered, signer, now=now) for signer in signers
    )


class Covered(NamedTuple):
    """The header fields that a signature covers."""

    names: tuple[bytes, ...]  # for h=
    data: bytes  # the canonical fields they select, in that order, each with its CRLF


def signed_fields(message: Canonical, *, signed: tuple[bytes, ...] = SIGNED) -> Covered:
    """What to sign of a message's header: OVERSIGNED, and ``signed`` (SIGNED or SIGNED_BY_ARC) as far as present."""
    fields = message.fields
    present = tuple(map(_COVERABLE.get, map(itemgetter(0), fields)))
    select = _selected if len(fields) <= _SELECTION_KEPT else _selected.__wrapped__
    names, places = select(present, signed)
    lines = [label + relaxed_value(fields[place][1]) for place, label in places]
    lines.append(b"")
    return Covered(names, b"\r\n".join(lines))


# As with the template below: which fields are signed, and where they stand, is the same for most that a program writes.
@lru_cache(maxsize=256)
def _selected(
    present: tuple[bytes | None, ...], signed: tuple[bytes, ...]
) -> tuple[tuple[bytes, ...], tuple[tuple[int, bytes], ...]]:
    """The names for ``h=``, and the places of the fields with what stands before their values.

    ``present``: the names of a header's fields, None for those that no signature covers.
    """
    where: dict[bytes, list[int]] = {}
    for place, name in enumerate(present):
        if name is not None:
            where.setdefault(name, []).append(place)
    names: list[bytes] = []
    places: list[tuple[int, bytes]] = []
    for wanted, beyond in ((OVERSIGNED, True), (signed, False)):
        for name in wanted:
            found = where.get(name, [])
            # RFC 6376 5.4.2: instances are taken from the bottom of the header upwards.
            for place in found[: -MAX_INSTANCES - 1 : -1]:
                names.append(name)
                places.append((place, name + b":"))
            # Naming one more than we cover would stand for the next instance, not for "no other".
            if beyond and len(found) <= MAX_INSTANCES:
                names.append(name)
    return tuple(names), tuple(places)


def message_signature(
    header: bytes, first: bytes, message: Canonical, covered: Covered, signer: Signer, *, now: datetime
) -> bytes:
    """A DKIM-Signature or ARC-Message-Signature, which begins with the tag ``first``."""
    time = b"%d" % int(now.timestamp())
    body_hash = base64.b64encode(message.body_hash(Form.RELAXED))
    template = _template(header, first, signer.algorithm, signer.domain, signer.selector, covered.names)
    unsigned, relaxed = (form % (time, body_hash) for form in template)
    return _signed(unsigned, covered.data + relaxed, signer)


def sealed(header: bytes, tags: Iterable[bytes], data: bytes, signer: Signer) -> bytes:
    """The header of ``tags`` and a signature over ``data`` followed by that header (RFC 6376 3.7)."""
    unsigned = _folded(header, [*tags, b"b="])
    return _signed(unsigned, data + relaxed_field(unsigned), signer)


def _signed(unsigned: bytes, data: bytes, signer: Signer) -> bytes:
    lines = _LINES.findall(signer.signature(data))
    return b"\r\n  ".join((unsigned, *lines)) + b"\r\n"


# Senders and their programs are few, and each writes the same headers every time.
@lru_cache(maxsize=256)
def _template(
    header: bytes,
    first: bytes,
    algorithm: str,
    domain: str,
    selector: str,
    names: Sequence[bytes],
) -> tuple[bytes, bytes]:
    """The folded header up to an empty ``b=``, and its relaxed form; %b stands for the values of t= and bh=."""
    time, body_hash = b"\0" * 10, b"\1" * 44  # as long as the values, so that the lines are
    unsigned = _folded(
        header,
        [
            first + b";",
            b"a=%s;" % algorithm.encode(),
            b"c=relaxed/relaxed;",
            b"d=%s;" % domain.encode(),
            b"s=%s;" % selector.encode(),
            b"t=%s;" % time,
            *_names_tag(names),
            b"bh=%s;" % body_hash,
            b"b=",
        ],
    )
    folded, relaxed = (
        form.replace(b"%", b"%%").replace(time, b"%b").replace(body_hash, b"%b")
        for form in (unsigned, relaxed_field(unsigned))
    )
    return folded, relaxed


def _names_tag(names: Sequence[bytes]) -> list[bytes]:
    """``h=`` in pieces that may be folded."""
    pieces = [name + b":" for name in names[:-1]] + [names[-1] + b";"]
    pieces[0] = b"h=" + pieces[0]
    return pieces


def _folded(header: bytes, pieces: Iterable[bytes]) -> bytes:
    """Pieces on lines of at most LINE_LENGTH octets; names of ``h=`` are packed without spaces between them."""
    line = header + b":"
    lines: list[bytes] = []
    joint = b" "
    for piece in pieces:
        if len(line) + len(joint) + len(piece) > LINE_LENGTH:
            lines.append(line)
            line = b"  " + piece
        else:
            line += joint + piece
        joint = b"" if piece.endswith(b":") else b" "
    lines.append(line)
    return b"\r\n".join(lines)


def load_key(pem: bytes) -> PrivateKey:
    """A private key from PEM (PKCS#8 or PKCS#1, not encrypted). Slow (milliseconds): keep what it returns."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnusableKeyError("this is not an unencrypted private key in PEM form") from error
    if isinstance(key, rsa.RSAPrivateKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise UnusableKeyError(f"an RSA key of {key.key_size} bits cannot sign mail: use 2048")
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    raise UnusableKeyError("this key is neither RSA nor Ed25519")


def generate(algorithm: Algorithm) -> GeneratedKey:
    """A fresh RSA-2048 or Ed25519 key. RSA takes some 100 ms of CPU: call it in a thread."""
    key: PrivateKey
    if algorithm == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return GeneratedKey(pem, public_record(key))


def public_record(key: PrivateKey) -> str:
    """The TXT record that publishes the public half (RFC 6376 3.6.1, RFC 8463 section 4)."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}"


def zone_text(record: str) -> str:
    """A TXT value as zone files and DNS panels take it: quoted strings of at most 255 octets."""
    return " ".join(f'"{record[start : start + 255]}"' for start in range(0, len(record), 255))
