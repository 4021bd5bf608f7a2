"""MTA-STS records, policy files and patterns, against RFC 8461 read by hand."""

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.mta_sts import Mode, PolicyError, StsPolicy, parse_policy, record_id

# RFC 8461 3.2, the example of the text
EXAMPLE = (
    b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\n"
    b"mx: backupmx.example.com\r\nmax_age: 604800\r\n"
)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),  # RFC 8461 3.1
        ([b"v=STSv1; id=20160831085700Z"], "20160831085700Z"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v=STSv1 ; \t id=1 ; "], "1"),
        ([b"v=STSv1; a.b-c_d=x:y; id=1"], "1"),
        ([b"v=STSv1; id=1; id=2"], "1"),
        ([b"v=STSv1; id=" + b"a" * 32], "a" * 32),
        ([b"google-site-verification=x", b"v=STSv1; id=1;", b"v=spf1 -all"], "1"),
        ([b"v=STSv1; id=1", b"v=STSv10; id=2"], "1"),
        ([], None),
        ([b""], None),
        ([b"v=STSv1"], None),
        ([b"v=STSv1;"], None),
        ([b"v=STSv1;;"], None),
        ([b"v=STSv1; id="], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([b"v=STSv1; id=2016-08-31"], None),
        ([b"v=STSv1; ID=1"], None),
        ([b"v=STSv1; id=1;;"], None),
        ([b"v=STSv1; id=1; bare"], None),
        ([b"v=STSv1; id=1; a=b=c"], None),
        ([b"v=STSv1 id=1"], None),
        ([b" v=STSv1; id=1"], None),
        ([b"v=stsv1; id=1"], None),
        ([b"id=1; v=STSv1"], None),
        ([b"v=STSv1; id=1;", b"v=STSv1; id=1;"], None),
    ],
)
def test_the_record(records: list[bytes], expected: str | None) -> None:
    assert record_id(records) == expected


def test_the_policy_of_the_rfc() -> None:
    expected = StsPolicy(
        mode=Mode.ENFORCE,
        mx=frozenset({"mail.example.com", "*.example.net", "backupmx.example.com"}),
        max_age=timedelta(days=7),
    )
    assert parse_policy(EXAMPLE) == expected
    assert parse_policy(EXAMPLE.replace(b"\r\n", b"\n")) == expected
    assert parse_policy(EXAMPLE.rstrip()) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"version:STSv1\nmode:\ttesting \nmx:a.test\nmax_age:0", (Mode.TESTING, {"a.test"}, 0)),
        (
            b"max_age: 60\nmx: A.Test\nmx: a.test\nmode: enforce\nversion: STSv1\n",
            (Mode.ENFORCE, {"a.test"}, 60),
        ),
        (b"version: STSv1\nmode: none\nmax_age: 86400\n", (Mode.NONE, set(), 86_400)),
        (b"version: STSv1\nmode: none\nmx: a.test\nmax_age: 1\n", (Mode.NONE, {"a.test"}, 1)),
        (
            b"version: STSv1\nmode: none\nmode: enforce\nmax_age: 1\nmax_age: 2\nversion: 2",
            (Mode.NONE, set(), 1),
        ),
        ("version: STSv1\nnote: grüße: x\n\n \nmode: none\nmax_age: 1".encode(), (Mode.NONE, set(), 1)),
        (
            b"version: STSv1\nmode: enforce\nmx: mx_1.a.test\nmax_age: 31557600",
            (Mode.ENFORCE, {"mx_1.a.test"}, 31_557_600),
        ),
        (
            b"version: STSv1\nmode: enforce\nmx: a.test\nmax_age: 31557601",
            (Mode.ENFORCE, {"a.test"}, 31_557_600),
        ),
        (
            b"version: STSv1\nmode: enforce\nmx: a.test\nmax_age: 9999999999",
            (Mode.ENFORCE, {"a.test"}, 31_557_600),
        ),
    ],
)
def test_a_policy(body: bytes, expected: tuple[Mode, set[str], int]) -> None:
    policy = parse_policy(body)
    assert (policy.mode, set(policy.mx), policy.max_age.total_seconds()) == expected


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        (b"", "version"),
        (b"<html>not found</html>", "version"),
        (EXAMPLE.replace(b"STSv1", b"STSv2"), "version"),
        (EXAMPLE.replace(b"version", b"Version"), "version"),
        (EXAMPLE.replace(b"version:", b"version :"), "version"),
        (EXAMPLE.replace(b"enforce", b"Enforce"), "mode"),
        (EXAMPLE.replace(b"mode: enforce\r\n", b""), "mode"),
        (EXAMPLE.replace(b"max_age: 604800\r\n", b""), "max_age"),
        (EXAMPLE.replace(b"604800", b"-1"), "max_age"),
        (EXAMPLE.replace(b"604800", b"1d"), "max_age"),
        (EXAMPLE.replace(b"604800", b"12345678901"), "max_age"),
        (EXAMPLE.replace(b"604800", "٣".encode()), "max_age"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1", "no mx"),
        (b"version: STSv1\nmode: testing\nmax_age: 1", "no mx"),
        (EXAMPLE.replace(b"*.example.net", b".example.net"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"*"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"*.*.example.net"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"mx*.example.net"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"a.*.example.net"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b""), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"a.test, b.test"), "pattern"),
        (EXAMPLE.replace(b"*.example.net", "bücher.test".encode()), "pattern"),
        (EXAMPLE.replace(b"*.example.net", b"x" * 64 + b".test"), "pattern"),
        (EXAMPLE.replace(b"\r\n", b"\r"), "version"),
        (EXAMPLE + b"\xff", "UTF-8"),
        (EXAMPLE + b"x" * 65_536, "longer"),
        (EXAMPLE + b"".join(b"mx: h%d.test\n" % number for number in range(62)), "more than 64"),
    ],
)
def test_no_policy(body: bytes, flaw: str) -> None:
    with pytest.raises(PolicyError, match=flaw):
        parse_policy(body)


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("mail.example.com", True),
        ("MAIL.Example.COM", True),
        ("mail.example.com.", True),
        ("example.com", False),
        ("other.example.com", False),
        ("a.mail.example.com", False),
        ("mail.example.com.evil.test", False),
        ("a.example.net", True),
        ("xn--bcher-kva.example.net", True),
        ("A.EXAMPLE.NET", True),
        ("example.net", False),
        (".example.net", False),
        ("a.b.example.net", False),
        ("aexample.net", False),
        ("net", False),
        ("", False),
    ],
)
def test_the_hosts_a_policy_names(host: str, named: bool) -> None:
    assert parse_policy(EXAMPLE).names(host) is named


@given(
    st.lists(st.one_of(st.binary(max_size=80), st.binary(max_size=40).map(b"v=STSv1;".__add__)), max_size=3)
)
def test_no_records_raise(records: list[bytes]) -> None:
    found = record_id(records)
    assert found is None or (found.isalnum() and found.isascii() and len(found) <= 32)


PIECES = st.sampled_from(
    [
        b"version:",
        b" STSv1",
        b"mode:",
        b"enforce",
        b"mx:",
        b"*.",
        b"a.test",
        b"max_age:",
        b"9",
        b"\n",
        b"\r\n",
        b":",
        b" ",
    ]
)


@given(st.one_of(st.binary(max_size=300), st.lists(st.one_of(PIECES, st.binary(max_size=3))).map(b"".join)))
def test_no_octets_raise_anything_but_what_is_said(body: bytes) -> None:
    for octets in (body, EXAMPLE + body):
        with contextlib.suppress(PolicyError):
            policy = parse_policy(octets)
            assert timedelta(0) <= policy.max_age <= timedelta(seconds=31_557_600)
            assert policy.mx or policy.mode is Mode.NONE
