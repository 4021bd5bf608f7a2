"""The REST face as one Starlette application: the operations under /v3, and what describes and watches them.

    /v3/…            ImprovMX's API, version 3, with API keys (``api.improvmx``)
    /openapi.json    the same operations as an OpenAPI 3.1 document;  /docs  as a page without outside assets
    /health/live     the process answers;  /health/ready  it can do its work (503: not now, with what is wrong by name)
    /metrics         for Prometheus, to loopback addresses only, and to nobody whom a proxy lets through from elsewhere
    /confirm/…       where owners of addresses agree to get mail (``api.confirmation``), if the settings ask for it

Every answer is JSON but /docs, /metrics and /confirm; every error has the shape of ``api.errors``. No exception leaves
the application.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

import forwarder
from api.asking import public_url
from api.auth import Gate
from api.confirmation import TEMPLATE, Confirmation
from api.errors import Refusal, unavailable
from api.health import Health
from api.improvmx import account, aliases, check, credentials, domains, logs, rules
from api.limits import RateLimit
from api.metrics import CountedRequests, is_local, measured
from api.openapi import document
from api.operation import ApiRooms, Operation, endpoint, json_response
from api.page import page
from api.routing import by_template
from forwarder.config import Settings
from forwarder.net.dns import Resolver
from forwarder.net.shares import Shares
from forwarder.store.engine import Database
from forwarder.store.journal import Journal
from forwarder.store.trouble import StoreUnavailable
from forwarder.store.vault import Vault
from forwarder.tally import Tally

OPERATIONS: Final[tuple[Operation, ...]] = (
    *account.OPERATIONS,
    *domains.OPERATIONS,
    *check.OPERATIONS,
    *aliases.OPERATIONS,
    *rules.OPERATIONS,
    *logs.OPERATIONS,
    *credentials.OPERATIONS,
)
HEAVY_AT_ONCE = 2
SEARCHES_AT_ONCE = 1
READY_PATIENCE = 3.0  # seconds

_NOTHING = Refusal(404, "There is nothing at this path: not found. Paths begin with /v3; /docs lists them.")

log = structlog.get_logger("api")

Answer = Callable[[Request], Awaitable[Response]]


def build_app(
    settings: Settings,
    database: Database,
    resolver: Resolver,
    clock: Callable[[], datetime],
    health: Callable[[], Health],
    *,
    vault: Vault,
    tally: Tally,
) -> Starlette:
    """The application for one process; it starts nothing and owns nothing that must be closed."""
    failures = RateLimit(database, "api-failures", settings.api.failures_per_minute, clock)
    rooms = ApiRooms(
        settings=settings,
        database=database,
        resolver=resolver,
        clock=clock,
        vault=vault,
        journal=Journal(database, ids=_no_ids, clock=clock),
        gate=Gate(database, failures, clock, settings.hostname),
        rate=RateLimit(database, "api", settings.api.rate, clock),
        heavy=Shares(HEAVY_AT_ONCE),
        searches=Shares(SEARCHES_AT_ONCE),
    )

    async def otherwise(request: Request) -> Response:
        allowed = request.scope["forwarder.allow"]
        headers = {"Allow": allowed, **rooms.rate.idle(clock()).headers(clock())}
        refusal = Refusal(405, f"This path has no such method; it has {allowed}.")
        return json_response(refusal.body(), 405, headers=headers)

    async def nothing(request: Request) -> Response:
        headers = rooms.rate.idle(clock()).headers(clock())
        return json_response(_NOTHING.body(), 404, headers=headers)

    routes: list[tuple[str, str, ASGIApp]] = [
        (operation.method, operation.path, endpoint(rooms, operation)) for operation in OPERATIONS
    ]
    about = _about(settings, database, clock, health, tally)
    routes += [("GET", path, _plain(answer)) for path, answer in about.items()]
    if settings.require_confirmed_destinations:
        pages = RateLimit(database, "confirm", settings.api.failures_per_minute, clock)
        confirmation = Confirmation(database, pages, clock, settings.hostname)
        routes += [
            ("GET", TEMPLATE, _plain(confirmation.show)),
            ("POST", TEMPLATE, _plain(confirmation.take)),
        ]
    counting = Middleware(CountedRequests, tally)
    app = Starlette(routes=by_template(routes, _plain(otherwise)), middleware=[counting])
    app.router.redirect_slashes = False
    app.router.default = _plain(nothing)
    return app


def _about(
    settings: Settings,
    database: Database,
    clock: Callable[[], datetime],
    health: Callable[[], Health],
    tally: Tally,
) -> dict[str, Answer]:
    """What describes and watches the API, by path."""
    described = document(OPERATIONS, version=forwarder.__version__, url=public_url(settings))
    shown = page(described)

    async def openapi(request: Request) -> Response:
        return json_response(described)

    async def docs(request: Request) -> Response:
        return HTMLResponse(
            shown, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )

    async def live(request: Request) -> Response:
        return json_response({"status": "live"})

    async def ready(request: Request) -> Response:
        return await _ready(database, health)

    async def metrics(request: Request) -> Response:
        if not is_local(request, settings.api.trusted_proxies):
            return json_response(_NOTHING.body(), 404)
        return await measured(database, clock, tally)

    return {
        "/openapi.json": openapi,
        "/docs": docs,
        "/health/live": live,
        "/health/ready": ready,
        "/metrics": metrics,
    }


def _plain(answer: Answer) -> ASGIApp:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await answer(Request(scope, receive))
        except Exception:
            log.exception("an API request failed", path=scope["path"][:200])
            refusal = unavailable()
            response = json_response(refusal.body(), refusal.status, headers=refusal.headers)
        await response(scope, receive, send)

    return application


async def _ready(database: Database, health: Callable[[], Health]) -> Response:
    now = health()
    wrong = set(now.troubles)
    try:
        async with asyncio.timeout(READY_PATIENCE):
            await database.ready()
    except (StoreUnavailable, TimeoutError):
        wrong.add("store")
    body = {"status": "not ready" if wrong else "ready", "troubles": sorted(wrong), "tasks": dict(now.tasks)}
    return json_response(body, 503 if wrong else 200)


def _no_ids() -> str:
    raise AssertionError("the API reads the journal and never writes to it")
