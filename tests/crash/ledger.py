"""The ledger: one line a fact, on disk before anybody acts on it; and the verdict over all lines.

A message is one of three things to its sender: *acknowledged* (a 250 was read), *refused* (a 4xx or 5xx was read),
or *unknown* (the connection died before an answer). The promises, per message and recipient:

    acknowledged   at least one copy at the destination, or one report (DSN) at the sender
    refused        no copy, no report
    unknown        all of its recipients have copies or reports, or none has
    each copy      its body is what was sent, to the octet
    duplicates     only where a death or a lost answer lies between the destination's 250 and the next copy
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

# How long after a destination's 250 the engine may still have to write that down. A death later than this does
# not explain a second copy.
SETTLING_WINDOW = 10.0


class Ledger:
    """An append-only file of JSON lines; ``write`` returns when the line is on disk. Safe for threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self.facts: list[dict[str, Any]] = []
        self.acknowledged = 0

    def write(self, what: str, **fields: Any) -> None:
        fact = {"what": what, "at": time.time(), **fields}
        with self._lock:
            os.write(self._file, json.dumps(fact).encode() + b"\n")
            os.fdatasync(self._file)
            self.facts.append(fact)
            self.acknowledged += what == "answered" and fields["code"] == 250

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
    windows: list[float] = field(
        default_factory=list
    )  # seconds from a 250 to the death that explains a second copy
    broken: list[str] = field(default_factory=list)
    waiting: int = 0  # acknowledged recipients with neither a copy nor a report

    @property
    def duplicates_explained(self) -> int:
        return self.duplicates_after_death + self.duplicates_unanswered

    def _shown_windows(self) -> str:
        if not self.windows:
            return ""
        ordered = sorted(self.windows)
        return (
            f" (after the 250: median {1000 * ordered[len(ordered) // 2]:.0f} ms, "
            f"95 % within {1000 * ordered[len(ordered) * 95 // 100]:.0f} ms)"
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
            f"broken promises         {len(self.broken)}",
            *(f"  {sentence}" for sentence in self.broken[:20]),
        ]


def judge(facts: list[dict[str, Any]]) -> Verdict:
    """Read all facts once; see the module's manual for what is promised."""
    verdict = Verdict()
    sent: dict[str, dict[str, Any]] = {}
    answers: dict[str, int] = {}
    copies: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    reports: dict[tuple[str, str], list[float]] = defaultdict(list)
    disturbances: list[float] = []
    for fact in facts:
        match fact["what"]:
            case "sending":
                sent[fact["id"]] = fact
            case "answered":
                answers[fact["id"]] = fact["code"]
            case "copy":
                for recipient in fact["recipients"]:
                    copies[fact["id"], recipient].append(fact)
            case "report":
                reports[fact["id"], fact["recipient"]].append(fact["at"])
            case "killed" | "cut" | "stopped":
                verdict.kills += fact["what"] == "killed"
                disturbances.append(fact["at"])
            case "stray":
                verdict.broken.append(f"the sink got something that was never sent: {fact['why']}")
    verdict.sent = len(sent)
    for number, message in sent.items():
        _judge_message(verdict, number, message, answers.get(number), copies, reports, disturbances)
    return verdict


def _judge_message(
    verdict: Verdict,
    number: str,
    message: dict[str, Any],
    answer: int | None,
    copies: dict[tuple[str, str], list[dict[str, Any]]],
    reports: dict[tuple[str, str], list[float]],
    disturbances: list[float],
) -> None:
    recipients = message["recipients"]
    seen = [recipient for recipient in recipients if copies[number, recipient] or reports[number, recipient]]
    if answer is None:
        verdict.unknown += 1
        if seen and len(seen) < len(recipients):
            verdict.broken.append(
                f"{number}: nobody was answered, yet only {len(seen)} of {len(recipients)} recipients got it"
            )
    elif 200 <= answer < 300:
        verdict.acknowledged += 1
        for recipient in recipients:
            if recipient not in seen:
                verdict.waiting += 1
                verdict.broken.append(
                    f"{number}: acknowledged, but neither a copy nor a report for {recipient}"
                )
    else:
        verdict.refused += 1
        if seen:
            verdict.broken.append(f"{number}: refused with {answer}, yet {seen} got it")
    for recipient in recipients:
        _judge_recipient(
            verdict,
            number,
            message,
            recipient,
            copies[number, recipient],
            reports[number, recipient],
            disturbances,
        )


def _judge_recipient(
    verdict: Verdict,
    number: str,
    message: dict[str, Any],
    recipient: str,
    copies: list[dict[str, Any]],
    reports: list[float],
    disturbances: list[float],
) -> None:
    verdict.delivered += bool(copies)
    verdict.bounced += bool(reports)
    for copy in copies:
        if copy["body"] != message["body"]:
            verdict.broken.append(f"{number}: a damaged body reached {recipient}")
    if copies and reports:
        verdict.broken.append(f"{number}: {recipient} has both a copy and a report of failure")
    for times, what in (([copy["at"] for copy in copies], "copies"), (reports, "reports")):
        for earlier, later in itertools.pairwise(times):
            died_at = next(
                (at for at in disturbances if earlier - 1.0 <= at <= min(later, earlier + SETTLING_WINDOW)),
                None,
            )
            unanswered = what == "copies" and any(
                copy["at"] == earlier and not copy["answered"] for copy in copies
            )
            if unanswered:
                verdict.duplicates_unanswered += 1
            elif died_at is not None:
                verdict.duplicates_after_death += 1
                verdict.windows.append(max(0.0, died_at - earlier))
            else:
                verdict.broken.append(
                    f"{number}: {recipient} got two {what} {later - earlier:.1f} s apart with no death between"
                )
