"""Power cuts on SQLite: what was not synchronised is gone, or torn, and no message is lost or damaged for it.

One run under load is recorded (see ``power``), with its clean end. Then the power is cut at hundreds of moments of
that recording, and each time at every moment right after a 250 was sent. The database must open and be sound, and hold
each message whose 250 had been sent, whole, for each recipient for whom no copy and no report had arrived by then. At a
few moments an engine is started on what was left, and the ledger judges what it makes of it.

Needs ``strace``; the short form is skipped without it. FORWARDER_LONG=1 (``make crash``) records more, with a
checkpoint in its midst.
"""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash import bounces, power
from tests.crash.campaign import Campaign
from tests.crash.ledger import Verdict, judge
from tests.crash.power import Disk, Event
from tests.crash.test_faults import one, until

LONG = os.environ.get("FORWARDER_LONG") == "1"
pytestmark = pytest.mark.timeout(1800 if LONG else 300)

MESSAGES = 200 if LONG else 30
LARGE = 120 if LONG else 1  # of 700 kB each: with so many the log file is checkpointed (CHECKPOINT_PAGES)
CUTS = 2000 if LONG else 150
STARTS = 25 if LONG else 2


@dataclass(frozen=True, slots=True)
class Run:
    """One recorded run."""

    campaign: Campaign
    data: Path
    found: dict[str, bytes]  # the files before it
    events: list[Event]
    facts: list[dict[str, Any]]

    def numbers(self) -> dict[str, str]:
        """The number of the ledger for each message id of the engine."""
        return {
            fact["text"].split()[-1]: fact["id"]
            for fact in self.facts
            if fact["what"] == "answered" and fact["code"] == 250
        }


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    works = found and subprocess.run([found, "-f", "-o", os.devnull, "true"], check=False).returncode == 0
    if not works:
        (pytest.fail if LONG else pytest.skip)("recording a run needs strace and the right to trace")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def run(strace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("power")
    with Campaign(folder, empty=True, seed=5) as campaign:
        node = campaign.members[0]
        node.populate()
        data = node.folder / "data"
        found = {path.name: path.read_bytes() for path in data.glob("forwarder.db*")}
        node.start(under=power.tracing(strace, folder / "calls"))
        with campaign.load(40):
            until(lambda: campaign.acknowledged() >= MESSAGES, 30 + MESSAGES, "the messages to be taken")
        for _ in range(LARGE):
            assert one(campaign, node, size=700_000) == 250
        until(lambda: not judge(campaign.ledger.snapshot()).waiting, 60, "the mail to go out")
        assert node.process is not None
        [engine] = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
        os.kill(int(engine), signal.SIGTERM)
        assert node.process.wait(60) == 0
        yield Run(campaign, data, found, power.read(folder / "calls"), campaign.ledger.snapshot())


def objections(octets: dict[str, bytes], folder: Path, run: Run, events: list[Event]) -> list[str]:
    """What is wrong with the files that were found after a cut that followed ``events``."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in octets.items():
        (folder / name).write_bytes(content)
    with closing(sqlite3.connect(folder / "forwarder.db")) as database:
        wrong = [
            f"integrity: {line}" for (line,) in database.execute("PRAGMA integrity_check") if line != "ok"
        ]
        wrong += [f"foreign key: {row}" for row in database.execute("PRAGMA foreign_key_check")]
        contents = dict(database.execute("SELECT id, content FROM messages").fetchall())
        going = set(database.execute("SELECT message_id, destination FROM deliveries").fetchall())
    numbers, until_then = run.numbers(), events[-1].at
    sent = {fact["id"]: fact for fact in run.facts if fact["what"] == "sending"}
    arrived = {
        (fact["id"], recipient)
        for fact in run.facts
        if fact["what"] in ("copy", "report") and fact["at"] <= until_then
        for recipient in fact.get("recipients") or [fact["recipient"]]
    }
    for content in contents.values():
        if b"multipart/report" in content:
            report = bounces.read(content)
            arrived |= {(report.about, failed.replace("@sink.", "@crash.")) for failed in report.failed}
    for message in power.promised(events):
        fact = sent[numbers[message]]
        body = contents.get(message, b"").partition(b"\r\n\r\n")[2]
        whole = hashlib.sha256(body).hexdigest() == fact["body"]
        for recipient in fact["recipients"]:
            stored = (message, recipient.replace("@crash.", "@sink.")) in going
            if (fact["id"], recipient) not in arrived and not (stored and whole):
                wrong.append(
                    f"{message} to {recipient}: its 250 was sent, and it is {'torn' if stored else 'gone'}"
                )
    return wrong


def cuts(run: Run, moments: set[int], chance: random.Random) -> Iterator[tuple[int, dict[str, bytes]]]:
    """The files after a cut at each of the moments: how many events had ended."""
    disk = Disk(run.data, run.found)
    for index, event in enumerate(run.events, 1):
        disk.play(event)
        if index in moments:
            yield index, disk.after_a_power_cut(chance)


def after_promises(run: Run) -> set[int]:
    return {index for index, event in enumerate(run.events, 1) if event.kind == "promise"}


def test_a_power_cut_loses_nothing_that_was_promised(run: Run, tmp_path: Path) -> None:
    chance = random.Random(1)
    moments = set(chance.sample(range(1, len(run.events) + 1), min(CUTS, len(run.events))))
    promises = after_promises(run)
    wrong = {
        index: found
        for index, octets in cuts(run, moments | promises, chance)
        if (found := objections(octets, tmp_path, run, run.events[:index]))
    }
    kinds = {(event.kind, event.path.rpartition("db")[2]) for event in run.events}
    print(f"{len(moments | promises)} cuts among {len(run.events)} events, {len(promises)} promises")
    assert wrong == {}
    assert len(promises) >= MESSAGES
    assert {("sync", ""), ("sync", "-wal"), ("write", ""), ("unlink", "-wal")} <= kinds
    if LONG:  # a checkpoint while mail still came
        assert any(e.path.endswith(".db") and e.kind == "write" for e in run.events[: max(promises)])


def test_a_250_before_its_fsync_would_be_found(run: Run, tmp_path: Path) -> None:
    """The check of the check: each promise is put before the last fsync that went before it."""
    chance = random.Random(2)
    early = {}  # the moment before that fsync: when the promise was really sent
    synced = 0
    for index, event in enumerate(run.events, 1):
        if event.kind == "sync" and event.path.endswith("-wal"):
            synced = index
        elif event.kind == "promise":
            early[synced - 1] = index
    wrong = 0
    for index, octets in cuts(run, set(early), chance):
        wrong += bool(objections(octets, tmp_path, run, [*run.events[:index], run.events[early[index] - 1]]))
    print(f"{wrong} of {len(early)} early promises broken")
    assert wrong >= len(early) // 4


def test_an_engine_goes_on_with_what_a_power_cut_has_left(run: Run) -> None:
    chance = random.Random(3)
    moments = set(chance.sample(sorted(after_promises(run)), STARTS))
    node, ledger = run.campaign.members[0], run.campaign.ledger
    for index, octets in cuts(run, moments, chance):
        at = run.events[index - 1].at
        for old in run.data.glob("forwarder.db*"):
            old.unlink()
        for name, content in octets.items():
            (run.data / name).write_bytes(content)
        before = [fact for fact in run.facts if fact["at"] <= at]
        before.append({"what": "killed", "node": node.name, "began": at, "at": at})
        seen = len(ledger.snapshot())

        def verdict(before: list[dict[str, Any]] = before, seen: int = seen) -> Verdict:
            return judge(before + ledger.snapshot()[seen:])

        node.start()
        until(lambda: not verdict().waiting and node.queued() == 0, 60, "what was left to go out")
        assert verdict().broken == []
        assert node.terminate() == 0


def test_what_a_disk_may_have_kept() -> None:
    """The model itself, on a recording of a few lines."""

    def write(octets: bytes, offset: int, since: int) -> Event:
        return Event(at=0.0, kind="write", path="/d/f", offset=offset, octets=octets, since=since)

    disk = Disk(Path("/d"), {"f": b"old!"})
    disk.play(write(b"new!", 0, 0))
    found = {disk.after_a_power_cut(random.Random(n))["f"] for n in range(50)}
    assert found == {b"old!", b"new!"}
    disk.play(write(b"late", 4, 1))
    disk.play(Event(at=0.0, kind="sync", path="/d/f", since=1))  # it began before the second write had ended
    found = {disk.after_a_power_cut(random.Random(n))["f"] for n in range(50)}
    assert found == {b"new!", b"new!late"}
    disk.play(write(b"x" * 1024, 0, 3))
    torn = {disk.after_a_power_cut(random.Random(n))["f"] for n in range(200)}
    assert b"new!late" in torn
    assert b"new!late" + bytes(504) + b"x" * 512 in torn
    assert b"x" * 512 in torn
    disk.play(Event(at=0.0, kind="unlink", path="/d/f", since=4))
    found_names = {tuple(disk.after_a_power_cut(random.Random(n))) for n in range(50)}
    assert found_names == {(), ("f",)}
    disk.play(Event(at=0.0, kind="sync", path="/d", since=5))
    assert disk.after_a_power_cut(random.Random(0)) == {}


LINES = r"""10 100.5 pwrite64(5<\x2f\x64\x2f\x66>, "\x61\x62", 2, 32) = 2
10 100.6 pwrite64(5<\x2f\x64\x2f\x66>, "\x63", 1, 34 <unfinished ...>
11 100.7 fdatasync(5<\x2f\x64\x2f\x66> <unfinished ...>
10 100.8 <... pwrite64 resumed>) = 1
11 100.9 <... fdatasync resumed>) = 0
10 101.0 write(7<\x73\x6f\x63\x6b\x65\x74>, "\x32\x35\x30\x20\x32\x2e\x30\x2e\x30\x20\x71\x75\x65\x75\x65\x64\x20\x61\x73\x20\x41\x42\x0d\x0a", 24) = 24
10 101.1 pwrite64(5<\x2f\x64\x2f\x66>, "\x64", 1, 34) = -1 ENOSPC (No space left on device)
10 101.2 ftruncate(5<\x2f\x64\x2f\x66>, 3) = 0
11 101.3 +++ exited with 0 +++
"""  # noqa: E501 - as strace says it


def test_a_recording_is_read(tmp_path: Path) -> None:
    recording = tmp_path / "calls"
    recording.write_text(LINES)
    f = {"path": "/d/f"}
    assert power.read(recording) == [
        Event(at=100.5, kind="write", offset=32, octets=b"ab", since=0, **f),
        Event(at=100.6, kind="write", offset=34, octets=b"c", since=1, **f),
        Event(at=100.7, kind="sync", since=1, **f),
        Event(at=101.0, kind="promise", message="AB", since=3),
        Event(at=101.2, kind="truncate", offset=3, since=4, **f),
    ]
