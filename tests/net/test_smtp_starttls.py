"""TLS of a session over real sockets."""

import ssl
from pathlib import Path

import pytest

from forwarder.mail.outcome import Fault, Scope, Stage
from forwarder.net.tls import TlsMode, client_context, self_signed
from tests.net.sessions import CONTENT, connect, fault_of_opening
from tests.peers.dialogue import Dialogue
from tests.peers.sink import Sink


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(["mx.example.test"], tmp_path_factory.mktemp("tls")))
    return context


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


@pytest.mark.parametrize(
    ("part", "fault", "code"), [("250", Fault.PROTOCOL, 451), ("454", None, 454), ("421", None, 421)]
)
async def test_no_handshake_begins_without_the_word_for_it(
    server_tls: ssl.SSLContext, part: str, fault: Fault | None, code: int
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", part)
        ended = await fault_of_opening(sink, tls=TlsMode.OPPORTUNISTIC, context=client_context(verify=False))
        assert (ended.stage, ended.fault, ended.reply.code) == (Stage.STARTTLS, fault, code)


async def test_what_is_said_to_ehlo_under_tls_is_no_trouble_with_tls(server_tls: ssl.SSLContext) -> None:
    """Else the same message would go out in clear."""

    class Closing(Sink):
        async def _command(self, d: Dialogue, verb: bytes, line: bytes) -> None:
            if d.tls:
                self.play("ehlo", "421")
            await super()._command(d, verb, line)

    async with Closing(starttls=server_tls) as sink:
        ended = await fault_of_opening(sink, tls=TlsMode.OPPORTUNISTIC, context=client_context(verify=False))
        assert (ended.stage, ended.fault, ended.reply.code) == (Stage.HELLO, None, 421)


async def test_a_421_to_starttls_is_the_word_of_the_site_where_tls_is_demanded_too(
    server_tls: ssl.SSLContext,
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", "421")
        ended = await fault_of_opening(sink, tls=TlsMode.REQUIRED, context=client_context(verify=False))
        assert (ended.fault, ended.reply.code) == (None, 421)


@pytest.mark.parametrize("mode", [TlsMode.REQUIRED, TlsMode.VERIFIED])
@pytest.mark.parametrize("part", ["454", "550"])
async def test_required_tls_that_is_refused_is_temporary(
    server_tls: ssl.SSLContext, mode: TlsMode, part: str
) -> None:
    async with Sink(starttls=server_tls) as sink:
        sink.play("starttls", part)
        fault = await fault_of_opening(sink, tls=mode, context=client_context(verify=True))
        assert (fault.fault, fault.reply.code, fault.reply.enhanced) == (Fault.TLS_REQUIRED, 451, "4.7.10")
        assert part in fault.reply.text
        assert [command[:4] for command in sink.commands] == [b"EHLO", b"STAR"]


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
