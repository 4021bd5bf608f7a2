"""Log-ins of submission: whether a name and a password belong together, and how often one may guess.

Passwords are argon2id hashes, some 170 ms of CPU and 64 MiB each, verified in a few threads of our own. An unknown name
costs the same: it is verified against a hash that nobody's password matches, and answered with the same text.

A verified log-in is remembered for a while, by an HMAC of name and password under a key that exists in this process
only: the cache holds no password and is worth nothing elsewhere. It serves only while the credential's ``changed_at``,
which is read from the store at every log-in, is still the one that was verified; so it is with the log-in of a session
that stays open, which is looked up again for every message.

Guessing is bounded in three ways, counted in the store and so shared by all processes: per connection (by the
dialogue), per client and minute, per name and hour. A name under attack does not lock its owner out: a network that
failed at it within the hour is told 454 unheard, any other may still be right, until ten times the limit is reached.

Where more wait than can be verified, networks are served in turns: each guess from a client of its own costs as much as
an honest log-in, and a network has clients without end.

A hash made with yesterday's parameters is made anew by the log-in that shows its password, unless threads are short.

How it fails: StoreUnavailable.
"""

import asyncio
import hmac
import math
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from hashlib import blake2b
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import Connection

from forwarder.config import SubmissionSection
from forwarder.mail.address import AddressError, Path, parse_address
from forwarder.net.addresses import client_of, network_of
from forwarder.net.shares import Shares
from forwarder.store import counters, credentials, passwords
from forwarder.store.credentials import Login
from forwarder.store.engine import Database
from forwarder.store.trouble import StoreUnavailable
from forwarder.tally import LOG_INS, Tally

REMEMBERED = 10_000
# Log-ins that may wait for a thread; twice as many, where each beyond is the first of its network.
WAITING = 100
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
_STRICT = 10  # times the limit of a name: from there on nobody is heard
_NO_LIMIT = 1 << 60

log = structlog.get_logger(__name__)


class Denied(StrEnum):
    """Why a log-in was not granted."""

    BARRED = "too many failures from this address"
    WRONG = "the name or the password is wrong"
    THROTTLED = "too many failures for this name"
    BUSY = "too many log-ins wait to be verified"


@dataclass(frozen=True, slots=True)
class _Verified:
    credential_id: int
    changed_at: datetime
    until: float


@dataclass(frozen=True, slots=True)
class _Guesses:
    by_client: int
    at_name: int
    of_both: int


class Authenticator:
    """Verifies log-ins for all sessions of submission."""

    def __init__(
        self,
        database: Database,
        settings: SubmissionSection,
        *,
        clock: Callable[[], datetime],
        tally: Tally,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._seconds = seconds
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._threads = ThreadPoolExecutor(settings.password_checks, thread_name_prefix="argon2")
        self._nobodys = self._threads.submit(passwords.hash_password, secrets.token_hex(16))
        self._places = Shares(settings.password_checks)
        self._waiting = 0
        self._waiting_from: Counter[str] = Counter()  # by network
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closed = False
        self._counts = tally.counts(LOG_INS)

    async def barred(self, client: str) -> bool:
        """Whether this client has failed so often within a minute that it is not heard."""
        look = partial(_recent, key=_client_key(client), window=MINUTE, now=self._clock())
        return await self._database.read(look) >= self._settings.failures_per_minute

    async def log_in(self, name: str, password: str, client: str) -> Login | Denied:
        """The credential of a name and password. A failure is counted before it is told."""
        found = await self._found(name, password, client)
        self._counts[found.name.lower() if isinstance(found, Denied) else "granted"].add()
        return found

    async def _found(self, name: str, password: str, client: str) -> Login | Denied:
        path = _path(name)
        # One key for all ways to write the name ("ann"@…, U-labels), or each would have guesses of its own.
        name = f"{path.key}@{path.domain}" if path is not None else name.strip().lower()
        login = await self._database.read(partial(_look_up, path=path))
        token = hmac.digest(self._key, f"{name}\0{password}".encode("utf-8", "surrogatepass"), "sha256")
        if login is not None and self._remembers(token, login):
            return login
        # One at a time from one client: a hundred guesses sent at once must not all pass before the first is counted.
        async with self._turn(client):
            return await self._judge(name, password, client, login, token)

    async def _judge(
        self, name: str, password: str, client: str, login: Login | None, token: bytes
    ) -> Login | Denied:
        if login is not None and self._remembers(token, login):
            return login  # another session of the client was right meanwhile
        look = partial(_guesses, name=name, client=client, now=self._clock())
        guesses = await self._database.read(look)
        limit = self._settings.failures_per_account
        attacked = guesses.at_name >= limit
        if guesses.by_client >= self._settings.failures_per_minute:
            return Denied.BARRED
        if guesses.at_name >= limit * _STRICT or (attacked and guesses.of_both > 0):
            return Denied.THROTTLED
        network = network_of(client)
        if self._closed or self._is_crowded(network):
            return Denied.BUSY
        if await self._verify(login, password, network) and login is not None and not login.account_locked:
            self._remember(token, login)
            await self._renew(login, password)
            return login
        await self._count(name, client)
        return Denied.THROTTLED if attacked else Denied.WRONG

    async def renewed(self, login: Login) -> Login | None:
        """The log-in of an open session as the store has it now; None when it would not be granted any more."""
        look = partial(
            credentials.for_login, username=login.credential.username, domain_name=login.domain.name
        )
        now = await self._database.read(look)
        if now is None or now.account_locked or now.credential.id != login.credential.id:
            return None
        return now if now.credential.changed_at == login.credential.changed_at else None

    def close(self) -> None:
        """Verify nothing more."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _turn(self, client: str) -> asyncio.Lock:
        who = client_of(client)
        turn = self._turns.get(who)
        if turn is None:
            turn = self._turns[who] = asyncio.Lock()
        return turn

    def _is_crowded(self, network: str) -> bool:
        if self._waiting < WAITING:
            return False
        return self._waiting_from[network] > 0 or self._waiting >= 2 * WAITING

    async def _verify(self, login: Login | None, password: str, network: str) -> bool:
        self._waiting += 1
        self._waiting_from[network] += 1
        try:
            if login is not None:
                known = login.credential.password_hash
            else:
                known = await asyncio.wrap_future(self._nobodys)
            loop = asyncio.get_running_loop()
            async with self._places.place(network):
                return await loop.run_in_executor(self._threads, passwords.verify, known, password)
        finally:
            self._waiting -= 1
            self._waiting_from[network] -= 1
            if not self._waiting_from[network]:
                del self._waiting_from[network]

    async def _renew(self, login: Login, password: str) -> None:
        if self._waiting or not passwords.outdated(login.credential.password_hash):
            return
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            digest = await loop.run_in_executor(self._threads, passwords.hash_password, password)
        finally:
            self._waiting -= 1
        try:
            await self._database.change(
                partial(credentials.renew_hash, credential=login.credential, password_hash=digest)
            )
        except StoreUnavailable as trouble:  # the log-in was right all the same; the next one tries again
            log.warning("a password's hash is not renewed", reason=str(trouble))

    async def _count(self, name: str, client: str) -> None:
        now = self._clock()
        count = partial(counters.hit, self._database, limit=_NO_LIMIT, now=now)
        await asyncio.gather(
            count(_name_key(name), window=HOUR),
            count(_pair_key(name, client), window=HOUR),
            count(_client_key(client), window=MINUTE),
        )

    def _remembers(self, token: bytes, login: Login) -> bool:
        known = self._verified.get(token)
        if known is None:
            return False
        credential = login.credential
        same = known.credential_id == credential.id and known.changed_at == credential.changed_at
        if not same or self._seconds() >= known.until or login.account_locked:
            del self._verified[token]
            return False
        return True

    def _remember(self, token: bytes, login: Login) -> None:
        lifetime = self._settings.login_cache.total_seconds()
        if not lifetime:
            return
        self._verified[token] = _Verified(
            login.credential.id, login.credential.changed_at, self._seconds() + lifetime
        )
        self._verified.move_to_end(token)
        if len(self._verified) > REMEMBERED:
            self._verified.popitem(last=False)


def _path(name: str) -> Path | None:
    try:
        return parse_address(name.strip())
    except AddressError:
        return None


def _look_up(conn: Connection, *, path: Path | None) -> Login | None:
    return credentials.for_login(conn, path.key, path.domain) if path is not None else None


def _guesses(conn: Connection, *, name: str, client: str, now: datetime) -> _Guesses:
    return _Guesses(
        by_client=_recent(conn, key=_client_key(client), window=MINUTE, now=now),
        at_name=_recent(conn, key=_name_key(name), window=HOUR, now=now),
        of_both=_recent(conn, key=_pair_key(name, client), window=HOUR, now=now),
    )


def _recent(conn: Connection, *, key: str, window: timedelta, now: datetime) -> int:
    """The hits within one window's length before now, taken as evenly spread over the window before this one."""
    this, before, share = counters.standing(conn, key, window=window, now=now)
    return this + math.ceil(before * (1 - share))


# Keys are digests: a name is whatever a stranger typed, which may be a password.


def _client_key(client: str) -> str:
    return "login-client:" + client_of(client)


def _name_key(name: str) -> str:
    return "login-name:" + blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _pair_key(name: str, client: str) -> str:
    return f"{_name_key(name)}@{network_of(client)}"
