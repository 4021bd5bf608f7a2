"""One message, fifty recipients, ten destinations each: five hundred deliveries are stored, or none.

The deaths are in the middle of storing them: on SQLite between the statements that insert them, on PostgreSQL while
the server inserts the first, the 250th and the 499th (a trigger stops it there until the node is dead). The short form
dies at five moments on each database, ``make crash`` (FORWARDER_LONG=1) at all of an enqueue and of its settlements.
"""

import os
import threading

import pytest

from tests.crash import points
from tests.crash.campaign import Campaign
from tests.crash.client import send
from tests.crash.conftest import MakeCampaign
from tests.crash.test_faults import until
from tests.postgres import Server

LONG = os.environ.get("FORWARDER_LONG") == "1"
pytestmark = pytest.mark.timeout(1800 if LONG else 300)

RECIPIENTS, EACH = 50, 10
ROWS = RECIPIENTS * EACH

ENQUEUE = [
    "enqueue.before-events:1",
    "receive.before-reply:1",
]  # the points of the writer are met by a start, too
MORE = [
    "receive.after-dot:1",
    "receive.before-enqueue:1",
    "enqueue.before-messages:1",
    "enqueue.before-deliveries:1",
    "enqueue.before-logs:1",
    "receive.after-reply:1",
    "deliver.before-connect:1",
    "deliver.before-mail:1",
    "deliver.before-content:1",
    "deliver.before-dot-reply:1",
    "deliver.after-dot-reply:1",
    "deliver.after-dot-reply:3",
    "settle.before-deliveries:1",
    "settle.before-events:1",
    "settle.before-reports:1",
    "settle.before-content:1",
    "settle.after-commit:1",
]
BETWEEN = [f"insert.next-rows:{n}" for n in (1, 5, 9)]  # after 50, 250 and 450 of the deliveries
AFTERWARDS = [f"insert.next-rows:{n}" for n in (10, 18, 19, 27)]  # among the logs and the events


def teach(campaign: Campaign) -> None:
    """An alias whose every address leads to ten."""
    destinations = ",".join(f"many-$1-{n}@sink.test" for n in range(EACH))
    campaign.members[0].command("alias", "add", "crash.test", "many-([0-9]+)", destinations)


def send_to_all(campaign: Campaign) -> int | None:
    first = campaign.chance.randrange(10**9)
    numbers = range(first, first + RECIPIENTS)
    reaching = [f"many-{number}-{n}@crash.test" for number in numbers for n in range(EACH)]
    return send(
        campaign.members[0].port,
        campaign.ledger,
        [f"many-{number}@crash.test" for number in numbers],
        campaign.chance,
        reaching=reaching,
    )


def die(campaign: Campaign, point: str) -> None:
    node = campaign.members[0]
    campaign.kill(node)
    node.start({"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": f"{point}:kill"})
    send_to_all(campaign)
    assert node.wait_for_death(points.DEATH), f"it did not die at {point}"
    campaign.died(node, point=point)
    campaign.restart(node)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_five_hundred_deliveries_are_stored_or_none(campaign_on: MakeCampaign, kind: str) -> None:
    campaign = campaign_on(kind)
    teach(campaign)
    moments = (BETWEEN if kind == "sqlite" else []) + ENQUEUE  # the last of them is stored: it leaves work
    if LONG:
        moments = (BETWEEN + AFTERWARDS if kind == "sqlite" else []) + ENQUEUE + MORE
    for point in moments:
        die(campaign, point)
        if LONG:  # or the next death is met by what this one has left
            until(lambda: campaign.members[0].queued() == 0, 60, "what was left to go out")
    assert send_to_all(campaign) == 250
    verdict = campaign.settle(120)
    assert verdict.broken == []  # among them: "nobody was answered, yet only 50 of 500 recipients got it"
    assert verdict.delivered >= 2 * ROWS  # the one that was committed before a death, and the last
    assert verdict.delivered % ROWS == 0


def test_a_death_while_the_server_inserts_them(campaign_on: MakeCampaign, postgres: Server) -> None:
    campaign = campaign_on("postgresql")
    node = campaign.members[0]
    teach(campaign)
    database = node.environ["DATABASE__URL"].rpartition("/")[2]
    postgres.sql(
        """CREATE SEQUENCE inserted;
        CREATE FUNCTION wait_at_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('inserted') = TG_ARGV[0]::int THEN PERFORM pg_sleep(8); END IF; RETURN NEW;
        END $$""",
        database,
    )
    asleep = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = '{database}'"
    for row in (1, ROWS // 2, ROWS - 1):
        postgres.sql(
            f"ALTER SEQUENCE inserted RESTART; CREATE TRIGGER waiting BEFORE INSERT ON deliveries "
            f"FOR EACH ROW EXECUTE FUNCTION wait_at_one({row})",
            database,
        )
        sending = threading.Thread(target=send_to_all, args=(campaign,))
        sending.start()
        until(lambda: postgres.sql(asleep) == "1", 20, f"the server to insert row {row}")
        campaign.kill(node)
        sending.join()
        # It would notice at its next word to the node; sooner is the same.
        postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        until(lambda: postgres.sql(asleep) == "0", 20, "the server to notice")
        assert int(postgres.sql("SELECT last_value FROM inserted", database)) == row
        postgres.sql("DROP TRIGGER waiting ON deliveries", database)
        campaign.restart(node)
        assert postgres.sql("SELECT count(*) FROM deliveries", database) == "0"
    assert send_to_all(campaign) == 250
    verdict = campaign.settle(120)
    assert verdict.broken == []
    assert (verdict.unknown, verdict.delivered) == (3, ROWS)
