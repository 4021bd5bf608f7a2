"""Mail of our own for a domain that is hosted here, and whose records nobody has looked at yet."""

from collections.abc import AsyncIterator

import pytest

from tests.engine.town import MAIL, Town

OTHER = "other@example.org"


@pytest.fixture
async def reachable(town: Town) -> AsyncIterator[Town]:
    """An engine that listens where others dial; ``van.test`` of another account has an MX with a name of its own."""
    port = town.sink.port
    town.dns.set("mx.test", "A", ["127.0.0.6"])
    town.dns.mail_host("van.test", "127.0.0.6", host="mail.van.test")
    town.dns.set("example.com", "MX", [(10, "mx.test")])
    async with town.engine(
        mx={"listen": ["127.0.0.1:0", f"127.0.0.6:{port}"]},
        retry={"delays": ["10m"]},
    ):
        await town.host("van.test", {"ann": "annbox@dest.test"}, account=OTHER)
        yield town


async def test_where_an_alias_of_another_account_leads(reachable: Town) -> None:
    assert (await reachable.send("bob@out.test", await reachable.towards("van.test"), MAIL)).code == 250
    await reachable.settled()
    # The domain has its say: nobody is called person there.
    (event,) = [e for e in await reachable.events_for("for.van.test@example.com") if e[0] == "HARD-BOUNCE"]
    assert event == ("HARD-BOUNCE", 550, "5.1.1 no such address here")
    await reachable.alias("van", "ann@van.test")
    assert (await reachable.send("bob@out.test", "van@example.com", MAIL)).code == 250
    (message,) = await reachable.sink.wait_for(1)
    assert message.recipients == ("annbox@dest.test",)
    await reachable.goes_on()
    await reachable.settled()
    assert await reachable.statuses("van.test") == ["REFUSED", "QUEUED", "DELIVERED"]


async def test_what_comes_back_to_a_sender(reachable: Town) -> None:
    """A bounce to a return address of ours, and a report that is ours."""
    assert (await reachable.send("ann@van.test", "well@example.com", MAIL)).code == 250
    (forwarded,) = await reachable.well.wait_for(1)
    assert forwarded.reverse_path.endswith("=van.test=ann@mx.test")
    assert (await reachable.send("", forwarded.reverse_path, MAIL)).code == 250
    (bounce,) = await reachable.sink.wait_for(1)
    assert (bounce.reverse_path, bounce.recipients) == ("", ("annbox@dest.test",))
    await reachable.alias("gone", "550-at-rcpt@dest.test")
    assert (await reachable.send("ann@van.test", "gone@example.com", MAIL)).code == 250
    report = (await reachable.sink.wait_for(2))[-1]
    assert (report.reverse_path, report.recipients) == ("", ("annbox@dest.test",))
    assert b"\r\nFinal-Recipient: rfc822; gone@example.com\r\n" in report.content
    await reachable.goes_on()
    await reachable.settled()


async def test_a_circle_of_domains_that_nobody_looked_at_ends(reachable: Town) -> None:
    reachable.dns.mail_host("far.test", "127.0.0.6")
    await reachable.host("far.test", {"info": "round@van.test"}, account="third@example.org")
    van = await reachable.domain("van.test")
    assert not van.is_active
    await reachable.alias("round", "info@far.test", domain="van.test")
    assert (await reachable.send("bob@out.test", "round@van.test", MAIL)).code == 250
    (report,) = await reachable.origin.wait_for(1)
    assert b"\r\nStatus: 5.4.6\r\n" in report.content
    await reachable.goes_on()
    await reachable.settled()
    assert len(reachable.origin.messages) == 1
    assert sorted(await reachable.statuses("van.test")) == ["DELIVERED", "QUEUED", "REFUSED"]
    assert await reachable.statuses("far.test") == ["QUEUED", "HARD-BOUNCE"]


async def test_a_domain_that_is_not_hosted_here_still_loops(reachable: Town) -> None:
    reachable.dns.mail_host("stranger.test", "127.0.0.6")
    assert (await reachable.send("bob@out.test", await reachable.towards("stranger.test"), MAIL)).code == 250
    (report,) = await reachable.origin.wait_for(1)
    assert b"\r\nStatus: 5.4.6\r\n" in report.content
    await reachable.goes_on()


async def test_the_names_of_the_server_itself(reachable: Town) -> None:
    """Nobody is there but the postmaster, and return addresses that are genuine."""
    await reachable.alias("nobody", "nobody@mx.test")
    assert (await reachable.send("bob@out.test", "nobody@example.com", MAIL)).code == 250
    _, code, text = await reachable.wait_for_event("nobody@example.com", "HARD-BOUNCE")
    assert (code, text[:5]) == (554, "5.7.1")
    assert (await reachable.send("ann@van.test", "well@example.com", MAIL)).code == 250
    (forwarded,) = await reachable.well.wait_for(1)
    await reachable.alias("back", forwarded.reverse_path)
    assert (await reachable.send("bob@out.test", "back@example.com", MAIL)).code == 250
    (message,) = await reachable.sink.wait_for(1)
    assert message.recipients == ("annbox@dest.test",)
    await reachable.goes_on()
    await reachable.settled()


async def test_mail_that_passed_dmarc_by_spf_alone_passes_our_own_door(reachable: Town) -> None:
    for name, record in (await reachable.published()).items():
        reachable.dns.set(name.decode().rstrip("."), "TXT", [record.decode()])
    reachable.dns.set("out.test", "TXT", ["v=spf1 ip4:127.0.0.0/8 -all"])
    reachable.dns.set("_dmarc.out.test", "TXT", ["v=DMARC1; p=reject"])
    await reachable.alias("van", "ann@van.test")
    assert (await reachable.send("ann@out.test", "van@example.com", MAIL)).code == 250
    (message,) = await reachable.sink.wait_for(1)
    assert message.recipients == ("annbox@dest.test",)
    assert b"dmarc=fail (p=reject)" in message.content  # what the second look found
    await reachable.settled()
    assert reachable.errors == []


async def test_where_our_own_listener_is_not_known_the_mail_waits(town: Town) -> None:
    async with town.engine(retry={"delays": ["10m"]}):
        town.dns.set("van.test", "MX", [(10, "mx.test")])
        await town.host("van.test", {"ann": "annbox@dest.test"}, account=OTHER)
        recipient = await town.towards("van.test")
        assert (await town.send("bob@out.test", recipient, MAIL)).code == 250
        _, code, text = await town.wait_for_event(recipient, "SOFT-BOUNCE")
        assert (code, text[:5]) == (451, "4.4.6")
        await town.goes_on()
        assert town.origin.messages == []
