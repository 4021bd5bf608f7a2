"""``forwarder logs``: the journal, newest first, or as it grows.

``--follow`` looks twice a second: at the newest entries, back to those it knows, and at older ones whose deliveries
moved in the queue, since mail that waited for an hour takes its next step far below the newest. Limits: of more than
NEWEST new entries in half a second the oldest are passed over; watched are as many deliveries as ``WATCHED``, those in
hand and those due first; a step without a delivery that moves (a report that came back, a held delivery that is
dropped) is seen only while its entry is among the newest.
"""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import with_store
from forwarder.commands.answer import answer, console, shown
from forwarder.commands.frame import AsJson, Config, Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.engine import Database
    from forwarder.store.journal import LogEntry

POLL = 0.5  # seconds
PAGE = 100
NEWEST = 20 * PAGE
WATCHED = 1000  # in hand, and as many that are due first
KNOWN = 100 * PAGE  # entries whose number of steps is remembered
SET_BACK = timedelta(seconds=10)  # at most between two looks
_STYLES = {"DELIVERED": "green", "REFUSED": "red", "SOFT-BOUNCE": "red", "HARD-BOUNCE": "red"}

Ask = Callable[..., Awaitable["list[LogEntry]"]]


def show_logs(
    domain: Annotated[str | None, typer.Option(help="Only of this domain.")] = None,
    alias: Annotated[
        str | None, typer.Option(help="Only of this alias, by name or id; needs --domain.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    failures: Annotated[bool, typer.Option("--failures", help="Only mail with a failure.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the log of mail, the newest last; every step of each message."""
    if alias is not None and domain is None:
        raise Failure("--alias needs --domain: other domains may have an alias of that name", status=2)

    import os

    from forwarder.mail.ids import IdSource
    from forwarder.store.journal import Journal

    async def work(database: "Database", settings: "Settings") -> None:
        journal = Journal(database, ids=IdSource(clock=utc_now, entropy=os.urandom), clock=utc_now)
        domain_id, pattern = await database.read(lambda conn: _narrowed(conn, domain, alias))
        ask = partial(journal.page, domain_id, alias=pattern, failures_only=failures)
        began = utc_now()
        known = await ask(limit=max(limit, PAGE) if follow else limit)
        found = known[:limit]
        if as_json and not follow:
            answer([plain(entry) for entry in found], as_json=True, people=lambda out: None)
            return
        out = console()
        for entry in reversed(found):
            _print(entry, out, as_json)
        if not found and not follow:
            asked = domain is not None or failures
            out.print("Nothing in the log matches." if asked else "Nothing is logged yet.")
        if follow:
            steps = {entry.id: len(entry.events) for entry in known}
            async for entry in _grown(database, ask, steps, began):
                _print(entry, out, as_json)

    try:
        with_store(config, work)
    except KeyboardInterrupt:
        return


def _narrowed(conn: "Connection", domain: str | None, alias: str | None) -> tuple[int | None, str | None]:
    """The id of the domain and the pattern of the alias that a person named; the alias may have been removed since."""
    from forwarder.commands.named import domain_named
    from forwarder.mail.pattern import stored_name
    from forwarder.store import aliases

    if domain is None:
        return None, None
    hosted = domain_named(conn, domain)
    if alias is None:
        return hosted.id, None
    found = aliases.find(conn, hosted.id, alias)
    return hosted.id, stored_name(alias) if found is None else found.pattern


async def _grown(
    database: "Database", ask: Ask, steps: dict[str, int], began: datetime
) -> "AsyncIterator[LogEntry]":
    """Every entry anew that has a step more than in ``steps``, or than it had when this ``began``; without end."""
    import asyncio

    from forwarder.store import admin

    watched = await database.read(partial(admin.moving, limit=WATCHED))
    while True:
        await asyncio.sleep(POLL)
        # The queue before the log: whatever moved has its step written by then.
        if (now := utc_now()) < began:  # the clock was set back: what is new has times from before we began
            began = now - SET_BACK
        before, watched = watched, await database.read(partial(admin.moving, limit=WATCHED))
        found = {entry.id: entry for entry in await _newest(ask, steps)}
        moved = [id_ for id_, was in before.items() if watched.get(id_) != was and id_ not in found]
        for start in range(0, len(moved), PAGE):
            some = moved[start : start + PAGE]
            found |= {entry.id: entry for entry in await ask(ids=some, limit=PAGE)}
        for id_, entry in sorted(found.items()):
            known = steps[id_] if id_ in steps else sum(event.created_at < began for event in entry.events)
            steps[id_] = len(entry.events)
            if len(entry.events) > known:
                yield entry
        while len(steps) > KNOWN:
            steps.pop(next(iter(steps)))


async def _newest(ask: Ask, steps: dict[str, int]) -> "list[LogEntry]":
    """The newest page, and those before it until one has an entry that is known."""
    found = await ask(limit=PAGE)
    page = found
    while len(page) == PAGE and len(found) < NEWEST and not any(entry.id in steps for entry in page):
        page = await ask(limit=PAGE, after=found[-1].id)
        found = [*found, *page]
    return found


def _print(entry: "LogEntry", out: "Console", as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain(entry)), flush=True)  # noqa: T201 - one object a line
        return
    sender = entry.sender_email or "<>"
    recipient = entry.recipient_email or "-"
    lead = f"{shown(entry.created_at)}  {sender} -> {recipient}"
    out.print(
        lead + (f" -> {entry.forward_email}" if entry.forward_email else ""), markup=False, style="bold"
    )
    if entry.subject:
        out.print(f"    subject: {entry.subject}", markup=False, style="dim")
    for event in entry.events:
        style = _STYLES.get(event.status, "")
        # A step of another day says which: mail may wait for five.
        same_day = event.created_at.date() == entry.created_at.date()
        at = f"{event.created_at:%H:%M:%S}" if same_day else shown(event.created_at)
        text = f"    {at} {event.status:<11} {event.code} {event.message}"
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
