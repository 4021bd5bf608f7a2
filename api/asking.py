"""Asks the owners of addresses that an alias leads to whether they want the mail, where the configuration wants that.

``ask_owners`` is called in the transaction that saves the alias: the alias, the request and the mail that carries it
are there together or not at all. Where ``require_confirmed_destinations`` is off it does nothing. Who is asked, and
how often at most, is ``store.confirmations``'; addresses made by captures cannot be asked before mail comes for them.

The mail has the null reverse-path, so that it never makes a bounce, and nothing in it was written by a user but the
names of the domain and of the address. Limit: a link stands in the queue until its mail is delivered.
"""

import os
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from api.letter import letter
from forwarder.config import Settings
from forwarder.mail.address import Path
from forwarder.mail.ids import IdSource
from forwarder.store import confirmations
from forwarder.store.aliases import Alias
from forwarder.store.confirmations import VALID_FOR, Asked
from forwarder.store.domains import Domain
from forwarder.store.enqueueing import Enqueueing
from forwarder.store.records import NewMessage


def public_url(settings: Settings) -> str:
    """How people reach this API, without a slash at its end."""
    return settings.api.public_url.rstrip("/") or f"http://{settings.api.listen}"


def ask_owners(
    conn: Connection, settings: Settings, domain: Domain, saved: Iterable[Alias], now: datetime
) -> Sequence[Path]:
    """Queue a mail to each address of these aliases whose owner is to be asked now; those addresses."""
    if not settings.require_confirmed_destinations:
        return ()
    asked = confirmations.ask(conn, domain, [alias.forward for alias in saved], now)
    ids = IdSource(clock=lambda: now, entropy=os.urandom)
    # Nothing here is leased, so that no worker's name is needed; a domain's webhook hears nothing of it.
    enqueueing = Enqueueing(worker_id="", local_name=settings.hostname)
    if asked:
        enqueueing.apply(conn, [_mail(settings, domain, one, ids, now) for one in asked])
    return [one.address for one in asked]


def _mail(settings: Settings, domain: Domain, asked: Asked, ids: IdSource, now: datetime) -> NewMessage:
    to = asked.address
    lines = [
        "Hello,",
        "",
        f"whoever looks after {domain.display} wants mail for that domain to be forwarded to",
        f"{to.display()}. If that is what you want too, open this page and press its button:",
        "",
        f"{public_url(settings)}/confirm/{asked.token}",
        "",
        f"The link works once, for {VALID_FOR.days} days. If you do nothing, nothing is forwarded to you.",
        "",
        f"This mail was written by the mail server {settings.hostname}.",
    ]
    subject = f"May mail for {domain.name} be forwarded to you?"
    return letter(lines, to=to, subject=subject, hostname=settings.hostname, ids=ids, now=now)
