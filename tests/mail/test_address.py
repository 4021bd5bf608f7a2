"""Addresses: what is one, what is none and why, and that what comes out is what went in."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forwarder.mail.address import (
    AddressError,
    AddressFault,
    Path,
    display_domain,
    fold,
    parse_address,
    parse_domain,
    parse_forward_path,
    parse_helo,
    parse_path,
    parse_reverse_path,
)

F = AddressFault


@pytest.mark.parametrize(
    ("raw", "local", "domain", "wire"),
    [
        (b"a@b", "a", "b", "a@b"),
        (b"Richard.Roe@Example.ORG", "Richard.Roe", "example.org", "Richard.Roe@example.org"),
        (b"!#$%&'*+-/=?^_`{|}~@x.org", "!#$%&'*+-/=?^_`{|}~", "x.org", "!#$%&'*+-/=?^_`{|}~@x.org"),
        (b"u%ext@local", "u%ext", "local", "u%ext@local"),
        (b"ext!u@local", "ext!u", "local", "ext!u@local"),
        (b'"plain"@x.org', "plain", "x.org", "plain@x.org"),
        (b'"a b"@x.org', "a b", "x.org", '"a b"@x.org'),
        (b'""@x.org', "", "x.org", '""@x.org'),
        (b'"u@ext"@local', "u@ext", "local", '"u@ext"@local'),
        (b'"a\\"b\\\\c"@x.org', 'a"b\\c', "x.org", '"a\\"b\\\\c"@x.org'),
        (b'"a\\b"@x.org', "ab", "x.org", "ab@x.org"),
        (b'"a..b"@x.org', "a..b", "x.org", '"a..b"@x.org'),
        (b'"<x@evil.org>"@y.org', "<x@evil.org>", "y.org", '"<x@evil.org>"@y.org'),
        (b"a@xn--bcher-kva.example", "a", "xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        (b"a@3com.com", "a", "3com.com", "a@3com.com"),
        (b"a@x--y.org", "a", "x--y.org", "a@x--y.org"),
    ],
)
def test_plain_and_quoted_paths(raw: bytes, local: str, domain: str, wire: str) -> None:
    path = parse_path(raw, smtputf8=False)
    assert (path.local, path.domain) == (local, domain)
    assert path.wire() == path.storage() == str(path) == wire
    assert Path.from_storage(wire) == path


MALFORMED = [
    b"",
    b"a",
    b"@",
    b"@b.org",
    b"a@",
    b"a..b@l",
    b".a@l",
    b"a.@l",
    b"a@l.",
    b"a@.l",
    b"a@l..m",
    b"a@-l.org",
    b"a@l-.org",
    b"a@under_score.org",
    b"a@b@c.org",
    b"u@ext@local",
    b"(c)a@l",
    b"a(c)@l",
    b"a@l(c)",
    b" a@l",
    b"a@l ",
    b"a @l",
    b"a@ l",
    b"<a@l>",
    b"<x@evil.org>@y.org",
    b"a;b@y.org",
    b"a,b@y.org",
    b"a:b@y.org",
    b"a(b@evil.org)@y.org",
    b"a@y.org, x@evil.org",
    b"a@y.org,x@evil.org",
    b"group:a@y.org;",
    b'"a\r b"@y.org',
    b'"a\\\r b"@y.org',
    b'"a\nb"@y.org',
    b'"a\0b"@y.org',
    b'"a\\\0b"@y.org',
    b'"a\x7fb"@y.org',
    b'"a\tb"@y.org',
    b'"a"b@y.org',
    b'a"b"@y.org',
    b'"a@y.org',
    b'"a\\"@y.org',
    b'"a""b"@y.org',
    b"b\0b@y",
    b"b\r\nRCPT TO:<x@y>@y",
    b"a@y\r\n",
    b"a@y\n",
    b"a\x80@y",
    b"\xff\xfe@l",
    b"a@\xff\xfe.l",
    b"@local:u@ext",
    b"@a,@b:u@ext",
    b"a\\@b@l",
    b"a@127.0.0.1",
    b"a@l.1",
]


@pytest.mark.parametrize("raw", MALFORMED)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_what_is_no_path(raw: bytes, smtputf8: bool) -> None:
    with pytest.raises(AddressError) as caught:
        parse_path(raw, smtputf8=smtputf8)
    assert caught.value.fault in (F.SYNTAX, F.DOMAIN)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", MALFORMED)
def test_the_same_strictness_for_the_api(raw: bytes) -> None:
    with pytest.raises(AddressError):
        parse_address(raw.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ("a" * 65 + "@x.org", F.TOO_LONG),
        ('"' + "a " * 32 + '"@x.org', F.TOO_LONG),
        ("a@" + "x" * 64 + ".org", F.TOO_LONG),
        ("a@" + ".".join(["x" * 63] * 4), F.TOO_LONG),
        ("a@" + "x." * 127 + "xx", F.TOO_LONG),
        ("a" * 64 + "@" + ".".join(["x" * 63] * 3), F.TOO_LONG),
        ("a@x" * 4000, F.TOO_LONG),
        ("é" * 33 + "@x.org", F.TOO_LONG),
        ("u@[127.0.0.1]", F.LITERAL),
        ("u@[IPv6:::1]", F.LITERAL),
        ("a@x.org\u2028", F.DOMAIN),
        ("a\u2028b@x.org", F.SYNTAX),
        ("a\u0085b@x.org", F.SYNTAX),
        ("a\u00a0b@x.org", F.SYNTAX),
        ("a\u202eb@x.org", F.SYNTAX),
        ("a\ud800b@x.org", F.SYNTAX),
        ("a@b\ud800.org", F.DOMAIN),
        ("a@bü_cher.example", F.DOMAIN),
        ("a@bücher.example。", F.DOMAIN),
        ("a@" + "ü" * 64 + ".org", F.DOMAIN),
    ],
)
def test_why_a_text_is_no_address(raw: str, fault: AddressFault) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(raw)
    assert caught.value.fault is fault


def test_limits_are_reachable() -> None:
    assert parse_address("a" * 64 + "@x.org").local == "a" * 64
    domain = ".".join(["x" * 63] * 3)
    assert len(parse_address("a" * 62 + "@" + domain).wire()) == 254
    assert parse_domain("x" * 63 + ".org") == "x" * 63 + ".org"


def test_a_rewritten_local_part_may_be_longer() -> None:
    long = "SRS0=abcdefgh=AB=example.net=" + "v" * 64
    assert parse_path(f"{long}@x.org".encode(), smtputf8=False).local == long
    assert parse_address(f"srs1+{'x' * 80}@x.org").local == "srs1+" + "x" * 80
    with pytest.raises(AddressError):
        parse_address("SRS2=" + "x" * 80 + "@x.org")
    with pytest.raises(AddressError):
        parse_address("SRS0=" + "x" * 300 + "@x.org")


def test_non_ascii_needs_smtputf8() -> None:
    for raw in ("jörg@x.org".encode(), "a@bücher.example".encode(), '"jörg b"@x.org'.encode()):
        with pytest.raises(AddressError) as caught:
            parse_path(raw, smtputf8=False)
        assert caught.value.fault is F.NON_ASCII
    path = parse_path("jörg@Bücher.Example".encode(), smtputf8=True)
    assert path.wire() == "jörg@xn--bcher-kva.example"
    assert path.needs_smtputf8
    assert not parse_path("joerg@bücher.example".encode(), smtputf8=True).needs_smtputf8
    assert parse_path('"jörg b"@x.org'.encode(), smtputf8=True).wire() == '"jörg b"@x.org'


def test_domains_become_a_labels_and_are_shown_as_u_labels() -> None:
    assert parse_domain("BÜCHER.example") == "xn--bcher-kva.example"
    assert parse_domain("faß.de") == "xn--fa-hia.de"  # IDNA 2008, not transitional
    assert parse_domain("例え。テスト") == "xn--r8jz45g.xn--zckzah"
    assert display_domain("xn--bcher-kva.example") == "bücher.example"
    assert display_domain("xn--\x00.example") == "xn--\x00.example"
    assert display_domain("xn--a.example") == "xn--a.example"
    assert parse_address("a@bücher.example").display() == "a@bücher.example"
    assert parse_address('"a b"@x.org').display() == '"a b"@x.org'


def test_the_null_path() -> None:
    null = Path.null()
    assert null.is_null
    assert parse_reverse_path(b"", smtputf8=False) == null
    assert null.wire() == null.storage() == null.display() == ""
    assert Path.from_storage("") is null
    assert not parse_path(b'""@x.org', smtputf8=False).is_null


@pytest.mark.parametrize(
    "domain", ["web_1.example.com", "_.example.com", "web-_1.example.com", "WEB_1.Example.com"]
)
def test_a_sender_may_be_at_a_host_whose_name_has_an_underscore(domain: str) -> None:
    path = parse_reverse_path(f"root@{domain}".encode(), smtputf8=False)
    assert path == Path(local="root", domain=domain.lower())
    with pytest.raises(AddressError):
        parse_path(path.wire(), smtputf8=False)


LONG_SENDERS = [
    "sentto-1234567-12345-1234567890-firstname.lastname=somecompany.co.uk@returns.groups.test",
    "bounces+12345678-a1b2-firstname.lastname=some-long-company-name.example.org@em123.sender.test",
    "prvs=1234567890=SRS0=abcd=XY=some-longer-domain.test=firstname.lastname.longer@out.test",
    "SRS0+abcd=XY=some-longer-domain.example.org=firstname.lastname.much.longer@out.test",
]


@pytest.mark.parametrize("address", LONG_SENDERS)
def test_a_sender_made_from_another_address_may_have_a_long_local_part(address: str) -> None:
    path = parse_reverse_path(address.encode(), smtputf8=False)
    assert path.wire() == address
    assert parse_reverse_path(path.storage(), smtputf8=False) == path


@pytest.mark.parametrize("local", ["a" * 65, "=" + "a" * 64, "a" * 64 + "+"])
def test_any_other_sender_is_held_to_64_octets(local: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_reverse_path(f"{local}@x.org", smtputf8=False)
    assert caught.value.fault is AddressFault.TOO_LONG


@pytest.mark.parametrize(
    "raw", ["a@-web_1.org", "a@web_1-.org", "a@web_1..org", "a@web_1.127", "a@wéb_1.org"]
)
def test_a_sender_with_an_underscore_is_held_to_the_rest_of_the_grammar(raw: str) -> None:
    with pytest.raises(AddressError):
        parse_reverse_path(raw, smtputf8=True)


def test_postmaster_without_a_domain_is_a_forward_path_only() -> None:
    path = parse_forward_path(b"PostMaster", smtputf8=False)
    assert (path.local, path.domain, path.wire()) == ("postmaster", "", "postmaster")
    assert not path.is_null
    assert parse_forward_path(b"a@x.org", smtputf8=False) == parse_path(b"a@x.org", smtputf8=False)
    for raw in (b"postmaster", b""):
        with pytest.raises(AddressError):
            parse_path(raw, smtputf8=False)
    with pytest.raises(AddressError):
        parse_forward_path(b"", smtputf8=False)


def test_look_ups_set_case_and_composition_aside() -> None:
    assert parse_address("Info@x.org").key == "info"
    assert parse_address("JÖRG@x.org").key == parse_address("jo\u0308rg@x.org").key == fold("jörg")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mail.Example.org", "mail.example.org"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ("localhost", "localhost"),
        ("", None),
        ("192.0.2.1", None),
        ("[2001:db8::1]", None),
        ("[1.2.3]", None),
        ("[IPv6:fe80::1%eth0]", None),
        ("x) by trusted (", None),
        ("a;b", None),
        ("a\x1bb", None),
        ("[" + "1" * 1000 + "]", None),
    ],
)
def test_what_helo_may_say(text: str, canonical: str | None) -> None:
    assert parse_helo(text) == canonical


def test_helo_may_say_an_ipv4_address_as_one_of_ipv6() -> None:
    # Python writes it in either way, by its version.
    assert parse_helo("[ipv6:::ffff:1.2.3.4]") in ("[IPv6:::ffff:102:304]", "[IPv6:::ffff:1.2.3.4]")


atext = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~"
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,8}[A-Za-z0-9])?", fullmatch=True)
domains = st.builds(
    lambda first, tld: ".".join([*first, tld]),
    st.lists(labels, max_size=3),
    st.sampled_from(["org", "de", "X"]),
)
dot_strings = st.lists(st.text(atext, min_size=1, max_size=12), min_size=1, max_size=4).map(".".join)
quoted = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=24)
unicode_locals = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=12
)


@given(st.one_of(dot_strings, quoted, unicode_locals), domains)
def test_what_is_parsed_from_the_wire_is_what_was_sent(local: str, domain: str) -> None:
    made = Path(local=local, domain=domain.lower())
    try:
        path = parse_address(made.wire())
    except AddressError:
        return
    assert path == made
    assert parse_path(path.wire().encode(), smtputf8=True) == path
    assert Path.from_storage(path.storage()) == path


@given(st.one_of(st.text(max_size=40), st.text('a"\\@. <>(),;:\r\n\0éß[]1', max_size=14)))
@example('"\\')
@example('"a"@')
@example("a@[")
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        path = parse_address(text)
    except AddressError:
        return
    wire = path.wire()
    assert parse_address(wire) == path
    assert not set(wire) & set("\r\n\0")
    assert len(wire.encode()) <= 254


@given(st.binary(max_size=60), st.booleans())
def test_any_octets_are_a_path_or_an_address_error(raw: bytes, smtputf8: bool) -> None:
    try:
        path = parse_reverse_path(raw, smtputf8=smtputf8)
    except AddressError:
        return
    assert parse_reverse_path(path.wire(), smtputf8=smtputf8) == path
    assert smtputf8 or path.wire().isascii()
