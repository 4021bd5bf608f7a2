"""``forwarder credential``: who may send as a domain.

Names and passwords are judged as the API judges them. A password is given, asked for when a person is there, or made
and shown once; only its hash is stored. Changes are in force at once in every running process, in open sessions too.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import read, settings_of, write
from forwarder.commands.answer import answer, listing, tell
from forwarder.commands.frame import AsJson, Config, Failure, command
from forwarder.commands.named import domain_named, owner_of

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.domains import Domain

app = typer.Typer(no_args_is_help=True, help="Credentials: who may send as a domain.")

Username = Annotated[str, typer.Argument(metavar="USERNAME", help="As forwarder credential list shows it.")]
Password = Annotated[
    str,
    typer.Option(help="6 to 256 characters; asked for when a person is there, else made.", metavar="TEXT"),
]


@command(app, "add")
def add_credential(
    domain: str,
    username: Annotated[str, typer.Argument(help="The part before the @ of the address to send as.")],
    password: Password = "",
    limited: Annotated[bool, typer.Option(help="May send as its own address only.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Add a log-in for sending as DOMAIN."""
    from forwarder.store import credentials
    from forwarder.store.passwords import hash_password

    read(config, lambda conn, _: domain_named(conn, domain))  # mistakes come before questions
    name = _checked("username", username)
    password, made_here = _chosen(password, as_json=as_json)
    digest = hash_password(password)

    def add(conn: "Connection", settings: "Settings") -> str:
        hosted = domain_named(conn, domain)
        _, plan = owner_of(conn, hosted, settings)
        made = credentials.add(
            conn, hosted, name, digest, utc_now(), is_limited=limited, limit=plan.credentials
        )
        return _login(made.username, hosted)

    _tell(write(config, add), password if made_here else None, settings_of(config), as_json=as_json)


@command(app, "list")
def list_credentials(domain: str, config: Config = None, as_json: AsJson = False) -> None:
    """List the log-ins of a domain, never their passwords."""
    from forwarder.store import credentials

    found = read(config, lambda conn, _: credentials.list_credentials(conn, domain_named(conn, domain).id))
    rows = [
        {
            "username": credential.username,
            "is_limited": credential.is_limited,
            "usage": credential.usage,
            "created_at": credential.created_at,
            "changed_at": credential.changed_at,
            "last_used_at": credential.last_used_at,
        }
        for credential in found
    ]
    columns = ("username", "own address only", "messages", "made", "changed", "last used")
    listing(
        rows, columns, as_json=as_json, empty=f"No credential yet: forwarder credential add {domain} richard"
    )


@command(app, "password")
def set_password(
    domain: str, username: Username, password: Password = "", config: Config = None, as_json: AsJson = False
) -> None:
    """Give a log-in another password; the one before ends at once."""
    from forwarder.store import credentials
    from forwarder.store.passwords import hash_password

    read(config, lambda conn, _: _known(conn, domain_named(conn, domain), username))
    password, made_here = _chosen(password, as_json=as_json)
    digest = hash_password(password)

    def change(conn: "Connection", _settings: "Settings") -> str:
        hosted = domain_named(conn, domain)
        name = _known(conn, hosted, username)
        credentials.update_credential(conn, hosted, name, utc_now(), password_hash=digest)
        return _login(name, hosted)

    _tell(write(config, change), password if made_here else None, settings_of(config), as_json=as_json)


@command(app, "remove")
def remove_credential(
    domain: str, username: Username, config: Config = None, as_json: AsJson = False
) -> None:
    """Remove a log-in; its open sessions end."""
    from forwarder.store import credentials

    def remove(conn: "Connection", _settings: "Settings") -> "tuple[str, Domain]":
        hosted = domain_named(conn, domain)
        name = _known(conn, hosted, username)
        credentials.remove(conn, hosted, name, utc_now())
        return name, hosted

    removed, hosted = write(config, remove)
    tell(
        {"removed": removed, "domain": hosted.name}, f"{removed}@{hosted.display} is removed", as_json=as_json
    )


def _known(conn: "Connection", hosted: "Domain", username: str) -> str:
    """The name as it is stored, or a Failure."""
    from forwarder.mail.address import fold
    from forwarder.store import credentials

    found = credentials.get(conn, hosted.id, fold(username))
    if found is None:
        raise Failure(
            f"{hosted.display} has no credential {username}; "
            f"forwarder credential list {hosted.display} shows what it has"
        )
    return found.username


def _chosen(given: str, *, as_json: bool) -> tuple[str, bool]:
    """The password, checked, and whether it was made here."""
    import secrets

    if not given and sys.stdin.isatty() and not as_json:
        given = _asked()
    if not given:
        return secrets.token_urlsafe(18), True
    return _checked("password", given), False


def _asked() -> str:
    """What a person types: nothing, or the same twice."""
    while given := typer.prompt(
        "Password (empty: make one)", default="", hide_input=True, show_default=False
    ):
        if typer.prompt("Repeat for confirmation", default="", hide_input=True, show_default=False) == given:
            break
        typer.echo("The two do not match.", err=True)
    return str(given)


def _checked(field: Literal["username", "password"], text: str) -> str:
    """The text as the API takes it for that field of a credential, or a Failure."""
    from api.improvmx.requests import NewCredential
    from api.validation import validate

    others = {"username": "richard", "password": "secret"}
    form = validate(NewCredential, others | {field: text})
    if isinstance(form, dict):
        raise Failure(f"this {field} cannot be: {' '.join(form[field])}")
    return form.username if field == "username" else form.password


def _login(username: str, hosted: "Domain") -> str:
    from forwarder.mail.address import Path

    return Path(local=username, domain=hosted.name).wire()


def _tell(login: str, made: str | None, settings: "Settings", *, as_json: bool) -> None:
    """The log-in, and its password if it was made here."""

    def people(out: "Console") -> None:
        from rich.markup import escape

        out.print(
            f"Log in as [bold]{escape(login)}[/]" + (f" with the password [bold]{made}[/]" if made else "")
        )
        out.print(f"Server {settings.hostname}: port 587 with STARTTLS, or port 465 with TLS.")
        if not settings.tls.configured:
            out.print(
                "It does not listen there without a certificate: set [tls] certificate and key.", markup=False
            )

    value = {"login": login} | ({"password": made} if made else {})
    name, _, domain = login.rpartition("@")
    lost = f"nobody has seen the password; make another: forwarder credential password {domain} {name}"
    answer(value, as_json=as_json, people=people, lost=lost if made else "")
