"""Canonical forms, against RFC 6376's example and against dkimpy's algorithms."""

import hashlib
import time
import tracemalloc

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail import canonical
from forwarder.mail.canonical import Canonical, Form, relaxed_field, relaxed_value, split_fields

# Pieces that make canonicalisation work hard, with nothing a CRLF-clean content cannot hold.
PIECES = st.lists(
    st.sampled_from(
        [b" ", b"  ", b"\t", b"\r\n", b"\r\n\r\n", b"a", b"B:", b".", b"\xe9\xff", b"\x0b", b"\0"]
    ),
    max_size=40,
).map(b"".join)


def test_the_example_of_rfc_6376() -> None:
    # Section 3.4.5; <SP>, <HTAB> and <CRLF> written out.
    message = Canonical(b"A: X\r\nB : Y\t\r\n\tZ  \r\n\r\n C \r\nD \t E\r\n\r\n\r\n")
    assert [relaxed_field(raw) for _, raw in message.fields] == [b"a:X", b"b:Y Z"]
    assert message.body_hash(Form.RELAXED) == hashlib.sha256(b" C\r\nD E\r\n").digest()
    assert message.body_hash(Form.SIMPLE) == hashlib.sha256(b" C \r\nD \t E\r\n").digest()


def test_empty_bodies() -> None:
    for content in (b"A: b\r\n\r\n", b"A: b\r\n", b"A: b\r\n\r\n\r\n\r\n", b"\r\n", b""):
        assert Canonical(content).body_hash(Form.RELAXED) == hashlib.sha256(b"").digest()
        assert Canonical(content).body_hash(Form.SIMPLE) == hashlib.sha256(b"\r\n").digest()


# The lines of the head's end are not the body's, however many empty lines are taken at a time.
@pytest.mark.parametrize("lines", [1, 2046, 2047, 2048, 2049, 4095, 4096])
def test_empty_lines_alone_are_an_empty_body(lines: int) -> None:
    message = Canonical(b"A: b\r\n\r\n" + b"\r\n" * lines)
    assert message.body_hash(Form.RELAXED) == hashlib.sha256(b"").digest()
    assert message.body_length(Form.RELAXED) == 0
    assert message.body_hash(Form.SIMPLE) == hashlib.sha256(b"\r\n").digest()
    assert message.body_length(Form.SIMPLE) == 2


def test_a_body_that_would_be_empty_without_its_blanks() -> None:
    assert Canonical(b"\r\n \t\r\n \r\n").body_hash(Form.RELAXED) == hashlib.sha256(b"").digest()


@given(PIECES)
def test_bodies_hash_as_dkimpy_hashes_them(body: bytes) -> None:
    on_the_wire = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    for form, oracle in ((Form.RELAXED, Relaxed), (Form.SIMPLE, Simple)):
        expected = oracle.canonicalize_body(on_the_wire)
        message = Canonical(b"From: a@b\r\n\r\n" + body)
        assert message.body_hash(form) == hashlib.sha256(expected).digest()
        assert message.body_length(form) == len(expected)


@given(PIECES, st.integers(1, 20))
def test_bodies_hash_alike_wherever_they_are_cut(body: bytes, octets: int) -> None:
    content = b"From: a@b\r\n\r\n" + body
    whole, cut = Canonical(content), Canonical(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical, "_BLOCK", octets)
        patch.setattr(canonical, "_MANY_CRLF", b"\r\n" * 3)
        found = cut.body_hash(Form.RELAXED), cut.body_length(Form.RELAXED)
    assert found == (whole.body_hash(Form.RELAXED), whole.body_length(Form.RELAXED))


@pytest.mark.parametrize(
    "lines",
    [b"A" * 76 + b"\r\n", b"\r\n", b" \r\n", b"two  blanks, and one at the end \r\n", b"\t" * 900 + b"\r\n"],
    ids=["base64", "empty", "blank", "text", "tabs"],
)
def test_a_large_body_is_not_copied_to_be_relaxed(lines: bytes) -> None:
    """A part's folded Content-Type has a tab: nearly every message with a file attached."""
    content = b"From: a@b\r\n\r\n--x\r\nContent-Type: text/plain;\r\n\tname=x\r\n\r\n" + lines * (
        8_000_000 // len(lines)
    )
    message = Canonical(content)
    tracemalloc.start()
    message.body_hash(Form.RELAXED)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4_000_000


@given(PIECES)
def test_field_values_read_as_dkimpy_reads_them(value: bytes) -> None:
    value = value.replace(b"\r\n", b"\r\n ").replace(b"\x0b", b"").replace(b"\0", b"")
    [(name, canonical)] = Relaxed.canonicalize_headers([(b"Subject", value + b"\r\n")])
    assert relaxed_field(b"Subject:" + value + b"\r\n") + b"\r\n" == name + b":" + canonical


@given(st.binary(max_size=300))
def test_fields_are_the_head_whatever_it_holds(head: bytes) -> None:
    joined = b"".join(raw for _, raw in split_fields(head))
    assert joined.replace(b"\r\n", b"") == head.replace(b"\r\n", b"")


def test_a_line_that_is_no_field_is_selected_by_no_name() -> None:
    message = Canonical(
        b" From: a@b\r\nno colon\r\n folded: x\r\nFrom\0: c@d\r\n:\r\nFr\rom: e@f\r\nSubject : x\r\n\r\n"
    )
    assert list(message.by_name) == [b"from\0", b"subject"]
    assert message.instances(b"from") == []
    assert message.instances(b"") == []
    assert message.instances(b"subject") == [b"Subject : x\r\n"]


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"Subject \t:  a  b\t c \r\n", b"subject:a b c"),
        (b"Subject:\r\n a\r\n\t b\r\n", b"subject:a b"),
        (b"Subject: a\x0b  b\x0c\r\n", b"subject:a\x0b b\x0c"),  # VT and FF are no white space to DKIM
        (b"Subject: a\r  b\n\r\n", b"subject:a\r b\n"),  # nor is half a line end
        (b"Subject:\r\n", b"subject:"),
        (b"no colon", b"no colon:"),
    ],
)
def test_relaxed_fields(raw: bytes, canonical: bytes) -> None:
    assert relaxed_field(raw) == canonical
    assert relaxed_value(raw) == canonical.partition(b":")[2]


def test_spaces_of_a_body() -> None:
    for size in (1, 30_000):  # a small and a large text
        body = (b"a" + b" " * 200 + b"b   c\t\t \r\n   d \rx  \r\n") * size
        expected = b"a b c\r\n d \rx\r\n" * size
        assert Canonical(b"A: b\r\n\r\n" + body).body_hash(Form.RELAXED) == hashlib.sha256(expected).digest()


def test_runs_of_spaces_may_be_of_any_length() -> None:
    for length in (1 << 18, (1 << 18) + 1, (1 << 20) + 3):
        body = b"a" + b" " * length + b"b\r\n"
        assert Canonical(b"\r\n" + body).body_hash(Form.RELAXED) == hashlib.sha256(b"a b\r\n").digest()


def test_a_space_before_half_a_line_end_stays() -> None:
    content = b"A: b\r\n\r\na \rb \nc\r\n"
    assert Canonical(content).body_hash(Form.RELAXED) == hashlib.sha256(content[8:]).digest()


def test_every_step_is_linear() -> None:
    bombs = (
        b" " * (8 << 20),
        b"a \t " * (2 << 20),
        b"\r\n" * (4 << 20) + b"\r",
        b" \r\n" * (3 << 20),
    )
    for bomb in bombs:
        begun = time.process_time()
        Canonical(b"A: b\r\n\r\n" + bomb).body_hash(Form.RELAXED)
        assert time.process_time() - begun < 1
    begun = time.process_time()
    fields = Canonical(b"A: b\r\n" * 50_000 + b"B:" + b" x\r\n" * 200_000 + b"\r\n").fields
    assert len(fields) == 50_001
    assert time.process_time() - begun < 1
