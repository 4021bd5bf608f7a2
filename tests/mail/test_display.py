"""Addresses for the log: as people write them, and hostile ones."""

import time

import pytest

from forwarder.mail import display


@pytest.mark.parametrize(
    ("value", "email_", "name"),
    [
        (b" ann@example.org\r\n", "ann@example.org", None),
        (b" Ann Lee <ann@example.org>\r\n", "ann@example.org", "Ann Lee"),
        (b' "Lee, Ann" <ann@example.org>, bob@x.org', "ann@example.org", "Lee, Ann"),
        (b' "Lee, Ann: (a@b)"  <ann@example.org>', "ann@example.org", "Lee, Ann: (a@b)"),
        (b' "" <ann@example.org>', "ann@example.org", None),
        (b' A "B" <ann@example.org>', "ann@example.org", "A B"),
        (b" ann@example.org (Ann (the) Lee)", "ann@example.org", "Ann (the) Lee"),
        (b" ann@example.org (Ann \\(Lee\\))", "ann@example.org", "Ann (Lee)"),
        (b" Ann <ann@example.org> (a\\)b)", "ann@example.org", "Ann"),
        (b" =?utf-8?b?SsO2cmc=?= <j@x.org>", "j@x.org", "Jörg"),
        (b" =?utf-8?q?a=40evil.org=3E=2C?= <real@x.org>", "real@x.org", "a@evil.org>,"),
        (b" friends: ann@example.org, bob@x.org;", "ann@example.org", None),
        (b' "a\\"b" <ann@example.org>', "ann@example.org", 'a"b'),
        (b" <ann@example.org", "ann@example.org", None),
        (b" Ann Lee ann@example.org", "ann@example.org", "Ann Lee"),
        (b' "Lee" =?utf-8?q?Ann?= ann @ example.org, bob@x.org', "ann@example.org", "Lee Ann"),
        (b" Ann ann@example.org (Lee)", "ann@example.org", "Lee"),
        (b" @", "@", None),
        (b" undisclosed-recipients:;", None, None),
        (b" just words", None, "just words"),
        (b" <>", None, None),
        (b"", None, None),
        (b" \xff\x00<a\x1b@x>", "a\\x1b@x", "\ufffd\\x00"),
    ],
)
def test_mailbox(value: bytes, email_: str | None, name: str | None) -> None:
    assert display.mailbox(value) == (email_, name)


def test_mailboxes_are_counted() -> None:
    assert [box[0] for box in display.mailboxes(b" a@x.org, B <b@y.org>, c@z.org")] == [
        "a@x.org",
        "b@y.org",
        "c@z.org",
    ]
    assert len(display.mailboxes(b"a@x.org," * 100_000)) == 100


def test_a_field_full_of_colons_takes_no_longer_than_one_of_letters() -> None:
    def seconds(value: bytes) -> float:
        began = time.process_time()
        display.mailboxes(value)
        return time.process_time() - began

    # Quadratic it would be some hundred times as long.
    assert seconds(b"@" + b":" * 8000) < 10 * max(seconds(b"@" + b"a" * 8000), 0.001)
