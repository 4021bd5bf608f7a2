"""Runs to tables: medians, spread, ratios, and the file ``benchmarks/results.md``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.load import Run

RESULTS = Path(__file__).parent / "results.md"


@dataclass(slots=True)
class Section:
    """A heading, a sentence of what was done, and a table."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def plain(self) -> dict[str, object]:
        """For JSON: a row is an object."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}

    def text(self) -> str:
        """As Markdown."""
        lines = [f"## {self.title}", "", self.note, ""] if self.note else [f"## {self.title}", ""]
        lines.append("| " + " | ".join(self.header) + " |")
        lines.append("|" + " --- |" * len(self.header))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def throughput(title: str, note: str, runs: Sequence[Run], *, against: str) -> Section:
    """One row a subject and workload; the ratio is to ``against`` in the same runs."""
    header = (
        "workload",
        "subject",
        "messages/s (median)",
        "spread",
        "ratio",
        "CPU ms/message",
        "peak memory",
        "all arrived",
    )
    rows: list[tuple[str, ...]] = []
    for workload in dict.fromkeys(run.workload for run in runs):
        of_workload = [run for run in runs if run.workload == workload]
        reference = [run.per_second for run in of_workload if run.subject == against]
        for subject in dict.fromkeys(run.subject for run in of_workload):
            mine = [run for run in of_workload if run.subject == subject]
            speeds = [run.per_second for run in mine]
            ratio = f"{median(speeds) / median(reference):.2f}" if reference else "—"
            rows.append(
                (
                    workload,
                    subject,
                    f"{median(speeds):.0f}",
                    f"{min(speeds):.0f}–{max(speeds):.0f}",
                    ratio,
                    f"{median(run.cpu_ms for run in mine):.2f}",
                    f"{max(run.peak_bytes for run in mine) / 2**20:.0f} MiB",
                    "yes" if all(run.complete for run in mine) else "NO",
                )
            )
    return Section(title, note, header, rows)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def write(
    facts: Sequence[tuple[str, str]], sections: Sequence[Section], *, when: str, path: Path = RESULTS
) -> None:
    head = [
        "# Results",
        "",
        f"Written by `make bench`, {when}. Only the ratios of alternating runs in one call mean something:",
        "a machine's speed moves from minute to minute.",
        "",
        *(f"- {name}: {value}" for name, value in facts),
        "",
    ]
    path.write_text("\n".join(head) + "\n" + "\n".join(section.text() for section in sections))
