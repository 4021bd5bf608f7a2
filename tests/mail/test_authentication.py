"""DMARC, its author, the verdict, and the Authentication-Results header."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.mail.arc import Chain, ChainStatus
from forwarder.mail.authentication import (
    Results,
    authentication_results_header,
    own_results,
    passed_before,
    remove_forged,
    results_text,
    verdict,
)
from forwarder.mail.author import Author, AuthorFault, Mailboxes, author, mailboxes, obscure
from forwarder.mail.canonical import Canonical
from forwarder.mail.dmarc import (
    DmarcPolicy,
    DmarcResult,
    SpfResult,
    evaluate,
    parse_record,
    record_names,
)
from forwarder.mail.verification import AuthResult, SignatureResult

OURS = "mx1.example.net"


def registered(domain: str) -> str:
    """The last two labels: enough of a public suffix list for these names."""
    return ".".join(domain.split(".")[-2:])


def of(head: bytes) -> Author:
    return author(Canonical(head + b"\r\n\r\nbody\r\n"))


@pytest.mark.parametrize(
    ("head", "domain"),
    [
        (b"From: a@example.org", "example.org"),
        (b"from:a@EXAMPLE.org.", "example.org"),
        (b"From: Alice <a@example.org>", "example.org"),
        (b'From: "b@evil.example" <a@example.org>', "example.org"),
        (b'From: "quoted \\" <b@evil.example>" <a@example.org>', "example.org"),
        (b"From: a@example.org <a@example.org>", "example.org"),
        (b"From: A@Mail.Example.org <a@mail.example.org>", "mail.example.org"),
        (b"From: list: a@example.org;", "example.org"),
        (b"From: Project: Alice <a@example.org>", "example.org"),
        (b"From: Alice :) <a@example.org>", "example.org"),
        (b"From: g: a@example . org;", "example.org"),
        (b"From: g: a@example(x).org;", "example.org"),
        (b"From: g: a@example.\r\n\torg;", "example.org"),
        ("From: g: a@ex\u200bample\u3002org;".encode(), "example.org"),
        (b"From: a@example . org <>", "example.org"),
        (b"From: (b@evil.example) a@example.org (comment (nested))", "example.org"),
        (b'From: "a@b"@example.org', "example.org"),
        (b'From: "a:b;c,d"@example.org', "example.org"),
        (b'From: X <"a:b"@example.org>', "example.org"),
        (b"From: Alice\r\n <a@example.org>", "example.org"),
        (b"From: a@example.org, c@example.org", "example.org"),
        ("From: a@bücher.example".encode(), "xn--bcher-kva.example"),
        (b"From : a@example.org", "example.org"),
        (b"From\0: a@example.org", "example.org"),
        (b"\xef\xbb\xbfFrom: a@example.org", "example.org"),
        (b"From\r\n : a@example.org", "example.org"),
        (b"Subject: x\r\n\x0bFROM \x0b\t: a@example.org", "example.org"),
        (b"no field\r\nFrom: a@example.org", "example.org"),
        (b"From: a @ example . org", "example.org"),
        (b"From: a@(at)example(dot).org (of)", "example.org"),
        (b"From: Pied Piper, Inc. <a@example.org>", "example.org"),
        (b"From: a@example.org, nobody", "example.org"),
        (b"From: a@localhost", "localhost"),
    ],
)
def test_the_domain_of_the_author(head: bytes, domain: str) -> None:
    assert of(head) == Author(domain=domain)


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (b"Subject: x", AuthorFault.MISSING),
        (b" From: a@example.org", AuthorFault.MISSING),
        (
            b"Fromage: a@example.org\r\nFr\xc3\xb6m: b@example.org\r\nFrom\r\n: c@example.org",
            AuthorFault.MISSING,
        ),
        (b"From: a@example.org\r\nFrom: b@evil.example", AuthorFault.SEVERAL),
        (b"From: a@example.org\r\nFrom : a@example.org", AuthorFault.SEVERAL),
        (b"From: a@example.org\r\nFrom\0: b@evil.example", AuthorFault.SEVERAL),
        (b"\x0cFrom: b@evil.example\r\nFrom: a@example.org", AuthorFault.SEVERAL),
        (b"From: a@example.org\r\nFrom\xa0: b@evil.example", AuthorFault.SEVERAL),
        (b"From: a@example.org, b@evil.example", AuthorFault.SEVERAL),
        (b"From: a@example.org, @evil.example", AuthorFault.SEVERAL),
        (b"From: Joe @ Example, Inc. <a@example.org>", AuthorFault.SEVERAL),
        (b"From: @handle, News <a@example.org>", AuthorFault.SEVERAL),
        (b"From: ceo@bank.example@x, <a@example.org>", AuthorFault.UNREADABLE),
        (b"From: ceo@bank.example@example.org", AuthorFault.UNREADABLE),
        (b"From: <ceo@bank.example,x@example.org>", AuthorFault.UNREADABLE),
        (b"From: <@bank.example:ceo@example.org>", AuthorFault.UNREADABLE),
        (b"From: <ceo@bank.example,x@y>, a@example.org", AuthorFault.UNREADABLE),
        (b"From:", AuthorFault.UNREADABLE),
        (b"From:\r\n \r\n\t", AuthorFault.UNREADABLE),
        (b"From: undisclosed", AuthorFault.UNREADABLE),
        (b"From: <a@example.org> <b@evil.example>", AuthorFault.UNREADABLE),
        (b"From: <@x.example:a@example . org>", AuthorFault.UNREADABLE),
        (b"From: a@=?utf-8?q?example=2Eorg?=", AuthorFault.UNREADABLE),
        (b"From: <=?utf-8?q?a=40example=2Eorg?=>, b@evil.example", AuthorFault.UNREADABLE),
        (b"From: =?utf-8?q?a=40example=2Eorg?= b@evil.example", AuthorFault.UNREADABLE),
        (b"From: =?utf-8?q?a=40example=2Eorg?=@evil.example", AuthorFault.UNREADABLE),
        (b'From: a@example.org"x"', AuthorFault.UNREADABLE),
        (b'From: a@example"x".org', AuthorFault.UNREADABLE),
        (b'From: a@"example".org', AuthorFault.UNREADABLE),
        (b'From: "a@example.org", b@evil.example', AuthorFault.UNREADABLE),
        (b'From: "a@example.org") <b@evil.example>', AuthorFault.UNREADABLE),
        (b'From: a@"example".org <b@evil.example>', AuthorFault.UNREADABLE),
        (b'From: a@exam"ple".org <b@evil.example>', AuthorFault.UNREADABLE),
        (b"From: a@example.\x0corg", AuthorFault.UNREADABLE),
        (b"From: a@example\x0b.org", AuthorFault.UNREADABLE),
        (b"From: a@example\\.org", AuthorFault.UNREADABLE),
        (b"From: a@example (" + b"x" * 70_000 + b").org", AuthorFault.UNREADABLE),
        (b"From: a@exa\0mple.org <b@evil.example>", AuthorFault.UNREADABLE),
        (b"From: a@exam\\ple.org <b@evil.example>", AuthorFault.UNREADABLE),
        (b"From: a@=?utf-8?q?example=2Eorg?= <b@evil.example>", AuthorFault.UNREADABLE),
        (b"From: evil.example: a@example.org, b@evil.example;", AuthorFault.SEVERAL),
        (b"From: a@a.example b@b.example c@c.example d@d.example <e@e.example>", AuthorFault.SEVERAL),
        (b"From: <a@example.org", AuthorFault.UNREADABLE),
        (b"From: (a@example.org", AuthorFault.UNREADABLE),
        (b'From: "a@example.org', AuthorFault.UNREADABLE),
        (b"From: a@example..org", AuthorFault.UNREADABLE),
        (b"From: a@example.org and more", AuthorFault.UNREADABLE),
        (b"From: <a@example.org more>", AuthorFault.UNREADABLE),
        (b"From: a@example.org(is)evil", AuthorFault.UNREADABLE),
        (b"From: a@[192.0.2.1]", AuthorFault.UNREADABLE),
        (b"From: a@\xff\xfe", AuthorFault.UNREADABLE),
        (b"From: " + b"(" * 3000, AuthorFault.UNREADABLE),
    ],
)
def test_messages_without_an_author_to_check(head: bytes, fault: AuthorFault) -> None:
    assert of(head) == Author(fault=fault)


@pytest.mark.parametrize(
    ("value", "others"),
    [
        (b"b@evil.example <a@example.org>", ("evil.example",)),
        (b"The Boss b@evil.example <a@example.org>", ("evil.example",)),
        (b'b@evil.example "x" <a@example.org>', ("evil.example",)),
        (b"b@evil.example(x)<a@example.org>", ("evil.example",)),
        (b"b@evil.example\x0b<a@example.org>", ("evil.example",)),
        (b"<a@example.org> b@evil.example", ("evil.example",)),
        (b"b@evil.example<a@example.org>x", ("evil.example",)),
        (b'<a@example.org> "b@evil.example"', ("evil.example",)),
        (b"b @ evil . example via Lists <a@example.org>", ("evil.example",)),
        (b"b@evil.example/c@bad.example <a@example.org>", ("bad.example", "evil.example")),
        ("b@bücher.example! <a@example.org>".encode(), ("xn--bcher-kva.example",)),
        (b"News @ Example <a@example.org>", ("example",)),
        (b"Here @ <a@example.org>", ()),
        (b"c@example.org <a@example.org>", ()),
        (b'"b@evil.example" <a@example.org>', ()),
        (b"=?utf-8?q?b=40evil.example?= <a@example.org>", ()),
        (b"(b@evil.example) <a@example.org>", ()),
    ],
)
def test_addresses_that_stand_unquoted_beside_the_one_in_brackets(
    value: bytes, others: tuple[str, ...]
) -> None:
    assert of(b"From: " + value) == Author(domain="example.org", others=others)


@pytest.mark.parametrize(
    ("value", "anybody"),
    [
        (b"<@x.example:ceo@corp . example>", True),
        (b"=?utf-8?q?ceo=40corp=2Eexample?=", True),
        (b"ceo@corp (" + b"x" * 70_000 + b").example", True),
        (b"a@one.example, b@two.example", True),
        (b"root (Cron Daemon)", False),
        (b"<>", False),
        (b"ceo@corp.example", False),  # it was read
    ],
)
def test_who_may_be_shown_where_no_author_can_be_read(value: bytes, anybody: bool) -> None:
    message = Canonical(b"From: " + value + b"\r\n\r\nbody\r\n")
    assert obscure(message, author(message)) is anybody


@given(st.text(alphabet='a@.,;:<>()"\\ é', max_size=60))
def test_addresses_are_read_or_refused(value: str) -> None:
    try:
        found = mailboxes(value)
    except ValueError:
        return
    assert len(found.listed) <= sum(map(value.count, ",;:)")) + 1
    assert len(found.beside) <= value.count("@")


PIECES = ["a@b", "<a@b>", "< a >", '"a, b"', '"', "<", ">", "(c)", "(", ",", ";", ":", "\\", " ", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.booleans())
def test_a_comment_before_it_changes_nothing(value: str, strict: bool) -> None:
    """What has a comment is walked through; what has none and is plain is not."""

    def read(text: str) -> Mailboxes | None:
        try:
            return mailboxes(text, strict=strict)
        except ValueError:
            return None

    assert read(value) == read("()" + value)


def test_a_hundred_thousand_authors_cost_little() -> None:
    begun = time.process_time()
    of(b"From: " + b"a@example.org, " * 100_000)
    of(b"From: " + b"(" * 1_000_000)
    for blank in (b"\x0b", b"\xc2\xa0"):  # which are not brought together as blanks and tabs are
        of(b"From: ann@example.org" + blank * 30_000 + b"x <ann@example.org>\r\n")
    assert time.process_time() - begun < 1


def test_a_result_full_of_blanks_costs_little() -> None:
    begun = time.process_time()
    content = b"Authentication-Results: x" + b"\x0b" * 1_000_000 + b"y\r\nFrom: a@x.org\r\n\r\n"
    assert remove_forged(content, "mx.test") == content
    assert time.process_time() - begun < 1


def test_policy_records() -> None:
    def read(text: bytes) -> tuple[str, str] | None:
        record = parse_record([b"unrelated", text])
        return record and (record.policy.value, record.subdomain_policy.value)

    assert read(b"v=DMARC1; p=reject") == ("reject", "reject")
    assert read(b"v=DMARC1;p=reject;sp=none;") == ("reject", "none")
    assert read(b"v=DMARC1; p=QUARANTINE; rua=mailto:a@b") == ("quarantine", "quarantine")
    assert read(b"v=DMARC1; p=nonsense; rua=mailto:a@b") == ("none", "none")
    assert read(b"v=DMARC1; p=nonsense") is None
    assert read(b"v=DMARC1") is None
    assert read(b" v = DMARC1 ;p=reject") == ("reject", "reject")
    assert read(b"v=DMARC10; p=reject") is None
    assert read(b"p=reject; v=DMARC1") is None
    assert read(b"v=spf1 -all") is None
    assert parse_record([b"v=DMARC1; p=reject", b"v=DMARC1; p=none"]) is None
    assert parse_record([]) is None


@pytest.mark.parametrize(
    "rest",
    [b"; rua=mailto:a@b.test", b" rua=mailto:a@b; rua=mailto:c@d", b" fo", b" =;\xff=\xfe;9=1", b" p=none"],
)
def test_a_slip_in_the_rest_of_a_record_does_not_switch_its_policy_off(rest: bytes) -> None:
    record = parse_record([b"v=DMARC1; p=reject;" + rest])
    assert record is not None
    assert record.policy is DmarcPolicy.REJECT


@pytest.mark.parametrize(
    "records", [(b"v=DMARC1; p=none", b"v=DMARC1; p=quarantine"), (b"v=DMARC1; nothing",)]
)
def test_records_of_a_subdomain_that_say_nothing_do_not_send_us_to_its_organisation(
    records: tuple[bytes, ...],
) -> None:
    who = Author(domain="mail.example.org")
    answers = {"_dmarc.mail.example.org": records, "_dmarc.example.org": (b"v=DMARC1; p=reject",)}
    (found,) = evaluate(who, answers, spf=None, dkim=(), organisational=registered)
    assert found.result is AuthResult.NONE
    unrelated = answers | {"_dmarc.mail.example.org": (b"v=spf1 -all",)}
    (found,) = evaluate(who, unrelated, spf=None, dkim=(), organisational=registered)
    assert found.result is AuthResult.FAIL


def signature(domain: str, result: AuthResult = AuthResult.PASS) -> SignatureResult:
    return SignatureResult(result=result, domain=domain)


def spf(domain: str, result: AuthResult = AuthResult.PASS) -> SpfResult:
    return SpfResult(result=result, domain=domain)


def dmarc(
    record: bytes,
    *,
    domain: str = "example.org",
    at: str | None = None,
    spf_result: SpfResult | None = None,
    dkim: tuple[SignatureResult, ...] = (),
) -> DmarcResult:
    who = Author(domain=domain)
    answers = dict.fromkeys(record_names(who, registered), ()) | {f"_dmarc.{at or domain}": [record]}
    (found,) = evaluate(who, answers, spf=spf_result, dkim=dkim, organisational=registered)
    return found


REJECT = b"v=DMARC1; p=reject"
STRICT = b"v=DMARC1; p=reject; adkim=s; aspf=s"


@pytest.mark.parametrize(
    ("record", "spf_result", "dkim", "expected"),
    [
        (REJECT, spf("example.org"), (), AuthResult.PASS),
        (REJECT, spf("bounce.example.org"), (), AuthResult.PASS),
        (STRICT, spf("bounce.example.org"), (), AuthResult.FAIL),
        (REJECT, spf("example.org", AuthResult.SOFTFAIL), (), AuthResult.FAIL),
        (REJECT, spf("evil.example"), (), AuthResult.FAIL),
        (REJECT, None, (signature("example.org"),), AuthResult.PASS),
        (REJECT, None, (signature("mail.example.org"),), AuthResult.PASS),
        (STRICT, None, (signature("mail.example.org"),), AuthResult.FAIL),
        (REJECT, None, (signature("evil.example"), signature("example.org")), AuthResult.PASS),
        (REJECT, None, (signature("example.org", AuthResult.POLICY),), AuthResult.FAIL),
        (REJECT, None, (signature("example.org", AuthResult.TEMPERROR),), AuthResult.TEMPERROR),
        (REJECT, spf("example.org", AuthResult.TEMPERROR), (), AuthResult.TEMPERROR),
        (REJECT, spf("evil.example", AuthResult.TEMPERROR), (), AuthResult.FAIL),
        (REJECT, None, (), AuthResult.FAIL),
        # Each is as strict as its own tag says (RFC 7489 6.3).
        (REJECT + b"; adkim=s", spf("bounce.example.org"), (), AuthResult.PASS),
        (REJECT + b"; adkim=s", None, (signature("mail.example.org"),), AuthResult.FAIL),
        (REJECT + b"; aspf=s", spf("bounce.example.org"), (), AuthResult.FAIL),
        (REJECT + b"; aspf=s", None, (signature("mail.example.org"),), AuthResult.PASS),
        (b"v=spf1", spf("example.org"), (), AuthResult.NONE),
    ],
)
def test_alignment(
    record: bytes, spf_result: SpfResult | None, dkim: tuple[SignatureResult, ...], expected: AuthResult
) -> None:
    assert dmarc(record, spf_result=spf_result, dkim=dkim).result is expected


def test_of_several_authors_the_strictest_result_counts() -> None:
    who = Author(domain="evil.example", others=("bank.example", "shop.example"))
    answers: dict[str, tuple[bytes, ...]] = {
        "_dmarc.evil.example": (b"v=DMARC1; p=none",),
        "_dmarc.bank.example": (REJECT,),
        "_dmarc.shop.example": (),
    }
    assert record_names(who, registered) == tuple(answers)

    def results(answers: dict[str, tuple[bytes, ...]], *signers: str) -> list[tuple[str, str]]:
        found = evaluate(
            who, answers, spf=None, dkim=[signature(one) for one in signers], organisational=registered
        )
        return [(one.domain, one.result.value) for one in found]

    assert results(answers, "evil.example") == [
        ("bank.example", "fail"),
        ("shop.example", "none"),
        ("evil.example", "pass"),
    ]
    assert results(answers, "bank.example")[0] == ("evil.example", "fail")
    assert results(answers, "bank.example", "evil.example")[0] == ("shop.example", "none")
    del answers["_dmarc.bank.example"]
    assert results(answers)[0] == ("bank.example", "temperror")
    answers["_dmarc.shop.example"] = (b"v=DMARC1; p=quarantine",)
    assert results(answers)[0] == ("shop.example", "fail")


def test_which_policy_applies() -> None:
    assert dmarc(REJECT).policy is DmarcPolicy.REJECT
    organisation = b"v=DMARC1; p=none; sp=reject"
    assert dmarc(organisation, domain="mail.example.org", at="example.org").policy is DmarcPolicy.REJECT
    assert dmarc(organisation, domain="example.org").policy is DmarcPolicy.NONE
    assert dmarc(b"v=DMARC1; p=reject; pct=50").policy is DmarcPolicy.QUARANTINE
    assert dmarc(b"v=DMARC1; p=reject; pct=99").policy is DmarcPolicy.QUARANTINE
    assert dmarc(b"v=DMARC1; p=reject; pct=100").policy is DmarcPolicy.REJECT
    assert dmarc(b"v=DMARC1; p=reject; t=y").policy is DmarcPolicy.QUARANTINE
    assert dmarc(b"v=DMARC1; p=reject; pct=0; t=Y").policy is DmarcPolicy.QUARANTINE
    assert dmarc(b"v=DMARC1; p=quarantine; t=y").policy is DmarcPolicy.NONE
    assert dmarc(b"v=DMARC1; p=reject; t=n").policy is DmarcPolicy.REJECT
    testing = b"v=DMARC1; p=none; sp=reject; t=y"
    assert dmarc(testing, domain="mail.example.org", at="example.org").policy is DmarcPolicy.QUARANTINE
    assert record_names(Author(domain="a.b.example.org"), registered) == (
        "_dmarc.a.b.example.org",
        "_dmarc.example.org",
    )


def test_trouble_is_no_failure() -> None:
    who = Author(domain="example.org")
    (result,) = evaluate(who, {}, spf=None, dkim=(), organisational=registered)
    assert result.result is AuthResult.TEMPERROR
    assert verdict(Results(dmarc=result), reject=True) is None
    (nobody,) = evaluate(Author(fault=AuthorFault.MISSING), {}, spf=None, dkim=(), organisational=registered)
    assert nobody.result is AuthResult.PERMERROR
    assert verdict(Results(dmarc=nobody), reject=True) is None


def test_the_verdict() -> None:
    def reply(result: DmarcResult, *, reject: bool = True) -> str:
        answer = verdict(Results(dmarc=result), reject=reject)
        return "" if answer is None else f"{answer.code} {answer.enhanced}"

    assert reply(dmarc(REJECT)) == "550 5.7.1"
    assert reply(dmarc(REJECT), reject=False) == ""
    assert reply(dmarc(b"v=DMARC1; p=quarantine")) == ""
    assert reply(dmarc(b"v=DMARC1; p=none")) == ""
    assert reply(dmarc(REJECT, spf_result=spf("example.org"))) == ""
    (several,) = evaluate(Author(fault=AuthorFault.SEVERAL), {}, spf=None, dkim=(), organisational=registered)
    assert reply(several) == "554 5.6.0"
    assert verdict(Results(), reject=True) is None


FULL = Results(
    spf=SpfResult(result=AuthResult.PASS, domain="example.org"),
    dkim=[
        SignatureResult(
            result=AuthResult.FAIL,
            domain="example.org",
            selector="s1",
            algorithm="rsa-sha256",
            signature="ab/d+fg=",
            reason="the body was changed",
        )
    ],
    arc=Chain(status=ChainStatus.NONE),
    dmarc=DmarcResult(result=AuthResult.PASS, domain="example.org", policy=DmarcPolicy.REJECT),
)


@pytest.mark.parametrize(
    ("status", "domain", "results", "passed"),
    [
        (ChainStatus.PASS, OURS, "i=1; mx1.example.net; spf=pass; dmarc=pass (p=reject)", True),
        (ChainStatus.PASS, "evil.example", "i=1; mx1.example.net; spf=pass; dmarc=pass (p=reject)", False),
        (ChainStatus.FAIL, OURS, "i=1; mx1.example.net; spf=pass; dmarc=pass (p=reject)", False),
        (ChainStatus.PASS, OURS, "i=1; mx1.example.net; spf=pass; dmarc=fail (p=reject)", False),
    ],
)
def test_only_our_own_unbroken_seal_tells_that_a_message_passed(
    status: ChainStatus, domain: str, results: str, passed: bool
) -> None:
    chain = Chain(status=status, domain=domain, results=results)
    assert passed_before(Results(arc=chain), [OURS]) is passed


def test_the_header() -> None:
    assert authentication_results_header(OURS, FULL) == (
        b"Authentication-Results: mx1.example.net;\r\n"
        b"\tspf=pass smtp.mailfrom=example.org;\r\n"
        b'\tdkim=fail reason="the body was changed" header.d=example.org header.s=s1'
        b' header.a=rsa-sha256 header.b="ab/d+fg=";\r\n'
        b"\tarc=none;\r\n"
        b"\tdmarc=pass (p=reject) header.from=example.org\r\n"
    )
    assert authentication_results_header(OURS, Results()) == (
        b"Authentication-Results: mx1.example.net;\r\n\tnone\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "x) by trusted (",
        "a; dmarc=pass",
        "a\r\nX: y",
        "\x1b[2J",
        "a b",
        "",
        "é.example",
        '"',
        "x" * 300,
        "a\0",
    ],
)
def test_names_of_strangers_cannot_pose_as_results(name: str) -> None:
    helo = SpfResult(result=AuthResult.NONE, domain=name, identity="helo")
    assert results_text(Results(spf=helo)) == "spf=none smtp.helo=unknown"
    author_of = DmarcResult(result=AuthResult.FAIL, domain=name or "a b")
    assert results_text(Results(dmarc=author_of)) == "dmarc=fail (p=none) header.from=unknown"


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_header_is_one_field_of_ascii(domain: str, reason: str) -> None:
    results = Results(
        spf=SpfResult(result=AuthResult.FAIL, domain=domain, reason=reason),
        dkim=[SignatureResult(result=AuthResult.FAIL, domain=domain, selector=domain, reason=reason)],
        dmarc=DmarcResult(result=AuthResult.FAIL, domain=domain, reason=reason),
        arc=Chain(status=ChainStatus.FAIL, reason=reason),
    )
    header = authentication_results_header(OURS, results)
    [(name, raw)] = Canonical(header + b"\r\n").fields
    assert (name, raw) == (b"authentication-results", header)
    assert header.isascii()
    assert header.count(b"dmarc=") == header.count(b"spf=") == 1
    found = own_results(Canonical(header + b"\r\n"), OURS)
    assert found is not None
    assert found.chain is ChainStatus.FAIL


def test_what_was_recorded_is_found_again() -> None:
    content = (
        authentication_results_header(OURS, FULL) + b"Authentication-Results: mx1.example.net; old\r\n\r\n"
    )
    found = own_results(Canonical(content), "MX1.example.net")
    assert found is not None
    assert found.text == results_text(FULL)
    assert found.chain is ChainStatus.NONE
    assert own_results(Canonical(content), "mx2.example.net") is None
    waiting = Results(arc=Chain(status=ChainStatus.FAIL, temporary=True))
    undecided = own_results(Canonical(authentication_results_header(OURS, waiting) + b"\r\n"), OURS)
    assert undecided is not None
    assert undecided.chain is None


@pytest.mark.parametrize(
    "value",
    [
        b" mx1.example.net; dmarc=pass",
        b"\tMX1.Example.NET ; dmarc=pass",
        b"\r\n mx1.example.net;\r\n\tdmarc=pass",
        b" mx1.example.net 1; dmarc=pass",
        b' "mx1.example.net"; dmarc=pass',
        b' "mx1.\\example.net"; dmarc=pass',
        b" (a comment; with (more) of it) mx1.example.net; dmarc=pass",
        b" (never closed mx1.example.net; dmarc=pass",
        b" mx1.example.net",
        b" mx1.example.net.; dmarc=pass",
        b" MX1.Example.Net. 1; dmarc=pass",
        b' "mx1.example.net."; dmarc=pass',
        b" mx1.example.net (x) .; dmarc=pass",
        b" mx1(x).example.net; dmarc=pass",
        b" mx1 . example . net; dmarc=pass",
        b" mx1.example\r\n\t.net\r\n\t; dmarc=pass",
        b" mx1.example.net/1; dmarc=pass",
        b" ; mx1.example.net; dmarc=pass",
        b" mx1.example.net . x; dmarc=pass",
        b" \0mx1.example.net; dmarc=pass",
    ],
)
def test_headers_that_claim_to_be_ours_are_removed(value: bytes) -> None:
    content = b"Subject: x\r\nAuthentication-Results :" + value + b"\r\nTo: y\r\n\r\nbody  \r\n"
    assert remove_forged(content, OURS) == b"Subject: x\r\nTo: y\r\n\r\nbody  \r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"Authentication-Results: other.example; dmarc=pass\r\n\r\nbody",
        b"Authentication-Results: mx1.example.net.other.example; dmarc=pass\r\n\r\nbody",
        b"Authentication-Results: sub.mx1.example.net; dmarc=pass\r\n\r\nbody",
        b"Authentication-Results: mx1.example.network; dmarc=pass\r\n\r\nbody",
        b"Authentication-Results: other.example; spf=pass smtp.helo=mx1.example.net\r\n\r\nbody",
        b"Authentication-Results: not-mx1.example.net; a=b (mx1.example.net)\r\n\r\nbody",
        b"ARC-Authentication-Results: i=1; mx1.example.net; dmarc=pass\r\n\r\nbody",
        b"Subject: x\r\n\r\nAuthentication-Results: mx1.example.net; dmarc=pass\r\n",
        b"",
        b"no head at all",
    ],
)
def test_all_other_mail_stays_as_it_is(content: bytes) -> None:
    assert remove_forged(content, OURS) is content
