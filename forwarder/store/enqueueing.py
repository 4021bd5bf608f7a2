"""Taking charge of messages: the rows of a whole group in a few statements.

For each message its content, a delivery for each destination, a log and a QUEUED event for each. A destination that its
alias says to discard leaves a log with QUEUED and DELIVERED and no delivery, one where nobody is a log with QUEUED and
HARD-BOUNCE, an alias of another account that takes it on one with DELIVERED again; a message with nothing else leaves
no content either.

A delivery is leased to this worker, attempt 1 counted, where the dispatcher had room, and otherwise due for everybody;
but where a client waits for the COMMIT (``answers``) that, too, is leased to us, no attempt counted, until it is known
how the COMMIT ended: a message that the client was told 451 of must not be sent by whoever sees it first.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from forwarder.failpoint import reach
from forwarder.mail.event import DeliveryKind, DeliveryState, Status
from forwarder.store.recording import (
    DELIVERY_COLUMNS,
    LOG_COLUMNS,
    MESSAGE_COLUMNS,
    Recorded,
    clean,
    record_events,
)
from forwarder.store.records import NewDelivery, NewMessage
from forwarder.store.rows import Insert, is_postgres
from forwarder.store.straight import run_text, write_blob
from forwarder.store.tables import deliveries, logs, messages, micros

LARGE = 256 * 1024  # octets of content from which SQLite is given it in pieces


class Enqueueing:
    """The batch of ``Queue.enqueue``; also stores the DSNs of a settlement."""

    def __init__(self, *, worker_id: str, local_name: str, answers: bool = False) -> None:
        self._worker_id = worker_id
        self._local_name = local_name
        self._answers = answers

    def apply(self, conn: Connection, items: Sequence[NewMessage]) -> Sequence[None]:
        kept = [message for message in items if any(not d.discard for d in message.deliveries)]
        large = [] if is_postgres(conn) else [m for m in kept if len(m.content) > LARGE]
        small = [message for message in kept if len(message.content) <= LARGE] if large else kept
        reach("enqueue.before-messages")
        for message in large:
            _insert_large(conn, message)
        leaving = [
            self._delivery_row(message, delivery)
            for message in kept
            for delivery in message.deliveries
            if not delivery.discard
        ]
        told = [row for message in items for row in _log_rows(message)]
        record_events(
            conn,
            [event for message in items for event in self._events(message)],
            behind=(
                Insert(messages, MESSAGE_COLUMNS, [_message_row(message) for message in small]),
                Insert(deliveries, DELIVERY_COLUMNS, leaving, "enqueue.before-deliveries"),
                Insert(logs, LOG_COLUMNS, told, "enqueue.before-logs"),
            ),
            failpoint="enqueue.before-events",
        )
        return [None] * len(items)

    def _delivery_row(self, message: NewMessage, delivery: NewDelivery) -> tuple[Any, ...]:
        """In the order of DELIVERY_COLUMNS."""
        leased = delivery.leased or self._answers
        return (
            delivery.id,
            message.id,
            delivery.kind.value,
            delivery.domain_id,
            clean(delivery.alias),
            delivery.recipient.storage(),
            delivery.destination,
            delivery.destination_domain,
            DeliveryState.LEASED.value if leased else DeliveryState.QUEUED.value,
            1 if delivery.leased else 0,
            message.created_at,
            delivery.next_attempt_at,
            self._worker_id if leased else None,
        )

    def _events(self, message: NewMessage) -> list[Recorded]:
        at = message.created_at
        recorded = []
        for delivery in message.deliveries:
            if delivery.kind is DeliveryKind.NOTIFY:
                continue
            about = delivery.domain_id, delivery.id
            to = delivery.recipient.storage()
            local = self._local_name
            # The first event of a log may bear the log's own id: ids are unique within a log.
            recorded.append(
                Recorded(
                    *about,
                    delivery.id,
                    at,
                    Status.QUEUED,
                    250,
                    f"Queued as {message.id}",
                    local,
                    message.hostname,
                    to,
                )
            )
            if delivery.discard:
                status, code, said = _end(delivery)
                recorded.append(Recorded(*about, message.id, at, status, code, said, local, local, to))
        return recorded


def _end(delivery: NewDelivery) -> tuple[Status, int, str]:
    """What the log says of a delivery that ends as it begins."""
    reply = delivery.dead_end
    if reply is None:
        return Status.DELIVERED, 250, "Discarded, as the alias says"
    status = Status.DELIVERED if reply.positive else Status.HARD_BOUNCE
    return status, reply.code, f"{reply.enhanced} {reply.text}"


def _insert_large(conn: Connection, message: NewMessage) -> None:
    *facts, content = _message_row(message)
    facts[1] = micros(message.created_at)
    columns, marks = ", ".join(MESSAGE_COLUMNS), "?, " * len(facts)
    text = f"INSERT INTO messages ({columns}) VALUES ({marks}zeroblob(?))"  # noqa: S608 - names of ours
    row = run_text(conn, text, (*facts, len(content))).lastrowid
    assert row is not None
    write_blob(conn, "messages", "content", row, content)


def _message_row(message: NewMessage) -> tuple[Any, ...]:
    """In the order of MESSAGE_COLUMNS, the content last."""
    return (
        message.id,
        message.created_at,
        message.transport.value,
        message.reverse_path.storage(),
        message.smtputf8,
        message.signing_domain,
        len(message.content),
        message.content,
    )


def _log_rows(message: NewMessage) -> list[tuple[Any, ...]]:
    """One for each delivery that people are shown, in the order of LOG_COLUMNS."""
    shared = (
        message.created_at,
        message.transport.value,
        clean(message.hostname),
        clean(message.message_id),
        clean(message.subject),
        clean(message.sender_email),
        clean(message.sender_name),
    )
    return [
        (
            delivery.id,
            delivery.domain_id,
            clean(delivery.alias),
            *shared,
            delivery.recipient.storage(),
            clean(delivery.recipient_name),
            delivery.destination,
            delivery.dead_end is not None and not delivery.dead_end.positive,
        )
        for delivery in message.deliveries
        if delivery.kind is not DeliveryKind.NOTIFY
    ]
