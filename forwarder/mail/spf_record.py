"""The text of an SPF record: its terms, and those for which receivers take it as broken (RFC 7208 4.6, 5, 6 and 12).

One term that is none makes a record worthless as a whole: the result is permerror, wherever it stands (4.6), behind
``all``, too. Unknown modifiers (``name=…``) are none of that.

Pure, and linear in the text. Evaluation is ``inbound.spf``'s.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

LONGEST = 4096  # octets; RFC 7208 3.4 wants 450, and an evaluation is repeated for each answer
MOST_LOOKUPS = 10  # RFC 7208 4.6.4
LOOKS_UP = frozenset({"include", "a", "mx", "ptr", "exists", "redirect"})

_FLAGS = re.IGNORECASE | re.ASCII
_MECHANISM = re.compile(
    r"([-+?~]?)([a-z0-9]+)(?::([^ ]*?))?((?:/(?:0|[1-9]\d?))?(?://(?:0|[1-9]\d{0,2}))?)", _FLAGS
)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", _FLAGS)
_MACRO = r"%\{[slodiphcrtv]\d*r?[-.+,/_=]*\}|%[%_-]"
_MACRO_STRING = re.compile(rf"(?:[!-$&-~]|{_MACRO})*", _FLAGS)
_MACRO_AT_END = re.compile(rf"(?:{_MACRO})\Z", _FLAGS)
_TOP_LABEL = re.compile(r"(?!\d*\Z)(?!-)[a-z0-9-]+(?<!-)", _FLAGS)


class Term(NamedTuple):
    """One mechanism or modifier that is well formed."""

    qualifier: str  # "" is a pass; "=" of a modifier
    name: str  # lower case
    argument: str  # what stands behind the colon or the equals sign, without prefix lengths


def parse_spf(record: str) -> tuple[list[Term], list[str]]:
    """The terms behind the version, and the texts of those that are at fault."""
    terms: list[Term] = []
    faults: list[str] = []
    if len(record) > LONGEST:
        return [], [record]
    for text in record.split(" ")[1:]:
        if not text:
            continue
        term = _term(text)
        # RFC 7208 6: once at most.
        once = term is not None and term.qualifier == "=" and term.name in ("redirect", "exp")
        if term is None or (once and any(term.name == known.name for known in terms)):
            faults.append(text)
        else:
            terms.append(term)
    return terms, faults


def fault_of(record: str) -> str:
    """Why receivers take the record as broken, as a sentence; "": they do not."""
    _, faults = parse_spf(record)
    if not faults:
        return ""
    shown = faults[0]
    # It is the text of a stranger, and goes to terminals and into replies.
    return (
        f'"{shown}" is no term of SPF'
        if shown.isprintable() and len(shown) <= 100
        else "a term is none of SPF"
    )


def without_faults(record: str) -> str:
    """What is left of the record without the terms that break it."""
    faults = Counter(parse_spf(record)[1])
    kept: list[str] = []
    for term in reversed(record.split(" ")):  # of one that may stand there once, the first is right
        if faults[term]:
            faults[term] -= 1
        else:
            kept.append(term)
    return " ".join(reversed(kept))


def _term(text: str) -> Term | None:
    if modifier := _MODIFIER.fullmatch(text):
        name, value = modifier[1].lower(), modifier[2]
        right = _is_domain(value) if name in ("redirect", "exp") else _is_macro_string(value)
        return Term("=", name, value) if right else None
    if (found := _MECHANISM.fullmatch(text)) is None:
        return None
    qualifier, name, argument, lengths = found[1], found[2].lower(), found[3], found[4]
    match name:
        case "all":
            right = argument is None and not lengths
        case "include" | "exists":
            right = argument is not None and _is_domain(argument + lengths)
        case "ptr":
            right = not lengths and (argument is None or _is_domain(argument))
        case "a" | "mx":
            right = (argument is None or _is_domain(argument)) and _are_prefixes(lengths)
        case "ip4":
            right = _is_network(argument, lengths, ipaddress.IPv4Address, 32)
        case "ip6":
            right = _is_network(argument, lengths, ipaddress.IPv6Address, 128)
        case _:
            right = False
    return Term(qualifier, name, argument or "") if right else None


def _is_macro_string(text: str) -> bool:
    return _MACRO_STRING.fullmatch(text) is not None


def _is_domain(text: str) -> bool:
    """RFC 7208 7.1: ends in a label that is no number, behind a dot, or in a macro."""
    if not _is_macro_string(text):
        return False
    if _MACRO_AT_END.search(text[-32:]):
        return True
    return ends_in_label(text)


def ends_in_label(text: str) -> bool:
    """Whether it ends in a dot and a label that is no number, and perhaps a dot (RFC 7208 7.1: domain-end)."""
    _, dot, label = text.removesuffix(".").rpartition(".")
    return bool(dot) and _TOP_LABEL.fullmatch(label) is not None


def _are_prefixes(lengths: str) -> bool:
    """``/24``, ``//64`` or both."""
    four, _, six = lengths.partition("//")
    return int(four[1:] or 0) <= 32 and int(six or 0) <= 128


def _is_network(argument: str | None, lengths: str, address: Callable[[str], object], most: int) -> bool:
    try:
        address(argument or "")
    except ValueError:
        return False
    return "%" not in (argument or "") and "//" not in lengths and int(lengths[1:] or 0) <= most
