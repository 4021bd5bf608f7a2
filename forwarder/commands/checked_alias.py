"""An alias as a person typed it -> what may be stored; the same judgement as the API's."""

from typing import TYPE_CHECKING

from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from forwarder.config import Plan
    from forwarder.store.domains import Domain


def checked_alias(
    conn: "Connection", domain: "Domain", pattern: str, forward: str, plan: "Plan"
) -> tuple[str, str]:
    """The canonical pattern and forward, or a Failure that says what to write instead."""
    from forwarder.mail.pattern import RuleError, parse_pattern
    from forwarder.mail.rules import parse_forward

    del conn, domain
    try:
        canonical = parse_pattern(pattern)
        destinations = parse_forward(forward)
    except RuleError as error:
        raise Failure(str(error)) from None
    if len(destinations) > plan.destinations:
        raise Failure(
            f"an alias of this account may lead to {plan.destinations} destinations, not {len(destinations)}"
        )
    return canonical, ",".join(str(destination) for destination in destinations)
