"""A guarded HTTP client for webhooks and policies: POST and GET at public addresses, and at nothing else.

Whoever owns a domain here writes the URL, so the URL is hostile. Promises: only http and https; the host is looked up
by our own resolver, all its addresses are judged (``net.addresses``), and the connection goes to the very address
that was judged, so that a second look-up cannot lead elsewhere; one private address among them refuses the host.
Redirects are not followed, cookies neither kept nor sent, proxies from the environment not used. The certificate of
https is verified for the host's name. The status comes within the caller's timeout. After that of a POST, for two
seconds at most, no more than 4 KiB of the answer are read: a body that stalls or breaks off changes nothing about the
status, and a receiver that said 200 must not be posted to again. A GET is there for the body, which comes whole within
the same timeout and the caller's limit, or counts as not come. A process that was stopped for longer than a timeout
hears an answer that came meanwhile (``deadlines``). What a connection brings in all is bounded, and so is what of it is
parsed at once (``http_wire``).

How it fails: ``Blocked`` for what we do not do, whatever the hour; ``Unreachable`` for what another hour may mend.
Any HTTP status is a result, not a failure.

httpx and the authorities' certificates are loaded at the first use: a start would wait for them, and many engines never
need either.

There is no bound here to how many requests are under way. Its callers have theirs (the lanes, the fetches of policies):
one for all would let receivers who hang keep everybody else from being asked.

Limits: a connection per request. Keeping them would need one pool per host name, since a connection is pinned to an
address and two names at one address must not share a verified connection.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from forwarder.errands import Errands
from forwarder.net.addresses import is_private, written_address
from forwarder.net.answers import CannotTell, Found, NotFound
from forwarder.net.deadlines import within
from forwarder.net.dns import Resolver
from forwarder.net.tls import without_dhe

if TYPE_CHECKING:
    import httpx

EXCERPT = 4096  # octets of an answer
EXCERPT_TIME = 2.0  # seconds for them, once the status is known
URL_LENGTH = 2048
ADDRESSES = 4  # of a host, tried for one request
_log = structlog.get_logger(__name__)
_NAME = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")  # RFC 6761, RFC 6762, RFC 8375


class Blocked(Exception):
    """The URL leads where we do not go; str() is a sentence for a person."""


class Unreachable(Exception):
    """No answer within bounds; str() is a sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a GET brought; the body as it came, in no encoding."""

    status: int
    media_type: str  # in lower case, without parameters; "" when none was said
    body: bytes


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Raise ``Blocked`` for a URL that can be refused without asking the DNS (saving it in the API)."""
    _checked(url, allow_private=allow_private)


class GuardedClient:
    """See the module; one for the process."""

    def __init__(
        self, resolver: Resolver, *, allow_private: bool = False, verify: ssl.SSLContext | None = None
    ) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._verify = verify
        self._opened: httpx.AsyncClient | None = None
        self._opening = Errands("http")

    def _open(self) -> "httpx.AsyncClient":
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpcore
        import httpx

        from forwarder.net.http_wire import Backend

        context = self._verify or without_dhe(ssl.create_default_context())
        transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
        # httpx lets nobody say how connections are read.
        transport._pool = httpcore.AsyncConnectionPool(  # noqa: SLF001
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=Backend(),
        )
        return httpx.AsyncClient(
            transport=transport,
            follow_redirects=False,
            trust_env=False,
            # Requests are addressed to addresses, so a cookie that one host sets would go to every other host behind
            # the same address; and whoever sets thousands of them would fill our memory.
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
            timeout=None,  # noqa: S113 - the whole exchange has one deadline
        )

    async def post(
        self, url: str, body: bytes | Sequence[bytes], headers: Mapping[str, str], timeout: timedelta
    ) -> tuple[int, str]:
        """The status and the beginning of the answer; ``Blocked`` or ``Unreachable``.

        A ``body`` in pieces is not put together: others may hold the same large piece.
        """
        client = await self._client()
        target = _checked(url, allow_private=self._allow_private)
        async with _bounded(target, timeout):
            response = await self._send(client, "POST", target, timeout, headers, body)
        return response.status_code, await _excerpt(response)

    async def get(self, url: str, timeout: timedelta, *, limit: int) -> Page:
        """A page of at most ``limit`` octets; ``Blocked`` or ``Unreachable``."""
        client = await self._client()
        target = _checked(url, allow_private=self._allow_private)
        async with _bounded(target, timeout):
            response = await self._send(client, "GET", target, timeout, {"Accept-Encoding": "identity"})
            body = await _beginning(response, limit + 1)
        if len(body) > limit:
            raise Unreachable(f"{target.host} said more than {limit} octets")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Page(status=response.status_code, media_type=media_type, body=body)

    async def close(self) -> None:
        """Close what is open."""
        await self._opening.close()
        if self._opened is not None:
            await self._opened.aclose()

    async def _client(self) -> "httpx.AsyncClient":
        if self._opened is None:  # the library and the authorities take a tenth of a second
            self._opened = await self._opening.run("client", partial(asyncio.to_thread, self._open))
        return self._opened

    async def _addresses(self, host: str) -> Sequence[str]:
        address = written_address(host)
        if address is not None:  # judged already
            return (address,)
        match await self._resolver.addresses(host):
            case Found(records=records):
                private = [each for each in records if is_private(each)]
                if private and not self._allow_private:
                    raise Blocked(f"{host} has the private address {private[0]}")
                # IPv4 first: an IPv6 address that cannot be reached would cost the whole attempt
                return sorted(records, key=lambda each: ":" in each)[:ADDRESSES]
            case NotFound():
                raise Unreachable(f"{host} has no address")
            case CannotTell(reason=reason):
                raise Unreachable(f"{host} could not be looked up: {reason}")

    async def _send(
        self,
        client: "httpx.AsyncClient",
        method: str,
        target: "httpx.URL",
        timeout: timedelta,
        headers: Mapping[str, str],
        body: bytes | Sequence[bytes] | None = None,
    ) -> "httpx.Response":
        """Status and header fields; the body is still to come.

        An address that takes no connection in its share of the time is passed over: one that swallows what is sent to
        it would cost the whole attempt, and every later one.
        """
        import httpx

        *others, last = addresses = await self._addresses(target.host)
        share = timeout.total_seconds() / len(addresses)
        for address in others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):  # nothing of the request was sent
                return await self._send_to(client, address, method, target, headers, body, connect=share)
        return await self._send_to(client, last, method, target, headers, body)

    async def _send_to(
        self,
        client: "httpx.AsyncClient",
        address: str,
        method: str,
        target: "httpx.URL",
        headers: Mapping[str, str],
        body: bytes | Sequence[bytes] | None,
        *,
        connect: float | None = None,
    ) -> "httpx.Response":
        import httpx

        shown = {**headers, "Host": target.netloc.decode("ascii")}
        if body is not None and not isinstance(body, bytes):
            shown["Content-Length"] = str(sum(map(len, body)))
        request = client.build_request(
            method,
            target.copy_with(host=address),
            content=body if body is None or isinstance(body, bytes) else _in_pieces(body),
            headers=shown,
            extensions={"sni_hostname": target.raw_host.decode("ascii")},
            timeout=httpx.Timeout(None, connect=connect),
        )
        return await client.send(request, stream=True)


async def _in_pieces(body: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


@asynccontextmanager
async def _bounded(target: "httpx.URL", timeout: timedelta) -> AsyncIterator[None]:
    """What goes wrong inside, or takes too long, is ``Unreachable``."""
    import httpx

    try:
        async with within(timeout.total_seconds()):
            yield
    except TimeoutError as exc:
        raise Unreachable(f"{target.host} did not answer within {timeout.total_seconds():g} s") from exc
    except httpx.HTTPError as exc:
        reason = str(exc) or type(exc).__name__
        raise Unreachable(f"{target.host} could not be reached: {reason[:200]}") from exc
    except (httpx.InvalidURL, ValueError) as exc:
        # httpx reads where a redirect leads although we do not follow it, and chokes on some places.
        raise Unreachable(f"{target.host} redirects to what is no URL: {str(exc)[:200]}") from exc


async def _excerpt(response: "httpx.Response") -> str:
    """The beginning of the body, as far as it comes."""
    import httpx

    excerpt = b""
    try:
        async with asyncio.timeout(EXCERPT_TIME):
            excerpt = await _beginning(response, EXCERPT)
    except (TimeoutError, httpx.HTTPError) as exc:
        _log.debug("the answer of a webhook was cut", reason=str(exc) or type(exc).__name__)
    return excerpt.decode("utf-8", "replace")


async def _beginning(response: "httpx.Response", limit: int) -> bytes:
    """At most so many octets of the body; what comes after them is not read."""
    octets = b""
    try:
        async for block in response.aiter_raw(limit):
            octets += block
            if len(octets) >= limit:
                break
    finally:
        await response.aclose()
    return octets[:limit]


def _checked(url: str, *, allow_private: bool) -> "httpx.URL":
    import httpx

    if len(url) > URL_LENGTH:
        raise Blocked(f"the URL is longer than {URL_LENGTH} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        raise Blocked("the URL holds spaces, backslashes or control characters")
    try:
        target = httpx.URL(url)
        host = target.host
        address = written_address(target.raw_host.decode("ascii"))
    except httpx.InvalidURL as exc:
        raise Blocked(f"the URL is not well formed: {exc}") from exc
    except ValueError as exc:
        raise Blocked(str(exc)) from exc
    if target.scheme not in ("http", "https"):
        raise Blocked("only http and https URLs are called")
    if not host:
        raise Blocked("the URL names no host")
    if target.port is not None and not 0 < target.port < 65536:
        raise Blocked(f"there is no port {target.port}")
    if address is None and not _NAME.fullmatch(target.raw_host):
        raise Blocked(f'"{host}" is not a host name')
    if allow_private:
        return target
    if address is not None and is_private(address):
        raise Blocked(f"{address} is not a public address")
    name = host.rstrip(".").lower()
    if address is None and ("." not in name or name.endswith(tuple(f".{local}" for local in _LOCAL_NAMES))):
        raise Blocked(f'"{host}" is a local name')
    return target
