"""The judge itself: each promise, broken on purpose, is found; and what is no fault is not."""

from typing import Any

import pytest

from tests.crash import bounces
from tests.crash.ledger import judge

A, B = "ok-1@crash.test", "ok-2@crash.test"


def sending(*recipients: str) -> dict[str, Any]:
    return {"what": "sending", "at": 0.0, "id": "m", "recipients": list(recipients or (A,)), "body": "digest"}


def answered(code: int) -> dict[str, Any]:
    return {"what": "answered", "at": 1.0, "id": "m", "code": code}


def copy(
    at: float = 2.0,
    *recipients: str,
    body: str = "digest",
    said: bool = True,
    node: str = "mx1",
    since: float = 1.5,
) -> dict[str, Any]:
    return {
        "what": "copy", "at": at, "id": "m", "recipients": list(recipients or (A,)), "body": body, "answered": said,
        "node": node, "since": since, "copy": at,
    }  # fmt: skip


def report(
    at: float = 2.0, recipient: str = A, *, name: str = "<r@mx1>", node: str = "mx1", since: float = 1.5
) -> dict[str, Any]:
    return {
        "what": "report", "at": at, "id": "m", "recipient": recipient, "report": name, "answered": True,
        "node": node, "since": since, "copy": at,
    }  # fmt: skip


def told(copy: float, at: float) -> dict[str, Any]:
    return {"what": "told", "copy": copy, "at": at}


def killed(at: float, node: str = "mx1") -> dict[str, Any]:
    return {"what": "killed", "at": at, "node": node}


def orphaned(at: float, node: str = "mx1") -> dict[str, Any]:
    return {"what": "orphaned", "at": at, "node": node}


def stopped(at: float, node: str = "mx1") -> dict[str, Any]:
    return {"what": "stopped", "at": at, "node": node}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param([sending(), answered(250), copy()], id="delivered"),
        pytest.param([sending(), answered(250), report()], id="returned"),
        pytest.param([sending(A, B), answered(250), copy(2.0, A), report(2.0, B)], id="one each"),
        pytest.param([sending(), answered(451)], id="refused"),
        pytest.param([sending()], id="unknown and not stored"),
        pytest.param([sending(A, B), copy(2.0, A, B)], id="unknown and stored"),
        pytest.param(
            [sending(), answered(250), copy(2.0), told(2.0, 2.0), killed(2.1), copy(3.0, since=2.5)],
            id="killed before it was written down",
        ),
        pytest.param(
            [sending(), answered(250), killed(1.9), copy(2.0), copy(3.0, since=2.5)],
            id="killed while the destination wrote",
        ),
        pytest.param(
            [sending(), answered(250), copy(2.0), told(2.0, 6.0), killed(6.5), copy(9.0, since=8.0)],
            id="killed after a slow answer",
        ),
        pytest.param(
            [sending(), answered(250), copy(2.0), killed(2.1), copy(3.0, node="mx2")], id="taken over"
        ),
        pytest.param([sending(), answered(250), copy(2.0, said=False), copy(3.0)], id="a lost answer"),
        pytest.param(
            [sending(), answered(250), report(2.0), killed(2.1), report(3.0, since=2.5)],
            id="one report sent twice",
        ),
        pytest.param(
            [sending(), answered(250), stopped(1.8), copy(9.0, node="mx2", since=8.0), copy(12.0)],
            id="a session that was stopped goes on",
        ),
    ],
)
def test_promises_kept(facts: list[dict[str, Any]]) -> None:
    assert judge(facts).broken == []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ([sending(), answered(250)], "acknowledged, but neither"),
        (
            [sending(A, B), answered(250), copy(2.0, A)],
            f"acknowledged, but neither a copy nor a report for {B}",
        ),
        ([sending(), answered(451), copy()], "refused with 451, yet"),
        ([sending(), answered(550), report()], "refused with 550, yet"),
        ([sending(A, B), copy(2.0, A)], "only 1 of 2"),
        ([sending(), answered(250), copy(body="other")], "a damaged body"),
        ([sending(), answered(250), copy(), report()], "both a copy and a report"),
        (
            [sending(), answered(250), report(2.0), killed(2.1), report(3.0, name="<s@mx1>")],
            "not one report sent again",
        ),
        ([{"what": "stray", "at": 1.0, "why": "nobody's"}], "never sent"),
    ],
)
def test_promises_broken(facts: list[dict[str, Any]], sentence: str) -> None:
    (broken,) = judge(facts).broken
    assert sentence in broken


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([copy(2.0)], id="nobody died"),
        pytest.param([copy(2.0), killed(2.1, "mx2")], id="another node died"),
        pytest.param([killed(1.4), copy(2.0)], id="it died before that session"),
        pytest.param([copy(2.0), orphaned(2.1)], id="its supervisor died alone"),
        pytest.param([copy(2.0), killed(3.1)], id="it died when it had had the time to write"),
        pytest.param([copy(2.0), told(2.0, 3.0), killed(4.1)], id="the time counts from the answer"),
        pytest.param([copy(2.0), {"what": "cut", "at": 2.1}], id="only the database went away"),
        pytest.param([stopped(1.8, "mx2"), copy(2.0)], id="another node was stopped"),
        pytest.param([copy(2.0), stopped(4.5)], id="stopped after the first copy was written down"),
    ],
)
@pytest.mark.parametrize("what", ["copies", "reports"])
def test_a_second_copy_that_nothing_explains(between: list[dict[str, Any]], what: str) -> None:
    facts = [sending(), answered(250), *between, copy(5.0, since=4.0)]
    if what == "reports":
        facts = [
            report(f["at"], node=f["node"], since=f["since"]) if f["what"] == "copy" else f for f in facts
        ]
    (broken,) = judge(facts).broken
    assert f"two {what} {3.0:.1f} s apart" in broken


def test_what_explains_a_second_copy_is_counted_apart() -> None:
    first, again = copy(2.0), copy(3.0, since=2.5)
    death = judge([sending(), answered(250), first, told(2.0, 2.25), killed(2.75), again])
    assert (death.duplicates_after_death, death.windows) == (1, [0.5])
    silence = judge([sending(), answered(250), copy(2.0, said=False), again])
    assert (silence.duplicates_unanswered, silence.duplicates_explained) == (1, 1)
    late = judge([sending(), answered(250), stopped(1.8), copy(9.0, node="mx2", since=8.0), copy(12.0)])
    assert (late.duplicates_late, late.duplicates_explained) == (1, 1)


REPORT = (
    b"From: <a@b.test>\r\nMessage-ID: <r@mx1.test>\r\n"
    b"Auto-Submitted: auto-replied\r\nContent-Type: multipart/report;\r\n"
    b'\tboundary="x"\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nsorry\r\n'
    b"--x\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
    b"Final-Recipient: rfc822; ok-1@crash.test\r\nAction: failed\r\nStatus: 5.1.1\r\n"
    b"\r\n--x\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Ledger: 0123456789abcdef0123456789abcdef\r\n"
    b"\r\n--x--\r\n"
)


def test_a_report_is_read() -> None:
    assert bounces.read(REPORT) == bounces.Report("<r@mx1.test>", "0123456789abcdef0123456789abcdef", [A])


@pytest.mark.parametrize(
    ("octets", "instead"),
    [
        (b"multipart/report", b"multipart/mixed"),
        (b"Message-ID", b"X-Message-ID"),
        (b"Auto-Submitted", b"X-Submitted"),
        (b"--x--", b""),
        (b"Status: 5.1.1", b"Status: maybe"),
        (b"Action: failed", b"Action: delivered"),
        (b"X-Ledger: 0", b"X-Ledger: z"),
        (b"message/delivery-status", b"text/plain"),
    ],
)
def test_what_is_no_report_is_said(octets: bytes, instead: bytes) -> None:
    with pytest.raises(bounces.NotAReport):
        bounces.read(REPORT.replace(octets, instead))
