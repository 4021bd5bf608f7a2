"""How commands find the account, the domain and the alias that they are told, and say so when there is none."""

from typing import TYPE_CHECKING

from forwarder.commands.frame import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from forwarder.config import Plan, Settings
    from forwarder.store.accounts import Account
    from forwarder.store.aliases import Alias
    from forwarder.store.domains import Domain


def account_named(conn: "Connection", email: str) -> "Account":
    """The account of that e-mail address, or a Failure."""
    from forwarder.mail.address import parse_address
    from forwarder.store import accounts

    found = accounts.by_email(conn, parse_address(email).display())
    if found is None:
        raise Failure(f"there is no account {email}; make it with: forwarder account create {email}")
    return found


def domain_name(text: str) -> str:
    """The name of a domain as it is stored; with a dot at its end it may have been copied from ``domain dns``."""
    from forwarder.mail.address import parse_domain

    return parse_domain(text.removesuffix("."))


def domain_named(conn: "Connection", name: str) -> "Domain":
    """The hosted domain of that name, or a Failure."""
    from forwarder.store import domains

    found = domains.get(conn, domain_name(name))
    if found is None:
        raise Failure(f"{name} is not hosted here; forwarder domain list shows what is")
    return found


def alias_named(conn: "Connection", domain: "Domain", name: str) -> "Alias":
    """The alias of the domain that has that name or id, or a Failure."""
    from forwarder.store import aliases

    found = aliases.find(conn, domain.id, name)
    if found is None:
        shown = domain.display
        raise Failure(f"{shown} has no alias {name}; forwarder alias list {shown} shows what it has")
    return found


def owner_of(conn: "Connection", domain: "Domain", settings: "Settings") -> tuple["Account", "Plan"]:
    """The domain's account and its limits."""
    from forwarder.store import accounts

    owner = accounts.get(conn, domain.account_id)
    if owner is None:
        raise Failure(f"the account of {domain.name} is gone")
    return owner, settings.plan(owner.plan)
