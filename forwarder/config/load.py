"""File and environment -> Settings, or a ConfigError that a person can act on.

The file is ``--config``, else ``FORWARDER_CONFIG``, else ``./config.toml``; without any file the
environment alone may do. Unknown keys are found before values are judged, so that a misspelt key is
reported as such, with the key that was probably meant. A variable without ``__`` that is no key of ours is
left alone unless it is nearly one, or one with an underscore too few: container platforms set names such as
``FORWARDER_PORT`` by themselves.
"""

import difflib
import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from forwarder.config.settings import Plan, Settings

PREFIX = "FORWARDER_"
RESERVED = frozenset({"FORWARDER_CONFIG", "FORWARDER_FAILPOINT", "FORWARDER_TEST"})
DEFAULT_FILE = "config.toml"

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with the configuration."""

    origin: str  # the file's name, or "environment"
    key: str  # as written there: "mx.size_limit" or "FORWARDER_MX__SIZE_LIMIT"; "" for the whole file
    reason: str  # a sentence that says what to write instead

    def __str__(self) -> str:
        return f"{self.origin}: {self.key}: {self.reason}" if self.key else f"{self.origin}: {self.reason}"


class ConfigError(Exception):
    """The configuration cannot be used; ``str`` lists every problem, one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A configuration file as it was when it was read."""

    origin: str  # the file's name, or "environment"
    text: str

    @cached_property
    def digest(self) -> str:
        """The same for the same text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load(path: str | None, environ: Mapping[str, str]) -> Settings:
    """The settings of ``path`` (or of the fall-backs) with the environment's changes."""
    return parse(read(path, environ), environ)


def parse(source: Source, environ: Mapping[str, str]) -> Settings:
    """The settings that a file's text means, with the environment's changes."""
    origin, values = source.origin, _values(source)
    problems = [
        Problem(origin=origin, key=".".join(key), reason=_unknown(key)) for key in _unknown_keys(values)
    ]
    from_environment: dict[KeyPath, str] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED:
            continue
        key = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if _known(key):
            from_environment[key] = name
            if not _put(values, key, environ[name]):
                reason = "the file holds a single value where this names a section; mend the file"
                problems.append(Problem(origin="environment", key=name, reason=reason))
        elif (meant := _with_one_underscore(name)) is not None:
            reason = f"unknown key; did you mean {meant}, with two underscores after the section?"
            problems.append(Problem(origin="environment", key=name, reason=reason))
        elif "__" in name or difflib.get_close_matches(key[0], Settings.model_fields, n=1, cutoff=0.85):
            problems.append(
                Problem(origin="environment", key=name, reason=_unknown(key, in_environment=True))
            )
    if problems:
        raise ConfigError(problems)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin, from_environment)) from None


def read(path: str | None, environ: Mapping[str, str]) -> Source:
    """The text of the file; empty where the environment alone does."""
    chosen = path or environ.get("FORWARDER_CONFIG") or ""
    if not chosen and not Path(DEFAULT_FILE).exists():
        if PREFIX + "HOSTNAME" in environ:
            return Source(origin="environment", text="")
        reason = (
            f"there is no ./{DEFAULT_FILE}; copy config.example.toml to {DEFAULT_FILE} and set hostname in "
            "it, or name another file with --config or FORWARDER_CONFIG; FORWARDER_HOSTNAME alone will do, too"
        )
        raise ConfigError([Problem(origin="configuration", key="", reason=reason)])
    origin = chosen or DEFAULT_FILE
    try:
        # -sig: some editors put a mark (U+FEFF) before the first line, which nobody sees.
        return Source(origin=origin, text=Path(origin).read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the path and its permissions"
    except UnicodeDecodeError:
        reason = "is not UTF-8 text; save it as UTF-8"
    raise ConfigError([Problem(origin=origin, key="", reason=reason)])


def _values(source: Source) -> dict[str, Any]:
    try:
        return tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}; strings need quotation marks, and sections look like [mx]"
        raise ConfigError([Problem(origin=source.origin, key="", reason=reason)]) from None


def _section(key: KeyPath) -> type[BaseModel] | None:
    """The model that holds what ``key`` leads to, or None when ``key`` is no section."""
    match key:
        case ():
            return Settings
        case ("plans", _):
            return Plan
        case (name,) if name in Settings.model_fields:
            annotation = Settings.model_fields[name].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                return annotation
    return None


def _known(key: KeyPath) -> bool:
    section = _section(key[:-1])
    return section is not None and key[-1] in section.model_fields and not _is_section(key)


def _is_section(key: KeyPath) -> bool:
    return _section(key) is not None or key == ("plans",)


def _unknown_keys(values: Mapping[str, Any], at: KeyPath = ()) -> Iterator[KeyPath]:
    for name, value in values.items():
        key = (*at, name)
        if key == ("plans",) and isinstance(value, Mapping):
            for plan, limits in value.items():
                if isinstance(limits, Mapping):
                    yield from _unknown_keys(limits, (*key, plan))
        elif _section(key) is not None and isinstance(value, Mapping):
            yield from _unknown_keys(value, key)
        elif not _known(key) and not _is_section(key):
            yield key


def _unknown(key: KeyPath, *, in_environment: bool = False) -> str:
    """Why ``key`` is refused, with the key that was probably meant."""

    def written(known: KeyPath) -> str:
        return PREFIX + "__".join(known).upper() if in_environment else ".".join(known)

    if _is_section(key):  # a variable that names no key of it
        return f"is a section; name a key of it, as {written((*key, '<key>'))}"
    section = _section(key[:-1])
    here = [(*key[:-1], name) for name in section.model_fields] if section else []
    every = list(_every_key())
    given = written(key) if in_environment else written(key).lower()
    near = difflib.get_close_matches(given, map(written, here), n=1, cutoff=0.75)
    near = near or difflib.get_close_matches(given, map(written, every), n=1, cutoff=0.8)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    if elsewhere := [written(known) for known in every if known[-1] == key[-1]]:
        return f"unknown key here; did you mean {' or '.join(elsewhere[:3])}?"
    return "unknown key; config.example.toml lists every key"


def _with_one_underscore(name: str) -> str | None:
    """The key that ``name`` is but for its underscores, as FORWARDER_DATABASE_URL; None: of none.

    Those in PORT are left alone: Kubernetes sets FORWARDER_OUTBOUND_PORT for a service ``forwarder-outbound``.
    """
    if name.endswith("_PORT"):
        return None
    written = (PREFIX + "__".join(key).upper() for key in _every_key())
    return next((one for one in written if one != name and one.replace("__", "_") == name), None)


def _every_key() -> Iterator[KeyPath]:
    for name in Settings.model_fields:
        section = Plan if name == "plans" else _section((name,))
        prefix = ("plans", "default") if name == "plans" else (name,)
        if section is None:
            yield (name,)
        else:
            yield from ((*prefix, key) for key in section.model_fields)


def _put(values: dict[str, Any], key: KeyPath, value: str) -> bool:
    for name in key[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            return False
    values[key[-1]] = value
    return True


def _explain(
    error: ValidationError, origin: str, from_environment: Mapping[KeyPath, str]
) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        path = tuple(str(part) for part in detail["loc"])
        # pydantic's location goes on into lists and unions; the key ends where the models do.
        key = next((path[:end] for end in range(len(path), 0, -1) if _known(path[:end])), path)
        value = None if key == ("database", "url") else detail["input"]  # it may hold a password in any form
        reason = _sentence(detail["type"], detail["msg"], detail.get("ctx", {}), value)
        if key in from_environment:
            yield Problem(origin="environment", key=from_environment[key], reason=reason)
        else:
            yield Problem(origin=origin, key=".".join(key), reason=reason)


def _sentence(kind: str, message: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "missing":
        return 'is required; write for example hostname = "mx1.example.net"'
    shown = f"{value!r} " if isinstance(value, str | int | float | bool) and len(repr(value)) <= 80 else ""
    if "://" in shown and "@" in shown:
        shown = ""  # a URL with a password in it is not repeated on a terminal or in a journal
    match kind:
        case "value_error":
            return f"{shown}cannot be used; {context['error']}" if shown else str(context["error"])
        case "literal_error":
            return f"{shown}is not one of {context['expected']}; write one of them"
        case "string_pattern_mismatch":
            return f"{shown}does not fit; write lower-case letters, digits and hyphens"
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type":
            return "is a section, not a value; write its keys below a line such as [mx]"
        case "bool_type" | "bool_parsing" | "int_type" | "int_parsing" | "float_type" | "float_parsing":
            wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}[
                kind.partition("_")[0]
            ]
            return f"{shown}cannot be used; write {wanted}"
    return f"{shown}cannot be used: {message[:1].lower()}{message[1:]}; see config.example.toml"
