"""The SMTP dialogue over loopback: syntax, order, number, time; what is decided before anybody is asked."""

import asyncio
import resource
import threading
from itertools import pairwise

import pytest

from forwarder.inbound import dialogue
from forwarder.inbound.data import normalized
from tests.inbound.recording import MESSAGE
from tests.peers.client import Client


def connect(listening, **options):
    return Client("127.0.0.1", listening.port, **options)


async def works(listening):
    """The next normal message is taken."""
    before = len(listening.messages)
    async with connect(listening) as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"b@here.test"], MESSAGE)
    return answers[-1].code == 250 and len(listening.messages) == before + 1


async def empty(listening):
    """No session is left."""
    async with asyncio.timeout(5):
        while listening.server.sessions:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def begin(client, *, sender=b"a@sender.test", recipient=b"b@here.test"):
    await client.ehlo()
    await client.say(b"MAIL FROM:<" + sender + b">\r\n")
    return await client.say(b"RCPT TO:<" + recipient + b">\r\n")


async def test_greeting_and_extensions(serve):
    listening = await serve(size_limit="1 MiB")
    async with connect(listening) as client:
        assert client.greeting == (220, "mx.test ESMTP ready")
        answer = await client.ehlo()
        assert answer.text.split("\n") == [
            "mx.test",
            "SIZE 1048576",
            "8BITMIME",
            "SMTPUTF8",
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
        ]
        assert await client.say(b"HELO client.test\r\n") == (250, "mx.test")
        assert (await client.say(b"QUIT\r\n")).code == 221
        assert await client.closed()


async def test_a_message_arrives_as_it_was_sent(serve):
    listening = await serve()
    content = b"Subject: dots\r\n\r\n.one\r\n..two\r\n\x00\xff8bit\r\n"
    async with connect(listening) as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"b@here.test", b"c@here.test"], content)
        assert [answer.code for answer in answers] == [250, 250, 250, 354, 250]
        assert str(answers[-1]) == "250 2.0.0 queued as " + "0" * 32
        again = await client.message(b"", [b"b@here.test"], b"\r\n")
        assert again[-1].code == 250
    assert listening.messages == [
        ("a@sender.test", ("b@here.test", "c@here.test"), content),
        ("", ("b@here.test",), b"\r\n"),
    ]


async def test_a_whole_session_in_one_segment(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.send(
            b"EHLO client.test\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<b@here.test>\r\nRCPT TO:<unknown@here.test>\r\n"
            b"DATA\r\nSubject: x\r\n\r\nbody\r\n.\r\nMAIL FROM:<c@sender.test>\r\nRSET\r\nQUIT\r\n"
        )
        codes = [(await client.read()).code for _ in range(9)]
        assert codes == [250, 250, 250, 550, 354, 250, 250, 250, 221]
    assert listening.messages == [("a@sender.test", ("b@here.test",), b"Subject: x\r\n\r\nbody\r\n")]


async def test_a_command_that_is_answered_501_has_done_nothing(serve):
    listening = await serve()
    async with connect(listening) as client:
        await begin(client)
        for command in (b"RSET x", b"DATA x", b"EHLO", b"HELO ", b"QUIT x"):
            assert str(await client.say(command + b"\r\n")).startswith("501 5.5.4 "), command
        assert (await client.say(b"DATA\r\n")).code == 354
        assert (await client.say(MESSAGE + b".\r\n")).code == 250
    [(sender, recipients, _)] = listening.messages
    assert (sender, recipients) == ("a@sender.test", ("b@here.test",))


ENDINGS = [
    b"\n.\n",
    b"\r.\r",
    b"\r.\n",
    b"\n.\r",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r\n",
    b"\r\n.\r",
]
SMUGGLED = b"MAIL FROM:<admin@victim.test>\r\nRCPT TO:<b@here.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n"


@pytest.mark.parametrize("ending", ENDINGS)
async def test_smuggling_is_refused_once_after_the_true_end(serve, ending):
    listening = await serve()
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(b"Subject: one\r\n\r\nbody" + ending + SMUGGLED)
        assert await client.silent(0.1)
        answer = await client.say(b".\r\n")
        assert str(answer).startswith("521 5.5.2 ")
        assert await client.closed()
    assert listening.messages == []
    assert await works(listening)


@pytest.mark.parametrize("ending", [b"\r\n\0.\r\n", b"\r\n.\0\r\n"])
async def test_smuggling_with_nul_is_one_message(serve, ending):
    listening = await serve()
    content = b"Subject: one\r\n\r\nbody" + ending + SMUGGLED
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(content)
        assert await client.silent(0.1)
        assert (await client.say(b".\r\n")).code == 250
    # The dot of the second form is stuffing to whoever reads it, as RFC 5321 4.5.2 wants.
    assert listening.messages == [("a@sender.test", ("b@here.test",), content.replace(b"\r\n.\0", b"\r\n\0"))]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_smuggling_is_made_harmless_where_newlines_are_normalised(serve, ending):
    listening = await serve(normalize=True)
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(b"Subject: one\r\n\r\nbody" + ending + SMUGGLED)
        assert await client.silent(0.05)
        assert (await client.say(b".\r\n")).code == 250
    [(sender, _, content)] = listening.messages
    assert sender == "a@sender.test"
    assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")


@pytest.mark.parametrize("bad", [b"line1\nline2\r\n", b"line1\rline2\r\n", b"a\r\r\n"])
async def test_a_bare_newline_is_refused_and_the_session_goes_on(serve, bad):
    listening = await serve()
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        assert str(await client.say(bad + b".\r\n")).startswith("550 5.5.2 ")
        answers = await client.message(b"a@sender.test", [b"b@here.test"], MESSAGE)
        assert answers[-1].code == 250
    assert [content for _, _, content in listening.messages] == [MESSAGE]


async def test_of_a_refused_message_the_beginning_is_shown(serve):
    listening = await serve()
    async with connect(listening) as client:
        for content in (b"Subject: short\r\n\r\n\n\r\n", b"Subject: long\r\n" + b"\n" * 100_000 + b"\r\n"):
            await begin(client)
            await client.say(b"DATA\r\n")
            assert (await client.say(content + b".\r\n")).code == 550
            assert listening.reception.refusals.pop() == (content[:65_536], 550)


async def test_a_bare_newline_is_normalised_where_that_is_asked_for(serve):
    listening = await serve(normalize=True)
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        assert (await client.say(b"line1\nline2\r\r\nline3\r\n.\r\n")).code == 250
    assert listening.messages[0][2] == b"line1\r\nline2\r\n\r\nline3\r\n"


async def test_newlines_of_a_large_message_are_normalised_beside_the_loop(serve, monkeypatch):
    threads = []

    def noted(raw):
        threads.append(threading.current_thread())
        return normalized(raw)

    monkeypatch.setattr(dialogue, "normalized", noted)
    listening = await serve(normalize=True)
    for lines in (100, 100_000):
        async with connect(listening) as client:
            await begin(client)
            await client.say(b"DATA\r\n")
            assert (await client.say(b"\n" * lines + b"end\r\n.\r\n")).code == 250
        assert listening.messages[-1][2] == b"\r\n" * lines + b"end\r\n"
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_a_command_ends_in_crlf(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        assert str(await client.say(b"NOOP\n")).startswith("500 5.5.2 ")
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        assert str(await client.say(b'RCPT TO:<"a\\\r b"@here.test>\r\n')).startswith("501 5.1.3 ")
        assert (await client.say(b"NOOP\r\n")).code == 250


@pytest.mark.parametrize(
    "path",
    [
        b"b\0b@here.test",
        b"\xff\xfe@here.test",
        b"(c)a@here.test",
        b"a..b@here.test",
        b"a@here.test.",
        b"x" * 65 + b"@here.test",
        b"a@" + b".".join([b"x" * 62] * 4) + b".test",
        b"a@[127.0.0.1]",
        b"@here.test:u@else.test",
        b"a b@here.test",
        b"x@evil.test>@here.test",
    ],
)
async def test_malformed_addresses(serve, path):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        answer = await client.say(b"MAIL FROM:<" + path + b">\r\n")
        assert str(answer)[:9] in ("501 5.1.7", "553 5.6.7")
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        for command in (b"RCPT TO:<" + path + b">\r\n", b"RCPT TO:<>\r\n", b"RCPT TO:<a@here.test\r\n"):
            assert str(await client.say(command))[:9] in ("501 5.1.3", "553 5.6.7")
        assert str(await client.say(b"RCPT TO:<b@here.test>\r\n")).startswith("250 2.1.5")


async def test_a_non_ascii_address_needs_its_extension(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        assert str(await client.say("MAIL FROM:<ä@sender.test>\r\n".encode())).startswith("553 5.6.7")
        assert (await client.say("MAIL FROM:<ä@sender.test> SMTPUTF8\r\n".encode())).code == 250
        assert (await client.say("RCPT TO:<ö@bücher.test>\r\n".encode())).code == 250
        await client.say(b"DATA\r\n")
        assert (await client.say("Subject: ü\r\n\r\n.\r\n".encode())).code == 250
    assert listening.messages[0][:2] == ("ä@sender.test", ("ö@xn--bcher-kva.test",))


@pytest.mark.parametrize(("length", "code"), [(512, 250), (998, 250), (10**7, 500)])
async def test_long_commands(serve, length, code):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = await client.say(b"NOOP " + b"x" * (length - 5) + b"\r\n")
        assert answer.code == code
        assert code == 250 or answer.text.startswith("5.5.2")
        # The ten megabytes of the client itself are within this.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
        assert (await client.say(b"NOOP\r\n")).code == 250


@pytest.mark.parametrize(
    ("length", "code"), [(998, 250), (999, 500), (1000, 500), (10**6, 500), (10**7, 500)]
)
async def test_long_lines_of_text(serve, length, code):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        content = b"Subject: x\r\n\r\n" + b"x" * length + b"\r\n"
        answers = await client.message(b"a@sender.test", [b"b@here.test"], content)
        assert answers[-1].code == code
        assert code == 250 or answers[-1].text.startswith("5.5.2")
        answers = await client.message(b"a@sender.test", [b"b@here.test"], MESSAGE)
        assert answers[-1].code == 250


@pytest.mark.parametrize(
    ("size", "reply"),
    [
        (b"1001", "552 5.3.4"),
        (b"-1", "501 5.5.4"),
        (b"9" * 60, "552 5.3.4"),
        (b"", "501 5.5.4"),
        (b"1000", "250 2.1.0"),
    ],
)
async def test_announced_sizes(serve, size, reply):
    listening = await serve(size_limit="1000 B")
    async with connect(listening) as client:
        await client.ehlo()
        assert str(await client.say(b"MAIL FROM:<a@sender.test> SIZE=" + size + b"\r\n")).startswith(reply)


@pytest.mark.parametrize(("size", "code"), [(1000, 250), (1001, 552), (1120, 552), (50_000, 552)])
async def test_a_body_over_the_limit_is_refused_after_the_dot(serve, size, code):
    listening = await serve(size_limit="1000 B")
    content = b"..\r\n" * 40 + b"x" * (size - 162) + b"\r\n"
    assert len(content) == size
    async with connect(listening) as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"b@here.test"], content)
        assert answers[-1].code == code
        assert code == 250 or answers[-1].text.startswith("5.3.4")
        assert (await client.say(b"NOOP\r\n")).code == 250
    assert [content for _, _, content in listening.messages] == [content] * (code == 250)


@pytest.mark.parametrize(("lines", "code"), [(333, 250), (334, 552)])
async def test_the_dots_of_stuffing_are_not_of_the_size(serve, lines, code):
    """RFC 1870 4 counts the message, not what makes it transparent: here one octet in four on the wire."""
    listening = await serve(size_limit="1000 B")
    async with connect(listening) as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"b@here.test"], b".\r\n" * lines)
        assert answers[-1].code == code


@pytest.mark.parametrize(("lines", "code"), [(499, 250), (500, 552)])
async def test_a_line_end_is_two_octets_of_the_size_however_it_came(serve, lines, code):
    listening = await serve(size_limit="1000 B", normalize=True)
    async with connect(listening) as client:
        await client.ehlo()
        answers = await client.message(b"a@sender.test", [b"b@here.test"], b"\n" * lines + b"\r\n")
        assert answers[-1].code == code
        assert code == 250 or answers[-1].text.startswith("5.3.4")
    assert [len(content) for _, _, content in listening.messages] == [1000] * (code == 250)


async def test_more_mail_at_once_than_memory_is_put_off(serve):
    listening = await serve(size_limit="1000 B")
    memory = listening.server._desk.memory
    memory.taken = memory.limit - 100
    async with connect(listening) as client:
        await client.ehlo()
        content = b"x" * 500 + b"\r\n"
        answers = await client.message(b"a@sender.test", [b"b@here.test"], content)
        assert str(answers[-1]).startswith("452 4.3.1")
        memory.taken = 0
        answers = await client.message(b"a@sender.test", [b"b@here.test"], content)
        assert answers[-1].code == 250
        assert memory.taken == 0


async def test_commands_out_of_order(serve):
    listening = await serve()
    async with connect(listening) as client:
        assert (await client.say(b"MAIL FROM:<a@sender.test>\r\n")).code == 503
        assert (await client.say(b"EHLO\r\n")).code == 501
        await client.ehlo()
        assert (await client.say(b"RCPT TO:<b@here.test>\r\n")).code == 503
        assert (await client.say(b"DATA\r\n")).code == 503
        assert (await client.say(b"MAIL FROM:<a@sender.test>\r\n")).code == 250
        assert (await client.say(b"MAIL FROM:<a@sender.test>\r\n")).code == 503
        assert (await client.say(b"DATA\r\n")).code == 554
        assert (await client.say(b"RCPT TO:<b@here.test> NOTIFY=NEVER\r\n")).code == 555
        await client.ehlo()  # starts anew (RFC 5321 4.1.4)
        assert (await client.say(b"RCPT TO:<b@here.test>\r\n")).code == 503
        assert (await client.say(b"AUTH PLAIN AGEAYg==\r\n")).code == 503
        assert (await client.say(b"STARTTLS\r\n")).code == 502


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"POST / HTTP/1.1",
        b"CONNECT mx.test:25 HTTP/1.1",
        b"get",
        b"\x16\x03\x01\x02\x00\x01\x00",  # the beginning of a TLS handshake
    ],
)
async def test_other_protocols_are_sent_away(serve, line, end):
    listening = await serve()
    async with connect(listening) as client:
        await client.send(line + end + b"Host: mx.test" + end + b"RCPT TO:<b@here.test>" + end + end)
        assert str(await client.read()).startswith("521 5.7.0")
        assert await client.closed()


async def test_commands_that_are_not_offered(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        known, unknown = [await client.say(b"VRFY " + who + b"\r\n") for who in (b"b@here.test", b"unknown")]
        assert known == unknown
        assert str(known).startswith("252 2.5.0")
        for command in (b"EXPN list", b"BDAT 10 LAST", b"ETRN x", b"TURN"):
            assert str(await client.say(command + b"\r\n")).startswith("502 5.5.1")
        for command in (
            b"XCLIENT ADDR=1.2.3.4",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2",
            b"",
            b"\xff\xff",
            b"DATA\0",
        ):
            assert str(await client.say(command + b"\r\n")).startswith("500 5.5.2")


@pytest.mark.parametrize("command", [b"NOOP", b"RSET", b"EHLO x", b"VRFY x"])
async def test_too_many_empty_commands(serve, command):
    listening = await serve(junk_commands=100)
    async with connect(listening) as client:
        answers = [await client.say(command + b"\r\n") for _ in range(100)]
        assert str(answers[-1]).startswith("421 4.7.0")
        assert all(answer.code in (250, 252) for answer in answers[:-1])
        assert await client.closed()
    assert await works(listening)


@pytest.mark.parametrize("command", [b"XYZZY", b"RCPT TO:<unknown@here.test>"])
async def test_too_many_errors(serve, command):
    listening = await serve(errors=20)
    async with connect(listening) as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.send((command + b"\r\n") * 25)
        answers = [await client.read() for _ in range(20)]
        assert str(answers[-1]).startswith("421 4.7.0")
        assert {answer.code for answer in answers[:-1]} <= {500, 550}
        assert await client.closed()


async def test_messages_make_up_for_empty_commands(serve):
    listening = await serve(junk_commands=10)
    async with connect(listening) as client:
        for _ in range(5):
            await client.ehlo()
            for _ in range(7):
                assert (await client.say(b"RSET\r\n")).code == 250
            answers = await client.message(b"a@sender.test", [b"b@here.test"], MESSAGE)
            assert answers[-1].code == 250


async def test_messages_make_up_for_errors(serve):
    listening = await serve(errors=10)
    async with connect(listening) as client:
        await client.ehlo()
        for _ in range(3):
            await client.say(b"MAIL FROM:<a@sender.test>\r\n")
            for _ in range(9):
                assert (await client.say(b"RCPT TO:<unknown@here.test>\r\n")).code == 550
            await client.say(b"RCPT TO:<b@here.test>\r\n")
            await client.say(b"DATA\r\n")
            assert (await client.say(MESSAGE + b".\r\n")).code == 250
        for _ in range(9):
            assert (await client.say(b"XYZZY\r\n")).code == 500
        assert str(await client.say(b"XYZZY\r\n")).startswith("421 4.7.0")


async def test_more_recipients_than_the_limit_wait_for_another_transaction(serve):
    listening = await serve(recipients=100)
    async with connect(listening) as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        await client.send(b"".join(b"RCPT TO:<r%d@here.test>\r\n" % number for number in range(150)))
        answers = [await client.read() for _ in range(150)]
        assert [answer.code for answer in answers] == [250] * 100 + [452] * 50
        assert answers[-1].text.startswith("4.5.3")
        await client.say(b"DATA\r\n")
        assert (await client.say(MESSAGE + b".\r\n")).code == 250
    assert len(listening.messages[0][1]) == 100


async def test_commands_that_come_together_leave_others_their_turn(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<a@sender.test>\r\n")
        (session,) = listening.reception.sessions
        taken = session.transaction.recipients
        await client.send(b"".join(b"RCPT TO:<r%d@here.test>\r\n" % number for number in range(1000)))
        seen = [0]
        async with asyncio.timeout(10):
            while seen[-1] < 1000:
                await asyncio.sleep(0)  # a turn of the loop, in which all others have theirs
                seen.append(len(taken))
        assert max(later - earlier for earlier, later in pairwise(seen)) <= 10
        assert {(await client.read()).code for _ in range(1000)} == {250}


async def test_an_error_of_ours_is_temporary_and_tells_nothing(serve):
    listening = await serve()
    async with connect(listening) as client:
        await client.ehlo()
        answer = await client.say(b"MAIL FROM:<explode@sender.test>\r\n")
        assert str(answer) == "451 4.3.0 temporary failure, try again later"
        assert (await client.say(b"NOOP\r\n")).code == 250
    assert await works(listening)


async def test_a_client_that_half_closes_after_the_dot_gets_its_answer(serve):
    listening = await serve(command_timeout="200ms")
    released = asyncio.Event()
    listening.reception.before_answer = released.wait
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(MESSAGE + b".\r\n")
        await client.end_of_input()
        await listening.reception.in_message.wait()
        assert await client.silent(0.5)  # longer than the command timeout: it rests while the server works
        released.set()
        assert (await client.read()).code == 250
        assert await client.closed()
    assert len(listening.messages) == 1


async def test_a_client_that_resets_after_the_dot_cancels_nothing(serve):
    listening = await serve()
    released = asyncio.Event()
    listening.reception.before_answer = released.wait
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(MESSAGE + b".\r\n")
        await listening.reception.in_message.wait()
    released.set()
    await empty(listening)
    assert len(listening.messages) == 1
    listening.reception.before_answer = None
    assert await works(listening)


async def test_slow_commands_are_told_before_the_close(serve):
    listening = await serve(command_timeout="300ms")
    async with connect(listening) as client:
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer = None
        while answer is None and loop.time() - started < 5:
            await client.send(b"N")
            if not await client_is_silent(client):
                answer = client.answer
        assert str(answer).startswith("421 4.4.2")
        assert loop.time() - started < 2
        assert await client.closed()


async def client_is_silent(client):
    try:
        client.answer = await client.read(0.05)
    except TimeoutError:
        return True
    return False


async def test_slow_data_is_taken_as_long_as_blocks_come(serve):
    listening = await serve(command_timeout="300ms", data_timeout="300ms")
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        for _ in range(12):
            await client.send(b"steady\r\n")
            assert await client.silent(0.1)
        assert (await client.say(b".\r\n")).code == 250
    assert listening.messages[0][2] == b"steady\r\n" * 12


async def test_data_that_stops_coming_is_given_up(serve):
    listening = await serve(data_timeout="200ms")
    async with connect(listening) as client:
        await begin(client)
        await client.say(b"DATA\r\n")
        await client.send(b"half")
        assert str(await client.read()).startswith("421 4.4.2")
        assert await client.closed()
    assert listening.messages == []


async def test_connections_at_once_of_one_client(serve):
    listening = await serve(connections_per_client=5)
    clients = [connect(listening) for _ in range(6)]
    for client in clients:
        await client.open()
    assert [client.greeting.code for client in clients] == [220] * 5 + [421]
    assert clients[-1].greeting.text.startswith("4.7.0")
    assert await clients[-1].closed()
    async with connect(listening, local_address="127.0.0.2") as other:
        assert other.greeting.code == 220
    for client in clients:
        await client.close()
    await empty(listening)
    assert await works(listening)


async def test_connections_a_minute_of_one_client(serve):
    listening = await serve(connections_per_minute=10)
    codes = []
    for _ in range(11):
        async with connect(listening) as client:
            codes.append(client.greeting.code)
    assert codes == [220] * 10 + [421]
    async with connect(listening, local_address="127.0.0.2") as other:
        assert other.greeting.code == 220


async def test_any_octets_end_in_replies_or_a_close(serve):
    listening = await serve(errors=0, junk_commands=0)
    for seed in (
        b"\r\n\r\n",
        b"\0" * 100 + b"\r\n",
        bytes(range(256)) * 3 + b"\r\n",
        b"MAIL FROM:\r\n",
        b"RCPT\r\n",
    ):
        async with connect(listening) as client:
            await client.send(b"EHLO x\r\n" + seed * 5 + b"QUIT\r\n")
            codes = []
            while not codes or codes[-1] not in (221, 521):
                codes.append((await client.read()).code)
            assert set(codes) <= {250, 500, 501, 503, 221, 521}
    assert await works(listening)


async def test_a_client_that_reads_nothing_is_dropped(serve):
    listening = await serve(command_timeout="300ms", errors=0, junk_commands=0)
    async with connect(listening) as client:
        client._writer.transport.pause_reading()
        for _ in range(2000):
            client._writer.write(b"HELP\r\n" * 10_000)
            try:
                async with asyncio.timeout(3):
                    await client._writer.drain()
            except OSError:  # dropped, or neither side moves any more
                break
        else:
            pytest.fail("120 million octets were taken from a client that reads nothing")
    await empty(listening)
    assert await works(listening)
