"""Whose marks are ours, and of which recipient."""

from forwarder.mail.address import parse_address
from forwarder.mail.trace import Passage, looped, mark

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
