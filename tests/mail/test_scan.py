"""Searching by RE2, held against the plain searches of the standard library."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.scan import first, literally

LITERALS = (b"\r\n.\r\n", b"\r\n.", b"  ", b" \r", b".", b"$^", b"\xff\0")
pieces = st.lists(st.sampled_from([b"\r", b"\n", b".", b" ", b"a", b"\xff", b"\0", b"$", b"^"]), max_size=40)
texts = pieces.map(b"".join)


@pytest.mark.parametrize("literal", LITERALS)
@given(text=texts, start=st.integers(0, 45))
def test_octets_are_found_where_they_first_stand(literal: bytes, text: bytes, start: int) -> None:
    find = literally(literal)
    assert find(text) == text.find(literal)
    if start <= len(text):
        assert find(text, start) == text.find(literal, start)
    assert find(bytearray(text)) == text.find(literal)


@given(text=texts)
def test_an_expression_is_about_octets(text: bytes) -> None:
    found = re.search(rb"\r(?!\n)", text)
    assert first(rb"\r(?:[^\n]|\z)")(text) == (-1 if found is None else found.start())


def test_the_edges() -> None:
    find = literally(b"\r\n.\r\n")
    assert find(b"") == -1
    assert find(b"\r\n.\r\n") == 0
    assert find(b"x" * 100_000 + b"\r\n.\r\n" + b"\r\n.\r\n") == 100_000
    assert first(rb"\r(?:[^\n]|\z)")(b"\r\n" * 5 + b"\r") == 10
    assert first(rb"\r(?:[^\n]|\z)")(b"\xe4\r\xff") == 1
