"""The shapes of answers: from what the store knows to what ImprovMX's v3 API shows. Pure.

The functions make the answers as plain mappings, which the models of ``answers`` describe in the OpenAPI document. Keys
are always all there: what is unknown is null, except where clients expect text (the company of an account), which is
empty.

Times are integers of milliseconds since 1970; logs show ``2020-01-25 12:19:09+0000`` unless the request asks for
milliseconds. ImprovMX's command line divides the times of domains and credentials by 1,000. Those of rules it takes for
seconds, so it is given seconds there.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

from forwarder.config import Plan
from forwarder.mail.aliases import place
from forwarder.mail.event import hosts
from forwarder.mail.ids import log_public_id
from forwarder.mail.pattern import expression_of
from forwarder.store.accounts import Account, ApiKey
from forwarder.store.aliases import Alias
from forwarder.store.credentials import Credential
from forwarder.store.domains import Domain
from forwarder.store.journal import Event, LogEntry

Json = Mapping[str, Any]
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def milliseconds(at: datetime) -> int:
    """Milliseconds since 1970."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def account(account: Account, plan: Plan) -> Json:
    """``GET /account``. There is no billing here: what belongs to it is empty."""
    return {
        "billing_email": None,
        "cancels_on": None,
        "card_brand": "",
        "company_details": "",
        "company_name": "",
        "company_vat": None,
        "country": "",
        "created": milliseconds(account.created_at),
        "email": account.email,
        "last4": "",
        "limits": limits(plan),
        "lock_reason": account.lock_reason,
        "locked": None if account.locked_at is None else True,  # clients decode it as a flag
        "password": True,
        "plan": {
            "aliases_limit": plan.aliases,
            "daily_quota": plan.daily_quota,
            "display": plan.display or account.plan.capitalize(),
            "domains_limit": plan.domains,
            "kind": account.plan,
            "name": account.plan,
            "price": plan.price,
            "yearly": plan.yearly,
        },
        "premium": plan.premium,
        "privacy_level": 1,
        "renew_date": None,
    }


def limits(plan: Plan) -> Json:
    """The numbers of a plan under the names of the documentation."""
    return {
        "aliases": plan.aliases,
        "daily_quota": plan.daily_quota,
        "daily_send": plan.daily_send,
        "domains": plan.domains,
        "ratelimit": plan.ratelimit,
        "redirections": plan.redirections,
        "subdomains": plan.subdomains,
        "api": plan.api,
        "credentials": plan.credentials,
        "destinations": plan.destinations,
        "daily_send_per_credential": plan.daily_send_per_credential,
    }


def api_key(key: ApiKey) -> Json:
    """A key, never its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "created": milliseconds(key.created_at),
        "last_used": None if key.last_used_at is None else milliseconds(key.last_used_at),
        "revoked": None if key.revoked_at is None else milliseconds(key.revoked_at),
    }


def domain(domain: Domain, aliases: Sequence[Alias]) -> Json:
    """A domain with its first aliases."""
    return {
        "active": domain.is_active,
        "domain": domain.name,
        "display": domain.display,
        "dkim_selector": domain.dkim_selector,
        "notification_email": domain.notification_email,
        "webhook": domain.webhook,
        "whitelabel": domain.whitelabel,
        "added": milliseconds(domain.added_at),
        "aliases": [alias(one) for one in aliases],
    }


def alias(alias: Alias) -> Json:
    """An alias; a disabled one also says so, and how it answers."""
    shown: dict[str, Any] = {
        "created": milliseconds(alias.created_at),
        "forward": alias.forward,
        "alias": alias.pattern,
        "id": alias.id,
    }
    if not alias.is_active:
        shown |= {"is_active": False, "when_disabled": None if alias.is_skipped else alias.when_disabled}
    return shown


def rule(alias: Alias, *, in_seconds: bool = False) -> Json:
    """An alias as a rule: ``regex`` when it was written as one, else ``alias``."""
    expression = expression_of(alias.pattern)
    config: dict[str, Any] = {"alias": alias.pattern}
    if expression is not None:
        config = {"regex": expression, "scopes": ["recipient"]}
    return {
        "id": str(alias.id),  # text: clients decode it so
        "type": "alias" if expression is None else "regex",
        "config": {**config, "forward": alias.forward},
        "rank": place(alias.id, alias.pattern, alias.rank),
        "active": alias.is_active,
        "created": milliseconds(alias.created_at) // (1000 if in_seconds else 1),
    }


def credential(credential: Credential) -> Json:
    """A credential, never its password."""
    return {
        "created": milliseconds(credential.created_at),
        "usage": credential.usage,
        "username": credential.username,
    }


def log(entry: LogEntry, *, as_milliseconds: bool = False) -> Json:
    """One processed mail with its events, the first event first."""
    return {
        "created": _time(entry.created_at, as_milliseconds=as_milliseconds),
        "created_raw": format_datetime(entry.created_at, usegmt=True),
        "events": [event(one, as_milliseconds=as_milliseconds) for one in entry.events],
        # The person is the one the mail was written to, under whichever of the two addresses.
        "forward": _mailbox(entry.forward_email, entry.recipient_name),
        "hostname": entry.hostname or "",
        "id": log_public_id(entry.id),
        "messageId": entry.message_id or "",
        "recipient": {"email": entry.recipient_email or "", "name": entry.recipient_name},
        "sender": {"email": entry.sender_email or "", "name": entry.sender_name},
        "subject": entry.subject or "",
        "transport": entry.transport.value,
        "url": None,
    }


def event(event: Event, *, as_milliseconds: bool = False) -> Json:
    """One step of a mail."""
    received, sent = hosts(event.status, event.local, event.server)
    return {
        "code": event.code,
        "created": _time(event.created_at, as_milliseconds=as_milliseconds),
        "id": event.id,
        "local": received or "",
        "message": event.message,
        "recipient": event.recipient,
        "server": sent or "",
        "status": event.status.value,
    }


def _mailbox(email: str | None, name: str | None) -> Json | None:
    return None if email is None else {"email": email, "name": name}


def _time(at: datetime, *, as_milliseconds: bool) -> str | int:
    # isoformat is many times as fast as strftime, and a page of logs has hundreds of times.
    return milliseconds(at) if as_milliseconds else at.isoformat(" ", "seconds").replace("+00:00", "+0000")
