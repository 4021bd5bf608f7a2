"""Contents: hand-written heads, hostile ones, and equality with slower ways of saying the same."""

import email.header
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail import content, display
from forwarder.mail.content import HeadFault
from forwarder.mail.words import decode_words, dots_closed, printable

HEAD = (
    b"Received: from a by b;\r\n Mon, 2 Mar 2026\r\n"
    b"RECEIVED : from c by d\r\n"
    b"From: Ann Lee <ann@example.org>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\tund mehr\r\n"
    b"X-Received: not counted\r\n"
)


def test_split() -> None:
    head, body = content.split(HEAD + b"\r\nbody\r\n\r\nmore")
    assert (head, bytes(body)) == (HEAD, b"body\r\n\r\nmore")
    head, body = content.split(b"\r\nbody")
    assert (head, bytes(body)) == (b"", b"body")
    head, body = content.split(HEAD)
    assert (head, bytes(body)) == (HEAD, b"")
    head, body = content.split(HEAD + b"\r\n")
    assert (head, bytes(body)) == (HEAD, b"")
    assert content.split(b"")[0] == b""


def test_headers() -> None:
    found = content.headers(HEAD)
    assert [header.name for header in found] == [b"received", b"received", b"from", b"subject", b"x-received"]
    assert b"".join(header.raw for header in found) == HEAD
    assert found[0].value == b" from a by b;\r\n Mon, 2 Mar 2026\r\n"
    assert len(content.headers(b"a: b\r\n" * 5000)) == 2000


def test_first_and_counts() -> None:
    assert content.first(HEAD, b"subject") == "Grüße und mehr"
    assert content.first(HEAD, b"from") == "Ann Lee <ann@example.org>"
    assert content.first(HEAD, b"to") is None
    assert content.first_raw(HEAD, b"received") == b" from a by b;\r\n Mon, 2 Mar 2026\r\n"
    assert content.count_received(HEAD) == 2
    assert content.count_fields(b"From: a\r\nfrom : b\r\nX-From: c\r\nFrom2: d\r\n", b"from") == 2


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (HEAD.replace(b"RECEIVED :", b"Received:"), None),
        (b"", None),
        (b" From: x\r\n", HeadFault.FOLDED_FIRST),
        (b"\tFrom: x\r\n", HeadFault.FOLDED_FIRST),
        (b"From\0: x\r\n", HeadFault.NUL),
        (b"From : x\r\n", HeadFault.NO_FIELD),
        (b"From: x\r\nno field at all\r\nTo: y\r\n", HeadFault.NO_FIELD),
        (b"From: x\r\n: y\r\n", HeadFault.NO_FIELD),
        ("Fröm: x\r\n".encode(), HeadFault.NO_FIELD),
    ],
)
def test_malformed_heads(head: bytes, fault: HeadFault | None) -> None:
    assert content.malformed_head(head) is fault


@pytest.mark.parametrize(
    "text",
    [b"a\nb", b"a\rb", b"\n.\r\n", b"a\r\r\nb", b"a\r\n\nb", b"\r", b"a\r\nb\r", b"\n\r", b"a\r\n\rb\n"],
)
def test_bare_newlines(text: bytes) -> None:
    assert content.has_bare_newline(text)
    assert not content.has_bare_newline(content.normalize_newlines(text))


def test_normalising() -> None:
    assert content.normalize_newlines(b"a\n.\nMAIL\n.\r\nb\r.\rc") == b"a\r\n.\r\nMAIL\r\n.\r\nb\r\n.\r\nc"
    assert content.normalize_newlines(b"a\r\nb\r\n") == b"a\r\nb\r\n"


@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"x", b"\r").replace(b"y", b"\n")))
def test_newlines_as_a_regular_expression_would_say_it(raw: bytes) -> None:
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", raw) is not None
    assert content.has_bare_newline(raw) is bare
    assert content.normalize_newlines(raw) == re.sub(rb"\r\n|\r|\n", b"\r\n", raw)


@pytest.mark.parametrize("before", [128 * 1024 - 2, 128 * 1024 - 1, 128 * 1024, 256 * 1024 - 1])
@pytest.mark.parametrize(
    ("ends", "bare"),
    [
        (b"\r\n", False),
        (b"\r\n\r\n", False),
        (b"\n", True),
        (b"\r", True),
        (b"\rx\r\n", True),
        (b"\r\n\n", True),
    ],
)
def test_bare_newlines_of_a_long_text_wherever_it_is_cut_in_blocks(
    before: int, ends: bytes, bare: bool
) -> None:
    for text in (b"x" * before + ends, b"x" * before + ends + b"y" * 100):
        assert content.has_bare_newline(text) is bare


@pytest.mark.parametrize(
    ("text", "too_long"),
    [
        (b"", False),
        (b"x" * 998 + b"\r\n", False),
        (b"x" * 999 + b"\r\n", True),
        (b"x" * 998, False),
        (b"x" * 999, True),
        (b"a\r\n" + b"x" * 998 + b"\r\nb\r\n", False),
        (b"a\r\n" + b"x" * 999 + b"\r\nb\r\n", True),
        (b"a\r\n" * 1000 + b"x" * 1_000_000 + b"\r\n", True),
        (b"\r\n" * 100_000, False),
    ],
)
def test_long_lines(text: bytes, too_long: bool) -> None:
    assert content.line_too_long(text) is too_long


@given(st.lists(st.integers(0, 12), max_size=12), st.booleans())
def test_long_lines_as_splitting_would_say_it(lengths: list[int], ended: bool) -> None:
    text = b"\r\n".join(b"x" * length for length in lengths) + (b"\r\n" if ended else b"")
    assert content.line_too_long(text, 8) is any(len(line) > 8 for line in text.split(b"\r\n"))


def test_prepend() -> None:
    assert content.prepend(b"C: 3\r\n\r\nx", b"A: 1\r\n", b"B: 2\r\n") == b"A: 1\r\nB: 2\r\nC: 3\r\n\r\nx"


def test_a_field_folded_with_a_tab_is_told_with_a_space() -> None:
    head = b'Subject: folded\r\n\twith a tab\r\nTo: "Hendricks,\tRichard"\r\n\t<hook@x.org>\r\n'
    assert content.first(head, b"subject") == "folded with a tab"
    assert display.mailbox(content.first_raw(head, b"to") or b"") == ("hook@x.org", "Hendricks, Richard")


@pytest.mark.parametrize(
    "line", [b"From a@out.test Sat Nov 28 12:00:00 2026", b">From - Sat Nov 28 12:00", b">>From x: 12:00"]
)
def test_a_first_line_of_a_mailbox_file_becomes_a_field(line: bytes) -> None:
    rest = b"\r\nFrom: a@out.test\r\n\r\nFrom here on\r\n"
    assert content.mbox_line_as_field(line + rest) == b"X-Mailbox-Line: " + line + rest


def test_each_first_line_of_a_mailbox_file_becomes_a_field() -> None:
    """One that was put into a mailbox twice has two; Postfix makes a field of each."""
    first, second = b"From - Sat Nov 28 12:00:00 2026\r\n", b">From ann@out.test Fri Nov 27 11:00:00 2026\r\n"
    rest = b"Received: x\r\nFrom: a@out.test\r\n\r\nFrom here on 12:00\r\n"
    made = b"X-Mailbox-Line: " + first + b"X-Mailbox-Line: " + second + rest
    assert content.mbox_line_as_field(first + second + rest) == made
    assert content.mbox_line_as_field(first * 10 + rest).count(b"X-Mailbox-Line: ") == 10


@pytest.mark.parametrize(
    "text",
    [
        b"From: x\r\nTo: 12:00\r\n\r\n",
        b"From a 12:00\r\nFrom b 12:00\r\n\r\nx\r\n",
        b"From a 12:00\r\nFrom b at noon\r\nTo: y\r\n",
        b"From a 12:00\r\n" * 11 + b"To: y\r\n",
        b"From  : 12:00\r\nTo: y\r\n\r\n",
        b"From \t: 12:00\r\nTo: y\r\n\r\n",
        b"\r\nFrom 12:00\r\nTo: y\r\n",
        b"Fromage 12:00\r\nTo: y\r\n",
        b"From now on we meet at five\r\nBring: cake\r\n\r\nBye\r\n",
        b"From server1 at 12:00: disk full\r\n",
        b"From 12:00 on\r\nnothing works\r\n",
        b"From \r\n12:00\r\nTo: y\r\n",
        b"",
    ],
)
def test_what_is_a_field_or_text_stays(text: bytes) -> None:
    assert content.mbox_line_as_field(text) is text


@pytest.mark.parametrize(
    "text",
    [
        b"just text\r\nmore: text\r\n",
        b"no colon at all",
        b" Subject: x\r\n\r\nbody\r\n",
        b"\tDisk is full\r\n",
        b"two words: x\r\n",
        b": x\r\n",
        b"S\xc3\xbcbject: x\r\n",
        b"\xef\xbb\xbfSubject: x\r\n\r\n",
        b"\0Subject: x\r\n",
    ],
)
def test_before_a_first_line_that_is_no_field_an_empty_line_is_put(text: bytes) -> None:
    assert content.headless_as_body(text) == b"\r\n" + text


@pytest.mark.parametrize(
    "text", [b"", b"\r\n", b"\r\ntext\r\n", b"Subject: x", b"Subject \t: x\r\nno field\r\n", b"X-A:\r\n"]
)
def test_a_head_or_its_end_stays_as_it_is(text: bytes) -> None:
    assert content.headless_as_body(text) is text


def test_a_field_folded_millions_of_times_is_found_in_one_go() -> None:
    head = b"X: a\r\n" + b" b\r\n" * 4_000_000 + b"Y: c\r\n"
    began = time.process_time()
    first, second = content.headers(head)
    assert content.malformed_head(head) is None
    assert time.process_time() - began < 0.8
    assert (len(first.raw), second.raw) == (len(head) - 6, b"Y: c\r\n")


def test_a_first_line_full_of_times_is_read_once() -> None:
    """It is looked at before its length is: read once more for each time, this one would take hours."""
    line = b"From " + b"00:00" * 200_000
    began = time.process_time()
    assert content.mbox_line_as_field(line + b"\r\n\r\nx\r\n") == line + b"\r\n\r\nx\r\n"
    assert content.mbox_line_as_field(line + b"\r\nA: b\r\n").startswith(b"X-Mailbox-Line: From 00:00")
    text = (line + b"\r\n") * 9 + b"x\r\n"
    assert content.mbox_line_as_field(text) is text
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("head", "too_large"),
    [
        (b"X: y\r\n" * 20_000, False),
        (b"X: y\r\n" * 31_000, True),
        (b"To: " + b"a@x.org,\r\n " * 100_000 + b"b@x.org\r\n", False),
        (b"To: " + b"\r\n " * 160_000 + b"b@x.org\r\n", True),
        (b"X: " + b"y" * (5 << 20) + b"\r\n", True),
        (b"Subject: x\r\n", False),
        (b"", False),
    ],
)
def test_heads_that_are_too_large(head: bytes, too_large: bool) -> None:
    body = b"\r\n" * 3_000_000
    assert content.head_too_large(head + b"\r\n" + body) is too_large
    if head:
        assert content.head_too_large(head) is too_large


BOMBS = [
    b"From: " + b"(" * 3000 + b"\r\n",
    b"From: " + b'"' * 30_001 + b"\r\n",
    b"To: " + b"a@x.org, " * 100_000 + b"\r\n",
    b"Subject: " + b"=?utf-8?q?" * 100_000 + b"\r\n",
    b"Subject: " + b"=?utf-8?b?" + b"A" * 1_000_000 + b"?=\r\n",
    b"Subject:" + b"\r\n " * 300_000 + b"\r\n",
    b"X: y\r\n" * 20_000,
    b"__proto__: 1\r\n__class__: 2\r\n" + b"n" * 1000 + b": 3\r\n",
    b" From: x\r\n",
    b"From\0: x\r\n",
    b"From:\r\n \r\n \r\n",
    b"From : x\r\n",
    b"\xff\xfe: \x80\r\n",
    b"\r\n",
    b":",
]


@pytest.mark.parametrize("head", BOMBS)
def test_no_head_raises_or_takes_long(head: bytes) -> None:
    began = time.process_time()
    content.headers(head)
    content.malformed_head(head)
    content.count_received(head)
    for name in (b"from", b"to", b"subject"):
        shown = content.first(head, name)
        assert shown is None or (shown.isprintable() and len(shown.encode()) <= 1024)
        display.mailboxes(content.first_raw(head, name) or b"")
    assert time.process_time() - began < 1


@given(st.binary(max_size=120).map(lambda raw: raw.replace(b"\x01", b"\r\n").replace(b"\x02", b"=?utf-8?q?")))
def test_any_octets_are_a_content(raw: bytes) -> None:
    head, body = content.split(raw)
    assert len(raw) - len(head) - len(body) in (0, 2)
    assert b"".join(header.raw for header in content.headers(head)) == head
    content.malformed_head(head)
    for header in content.headers(head):
        for address, name in display.mailboxes(header.value):
            assert (address or name or "").isprintable()
        if header.name:
            assert (content.first(head, header.name) or "").isprintable()


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("plain", "plain"),
        ("=?us-ascii?q?a?=", "a"),
        ("=?ISO-8859-1?Q?a_b=E4?= c", "a bä c"),
        ("x =?utf-8?q?a?= =?utf-8?q?b?= y =?utf-8?q?c?=", "x ab y c"),
        ("=?utf-8?b?w7w=?=  =?iso-8859-1?q?=FC?=", "üü"),
        ("=?utf-8?q?=C3?= =?utf-8?q?=BC?=", "ü"),
        ("=?utf-8*de?q?=C3=BC?=", "ü"),
        ("=?iso8859-1?q?caf=E9?= =?ANSI_X3.4-1968?q?=3F?=", "café?"),
        ("=?x-unknown?q?a?= =?utf-8?q?b?=", "=?x-unknown?q?a?= b"),
        ("=?utf-8?q?b?= =?x-unknown?q?a?= z", "b =?x-unknown?q?a?= z"),
        ("=?utf-8?b?!!!?=", ""),
        ("=?utf-8?b?A?=", "=?utf-8?b?A?="),
        ("=?utf-8?q?=ZZ?=", "=ZZ"),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?", "=?"),
        ("=?shift_jis?b?k/qWew==?=", "日本"),
        ("=?windows-874?q?=A1=E0=94?=", "กเ\u201d"),
        ("=?utf-8?q?a=0D=0ABcc:_x?=", "a\r\nBcc: x"),
    ],
)
def test_encoded_words(text: str, decoded: str) -> None:
    assert decode_words(text) == decoded


letters = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@given(
    st.lists(letters, min_size=1, max_size=4),
    st.sampled_from(["utf-8", "iso-8859-1"]),
)
def test_words_another_implementation_wrote(texts: list[str], charset: str) -> None:
    text = "".join(texts).encode(charset, "ignore").decode(charset)
    try:
        encoded = email.header.Header(text, charset, maxlinelen=60).encode(linesep="")
    except (UnicodeError, email.errors.HeaderParseError):
        return
    if "=?" in encoded and "=?" not in text:
        assert decode_words(encoded) == text


@given(st.text(alphabet=". \t\x0b\u00a0a@", max_size=20))
def test_dots_closed_as_splitting_would_say_it(text: str) -> None:
    first, *others = text.split(".")
    closed = [first.rstrip() if others else first]
    closed += [piece.strip() for piece in others[:-1]] + [piece.lstrip() for piece in others[-1:]]
    assert dots_closed(text) == ".".join(closed)


def test_dots_closed_in_a_long_row_of_blanks() -> None:
    began = time.process_time()
    assert dots_closed("a" + "\x0b" * 1_000_000 + "b .c") == "a" + "\x0b" * 1_000_000 + "b.c"
    assert time.process_time() - began < 1


def test_asking_for_unknown_character_sets_leaves_no_trace() -> None:
    import encodings

    before = len(encodings._cache)  # type: ignore[attr-defined]
    for number in range(100):
        decode_words(f"=?x-{number}?q?a?=")
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[2J\0", "\\x1b[2J\\x00"),
        ("\u2028\u202e\ud800", "\\u2028\\u202e\\ud800"),
        ("{0.__class__}%s%n", "{0.__class__}%s%n"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=200), st.integers(8, 120))
def test_printable_is_printable_and_bounded(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown.encode()) <= limit
    if text.isprintable() and len(text.encode()) <= limit:
        assert shown == text
