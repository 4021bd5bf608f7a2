"""``forwarder route``: which alias answers for an address, where it leads, and why. Nothing is sent."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.commands.frame import AsJson, Config, answer, now, table, with_store

if TYPE_CHECKING:
    from rich.console import Console

    from forwarder.config import Settings
    from forwarder.store.engine import Database


def route(
    address: Annotated[str, typer.Argument(help="The address that somebody would write to.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Explain where mail for an address would go."""
    from forwarder.mail.address import parse_address
    from forwarder.mail.rules import Trouble
    from forwarder.store.directory import Directory

    recipient = parse_address(address)

    async def ask(database: "Database", settings: "Settings") -> Any:
        wanted = settings.require_confirmed_destinations
        return await Directory(database, clock=now, require_confirmed=wanted).resolve(recipient)

    found = with_store(config, ask)
    targets = [
        {"destination": str(t.destination), "alias": t.alias, "domain": t.domain} for t in found.matches
    ]
    trouble = None if found.trouble is None else found.trouble.name
    value = {
        "recipient": recipient.display(),
        "accepted": bool(found.matches) or trouble == "DISCARD",
        "trouble": trouble,
        "destinations": targets,
        "unconfirmed": [
            step.address.display() for step in found.dead_ends if step.trouble is Trouble.UNCONFIRMED
        ],
        "steps": [str(step) for step in found.steps],
    }

    def people(out: "Console") -> None:
        for step in found.steps:
            out.print(f"  {step}", markup=False)
        out.print()
        columns = ("goes to", "by the alias", "of")
        rows = [(t["destination"], t["alias"], t["domain"]) for t in targets]
        table(out, columns, rows, empty=f"Nothing would be sent: {found.trouble or 'no destination'}")

    answer(value, as_json=as_json, people=people)
