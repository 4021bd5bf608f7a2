"""``/domains/:domain/logs``: every processed mail with its events, newest first, a page by cursor.

A page costs the same however many logs there are: the cursor is the last ``log.id`` seen, and ids sort by time.

Times are texts, as documented, or milliseconds with ``time_format=ms``. ImprovMX's own command line reads milliseconds
only and cannot ask for them: it is known by its User-Agent.
"""

import re
from datetime import UTC, datetime

from api.errors import bad_fields, not_found
from api.improvmx import answers, wire
from api.improvmx.owned import domain_in, domain_of, name_of
from api.improvmx.requests import PAGE_SIZE, LogsQuery
from api.improvmx.wire import Json
from api.operation import Call, Operation
from forwarder.mail.ids import id_floor, parse_log_public_id
from forwarder.mail.pattern import stored_name
from forwarder.store import aliases
from forwarder.store.domains import Domain

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)  # no id is older
_CURSOR = re.compile(r"[0-9]{14}\.[0-9a-f]{32}")


async def of_domain(call: Call) -> Json:
    """All logs of a domain."""
    return await _page(call, await domain_of(call), None)


async def of_alias(call: Call) -> Json:
    """The logs of one alias; it may have been removed since."""
    name, wanted = name_of(call), call.path["alias"]
    domain, alias = await call.rooms.database.read(
        lambda conn: (domain := domain_in(conn, call, name), aliases.find(conn, domain.id, wanted))
    )
    pattern = stored_name(wanted) if alias is None else alias.pattern
    page = await _page(call, domain, pattern)
    # An empty page may also be the last one, or one without failures.
    if (
        alias is None
        and not page["logs"]
        and not await call.rooms.journal.page(domain.id, alias=pattern, limit=1)
    ):
        raise not_found("alias")
    return page


def _position(cursor: str) -> str | None:
    """The id from which a cursor goes on; None when it is none.

    A cursor that another server gave, as clients keep them, has another kind of id behind its time: it goes on from
    that time.
    """
    own = parse_log_public_id(cursor)
    if own is not None or not _CURSOR.fullmatch(cursor):
        return own
    try:
        at = datetime.strptime(cursor[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return id_floor(max(at, _FIRST))


async def _page(call: Call, domain: Domain, pattern: str | None) -> Json:
    query: LogsQuery = call.query
    after = None
    if query.next_cursor is not None:
        after = _position(query.next_cursor)
        if after is None:
            raise bad_fields({"next_cursor": ["This is not the id of a log."]})
    entries = await call.rooms.journal.page(
        domain.id,
        alias=pattern,
        after=after,
        limit=query.limit or PAGE_SIZE,
        failures_only=query.filter == "failure",
    )
    wanted = query.time_format or ("ms" if call.by_improvmx_cli else "text")
    as_milliseconds = wanted == "ms"
    return {
        "logs": [wire.log(entry, as_milliseconds=as_milliseconds) for entry in entries],
        "success": True,
    }


OPERATIONS = (
    Operation(
        method="GET",
        path="/v3/domains/{domain}/logs",
        name="listLogs",
        summary="Get domain logs",
        tag="Logs",
        handler=of_domain,
        query=LogsQuery,
        answer=answers.LogsAnswer,
        refusals=(404,),
    ),
    Operation(
        method="GET",
        path="/v3/domains/{domain}/logs/{alias}",
        name="listAliasLogs",
        summary="Get logs for a domain's alias",
        tag="Logs",
        handler=of_alias,
        query=LogsQuery,
        answer=answers.LogsAnswer,
        refusals=(404,),
        note="Percent-encode a regular expression: (contact|support) is %28contact%7Csupport%29.",
    ),
)
