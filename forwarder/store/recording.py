"""Rows of the journal, written in the transaction of what they tell about.

The queue writes through here when it takes, settles or drops; the journal when mail is refused or a bounce comes back
late. An event of a domain that has a webhook also becomes a message of its own with one NOTIFY delivery, in the same
transaction; deliveries of that kind leave no logs themselves. The reader of the webhook gets the domain, the log's
public id and the event, as JSON.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload
from urllib.parse import urlsplit

from sqlalchemy import BigInteger, Connection, Select, Update, select, update

from forwarder.mail.event import DeliveryKind, DeliveryState, Status, Transport, hosts
from forwarder.mail.ids import log_public_id, new_id
from forwarder.store.records import NewEvent
from forwarder.store.rows import Insert, Rows, by_dialect, execute, insert_and_look, insert_many
from forwarder.store.tables import Id, deliveries, domains, events, logs, messages

FAILURES = frozenset({Status.REFUSED, Status.SOFT_BOUNCE, Status.HARD_BOUNCE})

LOG_COLUMNS = (
    "id",
    "domain_id",
    "alias",
    "created_at",
    "transport",
    "hostname",
    "message_id",
    "subject",
    "sender_email",
    "sender_name",
    "recipient_email",
    "recipient_name",
    "forward_email",
    "failed",
)
EVENT_COLUMNS = ("log_id", "id", "created_at", "status", "code", "message", "local", "server", "recipient")
MESSAGE_COLUMNS = (
    "id",
    "created_at",
    "transport",
    "reverse_path",
    "smtputf8",
    "signing_domain",
    "size",
    "content",
)
DELIVERY_COLUMNS = (
    "id",
    "message_id",
    "kind",
    "domain_id",
    "alias",
    "recipient",
    "destination",
    "destination_domain",
    "state",
    "attempts",
    "created_at",
    "next_attempt_at",
    "lease_owner",
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event about to be written, and whose it is."""

    domain_id: int | None
    log_id: str
    id: str
    at: datetime
    status: Status
    code: int
    message: str
    local: str | None
    server: str | None
    recipient: str | None


def recorded(domain_id: int | None, log_id: str, event_id: str, at: datetime, event: NewEvent) -> Recorded:
    """An event of a log, about to be written."""
    return Recorded(
        domain_id,
        log_id,
        event_id,
        at,
        event.status,
        event.code,
        event.message,
        event.local,
        event.server,
        event.recipient,
    )


def _notice(domain: str, event: Recorded) -> bytes:
    """The content of a notification."""
    received, sent = hosts(event.status, event.local, event.server)
    told = {
        "domain": domain,
        "log": log_public_id(event.log_id),
        "event": {
            "id": event.id,
            "created": int(event.at.timestamp() * 1000),
            "status": event.status.value,
            "code": event.code,
            "message": event.message,
            "local": received,
            "server": sent,
            "recipient": event.recipient,
        },
    }
    return json.dumps(told, ensure_ascii=False).encode()


@overload
def clean(text: str) -> str: ...
@overload
def clean(text: str | None) -> str | None: ...
def clean(text: str | None) -> str | None:
    """Text of a peer as both databases take it: PostgreSQL refuses NUL and lone surrogates."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


_DOMAIN_IDS = Rows(id=BigInteger())
_LOG_IDS = Rows(id=Id)


@by_dialect
def _mark_failed(postgres: bool) -> Update:
    given = _LOG_IDS.source(postgres)
    return update(logs).where(logs.c.id.in_(select(given.c.id)), ~logs.c.failed).values(failed=True)


# One look into a small index, where most servers find nothing.
_ANY_WEBHOOK = "SELECT 1 FROM domains WHERE webhook IS NOT NULL LIMIT 1"


@by_dialect
def _webhooks(postgres: bool) -> Select[Any]:
    given = _DOMAIN_IDS.source(postgres)
    return select(domains.c.id, domains.c.name, domains.c.webhook).where(
        domains.c.webhook.is_not(None), domains.c.id.in_(select(given.c.id))
    )


def mark_failed(conn: Connection, log_ids: Iterable[str]) -> None:
    """Note that these logs have a failure among their events."""
    wanted = [(id_,) for id_ in log_ids]
    if wanted:
        execute(conn, _mark_failed, _LOG_IDS.values(conn, wanted))


def record_events(
    conn: Connection, happened: Sequence[Recorded], *, behind: Sequence[Insert] = (), failpoint: str = ""
) -> None:
    """Insert the events, ``behind`` what they tell of, and tell the webhooks of their domains."""
    if not happened and not behind:
        return
    rows = [
        (
            e.log_id,
            e.id,
            e.at,
            e.status.value,
            e.code,
            clean(e.message),
            clean(e.local),
            clean(e.server),
            clean(e.recipient),
        )
        for e in happened
    ]
    told = Insert(events, EVENT_COLUMNS, rows, failpoint)
    if insert_and_look(conn, (*behind, told), _ANY_WEBHOOK):
        _tell_webhooks(conn, happened)


def _tell_webhooks(conn: Connection, happened: Sequence[Recorded]) -> None:
    concerned = {e.domain_id for e in happened if e.domain_id is not None}
    if not concerned:
        return
    found = conn.execute(_webhooks(conn), _DOMAIN_IDS.values(conn, [(id_,) for id_ in concerned]))
    hooks = {row.id: row for row in found}
    new_messages: list[tuple[Any, ...]] = []
    new_deliveries: list[tuple[Any, ...]] = []
    for event in happened:
        hook = hooks.get(event.domain_id)
        if hook is not None:
            message, delivery = _notification(event, hook.name, hook.webhook)
            new_messages.append(message)
            new_deliveries.append(delivery)
    insert_many(conn, messages, MESSAGE_COLUMNS, new_messages)
    insert_many(conn, deliveries, DELIVERY_COLUMNS, new_deliveries)


def _notification(event: Recorded, domain: str, webhook: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The rows of the message and the delivery that tell a webhook of an event."""
    content = _notice(domain, event)
    message_id = new_id(event.at, os.urandom(8))
    message = (message_id, event.at, Transport.REPORT.value, "", False, None, len(content), content)
    delivery = (
        new_id(event.at, os.urandom(8)),
        message_id,
        DeliveryKind.NOTIFY.value,
        event.domain_id,
        None,
        "",
        webhook,
        urlsplit(webhook).hostname or "",
        DeliveryState.QUEUED.value,
        0,
        event.at,
        event.at,
        None,
    )
    return message, delivery
