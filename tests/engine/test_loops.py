"""Circles end and bombs fizzle: between engines, between aliases, in one alias."""

import time
from collections.abc import Mapping
from pathlib import Path

from tests.engine.town import MAIL, Town
from tests.harness import wait_until


async def test_hops_are_counted(engine: Town) -> None:
    for hops in (49, 50, 51, 300):
        content = b"Received: from a by b; Fri, 20 Nov 2026 12:00:00 +0000\r\n" * hops + MAIL
        answer = await engine.send("ann@out.test", "info@example.com", content)
        assert str(answer).startswith("250" if hops <= 50 else "554 5.4.6"), hops
    await engine.goes_on()
    await engine.settled()
    assert len(engine.sink.messages) == 2
    assert engine.origin.messages == []


async def test_a_circle_over_two_engines_ends_with_one_report(
    town: Town, tmp_path: Path, furnished: tuple[Path, str]
) -> None:
    """Neither knows the other's secrets; the first sees its own mark when the message is back."""
    port = town.sink.port
    folder = tmp_path / "second"
    folder.mkdir()
    async with Town(folder, *furnished) as other:
        for secret in (folder / "data" / "keys").glob("srs*"):
            secret.unlink()
        for host, names in (
            ("127.0.0.6", ("mx.test", "a.example")),
            ("127.0.0.7", ("mx2.test", "b.example")),
        ):
            for name in names:
                town.dns.mail_host(name, host)
        outbound = {"port": port, "allow_private_destinations": True}
        beyond = other.engine(
            hostname="mx2.test",
            mx={"listen": [f"127.0.0.7:{port}"]},
            dns={"nameservers": [town.dns.address]},
            outbound=outbound,
        )
        async with (
            town.engine(mx={"listen": ["127.0.0.1:0", f"127.0.0.6:{port}"]}, outbound=outbound),
            beyond,
        ):
            await town.host("a.example", {"info": "info@b.example"})
            await other.host("b.example", {"info": "info@a.example"})
            assert (await town.send("ann@out.test", "info@a.example", MAIL)).code == 250
            (report,) = await town.origin.wait_for(1)
            assert report.reverse_path == ""
            assert b"\r\nStatus: 5.4.6\r\n" in report.content
            assert b"\r\nFinal-Recipient: rfc822; info@b.example\r\n" in report.content
            await town.goes_on()
            await town.settled()
            await other.settled()
            assert len(town.origin.messages) == 1
            assert other.errors == []
            assert await other.statuses("b.example") == ["QUEUED", "HARD-BOUNCE"]
            assert sorted(await town.statuses("a.example")) == [
                "DELIVERED",
                "HARD-BOUNCE",
                "QUEUED",
                "REFUSED",
            ]


async def test_an_alias_to_itself_is_refused_when_it_is_made(engine: Town) -> None:
    await engine.host("a.example", {})
    await engine.host("b.example", {"info": "info@a.example"})
    async with engine.api() as api:
        for body in (
            {"alias": "me", "forward": "me@a.example"},
            {"alias": "me", "forward": "x@out.test,me+label@a.example"},
            {"alias": "info", "forward": "info@b.example"},
            {"alias": "x-*", "forward": "x-y@a.example"},
            {"alias": "(.*)", "forward": "$1@a.example"},
        ):
            answer = await api.post("/v3/domains/a.example/aliases/", json=body)
            assert answer.status_code in (400, 422), body
            assert answer.json()["success"] is False
        answer = await api.get("/v3/domains/a.example/aliases")
        assert answer.json()["total"] == 0
    await engine.goes_on()


async def test_a_circle_that_got_into_the_store_ends_at_rcpt(engine: Town) -> None:
    """Saved together by two processes, or by hand: neither save saw the other."""
    await engine.host("a.example", {"info": "info@b.example", "mixed": "mixed@b.example, person@dest.test"})
    await engine.host("b.example", {"info": "info@a.example", "mixed": "mixed@a.example"})
    answer = await engine.send("ann@out.test", "info@a.example", MAIL)
    assert str(answer).startswith("550 5.4.6")
    # A way that leads somewhere is taken, the circle beside it is left out.
    assert (await engine.send("ann@out.test", "mixed@a.example", MAIL)).code == 250
    (message,) = await engine.sink.wait_for(1)
    assert message.recipients == ("person@dest.test",)
    await engine.goes_on()
    await engine.settled()
    assert len(engine.sink.messages) == 1


def graph(width: int, depth: int) -> Mapping[str, str]:
    """Layers of aliases; each leads to all of the next layer, the last ones outside."""
    aliases = {}
    for layer in range(depth):
        for node in range(width):
            if layer + 1 < depth:
                forward = ", ".join(f"n{layer + 1}-{other}@bomb.example" for other in range(width))
            else:
                forward = ", ".join(f"end{node}-{other}@dest.test" for other in range(width))
            aliases[f"n{layer}-{node}"] = forward
    return aliases


async def test_an_expansion_bomb_is_refused_at_rcpt_quickly(engine: Town) -> None:
    await engine.host("bomb.example", graph(10, 10))
    began = time.process_time()
    answer = await engine.send("ann@out.test", "n0-0@bomb.example", MAIL)
    took = time.process_time() - began
    assert str(answer).startswith(("550 5.4.6", "250")), answer
    assert took < 0.5
    if answer.code == 250:  # a hundred ends, each reached in a hundred million ways, each once
        await engine.sink.wait_until(lambda: sum(len(m.recipients) for m in engine.sink.messages) >= 100)
    await engine.goes_on()
    await engine.settled()
    arrived = [to for m in engine.sink.messages for to in m.recipients]
    assert len(arrived) == len(set(arrived)) <= 1000


async def test_too_many_destinations_are_refused_at_rcpt(engine: Town) -> None:
    wide = {f"w{n}": ", ".join(f"x{n}-{m}@dest.test" for m in range(100)) for n in range(11)}
    wide["ten"] = ", ".join(f"w{n}@wide.example" for n in range(10))
    wide["eleven"] = ", ".join(f"w{n}@wide.example" for n in range(11))
    await engine.host("wide.example", wide)
    answer = await engine.send("ann@out.test", "eleven@wide.example", MAIL)
    assert str(answer).startswith("550 5.4.6")
    assert (await engine.send("ann@out.test", "ten@wide.example", MAIL)).code == 250
    await engine.sink.wait_until(
        lambda: sum(len(m.recipients) for m in engine.sink.messages) >= 1000, timeout=30
    )
    await engine.goes_on()
    await wait_until(engine.queue_is_empty, deadline=30)
    arrived = [to for m in engine.sink.messages for to in m.recipients]
    assert len(arrived) == len(set(arrived)) == 1000


async def test_what_a_list_among_the_recipients_sends_on_is_no_circle(engine: Town) -> None:
    """One copy goes to the list and to Ann; by what it bears nobody can tell which of them a later one comes from."""
    await engine.alias("team", "list@dest.test")
    await engine.alias("ann", "annbox@dest.test")
    both = ["team@example.com", "ann@example.com"]
    assert (await engine.send("bob@out.test", both, MAIL)).code == 250
    (copy,) = await engine.sink.wait_for(1)
    assert copy.recipients == ("list@dest.test", "annbox@dest.test")
    assert (await engine.send("list@dest.test", "ann@example.com", copy.content)).code == 250
    to_ann = (await engine.sink.wait_for(2))[-1]
    assert to_ann.recipients == ("annbox@dest.test",)
    # She, or the list, sends it back to her alias, or both do so to both again and again: that ends.
    answer = await engine.send("list@dest.test", "ann@example.com", to_ann.content)
    assert str(answer).startswith("554 5.4.6")
    assert (await engine.send("list@dest.test", both, copy.content)).code == 250
    again = (await engine.sink.wait_for(3))[-1]
    for recipient in both:
        answer = await engine.send("list@dest.test", recipient, again.content)
        assert str(answer).startswith("554 5.4.6")
    await engine.goes_on()
    await engine.settled()
    assert len(engine.sink.messages) == 3
