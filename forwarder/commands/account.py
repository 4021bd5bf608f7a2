"""``forwarder account``: who owns domains, with which limits, and the API keys.

Keys are stored as hashes: a key is shown when it is made and never again, so one that is lost or known to others is
replaced (``key add``) and voided (``key revoke``). A locked account's keys only read, and nobody sends with its
credentials; its mail is forwarded as before. Changes are in force at once in every running process, since each request
and each log-in is looked up in the store; only another plan's daily quota may take a minute.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import read, write
from forwarder.commands.answer import answer, listing, tell
from forwarder.commands.frame import AsJson, Config, Failure, command
from forwarder.commands.named import account_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.accounts import ApiKey

LONGEST_REASON = 200  # characters

app = typer.Typer(no_args_is_help=True, help="Accounts: create, list, plan, lock, unlock; their API keys.")
keys = typer.Typer(no_args_is_help=True, help="API keys of an account: add, list, revoke.")
app.add_typer(keys, name="key")

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="The address of the account.")]


@command(app, "create")
def create_account(
    email: Annotated[str, typer.Argument(help="The address of the person.")],
    plan: Annotated[str, typer.Option(help="The named set of limits in [plans].")] = "default",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Create an account and print its API key, once."""
    from forwarder.mail.address import parse_address
    from forwarder.store import accounts

    address = parse_address(email).display()
    if not {",", "$"}.isdisjoint(address):
        raise Failure(
            "an account's address cannot hold a comma or $: the first alias of a new domain leads to it"
        )
    key = accounts.new_key()

    def create(conn: "Connection", settings: "Settings") -> None:
        _check_plan(plan, settings)
        made = accounts.create(conn, address, plan, utc_now())
        accounts.add_key(conn, made.id, "first", key.digest, key.prefix, utc_now())

    write(config, create)

    def people(out: "Console") -> None:
        from rich.markup import escape

        out.print(
            f"Account [bold]{escape(address)}[/] is made. Its API key, shown this once:\n\n"
            f"  [bold]{key.secret}[/]\n"
        )
        out.print(f"Next: forwarder domain add example.com --account {address}", markup=False)

    lost = f"nobody has seen the key of {address}; make another: forwarder account key add {address}"
    answer({"email": address, "api_key": key.secret}, as_json=as_json, people=people, lost=lost)


@command(app, "list")
def list_accounts(config: Config = None, as_json: AsJson = False) -> None:
    """List all accounts."""
    from forwarder.store import accounts

    found = read(config, lambda conn, _: accounts.list_accounts(conn))
    rows = [
        {
            "email": a.email,
            "plan": a.plan,
            "created_at": a.created_at,
            "locked_at": a.locked_at,
            "lock_reason": a.lock_reason,
        }
        for a in found
    ]
    columns = ("email", "plan", "created", "locked", "why")
    listing(rows, columns, as_json=as_json, empty="No account yet: forwarder account create you@example.com")


@command(app, "plan")
def set_plan(
    email: Email,
    plan: Annotated[str, typer.Argument(metavar="NAME", help="The named set of limits in [plans].")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give an account other limits. What it has beyond them stays; it gets no more."""
    from forwarder.store import accounts

    def change(conn: "Connection", settings: "Settings") -> str:
        _check_plan(plan, settings)
        owner = account_named(conn, email)
        accounts.set_plan(conn, owner.id, plan)
        return owner.email

    changed = write(config, change)
    tell({"email": changed, "plan": plan}, f"{changed} has the plan {plan}", as_json=as_json)


@command(app, "lock")
def lock_account(
    email: Email,
    reason: Annotated[str, typer.Option(help="Shown to the owner by the API.", metavar="TEXT")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Lock an account: its API keys only read, and nobody sends with its credentials. Its mail is still forwarded."""
    from forwarder.store import accounts

    reason = reason.strip().rstrip(".")
    if not reason.isprintable() or len(reason) > LONGEST_REASON:
        raise Failure(f"the reason is one line of at most {LONGEST_REASON} characters", status=2)

    def lock(conn: "Connection", _settings: "Settings") -> Any:
        owner = account_named(conn, email)
        since = owner.locked_at or utc_now()
        accounts.set_lock(conn, owner.id, since, reason or None)
        return {"email": owner.email, "locked_at": since, "lock_reason": reason or None}

    locked = write(config, lock)
    tell(locked, f"{locked['email']} is locked", as_json=as_json)


@command(app, "unlock")
def unlock_account(email: Email, config: Config = None, as_json: AsJson = False) -> None:
    """Unlock an account."""
    from forwarder.store import accounts

    def unlock(conn: "Connection", _settings: "Settings") -> str:
        owner = account_named(conn, email)
        accounts.lift_lock(conn, owner.id)
        return owner.email

    unlocked = write(config, unlock)
    tell({"email": unlocked, "locked_at": None}, f"{unlocked} is not locked", as_json=as_json)


@command(keys, "add")
def add_key(
    email: Email,
    name: Annotated[
        str, typer.Option(help="What the list calls it; else its beginning.", metavar="TEXT")
    ] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a further API key and print it, once."""
    from forwarder.store import accounts

    new = accounts.new_key()
    name = _key_name(name.strip() or new.prefix)

    def add(conn: "Connection", settings: "Settings") -> "tuple[str, ApiKey]":
        owner = account_named(conn, email)
        limit = settings.plan(owner.plan).api
        made = accounts.add_key(conn, owner.id, name, new.digest, new.prefix, utc_now(), limit=limit)
        return owner.email, made

    owner, made = write(config, add)

    def people(out: "Console") -> None:
        out.print(f"A further API key of {owner}, shown this once:\n", markup=False)
        out.print(f"  [bold]{new.secret}[/]\n")
        out.print(
            f"To void one that is lost or leaked: forwarder account key revoke {owner} KEY", markup=False
        )

    value = {"email": owner, "id": made.id, "name": made.name, "api_key": new.secret}
    lost = (
        f"nobody has seen this key; void it, and make another: forwarder account key revoke {owner} {made.id}"
    )
    answer(value, as_json=as_json, people=people, lost=lost)


@command(keys, "list")
def list_keys(email: Email, config: Config = None, as_json: AsJson = False) -> None:
    """List the API keys of an account, those revoked last among them; never the keys themselves."""
    from forwarder.store import accounts

    found = read(config, lambda conn, _: accounts.list_keys(conn, account_named(conn, email).id))
    rows = [
        {
            "id": key.id,
            "name": key.name,
            "prefix": key.prefix,
            "created_at": key.created_at,
            "last_used_at": key.last_used_at,
            "revoked_at": key.revoked_at,
        }
        for key in found
    ]
    columns = ("id", "name", "begins with", "made", "last used", "revoked")
    listing(rows, columns, as_json=as_json, empty=f"No key yet: forwarder account key add {email}")


@command(keys, "revoke")
def revoke_key(
    email: Email,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, name or beginning, as listed.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Void an API key, from now on and for good."""
    from forwarder.store import accounts

    def revoke(conn: "Connection", _settings: "Settings") -> "ApiKey":
        owner = account_named(conn, email)
        found = _key_called(key, accounts.list_keys(conn, owner.id), owner.email)
        accounts.revoke_key(conn, owner.id, found.id, utc_now())
        return found

    revoked = write(config, revoke)
    tell(
        {"revoked": revoked.id, "name": revoked.name, "prefix": revoked.prefix},
        f"the key {revoked.name} ({revoked.prefix}…) is revoked",
        as_json=as_json,
    )


def _key_called(wanted: str, known: "Sequence[ApiKey]", email: str) -> "ApiKey":
    """The one key in force that ``wanted`` means; a Failure when it is none, or more than one."""
    in_force = [key for key in known if key.revoked_at is None]
    found = [key for key in in_force if wanted == str(key.id)]
    found = found or [key for key in in_force if wanted in (key.name, key.prefix)]
    if not found:
        raise Failure(
            f"{email} has no key {wanted} in force; forwarder account key list {email} shows its keys"
        )
    if len(found) > 1:
        ids = " or ".join(str(key.id) for key in found)
        raise Failure(f"{wanted} means several keys; write {ids}")
    return found[0]


def _key_name(text: str) -> str:
    """The name, within the bounds that the API sets."""
    from api.improvmx.requests import NewApiKey
    from api.validation import validate

    form = validate(NewApiKey, {"name": text})
    if isinstance(form, dict):
        raise Failure(f"the name of a key: {' '.join(form['name'])}")
    return form.name


def _check_plan(plan: str, settings: "Settings") -> None:
    if plan not in settings.plans:
        raise Failure(f"there is no plan {plan!r}; the configuration has {', '.join(settings.plans)}")
