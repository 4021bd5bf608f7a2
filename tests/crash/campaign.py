"""Load, deaths, recovery, verdict."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.crash.client import Load
from tests.crash.ledger import Ledger, Verdict, judge
from tests.crash.node import Node
from tests.crash.nursery import Nursery
from tests.crash.sink import Sink

SETTLE = 45.0

_told_at = 0.0  # of ``progress``


def _silent(_text: str) -> None:
    return None


class Campaign:
    """One sink, one ledger, one to three nodes on one database."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str = "",
        nodes: int = 1,
        processes: int = 1,
        seed: int = 1,
        tell: Callable[[str], None] = _silent,
        cold: bool = False,
        empty: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.tell = tell
        self.enough = False  # True: no more deaths, judge what was
        self._empty = empty  # no schema, no domain, nothing started
        self._nursery = None if cold else Nursery()
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.sink = Sink(self.ledger)
        self.members = [
            Node(
                folder / f"node{n}",
                database_url=database_url,
                sink_port=self.sink.port,
                processes=processes,
                name=f"mx{n}.crash.test",
                nursery=self._nursery,
                more=more,
            )
            for n in range(1, nodes + 1)
        ]
        self.seed = seed
        self.chance = random.Random(seed)
        self.restarts: list[float] = []

    def __enter__(self) -> "Campaign":
        self.sink.start()
        try:
            if not self._empty:
                first, *others = self.members
                first.populate()
                for node in others:
                    shutil.copytree(first.folder / "data" / "keys", node.folder / "data" / "keys")
                for node in self.members:
                    self.restart(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.members:
            node.kill()
        if self._nursery is not None:
            self._nursery.close()
        self.sink.stop()
        self.ledger.close()

    def ports(self) -> list[int]:
        return [node.port for node in self.members if node.alive()]

    def kill(self, node: Node, *, supervisor_only: bool = False) -> None:
        began = time.time()
        node.kill(supervisor_only=supervisor_only)
        if supervisor_only:
            self.ledger.write("orphaned", node=node.name)
        else:
            self.died(node, began=began)

    def died(self, node: Node, **circumstances: Any) -> None:
        """Write down that a node is dead; before it is started again."""
        self.ledger.write("killed", node=node.name, **circumstances)

    def restart(self, node: Node) -> None:
        self.restarts.append(node.start())

    def random_kills(
        self, kills: int, *, rate: float = 30.0, pause: float = 0.9, supervisor_only: bool = False
    ) -> None:
        """SIGKILL at random moments under ``rate`` messages a second, each node started again at once.

        A node dies at most ``pause`` seconds after somebody was told 250, so that there is something to lose.
        """
        with self.load(rate):
            for number in range(kills):
                if self.enough:
                    break
                self._wait_for_mail()
                time.sleep(self.chance.uniform(0.0, pause))
                node = self.chance.choice(self.members)
                self.kill(node, supervisor_only=supervisor_only)
                self.restart(node)
                self.tell(f"{number + 1}/{kills} kills")

    @contextmanager
    def load(self, rate: float) -> Iterator[None]:
        """``rate`` messages a second while the block lasts."""
        load = Load(self.ports, self.ledger, rate=rate, seed=self.seed)
        load.start()
        try:
            yield
        finally:
            load.stop()

    def _wait_for_mail(self, messages: int = 1, *, seconds: float = 5.0) -> None:
        """Return when so many more messages were answered 250, or the time is up."""
        enough, deadline = self.ledger.acknowledged + messages, time.monotonic() + seconds
        while self.ledger.acknowledged < enough and time.monotonic() < deadline:
            time.sleep(0.005)

    def kill_workers(self, kills: int, *, rate: float) -> None:
        """SIGKILL a worker process at a time, under a supervisor, which replaces it."""
        node = self.members[0]
        with self.load(rate):
            for _ in range(kills):
                workers = node.wait_for_workers()
                time.sleep(self.chance.uniform(0.1, 0.6))
                began = time.time()
                with suppress(
                    ProcessLookupError
                ):  # it has just been killed, and its successor is not there yet
                    os.kill(self.chance.choice(workers), signal.SIGKILL)
                self.died(node, began=began, worker=True)

    def answers_of_trouble(self) -> list[int]:
        """Codes of 500 and above that clients were told; our trouble must never sound like theirs."""
        return [f["code"] for f in self.ledger.snapshot() if f["what"] == "answered" and f["code"] >= 500]

    def acknowledged(self) -> int:
        return self.ledger.acknowledged

    def silent_answers(self) -> int:
        """Recipients of copies for which the sink broke off instead of answering."""
        facts = self.ledger.snapshot()
        return sum(len(f["recipients"]) for f in facts if f["what"] == "copy" and not f["answered"])

    def rolling_restart(self, *, between: int = 10) -> list[int]:
        """SIGTERM each node in turn and start it again, ``between`` messages taken before each; the exit statuses."""
        statuses = []
        for node in self.members:
            self._wait_for_mail(between, seconds=30)
            statuses.append(node.terminate())
            self.restart(node)
        return statuses

    def settle(self, seconds: float = SETTLE, *, asking: Node | None = None) -> Verdict:
        """Wait until nothing acknowledged is outstanding and the queue is empty, or time is up; then judge."""
        node = asking or self.members[0]
        deadline = time.monotonic() + seconds
        while True:
            verdict = judge(self.ledger.snapshot())
            if not verdict.waiting and node.queued() == 0:
                break
            if time.monotonic() > deadline:
                verdict.broken.append(
                    f"after {seconds:.0f} s of peace the queue still holds {node.queued()} deliveries"
                )
                return verdict
            time.sleep(0.5)
        return judge(self.ledger.snapshot())


def progress(text: str) -> None:
    """One line on stderr that is written over when a person watches, else now and then a line."""
    global _told_at
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
    elif time.monotonic() - _told_at < 30:
        return
    else:
        _told_at = time.monotonic()
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
