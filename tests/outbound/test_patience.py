"""When a claim waits for room, second by second."""

from forwarder.outbound.patience import Patience


def test_a_claim_that_is_worth_its_while_does_not_wait() -> None:
    assert Patience(10).wait(100.0, free=10, room=10) == 0.0


def test_a_small_one_waits_for_a_second_and_is_made_then() -> None:
    patience = Patience(10)
    assert patience.wait(100.0, free=9, room=50) == 1.0
    assert patience.wait(100.25, free=9, room=50) == 0.75
    assert patience.wait(101.0, free=9, room=50) == 0.0
    assert patience.wait(101.0, free=9, room=50) == 1.0  # the next one waits again


def test_without_a_free_place_there_is_none() -> None:
    patience = Patience(10)
    assert patience.wait(100.0, free=0, room=50) == 1.0
    assert patience.wait(101.0, free=0, room=50) == 1.0


def test_where_only_routes_are_short_claims_go_on_until_one_brings_what_nobody_can_be_asked_for() -> None:
    patience = Patience(10)
    assert patience.wait(100.0, free=50, room=0) == 1.0
    assert patience.wait(101.0, free=50, room=0) == 0.0
    assert patience.wait(101.1, free=50, room=0) == 0.0
    patience.end()
    assert patience.wait(101.2, free=50, room=0) == 1.0


def test_room_that_comes_while_a_claim_waits_ends_the_wait() -> None:
    patience = Patience(10)
    assert patience.until is None  # none waits
    patience.wait(100.0, free=9, room=50)
    assert patience.until == 101.0
    assert patience.wait(100.5, free=10, room=50) == 0.0
    assert patience.until is None
