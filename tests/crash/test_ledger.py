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


def copy(at: float = 2.0, *recipients: str, body: str = "digest", said: bool = True) -> dict[str, Any]:
    return {
        "what": "copy", "at": at, "id": "m", "recipients": list(recipients or (A,)), "body": body, "answered": said
    }  # fmt: skip


def report(at: float = 2.0, recipient: str = A) -> dict[str, Any]:
    return {"what": "report", "at": at, "id": "m", "recipient": recipient}


def killed(at: float) -> dict[str, Any]:
    return {"what": "killed", "at": at}


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
            [sending(), answered(250), copy(2.0), killed(2.1), copy(3.0)], id="killed in the window"
        ),
        pytest.param([sending(), answered(250), copy(2.0, said=False), copy(3.0)], id="a lost answer"),
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
        ([sending(), answered(250), copy(2.0), copy(3.0)], "two copies 1.0 s apart"),
        ([sending(), answered(250), report(2.0), report(3.0)], "two reports 1.0 s apart"),
        ([killed(0.5), sending(), answered(250), copy(2.0), copy(3.0)], "two copies"),
        ([sending(), answered(250), copy(2.0), killed(30.0), copy(31.0)], "two copies"),
        ([{"what": "stray", "at": 1.0, "why": "nobody's"}], "never sent"),
    ],
)
def test_promises_broken(facts: list[dict[str, Any]], sentence: str) -> None:
    (broken,) = judge(facts).broken
    assert sentence in broken


REPORT = (
    b"From: <a@b.test>\r\nAuto-Submitted: auto-replied\r\nContent-Type: multipart/report;\r\n"
    b'\tboundary="x"\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\nsorry\r\n'
    b"--x\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
    b"Final-Recipient: rfc822; ok-1@crash.test\r\nAction: failed\r\nStatus: 5.1.1\r\n"
    b"\r\n--x\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Ledger: 0123456789abcdef0123456789abcdef\r\n"
    b"\r\n--x--\r\n"
)


def test_a_report_is_read() -> None:
    assert bounces.read(REPORT) == ("0123456789abcdef0123456789abcdef", [A])


@pytest.mark.parametrize(
    ("octets", "instead"),
    [
        (b"multipart/report", b"multipart/mixed"),
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
