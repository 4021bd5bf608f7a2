"""The short form of the campaign: about two hundred deaths, and nothing lost. ``make crash`` is the long one."""

import os
import select

import pytest

from tests.crash import points
from tests.crash.conftest import MakeCampaign

pytestmark = pytest.mark.timeout(300)

RARELY_REACHED = "purge.before-commit"  # a minute after a start: in ``make crash``


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_death_at_every_named_point_breaks_no_promise(campaign_on: MakeCampaign, kind: str) -> None:
    campaign = campaign_on(kind)
    rows = points.table(campaign, points.ordinary())
    verdict = campaign.settle()
    assert verdict.broken == []
    assert [row.point for row in rows if not row.reached] == []
    assert set(points.names()) - {row.point for row in rows} == {
        RARELY_REACHED,
        *points.CROWD,
        "migrate.before-commit",  # below
        "migrate.after-commit",
    }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("point", ["migrate.before-commit", "migrate.after-commit"])
def test_a_death_while_the_schema_is_made_leaves_all_or_nothing(
    campaign_on: MakeCampaign, kind: str, point: str
) -> None:
    campaign = campaign_on(kind, empty=True)
    node = campaign.members[0]
    node.start({"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": f"{point}:kill"}, wait=False)
    assert node.wait_for_death(20)
    node.populate()
    campaign.restart(node)
    points.occasion(campaign, messages=2)
    assert campaign.settle().broken == []


@pytest.mark.parametrize(
    ("kind", "nodes", "kills"), [("sqlite", 1, 55), ("postgresql", 1, 45), ("postgresql", 3, 45)]
)
def test_deaths_at_random_lose_nothing(campaign_on: MakeCampaign, kind: str, nodes: int, kills: int) -> None:
    campaign = campaign_on(kind, nodes=nodes, seed=20261121)
    campaign.random_kills(kills, rate=30, pause=0.5)
    verdict = campaign.settle()
    assert verdict.broken == []
    assert verdict.kills == kills
    assert verdict.acknowledged > kills  # else there was nothing to lose


@pytest.mark.parametrize("supervisor_only", [False, True])
def test_deaths_of_a_supervisor_with_or_without_its_workers_lose_nothing(
    campaign_on: MakeCampaign, supervisor_only: bool
) -> None:
    kills = 10
    campaign = campaign_on("sqlite", processes=2, seed=20261128)
    campaign.random_kills(kills, rate=30, pause=0.5, supervisor_only=supervisor_only)
    verdict = campaign.settle()
    assert verdict.broken == []
    assert verdict.kills == kills
    assert verdict.acknowledged > kills


def test_a_kill_reaches_every_process_of_a_node(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("sqlite", processes=2)
    node = campaign.members[0]
    assert node.process is not None
    held = [os.pidfd_open(pid) for pid in (node.process.pid, *node.wait_for_workers())]
    campaign.kill(node)
    ended, _, _ = select.select(held, [], [], 0)
    assert ended == held
    for process in held:
        os.close(process)


def test_a_worker_that_dies_is_replaced_by_the_supervisor(campaign_on: MakeCampaign) -> None:
    campaign = campaign_on("sqlite", processes=2, cold=True)
    campaign.kill_workers(3, rate=20)
    assert campaign.settle().broken == []


def test_a_cold_start_after_a_death_serves_what_was_left(campaign_on: MakeCampaign) -> None:
    """As a service manager starts it; ``restart`` fails when nobody greets within its patience."""
    campaign = campaign_on("sqlite", cold=True)
    points.occasion(campaign, messages=3)
    campaign.kill(campaign.members[0])
    campaign.restart(campaign.members[0])
    points.occasion(campaign, messages=1)
    verdict = campaign.settle()
    assert verdict.broken == []
    assert verdict.acknowledged == 4
