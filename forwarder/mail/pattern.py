"""The left side of an alias: what it may look like, and how it is matched.

What it does: tells the four kinds of pattern apart, checks what a person wrote and gives its canonical form. A regular
expression is for RE2 only: linear time and bounded memory whatever was written; the whole local part has to match,
upper and lower case alike.

How it fails: ``RuleError``, whose text a person understands.

Limits: 150 characters, as in the services whose aliases these are; MAX_PROGRAM instructions of RE2 for an expression
and MAX_PROGRAMS for those of a domain together (``program_size``), since an instruction takes up to a microsecond to
compile, as long to run over a local part, and some hundred octets to keep (``mail.expressions`` asks them).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2

from forwarder.mail.address import MAX_LOCAL, AddressError, fold, parse_address

MAX_PATTERN = 150  # characters
MAX_PROGRAM = 2500  # instructions: [\w.+-]{1,64} has 700, and a local part no more than 64 octets
MAX_PROGRAMS = 250_000  # those of a domain together
MEMORY = 512 << 10  # octets for one expression that is saved: an earlier release took more
_NEW_MEMORY = 128 << 10  # for one that is to be: a larger one is given up early
_REGEX_SIGNS = frozenset("()[]{}\\|^$")
_ANY_BYTE = re.compile(r"(?:[^\\]|\\[^C])*\\C", re.DOTALL)
_PROBE_DOMAIN = "example.org"

_TOO_LARGE = (
    "the regular expression is too large; it is compared with 64 octets at most, and need not count further"
)

# What RE2 says, and what a person can do with it.
_EXPLANATIONS = (
    (
        "invalid perl operator",
        "look-around and other Perl extensions are not available in regular expressions here",
    ),
    ("invalid named capture", "a named group is written (?P<name>…)"),
    ("invalid escape sequence", "back-references and this backslash sequence are not available here"),
    ("invalid repetition size", "a repetition may count to 1,000 at most, nested ones multiplied"),
    ("bad repetition operator", "repetition signs may not follow each other"),
    ("no argument for repetition", "there is nothing before a repetition sign"),
    ("pattern too large", _TOO_LARGE),
    ("missing )", "an opening parenthesis is not closed"),
    ("unexpected )", "a closing parenthesis was not opened"),
    ("missing ]", "an opening bracket is not closed"),
    ("invalid character class", "a character class is not well formed"),
    ("trailing \\", "the pattern ends in a backslash"),
)


class RuleError(ValueError):
    """An alias that cannot be; ``str()`` is a sentence for a person."""


class AliasKind(StrEnum):
    """How an alias matches, in the order in which kinds are asked."""

    EXACT = "exact"
    REGEX = "regex"
    WILDCARD = "wildcard"
    CATCH_ALL = "catch-all"


def classify(pattern: str) -> AliasKind:
    """The kind of a pattern, by the signs it holds."""
    if not _REGEX_SIGNS.isdisjoint(pattern):
        return AliasKind.REGEX
    if pattern == "*":
        return AliasKind.CATCH_ALL
    return AliasKind.WILDCARD if "*" in pattern else AliasKind.EXACT


def pattern_of(expression: str) -> str:
    """The pattern that is this regular expression whatever signs it holds: ``sales.*`` alone would be a wildcard."""
    return f"(?:{expression})"


@lru_cache(maxsize=20_000)  # a page of rules asks for a hundred, in the event loop
def expression_of(pattern: str) -> str | None:
    """What ``pattern_of`` was given; None for a pattern that it cannot have made."""
    expression = pattern.removeprefix("(?:").removesuffix(")")
    if not expression or pattern != pattern_of(expression):
        return None
    try:
        compile_regex(expression)  # no: "(?:a)|(?:b)" begins and ends alike
    except RuleError:
        return None
    return expression


def parse_pattern(text: str) -> str:
    """The canonical form of what a person wrote left of the @. Raises RuleError."""
    pattern = text.strip(" ")
    if not pattern:
        raise RuleError("an alias cannot be empty; use * for a catch-all")
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"an alias has at most {MAX_PATTERN} characters")
    if not pattern.isprintable():
        raise RuleError("an alias cannot hold control or invisible characters")
    kind = classify(pattern)
    if kind is AliasKind.REGEX:
        compile_regex(pattern)
        return pattern
    if kind is AliasKind.WILDCARD and "**" in pattern:
        raise RuleError("an alias cannot hold two * next to each other")
    # Each * stands for any text, so a pattern is good when it is one with text in the stars' place. The stars of
    # themselves are letters of an address.
    if kind is not AliasKind.CATCH_ALL:
        _check_local(pattern)
    return fold(pattern)


def stored_name(wanted: str) -> str:
    """How an alias that is asked for by this name was stored, whether it is still there or not."""
    try:
        return parse_pattern(wanted)
    except RuleError:
        return wanted.lower()


def _check_local(pattern: str) -> None:
    local = pattern.replace("*", "x") if classify(pattern) is AliasKind.WILDCARD else pattern
    if "@" in local:
        raise RuleError("an alias is only what stands before the @, without the domain")
    try:
        # A dot may stand beside a star: what the star takes ends there.
        heard = parse_address(f"{local}@{_PROBE_DOMAIN}").local
    except AddressError:
        heard = None
    # Recipients are compared without their quotes: an alias that has some would never answer.
    if heard != local:
        raise RuleError(
            "an alias holds only what may stand before the @ of an address: letters, digits, dots between them and "
            f"any of !#%&'+-/=?_`~, at most {MAX_LOCAL} in all; a regular expression is put in parentheses"
        )


def re2_options(memory: int, *, captures: bool) -> Any:
    """How every pattern is compiled, in at most so many octets."""
    options = re2.Options()
    options.max_mem = memory
    options.case_sensitive = False
    options.log_errors = False
    options.never_capture = not captures
    return options


@lru_cache(maxsize=512)  # saving one asks for it four times
def compile_regex(pattern: str) -> Any:
    """The expression in RE2, or RuleError. It is for ``fullmatch`` only: anchored at both ends."""
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"an alias has at most {MAX_PATTERN} characters")
    if _ANY_BYTE.match(pattern):
        # RE2 takes it, and then matches half a character, which no address can hold.
        raise RuleError("\\C is not available in regular expressions here")
    try:
        compiled = re2.compile(pattern, options=re2_options(_NEW_MEMORY, captures=True))
    except (re2.error, UnicodeEncodeError) as error:
        raise RuleError(_explain(error)) from None
    if compiled.programsize > MAX_PROGRAM:
        raise RuleError(_TOO_LARGE)
    return compiled


@lru_cache(maxsize=20_000)
def program_size(pattern: str) -> int:
    """How many instructions a pattern takes; 0 for one that is no expression, or does not compile.

    The first time it costs what compiling costs.
    """
    if classify(pattern) is not AliasKind.REGEX:
        return 0
    try:
        size: int = re2.compile(pattern, options=re2_options(MEMORY, captures=False)).programsize
    except (re2.error, UnicodeEncodeError):
        return 0
    return size


def _explain(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    for sign, explanation in _EXPLANATIONS:
        if text.startswith(sign):
            return f"{explanation} ({text})" if text.isprintable() else explanation
    return "the regular expression is not well formed"


def too_large_together(patterns: Sequence[str]) -> bool:
    """Whether the patterns of a domain take more than MAX_PROGRAMS; the longest answer takes a quarter of a second."""
    if len(patterns) * MAX_PROGRAM <= MAX_PROGRAMS:
        return False
    total = 0
    for pattern in patterns:
        total += program_size(pattern)
        if total > MAX_PROGRAMS:
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """What the groups of a pattern took from a local part: ``$1`` is ``groups[0]``; None took no part."""

    groups: tuple[str | None, ...] = ()
    names: Mapping[str, str | None] = field(default_factory=dict)


NO_CAPTURES = Captures()


def star_match(pieces: Sequence[str], text: str) -> tuple[str, ...] | None:
    """What each star between the pieces took, or None; each star takes as little as it can, the last the rest."""
    start, end = len(pieces[0]), len(text) - len(pieces[-1])
    if start > end or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    taken: list[str] = []
    for piece in pieces[1:-1]:
        found = text.find(piece, start, end)
        if found < 0:
            return None
        taken.append(text[start:found])
        start = found + len(piece)
    taken.append(text[start:end])
    return tuple(taken)


def groups_of(pattern: str) -> tuple[int, frozenset[str]]:
    """How many groups a pattern has, and their names; each star of a wildcard is a group."""
    if classify(pattern) is not AliasKind.REGEX:
        return pattern.count("*"), frozenset()
    compiled = compile_regex(pattern)
    return compiled.groups, frozenset(group_names(compiled))


def group_names(compiled: Any) -> dict[str, int]:
    """The names of an expression's groups, and their numbers from 1."""
    return {
        name.decode() if isinstance(name, bytes) else name: number
        for name, number in compiled.groupindex.items()
    }
