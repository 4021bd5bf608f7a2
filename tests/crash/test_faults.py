"""Faults other than death: stopped processes, restarts in turn, a database that goes away, a disk that is full."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.campaign import Campaign
from tests.crash.client import send
from tests.crash.conftest import MakeCampaign
from tests.crash.cutter import Cutter
from tests.crash.node import Node
from tests.postgres import Server

LONG = os.environ.get("FORWARDER_LONG") == "1"
pytestmark = pytest.mark.timeout(3600 if LONG else 240)

LEASE = 4.0
SHORT_LEASE = {"WORKERS__LEASE": f"{LEASE:.0f}s"}
HEALS = 30.0  # seconds


def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition; the seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return time.monotonic() - begin


def one(campaign: Campaign, node: Node, kind: str = "ok", *, size: int = 0) -> int | None:
    """Send one message to one recipient; its answer."""
    recipient = f"{kind}-{campaign.chance.randrange(10**9)}@crash.test"
    return send(node.port, campaign.ledger, [recipient], campaign.chance, size=size)


def copies(campaign: Campaign) -> int:
    return sum(fact["what"] == "copy" for fact in campaign.ledger.snapshot())


def more(campaign: Campaign, messages: int) -> None:
    """Wait until so many more messages are acknowledged."""
    enough = campaign.acknowledged() + messages
    until(lambda: campaign.acknowledged() >= enough, HEALS, f"{messages} messages to be taken")


def test_a_dead_nodes_work_is_taken_over_within_lease_and_poll(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("postgresql", nodes=2, more=SHORT_LEASE | {"OUTBOUND__CONCURRENCY": "1"})
    dead, other = campaign.members
    # One slow delivery holds the only session; the others wait behind it, leased to the node.
    for _ in range(6):
        assert one(campaign, dead, "slow") == 250
    campaign.kill(dead)
    began = copies(campaign)
    until(lambda: copies(campaign) > began, LEASE + 20.0, "the other node's first copy")
    assert campaign.settle(30, asking=other).broken == []


def test_a_node_stopped_for_longer_than_a_lease_sends_nothing_again(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("postgresql", nodes=2, more=SHORT_LEASE | {"OUTBOUND__CONCURRENCY": "1"})
    stopped, other = campaign.members
    for _ in range(8):
        assert one(campaign, stopped, "slow") == 250
    began = time.time()
    stopped.signal(signal.SIGSTOP)
    campaign.ledger.write("stopped", node=stopped.name, began=began)
    # Everything has gone out by way of the other node before the first one wakes, but for what was on the wire.
    until(lambda: copies(campaign) >= 8 and other.queued() == 0, LEASE + 60.0, "the other to do it all")
    before = copies(campaign)
    stopped.signal(signal.SIGCONT)
    until(lambda: one(campaign, stopped) == 250, HEALS, "the woken node to take mail")
    verdict = campaign.settle(60, asking=other)
    assert verdict.broken == []
    # the session that was open when it was stopped, and the mail just sent
    assert copies(campaign) - before <= 2


def test_three_nodes_restarted_in_turn_lose_and_double_nothing(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("postgresql", nodes=3)
    with campaign.load(20):
        statuses = campaign.rolling_restart()
    verdict = campaign.settle()
    assert statuses == [0, 0, 0]
    assert verdict.broken == []
    assert verdict.acknowledged >= 30  # ten before each restart
    assert not campaign.answers_of_trouble()  # no 5xx to anybody


def test_four_workers_racing_send_nothing_twice(campaign_on: MakeCampaign) -> None:
    messages = int(os.environ.get("FORWARDER_RACE", "150"))
    campaign = campaign_on("postgresql", nodes=2, processes=2, cold=True)
    campaign.sink.refuse(True)  # what is queued meanwhile is raced for afterwards
    with campaign.load(200):
        until(lambda: campaign.acknowledged() >= messages, 60 + messages / 20, "the messages to be queued")
    campaign.sink.refuse(False)
    verdict = campaign.settle(60 + messages / 20)
    assert verdict.broken == []
    assert verdict.duplicates_explained <= campaign.silent_answers()


def test_postgresql_stopped_at_once_and_started_again(
    campaign_on: MakeCampaign, own_postgres: Server
) -> None:
    campaign = campaign_on(database_url=own_postgres.database())
    node = campaign.members[0]
    with campaign.load(20):
        more(campaign, 10)
        own_postgres.stop(signal.SIGQUIT)
        campaign.ledger.write("cut")
        until(lambda: node.health() == 503, 10, "the node to say that it is not ready")
        assert node.health("live") == 200
        assert one(campaign, node) in (421, 451)
        own_postgres.restart()
        campaign.ledger.write("cut")
        until(lambda: one(campaign, node) == 250, HEALS, "the node to take mail again")
        until(lambda: node.health() == 200, HEALS, "the node to say that it is ready")
        own_postgres.stop(signal.SIGINT)
        campaign.ledger.write("cut")
        own_postgres.restart()
        until(lambda: one(campaign, node) == 250, HEALS, "the node to take mail again")
    verdict = campaign.settle()
    assert verdict.broken == []
    assert not campaign.answers_of_trouble()


def test_the_link_cut_after_commit_was_sent(campaign_on: MakeCampaign, own_postgres: Server) -> None:
    """The hardest moment: the change may be in force, and nobody can say."""
    cutter = Cutter(("127.0.0.1", own_postgres.port))
    url = own_postgres.database()
    campaign = campaign_on(database_url=url.replace(f":{own_postgres.port}/", f":{cutter.port}/"))
    with campaign.load(20):
        for _ in range(int(os.environ.get("FORWARDER_CUTS", "8"))):
            more(campaign, 3)
            cutter.cut_after_commit()
            assert cutter.commits_cut.wait(10)
            campaign.ledger.write("cut")
            cutter.mend()
    until(lambda: one(campaign, campaign.members[0]) == 250, HEALS, "the node to take mail again")
    verdict = campaign.settle(90)
    cutter.close()
    assert verdict.broken == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("making a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_new_mail_for_a_while_and_keeps_what_is_queued(
    campaign_on: MakeCampaign, small_disk: Path
) -> None:
    database = f"sqlite:///{small_disk}/forwarder.db"
    # The data folder has room, so that the look ahead at MAIL sees nothing and the store itself runs full.
    campaign = campaign_on(database_url=database)
    node = campaign.members[0]
    assert one(campaign, node, "soft") == 250
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # full, as it should be
        while file.write(bytes(4096)):
            continue
    until(lambda: one(campaign, node, size=2_000_000) in (451, 452), 20, "a large message to be refused")
    # Small enough to be written by the COMMIT only; the writes before it took what was left.
    until(lambda: one(campaign, node) == 452, 20, "a small message to be refused for want of room")
    until(lambda: node.health("live") == 200, 15, "the node to say that it lives")
    filler.unlink()
    until(lambda: one(campaign, node) == 250, HEALS, "the node to take mail again")
    until(lambda: node.health() == 200, HEALS, "the node to say that it is ready")
    assert campaign.settle().broken == []
    assert not campaign.answers_of_trouble()


def test_mail_waits_for_a_dns_that_is_gone(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on(
        "sqlite", more={"OUTBOUND__SMARTHOST": "", "DNS__NAMESERVERS": "127.0.0.1:9", "DNS__TIMEOUT": "1s"}
    )
    node = campaign.members[0]
    for _ in range(3):
        assert one(campaign, node) == 250
    until(lambda: "SOFT-BOUNCE" in node.statuses(), 15, "an attempt to fail")
    assert node.queued() == 3
    assert "HARD-BOUNCE" not in node.statuses()
    node.terminate()
    node.environ["OUTBOUND__SMARTHOST"] = f"127.0.0.1:{campaign.sink.port}"
    campaign.restart(node)
    assert campaign.settle().broken == []
