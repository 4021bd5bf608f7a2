"""Bounces that come back: a DSN from beyond our next hop finds its delivery in the log.

A destination that took a message and could not deliver it later sends a report to the reverse-path, which is an SRS
address of ours (forwarded mail) or the sender's own (submission). The report holds the headers of the message, with our
``X-Forwarder-Id``; the delivery it names gets a HARD-BOUNCE after its DELIVERED.

It is believed only as far as its mark is genuine: the mark is a keyed digest of the recipient that the log knows.
It is done behind the reply and bounded: ``AT_ONCE`` reports at a time, more are forwarded without a note.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from forwarder.mail import content as contents
from forwarder.mail import trace
from forwarder.mail.address import AddressError, parse_address
from forwarder.mail.destination import identity
from forwarder.mail.event import Status
from forwarder.mail.reply import Reply, parse_reply
from forwarder.mail.returned import MAX_OCTETS, ReturnedRecipient, ReturnedReport, read_report
from forwarder.mail.words import printable
from forwarder.store.journal import Journal, LogEntry
from forwarder.store.records import NewEvent
from forwarder.store.trouble import StoreUnavailable

AT_ONCE = 20
SMALL_OCTETS = 16 * 1024  # up to here it is read in the event loop

log = structlog.get_logger(__name__)


class LateBounces:
    """Notes the reports that are about deliveries of ours."""

    def __init__(self, journal: Journal, *, secrets: Sequence[bytes], local_name: str) -> None:
        self._journal = journal
        self._secrets = tuple(secrets)
        self._local_name = local_name
        self._tasks: set[asyncio.Task[None]] = set()

    def look_at(self, content: bytes, head: bytes) -> None:
        """Consider a message that came from the null reverse-path; returns at once."""
        kind = contents.first_raw(head, b"content-type")
        if kind is None or b"report" not in kind.lower() or len(self._tasks) >= AT_ONCE:
            return
        # Its beginning alone: the memory that contents may take does not count what waits here.
        task = asyncio.get_running_loop().create_task(self._note(content[:MAX_OCTETS]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def is_about_ours(self, content: bytes) -> bool:
        """Whether it is a report that names a delivery of ours; StoreUnavailable."""
        try:
            report = await _read(content)
        except Exception:  # what a stranger wrote; who cannot be understood is not believed
            log.exception("a late bounce was not understood")
            return False
        if report is None:
            return False
        return not all(map(_is_known, (await self._ours(report)).values()))

    async def close(self) -> None:
        """Finish what was begun."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5)

    async def _note(self, content: bytes) -> None:
        try:
            report = await _read(content)
            if report is None or report.action != "failed":
                return
            for entry, told in _meant(report, await self._ours(report)):
                if not _is_known(entry):
                    await self._journal.append_event(entry.id, self._event(told))
        except StoreUnavailable as trouble:
            log.warning("a late bounce was not noted", reason=str(trouble))
        except Exception:  # whatever a stranger wrote into a report, the message itself is already on its way
            log.exception("a late bounce was not understood")

    async def _ours(self, report: ReturnedReport) -> dict[str, LogEntry]:
        """The logs of deliveries of ours that a report names, by their ids."""
        named = {passage.delivery_id: passage for passage in report.passages}
        if not named:
            return {}
        entries = await self._journal.page(None, ids=list(named), limit=len(named))
        return {entry.id: entry for entry in entries if self._is_ours(entry, named[entry.id])}

    def _is_ours(self, entry: LogEntry, passage: trace.Passage) -> bool:
        try:
            recipient = parse_address(entry.recipient_email or "")
        except AddressError:
            return False
        return trace.is_among(self._secrets, recipient, {passage.mark})

    def _event(self, told: ReturnedRecipient) -> NewEvent:
        status = told.status if told.status[:2] == "5." else "5.0.0"
        said = Reply(code=550, enhanced=status, text=told.diagnostic)
        quoted = parse_reply(told.diagnostic.encode())
        if quoted.permanent:  # nearly all quote the reply that ended it, with its own status
            said = replace(quoted, enhanced=quoted.enhanced or status)
        text = printable(said.text or "the destination could not deliver the message", 1024)
        return NewEvent(
            status=Status.HARD_BOUNCE,
            code=said.code,
            message=f"{said.enhanced} {text}",
            local=self._local_name,
            recipient=printable(told.recipient, 320) or None,
        )


async def _read(content: bytes) -> ReturnedReport | None:
    """The report in a message; a large one is read in a thread, since many may come at once."""
    if len(content) <= SMALL_OCTETS:
        return read_report(content)
    return await asyncio.to_thread(read_report, content)


def _is_known(entry: LogEntry) -> bool:
    """Whether its failure is: whoever holds a report must not write into a log as often as he likes."""
    return any(event.status is Status.HARD_BOUNCE for event in entry.events)


def _meant(report: ReturnedReport, ours: Mapping[str, LogEntry]) -> list[tuple[LogEntry, ReturnedRecipient]]:
    """The deliveries of ours that a report is about, each with what it says of it.

    Those that went in one transaction share the content: it is about those whose destinations it names. Where it knows
    none by its name, it is about the one that took the mail from us last, unless others went with it.
    """
    said: dict[tuple[str, str] | None, ReturnedRecipient] = {}
    for told in (report, *report.others):
        for address in (told.recipient, told.original):
            said.setdefault(_mailbox(address), told)
    said.pop(None, None)
    found = ((entry, said.get(_mailbox(entry.forward_email or ""))) for entry in ours.values())
    named = [(entry, told) for entry, told in found if told is not None]
    if named:
        return named
    hops = ([ours[each.delivery_id] for each in hop if each.delivery_id in ours] for hop in report.hops)
    last = next(filter(None, hops), [])
    return [(last[0], report)] if len(last) == 1 else []


def _mailbox(address: str) -> tuple[str, str] | None:
    try:
        return identity(parse_address(address))
    except AddressError:
        return None
