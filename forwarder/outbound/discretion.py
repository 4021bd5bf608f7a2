"""What is repeated of what a host said: nobody learns from it where the mail of another goes.

A host that refuses a content may name any recipient of it. In a report the aliases stand for their destinations
(``without_destinations``); in a log those of its own domain stay (``Discretion``).

A text that may name more than MOST_NAMED is left out: to look for each, for each, would take minutes.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from forwarder.mail.address import Path
from forwarder.outbound.parcel import Verdict

MOST_NAMED = 20  # destinations in the text of one refusal
HIDDEN = "[hidden]"


class Discretion:
    """What the logs are told of one attempt."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self._of: dict[int | None, set[str]] = {}  # destinations, by the domain in whose log they are
        for verdict in verdicts:
            self._of.setdefault(verdict.delivery.domain_id, set()).add(verdict.delivery.destination)
        self._known: dict[tuple[int | None, str], str] = {}

    def text(self, verdict: Verdict) -> str:
        """What was said, without the destinations of other domains that were in the attempt as well."""
        if len(self._of) == 1:
            return verdict.reply.text
        key = verdict.delivery.domain_id, verdict.reply.text
        if key not in self._known:
            self._known[key] = self._without_others(*key)
        return self._known[key]

    def _without_others(self, domain_id: int | None, text: str) -> str:
        own = self._of[domain_id]
        others = set[str]().union(*self._of.values()) - own
        said = text.lower()
        # Whole addresses: a name alone says little, and "info" is a word of many a refusal.
        named = [
            each
            for each in others
            if any(f"{name}@" in said or f"{name}%40" in said for name in _names(each))
        ]
        if len(named) > MOST_NAMED:
            return HIDDEN
        for destination in sorted(named, key=len, reverse=True):
            text = _renamed(text, destination, HIDDEN)
        return text


def to_hide(failed: Sequence[Verdict]) -> dict[str, Path]:
    """The addresses that failed together, each once, with a recipient that led there; thousands may lead to one."""
    return {
        each.delivery.destination: each.delivery.recipient
        for each in failed
        if "://" not in each.delivery.destination
    }


def without_destinations(text: str, verdict: Verdict, hidden: Mapping[str, Path]) -> str:
    """``concealed`` for all that failed together."""
    own, said = verdict.delivery, text.lower()
    named = {
        destination: recipient.wire()
        for destination, recipient in hidden.items()
        if _may_be_named(destination, said)
    }
    if len(named) > MOST_NAMED:
        return HIDDEN
    named[own.destination] = own.recipient.wire()
    whole = sorted(named, key=len, reverse=True)  # one may be the end of another
    for destination in whole:
        text = _renamed(text, destination, named[destination])
    for destination in whole:
        text = concealed(text, destination, named[destination])
    return text


def _may_be_named(destination: str, said: str) -> bool:
    local = destination.rpartition("@")[0].lower()
    return local in said and (len(local) > 2 or f"{local}@" in said or f"{local}%40" in said)


def concealed(text: str, destination: str, alias: str) -> str:
    """Text of a host without the destination it may quote: the address becomes the alias, its parts are hidden."""
    text = _renamed(text, destination, alias)
    is_url = "://" in destination
    if is_url:
        # What a web server answers is not for strangers: many quote the path, which is all the secret a hook has.
        text = text.partition(": ")[0]
    local, _, domain = destination.rpartition("@")
    parts = [urlsplit(destination).hostname or ""] if is_url else [domain, local, local.partition("+")[0]]
    for part in parts:
        # One or two characters are a part of ordinary words, and tell nobody anything.
        if len(part) > 2 and part.lower() not in alias.lower():
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


def _names(destination: str) -> set[str]:
    """What may stand before the @ of an address where a host names it: its label may be left out."""
    local = destination.rpartition("@")[0].lower()
    return {local, local.partition("+")[0] or local}


def _renamed(text: str, destination: str, alias: str) -> str:
    if "://" not in destination:
        # Hosts name the mailbox without its label too, and some write its @ for a URL.
        local, _, domain = destination.rpartition("@")
        locals_ = "|".join(map(re.escape, dict.fromkeys((local, local.partition("+")[0] or local))))
        spelled = rf"(?<![\w+.-])(?:{locals_})(?:@|%40){re.escape(domain)}|{re.escape(destination)}"
    else:
        spelled = re.escape(destination)
    return re.sub(spelled, lambda _: alias, text, flags=re.IGNORECASE)
