"""The Received field and the deliveries of a message, without a socket."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from forwarder.inbound.arrival import Composer, address_literal, facts, received, shown
from forwarder.inbound.session import Recipient, Session, Transaction
from forwarder.mail.address import Path, parse_address
from forwarder.mail.destination import Url
from forwarder.mail.event import DeliveryKind, Transport
from forwarder.mail.rules import Step, Target, Theirs, Trouble

NOW = datetime(2026, 11, 21, 1, 2, 3, 456789, tzinfo=UTC)
ID = "0" * 32


class Intake:
    def __init__(self, *rooms):
        self.rooms = set(rooms)

    def lease(self, domain):
        return domain in self.rooms

    def hand_over(self, message):
        raise AssertionError

    def prepare(self, message):
        raise AssertionError


def session(client="192.0.2.1", helo="mail.sender.test", **more):
    made = Session(client)
    made.helo = helo
    made.extended = True
    for name, value in more.items():
        setattr(made, name, value)
    return made


def transaction(*recipients, **more):
    made = Transaction(reverse_path=parse_address("a@sender.test"), **more)
    made.recipients.extend(recipients)
    return made


def to(address, *targets, **more):
    return Recipient(path=parse_address(address), ways=tuple(targets), **more)


def target(destination, alias="*"):
    way = parse_address(destination) if "@" in destination else Url(url=destination, host="hooks.test")
    return Target(destination=way, alias=alias, domain_id=7, domain="here.test")


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("192.0.2.1", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("::ffff:192.0.2.1", "[192.0.2.1]"),
        ("fe80::1%eth0", "[IPv6:fe80::1]"),
        ("", "[127.0.0.1]"),
    ],
)
def test_address_literals(address, literal):
    assert address_literal(address) == literal


def test_received_in_full():
    field = received(
        session("2001:db8::1", tls="TLSv1.3 TLS_AES_256_GCM_SHA384"),
        transaction(to('"a b"@here.test', target("b@dest.test"))),
        hostname="mx.test",
        identifier=ID,
        now=NOW,
    )
    assert field == (
        b"Received: from mail.sender.test ([IPv6:2001:db8::1])\r\n"
        b"\tby mx.test (Forwarder) with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tid 00000000000000000000000000000000\r\n"
        b'\tfor <"a b"@here.test>;\r\n'
        b"\tSat, 21 Nov 2026 01:02:03 +0000\r\n"
    )


def test_received_tells_no_recipient_about_another():
    field = received(
        session(),
        transaction(to("a@here.test", target("x@dest.test")), to("b@here.test", target("y@dest.test"))),
        hostname="mx.test",
        identifier=ID,
        now=NOW,
    )
    assert b" for " not in field.replace(b"\t", b" ")
    assert b"here.test" not in field


def test_received_names_no_recipient_beyond_ascii():
    field = received(
        session(),
        transaction(to("jürgen@here.test", target("b@dest.test"))),
        hostname="mx.test",
        identifier=ID,
        now=NOW,
    )
    assert field.isascii()
    assert b" for " not in field


@pytest.mark.parametrize(
    ("of_session", "of_transaction", "protocol"),
    [
        ({"extended": False}, {}, b" with SMTP\r\n"),
        ({}, {}, b" with ESMTP\r\n"),
        ({"tls": "T C"}, {}, b" with ESMTPS (T C)\r\n"),
        ({"tls": "T C", "login": object()}, {}, b" with ESMTPSA (T C)\r\n"),
        ({}, {"smtputf8": True}, b" with UTF8SMTP\r\n"),
        ({"tls": "T C"}, {"smtputf8": True}, b" with UTF8SMTPS (T C)\r\n"),
    ],
)
def test_the_protocol_by_its_registered_name(of_session, of_transaction, protocol):
    field = received(
        session(**of_session), transaction(**of_transaction), hostname="mx.test", identifier=ID, now=NOW
    )
    assert protocol in field


def composer(intake):
    numbers = iter(range(1000))
    return Composer(
        transport=Transport.SMTP,
        ids=lambda now: f"{next(numbers):032x}",
        intake=intake,
        first_delay=timedelta(minutes=1),
    )


def test_each_destination_of_each_recipient_once():
    made = composer(Intake("dest.test")).deliveries(
        transaction(
            to("info@here.test", target("a@dest.test", "info"), target("https://hooks.test/in", "info")),
            to("INFO@here.test", target("a@dest.test", "info")),
            to("sales@here.test", target("a@dest.test", "sales")),
            to("off@here.test", target("off@here.test", "off"), discarded=True),
            to("srs@mx.test", None, elsewhere=parse_address("b@sender.test")),
        ),
        facts(shown(b"To: Desk <INFO@here.test>\r\n\r\n")),
        now=NOW,
        sender_domain_id=9,
        sender_alias="ann",
    )
    later = NOW + timedelta(minutes=1)
    assert [(d.alias, d.destination, d.destination_domain, d.leased, d.next_attempt_at) for d in made] == [
        ("info", "a@dest.test", "dest.test", True, later),
        ("info", "https://hooks.test/in", "hooks.test", False, NOW),
        ("sales", "a@dest.test", "dest.test", True, later),
        ("off", "off@here.test", "here.test", False, NOW),
        ("ann", "b@sender.test", "sender.test", False, NOW),
    ]
    assert [d.kind for d in made][1] is DeliveryKind.WEBHOOK
    assert [d.discard for d in made] == [False, False, False, True, False]
    assert [d.domain_id for d in made] == [7, 7, 7, 7, 9]
    assert [d.recipient_name for d in made] == ["Desk", "Desk", None, None, None]
    assert [d.recipient for d in made][3] == Path(local="off", domain="here.test")


def test_what_leads_nowhere_is_for_the_log_of_the_recipient():
    nowhere = Step(address=parse_address("gone@there.test"), trouble=Trouble.UNKNOWN)
    made = composer(Intake("there.test")).deliveries(
        transaction(to("info@here.test", target("a@dest.test", "info"), told=(nowhere,))),
        facts(shown(b"To: Desk <info@here.test>\r\n\r\n")),
        now=NOW,
    )
    assert [(d.alias, d.destination, d.leased, d.discard, d.recipient_name) for d in made] == [
        ("info", "a@dest.test", False, False, "Desk"),
        ("info", "gone@there.test", False, True, "Desk"),
    ]
    assert [None if d.dead_end is None else d.dead_end.code for d in made] == [None, 550]


def test_what_leads_nowhere_one_way_and_on_another_has_both_logs():
    """Its owner has confirmed to one account that mail may be forwarded, and not to another."""
    theirs = Theirs(alias="boss", domain_id=9, account_id=2)
    waiting = Step(address=parse_address("a@dest.test"), trouble=Trouble.UNCONFIRMED)
    way = replace(target("a@dest.test", "info"), theirs=theirs)
    made = composer(Intake()).deliveries(
        transaction(*[to("info@here.test", way, told=(waiting,))] * 2), facts(shown(b"")), now=NOW
    )
    assert [(d.domain_id, d.alias, d.destination, d.discard) for d in made] == [
        (9, "boss", "a@dest.test", False),
        (7, "info", "a@dest.test", True),
    ]


def test_one_mailbox_that_aliases_spell_differently_is_spelled_alike():
    """Else its host is told of two, and delivers two copies."""
    made = composer(Intake()).deliveries(
        transaction(
            to("one@here.test", target("ann@dest.test", "one")),
            to("two@here.test", target("Ann@dest.test", "two"), target("Ann@other.test", "two")),
            to("three@here.test", target("https://hooks.test/In", "three")),
            to("four@here.test", target("https://hooks.test/in", "four")),
            to("ANN@dest.test", None, elsewhere=parse_address("ANN@dest.test")),
        ),
        facts(shown(b"")),
        now=NOW,
    )
    assert [(d.alias, d.destination) for d in made] == [
        ("one", "ann@dest.test"),
        ("two", "ann@dest.test"),
        ("two", "Ann@other.test"),
        ("three", "https://hooks.test/In"),
        ("four", "https://hooks.test/in"),
        (None, "ANN@dest.test"),  # as the client named it
    ]


def test_facts_of_nothing_and_of_nonsense():
    for head in (b"", b"From: \r\nSubject:\r\n", b"\xff\xfe\r\n", b"From: <<<\r\n"):
        seen = facts(shown(head))
        assert seen.message_id is None
        assert not seen.subject
