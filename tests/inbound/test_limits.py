"""Counting connections by client over several processes."""

import errno
import os
import subprocess
import sys

import pytest

from forwarder.inbound.limits import (
    CELLS,
    ROWS,
    SLOT_SECONDS,
    Allowance,
    ClientTable,
    Crowded,
    Doorkeeper,
    clear_region,
    clear_table,
    table_path,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_table(tmp_path):
    tables = []

    def make(region=0, regions=2):
        tables.append(ClientTable(table_path(tmp_path, "mx"), region=region, regions=regions))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


def doorkeeper(table, clock, *, in_all=0, per_client=0, per_minute=0):
    allowance = Allowance(in_all=in_all, per_client=per_client, per_minute=per_minute)
    return Doorkeeper(table, allowance, seconds=clock)


def test_two_workers_share_the_count_of_one_client(open_table, clock):
    first, second = (doorkeeper(open_table(region), clock, per_client=50) for region in (0, 1))
    inside = [(keeper, keeper.enter("192.0.2.1")) for keeper in [first, second] * 25]
    assert not any(isinstance(place, Crowded) for _, place in inside)
    assert first.enter("192.0.2.1") is Crowded.CLIENT
    assert second.enter("192.0.2.1") is Crowded.CLIENT
    assert not isinstance(second.enter("192.0.2.2"), Crowded)
    keeper, place = inside[0]
    keeper.leave(place)
    assert not isinstance(second.enter("192.0.2.1"), Crowded)
    assert first.enter("192.0.2.1") is Crowded.CLIENT


def test_a_network_leaves_as_many_places_as_it_takes(open_table, clock):
    """One customer's network has clients without end; half of the places are for others, and a third beside two."""
    keeper = doorkeeper(open_table(), clock, in_all=100, per_client=2)

    def enters(network):
        places = [keeper.enter(f"2001:db8:{network:x}:{client:x}::1") for client in range(100)]
        return [place for place in places if not isinstance(place, Crowded)]

    first = enters(1)
    assert len(first) == 50
    assert len(enters(2)) == 25
    assert keeper.enter("2001:db8:1:ffff::1") is Crowded.NETWORK
    # As many as one client may have, each network may have while there is a place.
    assert [len(enters(network)) for network in range(3, 20)] == [13, 6, 3, 2, 1, *[0] * 12]
    for place in first:
        keeper.leave(place)
    assert len(enters(1)) == 25


def test_a_network_leaves_others_half_the_places_of_each_process(open_table, clock):
    """As many as it has in all are too many for none of them: each has places of its own."""
    keepers = [doorkeeper(open_table(region), clock, in_all=20, per_client=2) for region in range(2)]
    for keeper in keepers:
        places = [keeper.enter(f"192.0.2.{client}") for client in range(20)]
        assert [isinstance(place, Crowded) for place in places] == [False] * 10 + [True] * 10


def test_where_clients_have_no_limit_networks_have_none(open_table, clock):
    keeper = doorkeeper(open_table(), clock, in_all=10)
    places = [keeper.enter("192.0.2.1") for _ in range(11)]
    assert [isinstance(place, Crowded) for place in places] == [False] * 10 + [True]


def test_another_process_sees_what_this_one_holds(open_table, clock, tmp_path):
    keeper = doorkeeper(open_table(0), clock)
    for _ in range(7):
        keeper.enter("192.0.2.1")
    program = (
        "import sys; from pathlib import Path; from forwarder.inbound.limits import *\n"
        "table = ClientTable(Path(sys.argv[1]), region=1, regions=2)\n"
        "cells = table.cells('192.0.2.1'); table.entered(cells, 1); print(table.open_of(cells))"
    )
    path = str(table_path(tmp_path, "mx"))
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "8"
    # It died without leaving: its count stands until the supervisor clears its region.
    table = open_table(0)
    assert table.open_of(table.cells("192.0.2.1")) == 1
    clear_region(table_path(tmp_path, "mx"), region=1, regions=2)
    assert table.open_of(table.cells("192.0.2.1")) == 0


def test_a_run_forgets_what_one_before_it_counted_in_any_region(open_table, clock, tmp_path):
    path = table_path(tmp_path, "mx")
    clear_table(path)
    assert not path.exists()
    doorkeeper(open_table(1), clock).enter("192.0.2.1")
    table = open_table(0)
    cells = table.cells("192.0.2.1")
    assert table.open_of(cells) == 1
    clear_table(path)
    assert table.open_of(cells) == 0
    assert open_table(0).cells("192.0.2.1") == cells  # by the key that the file keeps


def test_a_client_may_come_so_often_a_minute(open_table, clock):
    keeper = doorkeeper(open_table(), clock, per_minute=300)
    for _ in range(300):
        keeper.leave(keeper.enter("192.0.2.1"))
    assert keeper.enter("192.0.2.1") is Crowded.RATE
    assert not isinstance(keeper.enter("192.0.2.9"), Crowded)
    clock.now += 30
    assert keeper.enter("192.0.2.1") is Crowded.RATE
    clock.now += 30 + SLOT_SECONDS
    assert not isinstance(keeper.enter("192.0.2.1"), Crowded)


def test_the_minute_slides(open_table, clock):
    keeper = doorkeeper(open_table(), clock, per_minute=10)
    for _ in range(5):
        keeper.leave(keeper.enter("192.0.2.1"))
    clock.now += 40
    for _ in range(5):
        keeper.leave(keeper.enter("192.0.2.1"))
    assert keeper.enter("192.0.2.1") is Crowded.RATE
    clock.now += 40  # the first five are more than a minute ago, the others are not
    for _ in range(5):
        keeper.leave(keeper.enter("192.0.2.1"))
    assert keeper.enter("192.0.2.1") is Crowded.RATE


def test_a_clock_that_is_set_back_keeps_nobody_out_until_it_is_there_again(open_table, clock):
    keeper = doorkeeper(open_table(), clock, per_minute=10)
    for _ in range(10):
        keeper.leave(keeper.enter("192.0.2.1"))
    assert keeper.enter("192.0.2.1") is Crowded.RATE
    clock.now -= 3600
    for _ in range(10):
        assert not isinstance(keeper.enter("192.0.2.1"), Crowded)
    assert keeper.enter("192.0.2.1") is Crowded.RATE  # by the clock as it is now


def test_there_is_a_limit_in_all(open_table, clock):
    keeper = doorkeeper(open_table(), clock, in_all=3)
    places = [keeper.enter(f"192.0.2.{number}") for number in range(3)]
    assert keeper.enter("192.0.2.200") is Crowded.SERVER
    keeper.leave(places[0])
    assert not isinstance(keeper.enter("192.0.2.200"), Crowded)


def test_leaving_a_cleared_region_does_not_count_below_zero(open_table, clock):
    table = open_table()
    keeper = doorkeeper(table, clock)
    place = keeper.enter("192.0.2.1")
    table.clear()
    keeper.leave(place)
    assert table.open_here == 0


def test_many_clients_do_not_crowd_each_other_out(open_table, clock):
    keeper = doorkeeper(open_table(), clock, per_client=50)
    for number in range(2000):
        assert not isinstance(keeper.enter(f"10.0.{number // 250}.{number % 250}"), Crowded)


def test_the_file_is_private(open_table, tmp_path):
    open_table()
    assert table_path(tmp_path, "mx").stat().st_mode & 0o077 == 0


def test_what_was_counted_long_ago_does_not_count_again_when_its_place_comes_round(open_table, clock):
    keeper = doorkeeper(open_table(), clock, per_minute=2)
    for _ in range(100):
        assert not isinstance(keeper.enter("192.0.2.1"), Crowded)
        assert not isinstance(keeper.enter("192.0.2.1"), Crowded)
        clock.now += 7 * SLOT_SECONDS


def test_each_cell_of_a_client_is_in_a_row_of_its_own(open_table):
    cells = open_table().cells("192.0.2.1")
    assert [cell // CELLS for cell in cells] == list(range(ROWS))


def test_every_page_of_the_table_has_room_on_the_disk(tmp_path):
    """A hole could be filled only while the disk has room; else the process would die of a signal."""
    ClientTable(tmp_path / "run" / "clients", region=0, regions=2).close()
    found = (tmp_path / "run" / "clients").stat()
    assert found.st_blocks * 512 >= found.st_size
    path = tmp_path / "older"
    path.write_bytes(bytes(16))
    os.truncate(path, found.st_size)
    ClientTable(path, region=0, regions=2).close()
    assert path.stat().st_blocks * 512 >= found.st_size


def test_a_table_that_finds_no_room_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        ClientTable(tmp_path / "run" / "clients", region=0, regions=1)
    assert list((tmp_path / "run").iterdir()) == []
