"""When to try again: the only arithmetic of retry.

Pure: the time and the chance are arguments. A delivery is tried after each delay of the policy in turn, the last
delay repeating, until the next attempt would come ``give_up_after`` or more after the message was accepted.

Each delay grows by chance, so that a thousand messages deferred in the same second do not come back in the same second.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The delays between attempts and the age at which a message is given up."""

    delays: tuple[timedelta, ...]  # after the first attempt, the second, …; the last one repeats
    give_up_after: timedelta  # counted from the moment the message was accepted
    spread: float = 0.1  # at most this fraction of a delay is added to it

    def __post_init__(self) -> None:
        if not self.delays:
            raise ValueError("a retry policy needs at least one delay")
        if min(self.delays) <= timedelta(0) or self.give_up_after <= timedelta(0):
            raise ValueError("retry delays and the give-up age must be longer than nothing")
        if not 0 <= self.spread < 1:
            raise ValueError("the spread of retries is a fraction: at least 0 and below 1")


def next_attempt_at(
    policy: RetryPolicy, *, created_at: datetime, attempts: int, now: datetime, jitter: float
) -> datetime | None:
    """When to try again after ``attempts`` tries, or None once the message is too old.

    ``jitter`` is chance, from 0 to 1; values outside are brought inside. ``attempts`` below 1 counts as 1.
    """
    delay = policy.delays[min(max(attempts, 1), len(policy.delays)) - 1]
    due = now + delay * (1 + policy.spread * max(0.0, min(1.0, jitter)))
    return due if due - created_at < policy.give_up_after else None
