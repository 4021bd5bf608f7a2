"""Which configuration is in force among workers that are told of several."""

from pathlib import Path

from forwarder.config import Settings, Source
from forwarder.offers import Offers


def source(text: str) -> Source:
    return Source(origin="config.toml", text=text)


def settings(data_dir: str, hostname: str = "mx.test") -> Settings:
    return Settings.model_validate({"hostname": hostname, "data_dir": data_dir})


BEGUN = source("as it began")


def test_what_is_in_force_is_what_a_worker_says_it_obeys() -> None:
    """A reload may wait for the drain of the one before, and another be told meanwhile."""
    offers = Offers(BEGUN, settings("data"))
    first, second = source("1"), source("2")
    offers.make(first, settings("data", "first.test"))
    offers.make(second, settings("data", "second.test"))
    assert (offers.in_force, offers.latest) == (BEGUN, second)
    obeyed = offers.obeyed(first.digest)
    assert obeyed is not None
    assert obeyed.hostname == "first.test"
    assert (offers.in_force, offers.latest) == (first, second)
    obeyed = offers.obeyed(second.digest)
    assert obeyed is not None
    assert obeyed.hostname == "second.test"
    assert offers.in_force is second


def test_nobody_goes_back_to_what_is_older_than_what_is_in_force() -> None:
    offers = Offers(BEGUN, settings("data"))
    first, second = source("1"), source("2")
    for offered in (first, second):
        offers.make(offered, settings("data"))
    offers.obeyed(second.digest)
    assert offers.obeyed(first.digest) is None
    assert offers.in_force is second
    assert [offers.stands(each) for each in (BEGUN, first, second)] == [False, False, True]


def test_what_was_taken_back_before_anybody_obeyed_it_stands_once() -> None:
    offers = Offers(BEGUN, settings("data"))
    first, other = source("1"), source("2")
    for offered in (first, other, first):
        offers.make(offered, settings("data"))
    offers.obeyed(first.digest)
    assert offers.in_force is first
    assert not offers.stands(other)


def test_what_every_worker_refuses_is_no_offer(tmp_path: Path) -> None:
    """data_dir and the database cannot change while an engine runs."""
    offers = Offers(BEGUN, settings("data"))
    elsewhere = source("elsewhere")
    offers.make(elsewhere, settings(str(tmp_path)))
    assert offers.latest is BEGUN
    assert not offers.stands(elsewhere)
    assert offers.obeyed(elsewhere.digest) is None
    assert offers.in_force is BEGUN
