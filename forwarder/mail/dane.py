"""DANE for SMTP (RFC 7672): whether the certificates that a host shows are those its TLSA records mean.

``usable`` says which records count at all; ``authenticated`` judges a chain by them. Pure: ``outbound.route`` asks for
the records, ``net.smtp_opening`` shows the chain.

A record of usage DANE-EE(3) names the host's own certificate or key, and nothing else of that certificate counts,
neither its names nor its dates (RFC 7672 3.1.1). One of usage DANE-TA(2) names an authority: it must be among the
certificates shown, or stand in the record itself, and must have issued the host's, which must be in date and bear the
host's name (3.1.2): among its alternative names, or, where none of these is a host's, as its common name (3.2.3). The
PKIX usages are not for SMTP (3.1.3).

How it fails: ``authenticated`` says False, whatever the octets of the records and the certificates are. Both come from
strangers: of what counts, the first ``RECORDS`` are looked at and the first ``CHAIN`` certificates. Authorities of one
name and key make paths in all their orders, each step of which is a signature to check, in the event loop: none counts
whose key makes that long, nor more than ``ISSUERS`` where each is asked for paths of its own.

Limits: the host's name is the only one accepted, not the domain that the mail is for (3.2.2); a DANE-TA record that
holds a bare key (2 1 0) finds only authorities that are shown. An authority with an Ed25519 key, or with one of RSA
below 2,048 bits, has issued nothing: the library verifies no such signatures.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from forwarder.mail.public_key import rsa_fault

RECORDS = 16
CHAIN = 10
ISSUERS = 3  # of one certificate: an authority, and others that vouch for its key
_DANE_TA, _DANE_EE = 2, 3
_WHOLE, _KEY = 0, 1  # the selectors
_EXACT, _SHA256, _SHA512 = 0, 1, 2  # the matching types
_DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    _SHA256: lambda octets: hashlib.sha256(octets).digest(),
    _SHA512: lambda octets: hashlib.sha512(octets).digest(),
}
_LENGTHS = {_SHA256: 32, _SHA512: 64}
_ALGORITHMS = (x509.PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, x509.PublicKeyAlgorithmOID.EC_PUBLIC_KEY)
_SEQUENCE, _VERSION = 0x30, 0xA0  # ASN.1 tags of a certificate (X.690 8.1.2, RFC 5280 4.1)


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes


def usable(record: Tlsa) -> bool:
    """Whether a record can authenticate a mail host (RFC 7672 3.1)."""
    return (
        record.usage in (_DANE_TA, _DANE_EE)
        and record.selector in (_WHOLE, _KEY)
        and (
            bool(record.data)
            if record.matching == _EXACT
            else _LENGTHS.get(record.matching) == len(record.data)
        )
    )


def authenticated(records: Sequence[Tlsa], chain: Sequence[bytes], *, host: str, now: datetime) -> bool:
    """Whether a chain of DER certificates, the host's own first, is one that a usable record means."""
    if not chain:
        return False
    shown = chain[:CHAIN]
    meant = list(islice(_strongest([record for record in records if usable(record)]), RECORDS))
    if any(record.usage == _DANE_EE and _matches(record, shown[0]) for record in meant):
        return True
    authorities = [record for record in meant if record.usage == _DANE_TA]
    return bool(authorities) and _issued_under(authorities, shown, host, now)


def _strongest(records: Sequence[Tlsa]) -> Iterator[Tlsa]:
    """Without the digests beside which a stronger one stands for the same purpose (RFC 7671 9)."""
    best: dict[tuple[int, int], int] = {}
    for record in records:
        purpose = record.usage, record.selector
        best[purpose] = max(best.get(purpose, _EXACT), record.matching)
    for record in records:
        if record.matching in (_EXACT, best[record.usage, record.selector]):
            yield record


def _matches(record: Tlsa, certificate: bytes) -> bool:
    selected = certificate if record.selector == _WHOLE else _public_key_info(certificate)
    if selected is None:
        return False
    digest = _DIGESTS.get(record.matching)
    return record.data == (digest(selected) if digest is not None else selected)


def _issued_under(records: Sequence[Tlsa], chain: Sequence[bytes], host: str, now: datetime) -> bool:
    found = [each for each in chain[1:] if any(_matches(record, each) for record in records)]
    found += [record.data for record in records if (record.selector, record.matching) == (_WHOLE, _EXACT)]
    authorities = [each for each in map(_parsed, found) if each is not None and _is_quick(each)]
    own, *others = map(_parsed, chain)
    if not authorities or own is None:
        return False
    issuers = [each for each in others if each is not None and _is_quick(each)]
    builder = PolicyBuilder().store(Store(authorities)).time(now)
    try:
        if not alternative_names(own):
            if not _bears_in_subject(own, host, now):
                return False
            by = islice((each for each in (*issuers, *authorities) if _issued(own, each)), ISSUERS)
            return any(_is_trusted(builder, each, issuers) for each in by)
        builder = builder.extension_policies(ca_policy=_of_authorities(), ee_policy=_of_hosts())
        builder.build_server_verifier(x509.DNSName(host)).verify(own, issuers)
    except Exception:  # noqa: BLE001 - what is wrong with octets of strangers comes in many kinds; all mean no
        return False
    return True


def _bears_in_subject(own: x509.Certificate, host: str, now: datetime) -> bool:
    """What the library would judge of a host's certificate, were it not without alternative names, or of version 1."""
    names = own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return (
        any(is_named(host, str(name.value).lower()) for name in names)
        and own.not_valid_before_utc <= now <= own.not_valid_after_utc
        and not any(
            each.critical and isinstance(each.value, x509.UnrecognizedExtension) for each in own.extensions
        )
    )


def _issued(own: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        own.verify_directly_issued_by(by)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def _is_trusted(builder: PolicyBuilder, issuer: x509.Certificate, others: Sequence[x509.Certificate]) -> bool:
    """An authority that a record means, or one issued under it, whatever names they bear."""
    # Nobody has applied the names that an authority is limited to.
    policy = _of_authorities().require_not_present(x509.NameConstraints)
    verifier = builder.extension_policies(ca_policy=policy, ee_policy=policy).build_client_verifier()
    try:
        path = verifier.verify(issuer, list(others)).chain
    except VerificationError:
        return False
    # To the verifier the path ends here, one certificate too early (RFC 5280 4.2.1.9).
    limits = [
        each.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length for each in path
    ]
    return all(limit is None or limit >= below for below, limit in enumerate(limits))


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """Those of hosts; beside one of them the common name says nothing."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def is_named(host: str, name: str) -> bool:
    """RFC 6125 6.4.3: ``*.`` stands for one label, the leftmost."""
    return name in (host, f"*.{host.partition('.')[2]}")


def _parsed(certificate: bytes) -> x509.Certificate | None:
    """None: it cannot be read, and is as if it were not there."""
    try:
        return x509.load_der_x509_certificate(certificate)
    except Exception:  # noqa: BLE001 - as above
        return None


def _is_quick(authority: x509.Certificate) -> bool:
    """Whether its signatures are of a kind that can count, and quickly checked."""
    try:
        if authority.public_key_algorithm_oid not in _ALGORITHMS:  # only to read it might take long
            return False
        key = authority.public_key()
    except Exception:  # noqa: BLE001 - as above
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return not rsa_fault(key)
    return isinstance(key, ec.EllipticCurvePublicKey)


def _of_authorities() -> ExtensionPolicy:
    """Issuers of a private authority: they must be one (RFC 5280 4.2.1.9), and need not look like one of the Web's."""
    policy = ExtensionPolicy.permit_all()
    policy = policy.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    return policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_issue)


def _is_authority(policy: Policy, certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("not an authority")


def _may_issue(policy: Policy, certificate: x509.Certificate, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:  # RFC 5280 4.2.1.3
        raise ValueError("a key that may not sign certificates")


def _of_hosts() -> ExtensionPolicy:
    return ExtensionPolicy.permit_all().require_present(
        x509.SubjectAlternativeName, Criticality.AGNOSTIC, None
    )


def _public_key_info(certificate: bytes) -> bytes | None:
    """The octets of the SubjectPublicKeyInfo, as they stand in the certificate (RFC 5280 4.1)."""
    try:
        outer = _inside(certificate, 0)
        at, end = _inside(certificate, outer[0])
        # version (where it is said), serial number, algorithm, issuer, validity, subject
        for _ in range(5 + (certificate[at] == _VERSION)):
            at = _bounds(certificate, at, end)[1]
        if certificate[at] != _SEQUENCE:
            return None
        return certificate[at : _bounds(certificate, at, end)[1]]
    except (IndexError, ValueError):
        return None


def _inside(octets: bytes, at: int) -> tuple[int, int]:
    if octets[at] != _SEQUENCE:
        raise ValueError("not a sequence")
    return _bounds(octets, at, len(octets))


def _bounds(octets: bytes, at: int, limit: int) -> tuple[int, int]:
    """Where the content of the element at a place begins and ends (X.690 8.1.3); ValueError, IndexError."""
    length = octets[at + 1]
    start = at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("a length that no certificate has")
        length = int.from_bytes(octets[start : start + size])
        start += size
    if start + length > limit:
        raise ValueError("an element that is cut short")
    return start, start + length
