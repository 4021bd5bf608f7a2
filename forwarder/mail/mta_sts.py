"""MTA-STS (RFC 8461): what a domain publishes about how mail is to be brought to it, read and applied.

``record_id`` reads the TXT records of ``_mta-sts.<domain>``, ``parse_policy`` the file they announce, and
``StsPolicy.names`` says whether a host may be given the domain's mail. Pure: ``outbound.policies`` fetches and keeps.

Strict where a mistake would turn mail away: a policy with a value that cannot be read is no policy. What the RFC tells
readers to pass over (unknown keys, later copies of a key, CRLF or LF) is passed over. Bounds: 64 KiB, 64 patterns.

How it fails: ``record_id`` says None, ``parse_policy`` raises ``PolicyError`` with the flaw; no octets raise more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

MAX_OCTETS = 64 * 1024
MAX_PATTERNS = 64
MAX_AGE = timedelta(seconds=31_557_600)  # RFC 8461 3.2: a year
_VERSION = re.compile(rb"v=STSv1[ \t]*;")
_FIELD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[!-:<>-~]+")
_ID = re.compile(rb"id=([A-Za-z0-9]{1,32})")
_SECONDS = re.compile(r"[0-9]{1,10}")
# Host names as they stand in MX records, which know the underscore; U-labels are none (RFC 8461 3.2, 4.1).
_PATTERN = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class PolicyError(ValueError):
    """Not a policy; str() names the flaw."""


class Mode(StrEnum):
    """What a domain asks of senders."""

    ENFORCE = "enforce"  # a host that fails the policy gets no mail
    TESTING = "testing"  # mail is brought as if there were no policy
    NONE = "none"  # there is no policy any more


@dataclass(frozen=True, slots=True, kw_only=True)
class StsPolicy:
    """One policy file."""

    mode: Mode
    mx: frozenset[str]  # patterns in lower case
    max_age: timedelta

    def names(self, host: str) -> bool:
        """Whether a pattern matches an MX host (RFC 8461 4.1): ``*.`` stands for one label, the leftmost."""
        host = host.lower().rstrip(".")
        label, dot, parent = host.partition(".")
        return host in self.mx or bool(label and dot and f"*.{parent}" in self.mx)


def record_id(records: Sequence[bytes]) -> str | None:
    """The id of the policy that a domain announces; None: it announces none, or not in a way that counts."""
    ours = [record for record in records if _VERSION.match(record)]
    if len(ours) != 1:  # RFC 8461 3.1: two records are none
        return None
    fields = [field.strip(b" \t") for field in ours[0].split(b";")[1:]]
    if not fields[-1]:  # one semicolon may close the record
        fields.pop()
    if not all(map(_FIELD.fullmatch, fields)):
        return None
    found = _ID.fullmatch(next((field for field in fields if field.startswith(b"id=")), b""))
    return found[1].decode("ascii") if found else None


def parse_policy(body: bytes) -> StsPolicy:
    """A policy file (RFC 8461 3.2); ``PolicyError``."""
    if len(body) > MAX_OCTETS:
        raise PolicyError(f"the policy is longer than {MAX_OCTETS} octets")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise PolicyError("the policy is not UTF-8") from exc
    patterns: set[str] = set()
    values: dict[str, str] = {}
    for line in text.split("\n"):
        key, _, value = line.removesuffix("\r").partition(":")
        value = value.strip(" \t")
        if key != "mx":
            values.setdefault(key, value)  # RFC 8461 3.2: of a field given twice the first one counts
        elif not _PATTERN.fullmatch(value):
            raise PolicyError("an mx pattern is not a host name")
        else:
            patterns.add(value.lower())
    if values.get("version") != "STSv1":
        raise PolicyError("the version is not STSv1")
    if values.get("mode") not in tuple(Mode):
        raise PolicyError("the mode is none of enforce, testing and none")
    if not _SECONDS.fullmatch(values.get("max_age", "")):
        raise PolicyError("the max_age is not a number of seconds")
    mode = Mode(values["mode"])
    if not patterns and mode is not Mode.NONE:
        raise PolicyError("the policy names no mx")
    if len(patterns) > MAX_PATTERNS:
        raise PolicyError(f"the policy has more than {MAX_PATTERNS} mx patterns")
    max_age = min(timedelta(seconds=int(values["max_age"])), MAX_AGE)
    return StsPolicy(mode=mode, mx=frozenset(patterns), max_age=max_age)
