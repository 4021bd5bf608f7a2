"""ARC chains: sealed hop by hop, judged by us and by dkimpy, then broken in every way."""

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime

import dkim
import pytest

from forwarder.mail.arc import Chain, ChainStatus, needed_keys, seal_arc, validate
from forwarder.mail.canonical import Canonical, Form, relaxed_field
from forwarder.mail.seal import Signer, generate, load_key, sealed, signed_fields

NOW = datetime(2024, 1, 2, 12, 0, tzinfo=UTC)
KEY = generate("rsa")
SIGNER = Signer(domain="hop.example.net", selector="arc", key=load_key(KEY.pem))
NAME = "arc._domainkey.hop.example.net"
ANSWERS = {NAME: [KEY.record.encode()]}
MESSAGE = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: x\r\n\r\nHello.\r\n"


def judge(content: bytes) -> Chain:
    return validate(Canonical(content), ANSWERS, now=NOW)


def seal(content: bytes, chain: ChainStatus | None = None) -> bytes:
    return seal_arc(
        Canonical(content),
        signer=SIGNER,
        authserv_id="hop.example.net",
        results="spf=pass smtp.mailfrom=example.org; dmarc=pass header.from=example.org",
        chain=chain or judge(content).status,
        now=NOW,
    )


def chained(sets: int, content: bytes = MESSAGE) -> bytes:
    for _ in range(sets):
        content = seal(content) + content
    return content


def dkimpy_says(content: bytes) -> bytes | None:
    status: bytes | None = dkim.arc_verify(content, dnsfunc=lambda name, timeout=5: KEY.record.encode())[0]
    return status


def altered(header: bytes, change: Callable[[bytes], bytes], content: bytes) -> bytes:
    """The content with its topmost ``header`` changed."""
    found = re.search(rb"(?m)^" + header + rb":(?:.*\r\n)(?:[ \t].*\r\n)*", content)
    assert found is not None
    replaced = change(found[0])
    assert replaced != found[0]
    return content[: found.start()] + replaced + content[found.end() :]


def test_mail_without_arc_has_no_chain() -> None:
    assert judge(MESSAGE).status is ChainStatus.NONE
    assert needed_keys(Canonical(MESSAGE)) == ()
    assert judge(b"").status is ChainStatus.NONE


@pytest.mark.parametrize("sets", [1, 2, 3, 5])
def test_each_seal_continues_the_chain(sets: int) -> None:
    content = chained(sets)
    assert judge(content) == Chain(
        status=ChainStatus.PASS,
        domain="hop.example.net",
        selector="arc",
        results=f"i={sets}; hop.example.net; spf=pass smtp.mailfrom=example.org; dmarc=pass header.from=example.org",
    )
    assert dkimpy_says(content) == b"pass"
    assert needed_keys(Canonical(content)) == (NAME,)
    expected = [b"none"] + [b"pass"] * (sets - 1)
    assert re.findall(rb"cv=(\w+)", content) == expected[::-1]
    assert re.findall(rb"(?m)^ARC-Seal: i=(\d+);", content) == [b"%d" % n for n in range(sets, 0, -1)]


def test_the_order_of_the_three_headers_and_their_lines() -> None:
    headers = seal(MESSAGE)
    assert re.findall(rb"(?m)^([A-Z][A-Za-z-]+):", headers) == [
        b"ARC-Seal",
        b"ARC-Message-Signature",
        b"ARC-Authentication-Results",
    ]
    assert max(map(len, headers.split(b"\r\n"))) <= 78
    assert headers.endswith(
        b"ARC-Authentication-Results: i=1; hop.example.net;\r\n"
        b"\tspf=pass smtp.mailfrom=example.org;\r\n"
        b"\tdmarc=pass header.from=example.org\r\n"
    )


def test_a_body_changed_on_the_way_fails_until_sealed_as_failed() -> None:
    content = chained(2).replace(b"Hello.", b"Goodbye.")
    assert judge(content).status is ChainStatus.FAIL
    assert dkimpy_says(content) == b"fail"
    sealed = seal(content)
    assert b"ARC-Seal: i=3;" in sealed
    assert b"cv=fail;" in sealed
    assert judge(sealed + content).status is ChainStatus.FAIL
    assert seal(sealed + content) == b""  # RFC 8617 5.1: the end of this chain


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "a seal of nobody's": lambda c: altered(
        b"ARC-Seal", lambda h: re.sub(rb"b=[\s\S]*", b"b=AAAA\r\n", h), c
    ),
    "results improved": lambda c: altered(
        b"ARC-Authentication-Results", lambda h: h.replace(b"dmarc=pass", b"dmarc=best"), c
    ),
    "a set taken out": lambda c: altered(b"ARC-Authentication-Results", lambda h: b"", c),
    "no message signature": lambda c: altered(b"ARC-Message-Signature", lambda h: b"", c),
    "no seal": lambda c: altered(b"ARC-Seal", lambda h: b"", c),
    "a seal twice": lambda c: altered(b"ARC-Seal", lambda h: h + h, c),
    "results twice": lambda c: altered(b"ARC-Authentication-Results", lambda h: h + h, c),
    "a first set that says pass": lambda c: c.replace(b"cv=none", b"cv=pass"),
    "a later set that says none": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"pass", b"none"), c),
    "a chain sealed as failed": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"pass", b"fail"), c),
    "instance 0": lambda c: c.replace(b"i=1;", b"i=0;"),
    "instance 51": lambda c: c.replace(b"i=3;", b"i=51;"),
    "a gap": lambda c: c.replace(b"i=3;", b"i=4;"),
    "no instance": lambda c: c.replace(b"i=3;", b""),
    "a tag twice": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"i=3;", b"i=3; s=arc;"), c),
    "a seal over headers": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"i=3;", b"i=3; h=from;"), c),
    "sha1": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"sha256", b"sha1"), c),
    "another domain's name": lambda c: altered(b"ARC-Seal", lambda h: h.replace(b"hop.", b"hip."), c),
    "only the results": lambda c: (
        b"ARC-Authentication-Results: i=1; hop.example.net; dmarc=pass\r\n" + MESSAGE
    ),
    "a subject changed": lambda c: c.replace(b"Subject: x", b"Subject: y"),
    "a second subject": lambda c: b"Subject: y\r\n" + c,
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_chains_never_pass(what: str) -> None:
    content = FORGERIES[what](chained(3))
    assert judge(content).status is ChainStatus.FAIL
    if what != "no instance":  # dkimpy leaves such headers out and judges the rest
        assert dkimpy_says(content) != b"pass"
    assert b"cv=pass" not in seal(content)


def test_a_key_that_binds_the_identity_of_dkim_may_seal() -> None:
    """t=s is about the i= of a DKIM-Signature; that of ARC is the number of the set (RFC 8617 4.1.2)."""
    content = chained(2)
    strict = KEY.record.replace("v=DKIM1;", "v=DKIM1; t=s;").encode()
    assert validate(Canonical(content), {NAME: [strict]}, now=NOW).status is ChainStatus.PASS
    assert dkim.arc_verify(content, dnsfunc=lambda name, timeout=5: strict)[0] == b"pass"


def test_a_signature_that_covers_a_seal_fails() -> None:
    # RFC 8617 4.1.2: the message signature must not cover seals.
    content = altered(
        b"ARC-Message-Signature", lambda h: h.replace(b"h=from:", b"h=arc-seal:from:"), chained(1)
    )
    assert "covers a seal" in judge(content).reason


def test_a_seal_that_names_headers_fails() -> None:
    # RFC 8617 4.1.3: a seal is over the ARC sets alone.
    content = altered(b"ARC-Seal", lambda h: h.replace(b"d=", b"h=from; d="), chained(1))
    assert judge(content).reason == "seal 1: h= is not allowed"
    assert dkimpy_says(content) == b"fail"


def test_an_intermediate_signature_may_be_broken() -> None:
    # RFC 8617 5.2: only the newest message signature must hold; lists change what earlier hops signed.
    content = chained(1)
    changed = content.replace(b"Hello.", b"Hello from the list.")
    resealed = seal(changed, chain=ChainStatus.PASS) + changed
    assert judge(resealed).status is ChainStatus.PASS
    assert dkimpy_says(resealed) == b"pass"


def test_fifty_sets_are_the_most() -> None:
    content = chained(50)
    assert judge(content).status is ChainStatus.PASS
    assert b"ARC-Seal: i=50;" in content
    assert seal(content) == b""
    assert judge(content.replace(b"i=50;", b"i=51;")).status is ChainStatus.FAIL


def test_dns_that_cannot_tell_is_no_pass_and_no_lasting_failure() -> None:
    content = chained(1)
    chain = validate(Canonical(content), {}, now=NOW)
    assert (chain.status, chain.temporary) == (ChainStatus.FAIL, True)
    assert judge(content.replace(b"Hello", b"Hullo")).temporary is False


def test_a_chain_nobody_judged_is_not_continued() -> None:
    def unjudged(content: bytes) -> bytes:
        return seal_arc(
            Canonical(content),
            signer=SIGNER,
            authserv_id="hop.example.net",
            results="none",
            chain=None,
            now=NOW,
        )

    assert unjudged(chained(1)) == b""
    assert judge(unjudged(MESSAGE) + MESSAGE).status is ChainStatus.PASS


def test_a_broken_chain_that_somebody_calls_good_is_sealed_as_failed() -> None:
    content = altered(b"ARC-Message-Signature", lambda header: b"", chained(2))
    assert b"cv=fail;" in seal(content, chain=ChainStatus.PASS)


def test_a_chain_that_somebody_calls_none_is_sealed_as_failed() -> None:
    assert b"cv=fail;" in seal(chained(1), chain=ChainStatus.NONE)


def first_set(more: bytes = b"", left_out: bytes = b"") -> bytes:
    """MESSAGE with a set of its own making: a message signature with ``more`` tags, and over all but one field."""
    message = Canonical(MESSAGE.replace(left_out, b"") if left_out else MESSAGE)
    names, data = signed_fields(message)
    body_hash = base64.b64encode(message.body_hash(Form.RELAXED))
    tags = [
        b"i=1; a=rsa-sha256; d=hop.example.net; s=arc;",
        more,
        b"h=" + b":".join(name for name in names if name + b":" not in left_out.lower()) + b";",
        b"bh=" + body_hash + b";",
    ]
    results = b"ARC-Authentication-Results: i=1; hop.example.net; none\r\n"
    signature = sealed(b"ARC-Message-Signature", [tag for tag in tags if tag], data, SIGNER)
    own = b"\r\n".join([relaxed_field(results), relaxed_field(signature), b""])
    top = sealed(b"ARC-Seal", [b"i=1; cv=none; a=rsa-sha256; d=hop.example.net; s=arc;"], own, SIGNER)
    return top + signature + results + MESSAGE


def test_a_message_signature_without_canonicalisation_means_relaxed() -> None:
    content = first_set()
    assert b"c=" not in content
    assert judge(content).status is ChainStatus.PASS
    assert dkimpy_says(content) == b"pass"


# RFC 8617 4.1.2: it means what a DKIM-Signature means. NOW is 1704196800, which for dkimpy is long past.
@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (b"t=1704190000; x=1704196799;", "the signature has expired"),
        (b"x=1704196799;", "the signature has expired"),
        (b"t=1704196700; x=1704196699;", "x= is before t="),
        (b"q=dns/caa;", "unknown way to ask for the key"),
    ],
)
def test_the_newest_message_signature_keeps_the_terms_of_dkim(more: bytes, fault: str) -> None:
    content = first_set(more)
    chain = judge(content)
    assert (chain.status, chain.reason) == (ChainStatus.FAIL, f"message signature 1: {fault}")
    assert dkimpy_says(content) == b"fail"


@pytest.mark.parametrize("more", [b"x=1704196800;", b"t=1704196800; x=1704196800;", b"q=dns/txt;"])
def test_a_message_signature_holds_to_the_end_of_its_time(more: bytes) -> None:
    assert judge(first_set(more)).status is ChainStatus.PASS


@pytest.mark.parametrize(
    "left_out", [b"From: a@example.org\r\n", MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n"]
)
def test_what_a_message_signature_covers_is_up_to_who_seals(left_out: bytes) -> None:
    content = first_set(left_out=left_out)
    assert judge(content).status is ChainStatus.PASS
    assert dkimpy_says(content) == b"pass"


def test_the_terms_of_an_older_message_signature_are_not_looked_at() -> None:
    # RFC 8617 5.2: only the newest must hold. The time of a hop ends while the message is at the next one.
    content = first_set(b"x=1704196799;")
    resealed = seal(content, chain=ChainStatus.PASS) + content
    assert judge(resealed).status is ChainStatus.PASS
