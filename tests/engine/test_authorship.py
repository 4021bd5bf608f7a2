"""No signature of ours vouches for an author we do not know, and none can be stretched over what we did not see."""

from collections.abc import Mapping

import dkim
import pytest

from tests.engine.town import MAIL, Town, head_of

HEADS = {
    "two From": b"From: ann@example.com\r\nFrom: bob@out.test\r\n",
    "two authors": b"From: ann@example.com, bob@out.test\r\n",
    "no From": b"Subject: x\r\n",
    "a blank before the colon": b"From : ann@example.com\r\n",
    "a blank before the name": b" From: ann@example.com\r\n",
    "NUL in the name": b"From\0: ann@example.com\r\n",
    "an empty From": b"From:\r\n \r\n",
    "eight bits": b"From: \xff\xfe <ann@example.com>\r\n",
    "octets for an address": b"From: \xff@\xff\r\n",
    "a group": b"From: friends: ann@example.com;\r\n",
    "a display name that is an address": b'From: "ann@example.com" <bob@out.test>\r\n',
    "an encoded address": b"From: =?utf-8?q?ann=40example=2Ecom?= <bob@out.test>\r\n",
}


async def test_heads_that_parsers_read_differently_never_get_the_author_s_signature(engine: Town) -> None:
    for name, head in HEADS.items():
        engine.sink.messages.clear()
        answer = await engine.send("bob@out.test", "info@example.com", head + b"X: y\r\n\r\nx\r\n")
        assert answer.code in (250, 550, 554), name
        if answer.code == 250:
            (message,) = await engine.sink.wait_for(1)
            assert message.content.endswith(head + b"X: y\r\n\r\nx\r\n")
            assert b"d=example.com" not in message.content
            assert b"dmarc=pass" not in message.content
    await engine.goes_on()


async def test_submission_refuses_heads_that_parsers_read_differently(engine: Town) -> None:
    async with engine.logged_in("ann@example.com") as client:
        for name, head in HEADS.items():
            if name == "eight bits":  # the address is plain and hers; what stands beside it is only ugly
                continue
            content = head + b"X: y\r\n\r\nx\r\n"
            answers = await client.message(b"ann@example.com", [b"info@dest.test"], content)
            assert str(answers[-1]).startswith(("550 5.6.0", "550 5.7.1", "554 5.6.0")), (name, answers[-1])
        answers = await client.message(
            b"ann@example.com", [b"info@dest.test"], b"From: ann@example.com\r\n\r\nx\r\n"
        )
        assert answers[-1].code == 250
    (message,) = await engine.sink.wait_for(1)
    assert await engine.verified(message, "example.com") == [True, True]
    await engine.goes_on()
    assert len(engine.sink.messages) == 1


@pytest.mark.parametrize("policy", ["reject", "none"])
async def test_strangers_who_write_as_our_customers(engine: Town, policy: str) -> None:
    engine.dns.set("example.com", "TXT", ["v=spf1 -all"])
    engine.dns.set("_dmarc.example.com", "TXT", [f"v=DMARC1; p={policy}"])
    await engine.host("other.example", {"info": "person@dest.test"})
    answer = await engine.send("bob@out.test", "info@other.example", b"From: boss@example.com\r\n\r\npay\r\n")
    if policy == "reject":
        assert str(answer).startswith("550 5.7.1")
    else:
        assert answer.code == 250
        (message,) = await engine.sink.wait_for(1)
        head = head_of(message.content)
        assert b"d=example.com" not in head
        assert b"dmarc=pass" not in head
        results = head.partition(b"ARC-Authentication-Results: ")[2].partition(b"\r\nARC-Message")[0]
        assert b"dmarc=fail" in results
    await engine.goes_on()
    assert len(engine.sink.messages) == (policy == "none")
    assert engine.origin.messages == []


async def test_strangers_who_write_as_the_service_get_no_signature_that_says_so(engine: Town) -> None:
    answer = await engine.send("bob@out.test", "info@example.com", b"From: support@mx.test\r\n\r\nclick\r\n")
    if answer.code == 250:
        (message,) = await engine.sink.wait_for(1)
        assert await engine.verified(message) == []
    else:
        assert str(answer).startswith("550 5.7.1")
    await engine.goes_on()


def verdicts(content: bytes, records: Mapping[bytes, bytes]) -> list[bool]:
    """What dkimpy says of each signature; a text that is not the one signed makes it raise."""
    message = dkim.DKIM(content)
    count = sum(name.lower() == b"dkim-signature" for name, _ in message.headers)
    found = []
    for place in range(count):
        try:
            found.append(message.verify(idx=place, dnsfunc=lambda name, timeout=5: records.get(name)))
        except dkim.ValidationError:
            found.append(False)
    assert found
    return found


async def test_our_signature_covers_every_field_a_forger_would_add(engine: Town) -> None:
    whole = (
        b"From: ann@out.test\r\nTo: info@example.com\r\nSubject: x\r\nDate: Fri, 20 Nov 2026 12:00:00 +0000\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    )
    assert (await engine.send("ann@out.test", "info@example.com", whole)).code == 250
    assert (
        await engine.send("ann@out.test", "info@example.com", b"From: ann@out.test\r\n\r\nhello\r\n")
    ).code == 250
    records = await engine.published()
    for message in await engine.sink.wait_for(2):
        assert b"; l=" not in head_of(message.content)
        assert await engine.verified(message) == [True, True]
        for added in (
            b"From: boss@bank.test", b"To: x@y.test", b"Cc: x@y.test", b"Subject: pay now",
            b"Date: Mon, 1 Jan 2024 00:00:00 +0000", b"Reply-To: thief@evil.test", b"MIME-Version: 1.0",
            b"Content-Type: text/html",
        ):  # fmt: skip
            assert not any(verdicts(added + b"\r\n" + message.content, records)), added
        assert not any(verdicts(message.content + b"more\r\n", records))
    await engine.goes_on()


async def test_a_signature_over_a_part_of_the_text_or_a_weak_one_counts_for_nothing(engine: Town) -> None:
    """Made by dkimpy with a key we know, in ways that may not pass for the author's."""
    key = next((engine.settings.data_dir / "keys").glob("*1.pem")).read_bytes()
    (record,) = [value for name, value in (await engine.published()).items() if name.startswith(b"fwd1")]
    engine.dns.set("s._domainkey.out.test", "TXT", [record])
    engine.dns.set("_dmarc.out.test", "TXT", ["v=DMARC1; p=none"])

    def signed(**options: object) -> bytes:
        return (
            dkim.sign(MAIL, b"s", b"out.test", key, include_headers=[b"from", b"subject"], **options) + MAIL
        )

    cases = {
        "honest": (signed(), True),
        "length": (signed(length=True) + b"appended\r\n", False),
        "sha1": (signed(signature_algorithm=b"rsa-sha1"), False),
        "expired": (signed().replace(b"; t=", b"; x=1000000000; t="), False),
        "body": (signed() + b"appended\r\n", False),
    }
    for name, (content, counts) in cases.items():
        engine.sink.messages.clear()
        assert (await engine.send("bob@elsewhere.test", "info@example.com", content)).code == 250, name
        (message,) = await engine.sink.wait_for(1)
        assert (b"dmarc=pass" in head_of(message.content)) is counts, name
    await engine.goes_on()
