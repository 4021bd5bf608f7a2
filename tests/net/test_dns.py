"""The resolver against a server that lies, stalls and truncates."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from dns.message import from_wire, make_query, make_response
from dns.name import from_text
from dns.rdatatype import TXT, A

from forwarder.config import HostPort
from forwarder.mail.dane import Tlsa
from forwarder.net.answers import Answer, CannotTell, Found, Mx, NotFound
from forwarder.net.dns import Resolver
from forwarder.net.nameservers import Silence, SystemServers, ask, system_nameservers
from tests.harness import wait_until
from tests.peers.dns_server import DnsServer

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def records(answer: Answer[Any]) -> tuple[Any, ...]:
    assert isinstance(answer, Found)
    return answer.records


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer(ttl=300) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def resolver(dns: DnsServer, clock: Clock) -> AsyncIterator[Resolver]:
    it = Resolver([HostPort(dns.host, dns.port)], clock=clock, deadline=timedelta(seconds=0.4))
    yield it
    await it.close()


async def test_each_kind_is_found(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "MX", [(20, "B.example.test"), (10, "a.example.test")])
    dns.set("a.example.test", "A", ["192.0.2.1"])
    dns.set("a.example.test", "AAAA", ["2001:db8::1"])
    dns.set("example.test", "TXT", ["x" * 600])
    dns.set("example.test", "NS", ["ns.example.test"])
    dns.set("www.example.test", "CNAME", ["a.example.test"])
    dns.set("1.2.0.192.in-addr.arpa", "PTR", ["a.example.test"])
    # the server says records of one kind in any order
    assert sorted(records(await resolver.mx("Example.TEST."))) == [
        Mx(preference=10, host="a.example.test"),
        Mx(preference=20, host="b.example.test"),
    ]
    five_minutes = timedelta(minutes=5)
    assert await resolver.a("a.example.test") == Found(records=("192.0.2.1",), ttl=five_minutes)
    assert await resolver.addresses("a.example.test") == Found(
        records=("2001:db8::1", "192.0.2.1"), ttl=five_minutes
    )
    assert await resolver.txt("example.test") == Found(records=(b"x" * 600,), ttl=five_minutes)
    assert await resolver.ns("example.test") == Found(records=("ns.example.test",), ttl=five_minutes)
    assert await resolver.cname("www.example.test") == Found(records=("a.example.test",), ttl=five_minutes)
    assert await resolver.ptr("192.0.2.1") == Found(records=("a.example.test",), ttl=five_minutes)


async def test_null_mx_has_an_empty_host(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "MX", [(0, ".")])
    assert records(await resolver.mx("example.test")) == (Mx(preference=0, host=""),)


async def test_not_found_tells_a_missing_name_from_missing_data(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    assert await resolver.mx("example.test") == NotFound(nxdomain=False)
    assert await resolver.mx("other.test") == NotFound(nxdomain=True)
    assert await resolver.addresses("example.test") == Found(records=("192.0.2.1",), ttl=timedelta(minutes=5))
    assert await resolver.addresses("other.test") == NotFound(nxdomain=True)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["x" * 60] * 5), "a\\300.test"])
async def test_a_name_no_zone_can_hold_is_not_asked_for(
    dns: DnsServer, resolver: Resolver, name: str
) -> None:
    assert await resolver.a(name) == NotFound(nxdomain=True)
    assert dns.queries == []


@pytest.mark.parametrize("fault", ["servfail", "refused", "timeout", "garbage", "wrong-id", "loop"])
async def test_cannot_tell_is_never_a_no(dns: DnsServer, resolver: Resolver, fault: str) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", fault)
    answer = await resolver.a("example.test")
    assert isinstance(answer, CannotTell)
    assert answer.reason
    assert len(dns.queries) <= 4


@pytest.mark.parametrize("broken", ["A", "AAAA"])
async def test_a_family_that_cannot_tell_is_no_no_though_the_other_has_nothing(
    dns: DnsServer, resolver: Resolver, broken: str
) -> None:
    dns.set("mx.test", "AAAA" if broken == "A" else "A", [])
    dns.fault("mx.test", "servfail", broken)
    for _ in range(2):  # asked, and from the cache
        assert isinstance(await resolver.addresses("mx.test"), CannotTell)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("timeout", "the name server does not answer"), ("servfail", "the name server answers SERVFAIL")],
)
async def test_a_useless_server_is_named_beside_the_reason(
    dns: DnsServer, resolver: Resolver, fault: str, reason: str
) -> None:
    dns.fault("example.test", fault)
    answer = await resolver.a("example.test")
    assert isinstance(answer, CannotTell)
    assert (answer.reason, answer.server) == (reason, f"127.0.0.1:{dns.port}")


class Lame(asyncio.DatagramProtocol):
    """Answers that there is nothing, though it is neither the zone's server nor one that asks others."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(make_response(from_wire(data)).to_wire(), addr)


async def test_the_empty_answer_of_a_lame_server_is_no_no(clock: Clock) -> None:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Lame, ("127.0.0.1", 0))
    resolver = Resolver([HostPort(*transport.get_extra_info("sockname"))], clock=clock)
    assert await resolver.mx("example.test") == CannotTell(
        reason="the name server answers with a referral",
        server="127.0.0.1:" + str(transport.get_extra_info("sockname")[1]),
    )
    transport.close()
    await resolver.close()


async def test_nobody_listens() -> None:
    async with DnsServer() as server:
        port = server.port
    resolver = Resolver([HostPort("127.0.0.1", port)], deadline=timedelta(seconds=0.2))
    answer = await resolver.a("example.test")
    assert isinstance(answer, CannotTell)
    assert answer.reason.startswith("the name server ")
    assert "127.0.0.1" not in answer.reason
    assert answer.server == f"127.0.0.1:{port}"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # one made an error would keep the loop from closing
def test_a_question_given_up_at_any_moment_leaves_no_socket_open() -> None:
    """The engine's own event loop leaves one open where its making is cancelled."""

    async def give_up(dns: DnsServer) -> None:
        dns.fault("example.test", "timeout")
        name, servers = from_text("example.test"), [HostPort(dns.host, dns.port)]
        before = len(os.listdir("/proc/self/fd"))
        for turns in range(12):
            question = asyncio.ensure_future(ask(servers, name, TXT, deadline=timedelta(seconds=60)))
            for _ in range(turns):
                await asyncio.sleep(0)  # one turn of the loop
            question.cancel()
            await asyncio.wait([question])
            assert question.cancelled()
        await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, what="the sockets to be closed")

    async def served() -> None:
        async with DnsServer() as dns:
            await give_up(dns)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(served())


@pytest.mark.parametrize("fault", ["spoof-then-answer", "wrong-question"])
async def test_answers_to_other_questions_are_ignored(dns: DnsServer, resolver: Resolver, fault: str) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", fault)
    assert records(await resolver.a("example.test")) == ("192.0.2.1",)


async def test_a_truncated_answer_is_fetched_by_tcp(dns: DnsServer, clock: Clock) -> None:
    patient = Resolver([HostPort(dns.host, dns.port)], clock=clock)
    texts = [f"{number:03} " + "x" * 240 for number in range(20)]  # more than 1,232 octets
    dns.set("example.test", "TXT", texts)
    assert set(records(await patient.txt("example.test"))) == {text.encode() for text in texts}
    assert [query.over for query in dns.queries] == ["udp", "tcp"]
    await patient.close()


async def test_an_answer_that_is_truncated_by_tcp_too_is_none(dns: DnsServer, clock: Clock) -> None:
    """RFC 2181 9: it is ignored; that it holds no record does not mean that there is none."""
    async with DnsServer() as broken:
        broken.fault("*", "cut")
        alone = Resolver([HostPort(broken.host, broken.port)], clock=clock)
        answer = await alone.mx("example.test")
        assert isinstance(answer, CannotTell)
        assert answer.reason == "the name server answers in part only, by TCP too"
        assert [query.over for query in broken.queries] == ["udp", "tcp"]
        dns.set("example.test", "A", ["192.0.2.1"])
        both = Resolver([HostPort(broken.host, broken.port), HostPort(dns.host, dns.port)], clock=clock)
        assert records(await both.a("example.test")) == ("192.0.2.1",)
        await alone.close()
        await both.close()


class Verbose(DnsServer):
    """Says more than anybody would read, by UDP before the right answer, and by TCP instead of it."""

    def respond(self, wire: bytes, over: str) -> tuple[Sequence[bytes], float]:
        address = b"\xc0\x0c" + struct.pack("!2HIH", A, 1, 300, 4) + b"\x06\x06\x06\x06"
        question = make_query(from_text("host.test"), A, use_edns=False).to_wire()[12:]
        head = wire[:2] + struct.pack("!5H", 0x8180, 1, 3500, 0, 0)
        answers, delay = super().respond(wire, over)
        return [head + question + address * 3500, *(answers if over == "udp" else ())], delay


async def test_what_would_take_long_to_read_is_no_answer(clock: Clock) -> None:
    async with Verbose() as dns:
        dns.set("host.test", "A", ["192.0.2.1"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert records(await resolver.a("host.test")) == ("192.0.2.1",)
        dns.fault("host.test", "truncate")
        resolver.forget()
        answer = await resolver.a("host.test")
        assert isinstance(answer, CannotTell)
        assert answer.reason == "the name server answers at too great a length"


class Mistaken(DnsServer):
    """Answers a question that nobody asked, by UDP before the right answer, and by TCP instead of it."""

    def respond(self, wire: bytes, over: str) -> tuple[Sequence[bytes], float]:
        other = make_query(from_text("other.test"), A, use_edns=False).to_wire()[12:]
        address = b"\xc0\x0c" + struct.pack("!2HIH", A, 1, 300, 4) + b"\x06\x06\x06\x06"
        said = wire[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + other + address
        answers, delay = super().respond(wire, over)
        return [said, *(answers if over == "udp" else ())], delay


async def test_an_answer_to_another_question_is_none(clock: Clock) -> None:
    async with Mistaken() as dns:
        dns.set("host.test", "A", ["192.0.2.1"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert records(await resolver.a("host.test")) == ("192.0.2.1",)
        dns.fault("host.test", "truncate")
        resolver.forget()
        assert isinstance(await resolver.a("host.test"), CannotTell)


async def test_a_server_that_stumbles_over_edns_is_asked_without(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", "no-edns")
    assert records(await resolver.a("example.test")) == ("192.0.2.1",)


async def test_the_next_server_is_asked(dns: DnsServer, clock: Clock) -> None:
    async with DnsServer() as broken:
        broken.fault("*", "servfail")
        dns.set("example.test", "A", ["192.0.2.1"])
        servers = [HostPort(broken.host, broken.port), HostPort(dns.host, dns.port)]
        resolver = Resolver(servers, clock=clock, deadline=timedelta(seconds=0.5))
        assert records(await resolver.a("example.test")) == ("192.0.2.1",)
        assert broken.count() == 1


async def test_silence_once_is_forgiven(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", "timeout", times=1)
    assert records(await resolver.a("example.test")) == ("192.0.2.1",)


async def test_a_server_that_is_silent_three_times_in_a_row_is_asked_last(
    dns: DnsServer, clock: Clock
) -> None:
    async with DnsServer() as silent:
        silent.fault("*", "timeout")
        servers = [HostPort(each.host, each.port) for each in (silent, dns)]
        resolver = Resolver(servers, clock=clock, deadline=timedelta(seconds=0.6))
        for number in range(8):
            dns.set(f"h{number}.test", "A", ["192.0.2.1"])
            assert records(await resolver.a(f"h{number}.test")) == ("192.0.2.1",)
        assert [query.name for query in silent.queries] == ["h0.test", "h1.test", "h2.test"]
        silent.heal()
        dns.fault("other.test", "servfail")
        silent.set("other.test", "A", ["192.0.2.2"])
        assert records(await resolver.a("other.test")) == ("192.0.2.2",)
        silent.set("more.test", "A", ["192.0.2.3"])  # it has spoken, and is the first again
        assert records(await resolver.a("more.test")) == ("192.0.2.3",)


def test_a_silent_server_is_asked_first_by_one_question_in_half_a_minute() -> None:
    now = 0.0
    silence = Silence(lambda: now)
    one, two, three = servers = [HostPort("192.0.2.1", port) for port in (1, 2, 3)]
    for _ in range(2):
        silence.missed(one)
    assert silence.ordered(servers) == [one, two, three]
    silence.missed(one)
    assert silence.ordered(servers) == [two, three, one]
    now = 29.0
    silence.missed(three)
    silence.heard(three)
    assert silence.ordered(servers) == [two, three, one]
    now = 30.0
    assert [silence.ordered(servers)[0] for _ in range(3)] == [one, two, two]
    silence.missed(one)
    now = 59.0
    assert silence.ordered(servers) == [two, three, one]
    silence.heard(one)
    assert silence.ordered(servers) == [one, two, three]
    for server in servers * 3:  # all alike
        silence.missed(server)
    assert silence.ordered(servers) == [one, two, three]


# --- aliases


@pytest.mark.parametrize("chase", [True, False])
async def test_aliases_are_followed(chase: bool, clock: Clock) -> None:
    async with DnsServer(chase=chase) as dns:
        dns.set("a.test", "CNAME", ["b.test"])
        dns.set("b.test", "CNAME", ["c.test"])
        dns.set("c.test", "MX", [(5, "mx.c.test")])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert records(await resolver.mx("a.test")) == (Mx(preference=5, host="mx.c.test"),)
        assert await resolver.a("a.test") == NotFound(nxdomain=False)


@pytest.mark.parametrize("chase", [True, False])
async def test_a_loop_of_aliases_ends(chase: bool, clock: Clock) -> None:
    async with DnsServer(chase=chase) as dns:
        dns.set("a.test", "CNAME", ["b.test"])
        dns.set("b.test", "CNAME", ["a.test"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert isinstance(await resolver.mx("a.test"), CannotTell)
        assert len(dns.queries) <= 20


@pytest.mark.parametrize("unsigned", ["", "www.test", "example.test"])
async def test_an_answer_is_secure_when_all_of_its_chain_is(unsigned: str, clock: Clock) -> None:
    async with DnsServer(chase=False) as dns:
        dns.signed = lambda name: name != unsigned
        dns.set("www.test", "CNAME", ["example.test"])
        dns.set("example.test", "A", ["192.0.2.1"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        answer = await resolver.a("www.test")
        assert isinstance(answer, Found)
        assert answer.secure is (unsigned == "")
        nothing = await resolver.mx("www.test")
        assert isinstance(nothing, NotFound)
        assert nothing.secure is (unsigned == "")
        await resolver.close()


async def test_every_step_of_a_chain_has_to_be_signed(clock: Clock) -> None:
    async with DnsServer(chase=False) as dns:
        dns.signed = lambda name: name != "first.test"
        dns.set("first.test", "CNAME", ["second.test"])
        dns.set("second.test", "CNAME", ["third.test"])
        dns.set("third.test", "A", ["192.0.2.1"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert [(await resolver.a(name)).secure for name in ("first.test", "second.test")] == [False, True]  # type: ignore[union-attr]
        await resolver.close()


@pytest.mark.parametrize("unsigned", ["", "A", "AAAA"])
async def test_addresses_are_secure_when_both_families_are(unsigned: str, clock: Clock) -> None:
    async with DnsServer() as dns:
        dns.set("mx.test", "A", ["192.0.2.1"])
        dns.set("mx.test", "AAAA", ["2001:db8::1"])
        dns.signed = lambda name: dns.queries[-1].kind != unsigned
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        for _ in range(2):  # asked, and from the cache
            answer = await resolver.addresses("mx.test")
            assert isinstance(answer, Found)
            assert answer.secure is (unsigned == "")
        await resolver.close()


async def test_what_the_zones_own_servers_say_does_not_replace_what_was_validated(clock: Clock) -> None:
    """Nobody turns DANE off for a domain by having it checked."""
    async with DnsServer() as dns:
        dns.signed = lambda name: len(dns.queries) < 2
        dns.set("example.test", "MX", [(10, "mx.example.test")])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        asked = await resolver.mx("example.test")
        assert isinstance(asked, Found)
        assert asked.secure
        dns.set("example.test", "MX", [(10, "new.example.test")])
        fresh = await resolver.mx("example.test", fresh=True)
        assert (records(fresh), fresh.secure) == ((Mx(preference=10, host="new.example.test"),), False)  # type: ignore[union-attr]
        dns.signed = lambda name: True
        again = await resolver.mx("example.test")
        assert (records(again), again.secure) == (records(fresh), True)  # type: ignore[union-attr]
        await resolver.close()


async def test_tlsa_records(clock: Clock) -> None:
    async with DnsServer() as dns:
        dns.set("_25._tcp.mx.test", "TLSA", ["3 1 1 " + "ab" * 32, "2 0 0 0102"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        answer = await resolver.tlsa("mx.test", 25)
        assert isinstance(answer, Found)
        assert set(answer.records) == {Tlsa(3, 1, 1, b"\xab" * 32), Tlsa(2, 0, 0, b"\1\2")}
        assert not answer.secure
        await resolver.close()


async def test_a_long_chain_of_aliases_ends(clock: Clock) -> None:
    async with DnsServer(chase=False) as dns:
        for number in range(30):
            dns.set(f"n{number}.test", "CNAME", [f"n{number + 1}.test"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock)
        assert isinstance(await resolver.a("n0.test"), CannotTell)
        assert len(dns.queries) == 8


# --- the cache


async def test_answers_are_kept_as_long_as_their_ttl(
    dns: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    dns.set("example.test", "A", ["192.0.2.1"], ttl=60)
    await resolver.a("example.test")
    dns.set("example.test", "A", ["192.0.2.2"], ttl=60)
    clock.advance(59)
    assert records(await resolver.a("EXAMPLE.test")) == ("192.0.2.1",)
    clock.advance(2)
    assert records(await resolver.a("example.test")) == ("192.0.2.2",)
    assert dns.count() == 2


@pytest.mark.parametrize(
    ("ttl", "kept", "gone"), [(0, 0.9, 1.1), (1_000_000, 3599, 3601)], ids=["at least", "at most"]
)
async def test_the_ttl_has_bounds(
    dns: DnsServer, resolver: Resolver, clock: Clock, ttl: int, kept: float, gone: float
) -> None:
    dns.set("example.test", "A", ["192.0.2.1"], ttl=ttl)
    await resolver.a("example.test")
    clock.advance(kept)
    await resolver.a("example.test")
    assert dns.count() == 1
    clock.advance(gone - kept)
    await resolver.a("example.test")
    assert dns.count() == 2


async def test_negative_answers_are_kept_as_the_soa_says(
    dns: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    dns.ttl = 30
    await resolver.a("other.test")
    clock.advance(29)
    await resolver.a("other.test")
    assert dns.count() == 1
    clock.advance(2)
    await resolver.a("other.test")
    assert dns.count() == 2


async def test_cannot_tell_is_kept_for_a_moment(dns: DnsServer, resolver: Resolver, clock: Clock) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", "servfail")
    await resolver.a("example.test")
    asked = dns.count()
    dns.heal()
    clock.advance(2)
    assert isinstance(await resolver.a("example.test"), CannotTell)
    assert dns.count() == asked
    clock.advance(2)
    assert isinstance(await resolver.a("example.test"), Found)


async def test_a_clock_set_back_does_not_freeze_answers(
    dns: DnsServer, resolver: Resolver, clock: Clock
) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    await resolver.a("example.test")
    clock.advance(-86_400)
    await resolver.a("example.test")
    assert dns.count() == 2


async def test_those_who_ask_at_once_share_one_question(dns: DnsServer, resolver: Resolver) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", "slow")
    dns.slowness = 0.05
    answers = await asyncio.gather(*(resolver.a("example.test") for _ in range(50)))
    assert all(isinstance(answer, Found) for answer in answers)
    assert dns.count() == 1


async def test_one_who_gives_up_waiting_does_not_take_the_answer_from_the_others(
    dns: DnsServer, resolver: Resolver
) -> None:
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("example.test", "slow")
    dns.slowness = 0.05
    impatient = asyncio.create_task(resolver.a("example.test"))
    patient = asyncio.create_task(resolver.a("example.test"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert isinstance(await patient, Found)
    assert dns.count() == 1


@pytest.mark.parametrize("places", [0, 1])
async def test_a_question_gives_its_place_back_and_cannot_tell_without_one(
    dns: DnsServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    monkeypatch.setattr("forwarder.net.dns.QUESTIONS", places)
    dns.set("example.test", "A", ["192.0.2.1"])
    dns.fault("broken.test", "servfail")
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, deadline=timedelta(seconds=0.4))
    answers = [await resolver.a(name) for name in ("missing.test", "broken.test", "example.test")]
    kinds = [NotFound, CannotTell, Found] if places else [CannotTell] * 3
    assert [type(answer) for answer in answers] == kinds
    await resolver.close()


async def test_silent_domains_do_not_keep_another_from_being_asked(dns: DnsServer, clock: Clock) -> None:
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, deadline=timedelta(seconds=30))
    silent = [f"mx{host}.silent{domain}.test" for domain in range(80) for host in range(10)]
    for name in silent:
        dns.fault(name, "timeout")
    dns.set("example.test", "A", ["192.0.2.1"])
    asking = asyncio.gather(*(resolver.a(name) for name in silent), return_exceptions=True)
    try:
        await wait_until(lambda: dns.count() >= 128 + 67)  # of 13 domains half of all, of 67 others one each
        async with asyncio.timeout(5):
            assert records(await resolver.a("example.test")) == ("192.0.2.1",)
    finally:
        await resolver.close()
        await asking


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_name_that_a_silent_domain_asks_for_in_vain_is_asked_for_others(
    dns: DnsServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Whoever is named in the MX records of a domain must not wait in its share."""
    monkeypatch.setattr("forwarder.net.dns.QUESTIONS", 4)
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, deadline=timedelta(seconds=0.4))
    dns.set("mx.example.test", "A", ["192.0.2.1"])
    for _ in range(2):  # all that it may have
        await resolver._slots.take("silent.test")
    vain = asyncio.create_task(resolver.a("mx.example.test", behalf="silent.test"))
    await (asyncio.sleep(0) if at_once else asyncio.wait({vain}))
    assert records(await resolver.a("mx.example.test", behalf="example.test")) == ("192.0.2.1",)
    assert isinstance(await vain, CannotTell)
    assert records(await resolver.a("mx.example.test", behalf="silent.test")) == ("192.0.2.1",)
    assert dns.count() == 1


async def test_the_cache_holds_a_fixed_number(dns: DnsServer, clock: Clock) -> None:
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, cache_size=2)
    for name in ("a.test", "b.test", "a.test", "c.test", "a.test", "b.test"):
        await resolver.a(name)
    # a stays, being used; b made room for c
    assert [query.name for query in dns.queries] == ["a.test", "b.test", "c.test", "b.test"]


async def test_large_answers_take_the_place_of_several_in_the_cache(dns: DnsServer, clock: Clock) -> None:
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, cache_size=10)
    for name in ("a.test", "b.test", "c.test"):
        dns.set(name, "TXT", ["k" * 4000])  # 4,064 octets: four places each
    for name in ("a.test", "b.test", "c.test", "c.test", "b.test", "a.test"):
        assert records(await resolver.txt(name)) == (b"k" * 4000,)
    # Two fit: the third made the first go, and asking for that again the third.
    assert [dns.count(name) for name in ("a.test", "b.test", "c.test")] == [2 * 2, 2, 2]


async def test_an_answer_that_is_renewed_takes_its_place_once(dns: DnsServer, clock: Clock) -> None:
    resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, cache_size=2)
    dns.set("a.test", "A", ["192.0.2.1"], ttl=1)
    dns.set("b.test", "A", ["192.0.2.2"])
    await resolver.a("b.test")
    for _ in range(5):
        await resolver.a("a.test")
        clock.advance(2)
    await resolver.a("b.test")
    assert dns.count("b.test") == 1


# --- past the cache


async def test_fresh_asks_the_servers_of_the_zone(dns: DnsServer, clock: Clock) -> None:
    async with DnsServer(host="127.0.0.2") as zone:
        dns.set("example.test", "NS", ["ns.example.test"])
        dns.set("ns.example.test", "A", ["127.0.0.2"])
        dns.set("_dmarc.example.test", "TXT", ["old"])
        zone.set("_dmarc.example.test", "TXT", ["new"])
        zone.authoritative = True
        resolver = Resolver(
            [HostPort(dns.host, dns.port)],
            clock=clock,
            askable=lambda address: address == "127.0.0.2",
            authority_port=zone.port,
        )
        assert records(await resolver.txt("_dmarc.example.test")) == (b"old",)
        answer = await resolver.txt("_dmarc.example.test", fresh=True)
        assert records(answer) == (b"new",)
        assert records(await resolver.txt("_dmarc.example.test")) == (b"new",)
        assert zone.count() == 1


async def test_fresh_asks_no_private_address_no_top_level_domain_and_not_too_many(
    dns: DnsServer, clock: Clock
) -> None:
    async with DnsServer(host="127.0.0.2") as zone:
        zone.authoritative = True
        dns.set("example.test", "NS", [f"ns{number}.example.test" for number in range(8)])
        for number in range(8):
            dns.set(f"ns{number}.example.test", "A", ["127.0.0.2"])
        for server in (dns, zone):
            server.set("example.test", "TXT", ["v=spf1 -all"])
        resolver = Resolver([HostPort(dns.host, dns.port)], clock=clock, authority_port=zone.port)
        assert records(await resolver.txt("example.test", fresh=True)) == (b"v=spf1 -all",)
        assert zone.queries == []
        assert dns.count(kind="A") == 3
        await resolver.txt("other.test", fresh=True)
        assert [query.name for query in dns.queries if query.kind == "NS"] == ["example.test", "other.test"]
        await resolver.close()


async def test_fresh_believes_only_who_speaks_with_authority(dns: DnsServer, clock: Clock) -> None:
    async with DnsServer(host="127.0.0.2") as zone:
        dns.set("example.test", "NS", ["ns.example.test"])
        dns.set("ns.example.test", "A", ["127.0.0.2"])
        dns.set("example.test", "MX", [(10, "right.test")])
        zone.set("example.test", "MX", [(10, "wrong.test")])
        resolver = Resolver(
            [HostPort(dns.host, dns.port)],
            clock=clock,
            askable=lambda address: True,
            authority_port=zone.port,
        )
        answer = await resolver.mx("example.test", fresh=True)
        assert records(answer) == (Mx(preference=10, host="right.test"),)
        assert zone.count() == 1
        await resolver.close()


async def test_fresh_falls_back_to_the_ordinary_servers_past_the_cache(
    dns: DnsServer, resolver: Resolver
) -> None:
    dns.set("example.test", "NS", ["ns.example.test"])
    dns.set("ns.example.test", "A", ["127.0.0.1"])  # private: left alone
    dns.set("example.test", "TXT", ["old"])
    await resolver.txt("example.test")
    dns.set("example.test", "TXT", ["new"])
    assert records(await resolver.txt("example.test", fresh=True)) == (b"new",)


def test_the_servers_of_the_system(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("# x\nnameserver 192.0.2.1\nsearch a\nnameserver not-one\nnameserver 2001:db8::1\n")
    assert system_nameservers(conf) == (HostPort("192.0.2.1", 53), HostPort("2001:db8::1", 53))
    conf.write_text(
        "nameserver fe80::1%eth0\nnameserver 192.0.2.1%eth0\n"
    )  # the first as a router tells of itself
    assert system_nameservers(conf) == (HostPort("fe80::1%eth0", 53),)
    assert system_nameservers(tmp_path / "none") == (HostPort("127.0.0.1", 53),)


def test_the_servers_of_the_system_are_those_that_it_has_now(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    servers = SystemServers(conf)
    assert servers() == (HostPort("127.0.0.1", 53),)  # there is no network yet
    conf.write_text("nameserver 192.0.2.1\n")
    assert servers() == (HostPort("192.0.2.1", 53),)
    renewed = tmp_path / "resolv.conf.dhclient-new"
    renewed.write_text("nameserver 192.0.2.2\n")
    renewed.replace(conf)
    assert servers() == (HostPort("192.0.2.2", 53),)
    conf.unlink()
    assert servers() == (HostPort("127.0.0.1", 53),)


async def test_a_question_goes_to_the_servers_that_the_system_has_by_then(
    dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [HostPort(dns.host, dns.port)]
    monkeypatch.setattr("forwarder.net.dns.SystemServers", lambda: lambda: tuple(named))
    resolver = Resolver()
    dns.set("one.test", "A", ["192.0.2.1"])
    assert records(await resolver.a("one.test")) == ("192.0.2.1",)
    async with DnsServer() as other:
        other.set("two.test", "A", ["192.0.2.2"])
        named[:] = [HostPort(other.host, other.port)]
        assert records(await resolver.a("two.test")) == ("192.0.2.2",)
    assert [query.name for query in dns.queries] == ["one.test"]
    await resolver.close()
