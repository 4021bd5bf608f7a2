"""What the DNS says of a destination decides: deliver, wait, or tell the sender; and nobody inside is dialled."""

import re

from tests.engine.town import MAIL, Town


def zone(town: Town) -> None:
    """One domain for each thing that DNS may say."""
    dns, here = town.dns, town.sink.host
    for name in ("servfail.test", "silent.test", "refused.test", "circle.test", "garbage.test"):
        dns.mail_host(name, here)
    dns.fault("servfail.test", "servfail")
    dns.fault("silent.test", "timeout")
    dns.fault("refused.test", "refused")
    dns.fault("circle.test", "loop")
    dns.fault("garbage.test", "garbage")
    dns.set("nodata.test", "MX", [])
    dns.set("nodata.test", "A", [here])
    dns.set("nothing.test", "MX", [])
    dns.set("null.test", "MX", [(0, ".")])
    dns.set("null.test", "A", [here])
    dns.set("twenty.test", "MX", [(n, f"mx{n}.twenty.test") for n in range(1, 21)])
    for n in range(1, 21):
        dns.set(f"mx{n}.twenty.test", "A", [f"127.0.1.{n}"])  # nobody listens there
    dns.set("second.test", "MX", [(10, "gone.second.test"), (20, "mx.second.test")])
    dns.set("mx.second.test", "A", [here])
    dns.set("alias.test", "CNAME", ["nodata.test"])


async def test_what_dns_cannot_tell_waits(town: Town) -> None:
    async with town.engine(retry={"delays": ["10m"]}, dns={"timeout": "300ms"}):
        zone(town)
        domains = ["servfail.test", "silent.test", "refused.test", "circle.test", "garbage.test"]
        for domain in domains:
            assert (await town.send("ann@out.test", await town.towards(domain), MAIL)).code == 250
        for domain in domains:
            _, code, text = await town.wait_for_event(f"for.{domain}@example.com", "SOFT-BOUNCE")
            assert code == 451, domain
            assert text.startswith("4.4.3"), domain
            assert town.dns.count(domain, "MX") <= 20
        await town.goes_on()
        assert not await town.queue_is_empty()
        assert town.sink.connections == 0
        assert town.origin.messages == []


async def test_what_dns_denies_is_told_to_the_sender_at_once(engine: Town) -> None:
    zone(engine)
    denied = {"nxdomain.test": (550, "5.1.2"), "nothing.test": (550, "5.1.2"), "null.test": (556, "5.1.10")}
    for domain in denied:
        assert (await engine.send("ann@out.test", await engine.towards(domain), MAIL)).code == 250
    for domain, (code, status) in denied.items():
        event = await engine.wait_for_event(f"for.{domain}@example.com", "HARD-BOUNCE")
        assert (event[1], event[2].split()[0]) == (code, status)
    await engine.goes_on()
    await engine.settled()
    assert engine.sink.connections == 0
    reports = b"".join(message.content for message in engine.origin.messages)
    assert sorted(re.findall(rb"\r\nStatus: (\S+)\r\n", reports)) == [b"5.1.10", b"5.1.2", b"5.1.2"]
    assert len(engine.origin.messages) == 3


async def test_a_host_that_can_be_found_gets_the_mail(engine: Town) -> None:
    zone(engine)
    domains = ("nodata.test", "alias.test", "second.test")
    for domain in domains:
        assert (await engine.send("ann@out.test", await engine.towards(domain), MAIL)).code == 250
    await engine.sink.wait_for(3)
    await engine.goes_on()
    await engine.settled()
    assert sorted(m.recipients for m in engine.sink.messages) == sorted(
        (f"person@{name}",) for name in domains
    )


async def test_of_many_hosts_five_are_tried(town: Town) -> None:
    async with town.engine(retry={"delays": ["10m"]}):
        zone(town)
        hosts = [await town.another_sink(f"127.0.1.{n}", f"sink{n}.test") for n in range(1, 21)]
        for host in hosts:
            host.play("connect", "450")
        recipient = await town.towards("twenty.test")
        assert (await town.send("ann@out.test", recipient, MAIL)).code == 250
        await town.wait_for_event(recipient, "SOFT-BOUNCE")
        await town.goes_on()
        assert [host.connections for host in hosts] == [1] * 5 + [0] * 15


INSIDE = (
    *("127.0.0.1", "10.1.2.3", "0.0.0.0", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1"),
    *("::1", "::ffff:127.0.0.1", "fe80::1", "fc00::1", "64:ff9b::7f00:1", "2002:7f00:1::"),
)


async def test_hosts_inside_are_not_dialled_in_production(town: Town) -> None:
    async with town.engine(outbound={"allow_private_destinations": False}, retry={"delays": ["10m"]}):
        for number, address in enumerate(INSIDE):
            town.dns.mail_host(f"inside{number}.test", address)
            recipient = await town.towards(f"inside{number}.test")
            assert (await town.send("", recipient, MAIL)).code == 250
        for number, address in enumerate(INSIDE):
            _, _, text = await town.wait_for_event(f"for.inside{number}.test@example.com", "HARD-BOUNCE")
            assert text.startswith(("5.4.4", "5.7.1")), address
        await town.settled()
        assert town.sink.connections == town.origin.connections == town.well.connections == 0
        assert town.errors == []


async def test_mail_that_would_come_back_to_us_is_not_sent(town: Town) -> None:
    port = town.sink.port
    async with town.engine(mx={"listen": ["127.0.0.1:0", f"127.0.0.6:{port}"]}):
        town.dns.set("name.test", "MX", [(10, "mx.test"), (20, "mx.dest.test")])
        town.dns.mail_host("address.test", "127.0.0.6")
        town.dns.set("behind.test", "MX", [(10, "mx.dest.test"), (20, "mx.test")])
        for domain in ("name.test", "address.test"):
            assert (await town.send("ann@out.test", await town.towards(domain), MAIL)).code == 250
        await town.origin.wait_for(2)
        assert all(b"\r\nStatus: 5.4.6\r\n" in report.content for report in town.origin.messages)
        assert town.sink.connections == 0
        # As a backup of somebody else we hand mail on to who is better than us.
        assert (await town.send("ann@out.test", await town.towards("behind.test"), MAIL)).code == 250
        await town.sink.wait_for(1)
        await town.goes_on()
        await town.settled()
        assert len(town.origin.messages) == 2
