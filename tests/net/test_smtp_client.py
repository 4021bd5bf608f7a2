"""Sessions over real sockets: what arrives, and what a misbehaving peer makes of it."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from forwarder.mail.outcome import Fault, Scope, Stage
from forwarder.net.smtp_client import Session, SessionFault, Timeouts
from forwarder.net.tls import TlsMode, client_context, self_signed
from tests.peers.sink import Sink

SHORT = Timeouts(
    connect=timedelta(seconds=2),
    greeting=timedelta(seconds=0.3),
    command=timedelta(seconds=0.3),
    data=timedelta(seconds=0.3),
    dot=timedelta(seconds=0.3),
)
CONTENT = b"Subject: x\r\nFrom: a@example.com\r\n\r\nhello\r\n"


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as peer:
        yield peer
        assert peer.violations == []
        assert peer.trouble == []


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(["mx.example.test"], tmp_path_factory.mktemp("tls")))
    return context


async def connect(sink: Sink, **arguments: Any) -> Session:
    arguments = {"tls": TlsMode.OFF, "timeouts": SHORT, "hello": "mx.example.net"} | arguments
    return await Session.connect("mx.example.test", sink.host, sink.port, **arguments)


async def fault_of(sink: Sink, *recipients: str, **arguments: Any) -> SessionFault:
    """The fault that one message to these recipients ends in; the session is over after it."""
    session = await connect(sink, **arguments)
    with pytest.raises(SessionFault) as raised:
        await session.send("a@example.com", recipients or ("b@example.test",), CONTENT)
    assert not session.usable
    return raised.value


async def fault_of_opening(sink: Sink, **arguments: Any) -> SessionFault:
    with pytest.raises(SessionFault) as raised:
        await connect(sink, **arguments)
    await sink.wait_closed()  # nothing of ours stays open
    return raised.value


# --- what arrives


async def test_a_message_arrives_as_given(sink: Sink) -> None:
    session = await connect(sink)
    answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
    await session.quit()
    (message,) = sink.messages
    assert (message.reverse_path, message.recipients) == ("a@example.com", ("b@example.test",))
    assert message.content == CONTENT
    assert message.hello == "mx.example.net"
    assert answer.final is not None
    assert answer.final.positive
    assert answer.judge(0) == (Scope.MESSAGE, answer.final)
    assert sink.commands[-1] == b"QUIT"


@pytest.mark.parametrize("pipelining", [True, False])
async def test_pipelined_exactly_when_announced(pipelining: bool) -> None:
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        for _ in range(3):
            await session.send("a@example.com", ["b@example.test", "c@example.test"], CONTENT)
        assert session.features.pipelining is pipelining
        assert len(sink.messages) == 3
        assert sink.violations == []  # the sink sees octets that came before an answer
        await session.quit()


async def test_the_envelope_is_one_segment(sink: Sink) -> None:
    session = await connect(sink)
    sink.play("mail", "slow")  # all the rest is there before MAIL is answered
    sink.slowness = 0.1
    await session.send("a@example.com", ["b@example.test"], CONTENT)
    assert sink.commands == [
        b"EHLO mx.example.net",
        b"MAIL FROM:<a@example.com>",
        b"RCPT TO:<b@example.test>",
        b"DATA",
    ]
    await session.quit()


@pytest.mark.parametrize(
    ("content", "raw"),
    [
        (b".\r\n", b"..\r\n.\r\n"),
        (b"a: b\r\n\r\n.\r\n..\r\n.x\r\n", b"a: b\r\n\r\n..\r\n...\r\n..x\r\n.\r\n"),
        (b"a: b\r\n\r\nx.\r\n", b"a: b\r\n\r\nx.\r\n.\r\n"),
        (b"a: b\r\n\r\nno end", b"a: b\r\n\r\nno end\r\n.\r\n"),
    ],
)
async def test_dots_are_doubled_at_the_beginning_of_lines(sink: Sink, content: bytes, raw: bytes) -> None:
    session = await connect(sink)
    await session.send("a@example.com", ["b@example.test"], content)
    assert sink.messages[0].raw == raw
    await session.quit()


async def test_content_in_several_buffers_is_one_content(sink: Sink) -> None:
    session = await connect(sink)
    await session.send("a@example.com", ["b@example.test"], [b"One: 1\r\n", b".two: 2\r\n", b"\r\nbody\r\n"])
    assert sink.messages[0].content == b"One: 1\r\n.two: 2\r\n\r\nbody\r\n"
    await session.quit()


async def test_a_big_message_arrives_in_blocks(sink: Sink) -> None:
    content = CONTENT + b".0123456789012345678901234567890123456789\r\n" * 50_000  # 2 MB
    session = await connect(sink, timeouts=Timeouts())
    await session.send("a@example.com", ["b@example.test"], [CONTENT[:12], content[12:]])
    assert sink.messages[0].content == content
    await session.quit()


@pytest.mark.parametrize(
    "path", ["x", '"a b"@example.com', '"a>b"@example.com', "a;b@example.com", "x=y=z@y.example"]
)
async def test_paths_go_out_character_for_character(sink: Sink, path: str) -> None:
    session = await connect(sink)
    await session.send(path, [path], CONTENT)
    assert sink.commands[1:3] == [f"MAIL FROM:<{path}>".encode(), f"RCPT TO:<{path}>".encode()]
    await session.quit()


@pytest.mark.parametrize("path", ["a@b>\r\nRCPT TO:<c@d", "a\0@b", "a\x7f@b", "a\u0085@b"])
async def test_a_path_with_control_characters_is_not_sent(sink: Sink, path: str) -> None:
    session = await connect(sink)
    for arguments in ((path, ["b@example.test"]), ("a@example.com", [path])):
        with pytest.raises(ValueError, match="control character"):
            await session.send(*arguments, CONTENT)
    assert sink.commands == [b"EHLO mx.example.net"]
    await session.quit()


async def test_the_null_reverse_path(sink: Sink) -> None:
    session = await connect(sink)
    await session.send("", ["b@example.test"], CONTENT)
    assert b"MAIL FROM:<>" in sink.commands
    assert sink.messages[0].reverse_path == ""
    await session.quit()


async def test_helo_for_a_server_that_knows_no_ehlo() -> None:
    async with Sink(esmtp=False, pipelining=False) as sink:
        session = await connect(sink)
        await session.send("a@example.com", ["b@example.test"], CONTENT, body8bit=True)
        assert sink.commands[:3] == [
            b"EHLO mx.example.net",
            b"HELO mx.example.net",
            b"MAIL FROM:<a@example.com>",
        ]
        assert sink.violations == []
        await session.quit()


# --- what the peer announced


async def test_parameters_of_mail() -> None:
    async with Sink(size=1_000_000) as sink:
        session = await connect(sink)
        await session.send("a@example.com", ["jörg@example.test"], CONTENT, smtputf8=True, body8bit=True)
        assert sink.messages[0].mail_parameters == (f"SIZE={len(CONTENT)}", "BODY=8BITMIME", "SMTPUTF8")
        assert sink.messages[0].recipients == ("jörg@example.test",)
        await session.quit()


async def test_a_message_above_the_announced_size_is_refused_here() -> None:
    async with Sink(size=len(CONTENT) - 1) as sink:
        session = await connect(sink)
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert (answer.mail.code, answer.mail.enhanced, answer.local) == (552, "5.3.4", True)
        assert answer.judge(0) == (Scope.MESSAGE, answer.mail)
        fits = await session.send("a@example.com", ["b@example.test"], CONTENT[:10])
        assert fits.final is not None  # the session lives on
        await session.quit()


async def test_a_non_ascii_address_needs_smtputf8() -> None:
    async with Sink(smtputf8=False) as sink:
        session = await connect(sink)
        answer = await session.send("a@example.com", ["jörg@example.test"], CONTENT, smtputf8=True)
        assert (answer.mail.code, answer.mail.enhanced, answer.local) == (553, "5.6.7", True)
        assert sink.commands == [b"EHLO mx.example.net"]
        await session.quit()


async def test_smtputf8_is_not_demanded_for_ascii_addresses_and_headers() -> None:
    async with Sink(smtputf8=False) as sink:
        session = await connect(sink)
        body_only = b"Subject: x\r\n\r\nj\xc3\xb6rg\r\n"
        answer = await session.send(
            "a@example.com", ["b@example.test"], [b"A: b\r\n", body_only], smtputf8=True
        )
        assert answer.final is not None
        header = b"Subject: j\xc3\xb6rg\r\n\r\nx\r\n"
        refused = await session.send(
            "a@example.com", ["b@example.test"], [b"A: b\r\n", header], smtputf8=True
        )
        assert refused.mail.enhanced == "5.6.7"
        await session.quit()


async def test_eight_bit_content_is_sent_as_it_is_without_8bitmime() -> None:
    async with Sink(eightbitmime=False) as sink:
        content = b"Subject: x\r\n\r\nj\xc3\xb6rg\r\n"
        session = await connect(sink)
        await session.send("a@example.com", ["b@example.test"], content, body8bit=True)
        assert sink.messages[0].content == content
        assert sink.messages[0].mail_parameters == ()
        await session.quit()


# --- refusals: the session lives on


@pytest.mark.parametrize("pipelining", [True, False])
async def test_each_recipient_has_its_answer(pipelining: bool) -> None:
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        recipients = ["450-at-rcpt@example.test", "good@example.test", "550-at-rcpt@example.test"]
        answer = await session.send("a@example.com", recipients, CONTENT)
        judged = [(scope, reply.code) for scope, reply in map(answer.judge, range(3))]
        assert judged == [(Scope.RECIPIENT, 450), (Scope.MESSAGE, 250), (Scope.RECIPIENT, 550)]
        assert sink.messages[0].recipients == ("good@example.test",)
        await session.quit()


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("reverse_path", "recipient", "scope", "code"),
    [
        ("550-at-mail@example.com", "b@example.test", Scope.MESSAGE, 550),
        ("450-at-mail@example.com", "b@example.test", Scope.MESSAGE, 450),
        ("a@example.com", "550-at-rcpt@example.test", Scope.RECIPIENT, 550),
        ("a@example.com", "450-at-rcpt@example.test", Scope.RECIPIENT, 450),
        ("a@example.com", "451-at-data@example.test", Scope.MESSAGE, 451),
        ("a@example.com", "554-at-data@example.test", Scope.MESSAGE, 554),
        ("a@example.com", "450-at-dot@example.test", Scope.MESSAGE, 450),
        ("a@example.com", "554-at-dot@example.test", Scope.MESSAGE, 554),
    ],
)
async def test_after_a_refusal_the_next_message_goes_through(
    pipelining: bool, reverse_path: str, recipient: str, scope: Scope, code: int
) -> None:
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        answer = await session.send(reverse_path, [recipient], CONTENT)
        assert (answer.judge(0)[0], answer.judge(0)[1].code) == (scope, code)
        assert session.usable
        again = await session.send("a@example.com", ["good@example.test"], CONTENT)
        assert again.final is not None
        assert again.final.positive
        assert [message.recipients for message in sink.messages] == [("good@example.test",)]
        assert sink.violations == []  # in particular no nested MAIL
        assert sink.connections == 1
        await session.quit()


async def test_data_taken_without_a_recipient_gets_a_lone_dot() -> None:
    async with Sink(lenient_data=True) as sink:
        session = await connect(sink)
        answer = await session.send("a@example.com", ["550-at-rcpt@example.test"], CONTENT)
        assert answer.judge(0)[1].code == 550
        assert sink.empty_transactions == [b".\r\n"]
        assert (await session.send("a@example.com", ["b@example.test"], CONTENT)).final is not None
        await session.quit()


async def test_a_421_for_one_recipient_while_the_peer_goes_on_is_only_its_own() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 ok\r\n421 4.7.0 mailbox busy\r\n250 ok\r\n354 go\r\n"),
        (b"\r\n.\r\n", b"250 taken\r\n"),
    ) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send("a@example.com", ["busy@example.test", "b@example.test"], CONTENT)
        assert [answer.judge(index)[1].code for index in (0, 1)] == [421, 250]
        session.abort()


async def test_a_hostile_multi_line_refusal_is_made_harmless(sink: Sink) -> None:
    session = await connect(sink)
    answer = await session.send("a@example.com", ["multi-line-550@example.test"], CONTENT)
    _, reply = answer.judge(0)
    assert (reply.code, reply.enhanced) == (550, "5.1.1")
    assert reply.text.isprintable()
    assert "user" in reply.text
    await session.quit()


# --- faults: the session is over


@pytest.mark.parametrize(
    ("part", "code", "local"),
    [
        ("421", 421, False),
        ("554", 554, False),
        ("450", 450, False),
        ("drop", 451, True),
        ("garbage", 451, True),
        ("hang", 451, True),
        ("trickle", 451, True),
        ("endless", 451, True),
        ("endless-line", 451, True),
        ("mixed", 451, True),
    ],
)
@pytest.mark.parametrize("phase", ["connect", "ehlo"])
async def test_trouble_while_opening_condemns_the_site(
    sink: Sink, phase: str, part: str, code: int, local: bool
) -> None:
    sink.play(phase, part)
    if phase == "ehlo" and part in ("554", "mixed"):
        sink.play("helo", part)
    fault = await fault_of_opening(sink)
    assert (fault.scope, fault.reply.code, fault.local) == (Scope.SITE, code, local)
    assert fault.stage is (Stage.CONNECT if phase == "connect" else Stage.HELLO)
    assert not fault.unknown


@pytest.mark.parametrize(
    ("reverse_path", "recipient", "stage"),
    [
        ("421-at-mail@example.com", "b@example.test", Stage.MAIL),
        ("a@example.com", "421-at-rcpt@example.test", Stage.RCPT),
        ("a@example.com", "421-at-data@example.test", Stage.DATA),
        ("a@example.com", "421-at-dot@example.test", Stage.DOT),
    ],
)
@pytest.mark.parametrize("pipelining", [True, False])
async def test_421_and_a_close_are_the_words_of_the_site(
    pipelining: bool, reverse_path: str, recipient: str, stage: Stage
) -> None:
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        with pytest.raises(SessionFault) as raised:
            await session.send(reverse_path, [recipient], CONTENT)
        fault = raised.value
        assert (fault.scope, fault.reply.code, fault.local) == (Scope.SITE, 421, False)
        assert fault.reply.text == "as told by the test"
        assert not fault.unknown
        if (
            not pipelining
        ):  # the answers to what was pipelined behind it are lost, so the stage is the next one
            assert fault.stage is stage


@pytest.mark.parametrize("phase", ["rcpt", "data"])
@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("drop", Fault.LOST),
        ("hang", Fault.TIMEOUT),
        ("garbage", Fault.PROTOCOL),
        ("endless", Fault.PROTOCOL),
        ("trickle", Fault.TIMEOUT),
    ],
)
async def test_trouble_in_the_envelope(sink: Sink, phase: str, part: str, fault: Fault) -> None:
    raised = await fault_of(sink, f"{part}-at-{phase}@example.test")
    assert (raised.scope, raised.fault, raised.unknown) == (Scope.SITE, fault, False)
    assert raised.reply.code == 451


@pytest.mark.parametrize(
    ("recipient", "fault"),
    [
        ("drop-after-dot@example.test", Fault.LOST_AFTER_DOT),
        ("hang-after-dot@example.test", Fault.TIMEOUT_AFTER_DOT),
        ("garbage-at-dot@example.test", Fault.PROTOCOL),
    ],
)
async def test_silence_after_the_dot_may_be_a_delivery(sink: Sink, recipient: str, fault: Fault) -> None:
    raised = await fault_of(sink, recipient)
    assert (raised.fault, raised.unknown, raised.scope) == (fault, True, Scope.SITE)
    assert "may have been delivered" in raised.reply.text
    assert raised.reply.temporary
    assert len(sink.messages) == 1


async def test_nothing_listens() -> None:
    async with Sink() as sink:
        gone = sink.port
    with pytest.raises(SessionFault) as raised:
        await Session.connect("x", "127.0.0.1", gone, hello="h", tls=TlsMode.OFF)
    assert (raised.value.stage, raised.value.fault) == (Stage.CONNECT, Fault.REFUSED)


@pytest.mark.parametrize("pipelining", [True, False])
async def test_an_envelope_that_is_answered_ever_so_slowly_ends(
    pipelining: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.net.smtp_wire.PATIENCE", 2)
    monkeypatch.setattr("forwarder.net.smtp_client.PATIENCE", 2)
    async with Sink(pipelining=pipelining) as sink:
        sink.slowness = 0.1
        sink.play("rcpt", "slow")
        session = await connect(sink)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", [f"r{n}@example.test" for n in range(100)], CONTENT)
        assert (raised.value.stage, raised.value.fault) == (Stage.RCPT, Fault.TIMEOUT)
        assert 4 < len([command for command in sink.commands if command.startswith(b"RCPT")]) < 12


async def test_a_peer_that_stops_reading_content_is_left() -> None:
    async with Scripted(
        b"220 hi\r\n", (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"), (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n")
    ) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT + b"x" * 30_000_000 + b"\r\n")
        assert (raised.value.stage, raised.value.fault) == (Stage.DATA, Fault.TIMEOUT)
        assert not raised.value.unknown


async def test_a_refusal_in_the_middle_of_the_content_is_heard() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n"),
        (b"x", b"552 5.3.4 too big\r\n"),
    ) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send(
            "a@example.com", ["b@example.test"], CONTENT + b"x" * 30_000_000 + b"\r\n"
        )
        assert answer.judge(0)[1].enhanced == "5.3.4"
        assert not session.usable


async def test_a_reply_that_nobody_asked_for_ends_the_session(sink: Sink) -> None:
    async with Scripted(b"220 hi\r\n", (b"EHLO", b"250 x\r\n250 more\r\n")) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        assert not session.usable
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert raised.value.fault is Fault.PROTOCOL


async def test_an_answer_that_comes_before_the_content_is_no_delivery() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n250 delivered\r\n"),
    ) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert (raised.value.stage, raised.value.fault) == (Stage.DATA, Fault.PROTOCOL)
        assert not raised.value.unknown


async def test_two_answers_to_one_command_do_not_answer_the_next(sink: Sink) -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250 x\r\n"),
        (b"MAIL", b"250 ok\r\n250 ok\r\n"),
        (b"RCPT", b"550 no\r\n"),
    ) as (host, port):
        session = await Session.connect("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert (raised.value.stage, raised.value.fault) == (Stage.RCPT, Fault.PROTOCOL)


async def test_an_idle_session_whose_peer_hung_up_is_not_usable(sink: Sink) -> None:
    session = await connect(sink)
    assert session.usable
    await sink.close()
    async with asyncio.timeout(5):
        while session.usable:  # noqa: ASYNC110 - the session has nobody to tell
            await asyncio.sleep(0)
    session.abort()


async def test_cancelling_a_send_closes_the_connection(sink: Sink) -> None:
    session = await connect(sink, timeouts=Timeouts())
    task = asyncio.create_task(session.send("a@example.com", ["hang-after-dot@example.test"], CONTENT))
    await sink.wait_for(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not session.usable
    await sink.wait_closed()


# --- TLS


async def test_starttls_when_offered(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        session = await connect(sink, tls=TlsMode.OPPORTUNISTIC, context=client_context(verify=False))
        await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert sink.messages[0].tls
        assert session.tls.startswith("TLSv1.3 ")
        assert [command[:4] for command in sink.commands[:3]] == [b"EHLO", b"STAR", b"EHLO"]
        await session.quit()
        assert sink.violations == []


async def test_opportunistic_tls_goes_on_in_clear_when_none_is_offered(sink: Sink) -> None:
    session = await connect(sink, tls=TlsMode.OPPORTUNISTIC, context=client_context(verify=False))
    await session.send("a@example.com", ["b@example.test"], CONTENT)
    assert not sink.messages[0].tls
    await session.quit()


async def test_required_tls_that_is_not_offered(sink: Sink) -> None:
    fault = await fault_of_opening(sink, tls=TlsMode.REQUIRED, context=client_context(verify=False))
    assert (fault.fault, fault.reply.temporary) == (Fault.TLS_REQUIRED, True)
    assert sink.commands == [b"EHLO mx.example.net"]


async def test_verified_tls_wants_a_certificate_for_the_name(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        fault = await fault_of_opening(sink, tls=TlsMode.VERIFIED, context=client_context(verify=True))
        assert fault.fault is Fault.CERTIFICATE
        assert b"MAIL" not in b"".join(sink.commands)


async def test_verified_tls_takes_a_certificate_it_trusts(tmp_path: Path) -> None:
    certificate, key = self_signed(["mx.example.test"], tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    trusting = client_context(verify=True)
    trusting.load_verify_locations(certificate)
    async with Sink(starttls=server) as sink:
        session = await connect(sink, tls=TlsMode.VERIFIED, context=trusting)
        assert session.tls
        await session.quit()


@pytest.mark.parametrize(("part", "fault"), [("inject", Fault.PROTOCOL), ("bad-handshake", Fault.TLS)])
async def test_bad_starttls(server_tls: ssl.SSLContext, part: str, fault: Fault) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", part)
        raised = await fault_of_opening(sink, tls=TlsMode.OPPORTUNISTIC, context=client_context(verify=False))
        assert (raised.stage, raised.fault, raised.scope) == (Stage.STARTTLS, fault, Scope.SITE)
        assert [command[:4] for command in sink.commands] == [b"EHLO", b"STAR"]


async def test_a_peer_that_hangs_up_again_and_again_costs_nothing_in_the_end(sink: Sink) -> None:
    sink.play("ehlo", "drop")
    await fault_of_opening(sink)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        fault = await fault_of_opening(sink)
        assert (fault.stage, fault.fault) == (Stage.HELLO, Fault.LOST)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


class Scripted:
    """A server that says what it is told: a greeting, then each answer once its trigger has come."""

    def __init__(self, greeting: bytes, *steps: tuple[bytes, bytes]) -> None:
        self._greeting = greeting
        self._steps = steps

    async def __aenter__(self) -> tuple[str, int]:
        self._over = asyncio.Event()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[:2]  # type: ignore[no-any-return]

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._greeting)
        for trigger, answer in self._steps:
            seen = b""
            while trigger not in seen:
                block = await reader.read(1024)
                if not block:
                    break
                seen = seen[-16:] + block
            writer.write(answer)
        await self._over.wait()
        writer.transport.abort()
