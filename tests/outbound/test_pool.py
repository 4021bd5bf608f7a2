"""Sessions kept, used again, and let go."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from forwarder.config import OutboundSection
from forwarder.mail.dane import Tlsa
from forwarder.mail.outcome import Fault, Stage
from forwarder.net import smtp_opening
from forwarder.net.smtp_answers import SessionFault
from forwarder.net.smtp_client import ClientSession
from forwarder.net.smtp_wire import Wire, WireTrouble
from forwarder.net.tls import self_signed
from forwarder.outbound import pool as pool_room
from forwarder.outbound.pool import Pool
from forwarder.outbound.route import MxHost, Route
from tests.peers.sink import Sink

CONTENT = b"Subject: x\r\n\r\nhello\r\n"


def make(**settings: Any) -> Pool:
    return Pool(OutboundSection.model_validate({"command_timeout": "500ms"} | settings), hello="h.test")


def route_to(sink: Sink, site: str = "site") -> Route:
    return Route(site=site, hosts=(MxHost(name="mx.test", addresses=(sink.host,)),), port=sink.port)


async def opened(pool: Pool, sink: Sink, site: str = "site") -> ClientSession:
    route = route_to(sink, site)
    return await pool.open(route, route.hosts[0], sink.host)


async def deliver(session: ClientSession) -> None:
    answer = await session.send("a@example.com", ["b@example.test"], CONTENT)
    assert answer.final is not None


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as peer:
        yield peer
        assert peer.violations == []


@pytest.fixture
def server_tls(tmp_path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(["mx.test"], tmp_path))
    return context


async def test_a_session_is_used_again(sink: Sink) -> None:
    pool, route = make(), route_to(sink)
    assert pool.reuse(route) is None
    session = await opened(pool, sink)
    await deliver(session)
    pool.release(route, session)
    assert pool.idle == 1
    again = pool.reuse(route)
    assert again is session
    assert pool.idle == 0
    await deliver(session)
    pool.release(route, session)
    await pool.close()
    assert (sink.connections, len(sink.messages)) == (1, 2)


async def test_a_session_is_never_lent_twice(sink: Sink) -> None:
    pool, route = make(), route_to(sink)
    pool.release(route, await opened(pool, sink))
    assert pool.reuse(route) is not None
    assert pool.reuse(route) is None


async def test_the_session_that_was_used_last_is_used_again(sink: Sink) -> None:
    """So that what a burst has opened grows old and is left."""
    pool, route = make(), route_to(sink)
    first, last = [await opened(pool, sink) for _ in range(2)]
    for session in (first, last):
        pool.release(route, session)
    assert pool.reuse(route) is last
    pool.release(route, last)
    assert pool.reuse(route) is last
    last.abort()
    await pool.close()


async def test_a_session_serves_its_own_site_only(sink: Sink) -> None:
    pool = make()
    pool.release(route_to(sink), await opened(pool, sink))
    assert pool.reuse(route_to(sink, "another")) is None
    await pool.close()


async def test_a_worn_session_is_left_politely(sink: Sink) -> None:
    pool, route = make(reuse_limit=2), route_to(sink)
    session = await opened(pool, sink)
    for _ in range(2):
        await deliver(session)
    pool.release(route, session)
    assert pool.idle == 0
    await sink.wait_closed()
    assert sink.commands[-1] == b"QUIT"


async def test_a_session_whose_peer_hung_up_is_not_lent(sink: Sink) -> None:
    pool, route = make(), route_to(sink)
    session = await opened(pool, sink)
    pool.release(route, session)
    await sink.close()
    async with asyncio.timeout(5):
        while session.usable:  # noqa: ASYNC110 - until our side has heard of it
            await asyncio.sleep(0)
    assert pool.reuse(route) is None
    assert pool.idle == 0


async def test_a_session_that_ended_in_a_fault_is_not_kept(sink: Sink) -> None:
    pool, route = make(), route_to(sink)
    session = await opened(pool, sink)
    with pytest.raises(SessionFault):
        await session.send("a@example.com", ["drop-at-rcpt@example.test"], CONTENT)
    pool.release(route, session)
    assert pool.idle == 0


async def test_idle_sessions_are_left_when_their_time_is_over(sink: Sink) -> None:
    pool, route = make(idle_timeout="50ms"), route_to(sink)
    for session in [await opened(pool, sink) for _ in range(3)]:
        pool.release(route, session)
    assert pool.idle == 3
    await sink.wait_closed()
    assert pool.idle == 0
    assert sink.commands.count(b"QUIT") == 3


async def test_where_nothing_is_to_be_idle_each_session_is_left_at_once(sink: Sink) -> None:
    pool, route = make(idle_timeout="0s"), route_to(sink)
    pool.release(route, await opened(pool, sink))
    assert pool.idle == 0
    assert pool.reuse(route) is None
    await sink.wait_closed()
    assert sink.commands[-1] == b"QUIT"


async def test_a_session_that_was_put_aside_later_stays_for_longer(sink: Sink) -> None:
    now = 0.0
    pool, route = Pool(OutboundSection(), hello="h.test", time=lambda: now), route_to(sink)
    first, second = await opened(pool, sink), await opened(pool, sink)
    for at, session in ((0.0, first), (4.0, second)):
        now = at
        pool.release(route, session)
    now = 5.5
    pool._sweep()
    assert pool.idle == 1
    assert pool._timer is not None
    assert 3.0 < pool._timer.when() - asyncio.get_running_loop().time() <= 3.5  # not at once, again and again
    assert pool.reuse(route) is second
    second.abort()


async def test_what_is_idle_is_bounded_for_a_site_and_in_all(sink: Sink) -> None:
    pool = make(concurrency_per_site=2, concurrency=3)
    sessions = [await opened(pool, sink) for _ in range(5)]
    for session in sessions[:3]:
        pool.release(route_to(sink, "one"), session)
    assert pool.idle == 2
    for session in sessions[3:]:
        pool.release(route_to(sink, "two"), session)
    assert pool.idle == 3
    assert pool.reuse(route_to(sink, "one")) is sessions[2]  # the longest idle ones went
    assert pool.reuse(route_to(sink, "one")) is None
    await pool.close()


async def test_close_says_quit_to_the_idle_and_to_those_that_come_back(sink: Sink) -> None:
    pool, route = make(), route_to(sink)
    lent, idle = await opened(pool, sink), await opened(pool, sink)
    pool.release(route, idle)
    await pool.close()
    assert sink.commands.count(b"QUIT") == 1
    assert pool.reuse(route) is None
    await deliver(lent)
    pool.release(route, lent)
    assert pool.idle == 0
    await sink.wait_closed()
    assert sink.commands.count(b"QUIT") == 2


# --- TLS


async def test_mail_goes_over_tls_when_it_is_offered(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        pool = make()
        await deliver(await opened(pool, sink))
        assert sink.messages[0].tls


async def test_a_host_that_closes_instead_of_starting_tls_has_said_nothing_about_tls(
    server_tls: ssl.SSLContext,
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "421", times=1)
        pool = make()
        with pytest.raises(SessionFault) as caught:
            await opened(pool, sink)
        assert (caught.value.stage, caught.value.reply.code, sink.connections) == (Stage.STARTTLS, 421, 1)
        assert (await opened(pool, sink)).tls != ""


@pytest.mark.parametrize("part", ["bad-handshake", "drop", "454"])
async def test_a_failed_handshake_is_repeated_in_clear_and_remembered(
    part: str, server_tls: ssl.SSLContext
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", part, times=1)
        pool = make()
        session = await opened(pool, sink)
        await deliver(session)
        assert (sink.messages[0].tls, sink.connections) == (False, 2)
        await opened(pool, sink)
        assert (sink.connections, sink.handshakes) == (3, 0)  # not tried again for some minutes


async def test_a_host_that_never_answers_starttls_gets_its_mail_in_clear(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "hang")
        pool = make()
        for _ in range(2):
            await deliver(await opened(pool, sink))
        assert [message.tls for message in sink.messages] == [False, False]
        assert (sink.connections, sink.commands.count(b"STARTTLS")) == (
            3,
            1,
        )  # the second time it is not tried
        with pytest.raises(SessionFault) as raised:
            await opened(make(tls="required"), sink)
        assert (raised.value.stage, raised.value.fault) == (Stage.STARTTLS, Fault.TIMEOUT)


async def test_a_broken_handshake_is_forgiven_after_some_minutes(server_tls: ssl.SSLContext) -> None:
    now = 1000.0
    async with Sink(starttls=server_tls) as sink:
        pool = Pool(OutboundSection(), hello="h.test", time=lambda: now)
        sink.play("starttls", "454", times=1)
        assert (await opened(pool, sink)).tls == ""
        now += 599
        assert (await opened(pool, sink)).tls == ""
        now += 2
        assert (await opened(pool, sink)).tls != ""


async def test_required_tls_is_never_replaced_by_clear_text(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "bad-handshake")
        with pytest.raises(SessionFault) as raised:
            await opened(make(tls="required"), sink)
        assert (raised.value.stage, raised.value.fault) == (Stage.STARTTLS, Fault.TLS)
        assert sink.connections == 1


async def test_a_verified_route_wants_what_the_system_s_authorities_vouch_for(
    server_tls: ssl.SSLContext,
) -> None:
    async with Sink(starttls=server_tls) as sink:
        pool, route = make(), replace(route_to(sink), verified=True)
        for _ in range(2):
            with pytest.raises(SessionFault) as raised:
                await pool.open(route, route.hosts[0], sink.host)
            assert (raised.value.stage, raised.value.fault) == (Stage.STARTTLS, Fault.CERTIFICATE)
        assert (await opened(pool, sink)).tls != ""  # any certificate will do for others
        assert sink.messages == []


async def test_the_authorities_are_loaded_once_for_all_who_need_them_at_once(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = 0
    load = pool_room.client_context

    def counted(*, verify: bool, weak: bool = True) -> ssl.SSLContext:
        nonlocal loaded
        loaded += verify
        return load(verify=verify, weak=weak)

    monkeypatch.setattr(pool_room, "client_context", counted)
    async with Sink(starttls=server_tls) as sink:
        pool, route = make(), replace(route_to(sink), verified=True)
        opening = (pool.open(route, route.hosts[0], sink.host) for _ in range(5))
        faults = await asyncio.gather(*opening, return_exceptions=True)
        assert [isinstance(fault, SessionFault) and fault.fault for fault in faults] == [
            Fault.CERTIFICATE
        ] * 5
        assert loaded == 1
        await pool.close()


async def test_who_demands_tls_does_not_go_by_a_handshake_that_failed_for_others(
    server_tls: ssl.SSLContext,
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "454", times=1)
        pool, route = make(), route_to(sink)
        assert (await opened(pool, sink)).tls == ""
        signed = replace(route.hosts[0], tlsa=())  # DANE, with records of which none can be used
        assert (await pool.open(route, signed, sink.host)).tls != ""
        with pytest.raises(SessionFault) as raised:
            await pool.open(replace(route, verified=True), route.hosts[0], sink.host)
        assert raised.value.fault is Fault.CERTIFICATE
        assert (await opened(pool, sink)).tls == ""


async def test_what_is_remembered_of_hosts_is_bounded(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_room, "REMEMBERED", 1)
    async with (
        Sink(starttls=server_tls) as first,
        Sink(starttls=server_tls, host="127.0.0.2", port=first.port) as second,
    ):
        pool = make()
        for sink in (first, second):
            sink.play("starttls", "454", times=1)
            assert (await opened(pool, sink)).tls == ""
        assert (await opened(pool, second)).tls == ""
        assert (await opened(pool, first)).tls != ""  # the one remembered for longest is tried again


async def test_octets_before_the_handshake_do_not_lead_to_clear_text(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "inject")
        with pytest.raises(SessionFault) as raised:
            await opened(make(), sink)
        assert raised.value.fault is Fault.PROTOCOL
        assert sink.connections == 1


@pytest.fixture
def weak_tls(tmp_path: Path) -> ssl.SSLContext:
    """As of servers of many years ago: a Diffie-Hellman group of 1,024 bits (RFC 2409 6.2) and nothing else."""
    prime = bytes.fromhex(
        "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
        "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
        "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF"
    )
    group = b64encode(b"\x30\x81\x87\x02\x81\x81\x00" + prime + b"\x02\x01\x02").decode()  # and 2, in DER
    parameters = f"-----BEGIN DH PARAMETERS-----\n{group}\n-----END DH PARAMETERS-----\n"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.test")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = (
        made.serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    (tmp_path / "weak.pem").write_bytes(private + certificate)
    (tmp_path / "group.pem").write_text(parameters)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0")
    context.load_cert_chain(tmp_path / "weak.pem")
    context.load_dh_params(str(tmp_path / "group.pem"))
    return context


async def test_no_session_computes_in_a_group_of_the_host_s_making(weak_tls: ssl.SSLContext) -> None:
    """It goes in clear instead, unless the host's TLSA records ask for TLS."""
    record = Tlsa(usage=3, selector=1, matching=1, data=bytes(32))
    async with Sink(starttls=weak_tls) as sink:
        pool, route = make(), route_to(sink)
        session = await opened(pool, sink)
        assert session.tls == ""
        session.abort()
        [host] = route.hosts
        with pytest.raises(SessionFault) as caught:
            await pool.open(route, replace(host, tlsa=(record,)), sink.host)
        assert (caught.value.stage, caught.value.fault) == (Stage.STARTTLS, Fault.TLS)


async def test_nobody_asks_for_tls_when_it_is_switched_off(server_tls: ssl.SSLContext) -> None:
    async with Sink(starttls=server_tls) as sink:
        assert (await opened(make(tls="off"), sink)).tls == ""
        assert b"STARTTLS" not in sink.commands


async def test_hosts_are_dialled_from_the_configured_address(sink: Sink) -> None:
    session = await opened(make(bind_ipv4="127.0.0.3"), sink)
    await deliver(session)
    assert "127.0.0.3" in sink.messages[0].client


@pytest.mark.parametrize(
    ("address", "own"), [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9"), ("::1", "2001:db8::9")]
)
async def test_the_address_to_dial_from_is_of_the_kind_of_the_host_s(
    address: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[tuple[str, str]] = []

    async def dial(address: str, _port: int, local_address: str, _timeout: float) -> Wire:
        dialled.append((address, local_address))
        raise WireTrouble(Fault.REFUSED)

    monkeypatch.setattr(smtp_opening, "dial", dial)
    pool = make(bind_ipv4="192.0.2.9", bind_ipv6="2001:db8::9")
    host = MxHost(name="mx.test", addresses=(address,))
    with pytest.raises(SessionFault):
        await pool.open(Route(site="site", hosts=(host,), port=25), host, address)
    assert dialled == [(address, own)]


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
async def test_a_handshake_that_the_host_finds_fault_with_afterwards(
    server_tls: ssl.SSLContext, tmp_path: Path, tls: str
) -> None:
    """TLS 1.3: the host wants a certificate of ours, and says so after our side of the handshake is over."""
    demanding = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    demanding.load_cert_chain(*self_signed(["mx.test"], tmp_path))
    demanding.minimum_version = ssl.TLSVersion.TLSv1_3
    demanding.verify_mode = ssl.CERT_REQUIRED
    async with Sink(starttls=demanding) as sink:
        pool = make(tls=tls)
        if tls == "required":
            with pytest.raises(SessionFault) as raised:
                await opened(pool, sink)
            assert (raised.value.fault, raised.value.reply.enhanced) == (Fault.TLS, "4.7.5")
            assert sink.messages == []
        else:
            for _ in range(2):
                await deliver(await opened(pool, sink))
            assert [message.tls for message in sink.messages] == [False, False]
            assert sink.connections == 3  # the second time it is not tried


# Which host a kept session may be of (RFC 5321 5.1).


def hosts_of(*sinks: Sink, ranks: tuple[int, ...]) -> tuple[MxHost, ...]:
    return tuple(
        MxHost(name=f"mx{number}.test", addresses=(sink.host,), rank=rank)
        for number, (sink, rank) in enumerate(zip(sinks, ranks, strict=True), 1)
    )


async def test_a_session_to_a_backup_does_not_serve_those_who_have_it_as_a_backup() -> None:
    """Two domains with the same hosts in another order share the site."""
    async with Sink() as one, Sink(host="127.0.0.2", port=one.port) as two:
        pool = make()
        first, second = hosts_of(one, two, ranks=(0, 1))
        there = Route(site="site", hosts=(first, second), port=one.port)
        back = Route(site="site", hosts=(replace(second, rank=0), replace(first, rank=1)), port=one.port)
        session = await pool.open(there, first, one.host)
        pool.release(there, session)
        assert pool.reuse(back) is None
        assert pool.reuse(there) is session
        pool.release(there, session)
        equal = Route(site="site", hosts=(replace(second, rank=0), first), port=one.port)
        assert pool.reuse(equal) is session
        session.abort()


async def test_a_host_that_could_not_be_dialled_comes_last_for_a_while() -> None:
    now = 0.0
    async with Sink() as sink:
        pool = Pool(OutboundSection(), hello="h.test", time=lambda: now)
        best = MxHost(name="mx1.test", addresses=("127.0.0.7",))
        backup = MxHost(name="mx2.test", addresses=(sink.host,), rank=1)
        route = Route(site="site", hosts=(best, backup), port=sink.port)
        with pytest.raises(SessionFault):
            await pool.open(route, best, "127.0.0.7")
        assert pool.ordered(route) == [backup, best]
        session = await pool.open(route, backup, sink.host)
        pool.release(route, session)
        assert pool.reuse(route) is session
        pool.release(route, session)
        now = 61.0
        assert pool.ordered(route) == [best, backup]
        assert pool.reuse(route) is None  # the best is there again, as far as we know
        with pytest.raises(SessionFault):
            await pool.open(route, best, "127.0.0.7")
        async with Sink(host="127.0.0.7", port=sink.port):
            (await pool.open(route, best, "127.0.0.7")).abort()
        assert pool.ordered(route) == [best, backup]
        await pool.close()


async def test_a_host_that_kept_a_message_waiting_is_avoided_for_longer() -> None:
    """Else each minute another message would wait five for a greeting."""
    now = 0.0

    def clock() -> float:
        return now

    async with Sink() as sink:
        pool = Pool(OutboundSection(), hello="h.test", time=clock)
        best = MxHost(name="mx1.test", addresses=("127.0.0.7",))
        backup = MxHost(name="mx2.test", addresses=(sink.host,), rank=1)
        route = Route(site="site", hosts=(best, backup), port=sink.port)
        opening = asyncio.create_task(pool.open(route, best, "127.0.0.7"))
        await asyncio.sleep(0)  # it has begun
        now = 300.0
        with pytest.raises(SessionFault):
            await opening
        for at, order in ((301.0, [backup, best]), (899.0, [backup, best]), (901.0, [best, backup])):
            now = at
            assert pool.ordered(route) == order
        await pool.close()


async def test_a_dead_address_is_not_a_dead_host() -> None:
    """No route for IPv6, as on many machines: the host's other address is still the best there is."""
    async with Sink() as sink, Sink(host="127.0.0.2", port=sink.port) as other:
        pool = make()
        best = MxHost(name="mx1.test", addresses=("127.0.0.7", sink.host))
        backup = MxHost(name="mx2.test", addresses=(other.host,), rank=1)
        route = Route(site="site", hosts=(best, backup), port=sink.port)
        session = await pool.open(route, best, sink.host)
        pool.release(route, session)
        with pytest.raises(SessionFault):
            await pool.open(route, best, "127.0.0.7")
        assert pool.reuse(route) is session
        session.abort()
        assert pool.ordered(route) == [replace(best, addresses=(sink.host, "127.0.0.7")), backup]


@pytest.mark.parametrize(
    ("phase", "part"), [("connect", "421"), ("connect", "554"), ("connect", "450"), ("ehlo", "hang")]
)
async def test_a_host_that_takes_the_connection_is_not_dead(
    phase: str, part: str, server_tls: ssl.SSLContext
) -> None:
    """What it says is about this mail, or the moment: nobody is to send a provider's mail to its backup by it."""
    async with Sink(starttls=server_tls) as sink, Sink(host="127.0.0.2", port=sink.port) as other:
        pool = make()
        first, second = hosts_of(sink, other, ranks=(0, 1))
        route = Route(site="site", hosts=(first, second), port=sink.port)
        sink.play(phase, part, times=1)
        with pytest.raises(SessionFault):
            await pool.open(route, first, sink.host)
        with pytest.raises(SessionFault):
            await pool.open(replace(route, verified=True), first, sink.host)
        assert pool.ordered(route) == [first, second]
