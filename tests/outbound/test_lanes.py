"""Who is served next: a table of turns, limits and suspensions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from forwarder.mail.address import Path, parse_address
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.reply import Reply
from forwarder.mail.schedule import RetryPolicy
from forwarder.outbound import lanes as lanes_room
from forwarder.outbound.lanes import Lane, Lanes, suspensions
from forwarder.outbound.parcel import Job, Parcel
from forwarder.outbound.route import Route
from forwarder.store.records import Delivery

AT = datetime(2026, 11, 20, tzinfo=UTC)
ANN = parse_address("ann@origin.test")
TROUBLE = Reply(code=451, enhanced="4.4.1", text="the host refused the connection")


def job(message: str, count: int = 1, reverse_path: Path = ANN, *, to: str = "bob@dest.test") -> Job:
    """Deliveries of one message; ``to``: with {} in it, an address for each."""
    deliveries = [
        Delivery(
            id=f"{message}-{number}",
            message_id=message,
            kind=DeliveryKind.SMTP,
            domain_id=None,
            alias=None,
            recipient=parse_address("alias@hosted.test"),
            destination=to.format(number),
            destination_domain="dest.test",
            attempts=1,
            created_at=AT,
            next_attempt_at=AT,
            reverse_path=reverse_path,
            smtputf8=False,
            signing_domain=None,
            transport=Transport.SMTP,
            size=1,
        )
        for number in range(count)
    ]
    return Job(parcel=Parcel.of_delivery(deliveries[0]), deliveries=deliveries)


class Watched(Lanes):
    """Lanes that remember what was taken, so that a test can end the oldest attempt of a lane."""

    def take(self, now: float) -> tuple[Lane, Job] | None:
        taken = super().take(now)
        if taken is not None:
            self.__dict__.setdefault(taken[0].site, []).append(taken[1])
        return taken

    def over(self, lane: Lane, *, reached: bool, now: float) -> None:
        under_way = self.__dict__[lane.site].pop(0)
        self.ended(lane, under_way, reached=reached, trouble=None if reached else TROUBLE, now=now)


def lanes(window: int = 100, concurrency: int = 10, per_site: int = 4, *, share_all: bool = False) -> Watched:
    return Watched(window=window, concurrency=concurrency, per_site=per_site, share_all=share_all)


def fill(rooms: Lanes, site: str, *messages: str) -> Lane:
    lane = rooms.lane(site)
    for message in messages:
        rooms.add(lane, job(message), f"{site}.test")
    return lane


def turns(rooms: Lanes, now: float = 0.0) -> list[str]:
    taken = []
    while (next_ := rooms.take(now)) is not None:
        taken.append(next_[1].parcel.message_id)
    return taken


def test_sites_take_turns_whatever_waits_for_them() -> None:
    rooms = lanes()
    fill(rooms, "big", "b1", "b2", "b3", "b4", "b5", "b6")
    fill(rooms, "small", "s1")
    fill(rooms, "other", "o1", "o2")
    assert turns(rooms) == ["b1", "s1", "o1", "b2", "o2", "b3", "b4"]  # then "big" has its four sessions
    assert rooms.active == 7


def test_the_slots_in_all_are_bounded() -> None:
    rooms = lanes(concurrency=3, per_site=3)
    fill(rooms, "a", "a1", "a2")
    fill(rooms, "b", "b1", "b2")
    assert len(turns(rooms)) == 3


def test_a_site_may_hold_as_much_as_is_left_for_others() -> None:
    rooms = lanes(window=10)
    lane = rooms.lane("slow")
    while rooms.has_room(lane, 0.0):
        rooms.add(lane, job(f"m{lane.places}"), "slow.test")
    assert lane.places == 5
    assert rooms.blocked_domains(0.0) == ["slow.test"]
    other = rooms.lane("other")
    while rooms.has_room(other, 0.0):
        rooms.add(other, job(f"o{other.places}"), "other.test")
    assert other.places == 3
    assert rooms.has_room(None, 0.0)


def test_a_smarthost_may_hold_everything() -> None:
    rooms = lanes(window=10, share_all=True)
    lane = rooms.lane("smarthost")
    while rooms.has_room(lane, 0.0):
        rooms.add(lane, job(f"m{lane.places}"), "any.test")
    assert lane.places == 10


def test_a_site_that_is_not_reached_is_suspended_longer_each_time() -> None:
    rooms = lanes()
    lane = fill(rooms, "dead", *(f"m{number}" for number in range(20)))
    now = 0.0
    lengths = []
    for _ in range(8):
        while lane.suspended_until <= now:
            taken = rooms.take(now)
            assert taken is not None
            rooms.over(lane, reached=False, now=now)
        lengths.append(lane.suspended_until - now)
        assert rooms.take(now) is None
        assert not rooms.has_room(lane, now)
        now = lane.suspended_until
        rooms.wake(now)
    assert lengths == [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


def test_sessions_that_fail_together_count_as_one_suspension() -> None:
    """Else a site that was away for a second would wait for minutes, the longer the more mail there is for it."""
    rooms = lanes(per_site=5)
    lane = fill(rooms, "dead", *(f"m{number}" for number in range(10)))
    assert len(turns(rooms)) == 5
    for _ in range(5):
        rooms.over(lane, reached=False, now=0.0)
    now = lane.suspended_until
    assert now <= 30.0
    rooms.wake(now)
    assert len(turns(rooms, now)) == 1
    rooms.over(lane, reached=False, now=now)
    assert lane.suspended_until - now <= 30.0


def test_one_success_ends_the_mistrust() -> None:
    rooms = lanes(per_site=4)
    lane = fill(rooms, "back", *(f"m{number}" for number in range(20)))
    for _ in range(3):
        rooms.take(0.0)
        rooms.over(lane, reached=False, now=0.0)
    rooms.wake(15.0)
    assert len(turns(rooms, 15.0)) == 1  # a single probe
    rooms.over(lane, reached=True, now=15.0)
    assert len(turns(rooms, 15.0)) == 2
    rooms.over(lane, reached=True, now=15.0)
    assert (lane.limit, lane.failures, lane.suspensions) == (3, 0, 0)


def test_ailing_sites_share_half_of_the_slots() -> None:
    rooms = lanes(concurrency=10, per_site=10)
    ailing = [fill(rooms, f"ailing{number}", "x1", "x2", "x3") for number in range(8)]
    for _ in ailing:
        taken = rooms.take(0.0)
        assert taken is not None
    for lane in ailing:
        rooms.over(lane, reached=False, now=0.0)
    assert len(turns(rooms)) == 5
    fill(rooms, "well", *(f"w{number}" for number in range(10)))
    assert turns(rooms) == ["w0", "w1", "w2", "w3", "w4"]


def test_what_a_site_has_under_way_when_it_falls_ill_counts_among_the_ailing() -> None:
    rooms = lanes(concurrency=6, per_site=6)  # three for the ailing
    other = fill(rooms, "other", "o1")
    assert turns(rooms) == ["o1"]
    rooms.over(other, reached=False, now=0.0)
    ill = fill(rooms, "ill", "i1", "i2", "i3", "i4")
    assert turns(rooms) == ["i1", "i2", "i3", "i4"]
    rooms.over(ill, reached=False, now=0.0)
    fill(rooms, "other", "o2")
    assert turns(rooms) == []
    fill(rooms, "well", "w1")
    assert turns(rooms) == ["w1"]
    rooms.over(ill, reached=True, now=0.0)
    assert turns(rooms) == ["o2"]


def test_sessions_that_last_do_not_keep_the_slots_from_others() -> None:
    rooms = lanes(concurrency=10, per_site=10)
    silent = [fill(rooms, f"silent{number}", "x", "y", "z") for number in range(10)]
    assert turns(rooms, 0.0) == ["x"] * 10
    well = fill(rooms, "well", "w1", "w2")
    assert turns(rooms, 29.9) == []
    assert sorted(turns(rooms, 30.0)) == [
        "w1",
        "w2",
        *["y"] * 5,
    ]  # the silent ones have half of the slots now
    assert (rooms.active, rooms.sessions) == (7, 17)
    # As many as there are slots have left the count: no more do.
    fill(rooms, "other", "v1", "v2", "v3", "v4")
    assert turns(rooms, 100.0) == ["v1", "v2", "v3"]
    assert (rooms.active, rooms.sessions) == (10, 20)
    for lane in silent:
        rooms.over(lane, reached=False, now=100.0)
    assert (rooms.active, rooms.sessions) == (10, 10)
    rooms.over(well, reached=True, now=100.0)
    assert turns(rooms, 100.0)[0] == "v4"
    while under_way := [lane for lane in rooms if lane.active]:
        for lane in under_way:
            rooms.over(lane, reached=lane is well, now=101.0)
    assert (rooms.active, rooms.sessions) == (0, 0)
    # What was counted for the silent ones is free again: half of the slots, and the rest for the well.
    fill(rooms, "well", *(f"w{number}" for number in range(20)))
    assert sorted(turn[0] for turn in turns(rooms, 101.0)) == ["w"] * 5 + ["z"] * 5


def test_what_still_counts_of_a_site_whose_oldest_session_lasts_counts_among_the_ailing() -> None:
    rooms = lanes(concurrency=4)  # two for the ailing
    fill(rooms, "silent", "s1")
    assert turns(rooms, 0.0) == ["s1"]
    fill(rooms, "silent", "s2")
    assert turns(rooms, 10.0) == ["s2"]
    well = fill(rooms, "well", "w1", "w2")
    assert turns(rooms, 20.0) == ["w1", "w2"]
    fill(rooms, "silent", "s3", "s4")
    assert turns(rooms, 30.0) == ["s3"]  # in the place of the first
    for _ in range(2):
        rooms.over(well, reached=True, now=31.0)
    assert turns(rooms, 31.0) == []
    fill(rooms, "well", "w3", "w4", "w5")
    assert turns(rooms, 31.0) == ["w3", "w4"]
    # It is well again, though its first session lasts: nothing of it counts among the ailing.
    silent, second = rooms.lane("silent"), rooms.__dict__["silent"].pop(1)
    rooms.ended(silent, second, reached=True, trouble=None, now=32.0)
    assert (silent.active, silent.lasting, rooms._ailing_active) == (2, 1, 0)


def test_deliveries_of_one_message_wait_together_and_travel_by_the_hundred() -> None:
    rooms = lanes(window=1000)
    lane = rooms.lane("site")
    older, newer = (Route(site="site", hosts=(), port=port) for port in (25, 26))
    rooms.add(lane, replace(job("m", 70, to="a{}@one.test"), route=older), "one.test")
    rooms.add(lane, replace(job("m", 180, to="a{}@two.test"), route=newer), "two.test")
    sizes = []
    while (taken := rooms.take(0.0)) is not None:
        sizes.append(len(taken[1].deliveries))
        assert taken[1].route is newer
    assert sizes == [100, 100, 50]
    assert lane.places == 250


def test_an_address_is_one_copy_however_many_recipients_lead_to_it() -> None:
    rooms = lanes(window=1000)
    lane = rooms.lane("site")
    rooms.add(lane, job("m", 70, to="a{}@dest.test"), "dest.test")
    rooms.add(lane, job("m", 130), "dest.test")
    rooms.add(lane, job("m", 180, to="a{}@dest.test"), "dest.test")
    travelled = []
    while (taken := rooms.take(0.0)) is not None:
        travelled.append([delivery.destination for delivery in taken[1].deliveries])
    # a0 to a69, bob, and a70 to a98 are a hundred addresses, and the first seventy stand there twice.
    assert [len(set(some)) for some in travelled] == [100, 81]
    assert [len(some) for some in travelled] == [2 * 70 + 130 + 29, 81]
    assert not set(travelled[0]) & set(travelled[1])


def test_mail_that_wants_no_answer_travels_alone() -> None:
    """Some hosts refuse a report for several recipients, as it is how spam looks."""
    rooms = lanes()
    lane = rooms.lane("site")
    report = job("m", 4, reverse_path=Path.null())
    report.deliveries = [
        replace(delivery, destination=f"{name}@dest.test")
        for delivery, name in zip(report.deliveries, "abac", strict=True)
    ]
    rooms.add(lane, report, "one.test")
    travelled = []
    while (taken := rooms.take(0.0)) is not None:
        travelled.append([delivery.destination[0] for delivery in taken[1].deliveries])
    # Two recipients that lead to one address are one copy.
    assert travelled == [["a", "a"], ["b"], ["c"]]


def test_flush_empties_a_lane_and_leave_frees_its_places() -> None:
    rooms = lanes()
    lane = fill(rooms, "site", "m1", "m2")
    jobs = rooms.flush(lane)
    assert [j.parcel.message_id for j in jobs] == ["m1", "m2"]
    assert rooms.places == 2
    rooms.leave(lane, 2)
    assert (rooms.places, lane.places) == (0, 0)
    assert rooms.take(0.0) is None


def test_a_suspended_site_is_known_although_nothing_waits_for_it() -> None:
    rooms = lanes()
    dead, well = fill(rooms, "dead", "d1", "d2", "d3"), fill(rooms, "well", "w1")
    assert len(turns(rooms)) == 4
    for _ in range(3):
        rooms.over(dead, reached=False, now=0.0)
    rooms.over(well, reached=True, now=0.0)
    rooms.leave(dead, 3)
    rooms.leave(well, 1)
    assert (list(rooms), rooms.suspended(0.0), rooms.blocked_domains(0.0)) == ([dead], 1, ["dead.test"])
    rooms.wake(15.0)
    assert (list(rooms), rooms.suspended(15.0), rooms.blocked_domains(15.0)) == ([], 0, [])


def test_the_domains_of_a_site_that_are_named_are_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_room, "_DOMAINS_NAMED", 2)
    rooms = lanes(window=8)
    lane = rooms.lane("site")
    for number, domain in enumerate(("a.test", "b.test", "a.test", "c.test")):
        rooms.add(lane, job(f"m{number}"), domain)
    assert rooms.blocked_domains(0.0) == ["a.test", "c.test"]


def test_what_was_learnt_of_sites_is_bounded_and_not_forgotten_of_those_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_room, "_REMEMBERED", 2)
    rooms = lanes()
    rooms.lane("first")
    fill(rooms, "used", "m1")
    for number in range(3):
        rooms.lane(f"other{number}")
    known = [site for site in ("first", "used", "other0", "other1", "other2") if rooms.known(site)]
    assert known == ["used", "other2"]


@pytest.mark.parametrize(
    ("delays", "expected"),
    [
        ([timedelta(minutes=5), timedelta(hours=1)], (15.0, 600.0)),
        ([timedelta(seconds=2), timedelta(seconds=90), timedelta(seconds=60)], (2.0, 90.0)),
    ],
)
def test_a_suspension_is_no_longer_than_a_retry_would_wait(
    delays: list[timedelta], expected: tuple[float, float]
) -> None:
    policy = RetryPolicy(delays=tuple(delays), give_up_after=timedelta(days=5), spread=0.1)
    assert suspensions(policy) == expected
