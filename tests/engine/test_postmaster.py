"""Mail for the postmaster of the server itself, whatever way it comes."""

from collections.abc import AsyncIterator

import pytest

from tests.engine.town import MAIL, Town


@pytest.fixture
async def manned(town: Town) -> AsyncIterator[Town]:
    async with town.engine(postmaster="pm@dest.test"):
        yield town


async def test_an_alias_may_lead_to_the_postmaster(manned: Town) -> None:
    await manned.alias("top", "Postmaster@mx.test")
    await manned.alias("both", "side@dest.test, postmaster@mx.test, pm@dest.test")
    assert (await manned.send("ann@out.test", "top@example.com", MAIL)).code == 250
    (message,) = await manned.sink.wait_for(1)
    assert message.recipients == ("pm@dest.test",)
    assert (await manned.send("ann@out.test", "both@example.com", MAIL)).code == 250
    (_, message) = await manned.sink.wait_for(2)
    assert sorted(message.recipients) == ["pm@dest.test", "side@dest.test"]
    await manned.goes_on()
    await manned.settled()
    assert [e[0] for e in await manned.events_for("top@example.com")] == ["QUEUED", "DELIVERED"]
    assert manned.origin.messages == []


async def test_a_report_to_the_postmaster_finds_him(manned: Town) -> None:
    await manned.alias("gone", "550-at-rcpt@dest.test")
    assert (await manned.send("postmaster@mx.test", "gone@example.com", MAIL)).code == 250
    (report,) = await manned.sink.wait_for(1)
    assert (report.reverse_path, report.recipients) == ("", ("pm@dest.test",))
    assert b"\r\nTo: <postmaster@mx.test>\r\n" in report.content
    await manned.goes_on()
    await manned.settled()


async def test_a_circle_through_the_postmaster_is_refused(town: Town) -> None:
    async with town.engine(postmaster="top@example.com"):
        # As the background look finds it: else the postmaster's mail takes the way of the MX records.
        await town.leads_here("example.com")
        await town.alias("top", "postmaster@mx.test")
        for recipient in ("top@example.com", "postmaster@mx.test"):
            assert str(await town.send("ann@out.test", recipient, MAIL)).startswith("550 5.4.6"), recipient
        await town.goes_on()
