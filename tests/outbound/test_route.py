"""Which hosts mail for a domain is taken to, and why there is none."""

import asyncio
import random
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from forwarder.config import HostPort, Settings
from forwarder.mail import mta_sts
from forwarder.net.answers import CannotTell, Found, Mx, NotFound
from forwarder.net.dns import Resolver
from forwarder.outbound.policies import Policies
from forwarder.outbound.route import (
    AddressRule,
    MxHost,
    NoRoute,
    Route,
    Router,
    mail_hosts,
    permitted,
    usable_hosts,
)
from tests.harness import wait_until
from tests.peers.dns_server import DnsServer

OWN = "mx1.example.net"
TTL = timedelta(minutes=1)
RULE = AddressRule()


def mx(*records: tuple[int, str]) -> Found[Mx]:
    return Found(records=tuple(Mx(preference=number, host=host) for number, host in records), ttl=TTL)


def at(*addresses: str) -> Found[str]:
    return Found(records=addresses, ttl=TTL)


def failure(result: object) -> tuple[int, str]:
    assert isinstance(result, NoRoute)
    return result.reply.code, result.reply.enhanced


# --- decisions


def test_names_are_grouped_by_preference() -> None:
    answer = mx((20, "c.test"), (10, "b.test"), (10, "a.test"), (10, "a.test"))
    assert mail_hosts("example.test", answer, own_name=OWN) == [["a.test", "b.test"], ["c.test"]]


def test_without_mx_the_domain_is_its_own_host() -> None:
    assert mail_hosts("example.test", NotFound(nxdomain=False), own_name=OWN) == [["example.test"]]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (NotFound(nxdomain=True), (550, "5.1.2")),
        (CannotTell(reason="SERVFAIL"), (451, "4.4.3")),
        (mx((0, "")), (556, "5.1.10")),
        (mx((10, OWN)), (554, "5.4.6")),
        (mx((10, OWN), (10, "peer.test"), (20, "worse.test")), (554, "5.4.6")),
    ],
)
def test_a_domain_without_a_host_to_try_says_why(answer: Any, expected: tuple[int, str]) -> None:
    assert failure(mail_hosts("example.test", answer, own_name=OWN)) == expected


def test_only_hosts_better_than_us_are_tried() -> None:
    answer = mx((5, "best.test"), (10, OWN), (10, "peer.test"), (20, "worse.test"))
    assert mail_hosts("example.test", answer, own_name=OWN) == [["best.test"]]


def test_a_root_among_other_hosts_is_left_out() -> None:
    assert mail_hosts("example.test", mx((0, ""), (10, "a.test")), own_name=OWN) == [["a.test"]]


def test_our_own_name_without_mx_loops() -> None:
    assert failure(mail_hosts(OWN, NotFound(nxdomain=False), own_name=OWN)) == (554, "5.4.6")


def test_hosts_without_an_address_are_passed_over() -> None:
    answers = {
        "a.test": NotFound(nxdomain=True),
        "b.test": CannotTell(reason="timeout"),
        "c.test": at("1.1.1.1"),
    }
    hosts = usable_hosts(list(answers), answers, RULE)
    assert hosts == (MxHost(name="c.test", addresses=("1.1.1.1",)),)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"a.test": NotFound(nxdomain=True), "b.test": NotFound(nxdomain=False)}, (550, "5.1.2")),
        ({"a.test": NotFound(nxdomain=True), "b.test": CannotTell(reason="x")}, (451, "4.4.3")),
        ({"a.test": at("127.0.0.1"), "b.test": at("10.0.0.1", "::1")}, (554, "5.4.4")),
        ({"a.test": at("0.0.0.0")}, (554, "5.4.4")),
        ({"a.test": at("127.0.0.1"), "b.test": CannotTell(reason="x")}, (451, "4.4.3")),
    ],
)
def test_what_may_change_outranks_what_will_not_when_no_host_is_left(
    answers: Any, expected: tuple[int, str]
) -> None:
    assert failure(usable_hosts(list(answers), answers, RULE)) == expected


def test_private_addresses_are_left_out_one_by_one_unless_allowed() -> None:
    answers = {"a.test": at("10.0.0.1", "1.1.1.1")}
    assert usable_hosts(["a.test"], answers, RULE) == (MxHost(name="a.test", addresses=("1.1.1.1",)),)
    allowing = AddressRule(private_allowed=True)
    assert usable_hosts(["a.test"], answers, allowing) == (
        MxHost(name="a.test", addresses=("10.0.0.1", "1.1.1.1")),
    )


def test_a_host_with_our_address_is_us() -> None:
    rule = AddressRule(own_addresses=frozenset({"9.9.9.9"}))
    answers = {"a.test": at("1.1.1.1"), "b.test": at("9.9.9.9"), "c.test": at("2.2.2.2")}
    assert usable_hosts(list(answers), answers, rule) == (MxHost(name="a.test", addresses=("1.1.1.1",)),)
    assert failure(usable_hosts(["b.test", "c.test"], answers, rule)) == (554, "5.4.6")


def test_five_hosts_and_six_addresses_at_most() -> None:
    answers = {f"h{number}.test": at(*(f"1.1.1.{n}" for n in range(9))) for number in range(8)}
    hosts = usable_hosts(list(answers), answers, RULE)
    assert isinstance(hosts, tuple)
    assert [host.name for host in hosts] == ["h0.test", "h1.test", "h2.test", "h3.test", "h4.test"]
    assert all(len(host.addresses) == 6 for host in hosts)


DEMANDS = mta_sts.StsPolicy(
    mode=mta_sts.Mode.ENFORCE, mx=frozenset({"a.test", "*.net.test"}), max_age=timedelta(days=1)
)


def test_names_that_a_policy_does_not_name_are_left_out() -> None:
    groups = [["a.test", "b.test"], ["c.test"], ["x.net.test", "x.y.net.test"]]
    assert permitted(groups, DEMANDS) == [["a.test"], ["x.net.test"]]
    assert permitted(groups, None) == groups


def test_when_a_policy_names_no_host_the_mail_waits_and_the_reply_says_why() -> None:
    refused = permitted([["b.test", "c.test"], ["d.test"]], DEMANDS)
    assert failure(refused) == (451, "4.7.5")
    assert isinstance(refused, NoRoute)
    assert refused.reply.text == (
        "the MTA-STS policy of the domain names none of its mail hosts: b.test, c.test, d.test"
    )


# --- with a DNS server


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


class Demanding(Policies):
    """Gives a policy for the domains that enforce one, and keeps who was asked about."""

    def __init__(self, **policies: mta_sts.StsPolicy) -> None:
        self.policies = {f"{name}.test": policy for name, policy in policies.items()}
        self.asked: list[str] = []

    async def in_force(self, domain: str) -> mta_sts.StsPolicy | None:
        self.asked.append(domain)
        return self.policies.get(domain)


def router(
    dns: DnsServer,
    *,
    listen: str = "127.0.0.1:0",
    policies: Policies | None = None,
    hosted: Collection[str] = (),
    **outbound: Any,
) -> Router:
    async def is_hosted(domain: str) -> bool:
        return domain in hosted

    settings = Settings.model_validate(
        {
            "hostname": OWN,
            "mx": {"listen": [listen]},
            "outbound": {"allow_private_destinations": True, "port": 2525} | outbound,
        }
    )
    resolver = Resolver([HostPort(dns.host, dns.port)], deadline=timedelta(seconds=0.4))
    return Router(
        resolver, settings, policies=policies or Demanding(), hosted=is_hosted, chance=random.Random(1)
    )


async def test_a_route_has_the_hosts_by_preference_with_all_their_addresses(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(20, "b.test"), (10, "a.test")])
    dns.set("a.test", "A", ["127.0.0.1"])
    dns.set("a.test", "AAAA", ["::1"])
    dns.set("b.test", "A", ["127.0.0.2"])
    assert await router(dns).route("example.test") == Route(
        site="a.test b.test",
        hosts=(
            MxHost(name="a.test", addresses=("::1", "127.0.0.1")),
            MxHost(name="b.test", addresses=("127.0.0.2",), rank=1),
        ),
        port=2525,
    )


async def test_domains_with_the_same_hosts_are_one_site(dns: DnsServer) -> None:
    dns.set("a.test", "A", ["127.0.0.1"])
    dns.set("b.test", "A", ["127.0.0.2"])
    dns.set("one.test", "MX", [(10, "a.test"), (20, "b.test")])
    dns.set("two.test", "MX", [(5, "b.test"), (5, "a.test")])
    routes = [await router(dns).route(domain) for domain in ("one.test", "two.test")]
    assert {route.site for route in routes if isinstance(route, Route)} == {"a.test b.test"}


async def test_a_site_of_very_many_hosts_has_a_short_name_of_its_own(dns: DnsServer) -> None:
    hosts = [f"h{number}.{'x' * 60}.test" for number in range(80)]
    dns.set(hosts[0], "A", ["127.0.0.2"])
    for domain, named in (
        ("one.test", hosts),
        ("other.test", hosts[::-1]),
        ("more.test", [*hosts, "h.test"]),
    ):
        dns.set(domain, "MX", [(10 + (name != hosts[0]), name) for name in named])
    it = router(dns)
    one, other, more = [await it.route(domain) for domain in ("one.test", "other.test", "more.test")]
    assert isinstance(one, Route)
    assert isinstance(more, Route)
    assert one == other
    assert one.site != more.site
    assert max(len(one.site), len(more.site)) < 100


async def test_a_host_named_with_several_preferences_is_tried_once(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(10, "a.test"), (20, "b.test"), (30, "a.test")])
    dns.set("a.test", "A", ["127.0.0.1"])
    dns.set("b.test", "A", ["127.0.0.2"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["a.test", "b.test"]
    assert route.site == "a.test b.test"


async def test_hosts_of_equal_preference_take_turns(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(10, "a.test"), (10, "b.test"), (5, "best.test")])
    for number, name in enumerate(("a.test", "b.test", "best.test"), 1):
        dns.set(name, "A", [f"127.0.0.{number}"])
    it = router(dns)
    routes = [await it.route("example.test") for _ in range(20)]
    orders = {tuple(host.name for host in route.hosts) for route in routes if isinstance(route, Route)}
    assert orders == {("best.test", "a.test", "b.test"), ("best.test", "b.test", "a.test")}


async def test_a_domain_without_mx_is_its_own_host(dns: DnsServer) -> None:
    dns.set("example.test", "A", ["127.0.0.1"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert route.hosts == (MxHost(name="example.test", addresses=("127.0.0.1",)),)


async def test_a_domain_that_is_an_alias_has_the_route_of_its_target(dns: DnsServer) -> None:
    dns.set("www.test", "CNAME", ["example.test"])
    dns.mail_host("example.test", "127.0.0.1")
    route = await router(dns).route("www.test")
    assert isinstance(route, Route)
    assert route.site == "mx.example.test"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("servfail", (451, "4.4.3")), ("timeout", (451, "4.4.3")), ("loop", (451, "4.4.3"))],
)
async def test_what_the_dns_cannot_tell_is_temporary(
    dns: DnsServer, fault: str, expected: tuple[int, str]
) -> None:
    dns.mail_host("example.test", "127.0.0.1")
    dns.fault("example.test", fault)
    assert failure(await router(dns).route("example.test")) == expected


async def test_what_the_dns_denies_is_permanent(dns: DnsServer) -> None:
    dns.set("null.test", "MX", [(0, ".")])
    dns.set("empty.test", "TXT", ["no mail"])
    dns.set("dangling.test", "MX", [(10, "nowhere.test")])
    it = router(dns)
    assert failure(await it.route("missing.test")) == (550, "5.1.2")
    assert failure(await it.route("null.test")) == (556, "5.1.10")
    assert failure(await it.route("empty.test")) == (550, "5.1.2")
    assert failure(await it.route("dangling.test")) == (550, "5.1.2")


async def test_the_next_mx_when_the_first_does_not_exist(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(10, "nowhere.test"), (20, "b.test")])
    dns.set("b.test", "A", ["127.0.0.2"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["b.test"]


async def test_twenty_mx_hosts_are_not_all_tried(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(number, f"h{number}.test") for number in range(20)])
    for number in range(20):
        if number != 3:  # one that does not exist is no reason to look further
            dns.set(f"h{number}.test", "A", [f"127.0.1.{number}"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["h0.test", "h1.test", "h2.test", "h4.test", "h5.test"]
    assert len({(query.name, query.kind) for query in dns.queries}) <= 21  # a slow answer is asked for again


async def test_the_eleventh_mx_when_ten_do_not_exist(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(number, f"h{number}.test") for number in range(12)])
    dns.set("h10.test", "A", ["127.0.0.2"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["h10.test"]


async def test_the_eleventh_mx_when_the_first_may_not_be_dialled(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(number, f"h{number}.test") for number in range(12)])
    dns.set("h0.test", "A", ["127.0.0.1"])
    dns.set("h10.test", "A", ["8.8.8.8"])
    route = await router(dns, allow_private_destinations=False).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["h10.test"]
    assert route.complete


async def test_the_eleventh_mx_when_the_first_cannot_be_looked_up(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(number, f"h{number}.test") for number in range(12)])
    dns.fault("h0.test", "servfail")
    dns.set("h10.test", "A", ["127.0.0.2"])
    route = await router(dns).route("example.test")
    assert isinstance(route, Route)
    assert [host.name for host in route.hosts] == ["h10.test"]
    assert not route.complete


async def test_names_without_end_are_not_all_looked_up(dns: DnsServer) -> None:
    dns.set("example.test", "MX", [(number, f"h{number}.test") for number in range(80)])
    dns.set("h79.test", "A", ["127.0.0.2"])
    assert failure(await router(dns).route("example.test")) == (550, "5.1.2")
    asked = {name for name, kind, *_ in dns.queries if kind in ("A", "AAAA")}
    assert len(asked) == 30


async def test_silent_hosts_in_many_zones_are_asked_for_in_the_share_of_one_domain(
    dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.net.dns.QUESTIONS", 4)
    dns.set("silent.test", "MX", [(number, f"h{number}.test") for number in range(10)])
    for number in range(10):
        dns.fault(f"h{number}.test", "timeout")
    dns.mail_host("example.test", "127.0.0.1")
    it = router(dns)
    silent = asyncio.create_task(it.route("silent.test"))
    await wait_until(lambda: dns.count("h0.test"))
    assert isinstance(await it.route("example.test"), Route)
    assert failure(await silent) == (451, "4.4.3")


async def test_a_domain_with_private_addresses_alone_is_refused(dns: DnsServer) -> None:
    dns.mail_host("example.test", "127.0.0.1", "::1", "10.0.0.1")
    it = router(dns, allow_private_destinations=False)
    assert failure(await it.route("example.test")) == (554, "5.4.4")


async def test_who_shares_our_preference_is_not_dialled_whatever_the_order(dns: DnsServer) -> None:
    """RFC 5321 5.1: what is not better than we are is left out, or it might send the mail back."""
    dns.set("us.test", "A", ["127.0.0.9"])
    dns.set("other.test", "A", ["127.0.0.2"])
    it = router(dns, listen="127.0.0.9:2525")
    for number in range(12):  # hosts of one preference come in an order of chance
        dns.set(f"d{number}.test", "MX", [(10, "other.test"), (10, "us.test")])
        assert failure(await it.route(f"d{number}.test")) == (554, "5.4.6")


@pytest.mark.parametrize("listen", ["0.0.0.0:2525", "127.0.0.9:2525"])
async def test_a_host_that_is_us_under_another_name(dns: DnsServer, listen: str) -> None:
    dns.set(OWN, "A", ["127.0.0.9"])
    dns.mail_host("example.test", "127.0.0.9", host="alias-of-us.test")
    assert failure(await router(dns, listen=listen).route("example.test")) == (554, "5.4.6")
    other_port = await router(dns, listen="127.0.0.9:25").route("example.test")
    assert isinstance(other_port, Route)  # what listens at the port we dial is not us


@pytest.mark.parametrize(
    ("listen", "address"),
    [("0.0.0.0:2525", "127.0.0.1"), ("[::]:2525", "::1"), ("127.0.0.9:2525", "127.0.0.9")],
)
async def test_mail_for_a_domain_of_ours_that_leads_back_goes_to_our_own_door(
    dns: DnsServer, listen: str, address: str
) -> None:
    dns.set(OWN, "A", ["127.0.0.9"])
    dns.mail_host("hosted.test", "127.0.0.9", host="alias-of-us.test")
    dns.set("by-name.test", "MX", [(10, OWN)])
    dns.set("elsewhere.test", "MX", [(10, "other.test"), (20, OWN)])
    dns.set("other.test", "A", ["127.0.0.7"])
    it = router(dns, listen=listen, hosted={"hosted.test", "by-name.test", "elsewhere.test"})
    door = Route(site=f"this host {listen}", hosts=(MxHost(name=OWN, addresses=(address,)),), port=2525)
    for domain in ("hosted.test", "by-name.test", OWN):
        assert await it.route(domain) == door, domain
    elsewhere = await it.route("elsewhere.test")  # hosted or not, mail goes where its MX records lead
    assert isinstance(elsewhere, Route)
    assert elsewhere.site == "other.test"
    assert failure(await router(dns, listen=listen).route("by-name.test")) == (554, "5.4.6")


async def test_mail_waits_where_our_own_door_is_not_known(dns: DnsServer) -> None:
    dns.set("by-name.test", "MX", [(10, OWN)])
    it = router(dns, listen="127.0.0.1:0", hosted={"by-name.test"})
    assert failure(await it.route("by-name.test")) == (451, "4.4.6")


@pytest.mark.parametrize("domain", ["[127.0.0.1]", "[IPv6:::1]", ""])
async def test_address_literals_are_refused(dns: DnsServer, domain: str) -> None:
    assert failure(await router(dns).route(domain)) == (550, "5.1.2")
    assert dns.queries == []


async def test_a_domain_that_enforces_a_policy_is_a_site_of_its_own(dns: DnsServer) -> None:
    for number, name in enumerate(("a.test", "b.test"), 1):
        dns.set(name, "A", [f"127.0.0.{number}"])
    for domain in ("free.test", "one.test", "both.test"):
        dns.set(domain, "MX", [(10, "b.test"), (20, "a.test")])
    both = replace(DEMANDS, mx=frozenset({"a.test", "b.test"}))
    it = router(dns, policies=Demanding(one=DEMANDS, both=both))
    routes = [await it.route(domain) for domain in ("free.test", "one.test", "both.test")]
    assert [
        (route.site, route.verified, [host.name for host in route.hosts])
        for route in routes
        if isinstance(route, Route)
    ] == [
        ("a.test b.test", False, ["b.test", "a.test"]),
        ("a.test (verified)", True, ["a.test"]),
        ("a.test b.test (verified)", True, ["b.test", "a.test"]),
    ]


async def test_no_name_of_a_host_makes_the_site_of_a_free_route_that_of_a_verified_one(
    dns: DnsServer,
) -> None:
    dns.set("a.test", "A", ["127.0.0.1"])
    dns.set("one.test", "MX", [(10, "a.test")])
    dns.set("free.test", "MX", [(10, "a.test"), (20, r"\(verified\)")])
    it = router(dns, policies=Demanding(one=DEMANDS))
    free, one = await it.route("free.test"), await it.route("one.test")
    assert isinstance(free, Route)
    assert isinstance(one, Route)
    assert (free.verified, one.verified) == (False, True)
    assert free.site != one.site


async def test_policies_are_asked_for_only_where_they_count(dns: DnsServer) -> None:
    dns.set("smart.test", "A", ["127.0.0.7"])
    dns.mail_host("example.test", "127.0.0.1")
    for options, asked in (
        ({"smarthost": "smart.test:587"}, []),
        ({"mta_sts": False}, []),
        ({}, ["example.test"]),
    ):
        policies = Demanding(example=DEMANDS)
        await router(dns, policies=policies, **options).route("example.test")
        assert policies.asked == asked


async def test_a_smarthost_takes_everything(dns: DnsServer) -> None:
    dns.set("smart.test", "A", ["127.0.0.7"])
    it = router(dns, smarthost="smart.test:587", allow_private_destinations=False)
    assert await it.route("missing.test") == Route(
        site="smarthost smart.test:587",
        hosts=(MxHost(name="smart.test", addresses=("127.0.0.7",)),),
        port=587,
        complete=False,
    )
    literal = await router(dns, smarthost="127.0.0.1:26").route("example.test")
    assert isinstance(literal, Route)
    assert literal.hosts[0].addresses == ("127.0.0.1",)


async def test_a_smarthost_that_is_missing_is_our_trouble(dns: DnsServer) -> None:
    it = router(dns, smarthost="missing.test:25")
    assert failure(await it.route("example.test")) == (451, "4.4.3")


def test_a_better_host_that_cannot_be_looked_up_just_now_may_take_what_is_worse_than_us() -> None:
    rule = AddressRule(own_addresses=frozenset({"192.0.2.9"}))
    answers: dict[str, Any] = {"a.test": CannotTell(reason="timeout"), "us.test": at("192.0.2.9")}
    assert failure(usable_hosts(["a.test", "us.test"], answers, rule)) == (451, "4.4.3")
