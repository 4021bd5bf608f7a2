"""Delivery states: every one is reachable, and what is terminal stays so."""

from forwarder.mail.event import TRANSITIONS, DeliveryState, Status

S = DeliveryState


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(S)
    assert TRANSITIONS[S.QUEUED] >= {S.LEASED}
    assert TRANSITIONS[S.LEASED] == {S.QUEUED, S.DELIVERED, S.FAILED}
    assert not TRANSITIONS[S.DELIVERED]
    assert not TRANSITIONS[S.FAILED]


def test_every_state_is_reached_from_queued() -> None:
    reached, before = {S.QUEUED}, set()
    while reached != before:
        before = set(reached)
        for state in before:
            reached |= TRANSITIONS[state]
    assert reached == set(S)


def test_the_words_of_the_logs_api() -> None:
    assert [status.value for status in Status] == [
        "QUEUED",
        "REFUSED",
        "DELIVERED",
        "SOFT-BOUNCE",
        "HARD-BOUNCE",
    ]
