"""Which aliases would close a circle, and what is told of it to whom."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from forwarder.mail.address import Path
from forwarder.mail.aliases import Alias, RuleSet
from forwarder.mail.circles import MAX_EFFORT, TooMany, Walk, check_cycles
from forwarder.mail.pattern import parse_pattern
from forwarder.mail.rules import drive

OURS, THEIRS = 1, 2


def hosted(domain: str, *pairs: tuple[str, str], account: int = OURS, active: bool = True) -> RuleSet:
    aliases = [
        Alias.stored(number, parse_pattern(pattern), forward, True, 550)
        for number, (pattern, forward) in enumerate(pairs, 1)
    ]
    return RuleSet(domain, 7, 1, aliases, account_id=account, is_active=active)


def among(*sets: RuleSet, asked: list[str] | None = None) -> Callable[[Path], RuleSet | None]:
    by_name = {rules.domain: rules for rules in sets}

    def rules_for(address: Path) -> RuleSet | None:
        if asked is not None:
            asked.append(address.display())
        return by_name.get(address.domain)

    return rules_for


def circle(*sets: RuleSet, saved: tuple[str, str] = ("a", "")) -> str | None:
    """Of the alias ``saved`` (its forward matters for patterns only) in the first of these domains."""
    alias = Alias.stored(99, parse_pattern(saved[0]), saved[1], True, 550)
    return drive(check_cycles(sets[0].domain, alias, Walk(OURS)), among(*sets))


def test_circles_are_found_when_an_alias_is_saved() -> None:
    assert circle(hosted("d.org", ("a", "a@d.org"))) == "this alias would lead in a circle: a@d.org → a@d.org"
    found = circle(
        hosted("d.org", ("a", "x@x.org,b@e.org"), ("c", "a@d.org")), hosted("e.org", ("b", "c@d.org"))
    )
    assert found == "this alias would lead in a circle: a@d.org → b@e.org → c@d.org → a@d.org"
    everything = ("*", "me@d.org")
    assert circle(hosted("d.org", everything), saved=everything) is not None
    assert circle(hosted("d.org", everything, ("me", "x@x.org")), saved=everything) is None
    back = hosted("e.org", ("*", "$1@d.org"))
    assert circle(hosted("d.org", ("(q.*)", "$1@e.org")), back, saved=("(q.*)", "$1@e.org")) is None
    assert circle(hosted("d.org", ("(.*)", "$1@e.org")), back, saved=("(.*)", "$1@e.org")) is not None


def test_what_is_no_circle() -> None:
    assert (
        circle(
            hosted("d.org", ("a", "b@d.org,c@d.org"), ("b", "e@d.org"), ("c", "e@d.org"), ("e", "x@x.org"))
        )
        is None
    )


@pytest.mark.parametrize(("length", "allowed"), [(10, True), (11, False)])
def test_ten_aliases_in_a_row_and_no_more(length: int, allowed: bool) -> None:
    names = ["a", *(f"a{number}" for number in range(2, length + 1)), "end"]
    pairs = [(name, f"{after}@d.org") for name, after in pairwise(names[:-1])]
    found = circle(hosted("d.org", *pairs, (names[-2], "end@x.org")))
    if allowed:
        assert found is None
    else:
        chain = " → ".join(f"{name}@d.org" for name in names[:-1])
        assert found == f"this alias would lead through more than 10 aliases: {chain}"


# Two accounts: what leads where at the other's is not told, and not followed while nobody has seen that it is theirs.


def test_where_another_accounts_alias_leads_is_not_told() -> None:
    theirs = hosted("their.org", ("hello", "secret@their.org"), ("secret", "a@d.org"), account=THEIRS)
    found = circle(hosted("d.org", ("a", "hello@their.org")), theirs)
    assert found == "this alias would lead in a circle: a@d.org → hello@their.org → … → a@d.org"


def test_a_circle_of_theirs_beside_ours_is_not_told_either() -> None:
    theirs = hosted(
        "their.org",
        ("hello", "one@their.org"),
        ("one", "two@their.org"),
        ("two", "one@their.org"),
        account=THEIRS,
    )
    assert circle(hosted("d.org", ("a", "hello@their.org")), theirs) == "this alias would lead in a circle: …"


def test_how_long_their_chain_is_may_be_told_but_not_its_members() -> None:
    names = [f"s{number}" for number in range(12)]
    pairs = [(name, f"{after}@their.org") for name, after in pairwise(names)]
    found = circle(hosted("d.org", ("a", "s0@their.org")), hosted("their.org", *pairs, account=THEIRS))
    assert found == "this alias would lead through more than 10 aliases: a@d.org → s0@their.org → …"


def test_an_address_of_ours_that_only_their_alias_leads_to_is_not_told() -> None:
    theirs = hosted("their.org", ("hello", "b@d.org"), account=THEIRS)
    found = circle(hosted("d.org", ("a", "hello@their.org"), ("b", "a@d.org")), theirs)
    assert found == "this alias would lead in a circle: a@d.org → hello@their.org → … → a@d.org"


@pytest.mark.parametrize("active", [False, True])
def test_a_domain_that_is_only_said_to_be_theirs_is_not_followed(active: bool) -> None:
    """As mail would not go there: with ``gmail.com`` in an account, nobody else's aliases are in circles."""
    thiefs = hosted("gmail.test", ("*", "info@d.org"), account=THEIRS, active=active)
    assert circle(hosted("d.org", ("a", "me@gmail.test")), thiefs) is None
    found = circle(hosted("d.org", ("info", "me@gmail.test")), thiefs, saved=("info", ""))
    assert (found is not None) is active


def test_from_their_alias_only_what_theirs_may_reach_is_followed() -> None:
    """Our unconfirmed domain in the middle: their alias leads to whoever owns that name, not to us."""
    ours = hosted("gmail.test", ("*", "hello@their.org"), active=False)
    theirs = hosted("their.org", ("hello", "private@gmail.test"), account=THEIRS)
    assert circle(ours, theirs, saved=("*", "hello@their.org")) is None


# Bounds.


def test_each_address_is_followed_once_in_a_request() -> None:
    pairs = [(f"a{number}", ",".join(f"k{other}@d.org" for other in range(20))) for number in range(20)]
    rules = hosted("d.org", *pairs, *((f"k{number}", "x@x.org") for number in range(20)))
    asked: list[str] = []
    walk = Walk(OURS)
    for pattern, forward in pairs:
        alias = Alias.stored(99, pattern, forward, True, 550)
        assert drive(check_cycles("d.org", alias, walk), among(rules, asked=asked)) is None
    assert len([name for name in asked if name.startswith("k")]) == 20
    assert len([name for name in asked if name.startswith("a")]) == 20


def test_what_one_request_may_have_followed_is_bounded() -> None:
    def many(prefix: str) -> str:
        return ",".join(f"{prefix}{number}@d.org" for number in range(100))

    rules = hosted("d.org", ("a", many("n")), *((f"n{number}", many(f"m{number}-")) for number in range(100)))
    asked: list[str] = []
    with pytest.raises(TooMany, match="send fewer at once"):
        drive(
            check_cycles("d.org", Alias.stored(99, "a", many("n"), True, 550), Walk(OURS)),
            among(rules, asked=asked),
        )
    assert len(asked) < MAX_EFFORT


def test_comparing_with_many_expressions_counts_as_following() -> None:
    expressions = [(f"([a-m][a-z0-9]{{{20 + number % 40}}}q{number})", "x@x.org") for number in range(400)]
    compared = hosted("e.org", *expressions, ("*", "x@x.org"))  # some 50,000 instructions
    asked: list[str] = []
    forward = ",".join(f"n{number}@e.org" for number in range(100))
    alias = Alias.stored(99, "a", forward, True, 550)
    with pytest.raises(TooMany):
        drive(
            check_cycles("d.org", alias, Walk(OURS)),
            among(hosted("d.org", ("a", forward)), compared, asked=asked),
        )
    assert len(asked) < 50
