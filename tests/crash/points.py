"""The failpoint table: a node dies once at every named point, and what it promised must hold.

The points are read from the text of ``forwarder/failpoint.py``, so that none can be forgotten here.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.campaign import Campaign
from tests.crash.client import send

DEATH = 8.0  # seconds a node has to come to its point
PURGE_TURN = 75.0  # the journal is looked at a minute after the start
KINDS = ("ok", "hard", "soft", "ok", "drop", "hard")

AT_START = {"start.after-keys", "migrate.before-commit", "migrate.after-commit", "takeover.before-release"}
AT_STOP = {"release.before-commit"}
SLOW = {"purge.before-commit"}
CROWD = {"insert.next-rows"}  # for a message with more recipients than one statement holds: ``test_fan_out``
ONCE = AT_START | AT_STOP | SLOW | {"dispatch.claimed"}  # a second time may never come


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    point: str
    nth: int
    reached: bool


def names() -> list[str]:
    """Every point that the engine names."""
    source = (Path(__file__).parents[2] / "forwarder" / "failpoint.py").read_text()
    table = source.partition("POINTS")[2].partition("\n}\n")[0]
    found = re.findall(r'^    "([a-z.-]+)":', table, re.MULTILINE)
    assert len(found) > 20, "the table of points has moved"
    return found


def ordinary() -> list[str]:
    """The points that a message or a start comes to within seconds."""
    return [name for name in names() if name not in SLOW | CROWD and not name.startswith("migrate.")]


def table(campaign: Campaign, points: Sequence[str], *, nths: Sequence[int] = (1,)) -> list[Row]:
    """Every point once for each of ``nths``."""
    rows = []
    for point in points:
        for nth in nths if point not in ONCE else (1,):
            rows.append(Row(point, nth, die_at(campaign, point, nth=nth)))
            campaign.tell(f"failpoint {point}:{nth}")
    return rows


def die_at(campaign: Campaign, point: str, *, nth: int = 1) -> bool:
    """Start the first node armed to die at ``point``, give it cause to come there, start it again clean.

    False when it did not die there.
    """
    node = campaign.members[0]
    campaign.kill(node)
    armed = {"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": f"{point}:{nth}:kill"}
    if point in AT_STOP:  # one delivery fills the only session, the others wait and have to be given back
        armed["FORWARDER_OUTBOUND__CONCURRENCY"] = "1"
    node.start(armed, wait=False)
    if point not in AT_START and node.wait_until_ready():  # or it dies before: the start writes, too
        occasion(campaign, messages=6 + 3 * nth, kinds=("slow",) if point in AT_STOP else KINDS)
        if point in AT_STOP:
            node.signal(signal.SIGTERM)
    died = node.wait_for_death(PURGE_TURN if point in SLOW else DEATH)
    reached = died and node.process is not None and node.process.returncode == -signal.SIGKILL
    if reached:
        campaign.died(node, point=point)
    else:
        campaign.kill(node)
    campaign.restart(node)
    return reached


def occasion(campaign: Campaign, *, messages: int, kinds: Sequence[str] = KINDS) -> None:
    """Mail of every kind, until it is enough or the node is dead."""
    node, chance = campaign.members[0], campaign.chance
    for number in range(messages):
        if not node.alive():
            return
        recipients = [f"{kinds[number % len(kinds)]}-{chance.randrange(10**9)}@crash.test"]
        if number % 2:
            recipients += [f"ok-{chance.randrange(10**9)}@crash.test" for _ in range(3)]
        send(node.port, campaign.ledger, recipients, chance)
