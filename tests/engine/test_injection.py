"""What strangers write stays text: in headers, in our logs, in the API's answers and on the disk."""

import json
import re

from tests.engine.town import MAIL, Town, head_of

HELLOS = (
    b"x) by trusted (evil",
    b"a;b",
    b"esc\x1b[31m",
    b"x\x00y",
    b'quote"quote',
    b"\xff\xfe",
    b"[127.0.0.1",
    b"[1.2.3.4]; for <victim@example.com>",
    "\u2028line".encode(),
    b"{0.__class__}%s%n",
    b"y" * 900,
)


async def test_what_a_client_calls_itself_ends_no_comment_and_starts_no_field(engine: Town) -> None:
    for hello in HELLOS:
        for verb in (b"EHLO ", b"HELO "):
            engine.sink.messages.clear()
            async with engine.client() as client:
                answer = await client.say(verb + hello + b"\r\n")
                if answer.code != 250:
                    assert answer.code == 501, hello
                    continue
                answers = await client.message(b"ann@out.test", [b"info@example.com"], MAIL)
                assert answers[-1].code == 250
            (message,) = await engine.sink.wait_for(1)
            head = head_of(message.content)
            (trail,) = re.findall(rb"(?m)^Received: (?:.|\r\n[\t ])*\r\n", head)
            shown = re.match(
                rb"Received: from (\S+) \(\[127\.0\.0\.1\]\)\r\n\tby mx\.test \(Forwarder\) with E?SMTP\r\n",
                trail,
            )
            assert shown is not None, trail
            assert re.fullmatch(rb"[A-Za-z0-9.:\[\]-]{1,255}", shown[1]), trail
            assert head.count(b"\r\nAuthentication-Results: mx.test;") == 1
            assert head.isascii()
            assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", head)
    await engine.goes_on()


FORGED = (
    b"Authentication-Results: mx.test; dmarc=pass header.from=bank.test; forged=yes\r\n"
    b"Authentication-Results: MX.TEST (c) ; spf=pass forged=yes\r\n"
    b"Authentication-Results:\r\n mx.test 1;\r\n dkim=pass forged=yes\r\n"
    b"Authentication-Results: elsewhere.test; spf=pass kept=yes\r\n"
    b"X-Original-To: victim@example.com\r\n"
    b"X-Forwarded-To: victim@example.com\r\n"
    b"X-Forwarder-Id: 00000000000000000000000000000000-0000000000000000\r\n"
)


async def test_a_message_cannot_continue_our_own_header(engine: Town) -> None:
    """A first line that begins with a blank would be read as more of what we put before it: it is text."""
    for start in (b" ", b"\t", b" \r\n\r\n", b"\t\r\n "):
        engine.sink.messages.clear()
        stretched = start + b"; dmarc=pass header.from=bank.test\r\n" + MAIL
        assert (await engine.send("ann@out.test", "info@example.com", stretched)).code == 250
        (message,) = await engine.sink.wait_for(1)
        assert message.content.partition(b"\r\n\r\n")[2] == stretched
        assert b"bank.test" not in head_of(message.content)
        assert b"dmarc=permerror" in head_of(message.content)
        assert await engine.verified(message) == [True, True]
    await engine.goes_on()


async def test_results_that_claim_to_be_ours_do_not_survive(engine: Town) -> None:
    assert (await engine.send("ann@out.test", "info@example.com", FORGED + MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    head = head_of(message.content)
    assert b"forged=yes" not in head
    assert head.count(b"kept=yes") == 1
    ours = re.findall(rb"(?mi)^Authentication-Results:\s*mx\.test", head)
    assert len(ours) == 1
    assert head.index(b"\r\nReceived: ") < head.index(b"kept=yes")
    assert head.startswith(b"X-Forwarder-Id: ")
    assert message.content.endswith(
        b"\r\nX-Original-To: victim@example.com\r\n"
        + FORGED.partition(b"X-Original-To: victim@example.com\r\n")[2]
        + MAIL
    )
    await engine.goes_on()


async def test_logs_are_one_object_a_line_whatever_strangers_say(engine: Town) -> None:
    evil = "a\x1b[31m\u2028b\u202e{0.__class__}%s%n\x85"
    folded = "\r\n ".join([evil * 20] * 40)
    content = (
        f"From: {evil} <ann@out.test>\r\nSubject: {evil}{folded}\r\nMessage-ID: <{evil}@x>\r\n\r\nx\r\n"
    ).encode()
    async with engine.client() as client:
        await client.say(b"EHLO a\x1b[31m{0.__class__}%s%n\r\n")
        await client.say(b"MAIL FROM:<\x1b[31m@out.test>\r\n")
        await client.say(b"MAIL FROM:<ann@out.test>\r\n")
        await client.say(b"RCPT TO:<" + evil.encode() + b"@example.com>\r\n")
        await client.say(b"RCPT TO:<info@example.com>\r\n")
        assert (await client.say(b"DATA\r\n")).code == 354
        assert (await client.say(content + b".\r\n")).code == 250
    # Refused as well, so that both kinds of log have it.
    assert (await engine.send("ann@out.test", "info@example.com", content + b"bare\n\r\n")).code == 550
    await engine.sink.wait_for(1)
    await engine.goes_on()
    assert engine.running is not None
    await engine.running.journal.flush()
    async with engine.api() as api:
        answer = await api.get(
            "/v3/domains/example.com/logs", headers={"User-Agent": "{0.__class__}%s%n" + "y" * 5000}
        )
        assert answer.status_code == 200
        logs = answer.json()["logs"]
        assert len(logs) == 3
        for text in texts(logs):
            assert len(text) <= 1024
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", text), text
    for line in engine.log.getvalue().splitlines():
        assert line.isascii()
        for key, value in json.loads(line).items():
            assert len(key) < 100
            assert len(str(value)) <= 1024


def texts(value: object) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


async def test_names_that_look_like_paths_are_no_names_and_secrets_are_private(engine: Town) -> None:
    folder = engine.settings.data_dir
    before = {path for path in folder.parent.rglob("*") if "run" not in path.parts}
    async with engine.api() as api:
        for name in (
            "../../x",
            "..",
            "a/../b.test",
            "/etc/passwd",
            "x\0.test",
            "con:.test",
            "%2e%2e.test",
            "-.test",
        ):
            answer = await api.post("/v3/domains/", json={"domain": name})
            assert answer.status_code in (400, 422), name
            assert answer.json()["success"] is False
        for alias in ("..", "../x", "a/../../b", "a\0b", "x\r\ny"):
            answer = await api.post(
                "/v3/domains/example.com/aliases/", json={"alias": alias, "forward": "x@dest.test"}
            )
            assert answer.status_code in (400, 422) or ".." not in alias or "/" in alias, alias
        for path in ("/v3/domains/..%2f..%2fx", "/v3/domains/../../etc/passwd", "/v3/domains/%00/logs"):
            assert (await api.get(path)).status_code in (400, 404, 422), path
    await engine.goes_on()
    assert {path for path in folder.parent.rglob("*") if "run" not in path.parts} - before <= {
        folder / f"forwarder.db{suffix}" for suffix in ("-wal", "-shm", ".lock", ".turn")
    }
    for path in (folder / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    database = b"".join(path.read_bytes() for path in folder.glob("forwarder.db*"))
    assert engine.api_key.encode() not in database
    assert b"PRIVATE KEY" not in database
