"""``/domains/:domain/check``: look at the DNS of a domain now, write down what was found, and show it."""

from collections.abc import Sequence

from sqlalchemy import Connection

from api.findings import Checked, CheckedRecord, look, write_down
from api.improvmx import answers
from api.improvmx.owned import domain_in, name_of
from api.improvmx.wire import Json
from api.operation import Call, Operation
from forwarder.store import credentials, dkim_keys
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain


async def check(call: Call) -> Json:
    """Look now, write it down, and show it."""
    name = name_of(call)
    rooms = call.rooms

    def read(conn: Connection) -> tuple[Domain, Sequence[DkimKey], int]:
        found = domain_in(conn, call, name)
        return found, dkim_keys.live_keys(conn, found.id), credentials.count(conn, found.id)

    domain, keys, senders = await rooms.database.read(read)
    checked = await look(rooms.resolver, name, rooms.settings, keys)
    await write_down(rooms.database, domain, checked, rooms.clock())
    return _shown(checked, advanced=senders > 0)


def _shown(checked: Checked, *, advanced: bool) -> Json:
    missing = CheckedRecord(expected="", values=None, valid=False).shown()
    dkim = [key.shown() for key in checked.dkim] + [missing, missing]
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
