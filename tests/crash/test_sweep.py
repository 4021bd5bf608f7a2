"""The long form: a death, or an error of the disk, at the N-th system call of one message's life.

On SQLite at every write, fsync, truncation, removal and send. On PostgreSQL at every write to any socket, the server's
among them, and at every read from the server's: there the server has done what it was told, and the engine has not
heard of it.

Runs with FORWARDER_LONG=1, as ``make crash`` sets it; needs ``strace`` and the right to trace a process.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.crash import points
from tests.crash.campaign import Campaign
from tests.crash.client import send
from tests.crash.conftest import MakeCampaign
from tests.crash.ledger import judge
from tests.crash.node import Node
from tests.crash.test_faults import HEALS, one, until

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.environ.get("FORWARDER_LONG") != "1", reason="a part of `make crash`"),
]

MOST = 600  # calls of one kind in one message's life; more means that the sweep does not end
MISSES = (
    3  # in a row end a sweep: how many calls a life takes differs a little, by what shares its transactions
)
STEP = int(os.environ.get("FORWARDER_SWEEP_STEP", "1"))  # 7: every seventh call, to be done sooner


def tracer() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.fail("the sweep over system calls needs strace: install it, or leave the sweep out")
    return found


@contextmanager
def injected(node: Node, what: str, *, only: Sequence[str] = ()) -> Iterator[None]:
    """strace attached to a running node with one injection; detached at the end.

    ``only`` are the sockets that count, as /proc names them.
    """
    assert node.process is not None
    calls = what.partition(":")[0]
    command = [tracer(), "-f", "-q", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={what}"]
    command += [word for socket in only for word in ("-P", socket)]
    tracing = subprocess.Popen([*command, "-p", str(node.process.pid)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _attached(node), 20, "strace to attach")
        yield
    finally:
        tracing.send_signal(signal.SIGINT)
        tracing.wait(20)


def _attached(node: Node) -> bool:
    assert node.process is not None
    threads = f"/proc/{node.process.pid}/task"
    try:
        return all(_traced(f"{threads}/{thread}") for thread in os.listdir(threads))
    except OSError:
        return True  # it is dead already, of what was left to do


def _traced(thread: str) -> bool:
    try:
        with open(f"{thread}/status") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return True  # the thread is gone


def sockets_to(node: Node, port: int) -> list[str]:
    """The node's open sockets whose other end is that port, as /proc names them."""
    assert node.process is not None
    folder = Path(f"/proc/{node.process.pid}")
    lines = [line.split() for line in (folder / "net" / "tcp").read_text().splitlines()[1:]]
    there = {f"socket:[{words[9]}]" for words in lines if words[2].endswith(f":{port:04X}")}
    mine = set()
    for entry in os.listdir(folder / "fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            mine.add(os.readlink(folder / "fd" / entry))
    return sorted(there & mine)


def sweep(campaign: Campaign, call: str, only: Callable[[Node], Sequence[str]] = lambda _: ()) -> int:
    """Die at the first, second, … such call after a message began to arrive; the last at which it died."""
    node, last, misses = campaign.members[0], 0, 0
    for nth in range(1, MOST, STEP):
        recipients = [
            f"{kind}-{campaign.chance.randrange(10**9)}@crash.test" for kind in ("ok", "soft", "hard")
        ]
        with injected(node, f"{call}:signal=KILL:when={nth}", only=only(node)):
            send(node.port, campaign.ledger, recipients, campaign.chance)
            died = node.wait_for_death(3.0)
        if died:
            campaign.died(node, call=call, nth=nth)
            campaign.restart(node)
            last, misses = nth, 0
            # What was left is somebody else's life.
            until(lambda: not judge(campaign.ledger.snapshot()).waiting, HEALS, "what was left to go out")
        else:
            misses += 1
            if misses == MISSES:
                return last
    pytest.fail(f"one message makes more than {MOST} calls of {call}")


def test_a_death_at_every_system_call_of_a_message(campaign_on: MakeCampaign) -> None:
    """One message with a good, a failing and a hopeless recipient; its DSN is part of its life."""
    campaign = campaign_on("sqlite")
    calls = ["pwrite64", "fdatasync", "fsync", "write", "writev", "sendto", "sendmsg", "ftruncate", "unlink"]
    counts = {call: sweep(campaign, call) for call in calls}
    verdict = campaign.settle(90)
    print(f"SQLite: killed at each call up to {counts}")
    print("\n".join(verdict.lines()))
    assert verdict.broken == []
    assert verdict.kills > 10
    assert counts["pwrite64"] > 10
    assert counts["fdatasync"] > 2


def test_a_death_at_every_word_to_and_from_postgresql(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("postgresql")
    port = int(campaign.members[0].environ["DATABASE__URL"].rpartition("/")[0].rpartition(":")[2])

    def server(node: Node) -> Sequence[str]:
        assert one(campaign, node) == 250  # after which its connections are open
        return sockets_to(node, port)

    writes = {call: sweep(campaign, call) for call in ("write", "writev", "sendto", "sendmsg")}
    reads = {call: sweep(campaign, call, server) for call in ("read", "recvfrom", "recvmsg")}
    verdict = campaign.settle(90)
    print(f"PostgreSQL: killed at each call up to {writes}, and of those on its sockets up to {reads}")
    print("\n".join(verdict.lines()))
    assert verdict.broken == []
    assert sum(writes.values()) > 50
    assert sum(reads.values()) > 25


def test_an_error_of_the_disk_makes_it_unready_and_it_heals(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("sqlite")
    node = campaign.members[0]
    points.occasion(campaign, messages=2)
    with injected(node, "fdatasync,fsync:error=EIO:when=1+"):
        until(lambda: one(campaign, node) in (451, 452), 20, "a message to be refused")
        until(lambda: node.health() == 503, 15, "the node to say that it is not ready")
        assert node.health("live") == 200
    begin = time.monotonic()
    until(lambda: one(campaign, node) == 250, HEALS, "the node to take mail again")
    until(lambda: node.health() == 200, HEALS, "the node to say that it is ready")
    print(f"healed after {time.monotonic() - begin:.1f} s")
    verdict = campaign.settle(90)
    assert verdict.broken == []
    assert not campaign.answers_of_trouble()


def test_no_room_for_a_write_makes_it_refuse_for_a_while(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("sqlite")
    node = campaign.members[0]
    points.occasion(campaign, messages=2)
    with injected(node, "pwrite64:error=ENOSPC:when=1+"):
        until(lambda: one(campaign, node) == 452, 20, "a message to be refused for want of room")
        until(lambda: node.health() == 503, 15, "the node to say that it is not ready")
    until(lambda: one(campaign, node) == 250, HEALS, "the node to take mail again")
    assert campaign.settle(90).broken == []


def test_the_purge_point(campaign_on: MakeCampaign) -> None:
    """The journal is looked at a minute after the start, which is too long for the short form."""
    campaign = campaign_on("sqlite", more={"LOGS__RETENTION": "1s"})
    points.occasion(campaign, messages=3)
    assert points.die_at(campaign, "purge.before-commit")
    assert campaign.settle().broken == []
