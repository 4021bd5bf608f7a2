"""Open sessions, kept for a few seconds and used again.

A session that delivered a message is put aside for its site and serves the next one, up to ``reuse_limit`` messages;
nobody waits for a session here: how many are open at once is the dispatcher's to say, and the pool only holds what
is idle, at most ``concurrency_per_site`` for a site and ``concurrency`` in all; the one idle longest goes first. One
timer, not one a session, closes what has been idle for ``idle_timeout``. A session is handed out only when its peer
has neither hung up nor said anything meanwhile, and only to a host that would be dialled first (RFC 5321 5.1): the
best that the route has. An address that does not take a connection comes last for a minute, and so does a host all of
whose addresses are such: a dead host does not cost each message its time, and mail leaves a backup for the best host
as soon as that is there again.

Opportunistic TLS: a host whose handshake fails, or that offers TLS and never answers STARTTLS, gets the same message in
clear over a new connection, and for ten minutes, or until it refuses that for want of TLS, the handshake is not tried
with it again. With ``tls = "required"`` nothing goes in clear. A route that demands verified TLS (MTA-STS), and a host
that has TLSA records (DANE), get it whatever the mode and the memory; such a route's site is another than that of a
free route to the same hosts, so no session of theirs is ever lent to it.

How it fails: ``open`` raises ``SessionFault``; a reused session may still break at its first command (the peer's
hanging up crossed our MAIL): the caller sees a fault at ``Stage.MAIL`` and opens a new one.
"""

import asyncio
import ssl
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import monotonic

from forwarder.config import OutboundSection
from forwarder.errands import Errands
from forwarder.mail.outcome import Fault, Stage
from forwarder.net.smtp_answers import SessionFault
from forwarder.net.smtp_client import ClientSession, Timeouts
from forwarder.net.smtp_opening import open_session
from forwarder.net.tls import TlsMode, client_context
from forwarder.outbound.route import MxHost, Route

BROKEN_TLS = 600.0  # seconds
SHUNNED = 60.0  # seconds at least, and twice as long as it took to find out
REMEMBERED = 10_000  # hosts of either kind
# The last: silent before its greeting.
_DEAD = (Fault.REFUSED, Fault.UNREACHABLE, Fault.CONNECT_TIMEOUT, Fault.TIMEOUT)


class Pool:
    """See the module; ``time`` is monotonic seconds, ``verifying`` another context than the system's authorities."""

    def __init__(
        self,
        settings: OutboundSection,
        *,
        hello: str,
        time: Callable[[], float] = monotonic,
        verifying: ssl.SSLContext | None = None,
    ) -> None:
        self._hello = hello
        self._mode = TlsMode(settings.tls)
        self._verifying = verifying
        self._making = Errands("tls")
        self._unverifying: dict[bool, ssl.SSLContext] = {}  # by whether they take what is weak
        self._timeouts = Timeouts(
            connect=settings.connect_timeout,
            greeting=settings.greeting_timeout,
            command=settings.command_timeout,
            data=settings.data_timeout,
            dot=settings.dot_timeout,
        )
        self._bind_ipv4 = settings.bind_ipv4
        self._bind_ipv6 = settings.bind_ipv6
        self._limit = settings.concurrency
        self._limit_per_site = settings.concurrency_per_site
        self._reuse_limit = settings.reuse_limit
        self._idle_timeout = settings.idle_timeout.total_seconds()
        self._time = time
        self._idle: OrderedDict[ClientSession, tuple[str, float]] = OrderedDict()  # longest idle first
        self._by_site: defaultdict[str, deque[ClientSession]] = defaultdict(deque)
        self._broken_tls: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._shunned: OrderedDict[tuple[str, int], float] = OrderedDict()  # addresses, until when
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """Sessions held."""
        return len(self._idle)

    def ordered(self, route: Route) -> list[MxHost]:
        """The hosts of a route, with their addresses, as they are to be dialled now."""
        if not self._shunned:
            return list(route.hosts)

        def is_dead(address: str) -> bool:
            return self._is_remembered(self._shunned, (address, route.port))

        hosts = [replace(host, addresses=tuple(sorted(host.addresses, key=is_dead))) for host in route.hosts]
        return sorted(hosts, key=lambda host: is_dead(host.addresses[0]))  # then all of its addresses are

    def reuse(self, route: Route) -> ClientSession | None:
        """An idle, live session to one of the best hosts, the latest used; the caller owns it until ``release``."""
        sessions = self._by_site.get(route.site)
        if not sessions:
            return None
        hosts = self.ordered(route)
        best = {host.name for host in hosts if host.rank == hosts[0].rank}
        for session in reversed(tuple(sessions)):
            if session.host not in best:
                continue
            self._forget(session)
            if session.usable:
                return session
            session.abort()
        return None

    async def open(self, route: Route, host: MxHost, address: str) -> ClientSession:
        """A new session to one address of one host of the route; ``SessionFault``."""
        key, began = (address, route.port), self._time()
        try:
            session = await self._open(route, host, address)
        except SessionFault as fault:
            if fault.stage is Stage.CONNECT and fault.fault in _DEAD:
                self._remember(self._shunned, key, max(SHUNNED, 2 * (self._time() - began)))
            raise
        self._shunned.pop(key, None)
        return session

    async def _open(self, route: Route, host: MxHost, address: str) -> ClientSession:
        mode = self._mode_for(route, host)
        key = (address, route.port)
        if mode is not TlsMode.OPPORTUNISTIC or not self._is_remembered(self._broken_tls, key):
            try:
                return await self._connect(host, address, route.port, mode)
            except SessionFault as fault:
                if mode is not TlsMode.OPPORTUNISTIC or not _tls_failed(fault):
                    raise
            self._remember(self._broken_tls, key, BROKEN_TLS)
        session = await self._connect(host, address, route.port, TlsMode.OFF)
        session.fell_back = True
        return session

    def try_tls_again(self, route: Route, session: ClientSession) -> None:
        """The host insists on TLS in clear: the session is left, and the handshake tried with the next one."""
        session.leave()
        for address in (each for host in route.hosts if host.name == session.host for each in host.addresses):
            self._broken_tls.pop((address, route.port), None)

    def release(self, route: Route, session: ClientSession) -> None:
        """Give a session back; one that is worn or broken is closed."""
        if not session.usable:
            session.abort()
            return
        if self._closed or session.sent >= self._reuse_limit or not self._idle_timeout:
            session.leave()
            return
        self._idle[session] = (route.site, self._time())
        sessions = self._by_site[route.site]
        sessions.append(session)
        surplus = sessions[0] if len(sessions) > self._limit_per_site else None
        if surplus is None and len(self._idle) > self._limit:
            surplus = next(iter(self._idle))
        if surplus is not None:
            self._forget(surplus)
            surplus.leave()
        self._set_timer()

    async def close(self) -> None:
        """QUIT everything idle; what is released later is closed then."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sessions = tuple(self._idle)
        self._idle.clear()
        self._by_site.clear()
        await self._making.close()
        await asyncio.gather(*(session.quit() for session in sessions))

    def _mode_for(self, route: Route, host: MxHost) -> TlsMode:
        if route.verified:
            return TlsMode.VERIFIED
        return self._mode if host.tlsa is None else TlsMode.REQUIRED

    async def _connect(self, host: MxHost, address: str, port: int, mode: TlsMode) -> ClientSession:
        context = None if mode is TlsMode.OFF else await self._context_for(mode, weak=not host.tlsa)
        return await open_session(
            host.name,
            address,
            port,
            hello=self._hello,
            tls=mode,
            context=context,
            tlsa=host.tlsa or (),
            timeouts=self._timeouts,
            local_address=self._bind_ipv6 if ":" in address else self._bind_ipv4,
        )

    async def _context_for(self, mode: TlsMode, *, weak: bool) -> ssl.SSLContext:
        if mode is TlsMode.VERIFIED:
            if self._verifying is None:  # the authorities take some tens of milliseconds
                make = partial(asyncio.to_thread, client_context, verify=True)
                self._verifying = await self._making.run("verifying", make)
            return self._verifying
        if weak not in self._unverifying:
            self._unverifying[weak] = client_context(verify=False, weak=weak)
        return self._unverifying[weak]

    def _remember(
        self, hosts: OrderedDict[tuple[str, int], float], key: tuple[str, int], seconds: float
    ) -> None:
        hosts[key] = self._time() + seconds
        hosts.move_to_end(key)
        if len(hosts) > REMEMBERED:
            hosts.popitem(last=False)

    def _is_remembered(self, hosts: OrderedDict[tuple[str, int], float], key: tuple[str, int]) -> bool:
        until = hosts.get(key)
        if until is None:
            return False
        if until > self._time():
            return True
        del hosts[key]
        return False

    def _forget(self, session: ClientSession) -> None:
        site, _ = self._idle.pop(session)
        sessions = self._by_site[site]
        sessions.remove(session)
        if not sessions:
            del self._by_site[site]

    def _set_timer(self) -> None:
        if self._timer is None and self._idle:
            _, since = next(iter(self._idle.values()))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, since + self._idle_timeout - self._time()), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        old = self._time() - self._idle_timeout
        while self._idle:
            session, (_, since) = next(iter(self._idle.items()))
            if since > old:
                break
            self._forget(session)
            session.leave()
        self._set_timer()


def _tls_failed(fault: SessionFault) -> bool:
    """TLS itself did not come about; octets in clear after the 220 are an attack, and 421 is no word about TLS."""
    if fault.stage is not Stage.STARTTLS:
        return False
    if fault.fault is None:
        return fault.reply.code != 421
    return fault.fault in (Fault.TLS, Fault.LOST, Fault.TIMEOUT)  # no certificate was asked about
