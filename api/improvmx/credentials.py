"""``/domains/:domain/credentials``: who may send as the domain.

Passwords are hashed with argon2id in a thread, a bounded number at once, and are in no answer, log or error.
"""

import asyncio

from sqlalchemy import Connection

from api.errors import bad_fields, not_found
from api.improvmx import answers, wire
from api.improvmx.owned import domain_in, domain_of, name_of
from api.improvmx.requests import EditCredential, NewCredential
from api.improvmx.wire import Json
from api.operation import Call, Operation
from api.validation import REQUIRED
from forwarder.mail.address import fold
from forwarder.store import credentials
from forwarder.store.credentials import Credential
from forwarder.store.passwords import hash_password


async def list_all(call: Call) -> Json:
    """All credentials of the domain."""
    domain = await domain_of(call)
    found = await call.rooms.database.read(lambda conn: credentials.list_credentials(conn, domain.id))
    return {"credentials": [wire.credential(one) for one in found], "success": True}


async def add(call: Call) -> Json:
    """A new credential; the first one of a domain asks for its DNS to be looked at."""
    form: NewCredential = call.body
    name = name_of(call)
    await domain_of(call)  # before 170 ms of hashing
    password_hash = await _hash(call, form.password)

    def work(conn: Connection) -> tuple[Credential, bool]:
        domain = domain_in(conn, call, name)
        first = credentials.count(conn, domain.id) == 0
        added = credentials.add(
            conn,
            domain,
            form.username,
            password_hash,
            call.now,
            is_limited=bool(form.is_limited),
            limit=call.plan.credentials,
        )
        return added, first

    added, asks_for_dns = await call.rooms.database.change(work)
    return {
        "credential": wire.credential(added),
        "requires_new_mx_check": asks_for_dns,
        "success": True,
    }


async def edit(call: Call) -> Json:
    """Another password or permission; cached log-ins end."""
    form: EditCredential = call.body
    name, username = name_of(call), fold(call.path["username"])
    await domain_of(call)
    values: dict[str, object] = {}
    if form.password is not None:
        values["password_hash"] = await _hash(call, form.password)
    if form.is_limited is not None:
        values["is_limited"] = form.is_limited
    if not values:
        raise bad_fields({"password": [REQUIRED]})

    def work(conn: Connection) -> Credential:
        domain = domain_in(conn, call, name)
        return credentials.update_credential(conn, domain, username, call.now, **values)

    return {"credential": wire.credential(await call.rooms.database.change(work)), "success": True}


async def remove(call: Call) -> Json:
    """Nobody logs in with it any more."""
    name, username = name_of(call), fold(call.path["username"])

    def work(conn: Connection) -> bool:
        return credentials.remove(conn, domain_in(conn, call, name), username, call.now)

    if not await call.rooms.database.change(work):
        raise not_found("credential")
    return {"success": True}


async def _hash(call: Call, password: str) -> str:
    async with call.rooms.heavy.place(call.holder):
        return await asyncio.to_thread(hash_password, password)


OPERATIONS = (
    Operation(
        method="GET",
        path="/v3/domains/{domain}/credentials",
        name="listCredentials",
        summary="Get a domain's SMTP credentials",
        tag="SMTP credentials",
        handler=list_all,
        answer=answers.CredentialsAnswer,
        refusals=(404,),
    ),
    Operation(
        method="POST",
        path="/v3/domains/{domain}/credentials",
        name="addCredential",
        summary="Add a new SMTP credential",
        tag="SMTP credentials",
        handler=add,
        body=NewCredential,
        answer=answers.NewCredentialAnswer,
        refusals=(404,),
        note="is_limited: the credential may send as its own address only, not as the domain's aliases.",
    ),
    Operation(
        method="PUT",
        path="/v3/domains/{domain}/credentials/{username}",
        name="editCredential",
        summary="Update an SMTP credential",
        tag="SMTP credentials",
        handler=edit,
        body=EditCredential,
        answer=answers.CredentialAnswer,
        refusals=(404,),
    ),
    Operation(
        method="DELETE",
        path="/v3/domains/{domain}/credentials/{username}",
        name="removeCredential",
        summary="Delete an SMTP credential",
        tag="SMTP credentials",
        handler=remove,
        answer=answers.Answer,
        refusals=(404,),
    ),
)
