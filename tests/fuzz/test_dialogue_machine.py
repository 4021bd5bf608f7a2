"""Commands in any order to a real engine, beside a model of RFC 5321 4.1.4: every one is answered as the model says.

What was answered with 250 after the dot arrives, once for each recipient; what was not, does not. And any octets at
all end in replies or a close, never in an error of ours.
"""

import asyncio
import logging
import re
import socket
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.crash.client import Conversation
from tests.harness import House, wait_until

REPLY = re.compile(rb"(?:[2-5][0-9][0-9]-[^\r\n]*\r\n)*[2-5][0-9][0-9](?: [^\r\n]*)?\r\n")
PATHS = st.sampled_from([b"", b"ann@out.test", b'"a b"@out.test', b"ann+tag@out.test"])
BAD_PATHS = st.sampled_from(
    [b"a", b"a@b@c", b"<a@b.test", b"a..b@c.test", b'"a@c.test', b"a@-c.test", b"\xff@c.test"]
)
BOXES = st.integers(0, 9).map(lambda n: b"box%d" % n)
NONSENSE = st.sampled_from([b"FOO", b"MAILFROM:<a@b.test>", b"EHLOX", b"\xff\xfe", b"", b" NOOP", b"DAT A"])


class Served:
    """A whole engine in a loop of its own, for tests that are not coroutines."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._stack = AsyncExitStack()
        self.folder = folder
        self.accepted: Counter[tuple[str, str]] = Counter()
        self.number = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def open(self) -> None:
        self.house = await self._stack.enter_async_context(House(self.folder))
        free = {"errors": 10**6, "junk_commands": 10**6, "connections_per_client": 0}
        await self._stack.enter_async_context(self.house.engine(mx=free))
        await self.house.host("example.com", {"(box[0-9])": "$1@dest.test"})
        self.port = self.house.mx_port

    def close(self) -> None:
        self.run(self._stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def arrived(self) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for message in self.house.sink.messages:
            number = re.search(rb"(?m)^X-Number: ([0-9]+)\r$", message.content)
            assert number is not None
            found.update((number.group(1).decode(), r.partition("@")[0]) for r in message.recipients)
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    try:
        served.run(served.open())
        yield served
    finally:
        served.close()


class Dialogue(RuleBasedStateMachine):
    """One session, and what it must answer."""

    served: Served

    def __init__(self) -> None:
        super().__init__()
        self._connect()

    def _connect(self) -> None:
        self.session = Conversation(self.served.port)
        assert self.session.read() == 220
        self.greeted = False
        self.sender: bytes | None = None
        self.boxes: set[bytes] = set()

    def teardown(self) -> None:
        self.session.close()

    def _reset(self) -> None:
        self.sender, self.boxes = None, set()

    @rule(verb=st.sampled_from([b"EHLO", b"HELO", b"ehlo"]))
    def hello(self, verb: bytes) -> None:
        assert self.session.say(verb + b" out.test\r\n") == 250
        self.greeted = True
        self._reset()

    @rule(verb=st.sampled_from([b"EHLO\r\n", b"HELO\r\n"]))
    def nameless_hello(self, verb: bytes) -> None:
        assert self.session.say(verb) == 501

    @rule(path=PATHS, verb=st.sampled_from([b"MAIL FROM:", b"mail from:", b"Mail From:"]))
    def mail(self, path: bytes, verb: bytes) -> None:
        code = self.session.say(verb + b"<" + path + b">\r\n")
        assert code == (250 if self.greeted and self.sender is None else 503)
        if code == 250:
            self.sender = path

    @rule(path=BAD_PATHS)
    def malformed_mail(self, path: bytes) -> None:
        assert self.session.say(b"MAIL FROM:<" + path + b">\r\n") in (501, 503, 553)

    @rule(box=BOXES, domain=st.sampled_from([b"example.com", b"EXAMPLE.com"]))
    def rcpt(self, box: bytes, domain: bytes) -> None:
        code = self.session.say(b"RCPT TO:<" + box + b"@" + domain + b">\r\n")
        assert code == (250 if self.sender is not None else 503)
        if code == 250:
            self.boxes.add(box)

    @rule(address=st.sampled_from([b"nobody@example.com", b"box1@elsewhere.test", b"box1%x@example.com"]))
    def unknown_rcpt(self, address: bytes) -> None:
        assert self.session.say(b"RCPT TO:<" + address + b">\r\n") in (
            (550, 554, 551) if self.sender is not None else (503,)
        )

    @rule(path=BAD_PATHS)
    def malformed_rcpt(self, path: bytes) -> None:
        assert self.session.say(b"RCPT TO:<" + path + b">\r\n") in (501, 503, 553)

    @rule(bare=st.booleans())
    def data(self, bare: bool) -> None:
        code = self.session.say(b"DATA\r\n")
        if not self.boxes:
            assert code in (503, 554)
            return
        assert code == 354
        self.served.number += 1
        number = str(self.served.number)
        text = f"X-Number: {number}\r\nFrom: ann@out.test\r\n\r\ntext{chr(10) if bare else ''}\r\n"
        code = self.session.say(text.encode() + b".\r\n")
        assert code == (550 if bare else 250)
        if code == 250:
            self.served.accepted.update((number, box.decode()) for box in self.boxes)
        self._reset()

    @rule(boxes=st.sets(BOXES, min_size=1, max_size=4))
    def message(self, boxes: set[bytes]) -> None:
        """From any state to a message, or chance would come to few."""
        self.hello(b"EHLO")
        self.mail(b"ann@out.test", b"MAIL FROM:")
        for box in sorted(boxes):
            self.rcpt(box, b"example.com")
        self.data(False)

    @rule()
    def rset(self) -> None:
        assert self.session.say(b"RSET\r\n") == 250
        self._reset()

    @rule(
        line=st.sampled_from(
            [(b"NOOP\r\n", 250), (b"NOOP x\r\n", 250), (b"VRFY box1\r\n", 252), (b"HELP\r\n", 214)]
        )
    )
    def other(self, line: tuple[bytes, int]) -> None:
        assert self.session.say(line[0]) == line[1]

    @rule(line=NONSENSE)
    def nonsense(self, line: bytes) -> None:
        assert self.session.say(line + b"\r\n") in (500, 501, 502, 503)

    @rule(length=st.sampled_from([5_000, 70_000]))
    def endless_line(self, length: int) -> None:
        assert self.session.say(b"NOOP " + b"x" * length + b"\r\n") in (500, 501)

    @rule()
    def bare_line_feed(self) -> None:
        assert self.session.say(b"RSET\n") == 500

    @precondition(lambda self: self.greeted)
    @rule(box=BOXES)
    def pipelined(self, box: bytes) -> None:
        self.session.say(b"RSET\r\n")
        self._reset()
        codes = [
            self.session.say(b"MAIL FROM:<ann@out.test>\r\nRCPT TO:<" + box + b"@example.com>\r\nRSET\r\n")
        ]
        codes += [self.session.read(), self.session.read()]
        assert codes == [250, 250, 250]

    @rule()
    def quit(self) -> None:
        assert self.session.say(b"QUIT\r\n") == 221
        assert self.session.read() == 0
        self.session.close()
        self._connect()


def test_commands_in_any_order(served: Served) -> None:
    Dialogue.served = served
    run_state_machine_as_test(
        Dialogue,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert served.accepted, "some examples get as far as a message"
    served.run(wait_until(lambda: served.arrived() == served.accepted, what="what was accepted to arrive"))


def test_any_octets_end_in_replies_or_a_close(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    words = [
        b"EHLO x\r\n",
        b"MAIL FROM:<>\r\n",
        b"RCPT TO:<box1@example.com>\r\n",
        b"DATA\r\n",
        b"\r\n.\r\n",
        b"\r\n",
    ]
    words += [
        b"AUTH PLAIN ",
        b"STARTTLS",
        b"BDAT 10 LAST\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\0",
        b"\r",
        b"\n",
        b"SIZE=",
    ]

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        octets=st.lists(st.one_of(st.sampled_from(words), st.binary(max_size=40)), max_size=12).map(b"".join)
    )
    def session(octets: bytes) -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            heard = b""
            try:
                connection.sendall(octets)
                connection.shutdown(socket.SHUT_WR)
                while block := connection.recv(65_536):
                    heard += block
            except ConnectionError:
                return  # closed on us with octets of ours unread
            # What follows a STARTTLS that was taken is not text any more.
            if b"\n220 2.0.0" not in heard:
                assert re.fullmatch(rb"(?:" + REPLY.pattern + rb")+", heard), heard

    with caplog.at_level(logging.WARNING):
        session()
    assert [record for record in caplog.records if record.exc_info] == []
