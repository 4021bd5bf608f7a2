"""Which SPF records receivers can use; by the grammar of RFC 7208 section 12."""

import pytest

from forwarder.mail.spf_record import Term, parse_spf, without_faults


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1",
        "v=spf1 -all",
        "V=SPF1 Include:A.example ~ALL",
        "v=spf1  a   mx  -all ",
        "v=spf1 a/24 a//64 a/24//64 a:h.example/8 mx:h.example//128 +a ?mx/0 -ptr ptr:x.example.",
        "v=spf1 ip4:192.0.2.1 ip4:192.0.2.0/24 ip6:2001:db8::/32 ip6:::ffff:192.0.2.1 -all",
        "v=spf1 exists:%{i}._spf.%{d2r.} include:%{d} exists:%{ir}.%{v}._spf.%%x.example -all",
        "v=spf1 include:_spf.a_b.example -all ip4:192.0.2.1",  # behind all: never looked at
        "v=spf1 redirect=_spf.example.com exp=e.example.com",
        "v=spf1 moo=anything ra=postmaster includ=x -all",  # modifiers nobody knows are passed over
        "v=spf1 include:x.xn--p1ai -all",
    ],
)
def test_what_is_right(record: str) -> None:
    assert parse_spf(record)[1] == []


@pytest.mark.parametrize(
    ("record", "faults"),
    [
        ("v=spf1 includ:x.example ~all", ["includ:x.example"]),
        ("v=spf1 include ~all", ["include"]),
        ("v=spf1 include: ~all", ["include:"]),
        ("v=spf1 include:localhost ~all", ["include:localhost"]),
        ("v=spf1 include:x.example/24 ~all", ["include:x.example/24"]),
        ("v=spf1 include:x.123 ~all", ["include:x.123"]),
        ("v=spf1 include:x.-y ~all", ["include:x.-y"]),
        ("v=spf1 include=x.example a,mx ~all", ["a,mx"]),
        ("v=spf1 a: mx: all: -all", ["a:", "mx:", "all:"]),
        ("v=spf1 a/33 mx//129 a/024 -all/8", ["a/33", "mx//129", "a/024", "-all/8"]),
        (
            "v=spf1 ip4:192.0.2 ip4:192.0.2.1/33 ip4 ip4:h.example ip4:192.0.2.1//8",
            ["ip4:192.0.2", "ip4:192.0.2.1/33", "ip4", "ip4:h.example", "ip4:192.0.2.1//8"],
        ),
        (
            "v=spf1 ip6:2001:db8::/129 ip6:fe80::1%eth0 ip6:",
            ["ip6:2001:db8::/129", "ip6:fe80::1%eth0", "ip6:"],
        ),
        (
            "v=spf1 ip4:192.0.2.0/24//64 ip6:2001:db8::/32//64 -all x",
            ["ip4:192.0.2.0/24//64", "ip6:2001:db8::/32//64", "x"],
        ),
        ("v=spf1 192.0.2.1 ~all", ["192.0.2.1"]),
        ("v=spf1 --all", ["--all"]),
        ("v=spf1 +redirect=x.example", ["+redirect=x.example"]),
        ("v=spf1 redirect=a.example redirect=b.example", ["redirect=b.example"]),
        ("v=spf1 exp= redirect=", ["exp=", "redirect="]),
        ("v=spf1 exists:%{z}.x.example exists:%x.example", ["exists:%{z}.x.example", "exists:%x.example"]),
        ("v=spf1 include:x.example\t~all", ["include:x.example\t~all"]),
        ("v=spf1 include:bücher.example ~all", ["include:bücher.example"]),
        ("v=spf1 a/\u0663 \u0130nclude:x.example", ["a/\u0663", "\u0130nclude:x.example"]),
        ("v=spf1 v=spf1 -all", []),  # a modifier that nobody knows
    ],
)
def test_what_breaks_a_record(record: str, faults: list[str]) -> None:
    assert parse_spf(record)[1] == faults


def test_what_is_left_without_the_faults() -> None:
    assert without_faults("v=spf1 a,mx include:x.example a,mx ~all") == "v=spf1 include:x.example ~all"
    assert without_faults("v=spf1 redirect=x.example redirect=x.example") == "v=spf1 redirect=x.example"


def test_terms() -> None:
    assert parse_spf("v=spf1 ?Include:X.example a/24 redirect=y.example ~all")[0] == [
        Term("?", "include", "X.example"),
        Term("", "a", ""),
        Term("=", "redirect", "y.example"),
        Term("~", "all", ""),
    ]


def test_a_record_that_is_far_too_long_is_broken() -> None:
    assert parse_spf("v=spf1 " + "a " * 3000)[0] == []
