"""``forwarder queue``: what waits, why, and what an operator may do about it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from forwarder.clock import utc_now
from forwarder.commands.access import read, with_store, write
from forwarder.commands.answer import answer, shown, table, tell
from forwarder.commands.frame import AsJson, Config, Failure, command, confirm
from forwarder.commands.named import domain_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rich.console import Console
    from sqlalchemy import Connection

    from forwarder.config import Settings
    from forwarder.store.admin import QueuedDelivery
    from forwarder.store.engine import Database

app = typer.Typer(no_args_is_help=True, help="The queue: list, show, retry, hold, release, drop.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Ids of deliveries or of messages.")]
Every = Annotated[bool, typer.Option("--all", help="Everything that this can be done to.")]


@command(app, "list")
def list_queue(
    state: Annotated[str | None, typer.Option(help="queued, leased or held.")] = None,
    destination_domain: Annotated[
        str | None, typer.Option("--domain", help="Only to this destination domain.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries that wait, the oldest first."""
    from forwarder.mail.event import DeliveryState
    from forwarder.store import admin

    to = None if destination_domain is None else _as_stored(destination_domain)
    wanted: DeliveryState | None = None
    if state is not None:
        if state not in set(DeliveryState):
            raise Failure(f"{state} is no state of the queue; write queued, leased or held", status=2)
        wanted = DeliveryState(state)

    def ask(conn: "Connection", _settings: "Settings") -> tuple[list[Any], dict[Any, int]]:
        found = admin.list_deliveries(conn, state=wanted, destination_domain=to, limit=limit)
        return found, admin.counts(conn)

    found, counts = read(config, ask)
    value = {"deliveries": [_plain(d) for d in found], "counts": {str(k): n for k, n in counts.items()}}

    def people(out: "Console") -> None:
        columns = ("id", "state", "attempts", "next attempt", "from", "to", "last reply")
        rows = [
            (
                d.id,
                d.state,
                d.attempts,
                _next_attempt(d),
                d.reverse_path or "<>",
                d.destination,
                d.last_reply,
            )
            for d in found
        ]
        waiting = sum(counts.values())
        nothing = f"None of the {waiting} in the queue matches." if waiting else "The queue is empty."
        if found and not out.soft_wrap:
            for delivery in found:
                _draw(delivery, out)
        else:
            table(out, columns, rows, empty=nothing)
        if found:
            out.print("\n" + ", ".join(f"{number} {name}" for name, number in counts.items()))

    answer(value, as_json=as_json, people=people)


@command(app, "show")
def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Of a delivery or of a message.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one delivery, or all deliveries of a message."""
    from forwarder.store import admin

    found = read(config, lambda conn, _: admin.show(conn, identifier))
    if not found:
        raise Failure(f"{identifier} is not in the queue; forwarder logs shows what became of it")

    def people(out: "Console") -> None:
        for delivery in found:
            table(out, ("field", "value"), list(_plain(delivery).items()), empty="")
            out.print()

    answer([_plain(d) for d in found], as_json=as_json, people=people)


@command(app, "retry")
def retry(ids: Ids = None, every: Every = False, config: Config = None, as_json: AsJson = False) -> None:
    """Make deliveries due now."""
    from forwarder.store import admin

    chosen = _chosen(ids, every)
    if chosen is None:
        changed = _retry_all(config)
    else:
        changed = _change(config, chosen, lambda conn, _: admin.retry(conn, chosen, now=utc_now()))
    held = read(config, lambda conn, _: admin.held(conn, chosen))
    kept = f"; {held} held, which `forwarder queue release` makes due" if held else ""
    _say(changed, "due now", as_json, kept)


def _retry_all(config: str | None) -> int:
    """A bite at a time, so that the engine writes in between; a person at a terminal sees how far it is."""
    from functools import partial

    from rich.console import Console

    from forwarder.store import admin

    async def work(database: "Database", _settings: "Settings") -> int:
        changed, after, limit, at = 0, "", 1000, utc_now()
        with Console(stderr=True).status("looking at the queue") as status:
            while True:
                bite = await database.write(partial(admin.retry_next, after=after, now=at, limit=limit))
                changed += len(bite)
                if len(bite) < limit:
                    return changed
                after = bite[-1]
                status.update(f"{changed} deliveries due now")

    return with_store(config, work)


@command(app, "hold")
def hold(ids: Ids = None, config: Config = None, as_json: AsJson = False) -> None:
    """Put deliveries aside until they are released."""
    from forwarder.store import admin

    chosen = _some(ids)
    changed = _change(config, chosen, lambda conn, _: admin.hold(conn, chosen))
    kept = "" if changed else "; one that is held, being attempted now or not in the queue stays as it is"
    _say(changed, "held", as_json, kept)


@command(app, "release")
def release(ids: Ids = None, config: Config = None, as_json: AsJson = False) -> None:
    """Make held deliveries due now."""
    from forwarder.store import admin

    chosen = _some(ids)
    changed = _change(config, chosen, lambda conn, _: admin.release(conn, chosen, now=utc_now()))
    _say(changed, "due now", as_json, "" if changed else "; one that is not held stays as it is")


@command(app, "drop")
def drop(
    ids: Ids = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give deliveries up, without a report to their senders; the log says so."""
    import os

    from forwarder.mail.ids import IdSource
    from forwarder.store import admin

    chosen = _some(ids)
    # The id of a message means all of its deliveries, and it is deliveries that a person agrees to lose.
    number = 0 if yes or as_json else read(config, lambda conn, _: admin.droppable(conn, chosen))
    if number or as_json:
        confirm(f"Drop {_deliveries(number)} without telling the sender?", yes=yes, as_json=as_json)
    new_id = IdSource(clock=utc_now, entropy=os.urandom)

    def work(conn: "Connection", settings: "Settings") -> int:
        return admin.drop(conn, chosen, now=utc_now(), new_id=new_id, local_name=settings.hostname)

    changed = _change(config, chosen, work)
    _say(changed, "dropped", as_json)


def _draw(delivery: "QueuedDelivery", out: "Console") -> None:
    """A few lines on a terminal: beside each other, the id alone would leave no room to read the addresses."""
    from rich.padding import Padding
    from rich.text import Text

    attempts = f"{delivery.attempts} attempt{'' if delivery.attempts == 1 else 's'}"
    due = _next_attempt(delivery)
    after = f", next {shown(due)}" if due else ""
    out.print(f"{delivery.id}  {delivery.state}  {attempts}{after}", markup=False, style="bold")
    way = f"{delivery.reverse_path or '<>'} -> {delivery.destination}"
    for line in (way, delivery.last_reply):
        if line:
            out.print(Padding(Text(line), (0, 0, 0, 4), expand=False))


def _as_stored(domain: str) -> str:
    """Lower-case A-labels; what is no domain, such as the address in a webhook's URL, is looked for as it is."""
    from forwarder.mail.address import AddressError

    try:
        return domain_name(domain)
    except AddressError:
        return domain.lower()


def _some(ids: list[str] | None) -> list[str]:
    if not ids:
        raise Failure("name the ids that `forwarder queue list` shows", status=2)
    return ids


def _chosen(ids: list[str] | None, every: bool) -> list[str] | None:
    if every and ids:
        raise Failure("either --all or ids, not both", status=2)
    return None if every else _some(ids)


def _change(config: str | None, ids: list[str], act: "Callable[[Connection, Settings], int]") -> int:
    """How many deliveries ``act`` changed.

    Failure where it changed none and nothing in the queue has one of these ids: mistyped, a domain, or what has ended
    meanwhile.
    """
    from forwarder.store import admin

    changed = write(config, act)
    if not changed and not read(config, lambda conn, _: admin.is_known(conn, ids)):
        more = len(ids) - 1
        others = f" or the {more} others" if more > 1 else " or the other" if more else ""
        raise Failure(
            f"nothing in the queue has the id {ids[0]}{others}; forwarder queue list shows the ids of what waits, "
            "forwarder logs what became of the rest"
        )
    return changed


def _say(changed: int, what: str, as_json: bool, kept: str = "") -> None:
    """``kept``: why others stay as they are, where that is known."""
    if not changed and not kept:
        kept = "; one that is being attempted now, or that is not in the queue, stays as it is"
    tell({"changed": changed}, f"{_deliveries(changed)} {what}{kept}", as_json=as_json)


def _deliveries(number: int) -> str:
    return f"{number} delivery" if number == 1 else f"{number} deliveries"


def _next_attempt(delivery: "QueuedDelivery") -> "datetime | None":
    """None for one that is held: it waits for an operator, whatever it was due for before."""
    from forwarder.mail.event import DeliveryState

    return None if delivery.state == DeliveryState.HELD else delivery.next_attempt_at


def _plain(delivery: "QueuedDelivery") -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(delivery) | {"next_attempt_at": _next_attempt(delivery)}
