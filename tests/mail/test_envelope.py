"""MAIL and RCPT: every parameter, every refusal, and nothing but refusals for any octets."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.address import Path
from forwarder.mail.envelope import RequestError, parse_mail_args, parse_rcpt_args
from forwarder.mail.reply import Reply

LIMIT = 26_214_400


def mail_refusal(arguments: bytes, *, auth_offered: bool = False) -> Reply:
    with pytest.raises(RequestError) as caught:
        parse_mail_args(arguments, size_limit=LIMIT, auth_offered=auth_offered)
    return caught.value.reply


def rcpt_refusal(arguments: bytes, *, smtputf8: bool = False) -> Reply:
    with pytest.raises(RequestError) as caught:
        parse_rcpt_args(arguments, smtputf8=smtputf8)
    return caught.value.reply


def test_mail_plain_and_with_everything() -> None:
    command = parse_mail_args(b"FROM:<a@x.org>", size_limit=LIMIT)
    assert command.path == Path(local="a", domain="x.org")
    assert command.smtputf8 is False
    command = parse_mail_args(
        "from: <jörg@x.org> size=26214400 Body=8bitMIME smtputf8 ".encode(), size_limit=LIMIT
    )
    assert command.smtputf8 is True
    assert command.path.local == "jörg"


@pytest.mark.parametrize("blanks", [0, 1, 2, 7])
def test_blanks_before_the_path_are_taken_as_postfix_takes_them(blanks: int) -> None:
    path = Path(local="a", domain="x.org")
    assert parse_mail_args(b"FROM:" + b" " * blanks + b"<a@x.org>", size_limit=LIMIT).path == path
    assert parse_rcpt_args(b"TO:" + b" " * blanks + b"<a@x.org>", smtputf8=False) == path


def test_mail_from_nobody() -> None:
    assert parse_mail_args(b"FROM:<> SIZE=0", size_limit=LIMIT).path.is_null
    assert parse_mail_args(b"FROM:<> BODY=7BIT", size_limit=LIMIT).path.is_null


@pytest.mark.parametrize(
    ("arguments", "code", "enhanced"),
    [
        (b"", 501, "5.5.4"),
        (b"a@x.org", 501, "5.5.4"),
        (b"TO:<a@x.org>", 501, "5.5.4"),
        (b"FROM <a@x.org>", 501, "5.5.4"),
        (b"FROM:", 501, "5.1.7"),
        (b"FROM:a@x.org", 501, "5.1.7"),
        (b"FROM:<a@x.org", 501, "5.1.7"),
        (b"FROM:a@x.org>", 501, "5.1.7"),
        (b"FROM:<a@x.org> >", 501, "5.5.4"),
        (b"FROM:<<a@x.org>>", 501, "5.1.7"),
        (b"FROM:<<x@evil.org>@y.org>", 501, "5.1.7"),
        (b"FROM:<a@x.org>SIZE=1", 501, "5.1.7"),
        (b"FROM:<(c)a@x.org>", 501, "5.1.7"),
        (b"FROM:<a;b@y.org>", 501, "5.1.7"),
        (b"FROM:<a\0@x.org>", 501, "5.1.7"),
        (b"FROM:<\xff\xfe@x.org>", 501, "5.1.7"),
        (b"FROM:<\xff\xfe@x.org> SMTPUTF8", 501, "5.1.7"),
        (b"FROM:<postmaster>", 501, "5.1.7"),
        (b"FROM:<@a:u@x.org>", 501, "5.1.7"),
        ("FROM:<jörg@x.org>".encode(), 553, "5.6.7"),
        (b"FROM:<a@x.org> SIZE=26214401", 552, "5.3.4"),
        (b"FROM:<a@x.org> SIZE=" + b"9" * 60, 552, "5.3.4"),
        (b"FROM:<a@x.org> SIZE=" + b"9" * 60_000, 552, "5.3.4"),
        (b"FROM:<a@x.org> SIZE=-1", 501, "5.5.4"),
        (b"FROM:<a@x.org> SIZE=+1", 501, "5.5.4"),
        (b"FROM:<a@x.org> SIZE=", 501, "5.5.4"),
        (b"FROM:<a@x.org> SIZE", 501, "5.5.4"),
        (b"FROM:<a@x.org> SIZE=1 SIZE=1", 501, "5.5.4"),
        (b"FROM:<a@x.org> BODY=BINARYMIME", 501, "5.5.4"),
        (b"FROM:<a@x.org> BODY", 501, "5.5.4"),
        (b"FROM:<a@x.org> SMTPUTF8=1", 501, "5.5.4"),
        (b"FROM:<a@x.org> =x", 501, "5.5.4"),
        (b"FROM:<a@x.org> RET=HDRS", 555, "5.5.4"),
        (b"FROM:<a@x.org> ENVID=1", 555, "5.5.4"),
        (b"FROM:<a@x.org> AUTH=<>", 555, "5.5.4"),
        (b"FROM:<a@x.org> \x1b[2J", 501, "5.1.7"),
    ],
)
def test_mail_refused(arguments: bytes, code: int, enhanced: str) -> None:
    refused = mail_refusal(arguments)
    assert (refused.code, refused.enhanced) == (code, enhanced)


def test_leading_zeros_do_not_make_a_size_large() -> None:
    assert parse_mail_args(b"FROM:<> SIZE=" + b"0" * 6000 + b"12", size_limit=LIMIT).path.is_null


def test_a_sender_at_a_host_with_an_underscore() -> None:
    assert (
        parse_mail_args(b"FROM:<root@web_1.example.com>", size_limit=LIMIT).path.wire()
        == "root@web_1.example.com"
    )
    with pytest.raises(RequestError):
        parse_rcpt_args(b"TO:<root@web_1.example.com>", smtputf8=False)


def test_auth_parameter_where_authentication_is_offered() -> None:
    for value in (b"<>", b"e+3Dmc2@example.com"):
        assert parse_mail_args(b"FROM:<a@x.org> AUTH=" + value, size_limit=LIMIT, auth_offered=True)
    assert mail_refusal(b"FROM:<a@x.org> AUTH=a+zz", auth_offered=True).enhanced == "5.5.4"
    assert mail_refusal(b"FROM:<a@x.org> AUTH", auth_offered=True).code == 501


def test_rcpt() -> None:
    assert parse_rcpt_args(b"TO:<a@x.org>", smtputf8=False) == Path(local="a", domain="x.org")
    assert parse_rcpt_args(b"to: <a@x.org>  ", smtputf8=False) == Path(local="a", domain="x.org")
    assert parse_rcpt_args(b'TO:<"a>b c"@x.org>', smtputf8=False).local == "a>b c"
    assert parse_rcpt_args(b"TO:<Postmaster>", smtputf8=False) == Path(local="postmaster", domain="")
    assert parse_rcpt_args("TO:<jörg@x.org>".encode(), smtputf8=True).local == "jörg"


@pytest.mark.parametrize(
    ("arguments", "code", "enhanced"),
    [
        (b"FROM:<a@x.org>", 501, "5.5.4"),
        (b"TO:<>", 501, "5.1.3"),
        (b"TO:<b\0b@y>", 501, "5.1.3"),
        (b"TO:<\xff\xfe@l>", 501, "5.1.3"),
        (b"TO:<a@l", 501, "5.1.3"),
        (b"TO:<(c)a@l>", 501, "5.1.3"),
        (b"TO:<a..b@l>", 501, "5.1.3"),
        (b"TO:<a@l.>", 501, "5.1.3"),
        (b"TO:<" + b"a" * 65 + b"@l>", 501, "5.1.3"),
        (b"TO:<a@" + b"x." * 127 + b"xx>", 501, "5.1.3"),
        (b'TO:<"a\\\r b"@local>', 501, "5.1.3"),
        (b"TO:<@local:u@ext>", 501, "5.1.3"),
        (b"TO:<u@ext@local>", 501, "5.1.3"),
        (b"TO:<u@[127.0.0.1]>", 501, "5.1.3"),
        (b"TO:<a@y.org>, <x@evil.org>", 501, "5.1.3"),
        ("TO:<jörg@x.org>".encode(), 553, "5.6.7"),
        (b"TO:<a@x.org> NOTIFY=NEVER", 555, "5.5.4"),
        (b"TO:<a@x.org> ORCPT=rfc822;a@x.org", 555, "5.5.4"),
    ],
)
def test_rcpt_refused(arguments: bytes, code: int, enhanced: str) -> None:
    refused = rcpt_refusal(arguments)
    assert (refused.code, refused.enhanced) == (code, enhanced)


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda tail: b"FROM:<" + tail)))
def test_any_octets_are_a_command_or_a_reply(arguments: bytes) -> None:
    for parse in (
        lambda: parse_mail_args(arguments, size_limit=LIMIT, auth_offered=True),
        lambda: parse_rcpt_args(arguments.replace(b"FROM", b"TO"), smtputf8=True),
    ):
        try:
            parse()
        except RequestError as error:
            wire = error.reply.wire()
            assert wire.startswith(b"5")
            assert wire.count(b"\r\n") == 1
            assert wire.isascii()


def test_a_long_row_of_blanks_takes_no_time() -> None:
    began = time.process_time()
    assert mail_refusal(b"FROM:<a@x.org>" + b" " * 20_000 + b"\xff").code == 501
    assert time.process_time() - began < 1


def test_a_long_unclosed_quote_takes_no_time() -> None:
    began = time.process_time()
    assert rcpt_refusal(b"TO:<" + b'"' * 20_001).code == 501
    assert rcpt_refusal(b"TO:<" + b'""' * 10_000 + b'"\\').code == 501
    assert time.process_time() - began < 1
