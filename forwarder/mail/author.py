"""Whose mail a message claims to be: the domain of its From header, as DMARC needs it (RFC 7489 section 6.6.1).

The reading is strict where parsers differ, because a difference between us and the reader's mail program is an attack:
two From headers, or addresses of two domains in one, are ``SEVERAL`` and never an author. An address that stands
unquoted beside the one in brackets is what some readers show: its domain is one of ``Author.others``, of which nothing
may be believed that is not proved. A field is From, too, for whom leaves out the octets that no name may hold (NUL,
or a byte order mark before the first). Comments, quoted strings and angle brackets are scanned once, without recursion,
whatever they nest; input beyond ``MAX_OCTETS`` is not read.

Where no author can be read although there may be an address, a reader may be shown anybody (``obscure``). To look for
some names in such a header would be a race with all the ways in which readers mend one.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from forwarder.mail.canonical import Canonical, relaxed_value
from forwarder.mail.verification import domain_name
from forwarder.mail.words import decode_words, dots_closed

MAX_OCTETS = 64 * 1024
_ORDINARY = 512  # octets of a field; what is made of longer ones is not remembered
# Blanks stand beside a dot, never between two words (RFC 5322 4.4: obs-domain): what follows is no domain any more.
_TWO_WORDS = re.compile(r"[^\s.]\s+[^\s.]")
_NO_DIVIDER = re.compile(r"[^@,:;]*")
# A name, in quotes or not, and an address in brackets; without comments, lists, escapes and whatever is odd.
_PLAIN = re.compile(r'[^"\\<>(),:;@]*+(?:"[^"\\]*+"[^"\\<>(),:;@]*+)?<([^"\\<>(),:;]*+)>')
# Beside the brackets: readers leave such octets out, each in its own way.
_LEFT_OUT = re.compile(r'[\x00-\x08\x0e-\x1f\x7f\\]|@\s*=\?|\S"|[@.]\s*"')
_AFTER_AT = re.compile(r"@\s*((?:[A-Za-z0-9._-]|[^\x00-\x7f\s])*)")
_QUOTED_AT = "\1"
_OF_NAMES = bytes(range(33, 127))  # RFC 5322 3.6.8
_OF_NO_NAME = bytes({*range(256)} - {*_OF_NAMES, *b" \t"})
_MOST_OTHERS = 3  # each may cost two questions to the DNS


class AuthorFault(StrEnum):
    """Why a message has no author to check."""

    MISSING = "no From header"
    SEVERAL = "more than one author"
    UNREADABLE = "the From header cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The author's domain (A-labels, lower case), or why there is none."""

    domain: str = ""
    others: tuple[str, ...] = ()  # which stand unquoted beside it
    fault: AuthorFault | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Every domain that a reader may take for the author's, its own first."""
        return (self.domain, *self.others) if self.domain else ()


class Mailboxes(NamedTuple):
    """The addresses of a mailbox list, and the texts beside those in brackets that hold an unquoted @."""

    listed: list[str]
    beside: list[str]


def author(message: Canonical) -> Author:
    """The one domain that the From header names."""
    fields = _claims(message)
    if not fields:
        return Author(fault=AuthorFault.MISSING)
    if len(fields) > 1:
        return Author(fault=AuthorFault.SEVERAL)
    value = relaxed_value(fields[0])
    if len(value) > MAX_OCTETS:
        return Author(fault=AuthorFault.UNREADABLE)
    return _named(value) if len(value) <= _ORDINARY else _named.__wrapped__(value)


# Whoever writes to many, or often, writes it the same way each time.
@lru_cache(maxsize=512)
def _named(value: bytes) -> Author:
    """The author that the value of the one From field names."""
    text = value.decode("utf-8", "replace")
    try:
        if "=?" in text and not is_plain(text) and decode_words(text).count("@") > text.count("@"):
            # As a name before an address in brackets it is one. Elsewhere some readers decode it first (RFC 2047 5).
            raise ValueError("an encoded address")
        found = mailboxes(text)
        domains = {_domain(address) for address in found.listed}
        others = {domain for text in found.beside for domain in _domains_beside(text)}
    except ValueError:
        return Author(fault=AuthorFault.UNREADABLE)
    # "Pied Piper, Inc. <a@b.example>": words that somebody forgot to quote name no domain.
    domains.discard("")
    domains = domains or others  # nothing is in the brackets
    others = others - domains
    if len(domains) > 1 or len(others) > _MOST_OTHERS:
        return Author(fault=AuthorFault.SEVERAL)
    domain = next(iter(domains), "")
    if not domain:
        return Author(fault=AuthorFault.UNREADABLE)
    return Author(domain=domain, others=tuple(sorted(others)))


def obscure(message: Canonical, claimed: Author) -> bool:
    """Whether a reader may be shown an author's address, and so one of anybody, although we could read none.

    Not where there is no @, nor an encoded word that may be one: "root (Cron Daemon)" is nobody's address.
    """
    return not claimed.domain and any(b"@" in raw or b"=?" in raw for raw in _claims(message))


def _claims(message: Canonical) -> list[bytes]:
    """The From fields, raw, topmost first; what some reader may take for one is among them."""
    named = message.by_name
    nameless = len(message.fields) - sum(map(len, named.values()))
    if not nameless and not b"".join(named).translate(None, _OF_NAMES):  # nearly all
        return message.instances(b"from")
    found = []
    for _, raw in message.fields:
        name, colon, _ = raw.partition(b":")
        if colon and name.translate(None, _OF_NO_NAME).rstrip(b" \t").lower() == b"from":
            found.append(raw)
    return found


def _domain(address: str) -> str:
    """The domain of one address, empty without one; ValueError when it is no name."""
    local, at, domain = address.rpartition("@")
    if not at:
        if _QUOTED_AT in address:  # some readers take the quotes away
            raise ValueError("an address in quotes")
        return ""
    # Readers differ in which divider divides the address, or ends it.
    if not _NO_DIVIDER.fullmatch(local) or local.endswith("?="):
        raise ValueError("an address within an address")
    if _TWO_WORDS.search(domain.strip()):
        raise ValueError("words after an address")
    return domain_name(domain)


def _domains_beside(text: str) -> list[str]:
    """What stands after each @ of a display name that nobody quoted; ValueError where readers would not agree."""
    if _LEFT_OUT.search(text):
        raise ValueError("an address that readers mend")
    words = (found[1].strip(".") for found in _AFTER_AT.finditer(dots_closed(text)))
    return [domain_name(word) for word in words if word]


def mailboxes(value: str, *, strict: bool = False) -> Mailboxes:
    """The addresses of a mailbox list, display names and comments left out; ValueError when it is not one.

    A group is read as the list that it holds, and so is a name with an unquoted colon, which real programs write.
    ``strict``: these are no list, nor is one in which words follow an address in brackets, which some readers show
    instead of it.
    """
    plain = _PLAIN.fullmatch(value)  # nearly all: the walk over each character is for the rest
    if plain is not None:
        return Mailboxes([plain[1].strip()], [])
    found = Mailboxes([], [])
    outside: list[str] = []  # text of the current mailbox outside angle brackets
    inside: list[str] | None = None
    closed = at = False
    depth = 0
    quoted = False
    # What is quoted divides no address. Strictly, the address is another one than that with _: no address at all.
    veil, veiled = ("\0", ", \t") if strict else ("_", ",:; \t")
    quoted_at = _QUOTED_AT
    characters = iter(value)
    for character in characters:
        place = outside if inside is None else inside
        if strict and closed and inside is None and not depth and character not in " \t,(":
            raise ValueError("words after an address in brackets")
        if character == "\\" and (quoted or depth):
            escaped = next(characters, "")
            if quoted:
                place.append(escaped.replace("@", quoted_at))  # it does not divide the address
        elif quoted:
            if character == '"':
                quoted = False
                place.append(" " if at else "")
            else:
                place.append(veil if character in veiled else character.replace("@", quoted_at))
        elif character == "(":
            depth += 1
        elif depth:
            depth -= character == ")"
            if not depth:
                place.append(" ")  # RFC 5322 3.2.2: a comment is a blank
        elif character == '"':
            quoted = True
            place.append('"' if at else "")  # a domain has none
        elif character == "<":
            if inside is not None or closed:
                raise ValueError("two addresses in one mailbox")
            inside = []
        elif character == ">":
            if inside is None:
                raise ValueError("a bracket that was not opened")
            found.listed.append("".join(inside).strip())
            inside, closed, quoted_at = None, True, "@"  # no display name stands behind
            outside.append(",")  # no word goes on behind the brackets
        elif character in ",;:)" and inside is None:
            if strict and character != ",":
                raise ValueError("a group")
            _finish(found, outside, closed)
            outside, closed, at, quoted_at = [], False, False, _QUOTED_AT
        else:
            place.append(character)
            at = at or character == "@"
    if depth or quoted or inside is not None:
        raise ValueError("something is not closed")
    _finish(found, outside, closed)
    return found


def is_plain(value: str) -> bool:
    """Whether it is a name, in quotes or not, and an address in brackets: no octet of the name is anything else."""
    return _PLAIN.fullmatch(value) is not None


def _finish(found: Mailboxes, outside: list[str], closed: bool) -> None:
    text = "".join(outside).strip(" \t\x0b\x0c,")
    if closed:
        # Real programs write the address as its own name, and need not quote it to be understood.
        if "@" in text and text.lower() != found.listed[-1].lower():
            found.beside.append(text)
    elif text:
        found.listed.append(text)
