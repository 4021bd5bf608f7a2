"""Trouble that many meet is said once a while, each kind of it at once."""

from forwarder.store.telling import AGAIN, Telling
from forwarder.store.trouble import StoreUnavailable


def trouble(cause: BaseException | None) -> StoreUnavailable:
    made = StoreUnavailable()
    made.__cause__ = cause
    return made


REFUSED = trouble(ConnectionRefusedError(111, "Connection refused"))
LATE = trouble(TimeoutError())


def test_what_is_met_again_and_again_is_said_once_a_while_with_its_number() -> None:
    now = 0.0
    telling = Telling(seconds=lambda: now)
    assert telling.news(REFUSED) == {
        "reason": "the database does not answer: Connection refused; "
        "check host and port in [database] url, and that it runs",
        "cause": "ConnectionRefusedError(111, 'Connection refused')",
    }
    said = []
    for _ in range(480):  # four a second for two minutes
        now += 0.25
        said += [(now, news["times"]) for news in [telling.news(REFUSED)] if news]
    assert said == [(60.0, 240), (120.0, 240)]


def test_other_trouble_is_said_at_once() -> None:
    now = 0.0
    telling = Telling(seconds=lambda: now)
    assert telling.news(REFUSED)
    assert telling.news(LATE)
    assert telling.news(REFUSED) is None
    assert telling.news(LATE) is None


def test_what_comes_back_is_new() -> None:
    now = 0.0
    telling = Telling(seconds=lambda: now)
    assert telling.news(REFUSED)
    assert telling.news(REFUSED) is None
    now = AGAIN
    news = telling.news(REFUSED)
    assert news is not None
    assert "times" not in news


def test_trouble_of_our_own_is_said_in_its_words() -> None:
    full = StoreUnavailable("too many changes wait for the store")
    assert (Telling().news(full) or {})["reason"] == "too many changes wait for the store"
