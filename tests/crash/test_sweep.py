"""The long form: a death, or an error of the disk, at the N-th system call of one message's life.

Runs with FORWARDER_LONG=1, as ``make crash`` sets it; needs ``strace`` and the right to trace a process.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.crash import points
from tests.crash.client import send
from tests.crash.conftest import MakeCampaign
from tests.crash.node import Node
from tests.crash.test_faults import HEALS, one, until

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("FORWARDER_LONG") != "1", reason="a part of `make crash`"),
]

MOST = 80  # calls of one kind in one message's life; more means that the sweep does not end


def tracer() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.fail("the sweep over system calls needs strace: install it, or leave the sweep out")
    return found


@contextmanager
def injected(node: Node, what: str) -> Iterator[None]:
    """strace attached to a running node with one injection; detached at the end."""
    assert node.process is not None
    calls = what.partition(":")[0]
    command = [tracer(), "-f", "-q", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={what}"]
    tracing = subprocess.Popen([*command, "-p", str(node.process.pid)], stderr=subprocess.DEVNULL)
    try:
        threads = f"/proc/{node.process.pid}/task"
        until(
            lambda: all(_traced(f"{threads}/{thread}") for thread in os.listdir(threads)),
            20,
            "strace to attach",
        )
        yield
    finally:
        tracing.send_signal(signal.SIGINT)
        tracing.wait(20)


def _traced(thread: str) -> bool:
    try:
        with open(f"{thread}/status") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return True  # the thread is gone


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_death_at_every_system_call_of_a_message(campaign_on: MakeCampaign, kind: str) -> None:
    """One message with a good, a failing and a hopeless recipient; its DSN is part of its life."""
    campaign = campaign_on(kind)
    node = campaign.members[0]
    counts = {}
    for call in (
        "pwrite64",
        "fdatasync",
        "fsync",
        "write",
        "writev",
        "sendto",
        "sendmsg",
        "ftruncate",
        "unlink",
    ):
        for nth in range(1, MOST + 1):
            chance = campaign.chance
            recipients = [f"{kind}-{chance.randrange(10**9)}@crash.test" for kind in ("ok", "soft", "hard")]
            with injected(node, f"{call}:signal=KILL:when={nth}"):
                send(node.port, campaign.ledger, recipients, chance)
                died = node.wait_for_death(3.0)
            if died:
                campaign.died(node, call=call, nth=nth)
                campaign.restart(node)
                counts[call] = nth
            else:
                break
    verdict = campaign.settle(90)
    print(f"{kind}: killed at each of {counts}")
    print("\n".join(verdict.lines()))
    assert verdict.broken == []
    assert sum(counts.values()) > 10


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
