"""Which mail hosts are this installation: by name, by address, and those we share a return domain with."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from forwarder.config import HostPort, Settings
from forwarder.net.dns import Resolver
from forwarder.net.ourselves import Ourselves
from tests.peers.dns_server import DnsServer


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        server.set("mx1.test", "A", ["8.8.8.1"])
        server.set("mx2.test", "A", ["8.8.8.2"])
        server.set("mail.vanity.test", "A", ["8.8.8.1"])
        server.set("mail.other.test", "A", ["8.8.8.3"])
        yield server


def ourselves(dns: DnsServer, **values: Any) -> Ourselves:
    settings = Settings.model_validate({"hostname": "mx1.test"} | values)
    return Ourselves(Resolver([HostPort(dns.host, dns.port)], deadline=timedelta(seconds=0.4)), settings)


@pytest.mark.parametrize(
    ("hosts", "ours"),
    [
        (set(), False),
        ({""}, False),
        ({"mx1.test", "mail.other.test"}, True),
        ({"mail.vanity.test"}, True),
        ({"mail.other.test"}, False),
        ({"mail.other.test", "mail.vanity.test"}, True),
        ({"nowhere.test"}, False),
        ({"mx2.test"}, False),  # until we share a return domain with it
    ],
)
async def test_a_host_is_ours_by_its_name_or_by_its_address(
    dns: DnsServer, hosts: set[str], ours: bool
) -> None:
    assert await ourselves(dns).are_among(hosts) is ours


async def test_what_the_dns_cannot_tell_is_neither(dns: DnsServer) -> None:
    dns.fault("mail.silent.test", "servfail")
    assert await ourselves(dns).are_among({"mail.silent.test"}) is None
    assert await ourselves(dns).are_among({"mail.silent.test", "mail.vanity.test"}) is True
    dns.fault("mx1.test", "servfail")
    assert await ourselves(dns).are_among({"mail.vanity.test"}) is None
    assert await ourselves(dns).are_among({"mx1.test"}) is True  # nothing needs to be asked for


async def test_an_address_we_listen_on_is_ours_where_others_can_reach_it(dns: DnsServer) -> None:
    dns.set("public.test", "A", ["8.8.8.9"])
    dns.set("private.test", "A", ["10.0.0.9"])
    at = ["8.8.8.9:25", "10.0.0.9:25"]
    it = ourselves(dns, mx={"listen": at})
    assert await it.addresses() == {"8.8.8.1", "8.8.8.9", "10.0.0.9"}
    assert [await it.are_among({host}) for host in ("public.test", "private.test")] == [True, False]
    inside = ourselves(dns, mx={"listen": at}, outbound={"allow_private_destinations": True})
    assert await inside.are_among({"private.test"}) is True
    elsewhere = ourselves(dns, mx={"listen": ["8.8.8.9:2525"]})
    assert await elsewhere.addresses() == set()
    assert [await elsewhere.are_among({host}) for host in ("public.test", "mail.vanity.test")] == [
        False,
        True,
    ]


@pytest.mark.parametrize("hostname", ["mx1.test", "mx2.test"])
async def test_the_machines_that_share_a_return_domain_are_one(dns: DnsServer, hostname: str) -> None:
    dns.set("svc.test", "MX", [(10, "mx1.test"), (20, "mx2.test")])
    it = ourselves(dns, hostname=hostname, srs={"domain": "svc.test"})
    assert (await it.machines()).names == {"mx1.test", "mx2.test"}
    for hosts in ({"mx1.test"}, {"mx2.test"}, {"mail.vanity.test"}):
        assert await it.are_among(hosts) is True
    assert await it.are_among({"mail.other.test"}) is False


async def test_a_return_domain_whose_mail_goes_elsewhere_makes_nobody_ours(dns: DnsServer) -> None:
    dns.set("svc.test", "MX", [(10, "mail.other.test")])
    it = ourselves(dns, srs={"domain": "svc.test"})
    assert (await it.machines()).names == {"mx1.test"}
    assert await it.are_among({"mail.other.test"}) is False


async def test_machines_that_the_dns_cannot_tell_are_not_denied(dns: DnsServer) -> None:
    dns.fault("svc.test", "servfail")
    it = ourselves(dns, srs={"domain": "svc.test"})
    assert not (await it.machines()).complete
    assert await it.are_among({"mx2.test"}) is None
    assert await it.are_among({"mail.vanity.test"}) is True
