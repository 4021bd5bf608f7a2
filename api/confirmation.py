"""``/confirm/<token>``: the page that the owner of an address is led to by the mail of ``api.asking``.

GET shows a question with a button and changes nothing: programs that look at every link of a mail must not answer for
the person. POST, which the button makes, confirms. The page has no script and nothing from elsewhere, is never cached
or framed, and sends no Referer, which would hold the token.

A token that was forged, used, replaced by a newer one or that is too old gets one and the same page, 404. Requests
are counted by client (``api.failures_per_minute``): 429 beyond. Trouble of ours is 503, and the link stays
good. The token is never logged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from html import escape
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from api.limits import RateLimit, client_key
from forwarder.mail.address import Path
from forwarder.store import confirmations
from forwarder.store.engine import Database

PATIENCE = 9.0  # seconds
TEMPLATE = "/confirm/{token}"
_LONGEST = 100  # characters of a token that is looked at; ours have 43
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.55 system-ui,sans-serif;max-width:34rem;margin:15vh auto;"
    "padding:0 1rem}button{font:inherit;padding:.5rem 1.2rem}b{overflow-wrap:anywhere}"
)

log = structlog.get_logger("api")


class Confirmation:
    """Answers both methods of the page."""

    def __init__(
        self, database: Database, rate: RateLimit, clock: Callable[[], datetime], hostname: str
    ) -> None:
        self._database = database
        self._rate = rate
        self._clock = clock
        self._hostname = hostname

    async def show(self, request: Request) -> Response:
        """The question; nothing is changed by it."""
        return await self._guarded(request, self._question)

    async def take(self, request: Request) -> Response:
        """The answer yes."""
        return await self._guarded(request, self._confirmed)

    async def _guarded(self, request: Request, answer: Callable[[str], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(PATIENCE):
                standing = await self._rate.hit(client_key(request))
                if not standing.allowed:
                    text = "<p>There were too many requests from your network. Wait a minute, then try again.</p>"
                    retry = {"Retry-After": standing.headers(self._clock())["Retry-After"]}
                    return _page("One moment", text, 429, retry)
                token: str = request.path_params["token"]
                if len(token) > _LONGEST:
                    return _not_valid()
                return await answer(token)
        except Exception as fault:  # noqa: BLE001 - the edge; without its text or place, which may hold the token
            log.warning("a confirmation page could not be shown", reason=type(fault).__name__)
            text = (
                "<p>The server cannot look that up at the moment. The link stays good: try again later.</p>"
            )
            return _page("Not now", text, 503, {"Retry-After": "30"})

    async def _question(self, token: str) -> Response:
        now = self._clock()
        address = await self._database.read(lambda conn: confirmations.asked_for(conn, token, now))
        if address is None:
            return _not_valid()
        text = (
            f"<p>Mail is to be forwarded by {escape(self._hostname)} to <b>{_shown(address)}</b>. "
            "Nothing is forwarded there until you agree.</p>"
            '<form method="post"><button type="submit">Yes, forward mail to me</button></form>'
            "<p>If you do not want it, close this page.</p>"
        )
        return _page("Is this what you want?", text)

    async def _confirmed(self, token: str) -> Response:
        now = self._clock()
        address = await self._database.change(lambda conn: confirmations.confirm(conn, token, now))
        if address is None:
            return _not_valid()
        text = f"<p>Mail is now forwarded to <b>{_shown(address)}</b>. You can close this page.</p>"
        return _page("Confirmed", text)


def _shown(address: str) -> str:
    return escape(Path.from_storage(address).display())


def _not_valid() -> Response:
    text = (
        f"<p>It was used already, a newer one was sent, or it is older than {confirmations.VALID_FOR.days} days.</p>"
        "<p>Whoever looks after the domain can have another sent by saving the alias again, once a day.</p>"
    )
    return _page("This link is not valid", text, 404)


def _page(title: str, text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{text}</html>"
    )
    return HTMLResponse(content, status, {**_HEADERS, **(headers or {})})
