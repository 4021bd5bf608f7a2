"""The left side of an alias: what it may look like, and how it is matched.

What it does: tells the four kinds of pattern apart, checks what a person wrote and gives its canonical form, and
compiles matchers. A regular expression runs in RE2 only: linear time and bounded memory whatever was written; the
whole local part has to match, upper and lower case alike.

How it fails: ``RuleError``, whose text a person understands.

Limits: 150 characters, as in the services whose aliases these are; MAX_PROGRAM instructions of RE2 for an expression
and MAX_PROGRAMS for those of a domain together (``program_size``), since an instruction takes up to a microsecond to
compile, as long to run over a local part, and some hundred octets to keep: what is compiled or run in the event loop is
little, all of a domain in a thread (``RegexTable.prepare``, ``RegexTable.instructions``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2

from forwarder.mail.address import MAX_LOCAL, AddressError, fold, parse_address

MAX_PATTERN = 150  # characters
MAX_PROGRAM = 2500  # instructions: [\w.+-]{1,64} has 700, and a local part no more than 64 octets
MAX_PROGRAMS = 250_000  # those of a domain together
_NEW_MEMORY = 128 << 10  # octets for one expression that is to be saved: a larger one is given up early
_MEMORY = 512 << 10  # octets for one that is: an earlier release took more
_SET_MEMORY = 40 << 20  # octets for all the expressions of a domain together, and of these:
_SET_LEAST = 64 << 10
_EACH = 130  # for an instruction: RE2 wants 64 to compile it, and room for some states in which it may be
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


def _options(memory: int, *, captures: bool) -> Any:
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
        compiled = re2.compile(pattern, options=_options(_NEW_MEMORY, captures=True))
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
        size: int = re2.compile(pattern, options=_options(_MEMORY, captures=False)).programsize
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
    return compiled.groups, frozenset(_names(compiled))


def _names(compiled: Any) -> dict[str, int]:
    return {
        name.decode() if isinstance(name, bytes) else name: number
        for name, number in compiled.groupindex.items()
    }


class RegexTable:
    """The regular expressions of a domain; the first in order that matches wins.

    Nothing is compiled before it is needed: ``first`` does it, but where that would hold up others ``prepare`` is to
    have done it before, in a thread (RE2 lets go of the interpreter meanwhile). Many expressions are asked at once as
    one RE2 set; a last member that matches everything tells a set that found nothing from one that ran out of memory,
    which RE2 reports alike, and then they are asked one by one. Local parts are nearly always ASCII, and for those the
    expressions are compiled for single octets: several times smaller and faster, with the same answers.
    """

    __slots__ = ("_ascii", "_instructions", "_patterns", "_prepared", "_searchers", "_sets")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._ascii = all(map(str.isascii, self._patterns))
        self._sets: dict[bool, Any] = {}
        self._searchers: dict[tuple[int, bool], Any] = {}
        self._prepared: set[bool] = set()
        self._instructions: int | None = None

    @property
    def instructions(self) -> int:
        """How many ``first`` may run for one octet, about; telling it the first time costs what compiling costs."""
        if self._instructions is None:
            self._instructions = sum(map(program_size, self._patterns))
        return self._instructions

    @property
    def memory(self) -> int:
        """Octets that it takes beside its patterns, about, as far as it is prepared."""
        return len(self._prepared) * _EACH * self.instructions if self._prepared else 0

    def ready(self, local: str) -> bool:
        """Whether ``first`` would compile no more than one expression for such a local part."""
        return not self._patterns or local.isascii() in self._prepared

    def prepare(self, local: str) -> None:
        """Compile what ``first`` needs for such local parts; from any thread."""
        octets = local.isascii()
        if len(self._patterns) < _SET_FROM or self._together(octets) is None:
            for index in range(len(self._patterns)):
                self._searcher(index, octets)
        _ = self.instructions  # whoever resolves asks for it
        self._prepared.add(octets)

    def first(self, local: str) -> tuple[int, Captures] | None:
        """The index of the first expression that matches the whole of ``local``, and what its groups took."""
        if not self._patterns or (len(local) > MAX_LOCAL and len(local.encode()) > MAX_LOCAL):
            return None  # only addresses rewritten by a forwarder are so long: no alias means them
        octets = local.isascii()
        subject: str | bytes = local.encode() if octets else local
        candidates: Iterable[int] = range(len(self._patterns))
        if len(self._patterns) >= _SET_FROM:
            found = self._ask_set(subject, octets)
            if found is not None:
                candidates = found
        for index in candidates:
            matched = self._searcher(index, octets).fullmatch(subject)
            if matched is not None:
                return index, _captures(matched)
        return None

    def _ask_set(self, subject: str | bytes, octets: bool) -> Iterable[int] | None:
        together = self._together(octets)
        found = together.Match(subject) if together is not None else None
        sentinel = len(self._patterns)
        if not found or sentinel not in found:
            return None
        return sorted(index for index in found if index != sentinel)

    def _together(self, octets: bool) -> Any:
        octets = octets and self._ascii  # one that cannot be written in octets must not keep the others apart
        if octets not in self._sets:
            self._sets[octets] = self._compile_set(octets)
        return self._sets[octets]

    def _compile_set(self, octets: bool) -> Any:
        options = _options(min(_SET_MEMORY, _SET_LEAST + _EACH * self.instructions), captures=False)
        if octets:
            options.encoding = re2.Options.Encoding.LATIN1
        together = re2.Set.FullMatchSet(options)
        try:
            for pattern in self._patterns:
                together.Add(_subject(pattern, octets))
            together.Add(_subject("(?s).*", octets))
            together.Compile()
        except (re2.error, UnicodeEncodeError):
            return None  # one that an earlier release took is too large: one by one
        return together

    def _searcher(self, index: int, octets: bool) -> Any:
        searcher = self._searchers.get((index, octets))
        if searcher is None:
            searcher = self._searchers[index, octets] = _compile_searcher(self._patterns[index], octets)
        return searcher


_SET_FROM = 4  # fewer expressions are faster one by one


@lru_cache(maxsize=4)  # each may take as many octets as _SET_MEMORY, twice
def table_of(patterns: tuple[str, ...]) -> RegexTable:
    """The table of these expressions: the same one while other aliases of their domain change."""
    return RegexTable(patterns)


class _Never:
    """Stands for an expression that does not compile: matches nothing."""

    def fullmatch(self, _subject: str | bytes) -> None:
        return None


def _compile_searcher(pattern: str, octets: bool) -> Any:
    # Beside the program RE2 keeps the states that it has been in, as far as it has memory: of thousands of expressions,
    # each asked by itself, these would be gigabytes.
    size = program_size(pattern)
    least = 96 * (size + 2 * pattern.count("(")) + 4096
    options = _options(min(least, _MEMORY) if size else _MEMORY, captures=True)
    try:
        if octets and pattern.isascii():
            options.encoding = re2.Options.Encoding.LATIN1
            return re2.compile(pattern.encode(), options=options)
        compiled = re2.compile(pattern, options=options)
    except (re2.error, UnicodeEncodeError):
        return _Never()  # saved by a version that allowed more: matching nothing is the safe side
    return _OctetSearcher(compiled) if octets else compiled


class _OctetSearcher:
    """An expression beyond ASCII, asked with octets."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def fullmatch(self, subject: bytes) -> Any:
        return self._compiled.fullmatch(subject.decode())


def _subject(pattern: str, octets: bool) -> str | bytes:
    return pattern.encode("ascii") if octets else pattern


def _captures(matched: Any) -> Captures:
    groups = tuple(group.decode("ascii") if isinstance(group, bytes) else group for group in matched.groups())
    return Captures(
        groups=groups, names={name: groups[number - 1] for name, number in _names(matched.re).items()}
    )
