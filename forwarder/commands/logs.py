"""``forwarder logs``: the journal, newest first, or as it grows."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.frame import AsJson, Config, Failure, answer, console, with_store

if TYPE_CHECKING:
    from rich.console import Console

    from forwarder.config import Settings
    from forwarder.store.engine import Database
    from forwarder.store.journal import Journal, LogEntry

POLL = 0.5  # seconds
PAGE = 100


def show_logs(
    domain: Annotated[str | None, typer.Option(help="Only of this domain.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only of this alias, as listed; needs --domain.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    failures: Annotated[bool, typer.Option("--failures", help="Only mail with a failure.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the log of mail, the newest last; every step of each message."""
    if alias is not None and domain is None:
        raise Failure("--alias needs --domain: other domains may have an alias of that name", status=2)

    async def work(database: "Database", settings: "Settings") -> None:
        journal, domain_id = await _journal(database, domain)
        wanted = max(limit, PAGE) if follow else limit
        known = await journal.page(domain_id, alias=alias, limit=wanted, failures_only=failures)
        found = known[:limit]
        if as_json and not follow:
            answer([plain(entry) for entry in found], as_json=True, people=lambda out: None)
            return
        out = console()
        for entry in reversed(found):
            _print(entry, out, as_json)
        if not found and not follow:
            out.print("Nothing is logged yet.")
        if follow:
            seen = {entry.id: len(entry.events) for entry in known}
            await _follow(journal, domain_id, alias, failures, seen, out, as_json)

    try:
        with_store(config, work)
    except KeyboardInterrupt:
        return


async def _journal(database: "Database", domain: str | None) -> "tuple[Journal, int | None]":
    import os

    from forwarder.commands.directory import domain_named
    from forwarder.mail.ids import IdSource
    from forwarder.store.journal import Journal

    journal = Journal(database, ids=IdSource(clock=utc_now, entropy=os.urandom), clock=utc_now)
    if domain is None:
        return journal, None
    return journal, (await database.read(lambda conn: domain_named(conn, domain))).id


async def _follow(
    journal: "Journal",
    domain_id: int | None,
    alias: str | None,
    failures: bool,
    seen: dict[str, int],
    out: "Console",
    as_json: bool,
) -> None:
    """Print every entry of the newest page anew when it has a step more than when it was last seen."""
    import asyncio

    while True:
        await asyncio.sleep(POLL)
        page = await journal.page(domain_id, alias=alias, limit=PAGE, failures_only=failures)
        for entry in reversed(page):
            if len(entry.events) > seen.get(entry.id, 0):
                _print(entry, out, as_json)
        seen.update({entry.id: len(entry.events) for entry in page})
        while len(seen) > 100 * PAGE:
            seen.pop(next(iter(seen)))


def _print(entry: "LogEntry", out: "Console", as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain(entry)), flush=True)  # noqa: T201 - one object a line
        return
    sender = entry.sender_email or "<>"
    recipient = entry.recipient_email or "-"
    lead = f"{entry.created_at:%Y-%m-%d %H:%M:%S}  {sender} -> {recipient}"
    out.print(
        lead + (f" -> {entry.forward_email}" if entry.forward_email else ""), markup=False, style="bold"
    )
    if entry.subject:
        out.print(f"    subject: {entry.subject}", markup=False, style="dim")
    for event in entry.events:
        style = (
            "green"
            if event.status == "DELIVERED"
            else "red"
            if "BOUNCE" in event.status or event.status == "REFUSED"
            else ""
        )
        text = f"    {event.created_at:%H:%M:%S} {event.status:<11} {event.code} {event.message}"
        out.print(text, markup=False, style=style)


def plain(entry: "LogEntry") -> dict[str, Any]:
    """A log entry as JSON; the id is the one the API shows."""
    import dataclasses

    from forwarder.mail.event import hosts
    from forwarder.mail.ids import log_public_id

    value = dataclasses.asdict(entry)
    value["id"] = log_public_id(entry.id)
    for event in value["events"]:
        event["created_at"] = event["created_at"].isoformat()
        event["local"], event["server"] = hosts(event["status"], event["local"], event["server"])
    return {k: (v.isoformat() if hasattr(v, "isoformat") else v) for k, v in value.items()}
