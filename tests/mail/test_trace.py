"""Whose marks are ours, of which recipient, and what they prove."""

import pytest

from forwarder.mail.address import parse_address
from forwarder.mail.trace import MOST_OCTETS, Passage, certain, is_among, lines, mark, passages

ID = "0" * 32
OLD, NEW = b"a secret of last year", b"a secret of this year"


def marked(secret: bytes, address: str) -> set[str]:
    return {mark(secret, parse_address(address))}


def test_a_mark_of_ours_is_known_in_whatever_case_and_after_a_change_of_the_secret() -> None:
    ann = parse_address("Ann@here.test")
    assert is_among([NEW, OLD], ann, marked(OLD, "ann@here.test"))
    assert is_among([NEW, OLD], ann, marked(NEW, "ANN@here.test"))


def test_marks_of_others_and_of_other_recipients_are_not() -> None:
    ann = parse_address("ann@here.test")
    assert not is_among([NEW, OLD], ann, marked(b"a secret of a stranger", "ann@here.test"))
    assert not is_among([NEW, OLD], ann, marked(NEW, "bob@here.test"))
    assert not is_among([NEW, OLD], ann, set())


def test_two_hundred_deliveries_are_named_and_two_hundred_are_read() -> None:
    # Entry n has the id n in 32 hex digits: what is left out are the last ones.
    entries = [Passage(delivery_id=f"{number:032x}", mark="0" * 16) for number in range(250)]
    named = lines(entries, None)
    assert named.count(b",\r\n\t") == 199
    assert named.endswith(f"{199:032x}-{'0' * 16}\r\n".encode())
    assert passages(named) == entries[:200]
    assert len(named) < MOST_OCTETS
    value = b",".join(f"{entry.delivery_id}-{entry.mark}".encode() for entry in entries)
    assert passages(value) == entries[:200]


def field(*marks: str) -> bytes:
    return b",\r\n\t".join(f"{ID}-{each * 16}".encode() for each in marks)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], ""),
        ([b"no entry"], ""),
        ([field("a")], "a"),
        ([field("a", "a")], "a"),  # two deliveries of one recipient
        ([field("a", "b")], ""),  # it may have come through either
        ([field("a", "b"), field("b", "c")], "b"),
        ([field("a", "b"), field("c")], "c"),
        ([field("a", "b"), field("a", "b")], "ab"),
    ],
)
def test_who_is_named_alone_or_twice_has_forwarded_it_for_certain(fields: list[bytes], found: str) -> None:
    assert certain(fields) == {each * 16 for each in found}
