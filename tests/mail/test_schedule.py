"""The arithmetic of retry, against sums done by hand."""

from datetime import UTC, datetime, timedelta

import pytest

from forwarder.config.settings import RetrySection
from forwarder.mail.schedule import RetryPolicy, next_attempt_at

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTES = RetryPolicy(
    delays=(timedelta(minutes=1), timedelta(minutes=10)), give_up_after=timedelta(hours=1), spread=0.5
)


@pytest.mark.parametrize(
    ("attempts", "jitter", "seconds"),
    [
        (1, 0.0, 60),
        (2, 0.0, 600),
        (3, 0.0, 600),
        (99, 0.0, 600),
        (0, 0.0, 60),
        (1, 1.0, 90),
        (2, 0.2, 660),
        (1, 7.0, 90),
        (1, -1.0, 60),
    ],
)
def test_the_delay_after_each_attempt(attempts: int, jitter: float, seconds: int) -> None:
    due = next_attempt_at(MINUTES, created_at=NOON, attempts=attempts, now=NOON, jitter=jitter)
    assert due == NOON + timedelta(seconds=seconds)


def test_given_up_when_the_next_attempt_would_come_too_late() -> None:
    last = NOON + timedelta(minutes=50)
    assert next_attempt_at(MINUTES, created_at=NOON, attempts=2, now=last, jitter=0.0) is None
    before = last - timedelta(microseconds=1)
    assert next_attempt_at(MINUTES, created_at=NOON, attempts=2, now=before, jitter=0.0) is not None


def test_the_defaults_last_five_days() -> None:
    defaults = RetrySection()
    policy = RetryPolicy(delays=defaults.delays, give_up_after=defaults.give_up_after)
    now, attempts = NOON, 1
    while (
        due := next_attempt_at(policy, created_at=NOON, attempts=attempts, now=now, jitter=0.0)
    ) is not None:
        now, attempts = due, attempts + 1
    # 1+5+15+30+60+120 minutes make 3 h 51; then every 4 hours while below 120 h: 29 more.
    assert attempts == 6 + 29 + 1
    assert timedelta(days=4, hours=20) < now - NOON < timedelta(days=5)


@pytest.mark.parametrize(
    ("delays", "age", "spread"),
    [((), 1, 0.1), ((0,), 1, 0.1), ((-5,), 1, 0.1), ((5,), 0, 0.1), ((5,), 1, 1.0), ((5,), 1, -0.1)],
)
def test_policies_that_make_no_sense(delays: tuple[int, ...], age: int, spread: float) -> None:
    with pytest.raises(ValueError, match="retr"):
        RetryPolicy(
            delays=tuple(timedelta(seconds=delay) for delay in delays),
            give_up_after=timedelta(seconds=age),
            spread=spread,
        )
