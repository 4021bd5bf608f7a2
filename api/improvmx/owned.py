"""The domain a request is about: only ever one of the account's own.

What belongs to somebody else is not found, exactly as what does not exist: the answers are the same.
"""

from sqlalchemy import Connection

from api.errors import not_found
from api.operation import Call
from forwarder.mail.address import AddressError, parse_domain
from forwarder.store import domains
from forwarder.store.domains import Domain


def name_of(call: Call) -> str:
    """The domain in the path, as stored, with or without a dot at its end; Refusal 404."""
    try:
        return parse_domain(call.path["domain"].removesuffix("."))
    except AddressError:
        raise not_found("domain") from None


def domain_in(conn: Connection, call: Call, name: str) -> Domain:
    """The account's domain of that name; Refusal 404."""
    found = domains.get(conn, name, account_id=call.account.id)
    if found is None:
        raise not_found("domain")
    return found


async def domain_of(call: Call) -> Domain:
    """The domain in the path; Refusal 404."""
    name = name_of(call)
    return await call.rooms.database.read(lambda conn: domain_in(conn, call, name))
