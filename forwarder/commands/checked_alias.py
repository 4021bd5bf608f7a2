"""An alias as a person typed it, judged as the API judges it, and stored."""

from typing import TYPE_CHECKING, Any

from forwarder.clock import utc_now
from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from pydantic import BaseModel
    from sqlalchemy import Connection

    from forwarder.config import Plan, Settings
    from forwarder.store.aliases import Alias
    from forwarder.store.domains import Domain


def store_alias(
    conn: "Connection", domain: "Domain", pattern: str, forward: str, *, plan: "Plan", settings: "Settings"
) -> "Alias":
    """The alias, saved; or a Failure that says what to write instead, and nothing is saved."""
    from api.improvmx.requests import NewAlias
    from forwarder.store import aliases

    form = _judged(NewAlias, {"alias": pattern.strip(), "forward": forward}, plan=plan, settings=settings)
    _check_fit(form.alias, form.forward)
    made = aliases.add(conn, domain, form.alias, form.forward, utc_now(), limit=plan.aliases)
    _check_way(conn, domain, made, settings=settings)
    return made


def change_alias(
    conn: "Connection",
    domain: "Domain",
    alias: "Alias",
    *,
    forward: str | None,
    is_active: bool | None,
    plan: "Plan",
    settings: "Settings",
) -> "Alias":
    """The alias with what is given changed, saved; or a Failure as of ``store_alias``.

    One that is switched on by hand is not skipped any more, as the API has it: that is for rules.
    """
    from api.improvmx.requests import EditAlias
    from forwarder.store import aliases

    values: dict[str, Any] = {}
    if forward is not None:
        form = _judged(EditAlias, {"forward": forward}, plan=plan, settings=settings)
        # To the API an empty text is none, and leaves the alias as it is.
        _check_fit(alias.pattern, form.forward or "")
        values["forward"] = form.forward
    if is_active is not None:
        values["is_active"] = is_active
    if is_active:
        values["is_skipped"] = False
    changed = aliases.update_alias(conn, domain, alias, utc_now(), **values)
    _check_way(conn, domain, changed, settings=settings)
    return changed


def _judged(form: type["BaseModel"], given: dict[str, str], *, plan: "Plan", settings: "Settings") -> Any:
    """What was typed, in the API's form."""
    from api.validation import Bounds, validate

    judged = validate(form, given, context=Bounds.of(settings, plan))
    if isinstance(judged, dict):
        faults = (f"this {field} cannot be: {' '.join(texts)}" for field, texts in judged.items())
        raise Failure(" ".join(faults))
    return judged


def _check_fit(pattern: str, forward: str) -> None:
    from forwarder.mail.destination import check_captures, parse_forward
    from forwarder.mail.pattern import RuleError

    try:
        check_captures(pattern, parse_forward(forward, plain_http=True))
    except RuleError as error:
        raise Failure(str(error)) from None


def _check_way(conn: "Connection", domain: "Domain", saved: "Alias", *, settings: "Settings") -> None:
    """No circle; and whoever has to agree is asked."""
    from api.asking import ask_owners
    from api.improvmx.circles import circle

    if (found := circle(conn, domain, [saved])) is not None:
        raise Failure(found[1])
    ask_owners(conn, settings, domain, [saved], utc_now())
