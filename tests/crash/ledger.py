"""The ledger: one line a fact, on disk before anybody acts on it; and the verdict over all lines.

A message is one of three things to its sender: *acknowledged* (a 250 was read), *refused* (a 4xx or 5xx was read),
or *unknown* (the connection died before an answer). The promises, per message and recipient:

    acknowledged   at least one copy at the destination, or one report (DSN) at the sender
    refused        no copy, no report
    unknown        all of its recipients have copies or reports, or none has
    each copy      its body is what was sent, to the octet
    duplicates     only in the window of RFC 5321 6.1, as below

A second copy is explained by what became of the first, or it is a broken promise. The sink knows which node sent a copy
(its EHLO), since when that session had been open, when the copy was on the sink's disk and when the 250 left:

    a lost answer      the sink took the first copy and broke off instead of answering
    a death            the node that sent the first copy was killed, or stopped, before it can have written down that it
                       was delivered: while that very session was open and at most SETTLING after the 250
    a late arrival     the session that brought the second copy was open when its node was killed or stopped, and the
                       first one came after that: somebody else had taken over

A supervisor that died alone (*orphaned*) explains nothing either: its workers live on, and end in order.
A death of another node, or of the same node at another time, explains nothing; nor does a database that went away,
since a settlement is written when it is back. A second report about a recipient must be the same report again.
"""

import itertools
import json
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Seconds from a destination's 250 to the COMMIT that records it. A group commit takes some milliseconds; two groups
# may be before it, on a machine that does other work and in a process that has just started. A death later than this
# explains no second copy.
SETTLING = float(os.environ.get("FORWARDER_SETTLING", "1.0"))


class Ledger:
    """An append-only file of JSON lines; ``write`` returns when the line is on disk. Safe for threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self.facts: list[dict[str, Any]] = []
        self.acknowledged = 0

    def write(self, what: str, **fields: Any) -> None:
        with self._lock:
            # In here, or a thread that had to wait would tell of an earlier moment, and facts would be out of order.
            fact = {"what": what, "at": time.time(), **fields}
            os.write(self._file, json.dumps(fact).encode() + b"\n")
            os.fdatasync(self._file)
            self.facts.append(fact)
            self.acknowledged += what == "answered" and fields["code"] == 250

    def note(self, what: str, **fields: Any) -> None:
        """A time that only the judge asks for: in the file, not forced to the disk."""
        fact = {"what": what, "at": time.time(), **fields}
        with self._lock:
            os.write(self._file, json.dumps(fact).encode() + b"\n")
            self.facts.append(fact)

    def snapshot(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self.facts)

    def close(self) -> None:
        os.close(self._file)


@dataclass(slots=True)
class Verdict:
    """Counts of messages and recipients, and every broken promise in a sentence."""

    kills: int = 0
    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    delivered: int = 0
    bounced: int = 0
    duplicates_after_death: int = 0  # a death between the destination's 250 and our writing it down
    duplicates_unanswered: int = 0  # the destination took the message and did not say so
    duplicates_late: int = 0  # the octets of a session whose node was dead or stopped
    windows: list[float] = field(
        default_factory=list
    )  # seconds from a 250 to the death that explains a second copy
    broken: list[str] = field(default_factory=list)
    waiting: int = 0  # acknowledged recipients with neither a copy nor a report

    @property
    def duplicates_explained(self) -> int:
        return self.duplicates_after_death + self.duplicates_unanswered + self.duplicates_late

    def _shown_windows(self) -> str:
        if not self.windows:
            return ""
        ordered = sorted(self.windows)
        return (
            f" (after the 250: median {1000 * ordered[len(ordered) // 2]:.0f} ms, "
            f"95 % within {1000 * ordered[len(ordered) * 95 // 100]:.0f} ms, "
            f"all within {1000 * ordered[-1]:.0f} ms)"
        )

    def lines(self) -> list[str]:
        return [
            f"kills                   {self.kills}",
            f"messages sent           {self.sent}",
            f"  acknowledged          {self.acknowledged}",
            f"  refused               {self.refused}",
            f"  unknown               {self.unknown}",
            f"recipients delivered    {self.delivered}",
            f"recipients bounced      {self.bounced}",
            f"lost                    {self.waiting}",
            f"duplicates explained    {self.duplicates_explained}",
            f"  by a death            {self.duplicates_after_death}{self._shown_windows()}",
            f"  by a lost answer      {self.duplicates_unanswered}",
            f"  by a late arrival     {self.duplicates_late}",
            f"broken promises         {len(self.broken)}",
            *(f"  {sentence}" for sentence in self.broken[:20]),
        ]


@dataclass(slots=True)
class _Seen:
    """What the judge needs of all facts, in one reading."""

    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    copies: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    reports: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    told: dict[int, float] = field(default_factory=dict)  # when the 250 to a copy or a report left
    ends: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # of a node: just before it was killed or stopped, and when that was certain

    def death_before_settling(self, first: dict[str, Any]) -> float | None:
        """Seconds from the 250 to the death that kept its node from writing it down; None when it had the time."""
        told = self.told.get(first["copy"], first["at"])
        for began, certain in self.ends[first["node"]]:
            if first["since"] <= certain and began <= told + SETTLING:
                return max(0.0, began - told)
        return None

    def was_on_its_way(self, second: dict[str, Any], first: dict[str, Any]) -> bool:
        """Whether the second copy came over a session of a node that was dead or stopped when the first one came."""
        return any(
            second["since"] <= certain and began <= first["at"]
            for began, certain in self.ends[second["node"]]
        )


def judge(facts: list[dict[str, Any]]) -> Verdict:
    """Read all facts once; see the module's manual for what is promised."""
    verdict = Verdict()
    seen = _Seen()
    for fact in facts:
        match fact["what"]:
            case "sending":
                seen.sent[fact["id"]] = fact
            case "answered":
                seen.answers[fact["id"]] = fact["code"]
            case "copy":
                for recipient in fact["recipients"]:
                    seen.copies[fact["id"], recipient].append(fact)
            case "report":
                seen.reports[fact["id"], fact["recipient"]].append(fact)
            case "told":
                seen.told[fact["copy"]] = fact["at"]
            case "killed" | "stopped":
                verdict.kills += fact["what"] == "killed"
                seen.ends[fact["node"]].append((fact.get("began", fact["at"]), fact["at"]))
            case "orphaned":
                verdict.kills += 1
            case "stray":
                verdict.broken.append(f"the sink got something that was never sent: {fact['why']}")
    verdict.sent = len(seen.sent)
    for number, message in seen.sent.items():
        _judge_message(verdict, number, message, seen)
    return verdict


def _judge_message(verdict: Verdict, number: str, message: dict[str, Any], seen: _Seen) -> None:
    recipients = message["recipients"]
    answer = seen.answers.get(number)
    reached = [r for r in recipients if (number, r) in seen.copies or (number, r) in seen.reports]
    if answer is None:
        verdict.unknown += 1
        if reached and len(reached) < len(recipients):
            verdict.broken.append(
                f"{number}: nobody was answered, yet only {len(reached)} of {len(recipients)} recipients got it"
            )
    elif 200 <= answer < 300:
        verdict.acknowledged += 1
        missed = set(recipients) - set(reached)
        for recipient in recipients:
            if recipient in missed:
                verdict.waiting += 1
                verdict.broken.append(
                    f"{number}: acknowledged, but neither a copy nor a report for {recipient}"
                )
    else:
        verdict.refused += 1
        if reached:
            verdict.broken.append(f"{number}: refused with {answer}, yet {reached} got it")
    for recipient in reached:
        _judge_recipient(verdict, f"{number}: {recipient}", message, seen, (number, recipient))


def _judge_recipient(
    verdict: Verdict, name: str, message: dict[str, Any], seen: _Seen, key: tuple[str, str]
) -> None:
    copies, reports = seen.copies.get(key, []), seen.reports.get(key, [])
    verdict.delivered += bool(copies)
    verdict.bounced += bool(reports)
    if any(copy["body"] != message["body"] for copy in copies):
        verdict.broken.append(f"{name} got a damaged body")
    if copies and reports:
        verdict.broken.append(f"{name} has both a copy and a report of failure")
    if len({report["report"] for report in reports}) > 1:
        verdict.broken.append(f"{name} has {len(reports)} reports, which are not one report sent again")
    for what, arrivals in (("copies", copies), ("reports", reports)):
        for first, second in itertools.pairwise(arrivals):
            window = seen.death_before_settling(first)
            if not first["answered"]:
                verdict.duplicates_unanswered += 1
            elif window is not None:
                verdict.duplicates_after_death += 1
                verdict.windows.append(window)
            elif seen.was_on_its_way(second, first):
                verdict.duplicates_late += 1
            else:
                verdict.broken.append(
                    f"{name} got two {what} {second['at'] - first['at']:.1f} s apart, the first from {first['node']},"
                    f" which had the time to write it down, the second from {second['node']}"
                )
