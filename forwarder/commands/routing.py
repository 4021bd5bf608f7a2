"""``forwarder route``: which alias answers for an address, where it leads, and why. Nothing is sent.

It asks in the order in which the MX does (``forwarder.inbound.resolution``). An SRS address of this server, and its
postmaster, lead to another address first. That one is looked up like any other; where it is not hosted here, the mail
goes there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import with_store
from forwarder.commands.answer import answer, table
from forwarder.commands.frame import AsJson, Config

if TYPE_CHECKING:
    from rich.console import Console

    from forwarder.config import Settings
    from forwarder.mail.address import Path
    from forwarder.mail.rules import Expansion, Target
    from forwarder.mail.srs import SrsFault
    from forwarder.store.engine import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class OfThisHost:
    """An address of this server itself."""

    what: str
    leads_to: "Path | SrsFault"


def route(
    address: Annotated[str, typer.Argument(help="The address that somebody would write to.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Explain where mail for an address would go."""
    from forwarder.mail.address import parse_forward_path
    from forwarder.mail.postmaster import Postmaster
    from forwarder.mail.srs import SrsFault
    from forwarder.store.directory import Directory

    recipient = parse_forward_path(address, smtputf8=True)

    async def ask(database: "Database", settings: "Settings") -> Any:
        own = _of_this_host(recipient, settings)
        asked = recipient if own is None else own.leads_to
        if isinstance(asked, SrsFault):
            return _refused(recipient, asked)
        wanted = settings.require_confirmed_destinations
        postmaster = Postmaster.of(settings.hostname, settings.postmaster)
        directory = Directory(database, require_confirmed=wanted, postmaster=postmaster)
        found = await (directory.resolve(asked) if own is None else directory.resolve_ours(asked))
        return _explained(recipient, own, found)

    value = with_store(config, ask)

    def people(out: "Console") -> None:
        for step in value["steps"]:
            out.print(f"  {step}", markup=False)
        out.print()
        columns = ("goes to", "by the alias", "of")
        rows = [(t["destination"], t["alias"], t["domain"]) for t in value["destinations"]]
        table(out, columns, rows, empty=f"Nothing would be sent: {value['why']}")

    shown = {key: part for key, part in value.items() if key != "why"}
    answer(shown, as_json=as_json, people=people)


def _of_this_host(recipient: "Path", settings: "Settings") -> OfThisHost | None:
    """What the address is to this server itself; None when it is somebody's like any other."""
    from forwarder.keyring import open_keyring
    from forwarder.mail.postmaster import Postmaster
    from forwarder.mail.srs import Srs, SrsFault

    postmaster = Postmaster.of(settings.hostname, settings.postmaster)
    if postmaster is not None and postmaster.is_at(recipient):
        return OfThisHost(what="the postmaster of this server", leads_to=postmaster.leads_to)
    if recipient.domain == settings.srs.domain:
        # Only here: no other address needs the keys, and it may be asked about where they are not.
        secrets = open_keyring(settings).srs_secrets
        srs = Srs(secrets, domain=settings.srs.domain, max_age_days=settings.srs.max_age_days)
        sender = srs.reverse(recipient, now=utc_now())
        if sender is not SrsFault.NOT_SRS:
            return OfThisHost(what="an SRS address of this server", leads_to=sender)
    return None


def _refused(recipient: "Path", fault: "SrsFault") -> dict[str, Any]:
    return {
        "recipient": recipient.display(),
        "accepted": False,
        "trouble": fault.name,
        "destinations": [],
        "unconfirmed": [],
        "steps": [f"{recipient.display()}: {fault}"],
        "why": str(fault),
    }


def _explained(recipient: "Path", own: OfThisHost | None, found: "Expansion") -> dict[str, Any]:
    """What the MX would do with the recipient, and why."""
    from forwarder.mail.destination import identity
    from forwarder.mail.rules import Trouble

    trouble = found.trouble
    steps = [str(step) for step in found.steps]
    # Where aliases of two accounts lead to one, it gets one copy.
    ends: dict[tuple[str, str], Target] = {}
    for target in found.targets:
        ends.setdefault(identity(target.destination), target)
    targets: list[dict[str, str | None]] = [
        {"destination": str(end.destination), "alias": end.alias, "domain": end.domain}
        for end in ends.values()
    ]
    if own is not None and trouble is Trouble.NOT_HOSTED:
        # Not a refusal: mail for this server's own addresses goes wherever they lead.
        trouble = None
        targets = [{"destination": str(found.recipient), "alias": None, "domain": None}]
        steps = [f"{found.recipient.display()}: it is delivered there"]
    if own is not None:
        steps.insert(0, f"{recipient.display()}: {own.what}; it leads to {found.recipient.display()}")
    return {
        "recipient": recipient.display(),
        "accepted": bool(targets) or trouble is Trouble.DISCARD,
        "trouble": None if trouble is None else trouble.name,
        "destinations": targets,
        "unconfirmed": list(
            dict.fromkeys(
                step.address.display() for step in found.dead_ends if step.trouble is Trouble.UNCONFIRMED
            )
        ),
        "steps": steps,
        "why": str(trouble or "no destination"),
    }
