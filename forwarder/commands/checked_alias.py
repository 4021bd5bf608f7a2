"""An alias as a person typed it, judged as the API judges it, and stored."""

from typing import TYPE_CHECKING

from forwarder.clock import utc_now
from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from forwarder.config import Plan, Settings
    from forwarder.store.aliases import Alias
    from forwarder.store.domains import Domain


def store_alias(
    conn: "Connection", domain: "Domain", pattern: str, forward: str, *, plan: "Plan", settings: "Settings"
) -> "Alias":
    """The alias, saved; or a Failure that says what to write instead, and nothing is saved."""
    from api.asking import ask_owners
    from api.improvmx.circles import circle
    from api.improvmx.requests import NewAlias
    from api.validation import Bounds, validate
    from forwarder.mail.destination import check_captures, parse_forward
    from forwarder.mail.pattern import RuleError
    from forwarder.store import aliases

    bounds = Bounds(
        allow_private=settings.outbound.allow_private_destinations, destinations=plan.destinations
    )
    form = validate(NewAlias, {"alias": pattern.strip(), "forward": forward}, context=bounds)
    if isinstance(form, dict):
        faults = (f"this {field} cannot be: {' '.join(texts)}" for field, texts in form.items())
        raise Failure(" ".join(faults))
    try:
        check_captures(form.alias, parse_forward(form.forward, plain_http=True))
    except RuleError as error:
        raise Failure(str(error)) from None
    made = aliases.add(conn, domain, form.alias, form.forward, utc_now(), limit=plan.aliases)
    if (found := circle(conn, domain, [made])) is not None:
        raise Failure(found[1])
    ask_owners(conn, settings, domain, [made], made.created_at)
    return made
