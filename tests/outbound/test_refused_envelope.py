"""What a host says to MAIL, RCPT and DATA, and what becomes of the recipients; the expectations are written by hand.

``MAIL`` that was refused decides for all of them. What the host says to the commands that were pipelined behind it is
about their order (most say 503), and it may say it in any way, or hang up.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from forwarder.mail.address import Path
from forwarder.mail.outcome import Action
from forwarder.net.smtp_client import ClientSession
from forwarder.net.smtp_opening import open_session
from forwarder.net.tls import TlsMode
from forwarder.outbound.delivery import _Attempt
from forwarder.outbound.parcel import Carried, Verdict
from forwarder.outbound.route import MxHost, Route
from forwarder.store.records import Delivery
from tests.net.sessions import CONTENT, SHORT

ADDRESSES = ("a@x.test", "b@x.test")
GOOD = ("250", "250", "354")

# What the host says to (MAIL, each RCPT, DATA), "*" for anything, and what each recipient's verdict is at a site of
# this one host. Where it waits, another host is asked if there is one, but for what is unknown.
WAYS = [
    (("250", "250", "354"), (Action.DELIVERED, 250)),
    (("250", "250", "503"), (Action.GIVE_UP, 503)),
    (("250", "250", "421"), (Action.RETRY_LATER, 421)),
    (("250", "250", "close"), (Action.RETRY_LATER, 451)),
    (("250", "450", "*"), (Action.RETRY_LATER, 450)),
    (("250", "550", "*"), (Action.GIVE_UP, 550)),
    (("250", "503", "*"), (Action.GIVE_UP, 503)),
    (("250", "421", "354"), (Action.RETRY_LATER, 421)),
    (("452", "*", "*"), (Action.RETRY_LATER, 452)),
    (("421", "*", "*"), (Action.RETRY_LATER, 421)),
    (("554", "*", "*"), (Action.GIVE_UP, 554)),
]
CASES = [
    ((mail, rcpt, data), expected)
    for (mail, rcpts, datas), expected in WAYS
    for rcpt in (("250", "450", "550", "503") if rcpts == "*" else (rcpts,))
    for data in (("354", "503", "421", "close") if datas == "*" else (datas,))
]
UNKNOWN = GOOD  # when it hangs up upon the dot


class Host:
    """Says the same to each command of a kind; with ``closes`` it hangs up when it has answered the last of them.

    "421/503" is said to the first recipient and to all others.
    """

    def __init__(self, says: Sequence[str], *, closes: bool = False, pipelining: bool = True) -> None:
        self.says = says
        self.connections = 0
        self.received = 0
        self.emptied = 0  # transactions with a recipient that ended in a lone dot
        self._closes = closes
        self._pipelining = pipelining
        self._open: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(asyncio.create_task(self._serve(reader, writer)))

    async def closed(self) -> None:
        """Until no connection is left."""
        async with asyncio.timeout(5):
            await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await self._talk(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail, rcpt, data = self.says
        to_each = rcpt.split("/")
        writer.write(b"220 x\r\n")
        rcpts = 0
        while line := await reader.readline():
            last = False
            match line[:4]:
                case b"EHLO":
                    writer.write(b"250-x\r\n250 PIPELINING\r\n" if self._pipelining else b"250 x\r\n")
                case b"MAIL":
                    rcpts = 0
                    writer.write(f"{mail} of mail\r\n".encode())
                    last = not self._pipelining and mail != "250"
                case b"RCPT":
                    writer.write(f"{to_each[min(rcpts, len(to_each) - 1)]} of rcpt\r\n".encode())
                    rcpts += 1
                    last = not self._pipelining and "250" not in to_each and rcpts == len(ADDRESSES)
                case b"DATA":
                    if data == "close":
                        break
                    writer.write(f"{data} of data\r\n".encode())
                    if data == "354":
                        lines = [line async for line in until_dot(reader)]
                        self.received += len(lines) > 1
                        self.emptied += lines == [b".\r\n"] and "250" in to_each[:rcpts]
                        if not self._closes:
                            writer.write(b"250 of dot\r\n")
                    last = True
                case _:
                    writer.write(b"250 x\r\n")
            if last and self._closes:
                break


async def until_dot(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a content, with the dot, as far as they come."""
    while line := await reader.readline():
        yield line
        if line == b".\r\n":
            return


class _Pool:
    """Dials the hosts; ``kept`` is a session that served other mail before."""

    def __init__(self, ports: dict[str, int], kept: ClientSession | None = None) -> None:
        self._ports = ports
        self._kept = kept

    def ordered(self, route: Route) -> list[MxHost]:
        return list(route.hosts)

    def reuse(self, route: Route) -> ClientSession | None:
        return self._kept

    def release(self, route: Route, session: ClientSession) -> None:
        session.abort()

    async def open(self, route: Route, host: MxHost, address: str) -> ClientSession:
        return await dialled(host.name, self._ports[host.name])


async def dialled(name: str, port: int) -> ClientSession:
    return await open_session(name, "127.0.0.1", port, hello="h", tls=TlsMode.OFF, timeouts=SHORT)


class _Delivery:
    def __init__(self, address: str, attempts: int) -> None:
        self.attempts = attempts
        self.id = self.destination = address
        self.destination_domain = address.partition("@")[2]


@asynccontextmanager
async def listening(*hosts: Host) -> AsyncIterator[dict[str, int]]:
    """The port of each host by its name: mx0, mx1."""
    servers = [await asyncio.start_server(host.accept, "127.0.0.1", 0) for host in hosts]
    try:
        yield {f"mx{n}": server.sockets[0].getsockname()[1] for n, server in enumerate(servers)}
    finally:
        for server in servers:
            server.close()
        for host in hosts:
            await host.closed()


async def attempt(*hosts: Host, **options: Any) -> Sequence[Verdict]:
    return (await carried(*hosts, **options)).verdicts


async def carried(
    *hosts: Host, kept: bool = False, addresses: Sequence[str] = ADDRESSES, attempts: int = 1
) -> Carried:
    async with listening(*hosts) as ports:
        made = _Attempt(
            pool=cast(Any, _Pool(ports, await dialled("mx0", ports["mx0"]) if kept else None)),
            route=Route(
                site="x",
                hosts=tuple(
                    MxHost(name=name, addresses=("127.0.0.1",), rank=int(name[2:])) for name in ports
                ),
                port=25,
            ),
            reverse_path=Path.null(),
            deliveries=[cast(Delivery, _Delivery(address, attempts)) for address in addresses],
            buffers=[CONTENT],
            smtputf8=False,
        )
        await made.run()
        return made.carried()


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
@pytest.mark.parametrize(("says", "expected"), CASES, ids=["-".join(says) for says, _ in CASES])
async def test_what_a_host_says_to_the_envelope_decides(
    says: tuple[str, str, str], expected: tuple[Action, int], closes: bool, pipelining: bool
) -> None:
    unknown = closes and says == UNKNOWN
    if unknown:
        expected = (Action.RETRY_LATER, 451)
    host = Host(says, closes=closes, pipelining=pipelining)
    verdicts = await attempt(host)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [expected] * 2
    assert ["delivery_unknown" in verdict.reply.text for verdict in verdicts] == [unknown] * 2
    assert host.emptied == 0  # nobody gets an empty message

    other = Host(GOOD, pipelining=pipelining)
    verdicts = await attempt(Host(says, closes=closes, pipelining=pipelining), other)
    if expected[0] is Action.RETRY_LATER and not unknown:
        assert [(verdict.action, verdict.server) for verdict in verdicts] == [(Action.DELIVERED, "mx1")] * 2
        assert other.received == 1
    else:
        assert [(verdict.action, verdict.server) for verdict in verdicts] == [(expected[0], "mx0")] * 2
        assert other.connections == 0


CLOSING = (Action.RETRY_LATER, 421)


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
@pytest.mark.parametrize(
    ("rcpt", "expected"),
    [
        ("421/503", [CLOSING, CLOSING]),
        ("250/421", [CLOSING, CLOSING]),  # what it says to DATA is 503 as well
        ("421/550", [CLOSING, (Action.GIVE_UP, 550)]),
        ("503/421", [(Action.GIVE_UP, 503), CLOSING]),
    ],
)
async def test_503_behind_a_421_is_the_word_of_a_host_that_is_closing(
    rcpt: str, expected: list[tuple[Action, int]], closes: bool, pipelining: bool
) -> None:
    """RFC 5321 3.8: nobody is refused for good by a host that goes down in the middle of the envelope."""
    verdicts = await attempt(Host(("250", rcpt, "503"), closes=closes, pipelining=pipelining))
    assert sorted((verdict.action, verdict.reply.code) for verdict in verdicts) == sorted(expected)


async def test_503_behind_a_421_is_so_too_when_the_host_hangs_up_before_the_last_answer() -> None:
    verdicts = await attempt(Host(("250", "421/503", "close")))
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.RETRY_LATER, 451)] * 2


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("rcpt", ["452", "552", "450 4.5.3", "550 5.5.3", "554 5.5.3"])
async def test_who_was_one_too_many_goes_in_another_transaction(rcpt: str, pipelining: bool) -> None:
    """RFC 5321 4.5.3.1.10; RFC 3463 3.6: X.5.3 asks for the rest of the recipients in a message of their own."""
    host = Host(("250", f"250/{rcpt}", "354"), pipelining=pipelining)
    verdicts = await attempt(host)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.DELIVERED, 250)] * 2
    assert (host.connections, host.received) == (1, 2)


@pytest.mark.parametrize(
    ("rcpt", "expected"), [("450 4.5.3", (Action.RETRY_LATER, 450)), ("550 5.5.3", (Action.GIVE_UP, 550))]
)
async def test_where_nobody_was_taken_nobody_was_one_too_many(
    rcpt: str, expected: tuple[Action, int]
) -> None:
    host = Host(("250", rcpt, "503"))
    verdicts = await attempt(host)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [expected] * 2
    assert (host.connections, host.received) == (1, 0)


class OfOneDomain(Host):
    """Takes recipients of one domain in a transaction, as Google's hosts do; of ``busy.test`` it takes nobody."""

    def __init__(self, refusal: bytes) -> None:
        super().__init__(GOOD)
        self.named: list[bytes] = []
        self._refusal = refusal

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        taken = b""
        while line := await reader.readline():
            said = b"250 x\r\n"
            match line[:4]:
                case b"EHLO":
                    said = b"250-x\r\n250 PIPELINING\r\n"
                case b"MAIL":
                    taken = b""
                case b"RCPT":
                    self.named.append(line[len("RCPT TO:<") : -len(">\r\n")])
                    domain = self.named[-1].partition(b"@")[2]
                    taken = taken or (domain if domain != b"busy.test" else b"")
                    said = said if domain == taken else self._refusal
                case b"DATA" if not taken:
                    said = b"503 x\r\n"
                case b"DATA":
                    writer.write(b"354 x\r\n")
                    self.received += len([line async for line in until_dot(reader)]) > 1
            writer.write(said)


@pytest.mark.parametrize("refusal", [b"451 4.3.0 one domain at a time\r\n", b"450 x\r\n"])
async def test_who_is_refused_for_now_beside_another_domain_goes_in_another_transaction(
    refusal: bytes,
) -> None:
    host = OfOneDomain(refusal)
    verdicts = await attempt(host, addresses=("a@x.test", "b@y.test", "c@x.test", "d@z.test"))
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.DELIVERED, 250)] * 4
    assert (host.connections, host.received) == (1, 3)


async def test_and_there_it_is_refused_for_now_as_before() -> None:
    host, other = OfOneDomain(b"450 4.2.1 busy\r\n"), Host(GOOD)
    addresses = ("a@x.test", "b@busy.test")
    verdicts = await attempt(host, addresses=addresses)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [
        (Action.DELIVERED, 250),
        (Action.RETRY_LATER, 450),
    ]
    assert host.named == [b"a@x.test", b"b@busy.test", b"b@busy.test"]
    verdicts = await attempt(host, other, addresses=addresses)
    assert [verdict.server for verdict in verdicts] == ["mx0", "mx1"]


class Named(OfOneDomain):
    """Says so to the recipients of a transaction, one after the other."""

    def __init__(self, says: str) -> None:
        super().__init__(b"")
        self._says = says.split("/")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        rcpts = 0
        while line := await reader.readline():
            said = "250"
            match line[:4]:
                case b"MAIL":
                    rcpts = 0
                case b"RCPT":
                    self.named.append(line[len("RCPT TO:<") : -len(">\r\n")])
                    said = self._says[rcpts]
                    rcpts += 1
                case b"DATA":
                    writer.write(b"354 x\r\n")
                    self.received += len([line async for line in until_dot(reader)]) > 1
            writer.write(f"{said} x\r\n".encode())


class OneEach(Host):
    """Takes one recipient in a transaction, and one transaction in a session."""

    def __init__(self, farewell: bytes) -> None:
        super().__init__(GOOD)
        self._farewell = farewell

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        rcpts = mails = 0
        while line := await reader.readline():
            said = b"250 x\r\n"
            match line[:4]:
                case b"MAIL":
                    mails += 1
                    rcpts = 0
                    said = said if mails == 1 else self._farewell
                case b"RCPT":
                    rcpts += 1
                    said = said if rcpts == 1 else b"452 4.5.3 one at a time\r\n"
                case b"DATA":
                    writer.write(b"354 x\r\n")
                    self.received += len([line async for line in until_dot(reader)]) > 1
            writer.write(said)


@pytest.mark.parametrize("farewell", [b"550 5.7.0 one each session\r\n", b"503 x\r\n", b"421 x\r\n"])
async def test_a_host_that_takes_no_other_transaction_has_not_refused_who_was_one_too_many(
    farewell: bytes,
) -> None:
    host, other = OneEach(farewell), OneEach(farewell)
    verdicts = await attempt(host)
    assert [verdict.action for verdict in verdicts] == [Action.DELIVERED, Action.RETRY_LATER]
    verdicts = await attempt(host, other)
    assert [(verdict.action, verdict.server) for verdict in verdicts] == [
        (Action.DELIVERED, "mx0"),
        (Action.DELIVERED, "mx1"),
    ]
    verdicts = await attempt(host, kept=True)  # in a new session
    assert [verdict.action for verdict in verdicts] == [Action.DELIVERED] * 2


async def test_who_is_for_the_next_host_is_not_named_to_the_same_beside_who_goes_apart() -> None:
    host, other = Named("250/450/452"), Named("250")
    verdicts = await attempt(host, other, addresses=("a@x.test", "b@x.test", "c@x.test"))
    assert [verdict.action for verdict in verdicts] == [Action.DELIVERED] * 3
    assert host.named == [b"a@x.test", b"b@x.test", b"c@x.test", b"c@x.test"]
    assert other.named == [b"b@x.test"]


async def test_who_is_refused_beside_its_own_domain_is_not_asked_again_by_the_same_host() -> None:
    host = Host(("250", "250/450", "354"))
    verdicts = await attempt(host)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [
        (Action.DELIVERED, 250),
        (Action.RETRY_LATER, 450),
    ]
    assert host.received == 1


async def test_another_domain_beside_others_is_refused_for_good_where_the_host_says_so() -> None:
    host = OfOneDomain(b"550 5.1.1 nobody\r\n")
    verdicts = await attempt(host, addresses=("a@x.test", "b@y.test"))
    assert sorted((verdict.action, verdict.reply.code) for verdict in verdicts) == [
        (Action.DELIVERED, 250),
        (Action.GIVE_UP, 550),
    ]
    assert host.received == 1


class Touchy(Host):
    """Hangs up upon ``bad@``, with or without a word, and with ``takes`` also upon whoever comes after so many."""

    def __init__(self, word: bytes = b"", *, takes: int = 9, pipelining: bool = True) -> None:
        super().__init__(GOOD, pipelining=pipelining)
        self._word = word
        self._takes = takes

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        rcpts = 0
        while line := await reader.readline():
            said = b"250 x\r\n"
            match line[:4]:
                case b"EHLO" if self._pipelining:
                    said = b"250-x\r\n250 PIPELINING\r\n"
                case b"RCPT":
                    rcpts += 1
                    if b"<bad@" in line or rcpts > self._takes:
                        writer.write(self._word)
                        return
                case b"DATA":
                    writer.write(b"354 x\r\n")
                    self.received += len([line async for line in until_dot(reader)]) > 1
            writer.write(said)


THREE = ("a@x.test", "bad@y.test", "c@x.test")


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("word", [b"421 4.7.0 closing connection\r\n", b""], ids=["421", "silent"])
async def test_whom_a_host_hangs_up_upon_holds_up_nobody_for_ever(word: bytes, pipelining: bool) -> None:
    host = Touchy(word, pipelining=pipelining)
    verdicts = await attempt(host, addresses=THREE)
    assert {v.delivery.id: v.action for v in verdicts} == {
        "a@x.test": Action.DELIVERED,
        "bad@y.test": Action.RETRY_LATER,
        "c@x.test": Action.RETRY_LATER,
    }
    assert (host.connections, host.received) == (2, 1)
    verdicts = await attempt(host, addresses=THREE[1:], attempts=2)
    assert {v.delivery.id: v.action for v in verdicts} == {
        "bad@y.test": Action.RETRY_LATER,
        "c@x.test": Action.DELIVERED,
    }


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize("word", [b"421 4.7.0 closing connection\r\n", b""], ids=["421", "silent"])
async def test_nor_does_it_count_against_the_site(word: bytes, pipelining: bool) -> None:
    done = await carried(Touchy(word, pipelining=pipelining), addresses=("bad@y.test",))
    assert [verdict.action for verdict in done.verdicts] == [Action.RETRY_LATER]
    assert (done.reached, done.trouble) == (True, None)


@pytest.mark.parametrize("mail", ["421", "close"])
async def test_a_host_that_takes_no_mail_at_all_does(mail: str) -> None:
    done = await carried(Host(("421", "503", "503"), closes=mail == "close"))
    assert not done.reached
    assert done.trouble is not None


async def test_what_may_have_been_delivered_is_not_sent_again_at_once() -> None:
    """It went on after the 421 to another, and hung up upon the dot."""
    host = Host(("250", "250/421", "354"), closes=True)
    verdicts = await attempt(host)
    assert [(verdict.action, "delivery_unknown" in verdict.reply.text) for verdict in verdicts] == [
        (Action.RETRY_LATER, False),
        (Action.RETRY_LATER, True),
    ]
    assert (host.connections, host.received) == (1, 1)


async def test_those_it_had_not_taken_are_for_the_next_host() -> None:
    host, other = Touchy(), Host(GOOD)
    verdicts = await attempt(host, other, addresses=THREE)
    assert {v.delivery.id: (v.action, v.server) for v in verdicts} == {
        "a@x.test": (Action.DELIVERED, "mx0"),
        "bad@y.test": (Action.DELIVERED, "mx1"),
        "c@x.test": (Action.DELIVERED, "mx1"),
    }


async def test_a_host_that_hangs_up_upon_those_too_is_not_dialled_for_ever() -> None:
    class Shrinking(Touchy):
        def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._takes = 2 - self.connections
            super().accept(reader, writer)

    host = Shrinking()
    verdicts = await attempt(host, addresses=("a@x.test", "b@x.test", "c@x.test"))
    assert [verdict.action for verdict in verdicts] == [Action.RETRY_LATER] * 3
    assert (host.connections, host.received) == (2, 0)


async def test_nor_is_it_where_it_takes_no_connection_any_more() -> None:
    class Gone(Touchy):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections == 1:
                await super()._talk(reader, writer)

    host, other = Gone(), Host(GOOD)
    verdicts = await attempt(host, addresses=THREE)
    assert [verdict.action for verdict in verdicts] == [Action.RETRY_LATER] * 3
    assert host.connections == 2
    verdicts = await attempt(Gone(), other, addresses=THREE)
    assert [(verdict.action, verdict.server) for verdict in verdicts] == [(Action.DELIVERED, "mx1")] * 3
    assert other.received == 1


class Once(Host):
    """Says that once, and takes everything in the second connection."""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().accept(reader, writer)
        if self.connections == 2:
            self.says, self._closes = GOOD, False


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize(
    ("rcpt", "data"),
    [
        ("452", "503"),
        ("503", "503"),
        ("421/503", "503"),
        ("554", "503"),
        ("521", "503"),
        ("550 5.7.1", "503"),
        ("554 5.0.0", "503"),
        ("550 5.5.0/452", "503"),
        ("250", "503"),
        ("250", "554"),
        ("250", "451"),
        ("250/550", "554"),
    ],
)
async def test_in_a_kept_session_the_refusal_of_all_before_the_content_may_be_about_the_session(
    rcpt: str, data: str, pipelining: bool
) -> None:
    host = Once(("250", rcpt, data), pipelining=pipelining)
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.DELIVERED, 250)] * 2
    assert (host.connections, host.received) == (2, 1)


@pytest.mark.parametrize("rcpt", ["554", "550 5.7.1"])
async def test_a_host_that_hangs_up_a_kept_session_on_such_a_refusal_is_dialled_too(rcpt: str) -> None:
    host = Once(("250", rcpt, "close"), closes=True)
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.DELIVERED, 250)] * 2
    assert (host.connections, host.received) == (2, 1)


@pytest.mark.parametrize(
    ("rcpt", "expected"), [("554", (Action.GIVE_UP, 554)), ("521", (Action.GIVE_UP, 521))]
)
async def test_what_is_said_again_in_a_new_session_counts(rcpt: str, expected: tuple[Action, int]) -> None:
    host = Host(("250", rcpt, "503"))
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [expected] * 2
    assert host.connections == 2


@pytest.mark.parametrize("data", ["503", "close"])
@pytest.mark.parametrize("rcpt", ["550", "553", "550 5.1.1", "554 5.1.1", "550 5.2.1", "550 5.0.0"])
async def test_in_a_kept_session_a_mailbox_that_does_not_exist_does_not_exist(rcpt: str, data: str) -> None:
    host = Once(("250", rcpt, data))
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [
        (Action.GIVE_UP, int(rcpt[:3]))
    ] * 2
    assert host.connections == 1


async def test_in_a_kept_session_who_is_refused_beside_one_who_is_taken_is_refused() -> None:
    host = Once(("250", "250/554", "354"))
    verdicts = await attempt(host, kept=True)
    assert sorted((verdict.action, verdict.reply.code) for verdict in verdicts) == [
        (Action.DELIVERED, 250),
        (Action.GIVE_UP, 554),
    ]
    assert (host.connections, host.received) == (1, 1)


class Choosy(Host):
    """Refuses what it has read."""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        while line := await reader.readline():
            writer.write(b"354 x\r\n" if line == b"DATA\r\n" else b"250 x\r\n")
            if line == b"DATA\r\n":
                _ = [line async for line in until_dot(reader)]
                writer.write(b"554 5.7.1 this is spam\r\n")


async def test_in_a_kept_session_what_is_refused_after_the_dot_is_not_sent_again() -> None:
    host = Choosy(GOOD)
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.GIVE_UP, 554)] * 2
    assert host.connections == 1


@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
@pytest.mark.parametrize("data", ["354", "503", "421", "close"])
@pytest.mark.parametrize("mail", ["452", "421", "503", "554"])
async def test_in_a_kept_session_the_refusal_of_mail_says_nothing_of_the_message(
    mail: str, data: str, closes: bool
) -> None:
    """Some hosts take one message each session, and refuse the next MAIL in one way or another."""
    host = Once((mail, "503", data), closes=closes)
    verdicts = await attempt(host, kept=True)
    assert [(verdict.action, verdict.reply.code) for verdict in verdicts] == [(Action.DELIVERED, 250)] * 2
    assert (host.connections, host.received) == (2, 1)
