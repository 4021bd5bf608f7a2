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
    from api.improvmx.requests import plain
    from forwarder.mail.aliases import parse_alias
    from forwarder.mail.destination import Url, canonical_forward
    from forwarder.net.http import Blocked, check_url
    from forwarder.store import aliases

    private = settings.outbound.allow_private_destinations
    try:
        canonical, destinations = parse_alias(pattern.strip(), forward, plain_http=private)
        plain(pattern)
        plain(forward)
        for destination in destinations:
            if isinstance(destination, Url):
                check_url(destination.url, allow_private=private)
    except (ValueError, Blocked) as error:  # what an alias cannot be among them
        raise Failure(str(error)) from None
    if len(destinations) > plan.destinations:
        count = len(destinations)
        raise Failure(f"an alias of this account may lead to {plan.destinations} destinations, not {count}")
    made = aliases.add(
        conn, domain, canonical, canonical_forward(destinations), utc_now(), limit=plan.aliases
    )
    if (found := circle(conn, domain, [made])) is not None:
        raise Failure(found[1])
    ask_owners(conn, settings, domain, [made], made.created_at)
    return made
