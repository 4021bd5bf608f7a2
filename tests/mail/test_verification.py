"""DKIM verification: RFC 8463's example, dkimpy as the signer, and signatures that must not count."""

import base64
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.canonical import Canonical, Form
from forwarder.mail.public_key import KeyRecordError, read_key
from forwarder.mail.seal import Signer, generate, load_key, sealed, sign, signed_fields
from forwarder.mail.verification import AuthResult, SignatureResult, needed_keys, verify

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEY = generate("rsa")
SIGNER = Signer(domain="example.org", selector="sel", key=load_key(KEY.pem))
ANSWERS = {"sel._domainkey.example.org": [KEY.record.encode()]}
MESSAGE = (
    b"From: Alice <alice@example.org>\r\nTo: bob@example.net\r\nSubject: hello\r\n"
    b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\nHello  there \r\n\r\nbye\r\n"
)
# RFC 8463 appendix A.3: one message, signed with both algorithms.
RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_8463_KEYS = {
    "brisbane._domainkey.football.example.com": [
        b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    ],
    "test._domainkey.football.example.com": [
        b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWR"
        b"iGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC"
        b"DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3"
        b"Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
    ],
}


def signed_by_dkimpy(content: bytes, **options: object) -> bytes:
    return dkim.sign(content, b"sel", b"example.org", KEY.pem, **options) + content


def only(content: bytes, answers: dict[str, list[bytes]] = ANSWERS, now: datetime = NOW) -> SignatureResult:
    [result] = verify(Canonical(content), answers, now=now)
    return result


def test_the_example_of_rfc_8463() -> None:
    results = verify(Canonical(RFC_8463), RFC_8463_KEYS, now=NOW)
    assert [(r.result, r.algorithm, r.selector, r.domain) for r in results] == [
        (AuthResult.PASS, "ed25519-sha256", "brisbane", "football.example.com"),
        (AuthResult.PASS, "rsa-sha256", "test", "football.example.com"),
    ]
    assert needed_keys(Canonical(RFC_8463)) == tuple(RFC_8463_KEYS)
    changed = RFC_8463.replace(b"Is dinner", b"is dinner")
    assert [r.result for r in verify(Canonical(changed), RFC_8463_KEYS, now=NOW)] == [AuthResult.FAIL] * 2


@pytest.mark.parametrize("head", [b"simple", b"relaxed"])
@pytest.mark.parametrize("body", [b"simple", b"relaxed"])
def test_signatures_of_another_implementation(head: bytes, body: bytes) -> None:
    content = signed_by_dkimpy(MESSAGE, canonicalize=(head, body))
    assert only(content).result is AuthResult.PASS
    assert only(content.replace(b"bye", b"Bye")).result is AuthResult.FAIL
    assert only(content.replace(b"Subject: hello", b"Subject: Hello")).result is AuthResult.FAIL
    reflowed = only(content.replace(b"Hello  there", b"Hello there"))
    assert reflowed.result is (AuthResult.PASS if body == b"relaxed" else AuthResult.FAIL)


def test_our_own_signatures() -> None:
    both = [
        SIGNER,
        Signer(domain="example.org", selector="ed", key=load_key((ed := generate("ed25519")).pem)),
    ]
    content = sign(Canonical(MESSAGE), both, now=NOW) + MESSAGE
    answers = {**ANSWERS, "ed._domainkey.example.org": [ed.record.encode()]}
    assert [r.result for r in verify(Canonical(content), answers, now=NOW)] == [
        AuthResult.PASS,
        AuthResult.PASS,
    ]


def test_appended_text_after_the_signed_length_does_not_count() -> None:
    content = signed_by_dkimpy(MESSAGE, length=True)
    assert only(content).result is AuthResult.PASS  # all of the body is within l=
    assert only(content + b"appended\r\n").result is AuthResult.POLICY
    assert dkim.verify(content + b"appended\r\n", dnsfunc=lambda name, timeout=5: KEY.record.encode())


@pytest.mark.parametrize("name", [b"From", b"To", b"Cc", b"Subject", b"Date", b"Reply-To"])
def test_a_second_header_that_is_not_signed_does_not_count(name: bytes) -> None:
    first = b"" if name in MESSAGE else name + b": one\r\n"
    names = [b"from", b"to", b"cc", b"subject", b"date", b"reply-to"]
    content = signed_by_dkimpy(first + MESSAGE, include_headers=names)
    assert only(content).result is AuthResult.PASS
    assert only(name + b": second@example.org\r\n" + content).result in (AuthResult.POLICY, AuthResult.FAIL)


@pytest.mark.parametrize("names", [1, 2])
def test_a_second_header_that_says_the_same_takes_nothing_from_a_signature(names: int) -> None:
    """As programs write that send MIME-Version twice."""
    twice = b"MIME-Version: 1.0\r\nSubject:  hello \r\nmime-version: 1.0\r\n" + MESSAGE
    content = signed_by_dkimpy(twice, include_headers=[b"from", b"subject", *[b"mime-version"] * names])
    assert only(content).result is AuthResult.PASS
    added = b"Subject: hello\r\nSubject: Hello\r\n" + content
    assert only(added).result is AuthResult.POLICY


@pytest.mark.parametrize(("head", "same"), [(b"relaxed", True), (b"simple", False)])
def test_whether_two_headers_say_the_same_is_as_the_signer_has_it(head: bytes, same: bool) -> None:
    content = signed_by_dkimpy(b"Cc: a  b@x.org\r\n" + MESSAGE, canonicalize=(head, b"simple"))
    added = only(b"Cc: a b@x.org\r\n" + content).result
    assert added is (AuthResult.PASS if same else AuthResult.POLICY)


def test_sha1_does_not_count() -> None:
    content = signed_by_dkimpy(MESSAGE).replace(b"a=rsa-sha256", b"a=rsa-sha1")
    assert only(content).result is AuthResult.PERMERROR


def test_short_keys_do_not_count() -> None:
    # A 512-bit modulus, given as a record: the key itself is never needed.
    numbers = rsa.RSAPublicNumbers(65537, (1 << 511) + 0x1D5)
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; p=" + base64.b64encode(der)
    result = only(signed_by_dkimpy(MESSAGE), {"sel._domainkey.example.org": [record]})
    assert result.result is AuthResult.PERMERROR
    assert "512" in result.reason


@pytest.mark.parametrize(("bits", "counts"), [(17, True), (64, True), (65, False), (3071, False)])
def test_keys_with_a_long_exponent_do_not_count(bits: int, counts: bool) -> None:
    key = rsa.RSAPublicNumbers(e=2 ** (bits - 1) + 1, n=2**3071 + 1).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; p=" + base64.b64encode(der)
    if counts:
        read_key([record])
    else:
        with pytest.raises(KeyRecordError, match="long exponent"):
            read_key([record])


def element(tag: int, *content: bytes) -> bytes:
    """DER of what takes more than 255 octets (X.690 8.1.3.5)."""
    octets = b"".join(content)
    return bytes([tag, 0x82]) + len(octets).to_bytes(2, "big") + octets


def of_another_kind(octets: int) -> bytes:
    """A key for Diffie-Hellman (RFC 3279 2.3.3) of which each number has so many octets, and none is a group's."""
    prime, generator, order, value = (
        element(2, b"\x7f", bytes([one]) * (octets - 1)) for one in (7, 1, 5, 3)
    )
    kind = bytes.fromhex("06072a8648ce3e0201")
    key = element(3, b"\0", value)
    return element(0x30, element(0x30, kind, element(0x30, prime, generator, order)), key)


def test_keys_of_another_kind_are_not_even_read() -> None:
    """With three times as many octets, which a record has room for, one takes a minute."""
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(of_another_kind(1100))
    begun = time.process_time()
    with pytest.raises(KeyRecordError, match="unknown kind of key"):
        read_key([record] * 10)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("bits", [1024, 2048, 8192])
@pytest.mark.parametrize("form", [PublicFormat.SubjectPublicKeyInfo, PublicFormat.PKCS1])
def test_both_forms_of_an_rsa_key_are_read(form: PublicFormat, bits: int) -> None:
    """RFC 6376 3.6.1 asks for the bare one; nearly all publish the other."""
    key = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 0x1D5).public_key()
    record = b"v=DKIM1; p=" + base64.b64encode(key.public_bytes(Encoding.DER, form))
    assert read_key([record]).key == key


def test_the_time_a_signature_is_good_for() -> None:
    def until(seconds: int) -> bytes:
        header = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel;"
        header += b" t=1000; x=%d; h=from; bh=" % seconds
        return header + b"AAAA; b=AAAA\r\n" + MESSAGE

    at = int(NOW.timestamp())
    assert only(until(at - 1)).reason == "the signature has expired"
    assert only(until(at - 1)).result is AuthResult.FAIL
    assert only(until(at + 1)).reason == "the body was changed"
    assert only(until(999)).result is AuthResult.PERMERROR


def test_what_dns_says() -> None:
    content = signed_by_dkimpy(MESSAGE)
    name = "sel._domainkey.example.org"
    key = KEY.record.partition("p=")[2].encode()
    expected = {
        b"v=DKIM1; p=" + key: AuthResult.PASS,
        b"p=" + key: AuthResult.PASS,
        b"v=DKIM1; h=sha1:sha256; s=email; t=s; p=" + key[:40] + b" " + key[40:]: AuthResult.PASS,
        b"v=DKIM1; p=": AuthResult.PERMERROR,
        b"p=" + key + b"; v=DKIM1": AuthResult.PERMERROR,
        b"v=DKIM2; p=" + key: AuthResult.PERMERROR,
        b"v=DKIM1; h=sha1; p=" + key: AuthResult.PERMERROR,
        b"v=DKIM1; s=other; p=" + key: AuthResult.PERMERROR,
        b"v=DKIM1; k=ed25519; p=" + key: AuthResult.PERMERROR,
        b"v=DKIM1; k=unknown; p=" + key: AuthResult.PERMERROR,
        b"v=DKIM1; p=!!!": AuthResult.PERMERROR,
        b"\xff\xfe": AuthResult.PERMERROR,
        b"": AuthResult.PERMERROR,
        generate("rsa").record.encode(): AuthResult.FAIL,
    }
    assert {record: only(content, {name: [record]}).result for record in expected} == expected
    assert only(content, {}).result is AuthResult.TEMPERROR
    assert only(content, {name: []}).result is AuthResult.PERMERROR
    assert only(content, {name: [b"unrelated", KEY.record.encode()]}).result is AuthResult.PASS


def resigned(*tags: bytes, form: bytes = b"c=relaxed/relaxed;", body: Form = Form.RELAXED) -> bytes:
    """MESSAGE with a signature of ours that has these tags, too."""
    message = Canonical(MESSAGE)
    names, data = signed_fields(message)
    own = [b"v=1; a=rsa-sha256; d=example.org; s=sel;", form, *tags, b"h=" + b":".join(names) + b";"]
    own.append(b"bh=" + base64.b64encode(message.body_hash(body)) + b";")
    return sealed(b"DKIM-Signature", own, data, SIGNER) + MESSAGE


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        (b"dns/txt", True),
        (b"DNS/TXT", True),
        (b"dns/new:dns/txt", True),
        (b"dns/txt : dns/new", True),
        (b"dns/new", False),
        (b"dns/txt2", False),
    ],
)
def test_one_known_way_to_ask_for_the_key_is_enough(value: bytes, counts: bool) -> None:  # RFC 6376 3.5, q=
    assert (only(resigned(b"q=" + value + b";")).result is AuthResult.PASS) is counts


def test_a_canonicalisation_that_names_one_form_means_simple_for_the_body() -> None:  # RFC 6376 3.5, c=
    assert Canonical(MESSAGE).body_hash(Form.SIMPLE) != Canonical(MESSAGE).body_hash(Form.RELAXED)
    assert only(resigned(form=b"c=relaxed;", body=Form.SIMPLE)).result is AuthResult.PASS
    assert only(resigned(form=b"c=relaxed;", body=Form.RELAXED)).result is AuthResult.FAIL


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (
            b"0" * 74 + b"20",
            AuthResult.PASS,
        ),  # "Hello there", "" and "bye" with their ends: 13 + 2 + 5 octets
        (b"9" * 76, AuthResult.FAIL),
        (b"0" * 77, AuthResult.PERMERROR),
    ],
)
def test_a_length_has_76_digits_at_most(length: bytes, expected: AuthResult) -> None:  # RFC 6376 3.5, l=
    assert only(resigned(b"l=" + length + b";")).result is expected


@pytest.mark.parametrize(
    ("identity", "anywhere", "strictly"),
    [
        (b'"a@example.net"@example.org', True, True),
        (b"a@example.org", True, True),
        (b"@Example.ORG", True, True),
        (b"a@exam\r\n\tple.org", True, True),  # RFC 6376 2.8: folded, it is the same
        (b"a@sub.example.org", True, False),
        (b"a@example.net", False, False),
    ],
)
def test_whom_a_signature_may_be_made_for_is_what_its_key_allows(
    identity: bytes, anywhere: bool, strictly: bool
) -> None:
    """RFC 6376 3.5, i=, and 3.6.1, t=s."""
    message = Canonical(MESSAGE)
    body_hash = base64.b64encode(message.body_hash(Form.RELAXED))
    names, data = signed_fields(message)
    tags = b"v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=" + b":".join(names) + b";"
    header = sealed(
        b"DKIM-Signature", [tags, b"i=" + identity + b";", b"bh=" + body_hash + b";"], data, SIGNER
    )
    for flags, counts in ((b"y", anywhere), (b"s", strictly), (b"y:s", strictly)):
        record = b"t=" + flags + b"; " + KEY.record.partition(" ")[2].encode()
        found = only(header + MESSAGE, {"sel._domainkey.example.org": [record]})
        assert found.result is (AuthResult.PASS if counts else AuthResult.PERMERROR), flags


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"v=1", b"v=2", "unknown version"),
        (b"v=1;", b"", "unknown version"),
        (b"d=example.org", b"d=exa mple..org", "not a domain name"),
        (b"d=example.org", b"d=", "not a domain name"),
        (b"s=sel", b"s=sel; s=other", "the tag s= is given twice"),
        (b"i=@example.org", b"i=@evil.example", "i= is not of the signing domain"),
        (b"i=@example.org", b"i=a@notexample.org", "i= is not of the signing domain"),
        (b"q=dns/txt", b"q=http", "unknown way to ask for the key"),
        (b"s=sel", b"s=sel; l=x", "l= is not a number"),
        (b"s=sel", b"s=sel; junk", "a tag has no name or no value"),
        (b"bh=", b"bh=*", "bh= is not base64"),
        (b"\r\n b=", b"\r\n b=*", "b= is not base64"),
        (b"c=relaxed/simple", b"c=strange", "unknown canonicalisation"),
        (b"h=from", b"h=xfrom", "From is not signed"),
        (b"h=from : ", b"h=", "From is not signed"),
    ],
)
def test_malformed_signatures_are_permanent_errors(before: bytes, after: bytes, reason: str) -> None:
    content = signed_by_dkimpy(MESSAGE, include_headers=[b"from", b"to"])
    assert before in content
    result = only(content.replace(before, after, 1))
    assert (result.result, result.reason) == (AuthResult.PERMERROR, reason)


def test_at_most_ten_signatures_are_looked_at() -> None:
    fields = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=d%d.example; s=s; h=from; bh=AAAA; b=AAAA\r\n" % number
        for number in range(50)
    )
    assert len(verify(Canonical(fields + MESSAGE), {}, now=NOW)) == 10
    assert needed_keys(Canonical(fields + MESSAGE)) == tuple(
        f"s._domainkey.d{number}.example" for number in range(40, 50)
    )


def test_the_signature_of_the_author_is_found_below_those_of_many_hops() -> None:
    signed = sign(Canonical(MESSAGE), [SIGNER], now=NOW) + MESSAGE
    for number in range(12):
        signed = sign(Canonical(signed), [replace(SIGNER, domain=f"hop{number}.example")], now=NOW) + signed
    results = verify(Canonical(signed), ANSWERS, now=NOW)
    assert (results[-1].domain, results[-1].result) == (SIGNER.domain, AuthResult.PASS)


def test_a_head_that_begins_with_a_blank() -> None:
    content = b" leading: blank\r\n" + signed_by_dkimpy(MESSAGE)
    assert only(content).result is AuthResult.PASS  # the line belongs to no header


@given(st.binary(max_size=400))
def test_no_signature_raises(value: bytes) -> None:
    content = b"DKIM-Signature:" + value.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n" + MESSAGE
    for name in needed_keys(Canonical(content)):
        assert len(name) <= 600
    assert all(result.result is not AuthResult.PASS for result in verify(Canonical(content), {}, now=NOW))


@given(st.binary(max_size=200))
def test_no_key_record_raises(record: bytes) -> None:
    result = only(signed_by_dkimpy_once(), {"sel._domainkey.example.org": [record]})
    assert result.result is AuthResult.PERMERROR


_SIGNED: list[bytes] = []


def signed_by_dkimpy_once() -> bytes:
    if not _SIGNED:
        _SIGNED.append(signed_by_dkimpy(MESSAGE))
    return _SIGNED[0]


def test_bombs_cost_little() -> None:
    header = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=from"
    header += b":x" * 3000 + b"; bh=AAAA; b=AAAA\r\n"
    content = header * 10 + b"X: y\r\n" * 20_000 + MESSAGE + b" \t a" * 500_000
    begun = time.process_time()
    results = verify(Canonical(content), ANSWERS, now=NOW + timedelta(days=1))
    assert len(results) == 10
    assert time.process_time() - begun < 1


def test_a_revoked_key_never_passes_even_when_it_signed() -> None:
    content = sign(Canonical(MESSAGE), [SIGNER], now=NOW) + MESSAGE
    assert (
        only(content, {"sel._domainkey.example.org": [b"v=DKIM1; k=rsa; p="]}).reason == "the key is revoked"
    )


def test_the_pem_of_the_tests_is_what_dkimpy_takes() -> None:
    assert SIGNER.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) == KEY.pem
