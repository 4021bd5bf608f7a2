"""Messages and patterns made to hurt: they pass through unchanged or are refused, fast, in little memory."""

import time
from collections.abc import Mapping
from pathlib import Path

from tests.engine.town import MAIL, Town


def nested(depth: int) -> bytes:
    parts = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level)
        for level in range(depth)
    )
    return b"From: ann@out.test\r\nSubject: x\r\nMIME-Version: 1.0\r\n" + parts + b"\r\nx\r\n"


def many_parts(count: int) -> bytes:
    head = b"From: ann@out.test\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    return head + b"--b\r\n\r\nx\r\n" * count + b"--b--\r\n"


FROM = b"From: ann@out.test\r\n"
BOMBS: Mapping[str, bytes] = {
    "1,200 parts in each other": nested(1200),
    "10,000 parts beside each other": many_parts(10_000),
    "20,000 header fields": FROM + b"X: y\r\n" * 20_000 + b"\r\nx\r\n",
    "20,000 Subjects": FROM + b"Subject: y\r\n" * 20_000 + b"\r\nx\r\n",
    "a header field of 1 MB": FROM + b"X: " + (b"y" * 990 + b"\r\n ") * 1050 + b"z\r\n\r\nx\r\n",
    "a Subject of 1 MB": FROM
    + b"Subject: "
    + (b"=?utf-8?q?=C3=A4?= " * 50 + b"\r\n ") * 1050
    + b"z\r\n\r\nx\r\n",
    "3,000 brackets in From": b"From: " + (b"(" * 900 + b"\r\n ") * 4 + b"<ann@out.test>\r\n\r\nx\r\n",
    "100,000 addresses in To": FROM + b"To: " + b"a@out.test,\r\n " * 100_000 + b"b@out.test\r\n\r\nx\r\n",
    "blanks that no folding brings together in From": b"From: ann@x"
    + (b"\x0b" * 900 + b"\r\n ") * 60
    + b"y <ann@out.test>\r\n\r\nx\r\n",
    "1 MB of them in Authentication-Results": FROM
    + b"Authentication-Results: x"
    + (b"\x0b" * 900 + b"\r\n ") * 1100
    + b"y\r\n\r\nx\r\n",
    "odd header names": FROM
    + b"__proto__: 1\r\n__class__: 2\r\n"
    + b"n" * 990
    + b": 3\r\n\xc3\xa4: 4\r\n\r\nx\r\n",
    "500 signatures": b"DKIM-Signature: v=1; a=rsa-sha256; d=out.test; s=s; h=from; bh=eA==; b=eA==\r\n" * 500
    + FROM
    + b"\r\nx\r\n",
    "200 ARC sets": b"".join(
        b"ARC-Seal: i=%d; a=rsa-sha256; cv=none; d=out.test; s=s; b=eA==\r\n" % number
        for number in range(1, 201)
    )
    + FROM
    + b"\r\nx\r\n",
    "500 Authentication-Results of ours": b"Authentication-Results: mx.test; spf=pass\r\n" * 500
    + FROM
    + b"\r\nx\r\n",
}


REPLIES = ("250 2.0.0", "554 5.6.0", "550 5.6.0", "550 5.7.1", "552 5.3.4")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_bombs_pass_through_unchanged_or_are_refused(engine: Town) -> None:
    for name, content in BOMBS.items():
        engine.sink.messages.clear()
        memory, cpu, asked = resident(), time.process_time(), engine.dns.count(kind="TXT")
        answer = await engine.send("ann@out.test", "info@example.com", content)
        assert str(answer).startswith(REPLIES), (name, answer)
        if answer.code == 250:
            (message,) = await engine.sink.wait_for(1)
            if "Authentication-Results" not in name:
                assert message.content.endswith(b"\r\n" + content), name
        # The sink and the client, which hold the message several times, are in this process too.
        assert time.process_time() - cpu < 2, name
        assert resident() - memory < 64 * 1024 * 1024 + 8 * len(content), name
        assert engine.dns.count(kind="TXT") - asked <= 30, name
    await engine.goes_on()
    await engine.settled()
    assert engine.origin.messages == []


BEYOND = (
    *(r"(?=x)y", r"(.)\1", r"(?<=x)y", "(x{1,1000}){1,1000}", "(" + "x" * 70_000 + ")"),
    *(r"(\C)", "(a", "[z-a]", "(a{999999})"),
)


async def test_patterns_beyond_linear_time_are_refused_with_a_reason(engine: Town) -> None:
    async with engine.api() as api:
        for pattern in BEYOND:
            body = {"alias": pattern, "forward": "person@dest.test"}
            answer = await api.post("/v3/domains/example.com/aliases/", json=body)
            assert answer.status_code in (400, 422), pattern
            assert answer.json()["success"] is False
            assert len(answer.text) < 2000
    await engine.goes_on()


async def test_evil_patterns_match_in_no_time_and_only_what_they_should(engine: Town) -> None:
    evil = {
        "^(a+)+$": "evil1@dest.test",
        "(a|a)*b": "evil2@dest.test",
        "(.*a){20}": "evil3@dest.test",
        "(sales)": "sales@dest.test",
        r".*@a\.com|x": "alternative@dest.test",
        "end$": "end@dest.test",
        "*": "rest@dest.test",
    } | {f"(rule{number}|.*x{number}.*y{number})": f"rule{number}@dest.test" for number in range(500)}
    await engine.host("evil.example", evil)
    wanted = {
        "a" * 63 + "!": "rest@dest.test",
        "b" + "a" * 60: "evil3@dest.test",
        "a" * 64: "evil1@dest.test",
        "aab": "evil2@dest.test",
        "xsalesx": "rest@dest.test",
        "salesx": "rest@dest.test",
        "sales": "sales@dest.test",
        "x": "alternative@dest.test",
        "xx": "rest@dest.test",
        "the-end": "rest@dest.test",
        "end": "end@dest.test",
        "rule499": "rule499@dest.test",
        "q-x250-y250": "rule250@dest.test",
    }
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<ann@out.test>\r\n")
        await client.say(b"RCPT TO:<first@evil.example>\r\n")  # expressions are compiled when first asked for
        began = time.process_time()
        for local in wanted:
            assert (await client.say(f"RCPT TO:<{local}@evil.example>\r\n".encode())).code == 250, local
        assert time.process_time() - began < 0.05 * len(wanted)
        await client.say(b"RSET\r\n")
        for local, destination in wanted.items():
            engine.sink.messages.clear()
            answers = await client.message(b"ann@out.test", [f"{local}@evil.example".encode()], MAIL)
            assert answers[-1].code == 250
            (message,) = await engine.sink.wait_for(1)
            assert message.recipients == (destination,), local
    await engine.goes_on()
