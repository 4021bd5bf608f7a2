"""``forwarder domain rotate``: new DKIM keys for a domain, without a moment in which its mail does not verify.

The first call makes keys under selectors that were never used and shows their records; the old keys sign on. Each
further call looks whether the DNS has the records, as ``forwarder check`` does, the API's check, and the engine itself
from time to time: once all are there, the new keys sign. The old ones are gone then; their records stay for a week.

A call in that week begins nothing: whoever asks what has become of it would make new keys instead. ``--now`` does, and
waits for no record.
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import settings_of, vault_of, with_store
from forwarder.commands.answer import answer
from forwarder.commands.frame import AsJson, Config, Failure
from forwarder.commands.named import domain_named
from forwarder.commands.zone import KeysShown, key_records, other_keys, plain_record, print_records

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy import Connection

    from api.findings import Checked
    from forwarder.config import Settings
    from forwarder.mail.records import KeyRecord
    from forwarder.store.dkim_keys import DkimKey
    from forwarder.store.domains import Domain
    from forwarder.store.engine import Database
    from forwarder.store.vault import Vault


def rotate(
    name: str,
    at_once: Annotated[
        bool,
        typer.Option("--now", help="Sign with new keys at once, whatever the DNS has: the old have leaked."),
    ] = False,
    cname: Annotated[
        bool,
        typer.Option("--cname", help="The records as CNAMEs to names below ours, and what to put there."),
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """New DKIM keys for a domain, that sign once their records are in the DNS; again: look whether they are."""
    from forwarder.mail.records import keys_to_publish, zone_of_keys

    settings = settings_of(config)
    vault = vault_of(settings)

    async def work(
        database: "Database", settings: "Settings"
    ) -> "tuple[Domain, Checked | None, list[KeyRecord], KeysShown]":
        checked = await _turn(database, settings, vault, name, at_once=at_once)
        return await database.read(lambda conn: _state(conn, settings, checked))

    def _state(
        conn: "Connection", settings: "Settings", checked: "Checked | None"
    ) -> "tuple[Domain, Checked | None, list[KeyRecord], KeysShown]":
        from forwarder.store import dkim_keys

        found = domain_named(conn, name)
        signing = key_records(dkim_keys.list_keys(conn, found.id))
        return found, checked, signing, other_keys(conn, found, settings, cname=cname)

    found, checked, signing, others = with_store(config, work)
    selectors = [key.selector for key in signing]
    missing = [record.advice for record in checked.waiting if record.advice] if checked else []
    records = keys_to_publish(found.name, settings.hostname, signing, as_txt=not cname)
    ours = zone_of_keys(found.name, settings.hostname, signing) if cname else ()

    def people(out: "Console") -> None:
        out.print(f"{found.display} signs with {', '.join(selectors)}.\n", markup=False)
        if at_once:
            print_records(out, "Nothing is submitted as the domain until these records are found", records)
            if ours:
                print_records(out, "In the zone of this server, where those CNAMEs lead", ours)
        others.print(out)
        for advice in missing:
            out.print(advice, markup=False)
        if others.waiting:
            again = f"forwarder domain rotate {found.display}"
            out.print(
                f"Then: {again}, which looks for them, as the engine does from time to time.", markup=False
            )

    value = {
        "domain": found.name,
        "signs_with": selectors,
        "records": [plain_record(record) for record in records],
        "key_zone": [plain_record(record) for record in ours],
        "missing": missing,
    }
    answer(value | others.plain(), as_json=as_json, people=people)


async def _turn(
    database: "Database", settings: "Settings", vault: "Vault", name: str, *, at_once: bool
) -> "Checked | None":
    """Make keys, look for those that wait, or let these sign; what the look found, where there was one."""
    from forwarder.store import dkim_keys

    def ask(conn: "Connection") -> "tuple[Domain, list[DkimKey], list[DkimKey]]":
        found = domain_named(conn, name)
        live = dkim_keys.live_keys(conn, found.id)
        return found, list(live), list(dkim_keys.retired_keys(conn, found.id))

    found, live, retired = await database.read(ask)
    waiting = [key for key in live if key.is_waiting]
    now = utc_now()
    since = now - dkim_keys.UNDER_WAY
    if not waiting and (at_once or not any(key.retired_at and key.retired_at > since for key in retired)):
        taken = [key.selector for key in (*live, *retired)]
        waiting = await _propose(database, settings, vault, found, taken)
    elif waiting and not at_once:
        return await _look(database, settings, found, live)
    if at_once:
        await database.write(lambda conn: dkim_keys.adopt(conn, found, waiting, now, published=False))
    return None


async def _propose(
    database: "Database", settings: "Settings", vault: "Vault", found: "Domain", taken: list[str]
) -> "list[DkimKey]":
    from forwarder.store import dkim_keys
    from forwarder.store.vault import make_keys

    now = utc_now()
    selector = dkim_keys.fresh_selector(settings.dkim.selector, now.date(), taken)
    if selector is None:
        raise Failure(f"{found.display} had too many keys today; try again tomorrow")
    keys = make_keys(vault, found.name, selector)
    return list(await database.write(partial(dkim_keys.propose, domain=found, keys=keys, now=now)))


async def _look(
    database: "Database", settings: "Settings", found: "Domain", live: "list[DkimKey]"
) -> "Checked":
    """Ask the DNS and write it down, by which keys whose records are there sign from now on."""
    from api.findings import look, write_down
    from forwarder.net.dns import Resolver

    resolver = Resolver(settings.dns.nameservers, deadline=settings.dns.timeout)
    try:
        checked = await look(resolver, found.name, settings, live)
    finally:
        await resolver.close()
    await write_down(database, found, checked, utc_now())
    return checked
