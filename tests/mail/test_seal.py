"""DKIM signatures of ours, verified by dkimpy (RSA) and by the test vectors of RFC 8463 (Ed25519)."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.canonical import Canonical, relaxed_field
from forwarder.mail.seal import (
    OVERSIGNED,
    Signer,
    UnusableKeyError,
    generate,
    load_key,
    public_record,
    sign,
    zone_text,
)

NOW = datetime(2024, 1, 2, 12, 0, tzinfo=UTC)  # dkimpy refuses a t= in the future
EARLY = datetime(1970, 1, 2, tzinfo=UTC)
RSA = generate("rsa")
RSA_SIGNER = Signer(domain="mx.example.net", selector="fw1", key=load_key(RSA.pem))
ED = generate("ed25519")
ED_SIGNER = Signer(domain="mx.example.net", selector="fw2", key=load_key(ED.pem))

MESSAGE = (
    b"From: Alice <alice@example.org>\r\nTo: bob@example.net,\r\n\tcarol@example.net\r\n"
    b"Subject:  folded\r\n  subject \r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n"
    b"List-Id: <list.example.org>\r\n\r\nHello,\r\n\r\n  world \t.\r\n\r\n"
)
BODIES = st.lists(
    st.sampled_from([b" ", b"  ", b"\t", b"\r\n", b"\r\n\r\n", b"word", b".", b"\xe9\xff", b"\x0b"]),
    max_size=30,
).map(b"".join)


def accepted(content: bytes, record: str = RSA.record) -> bool:
    return bool(dkim.verify(content, dnsfunc=lambda name, timeout=5: record.encode()))


def signed(content: bytes) -> bytes:
    return sign(Canonical(content), [RSA_SIGNER], now=NOW) + content


def tags(header: bytes) -> dict[str, str]:
    text = re.sub(r"\s+", "", header.decode().partition(":")[2])
    return dict(part.split("=", 1) for part in text.split(";"))


def test_another_implementation_accepts_it() -> None:
    assert accepted(signed(MESSAGE))


@given(BODIES)
def test_another_implementation_accepts_it_with_any_body(body: bytes) -> None:
    on_the_wire = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    header = sign(Canonical(b"From: a@example.org\r\n\r\n" + body), [RSA_SIGNER], now=NOW)
    assert accepted(header + b"From: a@example.org\r\n\r\n" + on_the_wire)


def test_no_header_at_all_is_signed_without_fuss() -> None:
    for content in (b"", b"\r\nbody\r\n", b" folded first\r\n\r\n", b"\xff\xfe no colon\r\n\r\nx"):
        assert sign(Canonical(content), [RSA_SIGNER, ED_SIGNER], now=NOW).count(b"DKIM-Signature:") == 2


@pytest.mark.parametrize(
    "name", [b"From", b"To", b"Cc", b"Subject", b"Date", b"Reply-To", b"MIME-Version", b"Content-Type"]
)
def test_a_second_header_breaks_the_signature(name: bytes) -> None:
    content = signed(MESSAGE)
    assert accepted(content)
    assert not accepted(name + b": added later\r\n" + content)


def test_appended_text_breaks_the_signature() -> None:
    assert not accepted(signed(MESSAGE) + b"appended\r\n")


def test_the_tags() -> None:
    first, second = re.split(
        rb"(?<=\r\n)(?=DKIM-Signature)", sign(Canonical(MESSAGE), [RSA_SIGNER, ED_SIGNER], now=NOW)
    )
    rsa_tags, ed_tags = tags(first), tags(second)
    assert (rsa_tags["a"], ed_tags["a"]) == ("rsa-sha256", "ed25519-sha256")
    assert (rsa_tags["s"], ed_tags["s"]) == ("fw1", "fw2")
    for given_tags in (rsa_tags, ed_tags):
        assert given_tags["v"] == "1"
        assert given_tags["c"] == "relaxed/relaxed"
        assert given_tags["d"] == "mx.example.net"
        assert given_tags["t"] == "1704196800"  # 2024-01-02T12:00:00Z
        assert "l" not in given_tags
        names = given_tags["h"].split(":")
        assert names.count("from") == 2  # one present
        assert names.count("cc") == 1  # none present
        assert names.count("message-id") == 1
        assert names.count("list-id") == 1
        assert {name.decode() for name in OVERSIGNED} <= set(names)
    assert rsa_tags["bh"] == base64.b64encode(hashlib.sha256(b"Hello,\r\n\r\n world .\r\n").digest()).decode()


def test_lines_are_short() -> None:
    long = Signer(domain="a-rather-long-name." * 5 + "example.net", selector="s" * 50, key=RSA_SIGNER.key)
    header = sign(Canonical(MESSAGE), [RSA_SIGNER, ED_SIGNER], now=NOW)
    assert max(map(len, header.split(b"\r\n"))) <= 78
    assert header.endswith(b"\r\n")
    assert b"\n\r\n" not in header
    assert accepted(sign(Canonical(MESSAGE), [long], now=NOW) + MESSAGE)


def test_messages_with_the_same_fields_have_their_own_time_and_body_hash() -> None:
    for moment, body in ((NOW, b"one\r\n"), (NOW + timedelta(days=1), b"two\r\n"), (EARLY, b"three\r\n")):
        content = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
        header = sign(Canonical(content), [RSA_SIGNER], now=moment)
        assert tags(header)["t"] == str(int(moment.timestamp()))
        assert tags(header)["bh"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert accepted(header + content)


def test_two_signers_of_one_message_have_their_own_names() -> None:
    other = Signer(domain="100%.example", selector="%b", key=ED_SIGNER.key)
    first, second = re.split(
        rb"(?<=\r\n)(?=DKIM-Signature)", sign(Canonical(MESSAGE), [ED_SIGNER, other], now=NOW)
    )
    assert (tags(first)["d"], tags(first)["s"]) == ("mx.example.net", "fw2")
    assert (tags(second)["d"], tags(second)["s"]) == ("100%.example", "%b")


def test_ed25519_signs_the_hash_as_rfc_8463_says() -> None:
    header = sign(Canonical(MESSAGE), [ED_SIGNER], now=NOW)
    unsigned, _, value = header.partition(b"b=\r\n")
    names = tags(header)["h"].split(":")
    left = {name: Canonical(MESSAGE).instances(name.encode()) for name in names}
    lines = [relaxed_field(left[name].pop()) for name in names if left[name]]
    data = b"\r\n".join([*lines, relaxed_field(unsigned + b"b=")])
    public = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(ED.record.partition("p=")[2]))
    assert tags(header)["a"] == "ed25519-sha256"
    public.verify(base64.b64decode(value), hashlib.sha256(data).digest())  # raises when it is not so


def test_hundreds_of_one_header_do_not_swell_the_signature() -> None:
    content = b"To: x@example.org\r\n" * 5000 + MESSAGE
    header = sign(Canonical(content), [RSA_SIGNER], now=NOW)
    assert len(header) < 3000
    assert accepted(header + content)


@pytest.mark.parametrize(("count", "named"), [(19, 20), (20, 21), (21, 20), (25, 20)])
def test_one_more_is_named_while_all_are_covered(count: int, named: int) -> None:
    content = b"To: x@example.org\r\n" * count + MESSAGE.replace(b"To: ", b"X-To: ")
    header = sign(Canonical(content), [RSA_SIGNER], now=NOW)
    assert tags(header)["h"].split(":").count("to") == named
    assert accepted(header + content)


def test_a_generated_key_loads_and_publishes_itself() -> None:
    assert public_record(load_key(RSA.pem)) == RSA.record
    assert public_record(load_key(ED.pem)) == ED.record
    assert RSA.pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    key = load_key(RSA.pem)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048
    assert re.fullmatch(r"v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}=", ED.record)


def test_the_public_key_of_rfc_8463() -> None:
    # Appendix A.2: the secret key and the record it is published with.
    key = ed25519.Ed25519PrivateKey.from_private_bytes(
        base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    )
    assert public_record(key) == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def test_zone_text_is_cut_into_strings_of_255() -> None:
    pieces = re.findall(r'"([^"]*)"', zone_text(RSA.record))
    assert len(pieces) == 2
    assert len(pieces[0]) == 255
    assert "".join(pieces) == RSA.record
    assert zone_text(ED.record) == f'"{ED.record}"'


def test_keys_that_cannot_sign_mail_are_refused() -> None:
    encrypted = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    from cryptography.hazmat.primitives.asymmetric import ec

    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for pem in (b"", b"nonsense", RSA.pem[:200], encrypted, curve):
        with pytest.raises(UnusableKeyError):
            load_key(pem)


def test_a_pkcs1_key_loads_too() -> None:
    pem = RSA_SIGNER.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert public_record(load_key(pem)) == RSA.record
