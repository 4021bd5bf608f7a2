"""The regular expressions of a domain, asked for the first that matches a local part.

What is compiled or run in the event loop is little: all that a domain may have takes a quarter of a second to compile,
and as long to run over a local part, so both are for a thread (``RegexTable.prepare``, ``RegexTable.instructions``).

Nothing raises: an expression that does not compile, since an earlier release allowed more, matches nothing.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import re2

from forwarder.mail.address import MAX_LOCAL
from forwarder.mail.pattern import MEMORY, Captures, group_names, program_size, re2_options

_SET_FROM = 4  # fewer expressions are faster one by one
_SET_MEMORY = 40 << 20  # octets for all the expressions of a domain together, and of these:
_SET_LEAST = 64 << 10
_EACH = 130  # for an instruction: RE2 wants 64 to compile it, and room for some states in which it may be


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
        options = re2_options(min(_SET_MEMORY, _SET_LEAST + _EACH * self.instructions), captures=False)
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
    options = re2_options(min(least, MEMORY) if size else MEMORY, captures=True)
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
        groups=groups, names={name: groups[number - 1] for name, number in group_names(matched.re).items()}
    )
