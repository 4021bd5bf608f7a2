"""``forwarder alias``: where mail goes.

Changes are in force within a second in every running process. Limits are those of the account's plan.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import read, write
from forwarder.commands.answer import answer, listing, tell
from forwarder.commands.frame import AsJson, Config, Failure, command
from forwarder.commands.named import alias_named, domain_named, owner_of

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.aliases import Alias
    from forwarder.store.domains import Domain

app = typer.Typer(no_args_is_help=True, help="Aliases: where mail for a domain goes.")


@command(app, "add")
def add_alias(
    domain: str,
    pattern: Annotated[str, typer.Argument(metavar="ALIAS", help="richard, sales-*, '(a|b)' or '*'.")],
    forward: Annotated[str, typer.Argument(help="Addresses or https URLs, separated by commas.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Add an alias: mail for ALIAS at DOMAIN goes to FORWARD."""
    from forwarder.commands.checked_alias import store_alias

    def add(conn: "Connection", settings: "Settings") -> "tuple[Alias, Domain]":
        hosted = domain_named(conn, domain)
        _, plan = owner_of(conn, hosted, settings)
        return store_alias(conn, hosted, pattern, forward, plan=plan, settings=settings), hosted

    made, hosted = write(config, add)
    tell(
        {"id": made.id, "domain": hosted.name, "alias": made.pattern, "forward": made.forward},
        f"{made.pattern}@{hosted.display} leads to {made.forward}",
        as_json=as_json,
    )


@command(app, "change")
def change_alias(
    domain: str,
    pattern: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias as listed, or its id.")],
    forward: Annotated[
        str | None, typer.Argument(help="Where its mail goes from now on, instead of where it went.")
    ] = None,
    active: Annotated[
        bool | None,
        typer.Option("--on/--off", help="Off: its mail is refused, or what the API set as when_disabled."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Lead an alias elsewhere, or switch it on or off; no mail is refused in between."""
    from forwarder.commands import checked_alias

    if forward is None and active is None:
        raise Failure("say what to change: the addresses it is to lead to, --on or --off")

    def change(conn: "Connection", settings: "Settings") -> "tuple[Alias, Domain]":
        hosted = domain_named(conn, domain)
        _, plan = owner_of(conn, hosted, settings)
        found = alias_named(conn, hosted, pattern)
        changed = checked_alias.change_alias(
            conn, hosted, found, forward=forward, is_active=active, plan=plan, settings=settings
        )
        return changed, hosted

    changed, hosted = write(config, change)
    leads = f"{changed.pattern}@{hosted.display} leads to {changed.forward}"
    tell(
        {
            "id": changed.id,
            "domain": hosted.name,
            "alias": changed.pattern,
            "forward": changed.forward,
            "is_active": changed.is_active,
        },
        leads if changed.is_active else f"{leads}, but is off",
        as_json=as_json,
    )


@command(app, "list")
def list_aliases(domain: str, config: Config = None, as_json: AsJson = False) -> None:
    """List the aliases of a domain, in order of creation."""
    from forwarder.mail.destination import mailbox_key
    from forwarder.store import aliases, confirmations

    def ask(conn: "Connection", settings: "Settings") -> list[dict[str, Any]]:
        hosted = domain_named(conn, domain)
        found = aliases.list_aliases(conn, hosted.id)[0]
        rows: list[dict[str, Any]] = [
            {"id": a.id, "alias": a.pattern, "forward": a.forward, "is_active": a.is_active} for a in found
        ]
        if settings.require_confirmed_destinations:
            listed = confirmations.unconfirmed(conn, hosted.account_id, [a.forward for a in found])
            waiting = {mailbox_key(path) for path in listed}
            for row in rows:
                named = confirmations.addresses_of([row["forward"]])
                row["unconfirmed"] = [path.display() for path in named if mailbox_key(path) in waiting]
        return rows

    rows = read(config, ask)
    columns = ("id", "alias", "forward", "active", "unconfirmed")[: len(rows[0]) if rows else 4]
    listing(
        rows,
        columns,
        as_json=as_json,
        empty=f"No alias yet: forwarder alias add {domain} '*' you@example.com",
    )


@command(app, "ask")
def ask_for_confirmation(domain: str, config: Config = None, as_json: AsJson = False) -> None:
    """Write to unconfirmed destinations of a domain, if the configuration requires that they confirm.

    Saving an alias does so by itself; this is for aliases that are older than the setting, and for mail that got lost.
    """
    from api.asking import ask_owners
    from forwarder.store import aliases, confirmations

    def ask(conn: "Connection", settings: "Settings") -> tuple[list[str], list[str]]:
        if not settings.require_confirmed_destinations:
            raise Failure(
                "nobody need confirm anything; require_confirmed_destinations = true would have it so"
            )
        hosted = domain_named(conn, domain)
        found = aliases.list_aliases(conn, hosted.id)[0]
        asked = [path.display() for path in ask_owners(conn, settings, hosted, found, utc_now())]
        waiting = confirmations.unconfirmed(conn, hosted.account_id, [a.forward for a in found])
        return asked, [path.display() for path in waiting]

    asked, waiting = write(config, ask)

    def people(out: "Console") -> None:
        for address in waiting:
            out.print(
                f"{address}: {'asked now' if address in asked else 'asked before, or too many today'}",
                markup=False,
            )
        if not waiting:
            out.print("Every destination is confirmed.")

    answer({"asked": asked, "unconfirmed": waiting}, as_json=as_json, people=people)


@command(app, "remove")
def remove_alias(
    domain: str,
    pattern: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias as listed, or its id.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove an alias."""
    from forwarder.store import aliases

    def remove(conn: "Connection", _settings: "Settings") -> "tuple[str, Domain]":
        hosted = domain_named(conn, domain)
        found = alias_named(conn, hosted, pattern)
        aliases.remove(conn, hosted, found, utc_now())
        return found.pattern, hosted

    removed, hosted = write(config, remove)
    tell(
        {"removed": removed, "domain": hosted.name}, f"{removed}@{hosted.display} is removed", as_json=as_json
    )
