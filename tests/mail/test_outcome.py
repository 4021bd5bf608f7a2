"""The judgement, as a table."""

import pytest

from forwarder.mail.outcome import (
    Action,
    Fault,
    Scope,
    Stage,
    decide,
    expired,
    reply_for,
    scope_at,
    untried,
)
from forwarder.mail.reply import Reply

A, S = Action, Scope


def said(code: int) -> Reply:
    return Reply(code=code, enhanced="", text="as the server said")


@pytest.mark.parametrize(
    ("stage", "code", "more_hosts", "action"),
    [
        # a success at the end
        (Stage.DOT, 250, True, A.DELIVERED),
        (Stage.RCPT, 250, False, A.DELIVERED),
        (Stage.RCPT, 251, False, A.DELIVERED),
        # about the message or the recipient: final at once, whatever other hosts there are
        (Stage.MAIL, 550, True, A.GIVE_UP),
        (Stage.RCPT, 550, True, A.GIVE_UP),
        (Stage.RCPT, 550, False, A.GIVE_UP),
        (Stage.DATA, 554, True, A.GIVE_UP),
        (Stage.DOT, 554, False, A.GIVE_UP),
        (Stage.DOT, 552, True, A.GIVE_UP),
        # temporary
        (Stage.MAIL, 451, True, A.NEXT_HOST),
        (Stage.MAIL, 451, False, A.RETRY_LATER),
        (Stage.RCPT, 450, True, A.NEXT_HOST),
        (Stage.RCPT, 450, False, A.RETRY_LATER),
        (Stage.DOT, 452, False, A.RETRY_LATER),
        # RFC 5321 4.5.3.1.10: too many recipients
        (Stage.RCPT, 552, False, A.RETRY_LATER),
        (Stage.RCPT, 552, True, A.NEXT_HOST),
        (Stage.RCPT, 452, False, A.RETRY_LATER),
        # the service is closing, whenever it says so
        (Stage.CONNECT, 421, True, A.NEXT_HOST),
        (Stage.RCPT, 421, False, A.RETRY_LATER),
        (Stage.DOT, 421, False, A.RETRY_LATER),
        # at the door: another host may be better
        (Stage.CONNECT, 554, True, A.NEXT_HOST),
        (Stage.CONNECT, 521, True, A.NEXT_HOST),
        (Stage.CONNECT, 554, False, A.GIVE_UP),
        (Stage.HELLO, 550, True, A.NEXT_HOST),
        (Stage.HELLO, 550, False, A.GIVE_UP),
        (Stage.CONNECT, 451, False, A.RETRY_LATER),
        # what nobody understands
        (Stage.RCPT, 354, False, A.RETRY_LATER),
        (Stage.DOT, 334, True, A.NEXT_HOST),
    ],
)
def test_decide(stage: Stage, code: int, more_hosts: bool, action: Action) -> None:
    reply = said(code)
    assert decide(scope_at(stage, reply), reply, more_hosts=more_hosts) is action


def test_a_refusal_at_one_door_is_not_final_while_another_may_open() -> None:
    assert decide(S.SITE, said(554), more_hosts=False, others_may_recover=True) is A.RETRY_LATER
    assert decide(S.RECIPIENT, said(550), more_hosts=False, others_may_recover=True) is A.GIVE_UP


@pytest.mark.parametrize(
    ("stage", "code", "scope"),
    [
        (Stage.CONNECT, 554, S.SITE),
        (Stage.HELLO, 500, S.SITE),
        (Stage.STARTTLS, 454, S.SITE),
        (Stage.MAIL, 550, S.MESSAGE),
        (Stage.RCPT, 550, S.RECIPIENT),
        (Stage.DATA, 554, S.MESSAGE),
        (Stage.DOT, 554, S.MESSAGE),
        (Stage.RCPT, 421, S.SITE),
        (Stage.DOT, 421, S.SITE),
    ],
)
def test_scope(stage: Stage, code: int, scope: Scope) -> None:
    assert scope_at(stage, said(code)) is scope


PERMANENT = {Fault.NO_DOMAIN, Fault.NO_HOST, Fault.NULL_MX, Fault.LOOP, Fault.PRIVATE}
PERMANENT |= {Fault.SMTPUTF8, Fault.TOO_BIG, Fault.EXPIRED}


@pytest.mark.parametrize("fault", Fault)
def test_every_failure_has_a_reply(fault: Fault) -> None:
    reply = reply_for(fault)
    assert reply.permanent is (fault in PERMANENT)
    assert int(reply.enhanced[0]) == reply.code // 100
    assert reply_for(fault, "mx1.example.net").text == f"{reply.text}: mx1.example.net"


@pytest.mark.parametrize(
    ("fault", "code", "enhanced"),
    [
        (Fault.DNS, 451, "4.4.3"),
        (Fault.NO_DOMAIN, 550, "5.1.2"),
        (Fault.NULL_MX, 556, "5.1.10"),
        (Fault.LOOP, 554, "5.4.6"),
        (Fault.PRIVATE, 554, "5.4.4"),
        (Fault.SMTPUTF8, 553, "5.6.7"),
        (Fault.REFUSED, 451, "4.4.1"),
        (Fault.TIMEOUT, 451, "4.4.2"),
        (Fault.EXPIRED, 554, "5.4.7"),
        (Fault.TLS, 451, "4.7.5"),
        (Fault.TLS_REQUIRED, 451, "4.7.10"),
        (Fault.CERTIFICATE, 451, "4.7.5"),
        (Fault.POLICY, 451, "4.7.5"),
    ],
)
def test_the_codes_of_failures(fault: Fault, code: int, enhanced: str) -> None:
    assert (reply_for(fault).code, reply_for(fault).enhanced) == (code, enhanced)


def test_giving_up_names_the_last_reply() -> None:
    last = Reply(code=450, enhanced="4.2.1", text="busy")
    assert str(expired(last)) == (
        "554 5.4.7 could not be delivered for too long, giving up: last reply was 450 4.2.1 busy"
    )


@pytest.mark.parametrize(
    ("last", "enhanced"),
    [
        (reply_for(Fault.TLS), "5.7.5"),
        (reply_for(Fault.TLS_REQUIRED), "5.7.10"),
        (reply_for(Fault.CERTIFICATE), "5.7.5"),
        (reply_for(Fault.POLICY), "5.7.5"),
        (Reply(code=450, enhanced="4.7.1", text="greylisted"), "5.4.7"),
        (Reply(code=450, enhanced="", text="busy"), "5.4.7"),
    ],
)
def test_giving_up_goes_on_naming_encryption(last: Reply, enhanced: str) -> None:
    assert (expired(last).code, expired(last).enhanced) == (554, enhanced)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (None, "451 4.4.1 the host is not being tried for a while; it said: no answer"),
        (
            Reply(code=421, enhanced="4.3.2", text="busy"),
            "421 4.3.2 the host is not being tried for a while; it said: 421 4.3.2 busy",
        ),
        (
            Reply(code=554, enhanced="5.7.1", text="go away"),
            "451 4.4.1 the host is not being tried for a while; it said: 554 5.7.1 go away",
        ),
    ],
)
def test_what_a_host_said_to_others_is_never_final(last: Reply | None, said: str) -> None:
    assert str(untried(last)) == said
