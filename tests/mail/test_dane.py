"""Which chains the TLSA records of a host mean. Certificates are made here; digests are taken by ``hashlib``."""

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import PolicyBuilder
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail import dane
from forwarder.mail.dane import ISSUERS, RECORDS, Tlsa, authenticated, usable

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Certificate(NamedTuple):
    parsed: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.parsed.public_bytes(Encoding.DER)

    @property
    def public_key(self) -> bytes:
        return self.parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def made(
    name: str,
    *,
    by: Certificate | None = None,
    ca: bool | None = None,
    names: tuple[str, ...] = (),
    ends: timedelta = timedelta(days=30),
    key: Key | None = None,
    rsa_padding: padding.PSS | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (),
    critical: bool = False,
    path_length: int | None = None,
) -> Certificate:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.parsed.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=90))
        .not_valid_after(NOW + ends)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Certificate(builder.sign(by.key if by else key, hashes.SHA256(), rsa_padding=rsa_padding), key)


ROOT = made("root", ca=True)
AUTHORITY = made("authority", by=ROOT, ca=True)
HOST = made("host", by=AUTHORITY, names=("mx.dest.test",))
CHAIN = [HOST.der, AUTHORITY.der]


def sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def sha512(octets: bytes) -> bytes:
    return hashlib.sha512(octets).digest()


def means(
    *records: Tlsa, chain: list[bytes] | None = None, host: str = "mx.dest.test", now: datetime = NOW
) -> bool:
    return authenticated(records, CHAIN if chain is None else chain, host=host, now=now)


def ta(certificate: Certificate) -> Tlsa:
    """2 1 1, what authorities recommend."""
    return Tlsa(2, 1, 1, sha256(certificate.public_key))


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(3, 0, 0, HOST.der),
        Tlsa(3, 0, 1, sha256(HOST.der)),
        Tlsa(3, 0, 2, sha512(HOST.der)),
        Tlsa(3, 1, 0, HOST.public_key),
        Tlsa(3, 1, 1, sha256(HOST.public_key)),
        Tlsa(3, 1, 2, sha512(HOST.public_key)),
    ],
)
def test_a_record_of_the_host_itself(record: Tlsa) -> None:
    assert usable(record)
    assert means(record)
    assert means(record, chain=[HOST.der])
    other = made("host", by=AUTHORITY, names=("mx.dest.test",))
    assert not means(record, chain=[other.der, HOST.der])  # it is the host's own that counts
    assert not means(record, chain=[])


def test_names_and_dates_of_the_hosts_own_certificate_do_not_count() -> None:
    old = made("old", names=("elsewhere.test",), ends=timedelta(days=-30))
    assert means(Tlsa(3, 1, 1, sha256(old.public_key)), chain=[old.der])


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(2, 0, 0, AUTHORITY.der),
        Tlsa(2, 0, 1, sha256(AUTHORITY.der)),
        Tlsa(2, 0, 2, sha512(AUTHORITY.der)),
        Tlsa(2, 1, 0, AUTHORITY.public_key),
        Tlsa(2, 1, 1, sha256(AUTHORITY.public_key)),
        Tlsa(2, 1, 2, sha512(AUTHORITY.public_key)),
    ],
)
def test_a_record_of_the_authority(record: Tlsa) -> None:
    assert usable(record)
    assert means(record)
    assert not means(record, host="mx.other.test")
    assert not means(record, now=NOW + timedelta(days=31))
    assert not means(record, now=NOW - timedelta(days=91))


def test_an_authority_that_is_not_shown_must_stand_in_the_record() -> None:
    assert not means(ta(ROOT))
    assert means(ta(ROOT), chain=[*CHAIN, ROOT.der])
    assert means(Tlsa(2, 0, 0, ROOT.der))
    assert means(Tlsa(2, 0, 0, AUTHORITY.der), chain=[HOST.der])


def test_an_authority_shown_beside_a_certificate_that_it_did_not_issue() -> None:
    forged = made("authority", ca=True)
    stranger = made("host", by=forged, names=("mx.dest.test",))
    assert not means(ta(AUTHORITY), chain=[stranger.der, AUTHORITY.der])
    assert not means(ta(AUTHORITY), chain=[stranger.der, forged.der, AUTHORITY.der])
    assert not means(ta(ROOT), chain=[stranger.der, forged.der, ROOT.der])


@pytest.mark.parametrize("ca", [False, None])
def test_a_customer_of_the_authority_is_no_authority(ca: bool | None) -> None:
    customer = made("customer", by=AUTHORITY, ca=ca, names=("customer.test",))
    stranger = made("host", by=customer, names=("mx.dest.test",))
    assert not means(ta(AUTHORITY), chain=[stranger.der, customer.der, AUTHORITY.der])


def test_a_wildcard_names_the_host() -> None:
    host = made("host", by=AUTHORITY, names=("*.dest.test",))
    assert means(ta(AUTHORITY), chain=[host.der, AUTHORITY.der])
    assert not means(ta(AUTHORITY), chain=[host.der, AUTHORITY.der], host="a.mx.dest.test")


FOR_SERVERS = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
MAIL_ONLY = x509.SubjectAlternativeName([x509.RFC822Name("postmaster@dest.test")])


def of_version_1(certificate: Certificate, by: Certificate) -> bytes:
    """The same without its version, which is 1 then: as ``openssl x509 -req`` makes them."""

    def element(tag: int, octets: bytes) -> bytes:
        length = len(octets)
        size = b"" if length < 128 else length.to_bytes(1 if length < 256 else 2)
        return bytes([tag, 0x80 | len(size)]) + size + octets if size else bytes([tag, length]) + octets

    assert isinstance(by.key, ec.EllipticCurvePrivateKey)
    signed = certificate.parsed.tbs_certificate_bytes
    at = signed.index(b"\xa0\x03\x02\x01\x02")
    signed = element(0x30, signed[at + 5 :])
    signature = by.key.sign(signed, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    return element(0x30, signed + algorithm + element(0x03, b"\0" + signature))


@pytest.mark.parametrize("name", ["mx.dest.test", "MX.dest.test", "*.dest.test"])
@pytest.mark.parametrize(
    ("version", "extensions"), [(1, ()), (3, ()), (3, (FOR_SERVERS,)), (3, (MAIL_ONLY,))]
)
def test_a_host_that_is_named_in_the_subject_alone(
    name: str, extensions: tuple[x509.ExtensionType, ...], version: int
) -> None:
    """RFC 7672 3.2.3."""
    host = made(name, by=AUTHORITY, extensions=extensions, ends=timedelta(days=20))
    chain = [host.der if version == 3 else of_version_1(host, AUTHORITY), AUTHORITY.der]
    assert x509.load_der_x509_certificate(chain[0]).version == getattr(x509.Version, f"v{version}")
    assert means(ta(AUTHORITY), chain=chain)
    assert means(Tlsa(2, 0, 0, ROOT.der), chain=chain)
    assert not means(ta(AUTHORITY), chain=chain, host="mx.other.test")
    assert not means(ta(AUTHORITY), chain=chain, host="a.mx.dest.test")
    assert means(ta(AUTHORITY), chain=chain, now=NOW + timedelta(days=19))
    assert not means(ta(AUTHORITY), chain=chain, now=NOW + timedelta(days=21))  # its authority is in date
    assert not means(ta(AUTHORITY), chain=chain, now=NOW - timedelta(days=91))
    assert not means(ta(ROOT), chain=chain)
    customer = made("customer", by=AUTHORITY, names=("customer.test",))
    theirs = made(name, by=customer, extensions=extensions)
    assert not means(ta(AUTHORITY), chain=[theirs.der, customer.der, AUTHORITY.der])
    stranger = made(name, by=made("authority", ca=True), extensions=extensions)
    assert not means(ta(AUTHORITY), chain=[stranger.der, AUTHORITY.der])


def test_the_subject_says_nothing_beside_an_alternative_name() -> None:
    host = made("mx.dest.test", by=AUTHORITY, names=("elsewhere.test",))
    assert not means(ta(AUTHORITY), chain=[host.der, AUTHORITY.der])


def test_what_nobody_understands_and_must_be_understood_does_not_count() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for names in ((), ("mx.dest.test",)):
        for critical in (False, True):
            host = made("mx.dest.test", by=AUTHORITY, names=names, extensions=(unknown,), critical=critical)
            assert means(ta(AUTHORITY), chain=[host.der, AUTHORITY.der]) is not critical


def test_an_authority_limited_to_some_names_names_none_in_the_subject() -> None:
    limits = x509.NameConstraints([x509.DNSName("other.test")], None)
    limited = made("limited", by=ROOT, ca=True, extensions=(limits,))
    for host in (made("mx.dest.test", by=limited), made("host", by=limited, names=("mx.dest.test",))):
        assert not means(ta(ROOT), chain=[host.der, limited.der, ROOT.der])


@pytest.mark.parametrize("names", [(), ("mx.dest.test",)])
def test_an_authority_that_may_have_no_other_below_it(names: tuple[str, ...]) -> None:
    lowest = made("lowest", ca=True, path_length=0)
    host = made("mx.dest.test", by=lowest, names=names)
    assert means(ta(lowest), chain=[host.der, lowest.der])
    below = made("below", by=lowest, ca=True)
    host = made("mx.dest.test", by=below, names=names)
    assert not means(ta(lowest), chain=[host.der, below.der, lowest.der])
    assert means(ta(below), chain=[host.der, below.der])


def test_a_key_that_may_not_sign_certificates_is_no_authoritys() -> None:
    def usage(*, certificates: bool) -> x509.KeyUsage:
        return x509.KeyUsage(True, False, False, False, False, certificates, False, False, False)

    for certificates in (True, False):
        issuer = made("issuer", by=ROOT, ca=True, extensions=(usage(certificates=certificates),))
        host = made("host", by=issuer, names=("mx.dest.test",))
        assert means(ta(ROOT), chain=[host.der, issuer.der, ROOT.der]) is certificates


def test_a_key_of_which_another_encoding_exists_is_compared_as_it_stands() -> None:
    key = rsa.generate_private_key(65537, 2048)
    host = made(
        "host", names=("mx.dest.test",), key=key, rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    )
    assert means(Tlsa(3, 1, 1, sha256(host.public_key)), chain=[host.der])


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(0, 1, 1, sha256(AUTHORITY.public_key)),  # PKIX-TA and PKIX-EE are not for SMTP (RFC 7672 3.1.3)
        Tlsa(1, 1, 1, sha256(HOST.public_key)),
        Tlsa(4, 1, 1, sha256(HOST.public_key)),
        Tlsa(255, 1, 1, sha256(HOST.public_key)),
        Tlsa(3, 2, 1, sha256(HOST.public_key)),
        Tlsa(3, 1, 3, sha256(HOST.public_key)),
        Tlsa(3, 1, 1, sha256(HOST.public_key)[:-1]),
        Tlsa(3, 1, 2, sha256(HOST.public_key)),
        Tlsa(3, 1, 0, b""),
    ],
)
def test_records_that_do_not_count(record: Tlsa) -> None:
    assert not usable(record)
    assert not means(record)
    assert means(record, Tlsa(3, 1, 1, sha256(HOST.public_key)))  # nor do they spoil the others


def test_one_record_of_several_is_enough() -> None:
    assert means(Tlsa(3, 1, 1, sha256(b"the next key")), Tlsa(3, 1, 1, sha256(HOST.public_key)))
    assert means(Tlsa(3, 1, 1, sha256(b"another")), ta(AUTHORITY))


def test_of_two_digests_for_one_purpose_the_stronger_counts() -> None:
    stale = Tlsa(3, 1, 2, sha512(b"another key"))
    assert not means(Tlsa(3, 1, 1, sha256(HOST.public_key)), stale)
    assert means(Tlsa(3, 0, 1, sha256(HOST.der)), stale)  # another purpose
    assert means(Tlsa(3, 1, 0, HOST.public_key), stale)  # the key itself is no digest


def test_what_strangers_publish_and_show_costs_little() -> None:
    """A hundred authorities of one name and a hundred records, each of which fits one of them."""
    authorities = [made("authority", ca=True) for _ in range(100)]
    chain = [
        made("host", by=authorities[-1], names=("mx.dest.test",)).der,
        *(each.der for each in authorities),
    ]
    records = [ta(each) for each in authorities]
    looked_at: list[bytes] = []

    def noting(certificate: bytes) -> x509.Certificate | None:
        looked_at.append(certificate)
        return x509.load_der_x509_certificate(certificate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forwarder.mail.dane._parsed", noting)
        assert not means(*records, chain=chain)
    assert len(looked_at) <= 20
    assert means(*[ta(ROOT)] * (RECORDS - 1), ta(AUTHORITY))
    assert not means(*[ta(ROOT)] * RECORDS, ta(AUTHORITY))


def with_long_exponent(bits: int) -> rsa.RSAPrivateKey:
    """A key of which a signature takes as long to check as to make, without its primes."""
    made = rsa.generate_private_key(65537, bits).private_numbers()
    d, n = made.d, made.public_numbers.n
    turned = rsa.RSAPrivateNumbers(
        p=made.p,
        q=made.q,
        d=65537,
        dmp1=rsa.rsa_crt_dmp1(65537, made.p),
        dmq1=rsa.rsa_crt_dmq1(65537, made.q),
        iqmp=made.iqmp,
        public_numbers=rsa.RSAPublicNumbers(e=d, n=n),
    )
    return turned.private_key(unsafe_skip_rsa_key_validation=True)


def test_an_authority_whose_signatures_take_long_to_check_is_none() -> None:
    quick = made("authority", ca=True, key=rsa.generate_private_key(65537, 2048))
    slow = made("authority", ca=True, key=with_long_exponent(2048))
    for authority, holds in ((quick, True), (slow, False)):
        for names in (("mx.dest.test",), ()):
            host = made("mx.dest.test", by=authority, names=names)
            assert means(ta(authority), chain=[host.der, authority.der]) is holds


def element(tag: int, *content: bytes) -> bytes:
    """DER of what takes more than 255 octets (X.690 8.1.3.5)."""
    octets = b"".join(content)
    return bytes([tag, 0x82]) + len(octets).to_bytes(2, "big") + octets


def test_the_key_of_an_authority_that_is_none_of_an_authority_is_not_even_read() -> None:
    """One for Diffie-Hellman (RFC 3279 2.3.3): of four times as many octets it takes minutes."""
    numbers = [element(2, b"\x7f", bytes([one]) * 1099) for one in (7, 1, 5, 3)]
    kind = element(0x30, bytes.fromhex("06072a8648ce3e0201"), element(0x30, *numbers[:3]))
    key = element(0x30, kind, element(3, b"\0", numbers[3]))
    of_rsa = made("authority", ca=True, key=rsa.generate_private_key(65537, 2048))
    signed = of_rsa.parsed.tbs_certificate_bytes
    changed = element(0x30, signed[4:].replace(of_rsa.public_key, key))
    authority = element(0x30, changed, of_rsa.der[4 + len(signed) :])
    begun = time.process_time()
    assert not means(Tlsa(2, 1, 1, sha256(key)), chain=[HOST.der, *[authority] * (dane.CHAIN - 1)])
    assert not means(*[Tlsa(2, 0, 0, authority)] * RECORDS)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("names", [("mx.dest.test",), ()])
def test_authorities_of_one_name_and_key_are_not_asked_for_all_their_paths(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have issued each other, so that the paths through nine of them are a hundred million."""
    one = made("authority", ca=True)
    alike = [made("authority", by=one, ca=True, key=one.key) for _ in range(9)]
    host = made("mx.dest.test", by=one, names=names)
    asked: list[x509.Certificate] = []

    def noting(builder: PolicyBuilder, issuer: x509.Certificate, others: Sequence[x509.Certificate]) -> bool:
        asked.append(issuer)
        return is_trusted(builder, issuer, others)

    is_trusted = dane._is_trusted
    monkeypatch.setattr(dane, "_is_trusted", noting)
    assert not means(Tlsa(2, 0, 0, ROOT.der), chain=[host.der, *(each.der for each in alike)])
    assert len(asked) == (0 if names else ISSUERS)


def test_a_certificate_that_cannot_be_read_is_as_if_it_were_not_shown() -> None:
    odd = bytearray(AUTHORITY.der)
    version = odd.index(b"\xa0\x03\x02\x01\x02") + 4
    odd[version] = 6
    assert means(ta(AUTHORITY), chain=[HOST.der, bytes(odd), AUTHORITY.der])
    assert not means(Tlsa(2, 0, 0, bytes(odd)))
    assert not means(ta(AUTHORITY), chain=[bytes(odd), AUTHORITY.der])


# What its signature covers. Of what follows one bit may be either: that of padding.
SIGNED = HOST.der.index(HOST.parsed.tbs_certificate_bytes) + len(HOST.parsed.tbs_certificate_bytes)


@given(st.integers(0, len(HOST.der) - 1), st.integers(1, 255), st.integers(0, 1))
def test_a_changed_octet_is_judged(place: int, change: int, which: int) -> None:
    certificates = [bytearray(HOST.der), bytearray(AUTHORITY.der)]
    changed = certificates[which]
    changed[place % len(changed)] ^= change
    chain = [bytes(each) for each in certificates]
    records = (Tlsa(2, 0, 1, sha256(chain[1])), Tlsa(2, 0, 0, chain[1]))
    assert means(*records, chain=chain) in (False, True)
    if which == 0 and place < SIGNED:
        assert not means(*records, chain=chain)


def test_no_certificate_at_all() -> None:
    assert not means(Tlsa(3, 1, 1, sha256(b"")), chain=[b""])
    assert not means(Tlsa(3, 0, 0, HOST.der), chain=[])


@given(octets=st.binary(max_size=200), cut=st.integers(0, len(HOST.der)), selector=st.integers(0, 1))
def test_whatever_is_shown_and_recorded_is_judged(octets: bytes, cut: int, selector: int) -> None:
    for shown in (octets, HOST.der[:cut], HOST.der[:cut] + octets):
        if shown != HOST.der:
            assert not means(Tlsa(3, 1, 1, sha256(b"another")), chain=[shown])
            assert not means(Tlsa(2, selector, 0, octets or b"x"), ta(AUTHORITY), chain=[shown, octets])
