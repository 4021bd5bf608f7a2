"""``/domains/:domain/rules``: the domain's aliases in another dress, as newer clients ask for them.

Every alias is a rule and every rule an alias; there is one list, so that what one says the other cannot deny. A rule of
type ``alias`` holds any pattern; one of type ``regex`` is an alias that is its expression. Limits, duplicates, circles,
confirmation and how fast a change is in force are those of aliases, by the same code.

``rank`` is the order in which rules are asked, and true of all of them; it can be set where there is a choice, among
regular expressions. ``active`` false means that mail is looked after as if the rule were not there, while an alias
that is disabled as an alias (``is_active``) answers for itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from api.errors import Refusal, bad_fields, not_found, refusal_of
from api.improvmx import answers, wire
from api.improvmx.aliases import listed, save_change, save_new
from api.improvmx.owned import domain_in, name_of
from api.improvmx.requests import PAGE_SIZE
from api.improvmx.rule_requests import AliasConfig, ChangedConfig, EditRule, NewRule, RulesQuery
from api.improvmx.wire import Json
from api.operation import Call, Operation
from api.validation import REQUIRED
from forwarder.mail.aliases import LAST_RANK, place
from forwarder.mail.pattern import AliasKind, classify, expression_of, pattern_of
from forwarder.store import aliases
from forwarder.store.aliases import Alias
from forwarder.store.conflict import AlreadyExists, LimitReached, TooLarge
from forwarder.store.domains import Domain


async def list_page(call: Call) -> Json:
    """A page of rules by id."""
    query: RulesQuery = call.query
    limit, page = query.limit or PAGE_SIZE, query.page or 1
    rows, total = await listed(
        call, bool(query.search), contains=query.search or "", limit=limit, offset=(page - 1) * limit
    )
    return {
        "rules": [wire.rule(row, in_seconds=call.by_improvmx_cli) for row in rows],
        "limit": limit,
        "page": page,
        "total": total,
        "success": True,
    }


async def add(call: Call) -> Json:
    """A new rule, and so a new alias."""
    form: NewRule = call.body
    name = name_of(call)
    config = form.config
    pattern = config.alias if isinstance(config, AliasConfig) else pattern_of(config.regex)
    rank = None if form.rank is None else _rank(form.rank, pattern)
    active = form.active is not False

    def work(conn: Connection) -> Alias:
        domain = domain_in(conn, call, name)
        more = {"is_active": active, "is_skipped": not active, "rank": rank}
        with _naming(form.type):
            return save_new(conn, call, domain, pattern, config.forward, **more)

    return _shown(call, await call.rooms.database.change(work))


async def show(call: Call) -> Json:
    """One rule."""
    name = name_of(call)
    return _shown(call, await call.rooms.database.read(lambda conn: _found(conn, call, name)[1]))


async def edit(call: Call) -> Json:
    """What is given is changed, the rest stays."""
    form: EditRule = call.body
    name = name_of(call)
    if form.type is None and form.config is None and form.rank is None and form.active is None:
        raise bad_fields({"config": [REQUIRED]})

    def work(conn: Connection) -> Alias:
        domain, found = _found(conn, call, name)
        changes = _changes(form, found)
        with _naming(form.type or _kind(found)):
            return save_change(conn, call, domain, found, **changes)

    return _shown(call, await call.rooms.database.change(work))


async def remove(call: Call) -> Json:
    """The alias goes with it."""
    name = name_of(call)

    def work(conn: Connection) -> bool:
        return aliases.remove(conn, *_found(conn, call, name), call.now)

    if not await call.rooms.database.change(work):
        raise not_found("rule")
    return {"success": True}


async def remove_all(call: Call) -> Json:
    """All of the domain's rules, and so all of its aliases."""
    name = name_of(call)
    await call.rooms.database.change(
        lambda conn: aliases.remove_all(conn, domain_in(conn, call, name), call.now)
    )
    return {"success": True}


def _found(conn: Connection, call: Call, name: str) -> tuple[Domain, Alias]:
    domain = domain_in(conn, call, name)
    found = aliases.by_id(conn, domain.id, call.path["rule"])
    if found is None:
        raise not_found("rule")
    return domain, found


def _kind(alias: Alias) -> str:
    return "alias" if expression_of(alias.pattern) is None else "regex"


def _shown(call: Call, alias: Alias) -> Json:
    shown = wire.rule(alias, in_seconds=call.by_improvmx_cli)
    return {**shown, "rule": shown, "success": True}


@contextmanager
def _naming(kind: str) -> Iterator[None]:
    """What is wrong with an alias, under the names that its fields have in a rule."""
    names = {"alias": "config.alias" if kind == "alias" else "config.regex", "forward": "config.forward"}
    try:
        yield
    except (Refusal, AlreadyExists, LimitReached, TooLarge) as fault:
        refusal = refusal_of(fault)
        if refusal is None or not refusal.errors:
            raise
        raise bad_fields(
            {names.get(field, field): texts for field, texts in refusal.errors.items()}
        ) from None


def _changes(form: EditRule, found: Alias) -> Mapping[str, Any]:
    """The columns to set."""
    config = form.config or ChangedConfig()
    values: dict[str, Any] = {}
    pattern = _pattern(form.type, config, found)
    if pattern != found.pattern:
        values["pattern"] = pattern
    if config.forward is not None:
        values["forward"] = config.forward
    if form.rank is not None and form.rank != place(found.id, found.pattern, found.rank):
        values["rank"] = _rank(form.rank, pattern)
    if form.active is not None and form.active != found.is_active:
        values |= {"is_active": form.active, "is_skipped": not form.active}
    return values


def _pattern(wanted: str | None, config: ChangedConfig, found: Alias) -> str:
    """The pattern after the change; Refusal when type and config do not go together."""
    now = _kind(found)
    kind = wanted or now
    errors: dict[str, Sequence[str]] = {}
    stray = {"regex": config.regex, "scopes": config.scopes} if kind == "alias" else {"alias": config.alias}
    for field, value in stray.items():
        if value is not None:
            errors[f"config.{field}"] = [
                f'A rule of type "{kind}" has no such field; send "type" with it to change that.'
            ]
    new = config.alias if kind == "alias" else None if config.regex is None else pattern_of(config.regex)
    if new is None and kind != now:
        errors["config.alias" if kind == "alias" else "config.regex"] = [REQUIRED]
    if errors:
        raise bad_fields(errors)
    return found.pattern if new is None else new


def _rank(wanted: float, pattern: str) -> float | None:
    """The rank to store; Refusal when a rule of this pattern cannot stand there."""
    if classify(pattern) is not AliasKind.REGEX:
        if wanted == place(0, pattern, None):
            return None
        raise bad_fields(
            {
                "rank": [
                    "Only rules with a regular expression have a rank that can be set: exact names are asked before "
                    "all of them, and names with a * after all of them."
                ]
            }
        )
    if not 0 < wanted < LAST_RANK:
        raise bad_fields({"rank": [f"This must be above 0 and below {LAST_RANK:.0f}."]})
    return wanted


_LIST = "/v3/domains/{domain}/rules"
_ONE = "/v3/domains/{domain}/rules/{rule}"
_ABOUT = "Every rule is an alias and every alias a rule. `alias` has any pattern; `regex` looks at the recipient only."

OPERATIONS = (
    Operation(
        method="GET",
        path=_LIST,
        name="listRules",
        summary="List a domain's rules",
        tag="Rules",
        handler=list_page,
        query=RulesQuery,
        answer=answers.RulesAnswer,
        refusals=(404,),
        note=_ABOUT,
    ),
    Operation(
        method="POST",
        path=_LIST,
        name="addRule",
        summary="Add a rule",
        tag="Rules",
        handler=add,
        body=NewRule,
        answer=answers.RuleAnswer,
        refusals=(404,),
        note=_ABOUT,
    ),
    Operation(
        method="DELETE",
        path="/v3/domains/{domain}/rules-all",
        name="removeAllRules",
        summary="Delete all rules of a domain",
        tag="Rules",
        handler=remove_all,
        answer=answers.Answer,
        refusals=(404,),
        note="And so all of its aliases: mail for the domain is refused until there is another.",
    ),
    Operation(
        method="GET",
        path=_ONE,
        name="getRule",
        summary="Get a rule",
        tag="Rules",
        handler=show,
        answer=answers.RuleAnswer,
        refusals=(404,),
    ),
    Operation(
        method="PUT",
        path=_ONE,
        name="editRule",
        summary="Update a rule",
        tag="Rules",
        handler=edit,
        body=EditRule,
        answer=answers.RuleAnswer,
        refusals=(404,),
        note="What is not given stays as it is, in `config` too.",
    ),
    Operation(
        method="DELETE",
        path=_ONE,
        name="removeRule",
        summary="Delete a rule",
        tag="Rules",
        handler=remove,
        answer=answers.Answer,
        refusals=(404,),
    ),
)
