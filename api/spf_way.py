"""What keeps receivers from coming to our include in an SPF record, beside its own text: the records before it.

Terms are evaluated from left to right, up to the first that matches (RFC 7208 4.6.2). So what counts are the look-ups
of those before ours, ten at most with ours (4.6.4), and that each record they include is there and can be read (5.2):
else the result is permerror, for our mail too. What stands behind ours costs our mail nothing.

Limits: what a name with a macro in it leads to depends on the message, and counts as one look-up. What the DNS cannot
tell is taken to be right.
"""

from collections.abc import Awaitable, Callable, Collection

from forwarder.mail.records import spf_records
from forwarder.mail.spf_record import LOOKS_UP, MOST_LOOKUPS, Term, fault_of, parse_spf
from forwarder.net.answers import Answer, CannotTell, texts_of

AskText = Callable[[str], Awaitable[Answer[bytes]]]


async def obstacle(record: str, ours: Collection[str], ask: AskText) -> str:
    """What stands before the include of one of ``ours``, as a sentence about ``record``; "": nothing."""
    return await _Way(ours, ask).through(parse_spf(record)[0])


class _Way:
    """One evaluation in which nothing matches before ours."""

    def __init__(self, ours: Collection[str], ask: AskText) -> None:
        self._ours = ours
        self._ask = ask
        self._left = MOST_LOOKUPS
        self._arrived = False

    async def through(self, terms: list[Term]) -> str:
        # RFC 7208 6.1: a redirect is looked at after all mechanisms, and not at all where one of them is "all".
        mechanisms = [term for term in terms if term.qualifier != "="]
        redirect = [term for term in terms if term.qualifier == "=" and term.name == "redirect"]
        for term in (*mechanisms, *redirect):
            if term.name == "all":
                return ""
            if term.name in LOOKS_UP:
                fault = await self._look_up(term)
                if fault or self._arrived:
                    return fault
        return ""

    async def _look_up(self, term: Term) -> str:
        self._left -= 1
        if self._left < 0:
            return f"it takes more than {MOST_LOOKUPS} look-ups to come to ours"
        name = term.argument.rstrip(".").lower()
        self._arrived = term.name == "include" and name in self._ours and term.qualifier in ("", "+")
        if self._arrived or term.name not in ("include", "redirect") or "%" in name:
            return ""
        answer = await self._ask(name)
        if isinstance(answer, CannotTell):
            return ""
        found = spf_records(texts_of(answer))
        if len(found) != 1:
            return (
                f"{name}, which it includes before ours, has {'no' if not found else len(found)} SPF records"
            )
        if fault := fault_of(found[0]):
            return f"{fault}, in that of {name}, which it includes before ours"
        return await self.through(parse_spf(found[0])[0])
