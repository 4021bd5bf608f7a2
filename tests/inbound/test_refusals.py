"""How many refusals one client can make us write about one domain."""

from datetime import UTC, datetime, timedelta

import pytest

from forwarder.inbound import refusals
from forwarder.inbound.refusals import PER_CLIENT, WINDOW_SECONDS, Refusals
from forwarder.inbound.session import Session
from forwarder.mail import reply
from forwarder.mail.address import parse_address
from forwarder.mail.event import Transport

ANN, NOBODY = parse_address("ann@sender.test"), parse_address("nobody@here.test")


class Journal:
    def __init__(self):
        self.written = []

    def refused(self, log):
        self.written.append(log.domain_id)
        return True


class Door:
    """Refusals at the time that ``now`` tells; a refusal says how many were written of so many."""

    def __init__(self):
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        self.journal = Journal()
        self._refusals = Refusals(
            self.journal,
            transport=Transport.SMTP,
            local_name="mx.test",
            ids=lambda: "0" * 32,
            clock=lambda: self.now,
        )

    def refuse(self, times=1, *, client="192.0.2.1", domain_id=7):
        before = len(self.journal.written)
        for _ in range(times):
            self._refusals.write(
                Session(client),
                reply.NO_SUCH_USER,
                domain_id=domain_id,
                alias=None,
                sender=ANN,
                recipient=NOBODY,
            )
        return len(self.journal.written) - before


@pytest.fixture
def door():
    return Door()


def test_so_many_of_one_client_at_one_domain_are_written_a_minute(door):
    assert door.refuse(PER_CLIENT + 5) == PER_CLIENT
    door.now += timedelta(seconds=WINDOW_SECONDS - 1)
    assert door.refuse() == 0
    door.now += timedelta(seconds=1)
    assert door.refuse(PER_CLIENT + 5) == PER_CLIENT


def test_a_clock_that_is_set_back_begins_another_minute(door):
    door.refuse(PER_CLIENT)
    door.now -= timedelta(hours=1)
    assert door.refuse(PER_CLIENT + 5) == PER_CLIENT


def test_other_clients_and_other_domains_are_counted_apart(door):
    door.refuse(PER_CLIENT)
    assert door.refuse() == 0
    assert door.refuse(client="192.0.2.2") == 1
    assert door.refuse(domain_id=8) == 1
    door.refuse(PER_CLIENT, client="2001:db8::1")
    assert door.refuse(client="2001:db8::2") == 0  # of one network: one client


def test_what_is_of_no_hosted_domain_is_in_no_log(door):
    assert door.refuse(domain_id=None) == 0


def test_the_pair_seen_longest_ago_is_forgotten_first(door, monkeypatch):
    monkeypatch.setattr(refusals, "CLIENTS", 2)
    door.refuse(PER_CLIENT, domain_id=1)
    door.refuse(PER_CLIENT, domain_id=2)
    door.refuse(domain_id=1)  # seen again
    assert door.refuse(domain_id=3) == 1
    assert [door.refuse(domain_id=1), door.refuse(domain_id=2)] == [0, 1]
