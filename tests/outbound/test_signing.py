"""Signatures of outgoing mail, verified by another implementation from the bytes that arrived."""

import asyncio
import base64
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from forwarder.mail.address import parse_address
from forwarder.mail.canonical import Canonical
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.seal import Algorithm, Signer, generate, load_key
from forwarder.mail.verification import AuthResult, verify
from forwarder.outbound.parcel import Parcel
from forwarder.outbound.signing import INLINE_HEAD, INLINE_OCTETS, Signing
from forwarder.tally import Tally
from tests.outbound.house import CONTENT, House, house

# 8 KiB of head: 2.7 ms by the estimate
LONG_HEAD = (b"To: " + b"a@x.org,\r\n " * 745 + b"b@x.org\r\n" + CONTENT).ljust(16_000, b"x")


def keys(domain: str, *algorithms: str) -> tuple[list[Signer], dict[bytes, bytes]]:
    signers, records = [], {}
    for algorithm in algorithms:
        made = generate(algorithm)  # type: ignore[arg-type]
        signers.append(Signer(domain=domain, selector=algorithm, key=load_key(made.pem)))
        records[f"{algorithm}._domainkey.{domain}.".encode()] = made.record.encode()
    return signers, records


def counted(rooms: House, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is signed from now on."""
    signed: list[object] = []
    sign = rooms.signing._sign
    monkeypatch.setattr(rooms.signing, "_sign", lambda order: signed.append(order) or sign(order))
    return signed


def verified(content: bytes, records: dict[bytes, bytes]) -> list[str]:
    """The algorithms of the signatures that verify, topmost first: RSA by dkimpy, which cannot do Ed25519."""
    answers = {name.decode().rstrip("."): [record] for name, record in records.items()}
    ours = [result.result for result in verify(Canonical(content), answers, now=datetime.now(UTC))]
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


async def test_submitted_mail_keeps_its_reverse_path_and_has_its_author_s_signature(
    tmp_path: Path,
) -> None:
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
        made = counted(rooms, monkeypatch)
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


@pytest.mark.parametrize("size", [40, INLINE_OCTETS])  # on the loop, in batches of a thread
async def test_many_messages_signed_together_keep_their_own_signatures(tmp_path: Path, size: int) -> None:
    service, records = keys("forwarder.test", "ed25519")
    async with house(tmp_path, service=service) as rooms:
        for number in range(40):
            body = (base64.b64encode(bytes([number]) * 30) + b"\r\n") * (size // 40)
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
        (b"<@x.test:ceo@forwarder . test>", b"none", False),
        (b"ceo@=?utf-8?q?forwarder=2Etest?=", b"none", False),
        (b"ceo@forwarder.\x0ctest", b"none", False),
        (b"g: ceo@forwarder . test;", b"spf=pass smtp.mailfrom=origin.test; dmarc=none", False),
        (b"ceo@forwarder.test <x@origin.test>", b"spf=pass smtp.mailfrom=origin.test; dmarc=none", False),
        (b"ceo@forwarder.test <x@origin.test>", b"dkim=pass header.d=forwarder.test header.s=a", True),
        (b"ceo@else.test <x@origin.test>", b"none", True),
        (b"root (Cron Daemon)", b"none", True),  # nobody's address
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


class Watched(Signer):
    """A signer that remembers in which thread its key was at work."""

    threads: ClassVar[list[str]] = []

    def signature(self, data: bytes) -> bytes:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        return super().signature(data)


class Desk:
    """``Signing`` alone, with a service key and one of a customer's domain."""

    def __init__(self, *, algorithms: Sequence[Algorithm] = ("ed25519",), arc: bool = False) -> None:
        self.customers = [watched("hosted.test", "ed25519")]
        self.signing = Signing(
            service=[watched("forwarder.test", algorithm) for algorithm in algorithms],
            signers_for=self._signers_for,
            arc=arc,
            authserv_id="mx.forwarder.test",
            threads=1,
            clock=lambda: datetime.now(UTC),
            tally=Tally(),
        )
        Watched.threads.clear()

    async def _signers_for(self, domain: str, accepted_at: datetime) -> Sequence[Signer]:
        return self.customers


def watched(domain: str, algorithm: Algorithm) -> Watched:
    return Watched(domain=domain, selector="s", key=load_key(generate(algorithm).pem))


def parcel(content: bytes = CONTENT, *, signing_domain: str | None = None) -> Parcel:
    return Parcel(
        message_id="1",
        transport=Transport.SMTP if signing_domain is None else Transport.SUBMISSION,
        reverse_path=parse_address("ann@origin.test"),
        smtputf8=False,
        signing_domain=signing_domain,
        created_at=datetime.now(UTC),
        size=len(content),
    )


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.signing.close()


async def test_a_small_message_is_prepared_on_the_loop(desk: Desk) -> None:
    one = parcel()
    made = await desk.signing.headers(one, CONTENT)
    assert made.startswith(b"DKIM-Signature: v=1;")
    assert await desk.signing.headers(one, CONTENT) is made
    assert Watched.threads == ["MainThread"]


async def test_preparing_finds_out_who_borrows_our_name(desk: Desk) -> None:
    forgery = parcel()
    assert await desk.signing.headers(forgery, b"From: ceo@forwarder.test\r\n\r\npay\r\n") == b""
    assert forgery.borrows


async def test_what_is_prepared_is_what_is_asked_for_later(desk: Desk) -> None:
    one = parcel()
    desk.signing.prepare(one, CONTENT)
    assert Watched.threads == ["MainThread"]
    prepared = one.sealed
    assert prepared is not None
    assert b"DKIM-Signature:" in prepared
    assert await desk.signing.headers(one, CONTENT) == prepared
    assert Watched.threads == ["MainThread"]


async def test_preparing_leaves_alone_what_is_large_and_what_needs_a_customer_s_key(desk: Desk) -> None:
    large = CONTENT.ljust(INLINE_OCTETS + 1, b"x")
    for one, content in ((parcel(large), large), (parcel(signing_domain="hosted.test"), CONTENT)):
        desk.signing.prepare(one, content)
        assert one.sealed is None
    assert Watched.threads == []


async def test_preparing_keeps_to_the_share_of_a_turn(desk: Desk) -> None:
    one, two = parcel(LONG_HEAD), parcel(LONG_HEAD)
    for each in (one, two):
        desk.signing.prepare(each, LONG_HEAD)
    assert one.sealed is not None
    assert two.sealed is None
    await asyncio.sleep(0)  # the loop has come round
    desk.signing.prepare(two, LONG_HEAD)
    assert two.sealed is not None
    assert Watched.threads == ["MainThread"] * 2


async def test_prepared_mail_goes_out_with_the_signature_of_its_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, records = keys("forwarder.test", "rsa")
    async with house(tmp_path, service=service) as rooms:
        signed = counted(rooms, monkeypatch)
        message = rooms.message("bob@dest.test")
        hand_over = rooms.dispatcher.prepare(message)
        assert len(signed) == 1
        await rooms.queue.enqueue(message)
        hand_over()
        (arrived,) = await rooms.sink.wait_for(1)
        assert verified(arrived.content, records) == ["rsa"]
        assert len(signed) == 1


async def test_mail_that_could_not_be_prepared_goes_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, records = keys("forwarder.test", "rsa")
    async with house(tmp_path, service=service) as rooms:
        sign = rooms.signing._sign

        def fails_once(order: object) -> object:
            monkeypatch.setattr(rooms.signing, "_sign", sign)
            raise MemoryError

        monkeypatch.setattr(rooms.signing, "_sign", fails_once)
        message = rooms.message("bob@dest.test")
        hand_over = rooms.dispatcher.prepare(message)
        await rooms.queue.enqueue(message)
        hand_over()
        (arrived,) = await rooms.sink.wait_for(1)
        assert verified(arrived.content, records) == ["rsa"]


async def test_mail_that_this_process_will_not_send_is_not_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = keys("forwarder.test", "rsa")
    async with house(tmp_path, service=service) as rooms:
        signed = counted(rooms, monkeypatch)
        rooms.dispatcher.prepare(rooms.message("bob@dest.test", in_memory=False))
        rooms.dispatcher.prepare(rooms.message("https://hook.test/in", kind=DeliveryKind.WEBHOOK))
        assert signed == []


async def test_a_large_message_is_signed_in_a_thread(desk: Desk) -> None:
    for size, place in ((INLINE_OCTETS, "MainThread"), (INLINE_OCTETS + 1, "signing")):
        content = CONTENT.ljust(size, b"x")
        assert b"DKIM-Signature:" in await desk.signing.headers(parcel(content), content)
        assert Watched.threads.pop() == place


async def test_a_large_message_is_signed_once_for_all_sites_that_take_it_at_once(desk: Desk) -> None:
    content = CONTENT.ljust(INLINE_OCTETS + 1, b"x")
    one = parcel(content)
    made = await asyncio.gather(*(desk.signing.headers(one, content) for _ in range(5)))
    assert made == [one.sealed] * 5
    assert Watched.threads == ["signing"]


async def test_a_long_head_is_read_in_a_thread(desk: Desk) -> None:
    for size, place in ((INLINE_HEAD // 2, "MainThread"), (INLINE_HEAD, "signing")):
        content = b"To: " + b"a@x.org,\r\n " * (size // 11) + b"b@x.org\r\n" + CONTENT
        content = content.ljust(2 * INLINE_HEAD, b"x")
        await desk.signing.headers(parcel(content), content)
        assert Watched.threads.pop() == place


@pytest.mark.parametrize(
    ("algorithms", "arc", "place"),
    [
        (("rsa", "ed25519"), True, "MainThread"),
        (("rsa", "rsa", "ed25519"), True, "signing"),
        (("ed25519",) * 5, False, "signing"),
    ],
)
async def test_many_signatures_are_made_in_a_thread(
    algorithms: Sequence[Algorithm], arc: bool, place: str
) -> None:
    desk = Desk(algorithms=algorithms, arc=arc)
    await desk.signing.headers(parcel(), CONTENT)
    assert Watched.threads == [place] * (len(algorithms) + 2 * arc)
    desk.signing.close()


async def test_a_long_key_is_used_in_a_thread(desk: Desk) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    desk.customers = [Watched(domain="hosted.test", selector="long", key=key)]
    await desk.signing.headers(parcel(signing_domain="hosted.test"), CONTENT)
    assert Watched.threads == ["signing"]


async def test_the_keys_of_a_customer_are_waited_for(desk: Desk) -> None:
    assert b"d=hosted.test;" in await desk.signing.headers(parcel(signing_domain="hosted.test"), CONTENT)
    assert Watched.threads == ["MainThread"]


async def test_a_turn_of_the_loop_signs_no_more_than_its_share(desk: Desk) -> None:
    await asyncio.gather(*(desk.signing.headers(parcel(LONG_HEAD), LONG_HEAD) for _ in range(4)))
    assert Watched.threads == ["MainThread"] + ["signing"] * 3
    await desk.signing.headers(parcel(LONG_HEAD), LONG_HEAD)  # the loop has come round
    assert Watched.threads.pop() == "MainThread"


async def test_a_key_that_fails_is_told_to_who_wants_the_headers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Watched, data: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Watched, "signature", broken)
    one = parcel()
    with pytest.raises(MemoryError):
        await desk.signing.headers(one, CONTENT)
    assert one.sealed is None
