"""``forwarder domain``: the domains hosted here and the DNS records they need."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import read, settings_of, vault_of, write
from forwarder.commands.answer import answer, table, tell
from forwarder.commands.frame import AsJson, Config, Failure, command, confirm
from forwarder.commands.named import account_named, domain_name, domain_named, owner_of
from forwarder.commands.server_dns import server_records
from forwarder.commands.zone import KeysShown, key_records, other_keys, plain_record, print_records

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.domains import Domain

app = typer.Typer(no_args_is_help=True, help="Domains: add, list, show, the DNS records to paste, remove.")


@command(app, "add")
def add_domain(
    name: Annotated[str, typer.Argument(help="example.com")],
    account: Annotated[
        str, typer.Option("--account", help="The e-mail address of the account.", metavar="EMAIL")
    ],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Host a domain. Its DKIM keys are made here."""
    from forwarder.mail.address import display_domain
    from forwarder.store import dkim_keys, domains
    from forwarder.store.vault import make_keys

    ascii_name = domain_name(name)
    if "." not in ascii_name:
        raise Failure(f"{name} is no domain; one has at least two parts, such as example.com")
    settings = settings_of(config)
    if (own := settings.own_name(ascii_name)) is not None:
        raise Failure(
            f"{name} cannot be hosted: {own} is a name of this server itself "
            "(hostname, [srs] domain or [dkim] domain); host a domain that is not one and stands below none"
        )
    keys = make_keys(vault_of(settings), ascii_name, settings.dkim.selector)

    def add(conn: "Connection", _settings: "Settings") -> "Domain":
        owner = account_named(conn, account)
        plan = settings.plan(owner.plan)
        made = domains.add(
            conn,
            owner.id,
            ascii_name,
            display_domain(ascii_name),
            utc_now(),
            dkim_selector=settings.dkim.selector,
            limit=plan.domains,
        )
        for key in keys:
            dkim_keys.add(conn, made, key, utc_now())
        return made

    made = write(config, add)

    def people(out: "Console") -> None:
        out.print(f"[bold]{made.display}[/] is hosted here. Next:\n")
        out.print(f"  forwarder domain dns {made.display}     the DNS records to paste")
        out.print(f"  forwarder alias add {made.display} '*' {account}     where its mail goes", markup=False)

    answer(_plain(made), as_json=as_json, people=people)


@command(app, "list")
def list_domains(config: Config = None, as_json: AsJson = False) -> None:
    """List all domains."""
    from forwarder.store import domains

    found = read(config, lambda conn, _: domains.list_domains(conn)[0])
    rows = [_plain(domain) for domain in found]
    answer(
        rows,
        as_json=as_json,
        people=lambda out: table(
            out,
            ("domain", "MX is right", "may send", "added", "DNS checked"),
            [tuple(row.values())[1:] for row in rows],
            empty="No domain yet: forwarder domain add example.com --account you@example.com",
        ),
    )


@command(app, "show")
def show_domain(name: str, config: Config = None, as_json: AsJson = False) -> None:
    """Show a domain with its account, aliases and credentials."""
    from forwarder.store import aliases, credentials

    def ask(conn: "Connection", settings: "Settings") -> dict[str, Any]:
        domain = domain_named(conn, name)
        owner, _ = owner_of(conn, domain, settings)
        listed = aliases.list_aliases(conn, domain.id)[0]
        return _plain(domain) | {
            "account": owner.email,
            "webhook": domain.webhook,
            "notification_email": domain.notification_email,
            "aliases": [{"alias": a.pattern, "forward": a.forward, "is_active": a.is_active} for a in listed],
            "credentials": [c.username for c in credentials.list_credentials(conn, domain.id)],
        }

    found = read(config, ask)

    def people(out: "Console") -> None:
        single = [(key, value) for key, value in found.items() if not isinstance(value, list)]
        table(out, ("", ""), single, empty="")
        out.print("\n[bold]Aliases[/]")
        table(
            out, ("alias", "forward", "active"), [tuple(a.values()) for a in found["aliases"]], empty="none"
        )
        out.print("\n[bold]Credentials[/]")
        table(out, ("username",), [(c,) for c in found["credentials"]], empty="none")

    answer(found, as_json=as_json, people=people)


@command(app, "dns")
def show_records(
    name: str,
    cname: Annotated[
        bool, typer.Option("--cname", help="DKIM as CNAMEs to names below ours, and what to put there.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Print the DNS records to paste: MX, SPF, DKIM, DMARC, and what the server itself needs."""
    from forwarder.keyring import open_keyring
    from forwarder.mail.records import records_to_publish, zone_of_keys
    from forwarder.store import dkim_keys

    settings = settings_of(config)

    def ask(conn: "Connection", settings: "Settings") -> tuple[Any, Any, KeysShown]:
        domain = domain_named(conn, name)
        keys = key_records(dkim_keys.list_keys(conn, domain.id))
        records = records_to_publish(
            domain.name, settings.hostname, keys, as_txt=not cname, spf_of=settings.srs.domain
        )
        ours = zone_of_keys(domain.name, settings.hostname, keys) if cname else ()
        return records, ours, other_keys(conn, domain, settings, cname=cname)

    records, ours, others = read(config, ask)
    own = server_records(settings, open_keyring(settings).service)

    def people(out: "Console") -> None:
        print_records(out, f"In the zone of {name}", records)
        if ours:
            print_records(out, "In the zone of this server, where those CNAMEs lead", ours)
        others.print(out)
        print_records(out, "Once for this server, whatever it hosts", own)
        out.print("And the reverse name (PTR) of each of its addresses, set where the addresses come from:")
        out.print(f"  {settings.hostname}\n")
        out.print("Another SPF record is there already? Keep it, and put the include into it before its all.")
        out.print("Then: forwarder check")

    value = {
        "records": [plain_record(r) for r in records],
        "key_zone": [plain_record(r) for r in ours],
        "server": [plain_record(r) for r in own],
    }
    answer(value | others.plain(), as_json=as_json, people=people)


@command(app, "remove")
def remove_domain(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Stop hosting a domain; its aliases, credentials and keys go, its log stays until it is too old."""
    from forwarder.store import domains

    if not (yes or as_json):
        read(config, lambda conn, _: domain_named(conn, name))  # mistakes come before questions
    question = f"Remove {name} with its aliases, credentials and DKIM keys?"
    confirm(question, yes=yes, as_json=as_json)

    def remove(conn: "Connection", _settings: "Settings") -> str:
        domain = domain_named(conn, name)
        domains.remove(conn, domain, utc_now())
        return domain.name

    removed = write(config, remove)
    tell({"removed": removed}, f"{removed} is removed", as_json=as_json)


def _plain(domain: "Domain") -> dict[str, Any]:
    return {
        "domain": domain.name,
        "display": domain.display,
        "is_active": domain.is_active,
        "may_send": domain.sending_checked_at is not None,
        "added_at": domain.added_at,
        "checked_at": domain.checked_at,
    }
