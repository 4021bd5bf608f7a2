"""Return addresses of ours: the right ones lead back to the sender, all others are nobody's."""

from datetime import UTC, datetime, timedelta

from forwarder.keyring import open_keyring
from forwarder.mail.address import parse_address
from forwarder.mail.srs import Srs
from tests.engine.town import MAIL, Town


async def return_address(town: Town, sender: str = "ann@out.test") -> str:
    """What the destination saw as reverse-path."""
    count = len(town.sink.messages)
    assert (await town.send(sender, "info@example.com", MAIL)).code == 250
    return (await town.sink.wait_for(count + 1))[-1].reverse_path


async def test_a_bounce_finds_its_way_back(engine: Town) -> None:
    path = await return_address(engine)
    for spelled in (path, path.lower(), path.upper()):
        assert (await engine.send("", spelled, MAIL)).code == 250, spelled
    await engine.origin.wait_for(3)
    assert {m.recipients[0] for m in engine.origin.messages} <= {"ann@out.test", "ANN@out.test"}
    assert {m.reverse_path for m in engine.origin.messages} == {""}
    await engine.goes_on()


async def test_forged_and_expired_ones_are_unknown(engine: Town) -> None:
    path = await return_address(engine)
    local, _, _ = path.partition("@")
    _, digest, day, domain, sender = local.split("=")
    ann, now = parse_address("ann@out.test"), datetime.now(UTC)
    secrets = open_keyring(engine.settings).srs_secrets
    other_secret = Srs([b"some other secret of 32 octets..."], "mx.test")
    for name, forged in {
        "another hash": f"SRS0={'AAAA' if digest != 'AAAA' else 'BBBB'}={day}={domain}={sender}@mx.test",
        "another day": f"SRS0={digest}={'AA' if day != 'AA' else 'BB'}={domain}={sender}@mx.test",
        "another secret": other_secret.forward(ann, now=now).wire(),
        "too old": Srs(secrets, "mx.test").forward(ann, now=now - timedelta(days=30)).wire(),
        "SRS1": f"SRS1={digest}=evil.test=={digest}={day}={domain}={sender}@mx.test",
        "another sender": f"SRS0={digest}={day}={domain}=victim@mx.test",
        "empty": "SRS0=@mx.test",
        "bare": "SRS0@mx.test",
    }.items():
        answer = await engine.send("", forged, MAIL)
        assert str(answer).startswith(("550 5.1.1", "550 5.7.1", "554 5.7.1")), (name, answer)
    await engine.goes_on()
    assert engine.origin.messages == []
    assert len(engine.sink.messages) == 1


async def test_the_right_hash_at_a_foreign_domain_is_an_ordinary_recipient(engine: Town) -> None:
    local, _, _ = (await return_address(engine)).partition("@")
    await engine.host("strict.example", {"info": "person@dest.test"})
    assert str(await engine.send("", f"{local}@strict.example", MAIL)).startswith("550 5.1.1")
    assert str(await engine.send("", f"{local}@dest.test", MAIL)).startswith("554 5.7.1")
    # And where an alias takes everything, it is that alias's mail.
    assert (await engine.send("", f"{local}@example.com", MAIL)).code == 250
    assert (await engine.sink.wait_for(2))[-1].recipients == ("inbox@dest.test",)
    await engine.goes_on()
    assert engine.origin.messages == []


async def test_addresses_of_other_forwarders_pass_through_and_come_back(engine: Town) -> None:
    engine.dns.mail_host("first.test", engine.origin.host)
    for sender, back in (
        ("SRS0=HHHH=TT=far.test=bob@out.test", "SRS0=HHHH=TT=far.test=bob@out.test"),
        # The second forwarder has nothing to say about the way back: SRS1 leads to the first one at once.
        ("SRS1=GGGG=first.test==HHHH=TT=far.test=bob@out.test", "SRS0=HHHH=TT=far.test=bob@first.test"),
        ("b" * 64 + "@out.test", "b" * 64 + "@out.test"),
    ):
        engine.origin.messages.clear()
        path = await return_address(engine, sender)
        assert path.endswith("@mx.test")
        assert (await engine.send("", path, MAIL)).code == 250
        (message,) = await engine.origin.wait_for(1)
        assert message.recipients == (back,)
    await engine.goes_on()


async def test_a_sender_too_long_to_rewrite_is_refused(engine: Town) -> None:
    """Forwarded as it came it would have the SPF of a domain hosted here, which trusts our address."""
    longest = "SRS0-" + "x" * (254 - 5 - len("@example.com"))
    answer = await engine.send(f"{longest}@example.com", "info@example.com", MAIL)
    assert str(answer).startswith("553 5.1.7")
    assert (await engine.send("v" * 64 + "@out.test", "info@example.com", MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    assert message.reverse_path.endswith("@mx.test")
    await engine.goes_on()


async def test_a_bounce_to_mail_that_came_by_twice_finds_its_author(engine: Town) -> None:
    """Us, another forwarder, us again: both rewritings of ours are undone."""
    once = await return_address(engine)
    beyond = Srs([b"the secret of another forwarder, long"], "forwarder.example").forward(
        parse_address(once), now=datetime.now(UTC)
    )
    again = await return_address(engine, beyond.wire())
    assert again.startswith("SRS1=")
    assert (await engine.send("", again, MAIL)).code == 250
    (bounce,) = await engine.origin.wait_for(1)
    assert bounce.recipients == ("ann@out.test",)
    await engine.goes_on()
