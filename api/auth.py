"""Whose request it is: HTTP Basic with the user ``api`` and an API key as the password, or the key as a Bearer token.

Clients write it in four ways, all taken: ``Basic <base64 of api:KEY>``, the literal ``Basic api:KEY`` of the
documentation's examples, ``Bearer KEY``, and each with more than one space. No key, a wrong one and a revoked one get
the same 401. Keys are looked up by their SHA-256; the key itself is never stored, logged or shown again. Wrong keys are
counted by client, an address or an IPv6 network of 64 bits; beyond the limit the answer is 429 for the minute. Who
shows none has guessed none, and is not counted.

A key's last use is noted at most once in ten minutes.
"""

import asyncio
import base64
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from starlette.requests import Request

from api.errors import Refusal
from api.limits import RateLimit, Standing, client_key
from forwarder.store import accounts
from forwarder.store.accounts import Account, ApiKey
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable

log = structlog.get_logger("api")

_NOTE_EVERY = timedelta(minutes=10)
_NOTE_PATIENCE = 1.0  # seconds
_LONGEST = 1024  # octets of an Authorization value that is looked at


class Gate:
    """Finds the account of a request."""

    def __init__(
        self, database: Database, failures: RateLimit, clock: Callable[[], datetime], realm: str
    ) -> None:
        self._database = database
        self._failures = failures
        self._clock = clock
        self._challenge = f'Basic realm="{realm}", charset="UTF-8"'

    async def account(self, request: Request) -> Account:
        """The account whose key the request carries; Refusal 401 or 429."""
        secret = presented_key(request.headers.get("authorization", ""))
        if not secret:
            raise self._refusal(self._failures.idle(self._clock()))
        digest = accounts.key_digest(secret)
        found = await self._database.read(lambda conn: accounts.by_key_digest(conn, digest))
        if found is None:
            raise self._refusal(await self._failures.hit(client_key(request)))
        account, key = found
        await self._note_use(key)
        return account

    def _refusal(self, standing: Standing) -> Refusal:
        headers = standing.headers(self._clock())
        if not standing.allowed:
            return Refusal(429, "Too many wrong API keys from your address; wait a minute.", headers=headers)
        return Refusal(
            401,
            "Authentication required: use HTTP Basic with the user name api and a valid API key as the password.",
            headers={**headers, "WWW-Authenticate": self._challenge},
        )

    async def _note_use(self, key: ApiKey) -> None:
        now = self._clock()
        if key.last_used_at is None or now - key.last_used_at > _NOTE_EVERY:
            try:
                async with asyncio.timeout(_NOTE_PATIENCE):
                    await self._database.change(lambda conn: accounts.key_used(conn, key.id, now))
            except (StoreUnavailable, TimeoutError) as fault:
                # The request may well succeed without this note: reading can work while writing waits.
                log.info("the last use of an API key was not noted", key=key.id, reason=str(fault))


def presented_key(header: str) -> str | None:
    """The password in an Authorization header; None when there is none that could be a key."""
    scheme, _, rest = header.strip().partition(" ")
    rest = rest.strip()
    if not rest or len(rest) > _LONGEST:
        return None
    if scheme.lower() == "bearer":
        return rest
    if scheme.lower() != "basic":
        return None
    if ":" not in rest:  # base64 has no colon, so the literal form cannot be mistaken for it
        try:
            rest = base64.b64decode(rest, validate=True).decode("utf-8")
        except ValueError:  # not base64, or not UTF-8
            return None
    user, colon, key = rest.partition(":")
    return key if colon and user == "api" and key else None
