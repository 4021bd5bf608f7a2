"""Addresses: one type, ``Path``, with one method per use.

What it does: parses the reverse-path and forward-paths of SMTP, addresses from the API and the configuration, and
domains, by the grammar of RFC 5321 4.1.2 with the extension of RFC 6531 3.3; nothing looser, but for reverse-paths,
which their senders cannot change. A path holds the local part with its quoting undone and the domain as lower-case
A-labels; ``wire()`` puts the quoting back.

What it promises: ``parse(path.wire()) == path`` for every path it made, so what was stored is, octet for octet, what
goes out in MAIL and RCPT. No path holds a control character, NUL, CR, LF, a surrogate or a line separator.

How it fails: ``AddressError`` with a ``fault`` for the program and a sentence for a person.

Limits, on purpose: no comments or folding space (RFC 5322 forms), no source routes, no address literals in paths
(``parse_helo`` knows them), no domain whose last label is a number. 64 octets of local part, 253 of domain, 254 of
path (RFC 5321 4.5.3.1). An address that was made from another may have a longer local part: an SRS address, since it
has to come back (see ``mail.srs``), and in a reverse-path all that hold one (VERP, BATV), as lists send them.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import idna

MAX_LOCAL = 64  # octets, RFC 5321 4.5.3.1.1
MAX_DOMAIN = 253  # octets; RFC 5321 4.5.3.1.2 says 255, the DNS carries 253
MAX_PATH = 254  # octets between the angle brackets, RFC 5321 4.5.3.1.3
_MAX_RAW = 1024  # octets looked at: U-labels may be longer than the A-labels they become

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ATEXT_UTF8 = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]"
_LABEL = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
# Every alternative below begins with a different character: these match in linear time.
_PLAIN = re.compile(rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@({_LABEL}(?:\.{_LABEL})*)")
_DOT_STRING = re.compile(rf"{_ATEXT_UTF8}+(?:\.{_ATEXT_UTF8}+)*")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LOOSE_LABEL = r"\w+(?:-+\w+)*"
_LOOSE_DOMAIN = re.compile(rf"{_LOOSE_LABEL}(?:\.{_LOOSE_LABEL})*", re.ASCII)
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[\x20-\x7e])*)"@')
_ESCAPED = re.compile(r"\\(.)")
_TO_ESCAPE = re.compile(r'(["\\])')
_SRS = re.compile(r"SRS[01][=+-]", re.IGNORECASE)
_MADE_FROM_ANOTHER = re.compile(r"SRS[01][+-]|[^=]+=", re.IGNORECASE)  # "=" stands for its @
# Controls, surrogates, separators: never. Bidirectional overrides: they only serve to show an address falsely.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp", "Zs"})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class _Grammar(NamedTuple):
    domain: re.Pattern[str]
    long: re.Pattern[str]  # how a local part begins that may be longer than MAX_LOCAL


_STRICT = _Grammar(domain=_DOMAIN, long=_SRS)
_OF_SENDERS = _Grammar(domain=_LOOSE_DOMAIN, long=_MADE_FROM_ANOTHER)


class AddressFault(StrEnum):
    """Why a text is no address."""

    SYNTAX = "syntax"  # not what RFC 5321 4.1.2 calls a path
    TOO_LONG = "too long"  # local part, domain or path beyond its limit
    NON_ASCII = "non-ascii"  # needs SMTPUTF8, which was not asked for
    DOMAIN = "domain"  # the local part is right, the domain is not
    LITERAL = "literal"  # an address literal where a domain is wanted


class AddressError(ValueError):
    """A text that is no address; ``str()`` is a sentence for a person."""

    def __init__(self, fault: AddressFault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A reverse-path or forward-path. Make it with the parsers below; the constructor trusts its caller."""

    local: str  # the content: quoting undone
    domain: str  # lower-case A-labels; empty for the null path and for <postmaster>
    _wire: str | None = field(default=None, init=False, repr=False, compare=False)

    @staticmethod
    def null() -> Path:
        """The null reverse-path: who sends it wants no answer (RFC 5321 4.5.5)."""
        return _NULL

    @property
    def is_null(self) -> bool:
        """Whether this is the null reverse-path."""
        return not self.domain and not self.local

    @property
    def key(self) -> str:
        """The local part as look-ups compare it: case and Unicode composition set aside."""
        return fold(self.local)

    @property
    def needs_smtputf8(self) -> bool:
        """Whether the next hop has to know SMTPUTF8; the domain never needs it, being A-labels."""
        return not self.local.isascii()

    def wire(self) -> str:
        """The text between < and > in MAIL and RCPT; empty for the null path. Made once: a message asks ten times."""
        wire = self._wire
        if wire is None:
            wire = self._written()
            object.__setattr__(self, "_wire", wire)
        return wire

    def _written(self) -> str:
        local = self.local
        if not _DOT_STRING.fullmatch(local):
            if not local and not self.domain:
                return ""
            local = '"' + _TO_ESCAPE.sub(r"\\\1", local) + '"'
        return f"{local}@{self.domain}" if self.domain else local

    def __str__(self) -> str:
        return self.wire()

    def storage(self) -> str:
        """What the database holds: the wire form."""
        return self.wire()

    @staticmethod
    def from_storage(text: str) -> Path:
        """The path whose ``storage()`` was ``text``; trusts the database, checks nothing."""
        if not text:
            return _NULL
        if text[0] == '"':
            end = text.rindex('"')
            return Path(local=_ESCAPED.sub(r"\1", text[1:end]), domain=text[end + 2 :])
        local, _, domain = text.partition("@")
        return Path(local=local, domain=domain)

    def display(self) -> str:
        """For people: like the wire form, with the domain as U-labels."""
        if not self.domain:
            return self.wire()
        return self.wire()[: -len(self.domain)] + display_domain(self.domain)


_NULL = Path(local="", domain="")


def fold(local: str) -> str:
    """A local part as look-ups compare it: case and Unicode composition set aside."""
    if local.isascii():
        return local.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", local).casefold())


def parse_path(raw: bytes | str, *, smtputf8: bool) -> Path:
    """The path between < and >, by the grammar alone.

    Raises AddressError; without ``smtputf8`` anything beyond ASCII is the fault NON_ASCII.
    """
    return _parse(raw, _STRICT, smtputf8=smtputf8)


def parse_reverse_path(raw: bytes | str, *, smtputf8: bool) -> Path:
    """The path of MAIL: like ``parse_path``, the null path, ``_`` in the domain, and long local parts with a ``=``.

    RFC 1123 2.1 has no ``_`` in the names of hosts; hosts that are named so send mail with it, which is wanted.
    """
    return _parse(raw, _OF_SENDERS, smtputf8=smtputf8) if raw else _NULL


def _parse(raw: bytes | str, grammar: _Grammar, *, smtputf8: bool) -> Path:
    if len(raw) <= MAX_PATH:
        try:
            text = raw.decode("ascii") if isinstance(raw, bytes) else raw
        except UnicodeDecodeError:
            return _parse_rare(raw, grammar, smtputf8=smtputf8)
        plain = _PLAIN.fullmatch(text)
        if plain is not None:
            local, domain = plain.groups()
            if len(local) <= MAX_LOCAL and len(domain) < 64 and not domain[-1].isdigit():
                return Path(local=local, domain=domain.lower())
    return _parse_rare(raw, grammar, smtputf8=smtputf8)


def parse_forward_path(raw: bytes | str, *, smtputf8: bool) -> Path:
    """The path of RCPT: like ``parse_path``, and <postmaster> without a domain (RFC 5321 4.1.1.3)."""
    if len(raw) == 10 and raw.lower() in (b"postmaster", "postmaster"):
        return Path(local="postmaster", domain="")
    return parse_path(raw, smtputf8=smtputf8)


def parse_address(text: str) -> Path:
    """An address from the API, a forward or the configuration: as strict as the wire, non-ASCII allowed."""
    return parse_path(text, smtputf8=True)


def _parse_rare(raw: bytes | str, grammar: _Grammar, *, smtputf8: bool) -> Path:
    """All that is not a short ASCII dot-string at a domain; also the one place that finds out what is wrong."""
    text = _decode(raw)
    if not text:
        raise AddressError(AddressFault.SYNTAX, "an address is missing")
    if not text.isascii() and not smtputf8:
        raise AddressError(
            AddressFault.NON_ASCII, "an address with characters beyond ASCII needs the SMTPUTF8 extension"
        )
    local, domain_text = _split(text)
    _check_characters(local)
    if domain_text.startswith("["):
        raise AddressError(
            AddressFault.LITERAL, "an address literal is not accepted here; a domain is needed"
        )
    domain = _parse_domain(domain_text, grammar.domain)
    path = Path(local=local, domain=domain)
    wire = path.wire().encode()
    limit = MAX_PATH if grammar.long.match(local) else MAX_LOCAL
    if len(wire) - len(domain) - 1 > limit:
        raise AddressError(AddressFault.TOO_LONG, f"the part before @ is longer than {MAX_LOCAL} octets")
    if len(wire) > MAX_PATH:
        raise AddressError(AddressFault.TOO_LONG, f"the address is longer than {MAX_PATH} octets")
    return path


def _decode(raw: bytes | str) -> str:
    if len(raw) > _MAX_RAW:
        raise AddressError(AddressFault.TOO_LONG, f"the address is longer than {MAX_PATH} octets")
    try:
        return raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise AddressError(AddressFault.SYNTAX, "the address is not valid UTF-8") from None


def _split(text: str) -> tuple[str, str]:
    """The content of the local part, and what follows its @."""
    if text[0] == '"':
        quoted = _QUOTED.match(text)
        if quoted is None:
            raise AddressError(AddressFault.SYNTAX, "the quoted part before @ is not well formed")
        return _ESCAPED.sub(r"\1", quoted[1]), text[quoted.end() :]
    local, at, domain = text.partition("@")
    if not at:
        raise AddressError(AddressFault.SYNTAX, "an address needs a local part, an @ and a domain")
    if not local and ":" in domain:
        raise AddressError(AddressFault.SYNTAX, "source routes are not accepted")  # RFC 5321 appendix C
    if not _DOT_STRING.fullmatch(local):
        raise AddressError(
            AddressFault.SYNTAX, "the part before @ holds a character or a dot that may not be there"
        )
    return local, domain


def _check_characters(local: str) -> None:
    if local.isascii():  # the grammar has already kept controls out
        return
    for character in local:
        if character != " " and (
            unicodedata.category(character) in _FORBIDDEN_CATEGORIES or character in _BIDI
        ):
            raise AddressError(
                AddressFault.SYNTAX, "the part before @ holds an invisible or control character"
            )


def parse_domain(text: str) -> str:
    """A domain name as lower-case A-labels; U-labels are mapped by UTS 46. Raises AddressError."""
    return _parse_domain(text, _DOMAIN)


def _parse_domain(text: str, grammar: re.Pattern[str]) -> str:
    if len(text) > _MAX_RAW:
        raise AddressError(AddressFault.TOO_LONG, "the domain is longer than 253 octets")
    domain = text if text.isascii() else _to_ascii(text)
    if not grammar.fullmatch(domain):
        raise AddressError(AddressFault.DOMAIN, "the domain is not well formed")
    if len(domain) > MAX_DOMAIN or (len(domain) > 63 and max(map(len, domain.split("."))) > 63):
        raise AddressError(AddressFault.TOO_LONG, "the domain, or a label of it, is too long")
    if domain.rpartition(".")[2].isdigit():
        # RFC 1123 2.1: so that 127.0.0.1 can never be taken for a name, nor dialled as one.
        raise AddressError(AddressFault.DOMAIN, "the last label of a domain cannot be a number")
    return domain.lower()


@lru_cache(maxsize=1024)
def _to_ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except UnicodeError:  # an IDNAError is one
        raise AddressError(AddressFault.DOMAIN, "the domain is not a valid internationalised name") from None


@lru_cache(maxsize=1024)
def display_domain(domain: str) -> str:
    """A-labels as U-labels, for people; a label that does not decode stays as it is."""
    if "xn--" not in domain:
        return domain
    return ".".join(_display_label(label) for label in domain.split("."))


def _display_label(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        shown = idna.decode(label)
        return shown if idna.encode(shown, uts46=True, std3_rules=True).decode("ascii") == label else label
    except UnicodeError:  # an IDNAError is one
        return label


def parse_literal(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in an address literal such as ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321 4.1.3)."""
    if (
        len(text) > 60
        or not (text.startswith("[") and text.endswith("]"))
        or not text.isascii()
        or "%" in text
    ):
        return None
    inside = text[1:-1]
    try:
        if inside[:5].lower() == "ipv6:":
            return ipaddress.IPv6Address(inside[5:])
        return ipaddress.IPv4Address(inside)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def parse_helo(text: str) -> str | None:
    """The argument of HELO or EHLO in canonical form, or None when it is neither a domain nor a literal.

    A domain may have a ``_``, as in a reverse-path.
    """
    literal = parse_literal(text)
    if literal is not None:
        return f"[IPv6:{literal}]" if literal.version == 6 else f"[{literal}]"
    try:
        return _parse_domain(text, _LOOSE_DOMAIN)
    except AddressError:
        return None
