"""Submission over a real store and real TLS: who may log in, what they may send, what becomes of it."""

import asyncio
import base64
import contextlib
import logging
import re
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
from argon2 import PasswordHasher

from forwarder.inbound import dialogue, readiness, tls_door
from forwarder.inbound.authenticator import Authenticator
from forwarder.mail import trace
from forwarder.mail.address import parse_address
from forwarder.mail.event import Status
from forwarder.net.answers import CannotTell, Found, Mx, NotFound
from forwarder.store import accounts, counters, credentials, dkim_keys, domains, passwords
from forwarder.store.passwords import hash_password
from forwarder.store.trouble import CommitUnknown, StoreUnavailable
from forwarder.tally import Tally
from tests.inbound.rooms import SECRET, on_both, utc_now
from tests.peers.client import any_certificate

PASSWORD = "correct horse battery"
CONTENT = (
    b"From: Ann <ann@here.test>\r\nTo: b@else.test\r\nSubject: hello\r\nDate: Sat, 21 Nov 2026 01:00:00 +0000\r\n"
    b"Message-ID: <1@here.test>\r\n\r\nbody\r\n"
)


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
async def domain(engine):
    await engine.start()
    domain = await engine.host("here.test", {"info": "person@dest.test", "sales-*": "sales@dest.test"})
    await engine.credential(domain, "ann", PASSWORD)
    return domain


async def opened(client, *, login="ann@here.test", password=PASSWORD):
    """EHLO, STARTTLS, EHLO, AUTH."""
    await client.ehlo()
    await client.starttls()
    await client.ehlo()
    answer = await client.login(login, password)
    assert answer.code == 235, answer


async def submit(engine, content=CONTENT, *, sender=b"ann@here.test", to=(b"b@else.test",), **login):
    async with engine.client("submission") as client:
        await opened(client, **login)
        return await client.message(sender, list(to), content)


@pytest.mark.parametrize(("hops", "said"), [(50, "250 2.0.0"), (51, "554 5.4.6")])
async def test_a_message_that_went_in_circles_is_refused(engine, domain, hops, said):
    answers = await submit(engine, b"Received: from a by b\r\n" * hops + CONTENT)
    assert str(answers[-1]).startswith(said)


async def test_a_message_is_queued_to_be_signed_by_the_domain(engine, domain):
    answers = await submit(engine)
    assert [answer.code for answer in answers] == [250, 250, 354, 250]
    [row] = await engine.deliveries()
    assert (row.recipient, row.destination, row.alias, row.domain_id) == (
        "b@else.test",
        "b@else.test",
        "ann",
        domain.id,
    )
    assert (row.reverse_path, row.signing_domain, row.transport) == (
        "ann@here.test",
        "here.test",
        "submission",
    )
    [content] = await engine.contents()
    head, own, rest = content.partition(CONTENT)
    assert own == CONTENT
    assert not rest
    assert re.fullmatch(
        rb"Received: by mx.test \(Forwarder\) with ESMTPSA \(TLSv1.3 \S+\)\r\n\tid [0-9a-f]{32}\r\n"
        rb"\tfor <b@else.test>;\r\n\t[^\r\n]+\r\n",
        head,
    )
    [entry] = await engine.logs(domain)
    assert (entry.alias, entry.sender_email, entry.subject) == ("ann", "ann@here.test", "hello")
    assert [event.status for event in entry.events] == [Status.QUEUED]


async def test_a_sender_to_whom_nothing_could_come_back_is_refused(engine, domain):
    """The MX takes such local parts of strangers, and of nobody as a recipient."""
    sender = b"ann+" + b"x" * 50 + b"=someone.else.test@here.test"
    answers = await submit(engine, sender=sender)
    assert (answers[0].code, answers[0].text[:5]) == (501, "5.1.7")


async def test_tls_from_the_first_byte(engine, domain):
    async with engine.client("submission-tls", tls=any_certificate()) as client:
        answer = await client.ehlo()
        assert "STARTTLS" not in answer.text
        assert "AUTH PLAIN LOGIN" in answer.text
        assert (await client.login("ann@here.test", PASSWORD)).code == 235
        assert (await client.message(b"ann@here.test", [b"b@else.test"], CONTENT))[-1].code == 250
        assert str(await client.say(b"STARTTLS\r\n")).startswith("503 5.5.1")
    assert await engine.destinations() == ["b@else.test"]


async def test_nothing_is_asked_for_in_the_clear(engine, domain):
    async with engine.client("submission") as client:
        answer = await client.ehlo()
        assert "AUTH" not in answer.text
        assert "STARTTLS" in answer.text
        assert str(await client.login("ann@here.test", PASSWORD)).startswith("538 5.7.11")
        for sender in (b"<ann@here.test>", b"<ann@here.test> AUTH=<>"):
            assert str(await client.say(b"MAIL FROM:" + sender + b"\r\n")).startswith("530 5.7.0")
        await client.starttls()
        await client.ehlo()
        for sender in (b"<ann@here.test>", b"<ann@here.test> AUTH=<>"):
            assert str(await client.say(b"MAIL FROM:" + sender + b"\r\n")).startswith("530 5.7.0")


async def exchange(client, *steps):
    """Say each step and give the last answer; all before it must ask for more."""
    for step in steps[:-1]:
        assert (await client.say(step + b"\r\n")).code == 334
    return await client.say(steps[-1] + b"\r\n")


PLAIN = b64(f"\0ann@here.test\0{PASSWORD}")


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((b"AUTH PLAIN " + PLAIN,), 235),
        ((b"auth plain", PLAIN), 235),
        ((b"AUTH PLAIN " + b64(f"ann@here.test\0ann@here.test\0{PASSWORD}"),), 235),
        ((b"AUTH PLAIN " + b64(f"\0ANN@HERE.TEST\0{PASSWORD}"),), 235),
        ((b"AUTH PLAIN " + b64(f"Ann@here.test\0ann@HERE.test\0{PASSWORD}"),), 235),
        ((b"AUTH LOGIN", b64("ann@here.test"), b64(PASSWORD)), 235),
        ((b"AUTH LOGIN " + b64("ann@here.test"), b64(PASSWORD)), 235),
        ((b"AUTH PLAIN " + b64(f"boss@here.test\0ann@here.test\0{PASSWORD}"),), 535),
        ((b"AUTH PLAIN " + b64("\0ann@here.test\0wrong"),), 535),
        ((b"AUTH PLAIN " + b64("\0nobody@here.test\0wrong"),), 535),
        ((b"AUTH PLAIN " + b64("\0ann\0" + PASSWORD),), 535),
        ((b"AUTH PLAIN " + b64(b"\0\xff\xfe\0x"),), 535),
        ((b"AUTH PLAIN " + b64("no zero bytes"),), 501),
        ((b"AUTH PLAIN ====",), 501),
        ((b"AUTH PLAIN", b"*"), 501),
        ((b"AUTH LOGIN", b"*"), 501),
        ((b"AUTH LOGIN", b64("ann@here.test"), b"*"), 501),
        ((b"AUTH LOGIN", b"not base64!"), 501),
        ((b"AUTH PLAIN", b"A" * 20_000), 501),
        ((b"AUTH PLAIN =",), 501),
        ((b"AUTH CRAM-MD5",), 504),
        ((b"AUTH",), 501),
        ((b"AUTH ",), 501),
    ],
)
async def test_the_exchanges_of_auth(engine, domain, steps, code):
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        answer = await exchange(client, *steps)
        assert answer.code == code
        if code == 235:
            assert str(await client.say(b"AUTH PLAIN " + PLAIN + b"\r\n")).startswith("503 5.5.1")
        assert (await client.say(b"NOOP\r\n")).code == 250


async def test_unknown_names_and_wrong_passwords_read_the_same_and_cost_the_same(engine, domain, monkeypatch):
    from forwarder.inbound import authenticator

    verified = []
    real = authenticator.passwords.verify
    monkeypatch.setattr(
        authenticator.passwords, "verify", lambda known, given: verified.append(known) or real(known, given)
    )
    answers = []
    for name in ("ann@here.test", "nobody@here.test", "nobody@elsewhere.test", "no address"):
        async with engine.client("submission") as client:
            await client.ehlo()
            await client.starttls()
            await client.ehlo()
            answers.append(await client.login(name, "wrong"))
    assert len(set(answers)) == 1
    assert str(answers[0]).startswith("535 5.7.8")
    assert len(verified) == 4
    parameters = {known.rsplit("$", 2)[0] for known in verified}
    assert len(parameters) == 1


@on_both
async def test_a_verified_login_is_remembered_until_the_credential_changes(engine, domain, monkeypatch):
    from forwarder.inbound import authenticator

    verified = []
    real = authenticator.passwords.verify
    monkeypatch.setattr(
        authenticator.passwords, "verify", lambda known, given: verified.append(1) or real(known, given)
    )
    for _ in range(3):
        await submit(engine)
    assert len(verified) == 1
    digest = await asyncio.to_thread(hash_password, "a new password")
    await engine.database.write(
        lambda conn: credentials.update_credential(conn, domain, "ann", utc_now(), password_hash=digest)
    )
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        assert (await client.login("ann@here.test", PASSWORD)).code == 535
        assert (await client.login("ann@here.test", "a new password")).code == 235
    await engine.database.write(lambda conn: credentials.remove(conn, domain, "ann", utc_now()))
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        assert (await client.login("ann@here.test", "a new password")).code == 535


async def test_an_open_session_ends_with_its_credential(engine, domain):
    async def sent(client):
        answers = await client.message(b"ann@here.test", [b"b@else.test"], CONTENT)
        return str(answers[0])[:9], answers[-1].code

    async with engine.client("submission") as client, engine.client("submission") as other:
        await opened(client)
        assert await sent(client) == ("250 2.1.0", 250)
        digest = await asyncio.to_thread(hash_password, "a new password")
        await engine.database.write(
            lambda conn: credentials.update_credential(conn, domain, "ann", utc_now(), password_hash=digest)
        )
        assert (await sent(client))[0] == "530 5.7.0"
        assert (await client.login("ann@here.test", PASSWORD)).code == 535
        assert (await client.login("ann@here.test", "a new password")).code == 235
        assert await sent(client) == ("250 2.1.0", 250)
        await opened(other, password="a new password")
        await engine.database.write(lambda conn: credentials.remove(conn, domain, "ann", utc_now()))
        assert (await sent(client))[0] == "530 5.7.0"
        await engine.credential(domain, "ann", PASSWORD)  # of the same name, and another one
        assert (await sent(other))[0] == "530 5.7.0"
        assert (await client.login("ann@here.test", PASSWORD)).code == 235
        assert len(await engine.deliveries()) == 2
        await engine.database.write(lambda conn: domains.remove(conn, domain, utc_now()))
        assert (await sent(client))[0] == "530 5.7.0"


async def test_a_locked_account_does_not_send(engine, domain):
    async def greeted(client):
        return str((await client.message(b"ann@here.test", [b"b@else.test"], CONTENT))[0])[:9]

    async with engine.client("submission") as client:
        await opened(client)
        assert await greeted(client) == "250 2.1.0"
        await engine.database.write(
            lambda conn: accounts.set_lock(conn, domain.account_id, utc_now(), "spam")
        )
        assert await greeted(client) == "530 5.7.0"
        assert (await client.login("ann@here.test", PASSWORD)).code == 535
        await engine.database.write(lambda conn: accounts.lift_lock(conn, domain.account_id))
        assert (await client.login("ann@here.test", PASSWORD)).code == 235
        assert await greeted(client) == "250 2.1.0"


async def test_the_memory_of_logins_holds_no_password_and_is_bounded_in_time(engine, domain):
    now = [0.0]
    authenticator = Authenticator(
        engine.database,
        engine.rooms.settings.submission,
        clock=utc_now,
        seconds=lambda: now[0],
        tally=Tally(),
    )
    try:
        login = await authenticator.log_in("ann@here.test", PASSWORD, "127.0.0.1")
        assert login.credential.username == "ann"
        assert PASSWORD not in repr(vars(authenticator))
        assert "ann" not in repr(authenticator._verified)
        [token] = authenticator._verified
        now[0] = engine.rooms.settings.submission.login_cache.total_seconds() - 1
        assert authenticator._remembers(token, login)
        now[0] += 1
        assert not authenticator._remembers(token, login)
    finally:
        authenticator.close()


async def fail(engine, times=1, *, name="ann@here.test", address="127.0.0.1"):
    """Failed log-ins over one connection: every answer."""
    async with engine.client("submission", local_address=address) as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        return [await client.login(name, "wrong") for _ in range(times)]


async def test_three_failures_end_the_connection(engine, domain):
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        answers = [await client.login("ann@here.test", "wrong") for _ in range(3)]
        assert [str(answer)[:9] for answer in answers] == ["535 5.7.8"] * 3
        assert str(await client.read()).startswith("421 4.7.0")
        assert await client.closed()


async def test_many_failures_of_one_address_bar_it(engine, domain):
    for _ in range(3):
        await fail(engine, 3, name="nobody@here.test")
    await fail(engine, 1, name="nobody@here.test")
    async with engine.client("submission") as client:
        assert str(client.greeting).startswith("421 4.7.0")
        assert await client.closed()
    async with engine.client("submission", local_address="127.0.0.2") as client:
        await opened(client)


async def test_guesses_sent_at_once_do_not_all_pass_before_the_first_is_counted(engine, domain, monkeypatch):
    from forwarder.inbound import authenticator

    heard = []
    monkeypatch.setattr(authenticator.passwords, "verify", lambda known, given: heard.append(given) or False)
    guesser = Authenticator(engine.database, engine.settings().submission, clock=utc_now, tally=Tally())
    try:
        found = await asyncio.gather(
            *(guesser.log_in("ann@here.test", f"guess {n}", "192.0.2.1") for n in range(40))
        )
    finally:
        guesser.close()
    assert found.count("the name or the password is wrong") == len(heard) == 10


async def test_a_network_full_of_guessing_clients_keeps_no_other_from_logging_in(engine, domain, monkeypatch):
    from forwarder.inbound import authenticator

    go_on = threading.Event()

    def verify(known, given):
        assert given == PASSWORD or go_on.wait(8)
        return given == PASSWORD

    monkeypatch.setattr(authenticator.passwords, "verify", verify)
    monkeypatch.setattr(authenticator, "WAITING", 4)
    guesser = Authenticator(engine.database, engine.settings().submission, clock=utc_now, tally=Tally())
    clients = [f"2001:db8:1:{number:x}::1" for number in range(8)]
    try:
        guesses = [
            asyncio.create_task(guesser.log_in("nobody@here.test", "guess", client)) for client in clients
        ]
        heard = set(guesses)
        while len(heard) > 4:  # the others are refused; one that is not yet may find room again later
            _, heard = await asyncio.wait(heard, return_when=asyncio.FIRST_COMPLETED)
        login = await guesser.log_in("ann@here.test", PASSWORD, "192.0.2.1")
        go_on.set()
        found = [str(each) for each in await asyncio.gather(*guesses)]
    finally:
        guesser.close()
    assert login.credential.username == "ann"
    assert sorted(map(found.count, set(found))) == [4, 4]
    assert set(found) == {"the name or the password is wrong", "too many log-ins wait to be verified"}


async def test_a_network_full_of_guessing_clients_does_not_lock_an_owner_out(engine, monkeypatch):
    from forwarder.inbound import authenticator

    await engine.start(submission={"failures_per_account": 2, "login_cache": "0s"})
    await engine.credential(await engine.host("here.test", {}), "ann", PASSWORD)
    monkeypatch.setattr(authenticator.passwords, "verify", lambda known, given: given == PASSWORD)
    guesser = Authenticator(engine.database, engine.rooms.settings.submission, clock=utc_now, tally=Tally())
    try:
        found = [
            await guesser.log_in("ann@here.test", "guess", f"2001:db8:1:{number:x}::1")
            for number in range(30)
        ]
        login = await guesser.log_in("ann@here.test", PASSWORD, "192.0.2.1")
    finally:
        guesser.close()
    assert found == ["the name or the password is wrong"] * 2 + ["too many failures for this name"] * 28
    assert getattr(login, "credential", login).username == "ann"


async def test_who_waits_for_the_next_minute_has_not_twice_as_many_guesses(engine, domain, monkeypatch):
    from forwarder.inbound import authenticator

    monkeypatch.setattr(authenticator.passwords, "verify", lambda known, given: False)
    noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
    now = noon + timedelta(seconds=59)
    guesser = Authenticator(engine.database, engine.settings().submission, clock=lambda: now, tally=Tally())
    try:
        for number in range(10):
            await guesser.log_in(f"ann{number}@here.test", "a guess", "192.0.2.1")
        barred = {}
        for seconds in (59, 60, 63, 70, 119):
            now = noon + timedelta(seconds=seconds)
            barred[seconds] = await guesser.barred("192.0.2.1")
    finally:
        guesser.close()
    # Of the minute before this one, as much counts as is within one minute from now: 10, 10, 9.5, 8.3, 0.2.
    assert barred == {59: True, 60: True, 63: True, 70: False, 119: False}


async def test_every_way_to_write_a_name_counts_as_that_name(engine):
    await engine.start(submission={"failures_per_account": 4})
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    names = ["ann@here.test", "ANN@here.test", '"ann"@here.test', '"a\\nn"@HERE.test', " ann@here.test "]
    answers = [(await fail(engine, name=name, address=f"127.0.3.{n}"))[0] for n, name in enumerate(names, 1)]
    assert [answer.code for answer in answers] == [535] * 4 + [454]


async def test_who_never_finishes_the_handshake_holds_a_place(engine):
    await engine.start(submission={"connections_per_client": 3})
    address = engine.servers["submission-tls"].addresses[0]
    silent = [await asyncio.open_connection(*address) for _ in range(3)]
    async with asyncio.timeout(5):
        fourth, writer = await asyncio.open_connection(*address)
        with contextlib.suppress(ConnectionResetError):
            assert await fourth.read() == b""
        writer.close()
        for _, writer in silent:
            writer.close()
        while True:  # the places are free again as soon as the server has noticed
            try:
                async with engine.client("submission-tls", tls=any_certificate()) as client:
                    assert client.greeting.code == 220
            except OSError:
                await asyncio.sleep(0.01)
            else:
                break


def say_and_never_close(address, *, starttls):
    """QUIT over TLS, from a thread: whether the server closes though nothing of ours answers the end of its TLS."""
    with socket.create_connection(address, timeout=10) as raw:
        if starttls:
            for command in (b"EHLO client.test\r\n", b"STARTTLS\r\n"):
                raw.recv(4096)
                raw.sendall(command)
            while b"220 " not in raw.recv(4096):
                continue
        with any_certificate().wrap_socket(raw) as client:
            if not starttls:
                client.recv(4096)
            client.sendall(b"QUIT\r\n")
            assert client.recv(4096).startswith(b"221 ")
            assert client.recv(4096) == b""
            with contextlib.suppress(ConnectionResetError):
                assert socket.socket.recv(client, 1) == b""  # TCP's own end


@pytest.mark.parametrize("starttls", [True, False])
async def test_the_end_of_tls_is_not_waited_for_long(engine, monkeypatch, starttls):
    for module in (dialogue, tls_door):
        monkeypatch.setattr(module, "LINGER_SECONDS", 0.1)
    await engine.start()
    address = engine.servers["submission" if starttls else "submission-tls"].addresses[0]
    await asyncio.to_thread(say_and_never_close, address, starttls=starttls)


@on_both
async def test_a_name_under_attack_from_many_addresses(engine):
    await engine.start(submission={"failures_per_account": 20})
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    codes = [(await fail(engine, address=f"127.0.1.{number}"))[0] for number in range(1, 25)]
    assert [answer.code for answer in codes] == [535] * 20 + [454] * 4
    assert codes[-1].text.startswith("4.7.0")
    async with engine.client("submission", local_address="127.0.1.3") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        assert (await client.login("ann@here.test", PASSWORD)).code == 454  # it failed at this name before
    async with engine.client("submission", local_address="127.0.2.1") as client:
        await opened(client)  # the owner is not locked out


async def test_of_a_name_that_ten_times_as_many_guess_at_nobody_is_heard(engine):
    await engine.start(submission={"failures_per_account": 1})
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    for number in range(1, 11):
        await fail(engine, address=f"127.0.{number}.1")
    async with engine.client("submission", local_address="127.0.99.1") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        assert (await client.login("ann@here.test", PASSWORD)).code == 454


@pytest.mark.parametrize(
    "sender", [b"ann@here.test", b"ANN@here.test", b"info@here.test", b"sales-eu@here.test", b""]
)
async def test_senders_that_are_allowed(engine, domain, sender):
    assert (await submit(engine, sender=sender))[-1].code == 250


@pytest.mark.parametrize("sender", [b"nobody@here.test", b"ann@else.test", b"ann@mx.test"])
async def test_senders_that_are_not(engine, domain, sender):
    answer = (await submit(engine, sender=sender))[-1]
    assert str(answer).startswith("550 5.7.1 ")
    assert sender.decode() in answer.text
    assert await engine.deliveries() == []


async def test_what_may_be_sent_as_is_said_in_addresses_that_can_be_typed(engine):
    """A reply is ASCII: what is beyond it would be shown as escapes."""
    await engine.start()
    await engine.credential(await engine.host("xn--mnchen-3ya.test", {}), "ann", PASSWORD)
    login = "ann@xn--mnchen-3ya.test"
    answer = (await submit(engine, sender=b"bob@xn--mnchen-3ya.test", login=login))[-1]
    assert answer.text == (
        "5.7.1 bob@xn--mnchen-3ya.test is not an address of yours; you may send as "
        "ann@xn--mnchen-3ya.test or another address of xn--mnchen-3ya.test"
    )


async def test_a_limited_credential_is_its_own_address_only(engine, domain):
    await engine.credential(domain, "printer", "p4ssword", is_limited=True)
    login = {"login": "printer@here.test", "password": "p4ssword"}
    content = CONTENT.replace(b"ann@", b"printer@")
    assert (await submit(engine, content, sender=b"printer@here.test", **login))[-1].code == 250
    answer = (await submit(engine, content, sender=b"info@here.test", **login))[-1]
    assert str(answer).startswith("550 5.7.1 info@here.test")
    answer = (await submit(engine, CONTENT, sender=b"printer@here.test", **login))[-1]
    assert str(answer).startswith("550 5.7.1 ann@here.test")
    for beside in (
        b"info@here.test <",
        b'info@here.test "x" <',
        b"info@here.test(x)<",
        b"info@here.test\x0b<",
    ):
        shown = CONTENT.replace(b"Ann <ann@", beside + b"printer@")
        assert shown != CONTENT
        answer = (await submit(engine, shown, sender=b"printer@here.test", **login))[-1]
        assert str(answer).startswith(("550 5.7.1 info@here.test", "550 5.6.0")), beside


async def test_a_display_name_in_another_character_set_is_refused_with_what_to_do(engine, domain):
    content = CONTENT.replace(b"From: Ann", b"From: J\xf6rg (Ann)")
    answer = (await submit(engine, content))[-1]
    assert str(answer).startswith("550 5.6.0 the From header is neither ASCII nor UTF-8")
    content = CONTENT.replace(b"From: Ann", b"From: Boss @ Work")
    answer = (await submit(engine, content))[-1]
    assert str(answer).startswith("550 5.6.0 the From header holds an @ beside the address in brackets")


HEADS = [
    (b"From: ann@here.test\r\n", 250),
    (b'From: "boss@else.test" <ann@here.test>\r\n', 250),
    (b"From: =?utf-8?q?boss=40else=2Etest?= <info@here.test>\r\nSender: ann@here.test\r\n", 250),
    (b"From: boss@else.test\r\n", 550),
    (b"From: ann@here.test <ann@here.test>\r\n", 250),
    (b"From: Ann@Here.Test (at work) <ann@here.test>\r\n", 250),
    (b"From: info@here.test <ann@here.test>\r\n", 250),  # she may be both
    (b"From: boss@else.test <ann@here.test>\r\n", 550),
    (b"From: boss@else.test(x)<ann@here.test>\r\n", 550),
    (b"From: boss@else.test\x0b<ann@here.test>\r\n", 550),
    (b'From: boss@else.test "x" <ann@here.test>\r\n', 550),
    (b"From: The Boss boss@else.test <ann@here.test>\r\n", 550),
    (b"From: ann@here.test\r\nResent-From: boss@else.test <ann@here.test>\r\n", 550),
    (b"From: J\xf6rg <ann@here.test>\r\n", 250),
    (b'From: "J\xf6rg, Ann" <ann@here.test>\r\n', 250),
    (b"From: J\xf6rg@else.test <ann@here.test>\r\n", 550),
    (b"From: J\xf6rg (Ann) <ann@here.test>\r\n", 550),
    (b'From: "J\xf6rg \\" Ann" <ann@here.test>\r\n', 550),
    (b"From: J\xf6rg <\xf6@here.test>\r\n", 550),
    (b"From: ann@here.test\r\nFrom: boss@else.test\r\n", 550),
    (b"From: ann@here.test\r\nFrom: ann@here.test\r\n", 550),
    (b"From: ann@here.test, info@here.test\r\n", 550),
    (b"From: ann@here.test, boss@else.test\r\n", 550),
    (b"To: b@else.test\r\n", 550),
    (b"From : ann@here.test\r\n", 550),
    (b" From: ann@here.test\r\nFrom: ann@here.test\r\n", 550),
    (b"From\0: ann@here.test\r\nFrom: ann@here.test\r\n", 550),
    (b"From: \r\n \r\n", 550),
    (b"From: ann@here.test <boss@else.test>\r\n", 550),
    (b"From: <boss@else.test> (ann@here.test)\r\n", 550),
    (b"From: friends: ann@here.test;\r\n", 550),
    (b"From: <ann@here.test> boss@else.test\r\n", 550),
    (b'From: <ann@here.test> "boss@else.test"\r\n', 550),
    (b"From: Ann <ann@here.test> (at work)\r\n", 250),
    (b"From: sales-=?utf-8?q?boss=40else=2Etest?=@here.test\r\n", 550),
    (b"From: " + b"(" * 3000 + b"\r\n", 550),
    (b"From: ann@here.test\r\nSender: boss@else.test\r\n", 550),
    (b"From: ann@here.test\r\nSender: ann@here.test\r\nSender: ann@here.test\r\n", 550),
    (b"From: ann@here.test\r\nSender: ann@here.test, info@here.test\r\n", 550),
    (b"From: ann@here.test\r\nResent-From: boss@else.test\r\n", 550),
    (b"From: ann@here.test\r\nResent-From: info@here.test\r\nResent-Sender: ann@here.test\r\n", 250),
    (b"From: ann@here.test\r\nResent-Sender: boss@else.test\r\n", 550),
    (b"Sender: ann@here.test\r\n", 550),
    (b"From: ann@here.test\r\nSubject: a\r\nSubject: b\r\n", 550),
    (b"From: ann@here.test\r\nTo: a@else.test\r\nTo: b@else.test\r\n", 550),
    (b"From: ann@here.test\r\nCc: a@else.test\r\nCc: b@else.test\r\n", 550),
    (b"From: ann@here.test\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\nDate: x\r\n", 550),
    (b"From: ann@here.test\r\nMessage-ID: <1@here.test>\r\nMessage-ID: <2@here.test>\r\n", 550),
    (b"From: ann@here.test\r\nReply-To: a@else.test\r\nReply-To: b@else.test\r\n", 550),
    (b"From: ann@here.test (" + b"x" * 900 + b"\r\n " + b")\r\n", 250),
    (b"From: ann@here.test (" + (b"x" * 900 + b"\r\n ") * 73 + b")\r\n", 550),
    (b"From: ann@here.test\r\n" + (b"Resent-From: " + b"(ann)\r\n " * 4000 + b"\r\n"), 250),
    (b"From: ann@here.test\r\n" + (b"Resent-From: " + b"(ann)\r\n " * 4000 + b"\r\n") * 3, 550),
    (b"From: ann@here.test\r\nResent-From: ann@here.test" + b",\r\n ann@here.test" * 98 + b"\r\n", 250),
    (b"From: ann@here.test\r\nResent-From: ann@here.test" + b",\r\n ann@here.test" * 99 + b"\r\n", 550),
    (b"From: \xff\xfe@here.test\r\n", 550),
    (b"From: ann@here.test\r\n" + b"X: y\r\n" * 3000, 550),
]


@pytest.mark.parametrize(("head", "code"), HEADS, ids=range(len(HEADS)))
async def test_whom_a_message_may_claim_to_be_from(engine, domain, head, code):
    long_line = head.replace(b"(" * 3000, (b"(" * 900 + b"\r\n ") * 3)
    answer = (await submit(engine, long_line + b"\r\nbody\r\n"))[-1]
    assert answer.code == code, answer
    assert code == 250 or answer.text[:5] in ("5.6.0", "5.7.1")
    [entry] = await engine.logs(domain)
    assert [event.status for event in entry.events] == [Status.QUEUED if code == 250 else Status.REFUSED]


async def test_octets_that_are_no_characters_are_no_address_even_where_every_name_is_an_alias(engine):
    await engine.start()
    domain = await engine.host("here.test", {"*": "box@out.test"})
    await engine.credential(domain, "ann", PASSWORD)
    content = CONTENT.replace(b"Ann <ann@here.test>", b"\xff\xfe@here.test")
    assert content != CONTENT
    answer = (await submit(engine, content))[-1]
    assert str(answer).startswith("550 5.6.0 the From header"), answer


async def test_nobody_speaks_in_our_name(engine, domain):
    forged = b"Authentication-Results: mx.test; dmarc=pass header.from=bank.test\r\n"
    foreign = b"Authentication-Results: mx.else.test; spf=pass\r\n"
    assert (await submit(engine, forged + foreign + CONTENT))[-1].code == 250
    [content] = await engine.contents()
    assert content.endswith(foreign + CONTENT)
    assert b"dmarc=pass" not in content


async def test_a_message_of_too_many_authors_is_refused_quickly(engine, domain):
    many = b"Resent-From: " + b",\r\n ".join([b"ann@here.test"] * 60) + b"\r\n"
    answer = (await submit(engine, many * 2 + CONTENT))[-1]
    assert str(answer).startswith("550 5.6.0")
    assert (await submit(engine, many + CONTENT))[-1].code == 250


async def test_a_message_is_completed(engine, domain):
    content = (
        b"From: ann@here.test\r\nBcc: secret@else.test,\r\n\tmore@else.test\r\nX: y\r\nresent-bcc: z@else.test\r\n"
        b"\r\nBcc: body\r\n"
    )
    await submit(engine, content, to=(b"secret@else.test",))
    [stored] = await engine.contents()
    head, _, body = stored.partition(b"\r\n\r\n")
    assert body == b"Bcc: body\r\n"
    assert b"secret@else.test" not in head.replace(b"for <secret@else.test>", b"")
    assert b"more@" not in head
    assert b"z@else" not in head
    assert head.endswith(b"From: ann@here.test\r\nX: y")
    assert re.search(rb"\r\nMessage-ID: <[0-9a-f]{32}@here\.test>\r\nDate: \w{3}, \d\d \w{3} \d{4} ", head)
    assert b"\r\nTo: undisclosed-recipients:;\r\n" in head
    [entry] = await engine.logs(domain)
    assert entry.message_id is not None


async def test_bare_newlines_are_normalised_before_anything_is_signed(engine, domain):
    content = CONTENT.replace(b"body\r\n", b"") + b"a\n.\nMAIL FROM:<x@y.test>\n.\r\nb\r.\rc\r\n"
    async with engine.client("submission") as client:
        await opened(client)
        await client.say(b"MAIL FROM:<ann@here.test>\r\n")
        await client.say(b"RCPT TO:<b@else.test>\r\n")
        await client.say(b"DATA\r\n")
        await client.send(content)
        assert await client.silent(0.1)
        assert (await client.say(b".\r\n")).code == 250
    [stored] = await engine.contents()
    assert stored.count(b"\r\n") == stored.count(b"\r") == stored.count(b"\n")
    assert stored.endswith(b"\r\n\r\na\r\n.\r\nMAIL FROM:<x@y.test>\r\n.\r\nb\r\n.\r\nc\r\n")


async def test_recipients_hosted_here_go_through_their_aliases(engine, domain):
    other = await engine.host(
        "other.test", {"*": "inbox@dest.test"}, account="other@example.org", active=True
    )
    answers = await submit(
        engine, to=(b"info@here.test", b"any@other.test", b"b@else.test", b"nobody@here.test")
    )
    assert [answer.code for answer in answers] == [250, 250, 250, 250, 550, 354, 250]
    rows = await engine.deliveries()
    assert [(row.destination, row.alias, row.domain_id) for row in rows] == [
        ("person@dest.test", "info", domain.id),
        ("inbox@dest.test", "*", other.id),
        ("b@else.test", "ann", domain.id),
    ]


async def test_a_domain_that_somebody_only_says_is_theirs_gets_no_mail_of_others(engine, domain):
    """Anybody with an account may add any domain; until its MX records lead here its mail goes where they lead."""
    await engine.host("big.test", {"*": "thief@dest.test"}, account="thief@example.org")
    mine = await engine.host("mine.test", {"*": "inbox@dest.test"})
    answers = await submit(engine, to=(b"victim@big.test", b"any@mine.test"))
    assert [answer.code for answer in answers] == [250, 250, 250, 354, 250]
    rows = await engine.deliveries()
    assert [(row.destination, row.alias, row.domain_id) for row in rows] == [
        ("victim@big.test", "ann", domain.id),
        ("inbox@dest.test", "*", mine.id),
    ]


async def test_what_an_alias_of_another_account_has_is_in_the_log_of_the_sender_too(engine, domain):
    """Where it leads, and whether it swallows the mail, is for their log alone."""
    forwards = {"boss": "secret@dest.test", "quiet": "secret@dest.test"}
    theirs = await engine.host("theirs.test", forwards, account="other@example.org", active=True)
    await engine.disable(theirs, "quiet", 250)
    to = (b"boss@theirs.test", b"BOSS@theirs.test", b"quiet@theirs.test", b"info@here.test", b"b@else.test")
    assert (await submit(engine, to=to))[-1].code == 250
    mine = {entry.recipient_email: entry for entry in await engine.logs(domain)}
    assert len(mine) == len(await engine.logs(domain)) == 4
    for address in ("boss@theirs.test", "quiet@theirs.test"):
        entry = mine[address]
        assert (entry.alias, entry.forward_email, entry.transport) == ("ann", address, "submission")
        queued, taken_on = entry.events
        assert queued.status is Status.QUEUED
        assert (taken_on.status, taken_on.code) == (Status.DELIVERED, 250)
        assert taken_on.message == "2.1.5 an alias of another account here has it"
        assert taken_on.recipient == address
    assert sorted((entry.alias, entry.forward_email) for entry in await engine.logs(theirs)) == [
        ("boss", "secret@dest.test"),
        ("quiet", "quiet@theirs.test"),
    ]


async def test_a_recipient_refused_shows_in_a_log(engine, domain):
    other = await engine.host("other.test", {"info": "person@dest.test"})
    answers = await submit(engine, to=[b"nobody@other.test", b"SRS0=AAAA=AA=x.test=y@mx.test"])
    assert [str(answer)[:9] for answer in answers[1:3]] == ["550 5.1.1", "550 5.1.1"]
    await engine.servers["submission"].drain(timedelta(seconds=5))
    for whose, alias, recipient in (
        (other, None, "nobody@other.test"),
        (domain, "ann", "SRS0=AAAA=AA=x.test=y@mx.test"),
    ):
        [entry] = await engine.logs(whose)
        [event] = entry.events
        assert (event.status, event.code, event.message[:6]) == (Status.REFUSED, 550, "5.1.1 ")
        assert (entry.alias, entry.recipient_email, event.recipient) == (alias, recipient, recipient)
        assert (entry.transport, entry.sender_email) == ("submission", "ann@here.test")


async def test_a_sender_refused_shows_in_the_log_with_what_to_do(engine, domain):
    """Nobody was named yet to whom the mail should go."""
    answer = (await submit(engine, sender=b"eve@else.test"))[-1]
    assert answer.code == 550
    [entry] = await engine.logs(domain)
    [event] = entry.events
    assert (event.status, event.code, event.message) == (Status.REFUSED, 550, answer.text)
    assert (entry.alias, entry.transport, entry.sender_email) == ("ann", "submission", "eve@else.test")
    assert (entry.recipient_email, event.recipient) == (None, None)


async def test_a_recipient_refused_at_another_account_shows_in_both_logs(engine, domain):
    theirs = await engine.host(
        "theirs.test", {"off": "secret@dest.test"}, account="other@example.org", active=True
    )
    await engine.disable(theirs, "off", 550)
    to = [b"nobody@theirs.test", b"off@theirs.test"]
    answers = await submit(engine, to=to)
    assert [str(answer)[:9] for answer in answers[1:3]] == ["550 5.1.1", "550 5.2.1"]
    for whose, aliases in ((domain, ["ann", "ann"]), (theirs, [None, "off"])):
        entries = sorted(await engine.logs(whose), key=lambda entry: entry.recipient_email)
        assert [(entry.recipient_email.encode(), entry.alias) for entry in entries] == list(
            zip(to, aliases, strict=True)
        )
        assert [entry.events[0].message[:6] for entry in entries] == ["5.1.1 ", "5.2.1 "]
        assert {(entry.transport, entry.sender_email) for entry in entries} == {
            ("submission", "ann@here.test")
        }


async def test_a_message_refused_shows_in_the_log_for_each_recipient(engine, domain):
    to = (b"b@else.test", b"info@here.test", b"c@else.test")
    answers = await submit(engine, CONTENT.replace(b"ann@here.test>", b"eve@else.test>", 1), to=to)
    assert [answer.code for answer in answers] == [250, 250, 250, 250, 354, 550]
    entries = await engine.logs(domain)
    assert sorted(entry.recipient_email for entry in entries) == [address.decode() for address in sorted(to)]
    for entry in entries:
        [event] = entry.events
        assert (event.status, event.code, event.recipient) == (Status.REFUSED, 550, entry.recipient_email)
        assert (entry.alias, entry.transport, entry.subject) == ("ann", "submission", "hello")


async def test_the_client_is_shown_where_that_is_configured(engine):
    await engine.start(submission={"show_client_address": True})
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    await submit(engine)
    [stored] = await engine.contents()
    assert stored.startswith(b"Received: from client.test ([127.0.0.1])\r\n\tby mx.test ")


@on_both
@pytest.mark.parametrize(("bound", "value"), [("daily_send", 5), ("ratelimit", 5)])
async def test_quotas_are_exact_under_parallel_sessions(engine, bound, value):
    noon = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)  # far from the end of a minute and of a day
    await engine.start(plans={"default": {bound: value}}, clock=lambda: noon)
    domain = await engine.host("here.test", {})
    for username in ("ann", "bob"):
        await engine.credential(domain, username, PASSWORD)

    async def one(username):
        content = CONTENT.replace(b"ann@", username + b"@")
        return (
            await submit(
                engine, content, sender=username + b"@here.test", login=f"{username.decode()}@here.test"
            )
        )[-1]

    answers = await asyncio.gather(*(one(username) for username in [b"ann", b"bob"] * 6))
    assert sorted(answer.code for answer in answers) == [250] * 5 + [452] * 7
    assert all(answer.text.startswith("4.2.2") for answer in answers if answer.code == 452)
    assert len(await engine.deliveries()) == 5


async def test_a_credential_has_a_share_of_its_account(engine):
    noon = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
    plan = {"daily_send": 3, "daily_send_per_credential": 2}
    await engine.start(plans={"default": plan}, clock=lambda: noon)
    domain = await engine.host("here.test", {})
    for username in ("ann", "bob"):
        await engine.credential(domain, username, PASSWORD)
    ann = [(await submit(engine))[-1] for _ in range(3)]
    assert [answer.code for answer in ann] == [250, 250, 452]
    assert "of this log-in" in ann[-1].text
    bob = [
        (
            await submit(
                engine, CONTENT.replace(b"ann@", b"bob@"), sender=b"bob@here.test", login="bob@here.test"
            )
        )[-1]
        for _ in range(3)
    ]
    assert [answer.code for answer in bob] == [250, 452, 452]
    assert "of your account" in bob[-1].text  # and what the account refuses is not counted against bob


@on_both
@pytest.mark.parametrize(
    ("trouble", "then"),
    [(StoreUnavailable, [250, 452]), (CommitUnknown, [452, 452])],  # that one may be stored after all
)
async def test_a_message_that_is_not_stored_gives_its_place_back(engine, monkeypatch, trouble, then):
    noon = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
    await engine.start(plans={"default": {"daily_send": 1}}, clock=lambda: noon)
    await engine.credential(await engine.host("here.test", {}), "ann", PASSWORD)

    async def fail(*_):
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(type(engine.rooms.queue), "enqueue", fail)
        assert (await submit(engine))[-1].code == 451
    assert [(await submit(engine))[-1].code for _ in range(2)] == then


async def test_where_the_limits_cannot_be_counted_no_place_is_taken(engine, monkeypatch):
    noon = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
    plan = {"ratelimit": 1, "daily_send_per_credential": 1, "daily_send": 1}
    await engine.start(plans={"default": plan}, clock=lambda: noon)
    await engine.credential(await engine.host("here.test", {}), "ann", PASSWORD)
    really, groups = counters._write, []

    def write_but_for_the_first(conn):
        groups.append(conn)
        if len(groups) == 1:
            raise StoreUnavailable
        return really(conn)

    monkeypatch.setattr(counters, "_write", write_but_for_the_first)
    assert [(await submit(engine))[-1].code for _ in range(3)] == [451, 250, 452]


@on_both
async def test_a_hash_of_yesterday_is_made_anew_at_log_in(engine, domain):
    yesterdays = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    await engine.database.write(
        lambda conn: credentials.update_credential(conn, domain, "ann", utc_now(), password_hash=yesterdays)
    )

    async def stored():
        return (
            await engine.database.read(lambda conn: credentials.get(conn, domain.id, "ann"))
        ).password_hash

    assert (await fail(engine))[0].code == 535
    assert await stored() == yesterdays
    await submit(engine)
    renewed = await stored()
    assert not passwords.outdated(renewed)
    assert passwords.verify(renewed, PASSWORD)
    await submit(engine)
    assert await stored() == renewed


@on_both
async def test_usage_is_noted(engine, domain):
    for _ in range(3):
        await submit(engine)
    await engine.servers["submission"].drain(timedelta(seconds=5))
    credential = await engine.database.read(lambda conn: credentials.get(conn, domain.id, "ann"))
    assert credential.usage == 3
    assert credential.last_used_at is not None


class Dns:
    """TXT and CNAME records, or trouble."""

    def __init__(self):
        self.texts = {}
        self.aliases = {}
        self.hosts = {}
        self.cached = {}
        self.trouble = False

    async def txt(self, name, *, fresh=False):
        if self.trouble:
            return CannotTell(reason="timeout")
        if fresh:
            self.cached[name] = self.texts.get(name)
        text = self.cached.setdefault(name, self.texts.get(name))
        return NotFound(nxdomain=False) if text is None else Found(records=(text,), ttl=timedelta(seconds=1))

    async def mx(self, name, *, fresh=False):
        if self.trouble:
            return CannotTell(reason="timeout")
        hosts = self.hosts.get(name, ())
        found = tuple(Mx(preference=10, host=host) for host in hosts)
        return Found(records=found, ttl=timedelta(seconds=1)) if found else NotFound(nxdomain=False)

    async def cname(self, name, *, fresh=False):
        if self.trouble:
            return CannotTell(reason="timeout")
        alias = self.aliases.get(name)
        return (
            NotFound(nxdomain=False) if alias is None else Found(records=(alias,), ttl=timedelta(seconds=1))
        )


async def start_unpublished(engine, dns: Dns) -> str:
    """``here.test`` with a log-in and a key that the DNS does not have yet; the key's record."""
    await engine.start(submission={"require_dns": True}, resolver=dns)
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    record = "v=DKIM1; k=rsa; p=AAAA"
    key = dkim_keys.NewDkimKey(selector="fwd1", algorithm="rsa", private_key=b"sealed", public_record=record)
    await engine.database.write(lambda conn: dkim_keys.add(conn, domain, key, utc_now()))
    return record


async def test_nothing_is_sent_before_the_dns_lets_it_pass(engine, monkeypatch):
    dns = Dns()
    record = await start_unpublished(engine, dns)

    monkeypatch.setattr(readiness, "AGAIN_AFTER", 0.0)
    answer = (await submit(engine))[-1]
    assert str(answer).startswith("550 5.7.0 ")
    assert "TXT here.test" in answer.text
    assert "include:mx.test" in answer.text
    assert "fwd1._domainkey.here.test" in answer.text
    [entry] = await engine.logs()
    assert (entry.events[0].status, entry.events[0].message) == (Status.REFUSED, answer.text)
    dns.texts["here.test"] = b"v=spf1 includ:other.test include:mx.test ~all"  # a permerror
    assert '"includ:other.test" is no term of SPF' in (await submit(engine))[-1].text
    dns.texts["here.test"] = b"v=spf1 include:mx.test ~all"
    answer = (await submit(engine))[-1]
    assert answer.code == 550
    assert "fwd1._domainkey.here.test" in answer.text
    assert "SPF" not in answer.text
    dns.trouble = True
    assert str((await submit(engine))[-1]).startswith("451 4.4.3")
    dns.trouble = False
    dns.texts["fwd1._domainkey.here.test"] = record.encode()
    monkeypatch.setattr(readiness, "AGAIN_AFTER", 1000.0)
    assert (await submit(engine))[-1].code == 550  # not at every message
    monkeypatch.setattr(readiness, "AGAIN_AFTER", 0.0)
    assert (await submit(engine))[-1].code == 250  # whatever the cache says still


async def test_a_cname_that_leads_to_no_key_lets_nothing_pass(engine, monkeypatch):
    monkeypatch.setattr(readiness, "AGAIN_AFTER", 0.0)
    dns = Dns()
    record = await start_unpublished(engine, dns)
    target = "fwd1._domainkey.here.test.mx.test"
    dns.texts["here.test"] = b"v=spf1 include:mx.test ~all"
    dns.aliases["fwd1._domainkey.here.test"] = target
    for there in (None, b"v=DKIM1; k=rsa; p=BBBB"):
        dns.texts[target] = there
        answer = (await submit(engine))[-1]
        assert answer.code == 550
        assert target in answer.text
    dns.texts[target] = record.encode()
    assert (await submit(engine))[-1].code == 250


@pytest.mark.parametrize("include", ["svc.test", "mx2.test", "mx.test"])
async def test_the_spf_record_may_name_any_machine_of_the_installation(engine, include):
    dns = Dns()
    await engine.start(submission={"require_dns": True}, resolver=dns, srs={"domain": "svc.test"})
    domain = await engine.host("here.test", {})
    await engine.credential(domain, "ann", PASSWORD)
    dns.texts["here.test"] = b"v=spf1 include:other.test ~all"
    dns.hosts["svc.test"] = ("mx2.test", "mx.test")
    answer = (await submit(engine))[-1]
    assert answer.code == 550
    assert "include:svc.test" in answer.text
    dns.cached["here.test"] = f"v=spf1 include:{include} ~all".encode()
    assert (await submit(engine))[-1].code == 250


async def test_trouble_of_the_store_is_temporary(engine, domain, monkeypatch):
    async def fail(*_):
        raise StoreUnavailable

    async with engine.client("submission") as client, engine.client("submission") as other:
        for each in (client, other):
            await each.ehlo()
            await each.starttls()
            await each.ehlo()
        assert (await client.login("ann@here.test", PASSWORD)).code == 235
        monkeypatch.setattr(type(engine.database), "read", fail)
        monkeypatch.setattr(type(engine.rooms.queue), "enqueue", fail)
        assert str(await other.login("ann@here.test", PASSWORD)).startswith("454 4.7.0")
        answers = await client.message(b"ann@here.test", [b"b@else.test"], CONTENT)
        assert str(answers[-1]).startswith("451 4.3.0")
        async with engine.client("submission") as third:
            assert str(third.greeting).startswith("421 4.3.0")
    monkeypatch.undo()
    assert (await submit(engine))[-1].code == 250


async def test_no_password_in_any_log(engine, domain, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    await fail(engine, 1, name=PASSWORD)
    await submit(engine)
    async with engine.client("submission") as client:
        await client.ehlo()
        await client.login("ann@here.test", PASSWORD)
    out, err = capfd.readouterr()
    shown = out + err + caplog.text
    assert "a log-in failed" in shown
    for secret in (PASSWORD, PLAIN.decode(), b64(PASSWORD).decode()):
        assert secret not in shown


@on_both
async def test_a_report_comes_back_to_a_sender_without_an_alias(engine, domain):
    assert (await submit(engine))[-1].code == 250
    [row] = await engine.deliveries()
    mark = trace.mark(SECRET, parse_address("b@else.test"))
    report = (
        b"From: <>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;"
        b" boundary=b\r\n\r\n--b\r\n\r\nfailed\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; else.test\r\n\r\nFinal-Recipient: rfc822; b@else.test\r\nAction: failed\r\n"
        b"Status: 5.2.2\r\n\r\n--b\r\nContent-Type: text/rfc822-headers\r\n\r\nX-Forwarder-Id: "
        + f"{row.id}-{mark}".encode()
        + b"\r\n\r\n--b--\r\n"
    )
    assert (await engine.send(b"", [b"ann@here.test"], report))[-1].code == 250
    async with asyncio.timeout(5):
        while True:
            events = [event.status for log in await engine.logs(domain) for event in log.events]
            if Status.HARD_BOUNCE in events:
                break
            await asyncio.sleep(0.01)
    assert len(await engine.deliveries()) == 1  # the report is logged as discarded, and goes nowhere
    forged = report.replace(mark.encode(), b"0" * len(mark))
    for sender, content in ((b"", CONTENT), (b"", forged), (b"x@else.test", report)):
        answers = await engine.send(sender, [b"ann@here.test"], content)
        assert "550" in {str(answer)[:3] for answer in answers}
    assert str((await engine.send(b"", [b"nobody@here.test"], report))[1]).startswith("550 5.1.1")


@on_both
@pytest.mark.parametrize("report_first", [False, True])
async def test_what_is_no_report_is_not_swallowed_beside_another_recipient(engine, domain, report_first):
    to = [b"info@here.test", b"ann@here.test"]  # an alias, and a log-in without one
    answers = await engine.send(b"", to[::-1] if report_first else to, CONTENT)
    assert [answer.code for answer in answers] == [250, 250, 452, 354, 550 if report_first else 250]
    assert await engine.destinations() == ["person@dest.test"] * (not report_first)
    told = [(log.recipient_email, event.status) for log in await engine.logs(domain) for event in log.events]
    assert ("ann@here.test", Status.DELIVERED) not in told


@pytest.mark.parametrize("author", [b'"a b"', b'"a@b"', b'"a,b"', b'"a\\@b"'])
async def test_a_quoted_address_is_not_the_one_with_underscores(engine, domain, author):
    await engine.credential(domain, "a_b", PASSWORD, is_limited=True)
    content = CONTENT.replace(b"Ann <ann@here.test>", author + b"@here.test")
    answers = await submit(engine, content, sender=b"a_b@here.test", login="a_b@here.test")
    assert str(answers[-1]).startswith("550 5.")
    fine = CONTENT.replace(b"Ann <ann@", b'"B, A @ here" <a_b@')
    assert (await submit(engine, fine, sender=b"a_b@here.test", login="a_b@here.test"))[-1].code == 250


async def test_without_a_certificate_there_is_no_submission(engine):
    engine._tls = None
    await engine.start()
    assert set(engine.servers) == {"mx"}
