"""Signatures of outgoing mail, verified by another implementation from the bytes that arrived."""

import base64
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest

from forwarder.mail.event import Transport
from forwarder.mail.seal import Signer, generate, load_key
from forwarder.mail.verification import AuthResult, verify
from tests.outbound.house import CONTENT, house


def keys(domain: str, *algorithms: str) -> tuple[list[Signer], dict[bytes, bytes]]:
    signers, records = [], {}
    for algorithm in algorithms:
        made = generate(algorithm)  # type: ignore[arg-type]
        signers.append(Signer(domain=domain, selector=algorithm, key=load_key(made.pem)))
        records[f"{algorithm}._domainkey.{domain}.".encode()] = made.record.encode()
    return signers, records


def verified(content: bytes, records: dict[bytes, bytes]) -> list[str]:
    """The algorithms of the signatures that verify, topmost first: RSA by dkimpy, which cannot do Ed25519."""
    answers = {name.decode().rstrip("."): [record] for name, record in records.items()}
    ours = [result.result for result in verify(content, answers, now=datetime.now(UTC))]
    message = dkim.DKIM(content)
    signatures = [value for name, value in message.headers if name.lower() == b"dkim-signature"]
    found = []
    for index, value in enumerate(signatures):
        is_rsa = b"a=rsa-sha256" in value
        if is_rsa and not message.verify(idx=index, dnsfunc=lambda name, timeout=5: records.get(name)):
            continue
        if ours[index] is AuthResult.PASS:
            found.append("rsa" if is_rsa else "ed25519")
    return found


async def test_forwarded_mail_is_signed_by_the_service_with_both_algorithms(tmp_path: Path) -> None:
    service, records = keys("forwarder.test", "rsa", "ed25519")
    async with house(tmp_path, service=service) as rooms:
        await rooms.accept("bob@dest.test")
        (message,) = await rooms.sink.wait_for(1)
        assert verified(message.content, records) == ["rsa", "ed25519"]
        assert message.content.endswith(CONTENT)
        assert message.content.startswith(b"X-Forwarder-Id: ")


async def test_submitted_mail_keeps_its_reverse_path_and_has_its_author_s_signature(tmp_path: Path) -> None:
    service, _ = keys("forwarder.test", "rsa")
    author, records = keys("hosted.test", "rsa", "ed25519")
    async with house(tmp_path, service=service) as rooms:
        rooms.signers["hosted.test"] = author
        await rooms.accept(
            "bob@dest.test",
            sender="ann@hosted.test",
            recipient="bob@dest.test",
            transport=Transport.SUBMISSION,
            signing_domain="hosted.test",
        )
        (message,) = await rooms.sink.wait_for(1)
        assert message.reverse_path == "ann@hosted.test"
        assert verified(message.content, records) == ["rsa", "ed25519"]
        assert message.content.count(b"DKIM-Signature:") == 2
        assert b"X-Forwarded-To" not in message.content


async def test_a_report_is_signed_by_the_service(tmp_path: Path) -> None:
    service, records = keys("forwarder.test", "rsa")
    async with house(tmp_path, service=service) as rooms:
        await rooms.accept("550-at-rcpt@dest.test")
        (report,) = await rooms.origin.wait_for(1)
        assert verified(report.content, records) == ["rsa"]
        assert report.content.startswith(b"DKIM-Signature:")


async def test_a_message_to_many_sites_is_signed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, records = keys("forwarder.test", "rsa")
    async with house(tmp_path, service=service) as rooms:
        made = []
        sign = rooms.signing._sign
        monkeypatch.setattr(rooms.signing, "_sign", lambda order: made.append(1) or sign(order))
        await rooms.accept("bob@dest.test", "ann@origin.test")
        (one,) = await rooms.sink.wait_for(1)
        (two,) = await rooms.origin.wait_for(1)
        assert verified(one.content, records) == verified(two.content, records) == ["rsa"]
        assert len(made) <= 2  # once, or once for each of two that began in the same moment


async def test_arc_seals_what_reception_recorded(tmp_path: Path) -> None:
    service, records = keys("forwarder.test", "rsa")
    content = (
        b"Authentication-Results: mx.forwarder.test; spf=pass smtp.mailfrom=origin.test; arc=none\r\n"
        + CONTENT
    )
    async with house(tmp_path, service=service, arc=True) as rooms:
        await rooms.accept("bob@dest.test", content=content)
        (message,) = await rooms.sink.wait_for(1)
        assert b"\r\nARC-Seal: i=1;" in message.content
        assert b"spf=pass" in message.content.partition(b"ARC-Authentication-Results:")[2][:200]
        chain, results, reason = dkim.arc_verify(
            message.content, dnsfunc=lambda name, timeout=5: records.get(name)
        )
        assert (chain, reason) == (b"pass", "success")
        assert len(results) == 1


async def test_many_messages_signed_together_keep_their_own_signatures(tmp_path: Path) -> None:
    service, records = keys("forwarder.test", "ed25519")
    async with house(tmp_path, service=service) as rooms:
        for number in range(40):
            body = base64.b64encode(bytes([number]) * 30) + b"\r\n"
            await rooms.accept(f"user{number}@dest.test", content=CONTENT + body)
        await rooms.sink.wait_for(40)
        assert all(verified(m.content, records) == ["ed25519"] for m in rooms.sink.messages)


OURS = b"Authentication-Results: mx.forwarder.test; "


@pytest.mark.parametrize(
    ("author", "results", "signed"),
    [
        (b"ceo@forwarder.test", b"spf=pass smtp.mailfrom=origin.test; dmarc=none", False),
        (b"ceo@mail.forwarder.test", b"spf=fail smtp.mailfrom=origin.test; dmarc=fail", False),
        (b'"ceo@forwarder.test', b"none", False),  # cannot be read, and a reader may show it
        (b"ceo@forwarder.test", b"dkim=fail header.d=forwarder.test header.s=a; dmarc=fail", False),
        (b"ceo@forwarder.test", b"dkim=pass header.d=mail.forwarder.test header.s=a; dmarc=none", True),
        (b"ceo@forwarder.test", b"spf=pass smtp.mailfrom=forwarder.test; dmarc=pass", True),
        (
            b"ann@origin.test",
            b"spf=fail smtp.mailfrom=origin.test; dmarc=fail",
            True,
        ),  # aligned with nobody here
    ],
)
async def test_nobody_borrows_the_service_s_name(
    tmp_path: Path, author: bytes, results: bytes, signed: bool
) -> None:
    """A signature of the service would be aligned with an author of its own organisation, and so would its SPF be."""
    service, records = keys("forwarder.test", "rsa")
    content = OURS + results + b"\r\nFrom: " + author + b"\r\nSubject: pay at once\r\n\r\nnow\r\n"
    async with house(tmp_path, service=service, arc=True) as rooms:
        await rooms.accept("bob@dest.test", content=content)
        (message,) = await rooms.sink.wait_for(1)
        assert verified(message.content, records) == (["rsa"] if signed else [])
        assert message.reverse_path.startswith("SRS0=") is signed
        assert b"\r\nARC-Seal: i=1;" in b"\r\n" + message.content
