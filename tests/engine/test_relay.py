"""Not a relay, not a backscatterer: what is not ours is refused in the session, and nobody is told by mail."""

import pytest

from tests.engine.town import MAIL, Town

BATTERY = [
    b"victim@dest.test",
    b"victim%dest.test@example.com",
    b'"victim@dest.test"@example.com',
    b"@example.com:victim@dest.test",
    b"@dest.test,@example.com:victim@dest.test",
    b"victim@dest.test@example.com",
    b"victim@[127.0.0.1]",
    b"victim@[IPv6:::1]",
    b"victim@127.0.0.1",
    b"dest.test!victim@example.com",
    b"example.com!victim@dest.test",
    b"victim@sub.example.com",
    b"victim@example.com.dest.test",
    b"victim@localhost",
    b"victim@mx.test",
]


async def test_relay_forms_are_refused(engine: Town) -> None:
    await engine.host("strict.example", {"info": "person@well.test"})
    for path in BATTERY:
        # Where the alias * answers for example.com, an opaque local part is that alias's mail and nobody else's.
        path = path.replace(b"@example.com", b"@strict.example")
        async with engine.client() as client:
            await client.ehlo()
            await client.say(b"MAIL FROM:<ann@out.test>\r\n")
            answer = await client.say(b"RCPT TO:<" + path + b">\r\n")
            assert str(answer).startswith(("554 5.7.1", "550 5.7.1", "501 5.1.3", "550 5.1.1")), (
                path,
                answer,
            )
            assert (await client.say(b"DATA\r\n")).code == 554
    await engine.goes_on()
    assert engine.sink.messages == []
    assert {m.recipients for m in engine.well.messages} == {("well@well.test",)}


async def test_a_wildcard_takes_the_local_part_as_it_is(engine: Town) -> None:
    taken = 0
    for path in BATTERY:
        if not path.endswith(b"@example.com") or path == b"victim@dest.test@example.com":
            continue
        answer = await engine.send("ann@out.test", path.decode(), MAIL)
        assert answer.code == 250, (path, answer)
        taken += 1
    await engine.sink.wait_for(taken)
    assert taken == 3
    assert {m.recipients for m in engine.sink.messages} == {("inbox@dest.test",)}
    await engine.goes_on()


@pytest.mark.parametrize(
    ("when_disabled", "reply"),
    [(550, "550 5.2.1"), (421, "4"), (250, "250")],
    ids=["refuse", "defer", "discard"],
)
async def test_a_disabled_alias_never_makes_a_report(engine: Town, when_disabled: int, reply: str) -> None:
    await engine.alias("off", "person@dest.test", when_disabled=when_disabled)
    answer = await engine.send("ann@out.test", "off@example.com", MAIL)
    assert str(answer).startswith(reply)
    await engine.goes_on()
    await engine.settled()
    assert engine.sink.messages == []
    assert engine.origin.messages == []
    assert engine.running is not None
    await engine.running.journal.flush()
    # Discarding is what the owner wanted, and the log says so.
    assert ("Discarded" in str(await engine.events("example.com"))) == (when_disabled == 250)


async def test_unknown_recipients_are_refused_in_the_session_and_logged(engine: Town) -> None:
    await engine.host("strict.example", {"info": "person@dest.test"})
    async with engine.client() as client:
        await client.ehlo()
        await client.say(b"MAIL FROM:<ann@out.test>\r\n")
        for number in range(5):
            answer = await client.say(b"RCPT TO:<nobody%d@strict.example>\r\n" % number)
            assert str(answer).startswith("550 5.1.1")
    await engine.goes_on()
    assert engine.running is not None
    await engine.running.journal.flush()
    statuses = await engine.statuses("strict.example")
    assert statuses
    assert set(statuses) == {"REFUSED"}
    assert engine.origin.messages == []


async def test_recipients_beyond_the_limit_wait_and_those_accepted_get_one_copy_each(town: Town) -> None:
    async with town.engine(mx={"recipients": 120}):
        async with town.client() as client:
            await client.ehlo()
            await client.say(b"MAIL FROM:<ann@out.test>\r\n")
            commands = [b"RCPT TO:<to.r%d@example.com>\r\n" % number for number in range(170)]
            await client.send(b"".join(commands))
            answers = [await client.read() for _ in commands]
            assert [answer.code for answer in answers] == [250] * 120 + [452] * 50
            assert answers[-1].text.startswith("4.5.3")
            await client.say(b"DATA\r\n")
            assert (await client.say(MAIL + b".\r\n")).code == 250
        await town.sink.wait_until(
            lambda: sum(len(m.recipients) for m in town.sink.messages) >= 120, timeout=20
        )
        await town.goes_on()
        await town.settled()
        arrived = sorted(to for m in town.sink.messages for to in m.recipients)
        assert arrived == sorted(f"r{number}@dest.test" for number in range(120))


async def test_vrfy_and_expn_tell_nobody_apart(engine: Town) -> None:
    await engine.host("strict.example", {"info": "person@dest.test"})
    async with engine.client() as client:
        await client.ehlo()
        for verb in (b"VRFY", b"EXPN"):
            known = await client.say(verb + b" info@strict.example\r\n")
            assert known == await client.say(verb + b" nobody@strict.example\r\n")
            assert known.code in (252, 502)
        assert str(await client.say(b"BDAT 10 LAST\r\n")).startswith("502 5.5.1")
    for line in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n", b"CONNECT x:25 HTTP/1.1\r\n"):
        async with engine.client() as client:
            assert str(await client.say(line)).startswith(("521 5.7.0", "502 5.7.0"))
            assert await client.closed()
    await engine.goes_on()
