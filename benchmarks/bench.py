"""What every part of the benchmark is given: a folder of its own, how much to do, and where to say how far it is."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engine import Engine
from benchmarks.load import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """``scale`` is a factor on the number of messages, ``rounds`` the number of alternating runs."""

    root: Path
    rounds: int = 3
    scale: float = 1.0
    whole: bool = False  # the sizes of the promise where the default is smaller for time's sake
    minutes: float = 10.0  # of a soak
    started: float = field(default_factory=time.monotonic)
    load: str = field(default_factory=lambda: f"{os.getloadavg()[0]:.1f}")  # what else the machine was doing

    def tell(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"  {time.monotonic() - self.started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def times(self, count: int, *, least: int = 20) -> int:
        """A number of messages at this scale."""
        return max(least, int(count * self.scale))

    def scaled(self, workload: Workload) -> Workload:
        return workload.scaled(self.scale)

    @contextmanager
    def serving(self, engine: Engine) -> Iterator[Engine]:
        """A fresh engine that serves for the length of the block."""
        self.tell(f"starting {engine.name}")
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()
