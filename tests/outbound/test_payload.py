"""A message as JSON: parts sorted, names decoded, bombs defused."""

import base64
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from forwarder.mail.address import Path
from forwarder.outbound.payload import message_json

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
RECIPIENT = Path(local="alias", domain="hosted.test")


def told(content: bytes, recipient: Path = RECIPIENT) -> Any:
    made = message_json(content, reverse_path=Path.null(), received_at=AT)
    return json.loads(b"".join(made.to(recipient)))


def test_alternatives_inlines_and_attachments_are_told_apart() -> None:
    content = (
        b"From: =?utf-8?q?J=C3=B6rg?= <j@a.test>\r\nTo: A <a@b.test>, c@d.test\r\nSubject: =?utf-8?b?w7w=?=\r\n"
        b"Received: one\r\nReceived: two\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/mixed; boundary="outer"\r\n\r\npreamble\r\n'
        b"--outer\r\nContent-Type: multipart/alternative; boundary=inner\r\n\r\n"
        b"--inner\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\ncaf=E9\r\n"
        b"--inner\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>caf\xc3\xa9</p>\r\n--inner--\r\n"
        b"--outer\r\nContent-Type: image/png; name=dot.png\r\nContent-ID: <dot@a.test>\r\n"
        b"Content-Disposition: inline\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n"
        b"--outer\r\nContent-Type: application/pdf\r\n"
        b"Content-Disposition: attachment; filename*0*=utf-8''f%C3%BC; filename*1=r.pdf\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nJVBE\r\nRi0=\r\n--outer--\r\nepilogue\r\n"
    )
    body = told(content)
    assert body["from"] == {"name": "Jörg", "email": "j@a.test"}
    assert body["to"] == [{"name": "A", "email": "a@b.test"}, {"name": "", "email": "c@d.test"}]
    assert body["subject"] == "ü"
    assert body["headers"]["Received"] == ["one", "two"]
    assert body["headers"]["MIME-Version"] == "1.0"
    assert body["text"] == "café"
    assert body["html"] == "<p>café</p>"
    assert body["timestamp"] == 1795176000
    (inline,) = body["inlines"]
    assert (inline["type"], inline["name"], inline["cid"]) == ("image/png", "dot.png", "dot@a.test")
    assert base64.b64decode(inline["content"]) == b"\0\1\2"
    (attachment,) = body["attachments"]
    assert attachment["name"] == "für.pdf"
    assert base64.b64decode(attachment["content"]) == b"%PDF-"


@pytest.mark.parametrize(
    ("charset", "octets", "text"),
    [
        ("CP437", b"\x81", "ü"),
        ("tis-620", b"\xa1", "ก"),
        ("windows-874", b"\xa1", "ก"),
        ("Latin-1", b"\xfc", "ü"),
        ("iso8859-1", b"\xfc", "ü"),
        ("ISO_8859-15", b"\xa4", "€"),
        ("cp-1251", b"\xff", "я"),
        ("x-sjis", b"\x87\x40", "①"),
        ("x-gbk", b"\xc4\xe3", "你"),
        ("iso-8859-8-i", b"\xe0", "א"),
        ("utf-7", b"+APw-", "+APw-"),  # not in the table
    ],
)
def test_a_text_is_read_in_its_character_set(charset: str, octets: bytes, text: str) -> None:
    body = told(b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n\r\n" + octets)
    assert body["text"] == text


@pytest.mark.parametrize(
    ("charset", "octets"),
    [
        ("utf-8", "aü日".encode()),
        ("utf-16", "aü日\U0001f600".encode("utf-16-le")),  # without a mark: little-endian
        ("utf-16", b"\xfe\xff" + "aü日".encode("utf-16-be")),
        ("utf-16be", "aü日\U0001f600".encode("utf-16-be")),
        ("iso-2022-jp", "日本 a".encode("iso-2022-jp")),
        ("gb18030", "aü日\U0001f600".encode("gb18030")),
        ("shift_jis", b"\x93\xfa\x96{\xff"),
        ("windows-1252", b"a\x81\xfc"),
    ],
)
def test_a_long_text_is_read_as_in_one_piece(charset: str, octets: bytes) -> None:
    long = octets * 30_000 + octets[:-1]
    head = b"Content-Type: text/plain; charset=" + charset.encode() + b"\r\n\r\n"
    assert told(head + long)["text"] == long.decode(charset, "replace")


def test_what_is_no_text_does_not_hold_the_interpreter() -> None:
    content = b"Content-Type: text/plain; charset=windows-1252\r\n\r\n" + b"\x81" * (16 << 20)
    longest = 0.0
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(message_json, content, reverse_path=Path.null(), received_at=AT)
        seen = time.process_time()
        while not work.done():
            time.sleep(0)  # whoever waits for the interpreter
            seen, before = time.process_time(), seen
            longest = max(longest, seen - before)
    assert longest < 1  # of the processor; in one piece 2 s


def test_fields_folded_with_a_tab_are_told_with_a_space() -> None:
    content = (
        b"Subject: a long one\r\n\tfolded\r\nReferences: <1@x.test>\r\n\t<2@x.test>\r\n"
        b'Content-Type: text/plain;\r\n\tcharset="utf-8"\r\n\r\nx\r\n'
    )
    body = told(content)
    assert body["subject"] == "a long one folded"
    assert body["headers"]["References"] == "<1@x.test> <2@x.test>"
    assert body["headers"]["Content-Type"] == 'text/plain; charset="utf-8"'


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (b"filename=Scan 2026 11.pdf", "Scan 2026 11.pdf"),
        (b"filename= Scan 2026.pdf ;size=3", "Scan 2026.pdf"),
        (b"filename==?utf-8?q?f=C3=BC?= =?utf-8?q?r_A.pdf?=", "für A.pdf"),
        (b'filename="a;b.pdf"; x=y', "a;b.pdf"),
    ],
)
def test_a_file_name_may_hold_blanks_without_quotes(written: bytes, name: str) -> None:
    """As scanners and scripts write it, and mail programs read it; other values end at a blank."""
    content = (
        b"Content-Type: multipart/mixed; boundary=b (a comment)\r\n\r\n--b\r\nContent-Type: application/pdf\r\n"
        b"Content-Disposition: attachment; " + written + b"\r\n\r\nx\r\n--b--\r\n"
    )
    assert [each["name"] for each in told(content)["attachments"]] == [name]


def test_whom_it_came_for_is_told_whatever_hops_before_wrote() -> None:
    content = (
        b"Delivered-To: forged@a.test\r\nTo: list@l.test\r\ndelivered-to: b@c.test\r\nSubject: s\r\n\r\nx\r\n"
    )
    body = told(content, Path(local="jörg", domain="xn--mnchen-3ya.test"))
    headers = {"Delivered-To": "jörg@xn--mnchen-3ya.test", "To": "list@l.test", "Subject": "s"}
    assert body["headers"] == headers
    assert body["to"] == [{"name": "", "email": "list@l.test"}]


@pytest.mark.parametrize("end", [b" ", b"\t", b"\x1c", b"\x1f"])
def test_whom_it_came_for_is_told_whatever_stands_before_a_colon(end: bytes) -> None:
    """Some of these are blanks for Python's texts alone."""
    body = told(b"delivered-to" + end + b": a@b.test\r\nDelivered-To" + end + b": c@d.test\r\n\r\nx\r\n")
    assert list(body["headers"]) == ["Delivered-To"]
    assert isinstance(body["headers"]["Delivered-To"], str)


def test_what_a_message_does_not_say_is_an_empty_text() -> None:
    body = told(b"From: a@b.test\r\n\r\nhello\r\n")
    assert (body["subject"], body["message-id"], body["date"]) == ("", "", "")


def test_a_plain_message_has_its_text_and_nothing_else() -> None:
    body = told(b"Subject: s\r\n\r\nhello\r\n")
    assert (body["text"], body["html"], body["attachments"]) == ("hello\r\n", None, [])


@pytest.mark.parametrize(
    ("first", "second", "text", "html"),
    [
        (b"text/html", b"text/plain\r\nContent-Disposition: inline; filename=file", None, "body"),
        (b"text/plain", b"text/html; name=file\r\nContent-Disposition: inline", "body", None),
        (b"text/plain", b"text/plain; name=file", "body", None),
    ],
)
def test_a_file_shown_inline_is_a_file_and_no_text_of_the_message(
    first: bytes, second: bytes, text: str | None, html: str | None
) -> None:
    parts = (b"Content-Type: " + kind + b"\r\n\r\n" for kind in (first, second))
    content = b"--b\r\n%bbody\r\n--b\r\n%bof a file\r\n--b--\r\n" % tuple(parts)
    body = told(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + content)
    assert (body["text"], body["html"]) == (text, html)
    [(name, octets)] = [(one["name"], one["content"]) for one in (*body["attachments"], *body["inlines"])]
    assert (name, base64.b64decode(octets)) == ("file", b"of a file")
    assert all(one["cid"] == "" for one in body["inlines"])


@pytest.mark.parametrize(
    "content",
    [
        b"Content-Type: text/plain; name=mail.txt\r\n\r\nhello\r\n",
        b"Content-Type: text\r\n\r\nhello\r\n",  # RFC 2045 5.2
        *(
            b"Content-Type: multipart/" + kind + b"; boundary=b\r\n\r\n--b\r\n"
            b"Content-Type: text/plain; name=t.txt\r\n\r\nhello\r\n\r\n--b--\r\n"
            for kind in (b"alternative", b"related", b"signed")
        ),
    ],
)
def test_the_text_of_a_message_is_its_text_whatever_its_part_is_called(content: bytes) -> None:
    body = told(content)
    assert (body["text"], body["attachments"]) == ("hello\r\n", [])


def test_a_text_file_attached_is_not_the_message_s_text() -> None:
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: text/plain\r\nContent-Disposition: attachment; filename=notes.txt\r\n\r\nnotes\r\n"
        b"--b\r\nContent-Type: text/plain\r\n\r\nthe text\r\n--b--\r\n"
    )
    body = told(content)
    assert body["text"] == "the text"
    assert body["attachments"][0]["name"] == "notes.txt"


def test_a_boundary_that_begins_like_another_is_another() -> None:
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: multipart/alternative; boundary=bb\r\n\r\n--bb\r\n\r\ninner\r\n--bb--\r\n\r\n--b--\r\n"
    )
    assert told(content)["text"] == "inner"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"no header at all",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b\r\n--b--\r\n",
        b"Content-Type: text/plain; charset=x-unknown\r\n\r\n\xff\xfe",
        b"Content-Transfer-Encoding: base64\r\n\r\n!!!A",
        b"From: " + b"(" * 3000 + b"\r\n\r\n",
        b"To: " + b"a@b.test, " * 100_000 + b"\r\n\r\n",
        b"__proto__: x\r\n__class__: y\r\n\xff\xff: z\r\n\r\n",
        b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_no_bytes_are_too_strange(content: bytes) -> None:
    assert isinstance(told(content), dict)


def test_deep_nesting_and_many_parts_are_bounded() -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level)
        for level in range(1200)
    )
    many = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 10_000 + b"--b--\r\n"
    began = time.process_time()
    assert len(told(deep)["attachments"]) == 1
    assert len(told(many)["attachments"]) < 600
    assert time.process_time() - began < 1


def test_a_nested_message_is_not_copied_at_every_level() -> None:
    content = b"Content-Type: application/octet-stream\r\n\r\n" + b"x" * 2_000_000
    for level in range(20):
        head = b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level)
        content = head + content + b"\r\n--b%d--\r\n" % level
    tracemalloc.start()
    try:
        made = message_json(content, reverse_path=Path.null(), received_at=datetime.now(UTC))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    body = json.loads(b"".join(made.to(Path.null())))
    assert len(body["attachments"][0]["content"]) == 2_666_668
    assert peak < 8 * len(content)


def multipart(boundary: bytes, *parts: bytes, said: bytes = b"", more: bytes = b"") -> bytes:
    head = (
        b"Subject: x\r\nContent-Type: multipart/mixed; boundary="
        + (said or b'"' + boundary + b'"')
        + b"\r\n"
        + more
    )
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return head + b"\r\n" + body + b"--" + boundary + b"--\r\n"


HELLO = b"Content-Type: text/plain\r\n\r\nhello"


def test_a_boundary_that_ends_in_a_blank_is_meant_without_it() -> None:
    assert told(multipart(b"B", HELLO, said=b'"B "'))["text"] == "hello"


@pytest.mark.parametrize(
    "content",
    [
        multipart(b"B", HELLO, said=b'"another"'),
        b'Subject: x\r\nContent-Type: multipart/mixed; boundary="B"\r\n\r\nhello, cut off before its parts\r\n',
        b'Subject: x\r\nContent-Type: multipart/mixed; boundary="B"\r\n\r\nhello\r\n--B--\r\n',
    ],
)
def test_a_body_whose_parts_are_nowhere_is_told_as_it_is(content: bytes) -> None:
    message = told(content)
    assert "hello" in message["text"]
    assert (message["inlines"], message["attachments"]) == ([], [])


def test_a_nested_body_whose_parts_are_nowhere_is_an_attachment() -> None:
    inner = b'Content-Type: multipart/mixed; boundary="C"\r\n\r\nno parts here'
    message = told(multipart(b"B", HELLO, inner))
    (kept,) = message["attachments"]
    assert (message["text"], kept["type"]) == ("hello", "application/octet-stream")
    assert base64.b64decode(kept["content"]) == b"no parts here"


def test_what_lies_beyond_the_parts_that_are_looked_at_is_one_attachment() -> None:
    files = [
        b"Content-Type: application/pdf; name=f%d.pdf\r\nContent-Disposition: attachment\r\n\r\n%d" % (n, n)
        for n in range(601)
    ]
    message = told(multipart(b"B", *files))
    *known, rest = message["attachments"]
    assert [each["name"] for each in known] == [f"f{n}.pdf" for n in range(len(known))]
    assert len(known) > 400
    beyond = base64.b64decode(rest["content"])
    assert rest["type"] == "application/octet-stream"
    assert beyond.startswith(files[len(known)])
    assert files[-1] in beyond


@pytest.mark.parametrize("junk", [b"\xff", b"Q!"])
def test_base64_that_is_junk_is_skipped_at_once(junk: bytes) -> None:
    content = (
        b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"JVBE\r\n" + junk * (16 << 20)
    )
    began = time.process_time()
    (attachment,) = told(content)["attachments"]
    assert time.process_time() - began < 1  # octet by octet 2 s, the interpreter locked
    assert base64.b64decode(attachment["content"])[:3] == b"%PD"
