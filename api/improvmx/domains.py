"""``/domains``: the domains of an account.

A new domain comes with DKIM keys (made in a thread, before the transaction) and with a ``*`` alias to the account's
own address, as ImprovMX does it. When that alias would lead in a circle, it is there but disabled. The names of the
server itself, and those below them, are nobody's to add.
"""

import asyncio
from collections.abc import Sequence

from sqlalchemy import Connection

from api.asking import ask_owners
from api.errors import bad_fields, not_found
from api.improvmx import answers, wire
from api.improvmx.circles import circle
from api.improvmx.owned import domain_in, domain_of, name_of
from api.improvmx.requests import PAGE_SIZE, DomainsQuery, EditDomain, NewDomain
from api.improvmx.wire import Json
from api.operation import Call, Operation
from forwarder.mail.address import display_domain
from forwarder.mail.destination import canonical_forward, parse_forward
from forwarder.store import aliases, dkim_keys, domains
from forwarder.store.aliases import Alias
from forwarder.store.conflict import AlreadyExists, LimitReached
from forwarder.store.domains import Domain
from forwarder.store.vault import make_keys

SHOWN_ALIASES = 200  # of each domain
SHOWN_ROOM = 4 * 1024 * 1024  # characters of their destinations, in one answer


async def list_page(call: Call) -> Json:
    """A page of domains by id, each with its first aliases."""
    query: DomainsQuery = call.query
    limit, page = query.limit or PAGE_SIZE, query.page or 1

    def work(conn: Connection) -> tuple[Sequence[Domain], int, dict[int, list[Alias]]]:
        rows, total = domains.list_domains(
            conn,
            call.account.id,
            starts_with=query.q or "",
            is_active=query.is_active,
            limit=limit,
            offset=(page - 1) * limit,
        )
        return rows, total, _first(conn, rows)

    rows, total, first = await call.rooms.database.read(work)
    quota = {"daily_quota": call.plan.daily_quota}
    return {
        "domains": [{**wire.domain(row, first[row.id]), **quota} for row in rows],
        "total": total,
        "limit": limit,
        "page": page,
        "success": True,
    }


async def add(call: Call) -> Json:
    """A new domain."""
    form: NewDomain = call.body
    settings = call.rooms.settings
    if (own := settings.own_name(form.domain)) is not None:
        text = (
            "This is the name of this server itself."
            if own == form.domain
            else "This is a name of this server."
        )
        raise bad_fields({"domain": [text]})
    selector = settings.dkim.selector

    def foresee(conn: Connection) -> None:
        if domains.get(conn, form.domain) is not None:
            raise AlreadyExists("domain")
        if domains.count(conn, call.account.id) >= call.plan.domains:
            raise LimitReached("domains", call.plan.domains)

    # Whether it may be is decided in the transaction; looking here only spares the making of keys in vain.
    await call.rooms.database.read(foresee)
    async with call.rooms.heavy.place(call.holder):
        keys = await asyncio.to_thread(make_keys, call.rooms.vault, form.domain, selector)

    def work(conn: Connection) -> tuple[Domain, Alias]:
        added = domains.add(
            conn,
            call.account.id,
            form.domain,
            display_domain(form.domain),
            call.now,
            dkim_selector=selector,
            notification_email=form.notification_email,
            webhook=form.webhook,
            whitelabel=form.whitelabel,
            limit=call.plan.domains,
        )
        for key in keys:
            dkim_keys.add(conn, added, key, call.now)
        leads_to = canonical_forward(parse_forward(call.account.email))
        everything = aliases.add(conn, added, "*", leads_to, call.now)
        if circle(conn, added, [everything]) is not None:
            everything = aliases.update_alias(conn, added, everything, call.now, is_active=False)
        ask_owners(conn, settings, added, [everything], call.now)
        return added, everything

    added, everything = await call.rooms.database.change(work)
    return {"domain": wire.domain(added, [everything]), "success": True}


async def show(call: Call) -> Json:
    """One domain with its first aliases."""
    name = name_of(call)

    def work(conn: Connection) -> tuple[Domain, list[Alias]]:
        found = domain_in(conn, call, name)
        return found, _first(conn, [found])[found.id]

    found, first = await call.rooms.database.read(work)
    return {"domain": wire.domain(found, first), "success": True}


async def edit(call: Call) -> Json:
    """Where its notices and events go, and its whitelabel; what is not in the body stays."""
    form: EditDomain = call.body
    name = name_of(call)
    values = {field: getattr(form, field) for field in form.model_fields_set}

    def work(conn: Connection) -> tuple[Domain, list[Alias]]:
        changed = domains.update_domain(conn, domain_in(conn, call, name), call.now, **values)
        return changed, _first(conn, [changed])[changed.id]

    changed, first = await call.rooms.database.change(work)
    return {"domain": wire.domain(changed, first), "success": True}


async def remove(call: Call) -> Json:
    """The domain with its aliases and credentials; mail for it is refused from now on."""
    name = name_of(call)
    gone = await call.rooms.database.change(
        lambda conn: domains.remove(conn, domain_in(conn, call, name), call.now)
    )
    if not gone:
        raise not_found("domain")
    return {"success": True}


def _first(conn: Connection, shown: Sequence[Domain]) -> dict[int, list[Alias]]:
    return aliases.first_of_each(conn, [domain.id for domain in shown], SHOWN_ALIASES, room=SHOWN_ROOM)


async def webhook_key(call: Call) -> Json:
    """What signs the events that are POSTed to the domain's webhook."""
    found = await domain_of(call)
    return {"webhook": found.webhook, "key": found.webhook_key, "success": True}


_LIST = "/v3/domains"
_ONE = "/v3/domains/{domain}"

OPERATIONS = (
    Operation(
        method="GET",
        path=_LIST,
        name="listDomains",
        summary="Retrieve a list of all your domains",
        tag="Domains",
        handler=list_page,
        query=DomainsQuery,
        answer=answers.DomainsAnswer,
        note=(
            "At most 200 aliases are shown of each domain, and no more in all than have 4 MiB of destinations; "
            "/domains/{domain}/aliases has them all."
        ),
    ),
    Operation(
        method="POST",
        path=_LIST,
        name="addDomain",
        summary="Add a new domain",
        tag="Domains",
        handler=add,
        body=NewDomain,
        answer=answers.DomainAnswer,
        note="With it come DKIM keys, and the alias * that leads to your own address.",
    ),
    Operation(
        method="GET",
        path=_ONE,
        name="getDomain",
        summary="Get domain details",
        tag="Domains",
        handler=show,
        answer=answers.DomainAnswer,
        refusals=(404,),
    ),
    Operation(
        method="PUT",
        path=_ONE,
        name="editDomain",
        summary="Edit a domain",
        tag="Domains",
        handler=edit,
        body=EditDomain,
        answer=answers.DomainAnswer,
        refusals=(404,),
        note="What is not in the body stays; null or an empty text unsets. The name cannot change.",
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        name="removeDomain",
        summary="Delete a domain",
        tag="Domains",
        handler=remove,
        answer=answers.Answer,
        refusals=(404,),
    ),
    Operation(
        method="GET",
        path=f"{_ONE}/webhook",
        name="getWebhookKey",
        summary="Get the key that signs a domain's webhook",
        tag="Domains",
        handler=webhook_key,
        answer=answers.WebhookKeyAnswer,
        refusals=(404,),
        note="An addition to ImprovMX's API.",
    ),
)
