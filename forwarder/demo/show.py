"""How the demo looks: a step a line, tables, a last word; or one JSON value, when a program asked."""

import errno
import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

_STYLES = {
    "DELIVERED": "green",
    "QUEUED": "cyan",
    "REFUSED": "yellow",
    "SOFT-BOUNCE": "yellow",
    "HARD-BOUNCE": "red",
}


class _Stage(Console):
    def on_broken_pipe(
        self,
    ) -> None:  # rich would end with status 1; to whoever runs the commands it is no trouble
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Show:
    """The demo's stage."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = _Stage(quiet=as_json, highlight=False)

    def title(self, text: str) -> None:
        self._out.print()
        self._out.rule(f"[bold]{escape(text)}[/]", align="left", style="dim")

    def step(self, text: str, fine: bool = True) -> None:
        mark = "[green]✓[/]" if fine else "[red]✗[/]"
        self._out.print(f" {mark} {escape(text)}")

    def table(self, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        drawn = Table(*columns, box=None, pad_edge=True, header_style="dim", padding=(0, 2, 0, 0))
        for row in rows:
            cells = [escape(str(cell)) for cell in row]
            drawn.add_row(*(f"[{_STYLES[c]}]{c}[/]" if c in _STYLES else c for c in cells))
        self._out.print(drawn)

    def log(self, entries: list[dict[str, Any]]) -> None:
        """The answer of the logs API, oldest first."""
        for entry in reversed(entries):
            sender, recipient = entry["sender"]["email"] or "<>", entry["recipient"]["email"]
            leads = (entry.get("forward") or {}).get("email")
            leads = None if leads == recipient else leads
            self._out.print(
                f" [bold]{escape(entry.get('subject') or '(no subject)')}[/]  "
                f"[dim]{escape(sender)} → {escape(recipient or '')}{' → ' + escape(leads) if leads else ''}[/]"
            )
            for event in entry["events"]:
                status = event["status"]
                text = f"{event['code']} {event['message']}"
                self._out.print(
                    f"   [{_STYLES.get(status, '')}]{status:<11}[/] {escape(text)}", soft_wrap=False
                )

    def last_word(self, lines: list[str], *, fine: bool) -> None:
        self._out.print()
        self._out.print(Panel("\n".join(lines), border_style="green" if fine else "red", expand=False))

    def value(self, value: dict[str, Any]) -> None:
        """The whole story as one JSON value."""
        if self._as_json:
            sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
