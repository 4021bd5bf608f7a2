"""Whose marks are ours, and of which recipient."""

from forwarder.mail.address import parse_address
from forwarder.mail.trace import Passage, lines, looped, mark, passages

ID = "0" * 32
OLD, NEW = b"a secret of last year", b"a secret of this year"


def passage(secret: bytes, address: str) -> Passage:
    return Passage(delivery_id=ID, mark=mark(secret, parse_address(address)))


def test_a_mark_of_ours_is_known_in_whatever_case_and_after_a_change_of_the_secret() -> None:
    ann = parse_address("Ann@here.test")
    assert looped([NEW, OLD], ann, [passage(OLD, "ann@here.test")])
    assert looped([NEW, OLD], ann, [passage(NEW, "ANN@here.test")])


def test_marks_of_others_and_of_other_recipients_are_not() -> None:
    ann = parse_address("ann@here.test")
    assert not looped([NEW, OLD], ann, [passage(b"a secret of a stranger", "ann@here.test")])
    assert not looped([NEW, OLD], ann, [passage(NEW, "bob@here.test")])
    assert not looped([NEW, OLD], ann, [])


def test_two_hundred_deliveries_are_named_and_two_hundred_are_read() -> None:
    # Entry n has the id n in 32 hex digits: what is left out are the last ones.
    entries = [Passage(delivery_id=f"{number:032x}", mark="0" * 16) for number in range(250)]
    named = lines(entries, None)
    assert named.count(b",\r\n\t") == 199
    assert named.endswith(f"{199:032x}-{'0' * 16}\r\n".encode())
    value = b",".join(f"{entry.delivery_id}-{entry.mark}".encode() for entry in entries)
    assert passages([value[:500], value]) == (entries[:10] + entries)[:200]


def test_one_mark_among_those_of_others_is_a_loop() -> None:
    ann = parse_address("ann@here.test")
    assert looped(
        [NEW], ann, [passage(b"a secret of a stranger", "ann@here.test"), passage(NEW, "ann@here.test")]
    )
