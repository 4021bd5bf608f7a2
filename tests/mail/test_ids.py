"""Ids: their form by RFC 9562, their order, and the public form of a log's id."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.ids import IdSource, id_floor, id_time, is_id, log_public_id, new_id, parse_log_public_id

# RFC 9562 appendix A.6: unix milliseconds 0x017F22E279B0 is 2022-02-22 19:22:22 UTC.
APPENDIX = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


def test_the_example_of_the_standard() -> None:
    made = new_id(APPENDIX, bytes(10))
    assert made == "017f22e279b070008000000000000000"
    assert new_id(APPENDIX, b"\xff" * 10) == "017f22e279b07000bfffffffffffffff"


@given(times, st.binary(min_size=10, max_size=10))
def test_another_implementation_reads_version_and_variant(now: datetime, entropy: bytes) -> None:
    read = uuid.UUID(new_id(now, entropy))
    assert (read.version, read.variant) == (7, uuid.RFC_4122)
    assert abs(id_time(read.hex) - now) < timedelta(milliseconds=1)


@given(times, times, st.binary(min_size=8, max_size=8))
def test_ids_sort_by_time(one: datetime, other: datetime, entropy: bytes) -> None:
    if other - one >= timedelta(microseconds=1):
        assert new_id(one, entropy) < id_floor(other) <= new_id(other, entropy)


def test_too_little_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="random"):
        new_id(APPENDIX, bytes(7))


def test_a_source_goes_up_when_the_clock_does_not() -> None:
    clock = iter([APPENDIX, APPENDIX, APPENDIX - timedelta(days=1), APPENDIX + timedelta(seconds=1)])
    source = IdSource(clock=lambda: next(clock), entropy=lambda count: b"\xff" * count)
    made = [source() for _ in range(4)]
    assert made == sorted(set(made))
    assert all(is_id(identifier) for identifier in made)
    assert id_time(made[2]) == APPENDIX
    assert id_time(made[3]) == APPENDIX + timedelta(seconds=1)


def test_a_source_follows_a_clock_that_is_set_back_by_more() -> None:
    right = APPENDIX - timedelta(days=3650)
    clock = iter([APPENDIX, right, right, right - timedelta(days=1), right + timedelta(seconds=1)])
    source = IdSource(clock=lambda: next(clock), entropy=lambda count: b"\xff" * count)
    ahead, *made = [source() for _ in range(5)]
    assert id_time(ahead) == APPENDIX
    assert [id_time(identifier) for identifier in made] == [right] * 3 + [right + timedelta(seconds=1)]
    assert made == sorted(set(made))


def test_the_public_form() -> None:
    identifier = new_id(APPENDIX, bytes(10))
    public = "20220222192222.017f22e279b070008000000000000000"
    assert log_public_id(identifier) == public
    assert parse_log_public_id(public) == identifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "017f22e279b070008000000000000000",
        "20220222192223.017f22e279b070008000000000000000",
        "20220222192222.017F22E279B070008000000000000000",
        "20220222192222-017f22e279b070008000000000000000",
        "20220222192222.017f22e279b07000800000000000000g",
        "20220222192222.017f22e279b070008000000000000000 ",
        "٢٠٢٢٠٢٢٢١٩٢٢٢٢.017f22e279b070008000000000000000",
        "x" * 10_000,
    ],
)
def test_what_is_no_public_id(text: str) -> None:
    assert parse_log_public_id(text) is None


@given(st.text(max_size=60))
def test_reading_a_public_id_never_raises(text: str) -> None:
    assert parse_log_public_id(text) is None


def test_the_last_id_has_a_time() -> None:
    assert parse_log_public_id("99991231235959." + "f" * 32) == "f" * 32
