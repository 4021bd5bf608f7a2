"""How a session with an MX host begins: dial, greeting, EHLO or HELO, STARTTLS and EHLO again.

Promises: where TLS is demanded nothing of a message is ever said in clear, and with TLSA records only to a host whose
certificate is one that they mean; what was announced before TLS is forgotten (RFC 3207 4.2). Every wait has a deadline.

How it fails: ``SessionFault``, and nothing is left open then. Its ``reply`` is the peer's (a 554 greeting, a 421) or
stands for the failure; what is said to STARTTLS where TLS is demanded is always the latter, since it may be anybody's.
"""

import ssl
from collections.abc import Sequence

from forwarder.clock import utc_now
from forwarder.mail.dane import Tlsa, authenticated
from forwarder.mail.outcome import Fault, Stage
from forwarder.mail.reply import Reply
from forwarder.net.smtp_answers import Features, SessionFault, announced, fault_at, over
from forwarder.net.smtp_client import ClientSession, Timeouts, reply_at
from forwarder.net.smtp_wire import Wire, WireTrouble, dial
from forwarder.net.tls import TlsMode

HANDSHAKE = 60.0  # seconds at most for that of TLS, behind which there may be a way in the clear


async def open_session(
    host: str,
    address: str,
    port: int,
    *,
    hello: str,
    timeouts: Timeouts,
    tls: TlsMode,
    context: ssl.SSLContext | None = None,
    tlsa: Sequence[Tlsa] = (),
    local_address: str = "",
) -> ClientSession:
    """A session on which nothing was sent yet; ``SessionFault``. ``context`` is needed unless ``tls`` is off.

    With ``tlsa`` the host's certificate must be one that these records mean; TLS has to be demanded then.
    """
    try:
        wire = await dial(address, port, local_address, timeouts.connect.total_seconds())
    except WireTrouble as trouble:
        raise over(Stage.CONNECT, trouble) from trouble
    command = timeouts.command.total_seconds()
    demanded = tls in (TlsMode.REQUIRED, TlsMode.VERIFIED)
    cipher = ""
    try:
        greeting = await reply_at(wire, Stage.CONNECT, timeouts.greeting.total_seconds())
        _demand(220, greeting, Stage.CONNECT)
        features = await _hello(wire, hello, command)
        if tls is not TlsMode.OFF and features.starttls:
            assert context is not None, "a session with TLS needs a context"
            cipher = await _start_tls(wire, host, context, command, demanded=demanded)
            if tlsa and not authenticated(tlsa, wire.certificates, host=host, now=utc_now()):
                raise fault_at(Stage.STARTTLS, Fault.CERTIFICATE, "its TLSA records do not mean it")
            features = await _hello_again(wire, hello, command)
        elif demanded:
            raise fault_at(Stage.STARTTLS, Fault.TLS_REQUIRED)
    except BaseException:
        wire.abort()
        raise
    return ClientSession(wire, host, features=features, tls=cipher, timeouts=timeouts)


async def _hello(wire: Wire, name: str, timeout: float) -> Features:
    wire.write([f"EHLO {name}\r\n".encode()], expecting=1)
    reply = await reply_at(wire, Stage.HELLO, timeout)
    if reply.permanent:  # RFC 5321 4.1.4: a server that does not know EHLO
        wire.write([f"HELO {name}\r\n".encode()], expecting=1)
        _demand(250, await _after_helo(wire, reply, timeout), Stage.HELLO)
        return Features()
    _demand(250, reply, Stage.HELLO)
    return announced(wire.last)


async def _after_helo(wire: Wire, refused: Reply, timeout: float) -> Reply:
    """The answer to HELO; where there is none, what EHLO was refused with was meant for us, not for the command."""
    try:
        return await reply_at(wire, Stage.HELLO, timeout)
    except SessionFault as fault:
        if fault.fault is Fault.LOST and refused.code not in (500, 502):
            raise SessionFault(Stage.HELLO, refused) from fault
        raise


async def _start_tls(
    wire: Wire, host: str, context: ssl.SSLContext, timeout: float, *, demanded: bool
) -> str:
    """Protocol and cipher."""
    wire.write([b"STARTTLS\r\n"], expecting=1)
    reply = await reply_at(wire, Stage.STARTTLS, timeout)
    if demanded and reply.code not in (220, 421):
        # Also a 5xx, said in clear by whoever it was: it is no judgement on the mail, only no TLS.
        raise fault_at(Stage.STARTTLS, Fault.TLS_REQUIRED, f"STARTTLS was answered {reply}")
    _demand(220, reply, Stage.STARTTLS)
    try:
        return await wire.start_tls(context, host, min(timeout, HANDSHAKE))
    except WireTrouble as trouble:
        raise over(Stage.STARTTLS, trouble) from trouble


async def _hello_again(wire: Wire, name: str, timeout: float) -> Features:
    try:
        return await _hello(wire, name, timeout)
    except SessionFault as fault:
        if fault.fault is not Fault.LOST:
            raise
        # RFC 8446: a server may find fault with our side of the handshake when ours is over already.
        raise fault_at(Stage.STARTTLS, Fault.TLS, "the connection was lost right after it") from fault


def _demand(code: int, reply: Reply, stage: Stage) -> None:
    if reply.code == code:
        return
    if reply.temporary or reply.permanent:
        raise SessionFault(stage, reply)
    raise fault_at(stage, Fault.PROTOCOL, f"{stage} was answered {reply.code}")
