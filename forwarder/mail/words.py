"""Text from strangers made fit for people's eyes: RFC 2047 words decoded, control characters escaped, all bounded.

Nothing here raises, whatever the text. Only the character sets in the table are decoded; a word in another stays as
it was written. (Asking Python for any name a stranger writes would grow its table of unknown codecs for ever.)
"""

import base64
import binascii
import re

_WORD = re.compile(r"=\?([!-~]{1,40}?)\?([bq])\?([!->@-~]*)\?=", re.IGNORECASE)
_QUOTED_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
# Blanks are read from the first of them only: begun at each, a long row would be read as often as it is long.
_AT_DOT = re.compile(r"(?<!\s)\s++\.\s*+|\.\s*+")

_SIGNS = re.compile(r"[^0-9a-z]+")


def _bare(name: str) -> str:
    """The name of a character set without its signs, which programs write as they like: iso8859-1, euc_jp."""
    return _SIGNS.sub("", name[:100].lower())


# The names that are known, and Python's for each.
_CHARSETS = {
    _bare(name): name
    for name in (
        "utf-8",
        "us-ascii",
        "ascii",
        "utf-16",
        "utf-16le",
        "utf-16be",
        "latin1",
        "koi8-r",
        "koi8-u",
        "gb2312",
        "gbk",
        "gb18030",
        "hz-gb-2312",
        "big5",
        "big5-hkscs",
        "euc-jp",
        "shift_jis",
        "iso-2022-jp",
        "iso-2022-jp-2",
        "iso-2022-kr",
        "euc-kr",
        "ks_c_5601-1987",
        "tis-620",
        "cp437",
        "cp850",
        "cp852",
        "cp866",
        "cp932",
        "cp949",
        "cp950",
        "macintosh",
        *(f"iso-8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)),
        *(f"windows-{page}" for page in range(1250, 1259)),
        *(f"cp{page}" for page in (874, *range(1250, 1259))),
    )
}
# Other names of these, as mail has them and browsers read them (https://encoding.spec.whatwg.org/#names-and-labels).
_CHARSETS |= {
    _bare(name): known
    for known, names in {
        "ascii": ("ansi_x3.4-1968",),
        "big5": ("cn-big5", "x-x-big5"),
        "cp874": ("windows-874", "dos-874"),
        "cp932": ("windows-31j", "ms932", "x-sjis", "sjis", "ms_kanji"),
        "cp949": ("windows-949", "ksc5601", "ks_c_5601-1989"),
        "euc-jp": ("x-euc-jp",),
        "gbk": ("cp936", "ms936", "windows-936", "x-gbk", "gb_2312-80"),
        "iso-8859-8": ("iso-8859-8-i", "iso-8859-8-e"),
        "macintosh": ("x-mac-roman", "mac"),
        **{f"cp{page}": (f"win-{page}", f"x-cp{page}") for page in range(1250, 1259)},
    }.items()
    for name in names
}


def printable(text: str, limit: int = 1024) -> str:
    """The text on one line without control characters, at most ``limit`` octets of UTF-8.

    What does not print (controls, surrogates, line separators, bidirectional overrides) is written as an escape.
    """
    if text.isprintable() and len(text) <= limit and (text.isascii() or len(text) * 4 <= limit):
        return text
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:limit]
    )
    encoded = shown.encode()
    if len(encoded) <= limit and len(text) <= limit:
        return shown
    return encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def dots_closed(text: str) -> str:
    """The text without blanks beside its dots, where obsolete domains may have them (RFC 5322 4.4). Linear."""
    return _AT_DOT.sub(".", text)


def known_charset(name: str) -> str | None:
    """The character set that a stranger names, as Python knows it; None for one that is not in the table."""
    return _CHARSETS.get(_bare(name))


def decode_words(text: str) -> str:
    """RFC 2047 encoded words as characters; white space between two of them goes (RFC 2047 6.2)."""
    if "=?" not in text:
        return text
    pieces: list[str] = []
    pending: list[bytes] = []  # adjacent words of one character set: a character may be cut between them
    charset = ""  # of the pending words; empty when what came last is no decoded word
    end = 0
    for word in _WORD.finditer(text):
        named = known_charset(word[1].partition("*")[0])  # RFC 2231 5: a language may follow
        octets = None if named is None else _octets(word[2], word[3])
        gap = text[end : word.start()]
        joins = bool(charset) and octets is not None and not gap.strip()
        if not joins or named != charset:
            pieces.append(_decode(pending, charset))
            pending = []
        if not joins:
            pieces.append(gap)
        if octets is None or named is None:
            pieces.append(word[0])
            charset = ""
        else:
            pending.append(octets)
            charset = named
        end = word.end()
    pieces.append(_decode(pending, charset))
    pieces.append(text[end:])
    return "".join(pieces)


def _octets(encoding: str, encoded: str) -> bytes | None:
    raw = encoded.encode("ascii")
    if encoding in "qQ":
        return _QUOTED_OCTET.sub(lambda found: bytes.fromhex(found[1].decode()), raw.replace(b"_", b" "))
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4))
    except binascii.Error:
        return None


def _decode(octets: list[bytes], charset: str) -> str:
    if not octets:
        return ""
    try:
        return b"".join(octets).decode(charset, "replace")
    except (LookupError, UnicodeError):
        return b"".join(octets).decode("ascii", "replace")
