"""Asking the owner of an address whether mail may be forwarded to it, and the answer.

Functions of a connection. ``ask`` makes a token where one is due and gives it back for the mail that the caller queues
in the same transaction; ``confirm`` takes it. Of a token, 256 random bits, only the SHA-256 is stored; it works once,
for seven days, and the next one for the same address voids it.

An address is asked at most once a day, and for one account at most ASKS_A_DAY addresses: nobody makes this server
write to strangers at will. (Asked more than a day ahead of now means by a clock that was wrong, and does not count.) An
address that was left out for that reason is asked when an alias that names it is saved again.

A confirmation is announced (``changes.touch``) for every domain with an alias that names the address, so that it is
in force within a second in every process. It holds for whoever forwards to the address. Only addresses that a forward
names whole can be confirmed; what a capture makes is confirmed if another alias of the same domain names it.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, or_, select, update

from forwarder.mail.address import Path
from forwarder.mail.destination import Mailbox, mailbox_key, parse_forward
from forwarder.mail.pattern import RuleError
from forwarder.store import changes, counters
from forwarder.store.domains import Domain, hosted_among
from forwarder.store.rows import upsert
from forwarder.store.tables import aliases, confirmations, domains

VALID_FOR = timedelta(days=7)
ASK_AGAIN_AFTER = timedelta(days=1)
ASKS_A_DAY = 100  # addresses, for one account
_AT_ONCE = 500  # addresses a statement: parameters have a bound on both databases


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An address to write to, with the token for its link; never stored or logged."""

    address: Path
    token: str


def ask(conn: Connection, domain: Domain, forwards: Iterable[str], now: datetime) -> Sequence[Asked]:
    """The addresses in these forwards of a domain that are to be asked now."""
    asked = []
    for address in unconfirmed(conn, domain.account_id, forwards):
        key = mailbox_key(address)
        if not _due(conn, key, now):
            continue
        counted = counters.hit_within(
            conn,
            f"confirmations:{domain.account_id}",
            window=timedelta(days=1),
            limit=ASKS_A_DAY,
            now=now,
        )
        if not counted.allowed:
            break
        token = secrets.token_urlsafe(32)
        values = {"token_digest": digest(token), "requested_at": now}
        taken = (
            upsert(conn, confirmations)
            .values(address=key, **values)
            .on_conflict_do_update(
                index_elements=["address"],
                set_=values,
                where=confirmations.c.confirmed_at.is_(None)
                & or_(
                    confirmations.c.requested_at <= now - ASK_AGAIN_AFTER,
                    confirmations.c.requested_at > now + ASK_AGAIN_AFTER,
                ),
            )
            .returning(confirmations.c.address)
        )
        if conn.execute(taken).first() is not None:  # None: another process has asked in this moment
            asked.append(Asked(address=address, token=token))
    return asked


def unconfirmed(conn: Connection, account_id: int, forwards: Iterable[str]) -> Sequence[Path]:
    """The addresses in these forwards that get no mail until they are confirmed, each once."""
    forwards = list(forwards)
    named = {mailbox_key(path): path for path in addresses_of(forwards)}
    if not named:
        return ()
    own = hosted_among(conn, {path.domain for path in named.values()}, account_id=account_id)
    confirmed = confirmed_of(conn, forwards)
    return [path for key, path in named.items() if key not in confirmed and path.domain not in own]


def addresses_of(forwards: Iterable[str]) -> Iterator[Path]:
    """The addresses that stored forwards name whole; a forward that cannot be read names none."""
    for forward in forwards:
        try:
            destinations = parse_forward(forward, plain_http=True)
        except RuleError:
            continue
        for destination in destinations:
            if isinstance(destination, Mailbox) and destination.path is not None:
                yield destination.path


def confirmed_of(conn: Connection, forwards: Iterable[str]) -> frozenset[str]:
    """The ``mailbox_key`` of each address named in these forwards that its owner confirmed."""
    keys = list(dict.fromkeys(mailbox_key(path) for path in addresses_of(forwards)))
    found: set[str] = set()
    for start in range(0, len(keys), _AT_ONCE):
        query = select(confirmations.c.address).where(
            confirmations.c.address.in_(keys[start : start + _AT_ONCE]),
            confirmations.c.confirmed_at.is_not(None),
        )
        found.update(conn.execute(query).scalars())
    return frozenset(found)


def asked_for(conn: Connection, token: str, now: datetime) -> str | None:
    """The address that a token is for; None: it is not one of ours, or used, or too old."""
    query = select(confirmations.c.address).where(
        confirmations.c.token_digest == digest(token), confirmations.c.requested_at > now - VALID_FOR
    )
    address: str | None = conn.execute(query).scalar_one_or_none()
    return address


def confirm(conn: Connection, token: str, now: datetime) -> str | None:
    """Take a token: the address that is confirmed by it; None as in ``asked_for``."""
    address = asked_for(conn, token, now)
    if address is None:
        return None
    # First, and whether or not that domain is hosted: it holds the sequence, so that an alias saved meanwhile is
    # either among those found next or is loaded after us.
    changes.touch(conn, Path.from_storage(address).domain, now)
    changes.touch_all(conn, _forwarding_to(conn, address), now)
    change = (
        update(confirmations)
        .where(confirmations.c.address == address, confirmations.c.token_digest == digest(token))
        .values(confirmed_at=now, token_digest=None)
    )
    return address if conn.execute(change).rowcount == 1 else None


def purge(conn: Connection, now: datetime) -> int:
    """Delete requests that nobody answered in time."""
    old = confirmations.c.requested_at <= now - VALID_FOR
    return conn.execute(delete(confirmations).where(confirmations.c.confirmed_at.is_(None), old)).rowcount


def digest(token: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _due(conn: Connection, key: str, now: datetime) -> bool:
    query = select(confirmations.c.requested_at).where(confirmations.c.address == key)
    asked_at = conn.execute(query).scalar_one_or_none()
    return asked_at is None or not now - ASK_AGAIN_AFTER < asked_at <= now + ASK_AGAIN_AFTER


def _forwarding_to(conn: Connection, address: str) -> Sequence[str]:
    # The databases disagree about case beyond ASCII: there the domain alone is looked for, which finds a few too many.
    text = address if address.isascii() else address[address.rindex("@") :]
    names = func.lower(aliases.c.forward).contains(text, autoescape=True)
    query = select(domains.c.name).join(aliases, aliases.c.domain_id == domains.c.id).where(names).distinct()
    return list(conn.execute(query).scalars())
