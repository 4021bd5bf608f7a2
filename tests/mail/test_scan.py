"""Searching by RE2, held against the plain searches of the standard library."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.scan import LARGE, literally

LITERALS = (b"\r\n.\r\n", b"\r\n.", b"  ", b" \r", b".", b"$^", b"\xff\0")
pieces = st.lists(st.sampled_from([b"\r", b"\n", b".", b" ", b"a", b"\xff", b"\0", b"$", b"^"]), max_size=40)
texts = pieces.map(b"".join)


padding = st.sampled_from([0, LARGE])  # what follows, so that either way of searching is taken


@pytest.mark.parametrize("literal", LITERALS)
@given(text=texts, start=st.integers(0, 45), more=padding)
def test_octets_are_found_where_they_first_stand(literal: bytes, text: bytes, start: int, more: int) -> None:
    find = literally(literal)
    text += b"x" * more
    assert find(text) == text.find(literal)
    if start <= len(text):
        assert find(text, start) == text.find(literal, start)
    assert find(bytearray(text)) == text.find(literal)


def test_the_edges() -> None:
    find = literally(b"\r\n.\r\n")
    assert find(b"") == -1
    assert find(b"\r\n.\r\n") == 0
    assert find(b"x" * 100_000 + b"\r\n.\r\n" + b"\r\n.\r\n") == 100_000
    assert find(b"\xe4" * LARGE + b"\r\n.\r\n") == LARGE
