"""SRS: there and back, and every way of not getting back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.address import AddressError, Path, parse_address, parse_path, parse_reverse_path
from forwarder.mail.srs import Srs, SrsFault

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
OLD, NEW = b"an old secret of ours", b"a new secret of ours!"
ours = Srs([NEW, OLD], "fwd.example")
theirs = Srs([b"the secret of others"], "other.example")
ANN = parse_address("Ann.Lee@example.org")


def flipped(text: str, position: int) -> str:
    return text[:position] + ("b" if text[position] not in "bB" else "c") + text[position + 1 :]


def test_the_form_of_a_rewritten_path() -> None:
    path = ours.forward(ANN, now=NOW)
    kind, digest, day, domain, local = path.local.split("=")
    assert (kind, domain, local) == ("SRS0", "example.org", "Ann.Lee")
    # 2026-03-01 is day 20513 of the epoch: 20513 mod 1024 = 33 = 1 * 32 + 1, in base32 "BB".
    assert day == "BB"
    assert len(digest) == 8
    assert set(digest) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert path.domain == "fwd.example"
    assert ours.reverse(path, now=NOW) == ANN


def test_what_stays_as_it_is() -> None:
    for path in (Path.null(), parse_address("a@fwd.example"), ours.forward(ANN, now=NOW)):
        assert ours.forward(path, now=NOW) == path


@pytest.mark.parametrize(
    "change",
    [str.lower, str.upper, lambda local: local.replace("SRS0=", "SRS0+"), lambda local: "SRS0-" + local[5:]],
)
def test_what_hosts_do_to_addresses_on_the_way(change: object) -> None:
    path = ours.forward(ANN, now=NOW)
    assert callable(change)
    back = ours.reverse(Path(local=change(path.local), domain=path.domain), now=NOW)
    assert isinstance(back, Path)
    assert back.wire().lower() == "ann.lee@example.org"


@pytest.mark.parametrize(
    ("days", "expected"),
    [(0, ANN), (21, ANN), (22, SrsFault.EXPIRED), (500, SrsFault.EXPIRED), (-1, ANN), (-2, SrsFault.EXPIRED)],
)
def test_an_address_lasts_21_days(days: int, expected: Path | SrsFault) -> None:
    path = ours.forward(ANN, now=NOW)
    assert ours.reverse(path, now=NOW + timedelta(days=days)) == expected


def test_the_day_is_counted_round_a_circle() -> None:
    last = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1024 * 20 - 1)
    path = ours.forward(ANN, now=last)
    assert "=77=" in path.local
    assert ours.reverse(path, now=last + timedelta(days=5)) == ANN


def test_rotation_of_secrets() -> None:
    before = Srs([OLD], "fwd.example").forward(ANN, now=NOW)
    assert ours.reverse(before, now=NOW) == ANN
    assert Srs([NEW], "fwd.example").reverse(before, now=NOW) is SrsFault.FORGED
    assert Srs([NEW], "fwd.example").reverse(ours.forward(ANN, now=NOW), now=NOW) == ANN


def test_forgery() -> None:
    good = ours.forward(ANN, now=NOW).local
    for position in (5, 12, 14, 17, len(good) - 1):
        forged = Path(local=flipped(good, position), domain="fwd.example")
        assert ours.reverse(forged, now=NOW) is SrsFault.FORGED
    for local in (
        good.replace("example.org", "victim.org"),
        "SRS0==" + good.split("=", 2)[2],
        "SRS0=" + good[5:12] + "=" + good.split("=", 2)[2],
        theirs.forward(ANN, now=NOW).local,
        "SRS1=aaaaaaaa=other.example==x=y=z=w",
        "SRS0=ааааaaaa=BB=example.org=Ann.Lee",
    ):
        assert ours.reverse(Path(local=local, domain="fwd.example"), now=NOW) is SrsFault.FORGED


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ann@fwd.example", SrsFault.NOT_SRS),
        ("SRS0x=a=b=c=d@fwd.example", SrsFault.NOT_SRS),
        ("SRS2=a=b=c=d@fwd.example", SrsFault.NOT_SRS),
        ("SRS0@fwd.example", SrsFault.NOT_SRS),
        ("SRS0=@fwd.example", SrsFault.MALFORMED),
        ("SRS0=a=b@fwd.example", SrsFault.MALFORMED),
        ("SRS1=a=b@fwd.example", SrsFault.MALFORMED),
        ("SRS1=a=b=c@fwd.example", SrsFault.MALFORMED),
    ],
)
def test_what_is_none_of_ours(text: str, fault: SrsFault) -> None:
    assert ours.reverse(parse_address(text), now=NOW) is fault


def test_a_right_hash_at_a_foreign_domain_is_an_ordinary_address() -> None:
    path = ours.forward(ANN, now=NOW)
    assert ours.reverse(Path(local=path.local, domain="hosted.example"), now=NOW) is SrsFault.NOT_SRS
    assert ours.reverse(Path(local=path.local, domain=""), now=NOW) is SrsFault.NOT_SRS


def test_a_chain_of_forwarders_does_not_grow() -> None:
    first = theirs.forward(ANN, now=NOW)
    second = ours.forward(first, now=NOW)
    kind, _digest, hop, empty, *_rest = second.local.split("=")
    assert (kind, hop, empty) == ("SRS1", "other.example", "")
    assert second.local.endswith(first.local[4:])
    assert ours.reverse(second, now=NOW) == first
    assert theirs.reverse(first, now=NOW) == ANN
    # A third in the row keeps the first hop and drops the second: its bounce goes straight to the first.
    third = Srs([b"the secret of a third"], "third.example")
    path = third.forward(second, now=NOW)
    assert path.local.count("SRS") == 1
    assert len(path.local) == len(second.local)
    assert third.reverse(path, now=NOW) == first


def test_the_first_hop_of_a_chain_is_a_domain_in_whatever_case() -> None:
    chained = parse_address("SRS1=HHHH=First.EXAMPLE==HHHH=TT=example.org=ann@other.example")
    path = ours.forward(chained, now=NOW)
    assert path.local[14:] == "first.example==HHHH=TT=example.org=ann"
    assert ours.reverse(path, now=NOW) == parse_address("SRS0=HHHH=TT=example.org=ann@first.example")


def test_a_chained_hash_cannot_be_spent_as_a_wrapped_one() -> None:
    chained = ours.forward(Path(local="SRS0+x.org=BB=y=z", domain="bb"), now=NOW).local
    digest = chained.split("=")[1]
    for local in (f"SRS0={digest}=bb=+x.org=BB=y=z", f"SRS0={digest}=bb=x.org=BB=y=z"):
        assert ours.reverse(Path(local=local, domain="fwd.example"), now=NOW) is SrsFault.FORGED


@pytest.mark.parametrize("local", ["SRS0", "srs0-newsletter", "SRS1=x", "SRS0=a=b", "SRS1=a=-no-domain==b"])
def test_what_only_looks_like_srs_is_wrapped(local: str) -> None:
    path = parse_address(f"{local}@example.org")
    rewritten = ours.forward(path, now=NOW)
    assert rewritten.local.startswith("SRS0=")
    assert rewritten.local.endswith("=example.org=" + local)
    assert ours.reverse(rewritten, now=NOW) == path


def test_a_chain_that_began_at_a_host_with_an_underscore_does_not_grow() -> None:
    path = parse_reverse_path("SRS1=abcd=fwd_1.example==hash=BB=x.org=ann@fwd2.example", smtputf8=False)
    rewritten = ours.forward(path, now=NOW)
    assert rewritten.local.startswith("SRS1=")
    assert rewritten.local.endswith("=fwd_1.example==hash=BB=x.org=ann")
    assert ours.reverse(rewritten, now=NOW) == parse_reverse_path(
        "SRS0=hash=BB=x.org=ann@fwd_1.example", smtputf8=False
    )


def test_long_local_parts_are_sent_and_taken_back() -> None:
    path = parse_address("bounces+" + "v" * 56 + "@mail.sender.example")
    rewritten = ours.forward(path, now=NOW)
    assert len(rewritten.local) > 64
    read = parse_path(rewritten.wire().encode(), smtputf8=False)
    assert read == rewritten
    assert ours.reverse(read, now=NOW) == path


def test_a_path_that_would_be_too_long_has_no_form() -> None:
    """Sent on as it is, it would have the SPF of its domain wherever that trusts our addresses."""
    domain = ".".join(["d" * 63] * 3)[:188]
    for text in ("a" * 60 + "@" + domain, "SRS0-" + "x" * 230 + "@customer.example"):
        path = parse_address(text)
        assert ours.forward(path, now=NOW) is None
        assert not ours.fits(path)


@given(st.integers(1, 64), st.integers(1, 187), st.sampled_from(["a", '"', "\\", "j\xf6", "="]))
def test_what_fits_has_a_form(local: int, domain: int, letter: str) -> None:
    labels = ".".join("d" * 63 for _ in range(domain // 64)) + "." + "e" * (domain % 64 + 1)
    try:
        path = parse_address(Path(local=(letter * local)[:64], domain=labels.strip(".")).wire())
    except AddressError:
        return
    assert ours.fits(path) == (ours.forward(path, now=NOW) is not None)


def test_mail_that_came_by_twice_leads_back_to_its_author_at_once() -> None:
    """Us, another forwarder, us again: the SRS1 address holds one of our own (RFC 5321 3.6.1 has the loop end)."""
    ann = parse_address("ann@out.example")
    once = ours.forward(ann, now=NOW)
    beyond = theirs.forward(once, now=NOW)
    again = ours.forward(beyond, now=NOW)
    assert again.local.startswith("SRS1=")
    assert ours.reverse(again, now=NOW) == ann
    assert ours.reverse(again, now=NOW + timedelta(days=30)) is SrsFault.EXPIRED
    forged = ours.forward(
        Path(local="SRS0" + "=AAAAAAAA=AA=out.example=ann", domain="theirs.example"), now=NOW
    )
    assert isinstance(ours.reverse(forged, now=NOW), Path)  # theirs to judge


def test_quoted_and_internationalised_local_parts() -> None:
    for text in (
        '"a b"@example.org',
        '"a\\"=b"@example.org',
        '""@example.org',
        "jörg@bücher.example",
        "a=b=c@x.org",
    ):
        path = parse_address(text)
        rewritten = ours.forward(path, now=NOW)
        assert parse_address(rewritten.wire()) == rewritten
        assert ours.reverse(rewritten, now=NOW) == path


@given(
    st.text(max_size=30), st.sampled_from(["example.org", "xn--bcher-kva.example", "a.b.c", "web_1.example"])
)
def test_there_and_back(local: str, domain: str) -> None:
    try:
        path = parse_reverse_path(Path(local=local, domain=domain).wire(), smtputf8=True)
    except AddressError:
        return
    rewritten = ours.forward(path, now=NOW)
    assert parse_address(rewritten.wire()) == rewritten
    assert ours.reverse(rewritten, now=NOW) == path
    twice = theirs.forward(rewritten, now=NOW)
    assert theirs.reverse(twice, now=NOW) == rewritten


@given(st.one_of(st.text(max_size=40), st.text("SRS01=+-abc", max_size=30).map("SRS0=".__add__)))
def test_reversing_never_raises_and_never_believes(local: str) -> None:
    assert isinstance(ours.reverse(Path(local=local, domain="fwd.example"), now=NOW), SrsFault)


@pytest.mark.parametrize(
    ("secrets", "days"), [([], 21), ([b"short"], 21), ([NEW, b""], 21), ([NEW], 0), ([NEW], 512)]
)
def test_what_would_not_be_safe_is_refused(secrets: list[bytes], days: int) -> None:
    with pytest.raises(ValueError, match="SRS"):
        Srs(secrets, "fwd.example", days)


def test_the_newest_secret_signs_for_chains_too() -> None:
    """Else they would end with the old one, on the day it is taken away."""
    chained = ours.forward(theirs.forward(ANN, now=NOW), now=NOW)
    assert Srs([NEW], "fwd.example").reverse(chained, now=NOW) == theirs.forward(ANN, now=NOW)
