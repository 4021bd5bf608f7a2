"""Handing fresh mail over: whom we give way to before."""

from functools import partial

import pytest

from forwarder.inbound import intake


def test_the_processor_is_given_up_before_the_first_message_of_a_calm_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    now = [100.0]
    monkeypatch.setattr("forwarder.inbound.intake.time.monotonic", lambda: now[0])
    monkeypatch.setattr("forwarder.inbound.intake.os.sched_yield", lambda: steps.append("gave way"))
    hand_over = intake.HandOver()
    for message, pause in (("a", 1.0), ("b", 0.004), ("c", 0.004), ("d", 0.006)):
        now[0] += pause
        hand_over(partial(steps.append, message))
    assert steps == ["gave way", "a", "b", "c", "gave way", "d"]
