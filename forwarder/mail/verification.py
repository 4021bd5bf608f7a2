"""DKIM verification (RFC 6376, 8301, 8463) over TXT answers fetched beforehand.

Two steps, so that nothing here touches the network: ``needed_keys`` names the TXT records, ``verify`` judges with
their answers. At most ``MAX_SIGNATURES`` are looked at, the lowest, since each hop signs on top and DMARC asks for the
author's; the rest are as if they were not there.

PASS means that the signature counts. A signature that holds but must not count is POLICY: one whose ``l=`` leaves
appended text uncovered, or which covers fewer of a header (a second Subject) than the message has. Expired ones are
FAIL; sha1, keys below 1,024 bits and malformed signatures are PERMERROR; DNS trouble is TEMPERROR. Nothing raises, and
every step is linear in the message.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

import idna

from forwarder.mail.canonical import Canonical, Form, canonical_field
from forwarder.mail.public_key import KeyRecordError, PublicKey, read_key
from forwarder.mail.records import dkim_name
from forwarder.mail.seal import OVERSIGNED
from forwarder.mail.tags import TagListError, blank_signature, decode_base64, parse_tags, without_white

# TXT records by name, each record as its joined octets. Empty: the name has none. A name that is absent: DNS
# could not tell.
Answers = Mapping[str, Sequence[bytes]]

MAX_SIGNATURES = 10
SIGNATURES_KEPT = 64  # of at most 16 KiB; a message may bring some more
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z")
_ALGORITHMS = {"rsa-sha256", "ed25519-sha256"}


class AuthResult(StrEnum):
    """Result words of Authentication-Results (RFC 8601 section 2.7)."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - a result word
    FAIL = "fail"
    SOFTFAIL = "softfail"  # SPF only
    NEUTRAL = "neutral"
    POLICY = "policy"  # a signature that holds, but that we do not count
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureResult:
    """What one DKIM-Signature header is worth. Only PASS counts for DMARC."""

    result: AuthResult
    domain: str = ""  # d=, lower case; "" when it could not be read
    selector: str = ""
    algorithm: str = ""
    signature: str = ""  # the first 8 characters of b=: tells two signatures of one domain apart
    reason: str = ""


class SignatureError(ValueError):
    """A signature that does not count, and how its result reads."""

    def __init__(self, reason: str, result: AuthResult = AuthResult.PERMERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The tags of a DKIM-Signature, an ARC-Message-Signature or an ARC-Seal, checked for form."""

    raw: bytes
    algorithm: str
    domain: str
    selector: str
    octets: bytes
    names: tuple[bytes, ...] = ()
    body_hash: bytes = b""
    head_form: Form = Form.SIMPLE
    body_form: Form = Form.SIMPLE
    length: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def key_name(self) -> str:
        """The name whose TXT record holds the public key."""
        return dkim_name(self.domain, self.selector)


def needed_keys(message: Canonical) -> tuple[str, ...]:
    """The TXT names that ``verify`` wants answered: at most MAX_SIGNATURES, no duplicates."""
    names: dict[str, None] = {}
    for raw in _signatures(message):
        try:
            names[_parse(raw).key_name] = None
        except SignatureError:
            continue
    return tuple(names)


def verify(message: Canonical, answers: Answers, *, now: datetime) -> list[SignatureResult]:
    """The result of each signature, topmost first."""
    return [_judge(message, raw, answers, now) for raw in _signatures(message)]


def _signatures(message: Canonical) -> list[bytes]:
    return message.instances(b"dkim-signature")[-MAX_SIGNATURES:]


def _judge(message: Canonical, raw: bytes, answers: Answers, now: datetime) -> SignatureResult:
    try:
        signature = _parse(raw)
    except SignatureError as error:
        return SignatureResult(result=error.result, reason=error.reason)
    result, reason = AuthResult.PASS, ""
    try:
        check_times(signature, now)
        key = check_signature(message, signature, answers)
        if key.strict and _identity_domain(signature) != signature.domain:
            raise SignatureError("i= is not exactly the signing domain")
        _check_cover(message, signature)
    except SignatureError as error:
        result, reason = error.result, error.reason
    return SignatureResult(
        result=result,
        domain=signature.domain,
        selector=signature.selector,
        algorithm=signature.algorithm,
        signature=without_white(signature.tags["b"])[:8],
        reason=reason,
    )


def _parse(raw: bytes) -> Signature:
    """A DKIM-Signature, by the rules of RFC 6376 3.5 and 6.1.1."""
    signature = parse_signature(raw)
    tags = signature.tags
    if tags.get("v") != "1":
        raise SignatureError("unknown version")
    if b"from" not in signature.names:
        raise SignatureError("From is not signed")
    check_way_to_key(signature)
    domain = _identity_domain(signature)
    if domain != signature.domain and not domain.endswith("." + signature.domain):
        raise SignatureError("i= is not of the signing domain")
    return signature


def check_way_to_key(signature: Signature) -> None:
    """Whether its key may be asked for as keys are; SignatureError."""
    if "dns/txt" not in without_white(signature.tags.get("q", "dns/txt")).lower().split(":"):
        raise SignatureError("unknown way to ask for the key")


def _identity_domain(signature: Signature) -> str:
    """The domain of a DKIM-Signature's ``i=``. ARC's is a number and names nobody (RFC 8617 4.1.2, 4.1.3)."""
    return domain_name(without_white(signature.tags.get("i", "@" + signature.domain)).rpartition("@")[2])


# Asked for when the keys are fetched, when it is judged, and in ARC when the chain is continued.
@lru_cache(maxsize=SIGNATURES_KEPT)
def parse_signature(raw: bytes, *, forms: str = "simple/simple") -> Signature:
    """A DKIM-Signature or an ARC-Message-Signature, checked for form; raises SignatureError.

    ``forms`` is what a missing ``c=`` means.
    """
    common = _common(raw, ("a", "b", "d", "s", "bh", "h"))
    tags = common["tags"]
    body_hash = decode_base64(tags["bh"])
    if not body_hash:
        raise SignatureError("bh= is not base64")
    head_form, body_form = _forms(tags.get("c", forms))
    return Signature(
        **common,
        body_hash=body_hash,
        names=tuple(map(bytes.strip, tags["h"].lower().encode("utf-8").split(b":"))),
        head_form=head_form,
        body_form=body_form,
        length=_number(tags, "l"),
    )


@lru_cache(maxsize=SIGNATURES_KEPT)
def parse_seal(raw: bytes) -> Signature:
    """An ARC-Seal, which has neither headers nor a body hash, checked for form; raises SignatureError."""
    return Signature(**_common(raw, ("a", "b", "d", "s")))


def _common(raw: bytes, needed: tuple[str, ...]) -> dict[str, Any]:
    """By whom, and of which key: what every signature tells, in a header that has all the tags it needs."""
    try:
        tags = parse_tags(raw.partition(b":")[2])
    except TagListError as error:
        raise SignatureError(str(error)) from error
    for name in needed:
        if name not in tags:
            raise SignatureError(f"{name}= is missing")
    algorithm = without_white(tags["a"]).lower()
    if algorithm not in _ALGORITHMS:
        # RFC 8301 section 3.1: rsa-sha1 must not be taken as valid.
        raise SignatureError("unacceptable algorithm")
    octets = decode_base64(tags["b"])
    if not octets:
        raise SignatureError("b= is not base64")
    return {
        "raw": raw,
        "algorithm": algorithm,
        "domain": domain_name(tags["d"]),
        "selector": domain_name(tags["s"]),
        "octets": octets,
        "tags": tags,
    }


def check_signature(message: Canonical, signature: Signature, answers: Answers) -> PublicKey:
    """The key that made it; SignatureError unless body hash, key and signature hold and cover the whole body."""
    if signature.length is not None:
        length = message.body_length(signature.body_form)
        if signature.length > length:
            raise SignatureError("the body is shorter than l=", AuthResult.FAIL)
        if signature.length < length:
            # RFC 6376 8.2: what follows the signed part is anybody's. It is not even hashed.
            raise SignatureError("l= leaves a part of the body unsigned", AuthResult.POLICY)
    if message.body_hash(signature.body_form) != signature.body_hash:
        raise SignatureError("the body was changed", AuthResult.FAIL)
    return check_octets(signature, signed_data(message, signature), answers)


def check_octets(signature: Signature, data: bytes, answers: Answers) -> PublicKey:
    """The published key that made the signature over ``data``; SignatureError when none did."""
    records = answers.get(signature.key_name)
    if records is None:
        raise SignatureError("the key could not be looked up", AuthResult.TEMPERROR)
    try:
        key = read_key(records)
    except KeyRecordError as error:
        raise SignatureError(str(error)) from error
    if not key.verifies(signature.algorithm, signature.octets, data):
        raise SignatureError("the signature does not match", AuthResult.FAIL)
    return key


def signed_data(message: Canonical, signature: Signature) -> bytes:
    """The canonical header fields a signature is over, its own last and without b= (RFC 6376 3.7)."""
    form = signature.head_form
    left: dict[bytes, list[bytes]] = {}
    lines: list[bytes] = []
    for name in signature.names:
        # The lowest instance not yet taken; none left: the name stands for nothing (RFC 6376 5.4.2).
        instances = left.get(name)
        if instances is None:
            instances = left[name] = message.instances(name).copy()
        if instances:
            lines.append(message.canonical(instances.pop(), form))
    lines.append(canonical_field(blank_signature(signature.raw), form))
    return b"\r\n".join(lines)


def check_times(signature: Signature, now: datetime) -> None:
    """Whether it still holds, by its own ``x=``; SignatureError."""
    made, until = _number(signature.tags, "t"), _number(signature.tags, "x")
    if until is None:
        return
    if made is not None and until < made:
        raise SignatureError("x= is before t=")
    if until < now.timestamp():
        raise SignatureError("the signature has expired", AuthResult.FAIL)


def _check_cover(message: Canonical, signature: Signature) -> None:
    """RFC 6376 8.15: a reader may show a header that was added above the signed one. One that says the same is none."""
    covered = Counter(signature.names)
    for name in OVERSIGNED:
        instances = message.instances(name)
        if not 0 < covered[name] < len(instances):
            continue
        said = [message.canonical(raw, signature.head_form) for raw in instances]
        if not set(said[-covered[name] :]).issuperset(said[: -covered[name]]):
            raise SignatureError(f"a second {name.decode()} is not signed", AuthResult.POLICY)


def _number(tags: Mapping[str, str], name: str) -> int | None:
    value = tags.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 76):
        raise SignatureError(f"{name}= is not a number")
    return int(value)


def _forms(value: str) -> tuple[Form, Form]:
    head, slash, body = without_white(value).lower().partition("/")
    try:
        return Form(head), Form(body if slash else "simple")
    except ValueError as error:
        raise SignatureError("unknown canonicalisation") from error


def domain_name(value: str) -> str:
    """A domain or selector as DNS asks for it; SignatureError, a ValueError, when it is none."""
    name = without_white(value).lower().removesuffix(".")
    if not name.isascii():
        try:
            # RFC 8616: U-labels in internationalised mail
            name = idna.encode(name, uts46=True).decode("ascii")
        except UnicodeError as error:  # idna.IDNAError is one
            raise SignatureError("not a domain name") from error
    if len(name) > 253 or not _HOST_NAME.match(name):
        raise SignatureError("not a domain name")
    return name
