"""The right side of an alias: addresses and URLs, with places for what the pattern captured.

What it does: parses ``forward``, a comma-separated list, into destinations, and fills captures in. ``$1`` to ``$9``,
``${1}`` and ``${name}`` in an address stand for what a group of the pattern took; in URLs a ``$`` is only a ``$``.

What it promises: what comes out of filling captures in has been parsed again as an address; a local part cannot
become part of a domain except below a fixed one (``me@$1.example.com``), so that senders never choose where mail goes.

How it fails: ``RuleError`` with a sentence for a person. ``fill`` gives None for what would be no address.

Limits: 1,000 destinations, 2,048 characters of a URL. A comma always ends a destination: in a URL it is written %2C.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from forwarder.mail.address import AddressError, Path, parse_address, parse_domain
from forwarder.mail.pattern import Captures, RuleError, groups_of
from forwarder.mail.words import printable

MAX_DESTINATIONS = 1000
MAX_URL = 2048
_MAX_FORWARD = MAX_DESTINATIONS * 320
_SHOWN = 100  # octets of what was sent that a sentence repeats
# $0 too, which no pattern captures: taken for text, it would be part of an address that nobody has.
_PLACE = re.compile(r"\$(?:([0-9])|\{([0-9]{1,3}|[A-Za-z_][A-Za-z0-9_]{0,31})\})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FIXED_TAIL = re.compile(r"\.[^.$]+\.[^$]+")


def mailbox_key(path: Path) -> str:
    """The one text for an address by which its confirmation is kept: storage form, the local part without case."""
    return Path(local=path.key, domain=path.domain).storage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """An address, or a template of one."""

    template: str  # canonical; the wire form when there is nothing to fill in
    path: Path | None  # the address when there is nothing to fill in

    def fill(self, captures: Captures) -> Path | None:
        """The address with the captures in their places; None when that is no address."""
        if self.path is not None:
            return self.path
        missing = False

        def taken(place: re.Match[str]) -> str:
            nonlocal missing
            value = _lookup(captures, place)
            missing = missing or value is None
            return value or ""

        local, _, domain = self.template.rpartition("@")
        if local.startswith('"'):
            local = re.sub(r"\\(.)", r"\1", local[1:-1])
        filled = Path(local=_PLACE.sub(taken, local), domain=_PLACE.sub(taken, domain))
        if missing or not filled.local:
            return None
        try:
            # Parsed again whole: whatever a sender put into a capture, it is an address or it is nothing.
            return parse_address(filled.wire())
        except AddressError:
            return None

    def __str__(self) -> str:
        return self.template


def _lookup(captures: Captures, place: re.Match[str]) -> str | None:
    group = place[1] or place[2]
    if group.isdecimal():
        number = int(group)
        return captures.groups[number - 1] if 0 < number <= len(captures.groups) else None
    return captures.names.get(group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A URL that takes messages as JSON."""

    url: str
    host: str  # A-labels, or an address without brackets

    def __str__(self) -> str:
        return self.url


Destination = Mailbox | Url


def parse_forward(text: str, *, plain_http: bool = False) -> tuple[Destination, ...]:
    """The destinations of an alias, duplicates removed, in order. Raises RuleError.

    ``plain_http``: http:// URLs are accepted too.
    """
    if "," not in text and "/" not in text and len(text) <= _MAX_FORWARD:  # one address: nearly every alias
        if not text.strip(" "):
            raise RuleError("a destination is missing")
        return (_parse_mailbox(text.strip(" ")),)
    if len(text) > _MAX_FORWARD:
        raise RuleError("the list of destinations is too long")
    pieces = [piece.strip(" ") for piece in text.split(",")]
    if len(pieces) > MAX_DESTINATIONS:
        raise RuleError(f"an alias leads to at most {MAX_DESTINATIONS:,} destinations")
    found: dict[str, Destination] = {}
    before: Destination | None = None
    for piece in pieces:
        try:
            before = _parse_piece(piece, plain_http)
        except RuleError as fault:
            if not isinstance(before, Url):
                raise
            raise RuleError(f"{fault}; a comma in a URL is written %2C") from None
        found.setdefault(str(before), before)
    return tuple(found.values())


def _parse_piece(piece: str, plain_http: bool) -> Destination:
    if not piece:
        raise RuleError("a destination between commas is empty")
    return parse_url(piece, plain_http=plain_http) if _SCHEME.match(piece) else _parse_mailbox(piece)


def canonical_forward(destinations: tuple[Destination, ...]) -> str:
    """The list as it is stored: comma-separated."""
    return ",".join(map(str, destinations))


def check_captures(pattern: str, destinations: tuple[Destination, ...]) -> None:
    """Refuse destinations that ask for a group the pattern does not have. Raises RuleError."""
    if not any(isinstance(destination, Mailbox) and destination.path is None for destination in destinations):
        return
    count, names = groups_of(pattern)
    for destination in destinations:
        if isinstance(destination, Mailbox) and destination.path is None:
            for place in _PLACE.finditer(destination.template):
                group = place[1] or place[2]
                if not (0 < int(group) <= count if group.isdecimal() else group in names):
                    raise RuleError(
                        f'"{destination.template}" asks for {place[0]}, which "{pattern}" does not capture'
                    )


@lru_cache(maxsize=4096)
def _parse_mailbox(text: str) -> Mailbox:
    if "$" not in text or not _PLACE.search(text):
        path = _address(text, text)
        return Mailbox(template=path.wire(), path=path)
    local, _, domain = text.rpartition("@")
    places = list(_PLACE.finditer(domain))
    if places and not _FIXED_TAIL.fullmatch(domain, places[-1].end()):
        raise RuleError(
            f'"{text}" lets the sender choose the domain; after the last capture in it there must be a fixed domain, '
            "as in me@$1.example.com"
        )
    # A capture may be any text, so a template is good when it is an address with text in its places.
    _address(_PLACE.sub("x", text), text)
    return Mailbox(template=f"{local}@{_canonical_domain(domain)}", path=None)


def _canonical_domain(domain: str) -> str:
    places: list[str] = []

    def stand_in(place: re.Match[str]) -> str:
        places.append(place[0])
        return f"zqz{len(places)}zqz"

    ascii_domain = parse_domain(_PLACE.sub(stand_in, domain))
    for number, place in enumerate(places, 1):
        ascii_domain = ascii_domain.replace(f"zqz{number}zqz", place, 1)
    return ascii_domain


def _address(text: str, shown: str) -> Path:
    try:
        return parse_address(text)
    except AddressError as error:
        several = "; destinations are separated by commas" if text.count("@") > 1 else ""
        raise RuleError(f'"{printable(shown, _SHOWN)}" is not an address: {error}{several}') from None


def parse_url(text: str, *, plain_http: bool = False) -> Url:
    """One URL in canonical form. Raises RuleError."""
    if len(text) > MAX_URL:
        raise RuleError(f"a URL has at most {MAX_URL:,} characters")
    schemes = ("https", "http") if plain_http else ("https",)
    refuse = _refusal(printable(text, _SHOWN))
    if not text.isprintable() or any(character in text for character in ' "<>\\^`{|}'):
        raise refuse("a URL cannot hold blanks, quotes, brackets or invisible characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise refuse("it is not a well-formed URL") from None
    if parts.scheme not in schemes:
        raise refuse(f"a URL begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc or not parts.hostname:
        raise refuse("a URL needs a host, and no user or password before it")
    if port == 0 or parts.netloc.endswith(":"):
        raise refuse("a port is a number from 1 to 65535")
    if parts.fragment or text.endswith("#"):
        raise refuse("the part after # of a URL is never sent; leave it away")
    tail = text[text.index("://") + 3 + len(parts.netloc) :]
    if not tail.isascii():
        raise refuse("characters beyond ASCII in the path of a URL are written percent-encoded")
    host, shown_host = _url_host(parts.hostname, refuse)
    return Url(url=f"{parts.scheme}://{shown_host}{f':{port}' if port is not None else ''}{tail}", host=host)


def _refusal(shown: str) -> Callable[[str], RuleError]:
    return lambda reason: RuleError(f'"{shown}": {reason}')


def _url_host(hostname: str, refuse: Callable[[str], RuleError]) -> tuple[str, str]:
    """The host, and how it is written inside a URL."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        name = _url_domain(hostname, refuse)
        return name, name
    if getattr(address, "scope_id", None):
        raise refuse("an address with a zone is only meaningful on one machine")
    return str(address), f"[{address}]" if address.version == 6 else str(address)


def _url_domain(hostname: str, refuse: Callable[[str], RuleError]) -> str:
    try:
        return parse_domain(hostname)
    except AddressError as error:
        raise refuse(str(error)) from None


def identity(destination: Path | Url) -> tuple[str, str]:
    """The same for destinations that are one: case in a local part sets no two mailboxes apart in practice."""
    return ("", destination.url) if isinstance(destination, Url) else (destination.key, destination.domain)
