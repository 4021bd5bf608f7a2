"""One documented operation: what it takes, what it answers, and how a request for it is run.

An operation is a value: method, path, models of query, body and answer, and a handler. The routes and the OpenAPI
document are both made from the list of them, so neither can say what the other does not do.

Running a request, in this order: whose is it (401), how many has it sent (429), how large and what form is the body
(413, 415, 429, 400), are all fields right (400, every reason at once), then the handler. Whatever a handler raises
becomes a JSON answer by ``errors.refusal_of``; what nobody foresaw is logged with its traceback and answered 503.
Everything ends within PATIENCE seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal

import structlog
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import Gate
from api.body import aside, read_fields
from api.errors import Refusal, bad_fields, not_found, refusal_of, unavailable
from api.limits import RateLimit, places_of
from api.validation import Bounds, validate
from forwarder.config import Plan, Settings
from forwarder.net.dns import Resolver
from forwarder.net.shares import Shares
from forwarder.store.accounts import Account
from forwarder.store.engine import Database
from forwarder.store.journal import Journal
from forwarder.store.vault import Vault

PATIENCE = 9.0  # seconds: a client hears 503 before ten have gone

log = structlog.get_logger("api")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRooms:
    """What handlers work with."""

    settings: Settings
    database: Database
    resolver: Resolver
    clock: Callable[[], datetime]
    vault: Vault
    journal: Journal
    gate: Gate
    rate: RateLimit
    # Bounds how many keys are made and passwords hashed at once: CPU, and 64 MiB each. Held by account: one that asks
    # for hundreds at once waits for itself, and nobody else for it.
    heavy: Shares
    # Bounds how many look for a text in all aliases of a domain, which may be hundreds of megabytes: the readers of the
    # store are few, and mail needs them.
    searches: Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request with its fields checked."""

    rooms: ApiRooms
    account: Account
    path: Mapping[str, str]
    query: Any  # an instance of the operation's query model
    body: Any  # an instance of the operation's body model
    agent: str  # the User-Agent header
    now: datetime

    @property
    def by_improvmx_cli(self) -> bool:
        """Sent by ImprovMX's own command line, which reads some times in another unit and cannot ask for it."""
        return self.agent.startswith("improvmx-cli/")

    @property
    def holder(self) -> str:
        """As whom it holds a place among those of other accounts."""
        return str(self.account.id)

    @property
    def plan(self) -> Plan:
        """The limits of the account."""
        return self.rooms.settings.plan(self.account.plan)


Handler = Callable[[Call], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    name: str  # operationId
    summary: str
    tag: str
    handler: Handler
    answer: type[BaseModel]
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    note: str = ""  # more about it, for the document
    refusals: tuple[int, ...] = field(default=())  # beyond those that every operation may give


def endpoint(rooms: ApiRooms, operation: Operation) -> ASGIApp:
    """The ASGI application that answers one operation."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await _respond(rooms, operation, request)
        await response(scope, receive, send)

    return application


async def _respond(rooms: ApiRooms, operation: Operation, request: Request) -> Response:
    """The answer to a request, whatever becomes of it."""
    headers = dict(rooms.rate.idle(rooms.clock()).headers(rooms.clock()))
    try:
        async with asyncio.timeout(PATIENCE):
            call = await _admit(rooms, operation, request, headers)
            return json_response(await operation.handler(call), headers=headers)
    except Exception as fault:  # the edge: whatever it is, the client gets JSON
        refusal = refusal_of(fault)
        if refusal is None:
            log.exception("an API request failed", operation=operation.name)
            refusal = unavailable()
        elif refusal.status == 503:
            log.warning("an API request waits for the store", operation=operation.name, reason=repr(fault))
        return json_response(refusal.body(), refusal.status, headers=headers | refusal.headers)


async def _admit(rooms: ApiRooms, operation: Operation, request: Request, headers: dict[str, str]) -> Call:
    """The request, checked in the order that the module names, or a Refusal.

    ``headers`` of the answer are told where the account stands each time it is counted, also when it is refused.
    """
    account = await rooms.gate.account(request)
    now = rooms.clock()

    async def count(places: int) -> None:
        standing = await rooms.rate.hit(str(account.id), places)
        headers.update(standing.headers(now))
        if not standing.allowed:
            raise Refusal(429, "You have sent too many requests; wait until the time in X-RateLimit-Reset.")

    octets_read = 0

    async def count_body(octets: int) -> None:
        nonlocal octets_read
        octets_read = octets
        if places := places_of(octets, rooms.settings.api.rate):
            await count(places)

    await count(1)
    if account.locked_at is not None and operation.method != "GET":
        reason = account.lock_reason or "ask whoever runs this server"
        raise Refusal(403, f"Your account is locked: {reason}.")
    if any("\0" in value for value in request.path_params.values()):
        raise not_found("name")  # no name holds one, and PostgreSQL would refuse to compare with it
    query, body, errors = None, None, dict[str, list[str]]()
    if operation.query is not None:
        query = validate(operation.query, dict(request.query_params))
        errors |= query if isinstance(query, dict) else {}
    if operation.body is not None:
        # Only here: clients send bodies with GET and DELETE, and nothing in them is looked at.
        fields = await read_fields(request, rooms.settings.api.body_limit, count_body)
        bounds = Bounds.of(rooms.settings, rooms.settings.plan(account.plan))
        judge = partial(validate, operation.body, fields, context=bounds)
        body = await aside(judge, octets_read)
        errors |= body if isinstance(body, dict) else {}
    if errors:
        raise bad_fields(errors)
    return Call(
        rooms=rooms,
        account=account,
        path=request.path_params,
        query=query,
        body=body,
        agent=request.headers.get("user-agent", ""),
        now=now,
    )


def json_response(
    body: Mapping[str, Any], status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON that is never cached: it belongs to one account."""
    content = to_json(body)
    shown = {"Cache-Control": "no-store", **(headers or {})}
    return Response(content, status, shown, media_type="application/json")
