"""``/domains/:domain/aliases``: where the domain's mail goes.

An alias is addressed by its name (a pattern, percent-encoded where needed) or by its id. Creates are not looked up
first: the unique constraint decides who was first, and limits are counted in the same transaction.

A bulk request is one transaction. One that may only add leaves aliases that exist as they are and lists them under
``failed`` beside those it added, as the documentation's example shows it; when it could add none at all, it fails.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from sqlalchemy import Connection

from api.asking import ask_owners
from api.errors import Refusal, bad_fields, not_found
from api.improvmx import answers, wire
from api.improvmx.circles import circle
from api.improvmx.owned import domain_in, name_of
from api.improvmx.requests import (
    PAGE_SIZE,
    AliasesQuery,
    Bulk,
    EditAlias,
    NewAlias,
)
from api.improvmx.wire import Json
from api.operation import Call, Operation
from api.validation import REQUIRED, as_sentence
from forwarder.mail.destination import check_captures, parse_forward
from forwarder.mail.pattern import RuleError, program_size
from forwarder.store import aliases
from forwarder.store.aliases import Alias
from forwarder.store.domains import Domain


async def list_page(call: Call) -> Json:
    """A page of aliases by id."""
    query: AliasesQuery = call.query
    limit, page = query.limit or PAGE_SIZE, query.page or 1
    rows, total = await listed(
        call,
        bool(query.q or query.alias),
        starts_with=query.q or "",
        pattern_starts_with=query.alias or "",
        is_active=query.is_active,
        limit=limit,
        offset=(page - 1) * limit,
    )
    shown = [wire.alias(row) for row in rows]
    return {"aliases": shown, "limit": limit, "page": page, "total": total, "success": True}


async def listed(call: Call, searches: bool, **wanted: Any) -> tuple[Sequence[Alias], int]:
    """A page as ``store.aliases.list_aliases`` has it; ``searches``: all texts are read for it."""
    name = name_of(call)
    async with call.rooms.searches.place(call.holder) if searches else nullcontext():
        return await call.rooms.database.read(
            lambda conn: aliases.list_aliases(conn, domain_in(conn, call, name).id, **wanted)
        )


async def add(call: Call) -> Json:
    """A new alias."""
    form: NewAlias = call.body
    name = name_of(call)
    values = {"is_active": form.is_active is not False, "when_disabled": form.when_disabled or 550}

    def work(conn: Connection) -> Alias:
        return save_new(conn, call, domain_in(conn, call, name), form.alias, form.forward, **values)

    return {"alias": wire.alias(await call.rooms.database.change(work)), "success": True}


def save_new(conn: Connection, call: Call, domain: Domain, pattern: str, forward: str, **more: Any) -> Alias:
    """A new alias in this transaction, if everything about it is right; ``more`` as ``store.aliases.add`` has it."""
    _check_fit(pattern, forward)
    added = aliases.add(conn, domain, pattern, forward, call.now, limit=call.plan.aliases, **more)
    _check_way(conn, call, domain, added)
    return added


def save_change(conn: Connection, call: Call, domain: Domain, alias: Alias, **values: Any) -> Alias:
    """The alias changed in this transaction, if everything about it is still right."""
    changed = aliases.update_alias(conn, domain, alias, call.now, **values)
    _check_fit(changed.pattern, changed.forward)
    _check_way(conn, call, domain, changed)
    return changed


def _check_way(conn: Connection, call: Call, domain: Domain, saved: Alias) -> None:
    if (found := circle(conn, domain, [saved])) is not None:
        raise bad_fields({"forward": [found[1]]})
    ask_owners(conn, call.rooms.settings, domain, [saved], call.now)


async def show(call: Call) -> Json:
    """One alias, by name or id."""
    name, wanted = name_of(call), call.path["alias"]
    found = await call.rooms.database.read(
        lambda conn: aliases.find(conn, domain_in(conn, call, name).id, wanted)
    )
    if found is None:
        raise not_found("alias")
    return {"alias": wire.alias(found), "success": True}


async def edit(call: Call) -> Json:
    """Another name, other destinations, on or off."""
    form: EditAlias = call.body
    name, wanted = name_of(call), call.path["alias"]
    values: dict[str, Any] = {
        "pattern": form.alias,
        "forward": form.forward,
        "is_active": form.is_active,
        "when_disabled": form.when_disabled,
    }
    values = {field: value for field, value in values.items() if value is not None}
    if not values:
        raise bad_fields({"forward": [REQUIRED]})
    if form.is_active or form.when_disabled:
        values["is_skipped"] = False  # that is for rules: an alias that is disabled answers

    def work(conn: Connection) -> Alias:
        domain = domain_in(conn, call, name)
        found = aliases.find(conn, domain.id, wanted)
        if found is None:
            raise not_found("alias")
        return save_change(conn, call, domain, found, **values)

    return {"alias": wire.alias(await call.rooms.database.change(work)), "success": True}


async def remove(call: Call) -> Json:
    """Mail for it is refused from now on, unless another alias answers."""
    name, wanted = name_of(call), call.path["alias"]

    def work(conn: Connection) -> bool:
        domain = domain_in(conn, call, name)
        found = aliases.find(conn, domain.id, wanted)
        return found is not None and aliases.remove(conn, domain, found, call.now)

    if not await call.rooms.database.change(work):
        raise not_found("alias")
    return {"success": True}


async def bulk(call: Call) -> Json:
    """Up to 500 aliases in one transaction."""
    form: Bulk = call.body
    name = name_of(call)
    entries = [(entry.alias, entry.forward) for entry in form.aliases]
    errors = await asyncio.to_thread(_misfits, entries)
    if errors:
        raise bad_fields(errors)

    def work(conn: Connection) -> aliases.Bulk:
        domain = domain_in(conn, call, name)
        done = aliases.bulk(
            conn,
            domain,
            entries,
            call.now,
            update_existing=form.behavior == "update",
            limit=call.plan.aliases,
        )
        if done.failed and not done.added:
            raise _exists(done.failed)
        changed = [*done.added, *done.updated]
        if (closed := circle(conn, domain, changed)) is not None:
            to_blame = changed[closed[0]]
            place = entries.index((to_blame.pattern, to_blame.forward))
            raise bad_fields({f"aliases.{place}.forward": [closed[1]]})
        ask_owners(conn, call.rooms.settings, domain, changed, call.now)
        return done

    done = await call.rooms.database.change(work)
    return {
        "added": [wire.alias(one) for one in done.added],
        "failed": [wire.alias(one) for one in done.failed],
        "updated": [wire.alias(one) for one in done.updated],
        "success": True,
    }


def _exists(failed: Sequence[Alias]) -> Refusal:
    names = ", ".join(alias.pattern for alias in failed[:5]) + (", …" if len(failed) > 5 else "")
    reason = (
        f"These aliases already exist: {names}. Nothing was added; an alias that already exists can be "
        'changed with "behavior": "update".'
    )
    shown = {"added": [], "failed": [wire.alias(alias) for alias in failed], "updated": []}
    return Refusal(400, errors={"aliases": [reason]}, more=shown)


def _check_fit(pattern: str, forward: str) -> None:
    if (reason := _misfit(pattern, forward)) is not None:
        raise bad_fields({"forward": [reason]})


def _misfit(pattern: str, forward: str) -> str | None:
    try:
        check_captures(pattern, parse_forward(forward, plain_http=True))
    except RuleError as fault:
        return as_sentence(str(fault))
    return None


def _misfits(entries: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[str]]:
    """What does not fit, by field.

    For a thread: hundreds of expressions may be compiled, and all that the transaction, which may run in the event
    loop, will ask for again.
    """
    errors: dict[str, Sequence[str]] = {}
    for index, (pattern, forward) in enumerate(entries):
        program_size(pattern)
        if (reason := _misfit(pattern, forward)) is not None:
            errors[f"aliases.{index}.forward"] = [reason]
    return errors


_LIST = "/v3/domains/{domain}/aliases"
_ONE = "/v3/domains/{domain}/aliases/{alias}"
_BY = "An alias is addressed by its name, percent-encoded, or by its id."

OPERATIONS = (
    Operation(
        method="GET",
        path=_LIST,
        name="listAliases",
        summary="List a domain's aliases",
        tag="Aliases",
        handler=list_page,
        query=AliasesQuery,
        answer=answers.AliasesAnswer,
        refusals=(404,),
    ),
    Operation(
        method="POST",
        path=_LIST,
        name="addAlias",
        summary="Add a new domain alias",
        tag="Aliases",
        handler=add,
        body=NewAlias,
        answer=answers.AliasAnswer,
        refusals=(404,),
    ),
    Operation(
        method="POST",
        path=f"{_LIST}/bulk",
        name="addAliasesInBulk",
        summary="Add aliases in bulk",
        tag="Aliases",
        handler=bulk,
        body=Bulk,
        answer=answers.BulkAnswer,
        refusals=(404,),
        note=(
            'Up to 500, in one transaction. "add" (the default) leaves aliases that already exist as they are and '
            'lists them under "failed"; when all of them do, the request fails. "update" changes them instead.'
        ),
    ),
    Operation(
        method="GET",
        path=_ONE,
        name="getAlias",
        summary="Get alias details",
        tag="Aliases",
        handler=show,
        answer=answers.AliasAnswer,
        refusals=(404,),
        note=_BY,
    ),
    Operation(
        method="PUT",
        path=_ONE,
        name="editAlias",
        summary="Update an alias",
        tag="Aliases",
        handler=edit,
        body=EditAlias,
        answer=answers.AliasAnswer,
        refusals=(404,),
        note=_BY,
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        name="removeAlias",
        summary="Delete an alias",
        tag="Aliases",
        handler=remove,
        answer=answers.Answer,
        refusals=(404,),
        note=_BY,
    ),
)
