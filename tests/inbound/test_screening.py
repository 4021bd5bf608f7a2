"""SPF, and a whole message through screening, over a programmable resolver."""

import asyncio
import ipaddress
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from forwarder.inbound import screening as module
from forwarder.inbound import spf as spf_room
from forwarder.inbound.screening import FEW_KEYS, KEYS, SMALL_OCTETS, Screened, Screening
from forwarder.inbound.spf import Sender, SpfCheck
from forwarder.mail import verification
from forwarder.mail.address import Path
from forwarder.mail.arc import ChainStatus, seal_arc
from forwarder.mail.authentication import own_results
from forwarder.mail.canonical import Canonical
from forwarder.mail.dmarc import SpfResult
from forwarder.mail.seal import Signer, generate, load_key, sign
from forwarder.mail.verification import AuthResult
from forwarder.net.answers import Answer, CannotTell, Found, Mx, NotFound

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OURS = "mx1.example.net"
CLIENT = "192.0.2.10"
KEY = generate("rsa")
SIGNER = Signer(domain="example.org", selector="sel", key=load_key(KEY.pem))
SENDER = Path(local="alice", domain="example.org")
MESSAGE = b"From: Alice <alice@example.org>\r\nTo: b@example.net\r\nSubject: x\r\n\r\nHello.\r\n"


@dataclass
class Zone:
    """Answers by type and name; what is not here does not exist; ``silent`` names never answer."""

    records: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    remembers: bool = False  # all of it
    lost: set[tuple[str, str]] = field(default_factory=set)  # but these

    async def _answer(self, kind: str, name: str) -> Answer[Any]:
        self.asked.append((kind, name))
        if name in self.silent:
            await asyncio.Event().wait()
        return self._found(kind, name)

    def _found(self, kind: str, name: str) -> Answer[Any]:
        if name in self.broken:
            return CannotTell(reason="no answer")
        found = self.records.get((kind, name.lower()))
        if not found:
            return NotFound(nxdomain=True)
        return Found(records=tuple(found), ttl=timedelta(minutes=1))

    def kept(self, name: str, kind: str) -> Answer[Any] | None:
        return self._found(kind, name) if self.remembers and (kind, name) not in self.lost else None

    async def txt(self, name: str) -> Answer[bytes]:
        return await self._answer("TXT", name)

    async def a(self, host: str) -> Answer[str]:
        return await self._answer("A", host)

    async def aaaa(self, host: str) -> Answer[str]:
        return await self._answer("AAAA", host)

    async def mx(self, domain: str) -> Answer[Mx]:
        return await self._answer("MX", domain)

    async def ptr(self, address: str) -> Answer[str]:
        return await self._answer("PTR", address)


def zone() -> Zone:
    texts = {
        "example.org": b"v=spf1 ip4:192.0.2.0/24 -all",
        "sel._domainkey.example.org": KEY.record.encode(),
    }
    return Zone({("TXT", name): [text] for name, text in texts.items()})


async def spf(
    records: dict[tuple[str, str], list[Any]],
    *,
    client: str = CLIENT,
    sender: Path = SENDER,
    helo: str = "mail.example.org",
    broken: set[str] | None = None,
) -> AuthResult:
    resolver = Zone(records, broken=broken or set())
    result = await SpfCheck(resolver, Sender(client, helo, sender, OURS)).asked()
    return result.result


TOP = ("TXT", "example.org")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"v=spf1 ip4:192.0.2.10 -all", AuthResult.PASS),
        (b"V=SPF1 +ip4:192.0.2.0/24", AuthResult.PASS),
        (b"v=spf1 ip4:198.51.100.1 -all", AuthResult.FAIL),
        (b"v=spf1 ~all", AuthResult.SOFTFAIL),
        (b"v=spf1 ?all", AuthResult.NEUTRAL),
        (b"v=spf1", AuthResult.NEUTRAL),
        (b"v=spf10 -all", AuthResult.NONE),
        (b"v=spf1 nonsense -all", AuthResult.PERMERROR),
        (b"v=spf1 ip4:999.0.0.1 -all", AuthResult.PERMERROR),
        (b"v=spf1 include:missing.example -all", AuthResult.PERMERROR),
        (b"v=spf1 redirect=example.org", AuthResult.PERMERROR),
        (b"v=spf1 \xff -all", AuthResult.PERMERROR),
    ],
)
async def test_spf_records(record: bytes, expected: AuthResult) -> None:
    assert await spf({TOP: [b"unrelated", record]}) is expected


async def test_a_long_text_that_is_no_spf_record_is_nobody_s_business() -> None:
    texts = [b"x" * 5000, b"v=spf1 ip4:192.0.2.10 -all"]
    assert await spf({TOP: texts}) is AuthResult.PASS
    assert await spf({TOP: texts}, client="198.51.100.1") is AuthResult.FAIL


async def test_an_address_whose_name_cannot_be_looked_up_matches_no_ptr() -> None:
    """RFC 7208 5.5: else mail from everywhere with a broken reverse zone would wait where a record has one."""
    assert await spf({TOP: [b"v=spf1 ptr -all"]}, broken={CLIENT}) is AuthResult.FAIL
    assert await spf({TOP: [b"v=spf1 ptr ip4:192.0.2.10 -all"]}, broken={CLIENT}) is AuthResult.PASS


@pytest.mark.parametrize("local", ["a@b", "@", "a b@c", ""])
async def test_spf_of_a_quoted_local_part_is_that_of_its_domain(local: str) -> None:
    sender = Path(local=local, domain="example.org")
    assert await spf({TOP: [b"v=spf1 ip4:192.0.2.10 -all"]}, sender=sender) is AuthResult.PASS
    assert await spf({TOP: [b"v=spf1 ip4:198.51.100.1 -all"]}, sender=sender) is AuthResult.FAIL


async def test_honest_mail_of_a_quoted_local_part_is_not_refused() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    screened = await Screening(resolver, authserv_id=OURS, clock=lambda: NOW).examine(
        client_address=CLIENT,
        helo="mail.example.org",
        reverse_path=Path(local="a@b", domain="example.org"),
        content=b'From: "a@b"@example.org\r\nSubject: x\r\n\r\nHello.\r\n',
    )
    assert screened.reply is None
    assert b"spf=pass smtp.mailfrom=example.org" in screened.headers


async def test_spf_follows_what_a_record_points_at() -> None:
    records: dict[tuple[str, str], list[Any]] = {
        TOP: [b"v=spf1 a:a.example.org mx:mx.example.org include:%{d2}.spf.example.com -all"],
        ("A", "a.example.org"): ["198.51.100.1"],
        ("MX", "mx.example.org"): [
            Mx(preference=10, host="m1.example.org"),
            Mx(preference=20, host="m2.example.org"),
        ],
        ("A", "m2.example.org"): ["198.51.100.2"],
        ("TXT", "example.org.spf.example.com"): [
            b"v=spf1 exists:%{ir}.%{l}.ok.example.com ptr:example.com -all"
        ],
        ("A", "3.100.51.198.alice.ok.example.com"): ["127.0.0.2"],
        ("PTR", "198.51.100.4"): ["host.example.com"],
        ("A", "host.example.com"): ["198.51.100.4"],
    }
    for client, expected in {
        "198.51.100.1": AuthResult.PASS,
        "198.51.100.2": AuthResult.PASS,
        "198.51.100.3": AuthResult.PASS,
        "198.51.100.4": AuthResult.PASS,
        "::ffff:198.51.100.1": AuthResult.PASS,
        "2001:db8::1": AuthResult.PERMERROR,  # RFC 7208 4.6.4: more than two names without an answer
    }.items():
        assert await spf(records, client=client) is expected, client


async def test_spf_of_ipv6() -> None:
    records: dict[tuple[str, str], list[Any]] = {
        TOP: [b"v=spf1 ip6:2001:db8:1::/48 a:six.example.org -all"],
        ("AAAA", "six.example.org"): ["2001:db8:2::1"],
    }
    assert await spf(records, client="2001:db8:1::9") is AuthResult.PASS
    assert await spf(records, client="2001:db8:2::1") is AuthResult.PASS
    assert await spf(records, client="2001:db8:3::1") is AuthResult.FAIL


async def test_hosts_without_an_ipv6_address_are_of_one_term() -> None:
    """RFC 7208 4.6.4: more than two terms that find nothing are an error, not more than two names."""
    hosts = [Mx(preference=10, host=f"mx{number}.relay.example") for number in range(4)]
    records: dict[tuple[str, str], list[Any]] = {
        ("TXT", "cloud.example"): [b"v=spf1 ip6:2001:db8::/32 -all"],
        ("PTR", "2001:db8::1"): [mx.host for mx in hosts],
        **{("MX", f"{name}.example"): hosts for name in ("relay", "second", "third")},
        **{("A", mx.host): ["192.0.2.10"] for mx in hosts},
    }

    async def to(client: str, terms: bytes) -> AuthResult:
        return await spf(records | {TOP: [b"v=spf1 %s include:cloud.example -all" % terms]}, client=client)

    assert await to("2001:db8::1", b"mx:relay.example") is AuthResult.PASS
    assert await to("192.0.2.10", b"mx:relay.example") is AuthResult.PASS
    assert await to("2001:db8::1", b"mx:relay.example mx:second.example") is AuthResult.PASS
    assert await to("2001:db8::1", b"mx:relay.example mx:none.example a:none.example") is AuthResult.PERMERROR
    assert (
        await to("2001:db8::1", b"mx:relay.example mx:second.example mx:third.example")
        is AuthResult.PERMERROR
    )
    assert await to("2001:db8::1", b"ptr:relay.example") is AuthResult.PASS


async def test_more_mail_hosts_than_spf_looks_at_are_an_error() -> None:  # RFC 7208 4.6.4
    hosts = [Mx(preference=10, host=f"mx{number}.example.org") for number in range(11)]
    records: dict[tuple[str, str], list[Any]] = {
        TOP: [b"v=spf1 mx -all"],
        ("A", "mx0.example.org"): [CLIENT],
    }
    assert await spf(records | {("MX", "example.org"): hosts[:10]}) is AuthResult.PASS
    assert await spf(records | {("MX", "example.org"): hosts}) is AuthResult.PERMERROR
    nowhere = [Mx(preference=0, host="")]  # RFC 7505
    assert await spf(records | {("MX", "example.org"): nowhere}) is AuthResult.FAIL


async def test_spf_when_dns_is_in_trouble() -> None:
    assert await spf({}, broken={"example.org"}) is AuthResult.TEMPERROR
    records = {TOP: [b"v=spf1 include:other.example -all"]}
    assert await spf(records, broken={"other.example"}) is AuthResult.TEMPERROR


async def test_spf_is_bounded() -> None:
    records: dict[tuple[str, str], list[Any]] = {TOP: [b"v=spf1 include:c0.example -all"]}
    for number in range(60):
        following = b"v=spf1 include:c%d.example -all" % (number + 1)
        records["TXT", f"c{number}.example"] = [following]
    resolver = Zone(records)
    result = await SpfCheck(resolver, Sender(CLIENT, "h.example", SENDER, OURS)).asked()
    assert result.result is AuthResult.PERMERROR
    assert len(resolver.asked) <= 12


async def test_spf_of_large_records_costs_little() -> None:
    filler = b" ip4:198.51.100.1" * 230  # just below what is read
    records: dict[tuple[str, str], list[Any]] = {}
    for number in range(10):
        records["TXT", f"c{number}.example"] = [b"v=spf1%s include:c%d.example -all" % (filler, number + 1)]
    records[TOP] = [b"v=spf1 include:c0.example -all"]
    begun = time.process_time()
    assert await spf(records) is AuthResult.PERMERROR
    assert time.process_time() - begun < 1
    assert await spf({TOP: [b"v=spf1" + b" ip4:198.51.100.1" * 1000 + b" -all"]}) is AuthResult.PERMERROR


# Below the bound of a record: the library looks at the end of a domain, and for macros, in quadratic time.
LONG_NAME, MANY_LABELS, MANY_MACROS = b"a:a." + b"a" * 3900 + b"!.b", b"a:%{d}" + b".a" * 1900, b"%{hr}" * 770


def several(term: bytes, count: int = 13) -> bytes:
    """Terms that are not the same, each short enough."""
    return b" ".join(term.replace(b"#", b"%d" % number) for number in range(count))


@pytest.mark.parametrize(
    "terms",
    [
        LONG_NAME,
        MANY_LABELS,
        b"exists:" + MANY_MACROS,
        b"x=" + MANY_MACROS,
        several(b"a:a#." + b"a" * 280 + b".b"),
        several(b"exists:#%{d}" + b".a" * 140),
        several(b"a:#" + b"%{hr}" * 57),
        several(b"x#=", 650),
        several(b"a", 1300),
    ],
    ids=[
        "name",
        "labels",
        "macros",
        "modifier",
        "names",
        "labels again",
        "macros again",
        "modifiers",
        "hosts",
    ],
)
async def test_terms_made_to_be_read_slowly_cost_little(terms: bytes) -> None:
    """Every one of ten answers has all records before it read once more."""
    records: dict[tuple[str, str], list[Any]] = {TOP: [b"v=spf1 include:c0.example -all"]}
    for number in range(10):
        records["TXT", f"c{number}.example"] = [b"v=spf1 include:c%d.example %s" % (number + 1, terms)]
    for helo in ("a." * 900 + "example", "a." * 120 + "example"):
        begun = time.process_time()
        assert await spf(records, helo=helo) is AuthResult.PERMERROR
        assert time.process_time() - begun < 0.3


@pytest.mark.parametrize(
    ("domain", "good"),
    [
        ("example.org", True),
        ("example.org.", True),
        ("e.xn--p1ai", True),
        ("e.a-1", True),
        ("e.1-2", True),
        ("e.1a", True),
        ("%{d}", True),
        ("e.%{d2}", True),
        ("%{i}.E", True),
        ("e", False),
        ("e.1", False),
        ("e.-a", False),
        ("e.a-", False),
        ("e.a_b", False),
        ("e.", False),
        ("e..", False),
        (".", False),
        ("%{d}.", False),
        ("%{d}e", False),
        ("e.%%{d}", False),
        ("e.org:25", False),
    ],
)
def test_domains_end_as_the_library_has_it(domain: str, good: bool) -> None:  # RFC 7208 7.1
    assert (not spf_room.spf.RE_TOPLAB.split(domain)[-1]) is good
    query = spf_room._Evaluation(i=CLIENT, s="alice@example.org", h="mail.example.org")
    if good:
        assert query.expand_domain(domain)
    else:
        with pytest.raises(spf_room.spf.PermError):
            query.expand_domain(domain)


async def test_a_record_of_many_networks_is_read() -> None:
    networks = b"".join(b" ip4:10.%d.0.0/16" % number for number in range(200))
    assert await spf({TOP: [b"v=spf1%s ip4:192.0.2.10 -all" % networks]}) is AuthResult.PASS


async def test_names_that_have_addresses_without_end_cost_little() -> None:
    """A hundred hosts of a thousand each, which every evaluation compared with the client's anew."""
    records: dict[tuple[str, str], list[Any]] = {TOP: [b"v=spf1" + b" mx:m%d.example" * 10 % (*range(10),)]}
    for domain in range(10):
        hosts = [f"h{host}.m{domain}.example" for host in range(10)]
        records["MX", f"m{domain}.example"] = [Mx(preference=10, host=host) for host in hosts]
        for place, host in enumerate(hosts):
            network = f"10.{10 * domain + place}"
            records["A", host] = [f"{network}.{number >> 8}.{number & 255}" for number in range(1000)]
    begun = time.process_time()
    assert await spf(records) is AuthResult.PERMERROR
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(("others", "expected"), [(999, AuthResult.PASS), (1000, AuthResult.PERMERROR)])
async def test_so_many_addresses_are_compared(others: int, expected: AuthResult) -> None:
    first = [f"10.0.{number >> 8}.{number & 255}" for number in range(500)]
    second = [f"10.1.{number >> 8}.{number & 255}" for number in range(others - 500)]
    records: dict[tuple[str, str], list[Any]] = {
        TOP: [b"v=spf1 a:one.example a:two.example -all"],
        ("A", "one.example"): first,
        ("A", "two.example"): [*second, CLIENT],
    }
    assert await spf(records) is expected


async def test_a_term_is_as_long_as_a_name_may_be() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    records: dict[tuple[str, str], list[Any]] = {("A", name): [CLIENT]}
    for more, expected in ((b"", AuthResult.PASS), (b" x=" + b"y" * 300, AuthResult.PERMERROR)):
        assert await spf(records | {TOP: [b"v=spf1 a:%s%s -all" % (name.encode(), more)]}) is expected


async def test_a_mechanism_means_the_domain_whose_record_it_is_in() -> None:
    records: dict[tuple[str, str], list[Any]] = {
        TOP: [b"v=spf1 a include:other.example include:%{d2}.third.example -all"],
        ("TXT", "other.example"): [b"v=spf1 a exists:%{d} -all"],
        ("TXT", "example.org.third.example"): [b"v=spf1 a -all"],
        ("A", "example.org"): ["203.0.113.1"],
        ("A", "example.org.third.example"): [CLIENT],
    }
    assert await spf(records) is AuthResult.PASS
    assert await spf(records, client="203.0.113.2") is AuthResult.FAIL


async def test_spf_of_the_null_reverse_path_is_that_of_the_helo_name() -> None:
    records = {("TXT", "mail.example.org"): [b"v=spf1 ip4:192.0.2.10 -all"]}
    assert await spf(records, sender=Path.null()) is AuthResult.PASS
    for helo in ("[192.0.2.10]", "localhost", "", "x) by trusted (", "a" * 300 + ".example", "é.example"):
        assert await spf({}, sender=Path.null(), helo=helo) is AuthResult.NONE


async def test_spf_without_a_record_asks_once() -> None:
    resolver = Zone()
    await SpfCheck(resolver, Sender(CLIENT, "h.example", SENDER, OURS)).asked()
    assert resolver.asked == [("TXT", "example.org")]


INCLUDING = {
    TOP: [b"v=spf1 include:a.example include:b.example -all"],
    ("TXT", "a.example"): [b"v=spf1 ip4:203.0.113.1 include:deeper.example -all"],
    ("TXT", "deeper.example"): [b"v=spf1 a:gone.example a:host.example -all"],
    ("A", "host.example"): ["203.0.113.2"],
    ("TXT", "b.example"): [b"v=spf1 mx:example.net -all"],
    ("MX", "example.net"): [Mx(preference=10, host="mx1.example"), Mx(preference=20, host="mx2.example")],
    ("A", "mx1.example"): ["203.0.113.3"],
    ("A", "mx2.example"): ["192.0.2.10"],
}


async def test_spf_that_the_resolver_remembers_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where big services are included each evaluation costs as much as the rest of a message's way."""
    evaluations = []
    check = spf_room._Evaluation.check
    monkeypatch.setattr(spf_room._Evaluation, "check", lambda self: evaluations.append(1) or check(self))
    resolver = Zone(INCLUDING)
    sender = Sender(CLIENT, "mail.example.org", SENDER, OURS)
    assert (await SpfCheck(resolver, sender).asked()).result is AuthResult.PASS
    assert len(evaluations) == 7  # for each question but that of the domain, and the hosts' at once
    before = len(resolver.asked)
    resolver.remembers = True
    evaluations.clear()
    assert (await SpfCheck(resolver, sender).asked()).result is AuthResult.PASS
    # What is remembered is not asked for; MX records are, with the addresses of all their hosts.
    assert resolver.asked[before:] == [("MX", "example.net"), ("A", "mx1.example"), ("A", "mx2.example")]
    assert len(evaluations) == 2


class Plain(spf_room.spf.query):  # type: ignore[misc]
    """The library itself, over one record."""

    record = b""

    def dns(self, name: str, qtype: str, **_: Any) -> list[list[bytes]]:
        return [[self.record]] if (name, qtype) == ("example.org", "TXT") else []


def networks(kind: str, client: str, longest: int) -> st.SearchStrategy[str]:
    """Terms of a record that are sound, and near a client's address."""
    return st.builds(
        "{}{}:{}{}".format,
        st.sampled_from(["", "+", "-", "~", "?"]),
        st.sampled_from([kind, kind.upper()]),
        st.integers(-256, 256).map(lambda distance: ipaddress.ip_address(client) + distance),
        st.just("") | st.integers(longest - 9, longest).map("/{}".format),
    )


ODD = [f"ip{kind}:{text}" for kind in "45" for text in ("", "192.0.2", "192.0.02.10", "192.0.2.10/33", "::1")]
ODD += [f"ip6:{text}" for text in ("::g", "1:2", "::1/129", "::1//64", "::1/", "192.0.2.10", "a" * 50)]


@given(
    terms=st.lists(
        networks("ip4", CLIENT, 32) | networks("ip6", "2001:db8::100", 128) | st.sampled_from(ODD), max_size=3
    ),
    end=st.sampled_from(["", " -all", " ~all"]),
    client=st.sampled_from([CLIENT, "2001:db8::100", f"::ffff:{CLIENT}"]),
)
def test_networks_that_are_remembered_match_as_the_library_has_them(
    terms: list[str], end: str, client: str
) -> None:
    record = " ".join(["v=spf1", *terms]).encode() + end.encode()
    plain = Plain(i=client, s=f"{SENDER.local}@example.org", h="mail.example.org", receiver=OURS)
    plain.record = record
    ours = SpfCheck(
        Zone({TOP: [record]}, remembers=True), Sender(client, "mail.example.org", SENDER, OURS)
    ).at_hand()
    assert ours is not None
    assert ours.result.value == plain.check()[0]


@pytest.mark.parametrize("lost", [TOP, ("TXT", "deeper.example"), ("A", "host.example")])
async def test_spf_is_at_hand_only_with_every_answer(
    lost: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Zone({**INCLUDING, ("TXT", "b.example"): [b"v=spf1 ip4:192.0.2.10 -all"]}, remembers=True)
    sender = Sender(CLIENT, "mail.example.org", SENDER, OURS)
    assert SpfCheck(resolver, sender).at_hand() == SpfResult(
        result=AuthResult.PASS, identity="mailfrom", domain="example.org"
    )
    resolver.lost.add(lost)
    check = SpfCheck(resolver, sender)
    assert check.at_hand() is None
    evaluations = []
    plain = spf_room._Evaluation.check
    monkeypatch.setattr(spf_room._Evaluation, "check", lambda self: evaluations.append(1) or plain(self))
    assert (await check.asked()).result is AuthResult.PASS
    assert resolver.asked == [lost]
    assert len(evaluations) == 1  # it is known what was missing


async def test_a_message_whose_answers_are_remembered_waits_for_nothing() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    resolver.remembers = True
    resolver.silent = {"example.org", "_dmarc.example.org", "sel._domainkey.example.org"}
    screened = await screen(signed(), resolver)
    assert resolver.asked == []
    for found in (b"spf=pass", b"dkim=pass", b"dmarc=pass"):
        assert found in screened.headers


async def screen(
    content: bytes,
    resolver: Zone,
    *,
    client: str = CLIENT,
    sender: Path = SENDER,
    limit: timedelta = timedelta(seconds=5),
    **options: Any,
) -> Screened:
    screening = Screening(resolver, authserv_id=OURS, clock=lambda: NOW, time_limit=limit, **options)
    return await screening.examine(
        client_address=client, helo="mail.example.org", reverse_path=sender, content=content
    )


def signatures(count: int) -> bytes:
    """Signatures that hold of nothing, each of a key of its own."""
    return b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=e.example; s=s%d; h=from; bh=AA==; b=AA==\r\n" % number
        for number in range(count)
    )


def signed(content: bytes = MESSAGE) -> bytes:
    return sign(Canonical(content), [SIGNER], now=NOW) + content


async def test_honest_mail() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    content = signed()
    screened = await screen(content, resolver)
    assert screened.reply is None
    assert screened.content is content
    assert b"spf=pass smtp.mailfrom=example.org" in screened.headers
    assert b"dkim=pass header.d=example.org" in screened.headers
    assert b"dmarc=pass (p=reject) header.from=example.org" in screened.headers
    found = own_results(Canonical(screened.headers + content), OURS)
    assert found is not None
    assert found.chain is ChainStatus.NONE


async def test_forged_mail_of_a_domain_that_asks_to_refuse_it() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    screened = await screen(MESSAGE, resolver, client="203.0.113.9")
    assert screened.reply is not None
    assert (screened.reply.code, screened.reply.enhanced) == (550, "5.7.1")
    tolerated = await screen(MESSAGE, resolver, client="203.0.113.9", dmarc_reject=False)
    assert tolerated.reply is None
    assert b"dmarc=fail" in tolerated.headers


PASSED = "spf=pass smtp.mailfrom=example.org; dmarc=pass (p=reject) header.from=example.org"


def sealed(content: bytes, domain: str = OURS, results: str = PASSED) -> bytes:
    signer = Signer(domain=domain, selector="sel", key=SIGNER.key)
    seal = seal_arc(
        Canonical(content), signer=signer, authserv_id=OURS, results=results, chain=ChainStatus.NONE, now=NOW
    )
    return seal + content


async def test_what_we_let_in_and_sealed_does_not_meet_the_policy_again() -> None:
    """It may have passed by SPF alone, which nobody can keep who sends it on."""
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    for domain in (OURS, "other.test"):
        resolver.records["TXT", f"sel._domainkey.{domain}"] = [KEY.record.encode()]
    two_authors = sealed(MESSAGE.replace(b"alice@example.org>", b"alice@example.org>, bob@evil.test"))
    for content, code in (
        (sealed(MESSAGE), 0),
        (sealed(MESSAGE, "other.test"), 550),
        (sealed(MESSAGE, results="dmarc=temperror header.from=example.org"), 550),
        (sealed(MESSAGE, results="none"), 550),
        (sealed(MESSAGE).replace(b"Hello", b"Hullo"), 550),
        (b"From: bob@example.org\r\n" + sealed(MESSAGE), 554),
        (sealed(MESSAGE.replace(b"From", b"X")).replace(b"X:", b"From:"), 550),
        (two_authors, 554),
    ):
        screened = await screen(content, resolver, client="203.0.113.9", own_names=(OURS,))
        assert (screened.reply.code if screened.reply else 0) == code, content
        assert b"dmarc=pass" not in screened.headers


async def test_our_seal_does_not_lend_our_own_spf() -> None:
    """What we sealed may be a forgery that came with a reverse-path of its own, and now comes without one."""
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=quarantine"]
    resolver.records["TXT", "sel._domainkey.mx1.example.org"] = [KEY.record.encode()]
    content = sealed(MESSAGE, "mx1.example.org")
    options: dict[str, Any] = {"client": "203.0.113.9", "own_names": ("mx1.example.org",)}
    screened = await screen(content, resolver, sender=Path.null(), **options)
    assert screened.reply is not None
    assert (screened.reply.code, screened.reply.enhanced) == (550, "5.7.1")


async def test_forged_mail_of_a_domain_that_asks_for_nothing_goes_on_marked() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=none"]
    screened = await screen(MESSAGE, resolver, client="203.0.113.9")
    assert screened.reply is None
    assert b"dmarc=fail (p=none) header.from=example.org" in screened.headers


@pytest.mark.parametrize("sender", [Path.null(), Path(local="x", domain="mx1.example.org")])
async def test_mail_that_our_own_spf_would_make_pass_is_refused(sender: Path) -> None:
    """Sent on from here, mail of our organisation passes SPF: by its reverse-path, or without one by our HELO name."""
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=quarantine"]
    resolver.records["TXT", "mx1.example.org"] = [b"v=spf1 a -all"]
    screened = await screen(
        MESSAGE, resolver, client="203.0.113.9", sender=sender, own_names=("mx1.example.org",)
    )
    assert screened.reply is not None
    assert (screened.reply.code, screened.reply.enhanced) == (550, "5.7.1")
    elsewhere = {"sender": Path(local="x", domain="evil.test"), "own_names": ("mx1.example.org",)}
    for options in (elsewhere, {"sender": sender, "own_names": ("mx1.other.test",)}, {"sender": sender}):
        assert (await screen(MESSAGE, resolver, client="203.0.113.9", **options)).reply is None
    proved = await screen(
        signed(), resolver, client="203.0.113.9", sender=sender, own_names=("mx1.example.org",)
    )
    assert proved.reply is None
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=none"]
    tolerated = await screen(
        MESSAGE, resolver, client="203.0.113.9", sender=sender, own_names=("mx1.example.org",)
    )
    assert tolerated.reply is None
    assert b"dmarc=fail" in tolerated.headers


async def test_the_policy_of_the_organisation_covers_its_subdomains() -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.co.uk"] = [b"v=DMARC1; p=none; sp=reject"]
    content = MESSAGE.replace(b"alice@example.org", b"alice@mail.shop.example.co.uk")
    screened = await screen(content, resolver)
    assert screened.reply is not None
    assert screened.reply.code == 550
    # co.uk is a public suffix: a policy published there is nobody's.
    resolver.records["TXT", "_dmarc.co.uk"] = [b"v=DMARC1; p=reject"]
    other = await screen(content.replace(b"example.co.uk", b"other.co.uk"), resolver)
    assert other.reply is None


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        (b"From: a@example.org\r\nFrom: b@example.org", True),
        (b"From: a@example.org, b@evil.example", True),
        (b"Subject: no author", False),
        (b" From: a@example.org", False),
        (b"From\0: a@example.org", False),
        (b"From : a@example.org", False),
        (b"From:\r\n ", False),
        (b"From: \xff\xfe@\xff", True),
        (b"From: <@x.test:a@example . org>", True),
        (b"From: a@=?utf-8?q?example=2Eorg?=", True),
        (b"From: =?utf-8?q?a=40example=2Eorg?=", True),
        (b"From: a@example.\x0corg", True),
        (b"From: a@example (" + b"x" * 70_000 + b").org", True),
    ],
)
async def test_heads_that_parsers_disagree_about(head: bytes, refused: bool) -> None:
    screened = await screen(head + b"\r\n\r\nbody\r\n", zone())
    assert (screened.reply is not None) is refused
    if screened.reply is not None:
        assert (screened.reply.code, screened.reply.enhanced) == (554, "5.6.0")
    assert b"dmarc=pass" not in screened.headers


async def test_trouble_with_dns_refuses_nothing() -> None:
    resolver = zone()
    resolver.broken = {"_dmarc.example.org", "example.org", "sel._domainkey.example.org"}
    screened = await screen(signed(), resolver)
    assert screened.reply is None
    for result in (b"spf=temperror", b"dkim=temperror", b"dmarc=temperror"):
        assert result in screened.headers


@pytest.mark.parametrize(
    ("sender", "identity", "silent"),
    [
        (SENDER, b"mailfrom=example.org", "example.org"),
        (Path.null(), b"helo=mail.example.org", "mail.example.org"),
    ],
)
async def test_whose_spf_was_waited_for_in_vain_is_said_and_nobody_waits_any_longer(
    sender: Path, identity: bytes, silent: str
) -> None:
    before = asyncio.all_tasks()
    resolver = zone()
    resolver.silent = {silent}
    screened = await screen(MESSAGE, resolver, sender=sender, limit=timedelta(milliseconds=20))
    assert b'spf=temperror reason="DNS did not answer" smtp.' + identity in screened.headers
    left = asyncio.all_tasks() - before
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 10)


async def test_a_key_that_is_at_hand_is_not_asked_for() -> None:
    resolver = zone()
    answer = await resolver.txt("sel._domainkey.example.org")
    resolver.asked.clear()
    kept = {("sel._domainkey.example.org", "TXT"): answer}
    resolver.kept = lambda name, kind: kept.get((name, kind))  # type: ignore[method-assign]
    screened = await screen(signed(), resolver)
    assert b"dkim=pass" in screened.headers
    assert ("TXT", "sel._domainkey.example.org") not in resolver.asked


@pytest.mark.parametrize(("policy", "code"), [("none", None), ("quarantine", None), ("reject", 451)])
async def test_dns_that_never_answers_is_not_waited_for(policy: str, code: int | None) -> None:
    """What would be refused if all answered must not be forwarded because somebody saw to it that one did not."""
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [f"v=DMARC1; p={policy}".encode()]
    resolver.silent = {"example.org", "sel._domainkey.example.org"}
    screened = await screen(signed(), resolver, limit=timedelta(milliseconds=20))
    assert (screened.reply.code if screened.reply else None) == code
    assert b"spf=temperror" in screened.headers
    assert b"dkim=temperror" in screened.headers
    assert b"dmarc=temperror" in screened.headers


async def test_a_resolver_that_breaks_refuses_nothing() -> None:
    class Broken(Zone):
        async def txt(self, name: str) -> Answer[bytes]:
            raise RuntimeError("a bug")

    with capture_logs() as said:
        screened = await screen(signed(), Broken())
    assert screened.reply is None
    assert b"spf=temperror" in screened.headers
    assert "a look-up failed" in [event["event"] for event in said]


async def test_a_look_up_that_somebody_else_cancelled_is_no_answer() -> None:
    class Cancelled(Zone):
        async def txt(self, name: str) -> Answer[bytes]:
            raise asyncio.CancelledError

    screened = await screen(signed(), Cancelled())
    assert screened.reply is None
    assert b"dkim=temperror" in screened.headers


async def test_headers_that_claim_to_be_ours_do_not_survive() -> None:
    forged = b"Authentication-Results: mx1.example.net; dmarc=pass\r\n"
    kept = b"Authentication-Results: other.example; dmarc=pass\r\n"
    screened = await screen(forged + kept + MESSAGE, zone())
    assert screened.content == kept + MESSAGE


async def test_they_do_not_survive_either_where_nothing_is_looked_at_or_the_looking_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forged = b"Authentication-Results: mx1.example.net; dmarc=pass\r\n"
    nothing = Screened(
        reply=None, headers=b"Authentication-Results: mx1.example.net;\r\n\tnone\r\n", content=MESSAGE
    )
    assert await screen(forged + MESSAGE, zone(), spf=False, dkim=False, dmarc=False, arc=False) == nothing

    def broken(*_given: object) -> None:
        raise RuntimeError("a bug")

    for name in ("Canonical", "author", "passed_before"):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, broken)
            assert await screen(forged + MESSAGE, zone()) == nothing, name


OFF = {"spf": False, "dkim": False, "dmarc": False, "arc": False}


@pytest.mark.parametrize(
    ("what", "content", "said"),
    [
        ("spf", MESSAGE, b"spf=pass"),
        ("dkim", MESSAGE, b"none"),
        ("dkim", signed(), b"dkim=pass"),
        ("dmarc", MESSAGE, b"dmarc=fail"),
        ("arc", MESSAGE, b"arc=none"),
    ],
)
async def test_each_can_be_switched_on_alone(what: str, content: bytes, said: bytes) -> None:
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=none"]
    with capture_logs() as noted:
        screened = await screen(content, resolver, **OFF | {what: True})
    assert said in screened.headers
    assert screened.headers.count(b"=pass") + screened.headers.count(b"dmarc=") <= 1
    assert noted == []


async def test_what_is_switched_off_is_not_asked_for() -> None:
    resolver = zone()
    screened = await screen(signed(), resolver, spf=False, dkim=False, dmarc=False, arc=False)
    assert resolver.asked == []
    assert screened.headers == b"Authentication-Results: mx1.example.net;\r\n\tnone\r\n"


@pytest.mark.parametrize(
    ("content", "aside"),
    [
        (MESSAGE.ljust(SMALL_OCTETS, b"x"), False),
        (MESSAGE.ljust(SMALL_OCTETS + 1, b"x"), True),
        (signatures(FEW_KEYS) + MESSAGE, False),
        (signatures(FEW_KEYS + 1) + MESSAGE, True),
    ],
)
async def test_a_large_message_and_many_signatures_are_judged_off_the_event_loop(
    content: bytes, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def verify(*given: Any, **more: Any) -> Any:
        threads.add(threading.current_thread())
        return verification.verify(*given, **more)

    monkeypatch.setattr(module, "verification", SimpleNamespace(**vars(verification) | {"verify": verify}))
    await screen(content, zone())
    assert [thread is not threading.main_thread() for thread in threads] == [aside]


BOMBS = {
    "headers": b"X: y\r\n" * 20_000 + MESSAGE,
    "one header of a megabyte": b"X: " + b"y" * 1_000_000 + b"\r\n" + MESSAGE,
    "comments in From": b"From: " + b"(" * 3000 + b"\r\n\r\nbody\r\n",
    "addresses in To": b"To: " + b"a@example.org, " * 100_000 + b"\r\n" + MESSAGE,
    "strange names": b"__proto__: x\r\n" + b"n" * 1000 + b": y\r\n\xff\xfe: z\r\n" + MESSAGE,
    "signatures": b"DKIM-Signature: v=1; a=rsa-sha256; d=e.example; s=s; h=from; bh=AA==; b=AA==\r\n" * 2000
    + MESSAGE,
    "seals": b"ARC-Seal: i=1; a=rsa-sha256; d=e.example; s=s; cv=none; b=AA==\r\n" * 2000 + MESSAGE,
    "results": b"Authentication-Results: " + b"(" * 100_000 + b"\r\n" + MESSAGE,
    "parts": MESSAGE + b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("what", BOMBS)
async def test_bombs_cost_little(what: str) -> None:
    resolver = zone()
    screening = Screening(resolver, authserv_id=OURS, clock=lambda: NOW)
    begun = time.process_time()
    screened = await screening.examine(
        client_address=CLIENT, helo="h.example", reverse_path=SENDER, content=BOMBS[what]
    )
    assert time.process_time() - begun < 1
    assert screened.reply is None
    assert len(resolver.asked) < 20


async def ours_claimed(
    content: bytes, resolver: Zone, *, sender: Path, **options: Any
) -> tuple[int, str] | None:
    """The refusal of a stranger's message, where we are of the organisation of example.net; None: it is forwarded."""
    screening = Screening(
        resolver,
        authserv_id=OURS,
        clock=lambda: NOW,
        time_limit=timedelta(milliseconds=50),
        own_names=(OURS,),
        **options,
    )
    screened = await screening.examine(
        client_address=CLIENT, helo="stranger.example", reverse_path=sender, content=content
    )
    return None if screened.reply is None else (screened.reply.code, screened.reply.enhanced)


OUR_CEO = b"From: ceo@example.net\r\nSubject: x\r\n\r\nHello.\r\n"
SIGNED_BY_A_KEY_THAT_NOBODY_HAS = (
    sign(Canonical(OUR_CEO), [Signer(domain="example.net", selector="zz", key=load_key(KEY.pem))], now=NOW)
    + OUR_CEO
)


@pytest.mark.parametrize("sender", [Path.null(), Path(local="ceo", domain="example.net")])
@pytest.mark.parametrize(
    ("policy", "broken", "expected"),
    [
        ("quarantine", "zz._domainkey.example.net", (451, "4.4.3")),
        ("reject", "zz._domainkey.example.net", (451, "4.4.3")),
        ("reject", "_dmarc.example.net", (451, "4.4.3")),
        ("none", "zz._domainkey.example.net", None),
        ("quarantine", "", (550, "5.7.1")),
    ],
)
async def test_trouble_with_dns_does_not_lend_our_spf(
    policy: str, broken: str, expected: tuple[int, str] | None, sender: Path
) -> None:
    resolver = Zone({("TXT", "_dmarc.example.net"): [f"v=DMARC1; p={policy}".encode()]}, broken={broken})
    assert await ours_claimed(SIGNED_BY_A_KEY_THAT_NOBODY_HAS, resolver, sender=sender) == expected


async def test_trouble_with_dns_holds_up_no_mail_that_gets_a_return_address_of_ours() -> None:
    resolver = Zone(
        {("TXT", "_dmarc.example.net"): [b"v=DMARC1; p=quarantine"]}, broken={"zz._domainkey.example.net"}
    )
    sender = Path(local="a", domain="elsewhere.example")
    assert await ours_claimed(SIGNED_BY_A_KEY_THAT_NOBODY_HAS, resolver, sender=sender) is None


@pytest.mark.parametrize("dmarc", [True, False])
@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (b'"Boss" <ceo@customer.example> (mx1.example.net', (554, "5.6.0")),
        (b'"Boss" <ceo@customer.example> (x', (554, "5.6.0")),
        (b"<@x.test:ceo@example . net>", (554, "5.6.0")),
        (b"ceo@=?utf-8?q?example=2Enet?=", (554, "5.6.0")),
        (b"g: ceo@customer.example;", None),
        (b"root (Cron Daemon)", None),
        (b"x@sub.example.net (x", (554, "5.6.0")),
        (b"root@mx1.example.net (Cron Daemon)", None),  # it can be read
    ],
)
async def test_an_author_that_may_be_shown_as_anybody_must_be_one_that_can_be_read(
    claimed: bytes, expected: tuple[int, str] | None, dmarc: bool
) -> None:
    """It would go on with the reverse-path it came with, and so with the SPF of whoever trusts our address."""
    content = b"From: " + claimed + b"\r\nSubject: x\r\n\r\nHello.\r\n"
    sender = Path(local="ceo", domain="customer.example")
    assert await ours_claimed(content, Zone(), sender=sender, dmarc=dmarc) == expected


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (b"g: ceo@example . net;", (550, "5.7.1")),
        (b"g: ceo@example(x).net;", (550, "5.7.1")),
        (b"g: ceo@example.\r\n\tnet;", (550, "5.7.1")),
        (b"ceo@example . net <>", (550, "5.7.1")),
        (b"ceo@example.net <x@evil.test>", (550, "5.7.1")),
        (b'The CEO ceo@example.net "x" <x@evil.test>', (550, "5.7.1")),
        (b'"ceo@example.net" <x@evil.test>', None),  # a display name
        (b"someone@elsewhere.test <x@evil.test>", None),
        (b"x@evil.test <x@evil.test>", None),
    ],
)
async def test_every_author_that_a_reader_may_be_shown_is_held_to_its_policy(
    claimed: bytes, expected: tuple[int, str] | None
) -> None:
    resolver = Zone(
        {("TXT", "_dmarc.example.net"): [b"v=DMARC1; p=reject"], ("TXT", "evil.test"): [b"v=spf1 -all"]}
    )
    content = b"From: " + claimed + b"\r\nSubject: x\r\n\r\nHello.\r\n"
    assert await ours_claimed(content, resolver, sender=Path(local="x", domain="evil.test")) == expected


@pytest.mark.parametrize("dmarc", [True, False])
@pytest.mark.parametrize(
    ("spf", "expected"),
    [("v=spf1 -all", (554, "5.6.0")), ("v=spf1 +all", None), (None, None), ("broken", (451, "4.4.3"))],
)
async def test_mail_that_names_us_beside_another_goes_on_only_from_that_other(
    spf: str | None, expected: tuple[int, str] | None, dmarc: bool
) -> None:
    """It goes on with the reverse-path it came with, to which the SPF of whoever trusts our address would be lent."""
    resolver = Zone({}, broken={"customer.example"} if spf == "broken" else set())
    if spf not in (None, "broken"):
        resolver.records["TXT", "customer.example"] = [spf.encode()]
    content = b"From: ceo@example.net <ceo@customer.example>\r\nSubject: x\r\n\r\nHello.\r\n"
    sender = Path(local="ceo", domain="customer.example")
    assert await ours_claimed(content, resolver, sender=sender, dmarc=dmarc) == expected


async def test_keys_of_strangers_leave_the_resolver_to_others() -> None:
    """Sixty names a message in zones that never answer: policies and SPF are asked for all the same."""
    resolver = zone()
    resolver.records["TXT", "_dmarc.example.org"] = [b"v=DMARC1; p=reject"]
    names = [f"s{number}._domainkey.black.example" for number in range(2000)]
    resolver.silent = set(names)
    many = [
        b"".join(
            b"DKIM-Signature: v=1; a=rsa-sha256; d=black.example; s=s%d; h=from; bh=AA==; b=AA==\r\n"
            % (10 * m + n)
            for n in range(10)
        )
        for m in range(40)
    ]
    screening = Screening(resolver, authserv_id=OURS, clock=lambda: NOW, time_limit=timedelta(seconds=2))

    def examined(content: bytes, client: str) -> "asyncio.Task[Screened]":
        work = screening.examine(
            client_address=client, helo="h.example", reverse_path=SENDER, content=content
        )
        return asyncio.create_task(work)

    flood = [examined(signatures + MESSAGE, CLIENT) for signatures in many]
    await asyncio.sleep(0)
    forged = await examined(MESSAGE, "198.51.100.9")
    assert forged.reply is not None
    assert (forged.reply.code, forged.reply.enhanced) == (550, "5.7.1")
    assert sum(name in resolver.silent for _, name in resolver.asked) == KEYS
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
