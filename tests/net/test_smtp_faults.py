"""What ends a session, and what is known then."""

import asyncio
import os

import pytest

from forwarder.mail.outcome import Fault, Scope, Stage
from forwarder.net.smtp_answers import SessionFault
from forwarder.net.smtp_client import Timeouts
from forwarder.net.smtp_opening import open_session
from forwarder.net.tls import TlsMode
from tests.net.sessions import CONTENT, SHORT, Scripted, connect, fault_of, fault_of_opening
from tests.peers.sink import Sink


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
    ("ehlo", "helo", "code", "fault"),
    [
        ("550-then-close", "", 550, None),  # it was said of us
        ("550", "drop", 550, None),
        ("550", "421", 421, None),
        ("550", "hang", 451, Fault.TIMEOUT),
        ("500", "drop", 451, Fault.LOST),  # it was said of the command
        ("502", "drop", 451, Fault.LOST),
    ],
)
async def test_what_ehlo_was_refused_with_counts_where_nothing_is_said_to_helo(
    sink: Sink, ehlo: str, helo: str, code: int, fault: Fault | None
) -> None:
    sink.play("ehlo", ehlo)
    if helo:
        sink.play("helo", helo)
    ended = await fault_of_opening(sink)
    assert (ended.reply.code, ended.fault, ended.stage, ended.scope) == (code, fault, Stage.HELLO, Scope.SITE)


@pytest.mark.parametrize("pipelining", [True, False])
async def test_nothing_is_delivered_that_was_not_asked_for(pipelining: bool) -> None:
    """A host that says 250 to DATA has got no content; nobody else would send it again."""
    async with Sink(pipelining=pipelining) as sink:
        fault = await fault_of(sink, "250-at-data@example.test")
        assert (fault.stage, fault.fault, fault.scope) == (Stage.DATA, Fault.PROTOCOL, Scope.SITE)
        assert (fault.reply.code, fault.unknown) == (451, False)
        assert sink.messages == []


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        (b"250 ok\r\n421 busy\r\n250 ok\r\n354 go\r\n", [421, None]),  # all but the dot was answered
        (b"250 ok\r\n250 ok\r\n421 busy\r\n354 go\r\n", [None, 421]),
        (b"250 ok\r\n421 busy\r\n250 ok\r\n", [421, None]),
        (b"250 ok\r\n250 ok\r\n421 busy\r\n", [None, None]),  # the last word is the session's
        (b"250 ok\r\n421 busy\r\n", [None, None]),
    ],
)
async def test_a_421_to_a_recipient_is_his_when_something_was_said_after_it(
    answers: bytes, refused: list[int | None]
) -> None:
    ehlo = b"250-mx.example.test\r\n250 PIPELINING\r\n"
    async with Scripted(b"220 hello\r\n", (b"EHLO", ehlo), (b"DATA\r\n", answers)) as (host, port):
        session = await open_session(
            "mx.example.test", host, port, hello="me", tls=TlsMode.OFF, timeouts=SHORT
        )
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test", "c@example.test"], CONTENT)
        said = [raised.value.refusal(index) for index in range(2)]
        assert [reply.code if reply else None for reply in said] == refused
        assert raised.value.unknown is (b"354" in answers)


async def test_a_dot_that_is_answered_with_nonsense_leaves_it_unknown() -> None:
    ehlo = (b"EHLO", b"250-x\r\n250 PIPELINING\r\n")
    data = (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n")
    dot = (b"\r\n.\r\n", b"354 go\r\n354 go\r\n250 ok\r\n")  # a second one is passed over, no more
    async with Scripted(b"220 hi\r\n", ehlo, data, dot) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT)
    fault = raised.value
    assert (fault.stage, fault.fault, fault.unknown) == (Stage.DOT, Fault.PROTOCOL, True)
    assert "the dot was answered 354; the message may have been delivered" in fault.reply.text


async def test_a_second_354_is_not_the_answer_to_the_dot(sink: Sink) -> None:
    fault = await fault_of(sink, "354-at-dot@example.test")
    assert (fault.stage, fault.fault, fault.unknown) == (Stage.DOT, Fault.TIMEOUT_AFTER_DOT, True)


@pytest.mark.parametrize("ehlo", [b"250-x\r\n250 PIPELINING\r\n", b"250 x\r\n"])
@pytest.mark.parametrize("at_the_dot", [b"", b"354 go\r\n"])
@pytest.mark.parametrize("code", [250, 550])
async def test_a_354_may_be_said_twice(ehlo: bytes, at_the_dot: bytes, code: int) -> None:
    again = b"" if at_the_dot else b"354 go\r\n"
    steps = [(b"EHLO", ehlo)]
    if b"PIPELINING" in ehlo:
        steps.append((b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n" + again))
    else:
        steps += [(b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n" + again)]
    steps.append((b"\r\n.\r\n", at_the_dot + b"%d said\r\n" % code))
    async with Scripted(b"220 hi\r\n", *steps) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert answer.final is not None
        assert (answer.final.code, answer.final.text) == (code, "said")
        assert session.usable


@pytest.mark.parametrize("phase", ["connect", "ehlo"])
async def test_a_welcome_that_is_none_is_taken_for_none(sink: Sink, phase: str) -> None:
    sink.play(phase, "354")
    fault = await fault_of_opening(sink)
    assert (fault.fault, fault.reply.code) == (Fault.PROTOCOL, 451)
    assert "was answered 354" in fault.reply.text


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
        await open_session("x", "127.0.0.1", gone, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
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
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT + b"x" * 30_000_000 + b"\r\n")
        assert (raised.value.stage, raised.value.fault) == (Stage.DATA, Fault.TIMEOUT)
        assert not raised.value.unknown


async def test_where_the_answers_are_out_of_step_nobody_is_taken_for_refused() -> None:
    """A late answer to what was said before shifts all that follow: the 550 below is about the first recipient."""
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 late\r\n250 of mail\r\n550 of a\r\n250 of b\r\n"),
    ) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("s@example.com", ["a@example.test", "b@example.test"], CONTENT)
        assert (raised.value.stage, raised.value.fault) == (Stage.DATA, Fault.PROTOCOL)
        assert [raised.value.refusal(place) for place in (0, 1)] == [None, None]
        assert not raised.value.unknown


async def test_a_refusal_in_the_middle_of_the_content_is_heard() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n"),
        (b"x", b"552 5.3.4 too big\r\n"),
    ) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send(
            "a@example.com", ["b@example.test"], CONTENT + b"x" * 30_000_000 + b"\r\n"
        )
        assert answer.judge(0)[1].enhanced == "5.3.4"
        assert not session.usable


@pytest.mark.parametrize("ehlo", [b"250-x\r\n250 PIPELINING\r\n", b"250 x\r\n"])
@pytest.mark.parametrize(("said", "code"), [(b"550 5.7.1 spam\r\n", 550), (b"451 4.7.1 later\r\n", 451)])
async def test_a_refusal_right_behind_the_354_is_heard(ehlo: bytes, said: bytes, code: int) -> None:
    steps = [(b"EHLO", ehlo)]
    if b"PIPELINING" in ehlo:
        steps.append((b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n" + said))
    else:
        steps += [(b"MAIL", b"250 ok\r\n"), (b"RCPT", b"250 ok\r\n"), (b"DATA", b"354 go\r\n" + said)]
    async with Scripted(b"220 hi\r\n", *steps) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert (answer.judge(0)[0], answer.judge(0)[1].code) == (Scope.MESSAGE, code)
        assert not session.usable


@pytest.mark.parametrize("size", [0, 30_000_000])
async def test_a_refusal_of_the_content_is_heard_although_the_peer_hangs_up_behind_it(size: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readuntil(b"EHLO h\r\n")
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        if size:
            await reader.readexactly(65536)
        writer.write(b"552 5.3.4 too big\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send(
            "a@example.com", ["b@example.test"], CONTENT + b"x" * size + b"\r\n" * (size > 0)
        )
        assert answer.judge(0)[1].enhanced == "5.3.4"


async def test_a_long_answer_to_the_content_is_a_delivery() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250-x\r\n250 PIPELINING\r\n"),
        (b"DATA", b"250 ok\r\n250 ok\r\n354 go\r\n"),
        (b"\r\n.\r\n", b"250-x\r\n" * 3000 + b"250 x\r\n"),
    ) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert answer.judge(0)[1].positive


async def test_a_reply_that_nobody_asked_for_ends_the_session() -> None:
    async with Scripted(b"220 hi\r\n", (b"EHLO", b"250 x\r\n250 more\r\n")) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
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
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert (raised.value.stage, raised.value.fault) == (Stage.DATA, Fault.PROTOCOL)
        assert not raised.value.unknown


async def test_two_answers_to_one_command_do_not_answer_the_next() -> None:
    async with Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250 x\r\n"),
        (b"MAIL", b"250 ok\r\n250 ok\r\n"),
        (b"RCPT", b"550 no\r\n"),
    ) as (host, port):
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
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


async def test_a_peer_that_hangs_up_again_and_again_costs_nothing_in_the_end(sink: Sink) -> None:
    sink.play("ehlo", "drop")
    await fault_of_opening(sink)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        fault = await fault_of_opening(sink)
        assert (fault.stage, fault.fault) == (Stage.HELLO, Fault.LOST)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
