"""Whose mail a message claims to be: the domain of its From header, as DMARC needs it (RFC 7489 section 6.6.1).

The reading is strict where parsers differ, because a difference between us and the reader's mail program is an attack:
two From headers, or addresses of two domains in one, are ``SEVERAL`` and never an author. Comments, quoted strings
and angle brackets are scanned once, without recursion, whatever they nest; input beyond ``MAX_OCTETS`` is not read.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from forwarder.mail.canonical import Canonical, relaxed_value
from forwarder.mail.verification import SignatureError, domain_name

MAX_OCTETS = 64 * 1024
# Blanks stand beside a dot, never between two words (RFC 5322 4.4: obs-domain): what follows is no domain any more.
_TWO_WORDS = re.compile(r"[^\s.]\s+[^\s.]")
_NO_DIVIDER = re.compile(r"[^@,:;]*")
# A name, in quotes or not, and an address in brackets; without comments, lists, escapes and whatever is odd.
_PLAIN = re.compile(r'[^"\\<>(),:;]*+(?:"[^"\\]*+"[^"\\<>(),:;]*+)?<([^"\\<>(),:;]*+)>')


class AuthorFault(StrEnum):
    """Why a message has no author to check."""

    MISSING = "no From header"
    SEVERAL = "more than one author"
    UNREADABLE = "the From header cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """The author's domain (A-labels, lower case), or why there is none."""

    domain: str = ""
    fault: AuthorFault | None = None


def author(message: Canonical) -> Author:
    """The one domain that the From header names."""
    fields = message.instances(b"from")
    if not fields:
        return Author(fault=AuthorFault.MISSING)
    if len(fields) > 1:
        return Author(fault=AuthorFault.SEVERAL)
    value = relaxed_value(fields[0])
    if len(value) > MAX_OCTETS:
        return Author(fault=AuthorFault.UNREADABLE)
    try:
        domains = {_domain(address) for address in addresses(value.decode("utf-8", "replace"))}
    except (SignatureError, ValueError):
        return Author(fault=AuthorFault.UNREADABLE)
    # "Pied Piper, Inc. <a@b.example>": words that somebody forgot to quote name no domain.
    domains.discard("")
    if len(domains) > 1:
        return Author(fault=AuthorFault.SEVERAL)
    domain = next(iter(domains), "")
    return Author(domain=domain) if domain else Author(fault=AuthorFault.UNREADABLE)


def may_name(message: Canonical, claimed: Author, domains: Collection[str]) -> bool:
    """Whether a reader may be shown an author of one of these domains although we could not say which author it is."""
    if claimed.domain:
        return False
    fields = message.instances(b"from")
    names = [re.compile(rb"(?<![a-z0-9-])" + re.escape(each.encode()), re.IGNORECASE) for each in domains]
    return any(name.search(raw) for name in names for raw in fields)


def _domain(address: str) -> str:
    """The domain of one address, empty without one; ValueError or SignatureError when it is no name."""
    local, at, domain = address.rpartition("@")
    if not at:
        return ""
    if not _NO_DIVIDER.fullmatch(local):  # readers differ in which of them divides the address, or ends it
        raise ValueError("an address within an address")
    if _TWO_WORDS.search(domain.strip()):
        raise ValueError("words after an address")
    return domain_name(domain)


def addresses(value: str, *, strict: bool = False) -> list[str]:
    """The addresses of a mailbox list, display names and comments left out; ValueError when it is not one.

    ``strict``: nor when words follow an address in brackets, which some readers show instead of it.
    """
    plain = _PLAIN.fullmatch(value)  # nearly all: the walk over each character is for the rest
    if plain is not None:
        return [plain[1].strip()]
    found: list[str] = []
    outside: list[str] = []  # text of the current mailbox outside angle brackets
    inside: list[str] | None = None
    closed = False
    depth = 0
    quoted = False
    # What is quoted divides no address. Strictly, the address is another one than that with _: no address at all.
    veil, veiled = ("\0", "@, \t") if strict else ("_", "@,:; \t")
    characters = iter(value)
    for character in characters:
        place = outside if inside is None else inside
        if strict and closed and inside is None and not depth and character not in " \t,(":
            raise ValueError("words after an address in brackets")
        if character == "\\" and (quoted or depth):
            escaped = next(characters, "")
            if quoted:
                place.append(escaped.replace("@", veil))  # a quoted @ does not divide the address
        elif quoted:
            if character == '"':
                quoted = False
            else:
                place.append(veil if character in veiled else character)
        elif character == "(":
            depth += 1
        elif depth:
            depth -= character == ")"
            if not depth:
                place.append(" ")  # RFC 5322 3.2.2: a comment is a blank
        elif character == '"':
            quoted = True
        elif character == "<":
            if inside is not None or closed:
                raise ValueError("two addresses in one mailbox")
            inside = []
        elif character == ">":
            if inside is None:
                raise ValueError("a bracket that was not opened")
            found.append("".join(inside).strip())
            inside, closed = None, True
        elif character == "," and inside is None:
            _finish(found, outside, closed)
            outside, closed = [], False
        elif character in ";:" and inside is None:
            raise ValueError("a group")
        else:
            place.append(character)
    if depth or quoted or inside is not None:
        raise ValueError("something is not closed")
    _finish(found, outside, closed)
    return found


def _finish(found: list[str], outside: list[str], closed: bool) -> None:
    text = "".join(outside).strip()
    if text and not closed:
        found.append(text)
