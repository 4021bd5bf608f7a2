"""Sessions over real sockets: what arrives, and what is refused while the session lives on."""

import tracemalloc

import pytest

from forwarder.mail.outcome import Scope
from forwarder.net import smtp_client
from forwarder.net.smtp_answers import SessionFault, announced
from forwarder.net.smtp_client import Timeouts
from forwarder.net.smtp_opening import open_session
from forwarder.net.tls import TlsMode
from tests.net.sessions import CONTENT, SHORT, Scripted, connect
from tests.peers.sink import Sink

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


@pytest.mark.parametrize("line", [b".", b"..", b"a.", b"", b"x" * 97])
async def test_dots_are_doubled_wherever_a_block_ends(
    sink: Sink, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_client, "BLOCK", 64)
    session = await connect(sink)
    for ends in range(60, 68):
        content = b"a: b\r\n\r\n" + b"y" * (ends - 10) + b"\r\n" + (line + b"\r\n.z\r\n") * 40
        await session.send("a@example.com", ["b@example.test"], content)
        assert sink.messages[-1].raw == content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    await session.quit()


async def test_of_a_message_for_who_does_not_read_no_copy_lies_there() -> None:
    content = b"a: b\r\n\r\n" + (b".y" * 200 + b"\r\n") * 40_000  # 16 MB
    said = b"250 2.0.0 fine\r\n"
    steps = ((b"EHLO", b"250 x\r\n"), (b"MAIL", said), (b"RCPT", said), (b"DATA", b"354 go on\r\n"))
    peer = Scripted(b"220 x\r\n", *steps)
    async with peer as (host, port):
        peer.narrow()
        session = await open_session("x.test", host, port, tls=TlsMode.OFF, timeouts=SHORT, hello="me.test")
        tracemalloc.start()
        with pytest.raises(SessionFault):
            await session.send("a@example.com", ["b@example.test"], content)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 4 << 20


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


@pytest.mark.parametrize("octets", [200_000, 500_000])  # one block, and more
async def test_a_host_that_reads_slower_than_we_write_gets_the_message_and_answers(octets: int) -> None:
    host = Scripted(
        b"220 hi\r\n",
        (b"EHLO", b"250 hi\r\n"),
        (b"MAIL", b"250 ok\r\n"),
        (b"RCPT", b"250 ok\r\n"),
        (b"DATA", b"354 go on\r\n"),
        (b"\r\n.\r\n", b"250 thanks\r\n"),
    )
    async with host as (address, port):
        host.narrow()
        session = await open_session(
            "x", address, port, hello="mx.example.net", tls=TlsMode.OFF, timeouts=Timeouts()
        )
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT + b"x" * octets + b"\r\n")
        assert answer.final is not None
        assert answer.final.text == "thanks"
        session.abort()


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


@pytest.mark.parametrize("pipelining", [True, False])
async def test_who_needs_smtputf8_does_not_keep_the_others_from_their_mail(pipelining: bool) -> None:
    async with Sink(smtputf8=False, pipelining=pipelining) as sink:
        session = await connect(sink)
        sink.play("rcpt", "550", times=1)
        everyone = ["jörg@example.test", "a@example.test", "grüße@example.test", "b@example.test"]
        answer = await session.send("a@example.com", everyone, CONTENT, smtputf8=True)
        judged = [answer.judge(index) for index in range(4)]
        assert [(scope, reply.code) for scope, reply in judged] == [
            (Scope.RECIPIENT, 553),
            (Scope.RECIPIENT, 550),
            (Scope.RECIPIENT, 553),
            (Scope.MESSAGE, 250),
        ]
        assert [message.recipients for message in sink.messages] == [("b@example.test",)]
        assert not any(b"SMTPUTF8" in command for command in sink.commands)
        await session.quit()


async def test_a_session_that_ends_tells_who_was_refused_although_some_were_not_asked_for() -> None:
    async with Sink(smtputf8=False, pipelining=False) as sink:
        session = await connect(sink)
        everyone = ["ö@x.test", "550-at-rcpt@x.test", "drop-at-rcpt@x.test", "ü@x.test"]
        with pytest.raises(SessionFault) as raised:
            await session.send("a@example.com", everyone, CONTENT)
        refusals = [raised.value.refusal(index) for index in range(4)]
        assert [reply.code if reply else None for reply in refusals] == [553, 550, None, None]


async def test_who_comes_first_gets_the_mail_although_the_next_needs_smtputf8() -> None:
    async with Sink(smtputf8=False) as sink:
        session = await connect(sink)
        answer = await session.send("a@example.com", ["b@example.test", "jörg@example.test"], CONTENT)
        assert [answer.judge(index)[1].code for index in range(2)] == [250, 553]
        await session.quit()


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("part", ["421", "drop"])
async def test_what_one_message_was_told_is_not_said_of_the_next(part: str, pipelining: bool) -> None:
    """Nor is its recipient refused for good, where the session ends before he is named."""
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        await session.send("a@example.com", ["550-at-rcpt@example.test", "b@example.test"], CONTENT)
        with pytest.raises(SessionFault) as raised:
            await session.send(f"{part}-at-mail@example.com", ["c@example.test"], CONTENT)
        assert raised.value.refusal(0) is None


@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_transaction_that_came_to_nothing_is_taken_back_before_the_next(pipelining: bool) -> None:
    async with Sink(pipelining=pipelining) as sink:
        session = await connect(sink)
        await session.send("a@example.com", ["550-at-rcpt@example.test"], CONTENT)
        for _ in range(2):
            await session.send("a@example.com", ["b@example.test"], CONTENT)
        assert sink.commands.count(b"RSET") == 1
        assert len(sink.messages) == 2
        assert sink.violations == []
        await session.quit()


@pytest.mark.parametrize(
    ("announcement", "size", "known"),
    [
        (b"SIZE 1000", 1000, True),
        (b"size  1000 ", 1000, True),
        (b"SIZE", None, True),
        (b"SIZE 0", None, True),
        (b"SIZE many", None, True),
        (b"SIZE 999999999999999", 999_999_999_999_999, True),
        (b"SIZE 1000000000000000", None, True),  # no number of octets
        (b"RESIZE 1000", None, False),
    ],
)
def test_the_size_that_a_host_announces(announcement: bytes, size: int | None, known: bool) -> None:
    features = announced(b"250-mx.example.test\n250 " + announcement)
    assert (features.size, features.size_known) == (size, known)


@pytest.mark.parametrize("part", ["", "drop", "garbage", "421"])
async def test_quit_closes_whatever_is_said_to_it(part: str) -> None:
    async with Sink() as sink:
        session = await connect(sink)
        if part:
            sink.play("quit", part)
        await session.quit()
        assert not session.usable
        await sink.wait_closed()
        assert sink.commands[-1] == b"QUIT"
        await session.quit()  # harmless


async def test_a_message_of_just_the_size_announced_is_sent() -> None:
    async with Sink(size=len(CONTENT)) as sink:
        session = await connect(sink)
        assert (await session.send("a@example.com", ["b@example.test"], CONTENT)).final is not None
        answer = await session.send("a@example.com", ["b@example.test"], CONTENT + b"\r\n")
        assert (answer.local, answer.mail.code) == (True, 552)
        await session.quit()


@pytest.mark.parametrize("pipelining", [True, False])
async def test_where_mail_was_refused_nobody_was_refused_for_want_of_smtputf8(pipelining: bool) -> None:
    async with Sink(smtputf8=False, pipelining=pipelining) as sink:
        session = await connect(sink)
        with pytest.raises(SessionFault) as raised:
            await session.send("421-at-mail@example.com", ["ö@x.test", "a@x.test"], CONTENT)
        assert [raised.value.refusal(index) for index in range(2)] == [None, None]


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
        session = await open_session("x", host, port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)
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
