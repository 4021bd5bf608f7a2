"""What is recorded about a message, and the states a delivery passes through.

The five statuses are the wire words of the logs API. A delivery's row exists in the queue only while it waits for
something; when it is delivered or has failed the row leaves, and the journal keeps the last event.
"""

from enum import StrEnum


class Status(StrEnum):
    """The status of one event, as stored and as the API shows it."""

    QUEUED = "QUEUED"  # accepted: on disk, the sender has its 250
    REFUSED = "REFUSED"  # refused in the session: the sender keeps the message
    DELIVERED = "DELIVERED"  # the destination answered 2xx (or the alias told us to discard)
    SOFT_BOUNCE = "SOFT-BOUNCE"  # a temporary failure: another attempt is planned
    HARD_BOUNCE = "HARD-BOUNCE"  # given up: the sender gets one DSN, unless there is nobody to tell


def hosts(status: Status, ours: str | None, theirs: str | None) -> tuple[str | None, str | None]:
    """Who received and who sent in the step an event tells of, as it is shown: ``local`` and ``server``.

    As the examples of ImprovMX's documentation have it: we are ``local`` while mail comes in and ``server`` when it
    goes out. In the store ``local`` is always ours.
    """
    outward = status in (Status.DELIVERED, Status.SOFT_BOUNCE, Status.HARD_BOUNCE)
    return (theirs, ours) if outward else (ours, theirs)


class DeliveryState(StrEnum):
    """Where one delivery (message x destination) stands in the queue, and who moves it on."""

    QUEUED = "queued"  # due at next_attempt_at; leased by a claim; held or dropped by an operator
    LEASED = "leased"  # one worker holds it; settled, it is queued again or leaves, delivered or failed
    HELD = "held"  # an operator put it aside; only ``forwarder queue release`` or ``drop`` moves it


class DeliveryKind(StrEnum):
    """What a destination is, and so who delivers it."""

    SMTP = "smtp"  # an address: outbound.delivery
    WEBHOOK = "webhook"  # an https URL of an alias: the message as JSON
    NOTIFY = "notify"  # the webhook of a domain: one event as JSON


class Transport(StrEnum):
    """How a message came in."""

    SMTP = "smtp"  # from the Internet, through the MX listener
    SUBMISSION = "submission"  # from a person or application with credentials
    REPORT = "report"  # written here: a DSN or a notification
