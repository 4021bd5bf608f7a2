"""What the DNS says of a domain, what the API says of it, and what becomes of it in the background."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from api import findings, recheck
from api.improvmx import check
from api.recheck import Recheck
from forwarder.mail.ids import IdSource
from forwarder.store import dkim_keys, domains
from forwarder.store.dkim_keys import NewDkimKey
from forwarder.store.records import NewMessage
from forwarder.store.trouble import StoreUnavailable
from forwarder.store.vault import Vault, make_keys
from tests.api.desk import Desk

NAME = "piedpiper.com"
HOST = "mx.forwarder.test"


async def keys_of(desk: Desk) -> list[dkim_keys.DkimKey]:
    def work(conn: Any) -> list[dkim_keys.DkimKey]:
        domain = domains.get(conn, NAME)
        assert domain is not None
        return list(dkim_keys.list_keys(conn, domain.id))

    return await desk.database.read(work)


async def publish(desk: Desk, *, as_txt: bool = False) -> None:
    """All records as they should be."""
    desk.dns.set(NAME, "MX", [(10, HOST)])
    desk.dns.set(NAME, "TXT", ["some-verification=1", f"v=spf1 include:{HOST} ~all"])
    desk.dns.set(f"_dmarc.{NAME}", "TXT", ["v=DMARC1; p=none;"])
    for key in await keys_of(desk):
        name = f"{key.selector}._domainkey.{NAME}"
        if as_txt:
            desk.dns.set(name, "TXT", [key.public_record])
        else:
            desk.dns.set(name, "CNAME", [f"{name}.{HOST}"])
            desk.dns.set(f"{name}.{HOST}", "TXT", [key.public_record])


async def checked(desk: Desk) -> Any:
    answer = await desk.get(f"/domains/{NAME}/check")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def is_active(desk: Desk) -> bool:
    active: bool = (await desk.get(f"/domains/{NAME}")).json()["domain"]["active"]
    return active


@pytest.mark.parametrize("as_txt", [False, True])
async def test_a_domain_with_all_records_is_valid_active_and_may_send(desk: Desk, as_txt: bool) -> None:
    await desk.domain(NAME)
    await publish(desk, as_txt=as_txt)
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    body = await checked(desk)
    records = body["records"]
    assert [records[name]["valid"] for name in ("mx", "spf", "dkim1", "dkim2", "dmarc", "valid")[:5]] == [
        True
    ] * 5
    assert (records["valid"], records["error"], records["advanced"], body["success"]) == (
        True,
        None,
        True,
        True,
    )
    assert records["mx"] == {"expected": [HOST], "values": [HOST], "valid": True}
    if as_txt:
        assert records["dkim1"]["values"].startswith("v=DKIM1; k=rsa; p=")
    else:
        assert records["dkim1"]["expected"] == f"fwd1._domainkey.{NAME}.{HOST}."
    assert records["dkim1"]["values"] == records["dkim1"]["expected"]
    assert await is_active(desk)
    domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
    assert domain is not None
    assert domain.sending_checked_at == desk.now


async def test_without_records_it_says_what_to_add_and_success_is_false(desk: Desk) -> None:
    await desk.domain(NAME)
    body = await checked(desk)
    records = body["records"]
    assert (body["success"], records["valid"], records["provider"]) == (False, False, None)
    assert records["mx"] == {"expected": [HOST], "values": [], "valid": False}
    assert records["spf"] == {"expected": f"v=spf1 include:{HOST} ~all", "values": None, "valid": False}
    assert records["dmarc"] == {"expected": "v=DMARC1; p=none;", "values": None, "valid": False}
    assert f"leads to {HOST}" in records["error"]
    # a line for each record: where a value ends is seen
    assert f"Add a TXT record to {NAME}: v=spf1 include:{HOST} ~all" in records["error"].splitlines()
    assert not await is_active(desk)


@pytest.mark.parametrize(
    ("mx", "valid"),
    [
        ([(10, HOST)], True),
        ([(10, HOST.upper())], True),
        ([(10, HOST), (20, "backup.example.org")], True),
        ([(5, "mx.google.com"), (10, HOST)], False),
        ([(10, "mx.google.com")], False),
        ([(0, ".")], False),
    ],
)
async def test_the_mx_is_right_when_mail_comes_here_first(desk: Desk, mx: Any, valid: bool) -> None:
    await desk.domain(NAME)
    desk.dns.set(NAME, "MX", mx)
    assert (await checked(desk))["records"]["mx"]["valid"] is valid
    assert await is_active(desk) is valid


async def test_what_is_said_of_the_mx_names_those_that_mail_goes_to(desk: Desk) -> None:
    await desk.domain(NAME)
    desk.dns.set(NAME, "MX", [(5, "mx2.google.com"), (5, "mx1.google.com"), (10, HOST)])
    said = (await checked(desk))["records"]["error"].splitlines()[0]
    told = f"The MX records of {NAME} lead to mx1.google.com, mx2.google.com first; make {HOST} the most preferred."
    assert said == told


async def test_an_mx_that_is_another_name_of_ours_is_right(desk: Desk) -> None:
    await desk.domain(NAME)
    desk.dns.set(HOST, "A", ["192.0.2.1"])
    desk.dns.set(f"mail.{NAME}", "A", ["192.0.2.2"])
    desk.dns.set(NAME, "MX", [(10, f"mail.{NAME}")])
    assert (await checked(desk))["records"]["mx"]["valid"] is False
    desk.resolver.forget()
    desk.dns.set(f"mail.{NAME}", "A", ["192.0.2.1"])
    assert (await checked(desk))["records"]["mx"] == {
        "expected": [HOST],
        "values": [f"mail.{NAME}"],
        "valid": True,
    }
    assert await is_active(desk)
    desk.resolver.forget()
    desk.dns.fault(f"mail.{NAME}", "servfail")
    body = await checked(desk)
    assert body["records"]["mx"]["valid"] is False
    assert f"No name server told the addresses of mail.{NAME}" in body["records"]["error"]
    assert await is_active(desk)  # trouble with the DNS changes nothing


@pytest.mark.parametrize(
    ("gone", "kind", "needed_by_all"),
    [
        (NAME, "MX", True),
        (NAME, "TXT", True),
        (f"fwd2._domainkey.{NAME}", "CNAME", False),
        (f"_dmarc.{NAME}", "TXT", False),
    ],
)
async def test_a_domain_without_one_of_its_records_is_not_valid(
    desk: Desk, gone: str, kind: str, needed_by_all: bool
) -> None:
    await desk.domain(NAME)
    await publish(desk)
    assert (await checked(desk))["valid"] is True
    desk.dns.remove(gone, kind)
    assert (await checked(desk))["valid"] is not needed_by_all
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    body = await checked(desk)
    assert (body["valid"], body["records"]["valid"], body["success"]) == (False, False, kind != "MX")


async def waiting_of(desk: Desk, *made: NewDkimKey) -> list[dkim_keys.DkimKey]:
    """The keys that wait; those that are ``made`` are told to."""

    def work(conn: Any) -> list[dkim_keys.DkimKey]:
        domain = domains.get(conn, NAME)
        assert domain is not None
        found = dkim_keys.propose(conn, domain, made, desk.now) if made else ()
        return list(found or dkim_keys.waiting_keys(conn, domain.id))

    return await desk.database.write(work)


@pytest.mark.parametrize("by", ["check", "background"])
async def test_new_keys_sign_once_all_of_their_records_are_found(desk: Desk, round_of: Any, by: str) -> None:
    bag = Bag()
    in_the_background = round_of(desk, bag)

    async def look() -> None:
        if by == "check":
            await checked(desk)
        else:
            desk.now += timedelta(hours=13)
            assert await in_the_background() == 1

    await desk.domain(NAME)
    await publish(desk)
    await look()
    old = await keys_of(desk)
    vault = Vault(bytes(32))
    new = await waiting_of(desk, *make_keys(vault, NAME, "fwd-20261129a"))
    # A second rotation that begins meanwhile finds the first.
    assert await waiting_of(desk, *make_keys(vault, NAME, "fwd-20261129b")) == new
    names = [f"{key.selector}._domainkey.{NAME}" for key in new]
    desk.dns.set(names[0], "TXT", [new[0].public_record])
    await look()
    assert (await keys_of(desk), await waiting_of(desk)) == (old, new)
    desk.dns.set(names[1], "TXT", [new[0].public_record])  # another key
    await look()
    assert (await keys_of(desk), await waiting_of(desk)) == (old, new)
    desk.dns.set(names[1], "TXT", [new[1].public_record])
    await look()
    assert [key.selector for key in await keys_of(desk)] == ["fwd-20261129a1", "fwd-20261129a2"]
    assert await waiting_of(desk) == []
    domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
    assert domain is not None
    assert (domain.dkim_selector, domain.sending_checked_at) == ("fwd-20261129a", desk.now)
    retired = await desk.database.read(lambda conn: dkim_keys.retired_keys(conn, domain.id))
    assert [(key.selector, key.retired_at, key.private_key) for key in retired] == [
        ("fwd1", desk.now, b""),
        ("fwd2", desk.now, b""),
    ]
    assert (await desk.get(f"/domains/{NAME}")).json()["domain"]["dkim_selector"] == "fwd-20261129a"
    desk.dns.remove(f"fwd1._domainkey.{NAME}", "CNAME")  # nobody looks for it any more
    records = (await checked(desk))["records"]
    assert (records["dkim1"]["valid"], records["dkim1"]["values"]) == (True, new[0].public_record)
    assert bag.messages == []


async def test_who_replaces_the_records_instead_of_adding_them_may_send_on(desk: Desk) -> None:
    await desk.domain(NAME)
    await publish(desk)
    new = await waiting_of(desk, *make_keys(Vault(bytes(32)), NAME, "next"))
    for key, old in zip(new, await keys_of(desk), strict=True):
        desk.dns.remove(f"{old.selector}._domainkey.{NAME}", "CNAME")
        desk.dns.set(f"{key.selector}._domainkey.{NAME}", "TXT", [key.public_record])
    await checked(desk)
    domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
    assert domain is not None
    assert domain.sending_checked_at == desk.now


async def test_the_records_of_former_keys_let_nothing_be_sent_under_new_ones(
    either_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = check.look

    async def overtaken(*given: Any) -> findings.Checked:
        found = await really(*given)
        new = await waiting_of(desk, *make_keys(Vault(bytes(32)), NAME, "next"))  # the old have leaked
        assert await desk.database.write(
            lambda conn: dkim_keys.adopt(conn, domain, new, desk.now, published=False)
        )
        return found

    async with Desk(either_store_url) as desk:
        await desk.domain(NAME)
        await publish(desk)
        await checked(desk)
        found = await desk.database.read(lambda conn: domains.get(conn, NAME))
        assert found is not None
        domain = found
        assert domain.sending_checked_at is not None
        monkeypatch.setattr(check, "look", overtaken)
        await checked(desk)
        assert [key.selector for key in await keys_of(desk)] == ["next1", "next2"]
        after = await desk.database.read(lambda conn: domains.get(conn, NAME))
        assert after is not None
        assert after.sending_checked_at is None


async def test_two_spf_records_are_an_error_that_is_explained(desk: Desk) -> None:
    await desk.domain(NAME)
    desk.dns.set(NAME, "TXT", [f"v=spf1 include:{HOST} ~all", "v=spf1 -all"])
    records = (await checked(desk))["records"]
    assert records["spf"]["valid"] is False
    assert "keep one" in records["error"]


OURS = f"include:{HOST}"


@pytest.mark.parametrize(
    ("record", "expected", "said"),
    [
        (
            f"v=spf1 includ:x.example {OURS} ~all",
            f"v=spf1 {OURS} ~all",
            'In the SPF record of piedpiper.com "includ:x.example" is no term of SPF, so that receivers use none of '
            f"it; mend it: v=spf1 {OURS} ~all",
        ),
        (f"v=spf1 {OURS} ip4:192.0.2 ~all", f"v=spf1 {OURS} ~all", "mend it"),
        ("v=spf1 includ:x.example ~all", f"v=spf1 {OURS} ~all", "mend it"),
        (f"v=spf1 a:\x1b[2J {OURS} ~all", f"v=spf1 {OURS} ~all", "a term is none of SPF"),
        (
            f"v=spf1 {' '.join(f'a:h{n}.example' for n in range(10))} {OURS} ~all",
            f"v=spf1 {OURS} {' '.join(f'a:h{n}.example' for n in range(10))} ~all",
            "it takes more than 10 look-ups to come to ours; put it first: ",
        ),
        (
            f"v=spf1 mx include:deep.example {OURS} ~all",  # mx, deep, its eight, and ours
            f"v=spf1 {OURS} mx include:deep.example ~all",
            "more than 10 look-ups",
        ),
        (
            f"v=spf1 redirect=deep.example mx include:turned.example {OURS}",
            f"v=spf1 {OURS} redirect=deep.example mx include:turned.example",
            "more than 10 look-ups",
        ),
        (
            f"v=spf1 include:none.example {OURS} ~all",
            f"v=spf1 {OURS} include:none.example ~all",
            "none.example, which it includes before ours, has no SPF records",
        ),
        (
            f"v=spf1 include:broken.example +{OURS} ~all",
            f"v=spf1 {OURS} include:broken.example ~all",
            '"-al" is no term of SPF, in that of broken.example, which it includes before ours',
        ),
        (f"v=spf1 include:circle.example {OURS} ~all", None, "more than 10 look-ups"),
    ],
)
async def test_an_spf_record_that_receivers_cannot_use_is_not_valid(
    desk: Desk, record: str, expected: str | None, said: str
) -> None:
    await desk.domain(NAME)
    await publish(desk)
    await publish_includes(desk)
    desk.dns.set(NAME, "TXT", [record])
    records = (await checked(desk))["records"]
    assert (records["spf"]["valid"], records["spf"]["values"], records["valid"]) == (False, record, False)
    assert said in records["error"]
    assert len(records["error"].splitlines()) == 1
    if expected is not None:
        assert records["spf"]["expected"] == expected
        desk.dns.set(NAME, "TXT", [expected])
        assert (await checked(desk))["records"]["spf"]["valid"] is True


@pytest.mark.parametrize(
    "record",
    [
        f"v=spf1 {OURS} {' '.join(f'a:h{n}.example' for n in range(10))} ~all",  # none before ours
        f"v=spf1 {' '.join(f'a:h{n}.example' for n in range(9))} {OURS} ~all",
        f"v=spf1 include:deep.example {OURS} ~all",  # ten with ours
        f"v=spf1 mx {OURS} ~all include:none.example",  # what follows all is never looked at
        f"v=spf1 {OURS} redirect=none.example",
        f"v=spf1 include:silent.example include:%{{d}}.x.example {OURS} ~all",
        f"v=spf1 ra=postmaster ip4:192.0.2.0/24 ip6:2001:db8::/32 {OURS} -all",
    ],
)
async def test_an_spf_record_in_which_receivers_come_to_ours_is_valid(desk: Desk, record: str) -> None:
    await desk.domain(NAME)
    await publish(desk)
    await publish_includes(desk)
    desk.dns.set(NAME, "TXT", [record])
    assert (await checked(desk))["records"]["spf"] == {"expected": record, "values": record, "valid": True}


async def publish_includes(desk: Desk) -> None:
    """SPF records that others include."""
    eight = " ".join(f"a:h{n}.example" for n in range(8))
    desk.dns.set("deep.example", "TXT", [f"v=spf1 ip4:192.0.2.1 {eight} ~all a:h9.example"])
    desk.dns.set("turned.example", "TXT", ["v=spf1 redirect=deep.example"])
    desk.dns.set("broken.example", "TXT", ["v=spf1 a -al"])
    desk.dns.set("circle.example", "TXT", ["v=spf1 include:circle.example -all"])
    desk.dns.set("none.example", "TXT", ["no SPF"])
    desk.dns.fault("silent.example", "servfail")


async def test_a_subdomain_inherits_dmarc_from_its_organisation(desk: Desk) -> None:
    await desk.domain("mail.piedpiper.co.uk")
    desk.dns.set("_dmarc.piedpiper.co.uk", "TXT", ["v=DMARC1; p=reject"])
    found = (await desk.get("/domains/mail.piedpiper.co.uk/check")).json()["records"]["dmarc"]
    assert found == {"expected": "v=DMARC1; p=none;", "values": "v=DMARC1; p=reject", "valid": True}


async def test_a_record_that_nobody_told_of_is_not_one_that_is_inherited(desk: Desk) -> None:
    await desk.domain("mail.piedpiper.co.uk")
    desk.dns.fault("_dmarc.mail.piedpiper.co.uk", "servfail")
    desk.dns.set("_dmarc.piedpiper.co.uk", "TXT", ["v=DMARC1; p=reject"])
    found = (await desk.get("/domains/mail.piedpiper.co.uk/check")).json()["records"]["dmarc"]
    assert (found["values"], found["valid"]) == (None, False)


async def test_another_key_or_another_target_is_not_valid(desk: Desk) -> None:
    await desk.domain(NAME)
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    one, two = await keys_of(desk)
    desk.dns.set(f"{one.selector}._domainkey.{NAME}", "CNAME", ["elsewhere.example.org"])
    desk.dns.set(f"{two.selector}._domainkey.{NAME}", "TXT", [one.public_record])
    records = (await checked(desk))["records"]
    assert (records["dkim1"]["valid"], records["dkim2"]["valid"]) == (False, False)
    assert records["dkim1"]["values"] == "elsewhere.example.org."
    assert "elsewhere.example.org" in records["error"]
    assert "another key" in records["error"]


@pytest.mark.parametrize("extra", ["old", ";;"])
@pytest.mark.parametrize("by_cname", [True, False])
async def test_a_key_that_receivers_may_not_find_is_not_right(desk: Desk, extra: str, by_cname: bool) -> None:
    """A second record of the same name, of which some receivers take the first; a slip for which they take none."""
    await desk.domain(NAME)
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    await publish(desk)
    one, two = await keys_of(desk)
    at = f"fwd1._domainkey.{NAME}"
    if by_cname:
        at = f"{at}.{HOST}"
    else:
        desk.dns.remove(at, "CNAME")
    texts = [one.public_record, two.public_record] if extra == "old" else [one.public_record + extra]
    desk.dns.set(at, "TXT", texts)
    records = (await checked(desk))["records"]
    assert (records["dkim1"]["valid"], records["dkim2"]["valid"]) == (False, True)
    assert ("2 TXT records stand" if extra == "old" else "malformed") in records["error"]
    assert "only TXT record" in records["error"]
    desk.dns.set(at, "TXT", [one.public_record])
    assert (await checked(desk))["records"]["valid"] is True


@pytest.mark.parametrize(
    ("record", "right"),
    [("v=DMARC1; rua=mailto:a@b.test", True), ("v=DMARC1; p=rejects", False), ("v=DMARC1", False)],
)
async def test_a_dmarc_record_that_names_no_policy_is_not_right(desk: Desk, record: str, right: bool) -> None:
    """With somebody to report to it counts as p=none (RFC 7489 6.6.3)."""
    await desk.domain(NAME)
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    await publish(desk)
    desk.dns.set(f"_dmarc.{NAME}", "TXT", [record])
    records = (await checked(desk))["records"]
    assert records["dmarc"]["valid"] is right
    assert (records["error"] is None) is right


@pytest.mark.parametrize("there", ["nothing", "another"])
async def test_a_cname_that_leads_to_no_key_is_not_right(desk: Desk, there: str) -> None:
    """The domain's zone is as it should be, and the server's holds nothing, or another key."""
    await desk.domain(NAME)
    await desk.post(f"/domains/{NAME}/credentials", {"username": "a", "password": "abc123"})
    await publish(desk)
    one, two = await keys_of(desk)
    target = f"fwd1._domainkey.{NAME}.{HOST}"
    if there == "nothing":
        desk.dns.remove(target)
    else:
        desk.dns.set(target, "TXT", [two.public_record])
    records = (await checked(desk))["records"]
    assert records["dkim1"] == {"expected": f"{target}.", "values": f"{target}.", "valid": False}
    (line,) = records["error"].splitlines()
    assert f"publish the key at {target} in the server's zone" in line
    assert line.endswith(one.public_record)
    domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
    assert domain is not None
    assert domain.sending_checked_at is None
    desk.dns.set(target, "TXT", [one.public_record])
    assert (await checked(desk))["records"]["valid"] is True


async def test_a_silent_zone_of_the_server_makes_no_key_wrong(desk: Desk) -> None:
    await desk.domain(NAME)
    await publish(desk)
    await checked(desk)
    desk.dns.fault(f"fwd1._domainkey.{NAME}.{HOST}", "servfail")
    records = (await checked(desk))["records"]
    assert (records["dkim1"]["values"], records["dkim1"]["valid"]) == (None, False)
    domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
    assert domain is not None
    assert domain.sending_checked_at == desk.now


async def test_a_cname_elsewhere_that_ends_at_our_key_is_right(desk: Desk) -> None:
    """As submission sees it, which sends then."""
    await desk.domain(NAME)
    one, _ = await keys_of(desk)
    desk.dns.set(f"{one.selector}._domainkey.{NAME}", "CNAME", ["keys.example.org"])
    desk.dns.set("keys.example.org", "TXT", [one.public_record])
    found = (await checked(desk))["records"]["dkim1"]
    assert found == {"expected": one.public_record, "values": one.public_record, "valid": True}


async def test_silence_of_the_dns_is_no_missing_record_and_changes_nothing(desk: Desk) -> None:
    await desk.domain(NAME)
    await publish(desk)
    await checked(desk)
    desk.now += timedelta(minutes=10)
    desk.dns.fault("*", "servfail")
    body = await checked(desk)
    assert body["success"] is False
    assert "try again" in body["records"]["error"]
    assert await is_active(desk)


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("first", ["the silent one", "the other"])
async def test_a_look_that_got_no_answer_takes_nothing_from_one_beside_it(
    either_store_url: str, round_of: Any, monkeypatch: pytest.MonkeyPatch, in_background: bool, first: str
) -> None:
    """Both have read the domain when nothing of it was right; then the records were put in place."""
    begun = {"the silent one": asyncio.Event(), "the other": asyncio.Event()}
    goes_on = {name: asyncio.Event() for name in begun}

    def held(name: str, found: Callable[..., Awaitable[findings.Checked]]) -> Any:
        async def look(*given: Any) -> findings.Checked:
            begun[name].set()
            await goes_on[name].wait()
            return await found(*given)

        return look

    async def no_answer(*given: Any) -> findings.Checked:
        unknown = findings.CheckedRecord(expected="", values=None, valid=None)
        signing = frozenset(key.id for key in given[-1])
        return findings.Checked(
            provider=None, mx=unknown, spf=unknown, dkim=(unknown,), dmarc=unknown, signing=signing
        )

    async with Desk(either_store_url) as desk:
        await desk.domain(NAME)
        await publish(desk)
        with monkeypatch.context() as patched:
            patched.setattr(recheck if in_background else check, "look", held("the silent one", no_answer))
            silent = round_of(desk, Bag())() if in_background else desk.get(f"/domains/{NAME}/check")
            looks = {"the silent one": asyncio.create_task(silent)}
            await begun["the silent one"].wait()
        with monkeypatch.context() as patched:
            patched.setattr(check, "look", held("the other", check.look))
            looks["the other"] = asyncio.create_task(checked(desk))
            await begun["the other"].wait()
        for name in sorted(looks, key=lambda name: name != first):
            goes_on[name].set()
            await looks[name]
        domain = await desk.database.read(lambda conn: domains.get(conn, NAME))
        assert domain is not None
        assert (domain.is_active, domain.sending_checked_at) == (True, desk.now)


async def test_a_look_that_began_before_the_owner_was_told_does_not_have_him_told_again(
    desk: Desk, round_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    await publish(desk)
    await checked(desk)
    desk.dns.remove(NAME, "MX")
    bag = Bag()
    look, goes_on = round_of(desk, bag), asyncio.Event()

    class Slow(Bag):
        """The letter is queued, and it is not yet noted that it was."""

        async def enqueue(self, message: NewMessage) -> None:
            await bag.enqueue(message)
            overtaken.append(asyncio.create_task(checked(desk)))
            await read.wait()

    read = asyncio.Event()
    really = check.look

    async def late(*given: Any) -> findings.Checked:
        read.set()
        found = await really(*given)
        await goes_on.wait()
        return found

    overtaken: list[asyncio.Task[Any]] = []
    monkeypatch.setattr(check, "look", late)
    desk.now += timedelta(hours=13)
    await round_of(desk, Slow())()
    goes_on.set()
    await asyncio.gather(*overtaken)
    desk.now += timedelta(minutes=1)
    await look()
    assert len(bag.messages) == 1


async def test_a_store_that_is_away_ends_a_round_in_its_own_name(
    desk: Desk, round_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        await desk.domain(f"d{number}.com")

    async def away(_work: object) -> None:
        raise StoreUnavailable

    look = round_of(desk, Bag())
    monkeypatch.setattr(desk.database, "change", away)
    with pytest.raises(StoreUnavailable):
        await look()


async def test_a_new_record_is_seen_at_once(desk: Desk) -> None:
    await desk.domain(NAME)
    desk.dns.ttl = 3600
    assert (await checked(desk))["success"] is False
    desk.dns.set(NAME, "MX", [(10, HOST)])
    assert (await checked(desk))["success"] is True


class Bag:
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        self.messages: list[NewMessage] = []

    async def enqueue(self, message: NewMessage) -> None:
        self.messages.append(message)


@pytest.fixture
def round_of() -> Callable[[Desk, Bag], Callable[[], Awaitable[int]]]:
    def make(desk: Desk, bag: Bag) -> Callable[[], Awaitable[int]]:
        ids = IdSource(clock=desk.clock, entropy=lambda count: bytes(count))
        recheck = Recheck(desk.settings, desk.database, desk.resolver, bag, ids=ids, clock=desk.clock)
        return lambda: recheck.round(desk.now)

    return make


async def test_the_background_look_makes_a_new_domain_active(desk: Desk, round_of: Any) -> None:
    await desk.domain(NAME)
    bag = Bag()
    look = round_of(desk, bag)
    assert await look() == 1
    assert not await is_active(desk)
    await publish(desk)
    assert await look() == 0  # it was just asked
    desk.now += timedelta(minutes=11)
    assert await look() == 1  # a new domain is asked again soon
    assert await is_active(desk)
    desk.now += timedelta(minutes=11)
    assert await look() == 0  # an active one is not
    desk.now += timedelta(hours=12)
    assert await look() == 1
    assert bag.messages == []


@pytest.mark.parametrize(("every", "rounds"), [("0s", [0, 0, 0]), ("4m", [1, 0, 1])])
async def test_the_background_look_is_as_frequent_as_is_said(
    store_url: str, round_of: Any, every: str, rounds: list[int]
) -> None:
    async with Desk(store_url, api={"recheck_every": every}) as desk:
        await desk.domain(NAME)
        look, found = round_of(desk, Bag()), []
        for minutes in (0, 3, 2):
            desk.now += timedelta(minutes=minutes)
            found.append(await look())
        assert found == rounds


async def test_the_owner_is_told_once_when_something_breaks_and_again_when_it_breaks_again(
    desk: Desk, round_of: Any
) -> None:
    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    bag = Bag()
    look = round_of(desk, bag)
    await publish(desk)
    await look()
    desk.dns.set(NAME, "MX", [(10, "mx.google.com")])
    for _ in range(3):
        desk.now += timedelta(hours=13)
        await look()
    (message,) = bag.messages
    assert message.reverse_path.is_null
    assert [delivery.destination for delivery in message.deliveries] == ["owner@gmail.com"]
    assert b"\r\nAuto-Submitted: auto-generated\r\n" in message.content
    assert b"mx.google.com" in message.content
    assert message.content.count(b"\n") == message.content.count(b"\r\n")
    assert max(map(len, message.content.split(b"\r\n"))) <= 998
    assert not await is_active(desk)
    await publish(desk)
    desk.now += timedelta(hours=13)
    await look()
    assert await is_active(desk)
    desk.dns.remove(NAME, "MX")
    desk.now += timedelta(hours=13)
    await look()
    assert len(bag.messages) == 2


async def test_a_notice_that_could_not_be_queued_is_queued_the_next_time(desk: Desk, round_of: Any) -> None:
    class Full(Bag):
        async def enqueue(self, message: NewMessage) -> None:
            raise StoreUnavailable

    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    await publish(desk)
    bag = Bag()
    await round_of(desk, bag)()
    desk.dns.set(NAME, "MX", [(10, "mx.google.com")])
    desk.now += timedelta(hours=13)
    with pytest.raises(StoreUnavailable):
        await round_of(desk, Full())()
    desk.now += timedelta(hours=13)
    await round_of(desk, bag)()
    assert len(bag.messages) == 1


async def test_a_silent_dns_is_waited_for_no_longer_than_a_request_lasts(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record may take two questions after the other, a DKIM record four."""

    async def never(*_given: object, **_more: object) -> None:
        await asyncio.Event().wait()

    await desk.domain(NAME)
    for kind in ("mx", "txt", "cname", "ns"):
        monkeypatch.setattr(desk.resolver, kind, never)
    monkeypatch.setattr(findings, "_ONE_QUESTION", 60.0)  # the request would be given up
    monkeypatch.setattr(findings, "_ALL_QUESTIONS", 0.2)
    assert "try again in a minute" in (await checked(desk))["records"]["error"]


def test_a_notice_has_no_line_that_is_too_long() -> None:
    for word in ("x", "é", "\U0001f600"):
        lines = recheck._wrapped(f"{word * 5000} and {word * 300}")
        assert max(len(line.encode()) for line in lines) <= 900
        assert "".join(lines).replace(" ", "") == f"{word * 5000}and{word * 300}"


async def test_a_break_that_a_person_saw_first_is_told_too(desk: Desk, round_of: Any) -> None:
    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    await publish(desk)
    await checked(desk)
    desk.dns.remove(f"fwd1._domainkey.{NAME}")
    desk.dns.remove(f"_dmarc.{NAME}")
    await checked(desk)
    bag = Bag()
    await round_of(desk, bag)()
    assert len(bag.messages) == 1
    lines = bag.messages[0].content.decode().splitlines()
    assert any(line.startswith(f"Add a CNAME record fwd1._domainkey.{NAME} ") for line in lines)
    assert f"Add a TXT record _dmarc.{NAME}: v=DMARC1; p=none;" in lines


async def test_what_was_never_right_does_not_break(desk: Desk, round_of: Any) -> None:
    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    bag = Bag()
    look = round_of(desk, bag)
    for _ in range(2):
        assert await look() == 1
        desk.now += timedelta(hours=13)
    assert bag.messages == []


async def test_silence_of_the_dns_tells_nobody(desk: Desk, round_of: Any) -> None:
    await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
    await publish(desk)
    await checked(desk)
    desk.now += timedelta(hours=13)
    desk.dns.fault("*", "refused")
    bag = Bag()
    assert await round_of(desk, bag)() == 1
    assert bag.messages == []
    assert await is_active(desk)


@pytest.mark.parametrize("include", [HOST, "mx2.forwarder.test", "svc.test"])
async def test_what_names_another_machine_of_the_installation_is_right(
    store_url: str, round_of: Any, include: str
) -> None:
    """Any machine looks, at a domain that may name another one first."""
    async with Desk(store_url, srs={"domain": "svc.test"}) as desk:
        await desk.post("/domains", {"domain": NAME, "notification_email": "owner@gmail.com"})
        await publish(desk)
        await checked(desk)
        desk.dns.set("svc.test", "MX", [(10, HOST), (10, "mx2.forwarder.test")])
        desk.dns.set(NAME, "MX", [(10, "mx2.forwarder.test"), (20, HOST)])
        desk.dns.set(NAME, "TXT", [f"v=spf1 include:{include} ~all"])
        desk.now += timedelta(hours=13)
        bag = Bag()
        assert await round_of(desk, bag)() == 1
        assert bag.messages == []
        assert await is_active(desk)
        records = (await checked(desk))["records"]
        assert [records[name]["valid"] for name in ("mx", "spf")] == [True, True]
        desk.dns.set(NAME, "TXT", ["v=spf1 include:other.test ~all"])
        spf = (await checked(desk))["records"]["spf"]
        # The name that stands for all machines is what a domain should have.
        assert (spf["valid"], spf["expected"]) == (
            False,
            "v=spf1 include:other.test include:svc.test ~all",
        )
