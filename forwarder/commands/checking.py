"""``forwarder check``: configuration, keys, database, ports, and the DNS of the server and of every domain.

Each line is one question with its answer and, where it went wrong, what to do. Exit status 1 when something must be
mended; what is only advice does not count. Many domains are looked at side by side; a person at a terminal sees how
far it is.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from forwarder.clock import utc_now
from forwarder.commands import server_dns
from forwarder.commands.access import not_as_root, settings_of
from forwarder.commands.answer import answer, tell
from forwarder.commands.finding import Finding, Grade
from forwarder.commands.frame import AsJson, Config, Failure, store_trouble
from forwarder.commands.listeners import check_listeners
from forwarder.commands.reloading import check_reload

if TYPE_CHECKING:
    from rich.console import Console

    from api.findings import Checked
    from forwarder.config import Settings
    from forwarder.net.dns import Resolver
    from forwarder.store.domains import Domain
    from forwarder.store.engine import Database

AT_ONCE = 20  # domains: a look asks some ten questions, each of which may stay without an answer for seconds


def check(
    reload: Annotated[
        bool, typer.Option("--reload", help="Only whether the engine that runs would take the configuration.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Look whether this server can do its work, and say what to do where it cannot."""
    import asyncio

    settings = settings_of(config)
    if reload:
        check_reload(settings)
        tell({"ok": True, "findings": []}, "The engine would take this configuration.", as_json=as_json)
        return
    found = [Finding.fine("configuration", f"is valid; this is {settings.hostname}")]
    found += [*_postmaster(settings), *check_listeners(settings), *_confirmation(settings), *_arc(settings)]
    found += asyncio.run(_keys_database_and_dns(settings))
    ok = not any(finding.grade is Grade.WRONG for finding in found)

    def people(out: "Console") -> None:
        marks = {Grade.FINE: "[green]✓[/]", Grade.ADVICE: "[yellow]·[/]", Grade.WRONG: "[red]✗[/]"}
        from rich.markup import escape

        for finding in found:
            out.print(f"{marks[finding.grade]} [bold]{escape(finding.about)}[/] {escape(finding.text)}")
        out.print("\nAll is well." if ok else "\nWhat is marked ✗ must be mended.")

    answer({"ok": ok, "findings": [asdict(finding) for finding in found]}, as_json=as_json, people=people)
    if not ok:
        raise typer.Exit(1)


async def _keys(settings: "Settings", database: "Database | None") -> Finding:
    """Without a database nobody can tell whether keys that are missing are new or lost."""
    from forwarder.custody import check_keys
    from forwarder.keyring import KeyringError, keys_folder, missing_keys, open_keyring

    try:
        if database is not None:
            await check_keys(database, settings, thorough=True)
        elif missing := missing_keys(settings):
            text = f"{keys_folder(settings)} lacks {', '.join(missing)}; look again when the database answers"
            return Finding.advice("keys", text)
        keys = open_keyring(settings)
    except KeyringError as error:
        return Finding.wrong("keys", str(error))
    names = ", ".join(f"{signer.selector} ({signer.algorithm})" for signer in keys.service)
    return Finding.fine("keys", f"{keys_folder(settings)} holds {names}")


def _postmaster(settings: "Settings") -> Iterator[Finding]:
    """RFC 5321 4.5.1: every server takes mail for its postmaster."""
    if not settings.postmaster:
        text = "mail to this server's postmaster is refused; set postmaster to an address somebody reads"
        yield Finding.advice("postmaster", text)


def _confirmation(settings: "Settings") -> Iterator[Finding]:
    """The link in the mail that asks for a confirmation leads to the API."""
    if not settings.require_confirmed_destinations:
        return
    about = "confirmation"
    if settings.api.listen is None:
        text = "nobody can confirm a destination without the API; set [api] listen"
        yield Finding.wrong(about, text)
    elif not settings.api.public_url:
        text = "links to confirm a destination would lead where people cannot reach; set [api] public_url"
        yield Finding.wrong(about, text)
    else:
        text = f"links to confirm a destination lead to {settings.api.public_url}"
        yield Finding.fine(about, text)


def _arc(settings: "Settings") -> Iterator[Finding]:
    """Many verifiers of ARC know RSA alone, and to them a chain with another seal in it would be a broken one."""
    if settings.arc.enabled and "rsa" not in settings.dkim.algorithms:
        text = 'nothing is sealed: seals need an RSA key; add "rsa" to [dkim] algorithms, or turn [arc] off'
        yield Finding.advice("arc", text)


async def _keys_database_and_dns(settings: "Settings") -> list[Finding]:
    from forwarder.node import NodeError
    from forwarder.schema import check_schema
    from forwarder.store.engine import Database
    from forwarder.store.trouble import StoreUnavailable

    async def unusable(text: str) -> list[Finding]:
        return [await _keys(settings, None), Finding.wrong("database", text)]

    kind = settings.database.url.partition(":")[0]
    try:
        not_as_root(settings)
        database = await Database.open(settings.database.url, pool_size=1)
    except Failure as error:
        return await unusable(str(error))
    except StoreUnavailable as error:
        return await unusable(store_trouble(error))
    try:
        await check_schema(database, settings.database.url)
        text = f"{kind} answers and has this release's schema"
        fine = Finding.fine("database", text)
        keys = await _keys(settings, database)
        return [keys, fine, *await _disk(settings, database), *await _dns(settings, database)]
    except NodeError as error:
        return await unusable(str(error))
    except StoreUnavailable as error:
        return await unusable(store_trouble(error))
    finally:
        await database.close()


async def _disk(settings: "Settings", database: "Database") -> list[Finding]:
    """A disk that is short of room ends no start, and the engine is ready all the same: it takes no mail."""
    import shutil

    from forwarder.inbound.disk import Disk

    submitted = settings.submission.size_limit if settings.tls.configured else 0
    largest = max(settings.mx.size_limit, submitted)
    try:
        takes = await Disk(settings.data_dir, database.spare).takes(largest)
        has = f"{settings.data_dir} has {shutil.disk_usage(settings.data_dir).free >> 20} MiB free"
    except OSError:  # no folder: what is said of the keys tells why
        return []
    if takes:
        return [Finding.fine("disk", has)]
    return [Finding.wrong("disk", f"{has}, too little to take mail, which is refused with 452; make room")]


async def _dns(settings: "Settings", database: "Database") -> list[Finding]:
    """The server's own names, then every domain's."""
    from forwarder.net.dns import Resolver

    resolver = Resolver(settings.dns.nameservers, deadline=settings.dns.timeout)
    try:
        return [
            *await server_dns.check_names(settings, resolver),
            *await server_dns.check_records(settings, resolver),
            *await _domains(settings, database, resolver),
        ]
    finally:
        await resolver.close()


async def _domains(settings: "Settings", database: "Database", resolver: "Resolver") -> list[Finding]:
    """Every domain's findings, in the order of ``domain list``; what is found is written down."""
    import asyncio

    from rich.console import Console

    from api.findings import look, write_down
    from forwarder.store import dkim_keys, domains

    hosted = (await database.read(domains.list_domains))[0]
    some, done = asyncio.Semaphore(AT_ONCE), 0

    async def one(domain: "Domain") -> list[Finding]:
        nonlocal done
        async with some:
            keys = await database.read(partial(dkim_keys.live_keys, domain_id=domain.id))
            checked = await look(resolver, domain.name, settings, keys)
            await write_down(database, domain, checked, utc_now())
        done += 1
        status.update(f"{done} of {len(hosted)} domains looked at")
        return _domain(domain, checked)

    with Console(stderr=True).status("looking at the domains") as status:
        return [finding for found in await asyncio.gather(*map(one, hosted)) for finding in found]


def _domain(domain: "Domain", checked: "Checked") -> list[Finding]:
    """MX, SPF, DKIM and DMARC of one hosted domain; only a wrong MX keeps mail away."""
    named = [("MX", checked.mx), ("SPF", checked.spf), ("DMARC", checked.dmarc)]
    named += [(f"DKIM {number}", key) for number, key in enumerate(checked.dkim, start=1)]
    named += [(f"new DKIM {number}", key) for number, key in enumerate(checked.waiting, start=1)]
    found: list[Finding] = []
    for what, seen in named:
        about = f"{domain.display} {what}"
        if seen.valid:
            found.append(Finding.fine(about, "is right"))
        else:
            judged = Finding.wrong if what == "MX" and seen.valid is False else Finding.advice
            found.append(judged(about, seen.advice or "could not be asked now"))
    return found
