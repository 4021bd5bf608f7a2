"""``/domains/:domain/check``: look at the DNS of a domain now, write down what was found, and show it.

A domain is active when its MX is right, and may send when SPF and both DKIM records are. Trouble with the DNS makes
nothing inactive that was active.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from api.findings import Checked, Finding, look
from api.improvmx import answers
from api.improvmx.owned import domain_in, name_of
from api.improvmx.wire import Json
from api.operation import Call, Operation
from forwarder.store import credentials, dkim_keys, domains
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain
from forwarder.store.engine import Database


async def record(database: Database, domain: Domain, checked: Checked, now: datetime) -> Domain | None:
    """Write down what was found; None when the domain is gone.

    Looking takes seconds, and the turn of a domain among many may be minutes away: what it is compared with is not
    ``domain``, but what others have written down since that was read.
    """

    def work(conn: Connection) -> Domain | None:
        while (known := domains.by_id(conn, domain.id)) is not None:
            changed = domains.record_check(conn, known, now, **_judged(known, checked, now))
            if changed is not None:
                return changed
        return None

    return await database.write(work)


def _judged(known: Domain, checked: Checked, now: datetime) -> dict[str, Any]:
    """What a domain is after a check; what nobody could tell stays as it was."""
    is_active = known.is_active if checked.mx.valid is None else checked.mx.valid
    had = known.sending_checked_at is not None
    sending = had if checked.sending is None else checked.sending
    broke = (known.is_active and not is_active) or (had and not sending)
    since, notified_at = known.broken_since, known.notified_at
    if broke and since is None:
        since = now
    elif is_active and checked.sending is not False and not broke:
        since = notified_at = None  # all that can be told is right again
    return {
        "is_active": is_active,
        "sending_ready": sending,
        "broken_since": since,
        "notified_at": notified_at,
    }


async def check(call: Call) -> Json:
    """Look now, write it down, and show it."""
    name = name_of(call)
    rooms = call.rooms

    def read(conn: Connection) -> tuple[Domain, Sequence[DkimKey], int]:
        found = domain_in(conn, call, name)
        return found, dkim_keys.list_keys(conn, found.id), credentials.count(conn, found.id)

    domain, keys, senders = await rooms.database.read(read)
    checked = await look(rooms.resolver, name, rooms.settings, keys)
    await record(rooms.database, domain, checked, rooms.clock())
    return _shown(checked, advanced=senders > 0)


def _shown(checked: Checked, *, advanced: bool) -> Json:
    missing = Finding(expected="", values=None, valid=False).shown()
    dkim = [finding.shown() for finding in checked.dkim] + [missing, missing]
    mx, spf = checked.mx.shown(), checked.spf.shown()
    valid = checked.mx.valid is True and checked.spf.valid is True
    if advanced:
        valid = valid and checked.sending is True and checked.dmarc.valid is True
    return {
        "records": {
            "provider": checked.provider,
            "advanced": advanced,
            "dkim1": dkim[0],
            "dkim2": dkim[1],
            "dmarc": checked.dmarc.shown(),
            "error": checked.advice(sending=advanced),
            "mx": mx,
            "spf": spf,
            "valid": valid,
        },
        "success": checked.mx.valid is True,
        "valid": valid,
        "mx": mx,
        "spf": spf,
    }


OPERATIONS = (
    Operation(
        method="GET",
        path="/v3/domains/{domain}/check",
        name="checkDomain",
        summary="Check if MX entries are valid for a domain",
        tag="Domains",
        handler=check,
        answer=answers.CheckAnswer,
        refusals=(404,),
        note="success says whether the MX is right; records.error says what to do. The answer is always 200.",
    ),
)
