"""The addresses of a header field as the log and a webhook show them; decisions are made by ``mail.author``.

Nothing raises and nothing is checked by the grammar of addresses: what comes out is printable and bounded, decoded by
RFC 2047. Of a field the first ``content.MAX_VALUE`` octets are looked at, in one pass.
"""

import re

from forwarder.mail.content import MAX_VALUE, unfolded
from forwarder.mail.words import decode_words, printable

_ONE_MAILBOX = re.compile(r'(?:"([^"\\]*)"\s*|([^"\\<>(),:;@]*))<([^"\\<>(),:;\s]+)>[ \t]*')


def mailbox(value: bytes) -> tuple[str | None, str | None]:
    """The first address of an address field and its name, for logs: ``(email, name)``, each None if not there."""
    found = mailboxes(value, 1)
    return found[0] if found else (None, None)


def mailboxes(value: bytes, limit: int = 100) -> list[tuple[str | None, str | None]]:
    """The addresses of an address field, ``(email, name)`` each, as it stands before RFC 2047 decoding.

    Takes the raw value, since a decoded name could hold what looks like an address. Groups lose their name. Nothing
    here is checked by the grammar of addresses: it is for display, and for asking ``mail.address`` next.
    """
    text = unfolded(value[:MAX_VALUE])
    found: list[tuple[str | None, str | None]] = []
    plain = _ONE_MAILBOX.fullmatch(text)  # nearly all: the walk over each character is for the rest
    if plain is not None:
        shown = printable(decode_words((plain[1] or plain[2] or "").strip()), 256)
        found = [(printable(plain[3], 320), shown or None)]
        return found[:limit]
    for words, angle, comment in _addresses(text):
        bare = words.strip()
        if angle is not None:
            email, name = angle.strip(), bare
        elif "@" in bare:
            before, at, domain = bare.partition("@")
            *names, local = before.split() or [""]  # a name that lost its brackets is no part of the address
            email, name = (local + at + domain).replace(" ", ""), comment or " ".join(names)
        else:
            email, name = "", bare
        if email or name:
            shown = printable(decode_words(name.strip()), 256)
            found.append((printable(email, 320) or None, shown or None))
            if len(found) >= limit:
                break
    return found


def _addresses(text: str) -> list[tuple[str, str | None, str]]:
    """One pass over an address list: the words outside brackets, what is inside < >, and the comments."""
    found: list[tuple[str, str | None, str]] = []
    words: list[str] = []
    comments: list[str] = []
    angle: list[str] | None = None
    in_angle = in_quotes = False
    depth = 0
    escaped = at_seen = False
    for character in text:
        if escaped:
            escaped = False
            if depth:
                comments.append(character)
                continue
        elif character == "\\" and (in_quotes or depth):
            escaped = True
            continue
        elif depth:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth:
                comments.append(character)
            continue
        elif character == '"':
            in_quotes = not in_quotes
            if not in_angle:
                continue
        elif in_quotes:
            pass
        elif character == "(":
            depth = 1
            continue
        elif character == "<" and not in_angle and angle is None:
            in_angle, angle = True, []
            continue
        elif character == ">" and in_angle:
            in_angle = False
            continue
        elif character == ":" and not in_angle and not at_seen:
            words.clear()  # the name of a group
            continue
        elif character in ",;" and not in_angle:
            found.append(_address(words, angle, comments))
            words, comments, angle, at_seen = [], [], None, False
            continue
        at_seen = at_seen or (character == "@" and not in_angle)
        (angle if in_angle and angle is not None else words).append(character)
    return [*found, _address(words, angle, comments)]


def _address(words: list[str], angle: list[str] | None, comments: list[str]) -> tuple[str, str | None, str]:
    return "".join(words), None if angle is None else "".join(angle), "".join(comments)
