"""ARC (RFC 8617): validation of the chain a message brings, and our seal on it.

``needed_keys`` and ``validate`` work over TXT answers fetched beforehand, like the verification of DKIM. A chain is
PASS only when every set is complete and in order, the newest message signature and every seal verify. Anything else
is FAIL; a message without any ARC header has NONE. When DNS could not tell, the chain is FAIL and ``temporary``: it
does not pass, but it is not sealed as failed for ever either.

``seal_arc`` adds the next set. A chain that arrived sealed as failed is left alone, and so is one of 50 sets.
Receivers turn away from ARC: it is sealed where switched on, and nothing here depends on it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from forwarder.mail.canonical import Canonical, relaxed_field, relaxed_value
from forwarder.mail.seal import SIGNED_BY_ARC, Signer, message_signature, sealed, signed_fields
from forwarder.mail.tags import blank_signature
from forwarder.mail.verification import (
    Answers,
    AuthResult,
    Signature,
    SignatureError,
    check_octets,
    check_signature,
    check_times,
    check_way_to_key,
    parse_seal,
    parse_signature,
)

MAX_SETS = 50
_AAR, _AMS, _AS = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
_INSTANCE = re.compile(rb"[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,3})[ \t\r\n]*;")


class ChainStatus(StrEnum):
    """The ``cv=`` words."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - a result word
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A judged chain."""

    status: ChainStatus
    reason: str = ""
    domain: str = ""  # of the newest seal
    selector: str = ""
    results: str = ""  # of the newest set, unfolded: what whoever sealed it had found
    temporary: bool = False  # FAIL only because a key could not be looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    results: bytes  # the raw AAR
    message: Signature
    seal: Signature


class _ChainError(ValueError):
    """Why a chain does not pass."""

    def __init__(self, reason: str, *, temporary: bool = False) -> None:
        super().__init__(reason)
        self.temporary = temporary

    @classmethod
    def of(cls, what: str, error: SignatureError) -> "_ChainError":
        return cls(f"{what}: {error.reason}", temporary=error.result is AuthResult.TEMPERROR)


def needed_keys(message: Canonical) -> tuple[str, ...]:
    """The TXT names ``validate`` wants answered: one message signature and at most MAX_SETS seals."""
    try:
        sets = _collect(message)
    except _ChainError:
        return ()
    names = dict.fromkeys(one.seal.key_name for one in sets)
    if sets:
        names[sets[-1].message.key_name] = None
    return tuple(names)


def validate(message: Canonical, answers: Answers, *, now: datetime) -> Chain:
    """Judge the chain by RFC 8617 section 5.2."""
    try:
        sets = _collect(message)
        if not sets:
            return Chain(status=ChainStatus.NONE)
        signature = sets[-1].message
        try:
            # RFC 8617 4.1.2: it means what a DKIM-Signature means, and that of an older set is not looked at. But what
            # it covers is up to who seals: the published tests of ARC have one pass that covers no field at all.
            check_way_to_key(signature)
            check_times(signature, now)
            check_signature(message, signature, answers)
        except SignatureError as error:
            raise _ChainError.of(f"message signature {len(sets)}", error) from error
        canonical = [relaxed_field(raw) for one in sets for raw in _raws(one)]
        # The newest seal first: it is the one most likely to be broken (RFC 8617 5.2 step 6).
        for count in range(len(sets), 0, -1):
            seal = sets[count - 1].seal
            # RFC 8617 5.1.1: every set up to this one, results before message signature before seal; this seal
            # last and without its b=.
            data = [*canonical[: 3 * count - 1], relaxed_field(blank_signature(seal.raw))]
            try:
                check_octets(seal, b"\r\n".join(data), answers)
            except SignatureError as error:
                raise _ChainError.of(f"seal {count}", error) from error
    except _ChainError as error:
        return Chain(
            status=ChainStatus.FAIL,
            reason=str(error),
            temporary=error.temporary,
        )
    newest = sets[-1].seal
    return Chain(
        status=ChainStatus.PASS,
        domain=newest.domain,
        selector=newest.selector,
        results=relaxed_value(sets[-1].results).decode("utf-8", "replace"),
    )


def seal_arc(
    message: Canonical,
    *,
    signer: Signer,
    authserv_id: str,
    results: str,
    chain: ChainStatus | None,
    now: datetime,
) -> bytes:
    """Our set (seal, message signature, results: in that order) to prepend; b"" when there is nothing to continue.

    ``results`` is the text of Authentication-Results after the authserv-id; ``chain`` what ``validate`` said about
    the message when it came in, None when nobody looked: then only a message that brings no chain is sealed.
    """
    present = [raw for name in (_AAR, _AMS, _AS) for raw in message.instances(name)]
    if chain is None:
        if present:
            return b""
        chain = ChainStatus.NONE
    number = max(map(_lenient_instance, present), default=0) + 1
    if number > MAX_SETS:
        return b""  # RFC 8617 5.1: a chain that is full is not continued
    if chain is ChainStatus.NONE and present:
        chain = ChainStatus.FAIL
    before: list[bytes] = []
    if chain is ChainStatus.PASS:
        try:
            before = [relaxed_field(raw) for one in _collect(message) for raw in _raws(one)]
        except _ChainError:  # not the message that was judged
            chain = ChainStatus.FAIL
    # What ``_collect`` takes has no such seal.
    if chain is ChainStatus.FAIL and any(map(_sealed_as_failed, message.instances(_AS))):
        return b""  # RFC 8617 5.1: nor one that is sealed as failed
    aar = b"ARC-Authentication-Results: i=%d; %s;\r\n\t%s\r\n" % (
        number,
        authserv_id.encode(),
        results.strip().encode("utf-8", "replace").replace(b"; ", b";\r\n\t"),
    )
    first = b"i=%d" % number
    covered = signed_fields(message, signed=SIGNED_BY_ARC)
    ams = message_signature(b"ARC-Message-Signature", first, message, covered, signer, now=now)
    tags = [
        first + b";",
        b"a=%s;" % signer.algorithm.encode(),
        b"t=%d;" % int(now.timestamp()),
        b"cv=%s;" % chain.encode(),
        b"d=%s;" % signer.domain.encode(),
        b"s=%s;" % signer.selector.encode(),
    ]
    # RFC 8617 5.1.2: a failed chain is sealed over our own set alone, since its structure cannot be trusted.
    lines = [*before, relaxed_field(aar), relaxed_field(ams), b""]
    return sealed(b"ARC-Seal", tags, b"\r\n".join(lines), signer) + ams + aar


def _collect(message: Canonical) -> list[_Set]:
    """The sets in order; raises when the structure alone shows that the chain fails (steps 1 to 3)."""
    raws = {name: _by_instance(message.instances(name)) for name in (_AAR, _AMS, _AS)}
    count = len(raws[_AS])
    if not any(raws.values()):
        return []
    if any(set(found) != set(range(1, count + 1)) for found in raws.values()):
        raise _ChainError("the sets are not complete")
    sets: list[_Set] = []
    for number in range(1, count + 1):
        try:
            one = _Set(
                results=raws[_AAR][number],
                # ARC knows one canonicalisation: a signature that names none means relaxed.
                message=parse_signature(raws[_AMS][number], forms="relaxed/relaxed"),
                seal=parse_seal(raws[_AS][number]),
            )
        except SignatureError as error:
            raise _ChainError.of(f"set {number}", error) from error
        _check_set(one, number)
        sets.append(one)
    return sets


def _check_set(one: _Set, number: int) -> None:
    expected = ChainStatus.NONE if number == 1 else ChainStatus.PASS
    if one.seal.tags.get("cv", "").lower() != expected:
        raise _ChainError(f"seal {number}: cv= is not {expected}")
    if "h" in one.seal.tags:
        raise _ChainError(f"seal {number}: h= is not allowed")  # RFC 8617 4.1.3
    if _AS in one.message.names:
        raise _ChainError(f"message signature {number}: covers a seal")  # RFC 8617 4.1.2


def _by_instance(raws: Sequence[bytes]) -> dict[int, bytes]:
    if len(raws) > MAX_SETS:
        raise _ChainError(f"more than {MAX_SETS} sets")
    found: dict[int, bytes] = {}
    for raw in raws:
        number = _instance(raw)
        if number in found:
            raise _ChainError(f"set {number} occurs twice")
        found[number] = raw
    return found


def _instance(raw: bytes) -> int:
    """The i= of any of the three headers; the tag may stand anywhere but in the AAR, where it comes first."""
    name, _, value = raw.partition(b":")
    if name.strip().lower() != _AAR:
        for part in value.split(b";"):
            if part.partition(b"=")[0].strip() == b"i":
                value = part.strip() + b";"
                break
    found = _INSTANCE.match(value)
    number = int(found.group(1)) if found else 0
    if not 1 <= number <= MAX_SETS:
        raise _ChainError("a header has no instance number from 1 to 50")
    return number


def _lenient_instance(raw: bytes) -> int:
    try:
        return _instance(raw)
    except _ChainError:
        return 0


def _sealed_as_failed(raw: bytes) -> bool:
    try:
        return parse_seal(raw).tags.get("cv", "").lower() == ChainStatus.FAIL
    except SignatureError:
        return False


def _raws(one: _Set) -> tuple[bytes, bytes, bytes]:
    return one.results, one.message.raw, one.seal.raw
