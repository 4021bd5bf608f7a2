"""Destinations that refuse, stall, lie and flood: mail waits or comes back once, and other mail does not notice."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from forwarder.config.settings import OutboundSection
from forwarder.net.tls import ServerTls
from tests.engine.town import MAIL, Town
from tests.harness import wait_until

PHASES = ("connect", "ehlo", "mail", "rcpt", "data", "dot")
QUICK = {
    "greeting_timeout": "400ms",
    "command_timeout": "400ms",
    "data_timeout": "400ms",
    "dot_timeout": "400ms",
}
SLOW_RETRY = {"delays": ["10m"]}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("part", ["drop", "421", "451", "550"])
async def test_each_kind_of_no_at_each_step(town: Town, part: str) -> None:
    """A site for each step, so that what is known of one does not hide another."""
    async with town.engine(retry=SLOW_RETRY):
        sinks = {}
        for number, phase in enumerate(PHASES, 1):
            sink = sinks[phase] = await town.another_sink(f"127.0.2.{number}", f"{phase}.test")
            sink.play(phase, part)
            if phase == "ehlo":
                sink.play("helo", part)
            assert (await town.send("ann@out.test", await town.towards(f"{phase}.test"), MAIL)).code == 250
        wanted = "HARD-BOUNCE" if part == "550" else "SOFT-BOUNCE"
        await wait_until(lambda: _count(town, wanted, len(PHASES)), what=wanted)
        await town.goes_on()
        for status, code, text in await town.events("example.com"):
            if status == "SOFT-BOUNCE":
                assert 400 <= code < 500, text
                assert str(code) == part or text.startswith("4."), text
            elif status == "HARD-BOUNCE":
                assert code == 550
                assert "as told by the test" in text
        if part == "550":
            await town.origin.wait_for(len(PHASES))
            await town.settled()
            assert all(b"as told by the test" in report.content for report in town.origin.messages)
            assert Counter(b"Status: 5.7.0" in m.content for m in town.origin.messages)[True] == len(PHASES)
        else:
            assert not await town.queue_is_empty()
        assert len(town.origin.messages) == (len(PHASES) if part == "550" else 0)
        assert all(sink.messages == [] for phase, sink in sinks.items() if (phase, part) != ("dot", "drop"))


async def test_a_421_at_rcpt_is_no_refusal_of_the_recipient(engine: Town) -> None:
    engine.sink.play("rcpt", "421", times=1)
    assert (await engine.send("ann@out.test", "info@example.com", MAIL)).code == 250
    await engine.sink.wait_for(1)
    await engine.goes_on()
    await engine.settled()
    assert [s for s, _, _ in await engine.events("example.com")].count("SOFT-BOUNCE") == 1
    assert engine.origin.messages == []


async def test_silence_after_the_dot_makes_one_more_copy_and_the_log_says_why(town: Town) -> None:
    assert OutboundSection().dot_timeout.total_seconds() >= 600  # RFC 5321 4.5.3.2.6
    async with town.engine(outbound={"dot_timeout": "400ms"}):
        assert (await town.send("ann@out.test", "to.hang-after-dot-1x@example.com", MAIL)).code == 250
        await town.sink.wait_for(2)
        await town.goes_on()
        await town.settled()
        first, second = town.sink.messages
        assert first.reverse_path == second.reverse_path
        assert first.recipients == second.recipients
        assert first.content.endswith(MAIL)
        assert second.content.endswith(MAIL)
        soft = [text for status, _, text in await town.events("example.com") if status == "SOFT-BOUNCE"]
        assert len(soft) == 1
        assert "delivery_unknown" in soft[0]
        assert town.origin.messages == []


HOSTILE = (
    *("connect:trickle", "connect:endless", "connect:endless-line", "connect:garbage", "connect:hang"),
    *("ehlo:endless", "ehlo:mixed", "ehlo:ok-then-close", "mail:garbage", "rcpt:endless", "rcpt:mixed"),
    *("data:trickle", "dot:endless", "dot:garbage"),
)


async def test_hostile_hosts_end_in_a_deferral_in_time(town: Town) -> None:
    async with town.engine(retry=SLOW_RETRY, outbound=QUICK):
        before = resident()
        began = time.monotonic()
        hosts = []
        for number, part in enumerate(HOSTILE, 1):
            host = await town.another_sink(f"127.0.3.{number}", f"hostile{number}.test")
            host.play(*part.split(":"))
            hosts.append(host)
            recipient = await town.towards(f"hostile{number}.test")
            assert (await town.send("ann@out.test", recipient, MAIL)).code == 250
        for number, part in enumerate(HOSTILE, 1):
            _, code, _ = await town.wait_for_event(f"for.hostile{number}.test@example.com", "SOFT-BOUNCE")
            assert code == 451, part
        assert time.monotonic() - began < 10
        # Five times 64 MiB were offered, by sinks that live in this process as well.
        assert resident() - before < 40 * 1024 * 1024
        await town.goes_on()
        assert not await town.queue_is_empty()
        assert town.origin.messages == []
        for host in hosts:
            await host.close()


async def test_octets_put_before_the_handshake_are_not_believed(town: Town) -> None:
    async with town.engine(retry=SLOW_RETRY, outbound=QUICK):
        tls = ServerTls(town.certificate, town.key).context()
        honest = await town.another_sink("127.0.0.5", "honest.test", starttls=tls)
        lying = await town.another_sink("127.0.0.6", "lying.test", starttls=tls)
        lying.play("starttls", "inject")
        for domain in ("honest.test", "lying.test"):
            assert (await town.send("ann@out.test", await town.towards(domain), MAIL)).code == 250
        (message,) = await honest.wait_for(1)
        assert message.tls
        _, code, _ = await town.wait_for_event("for.lying.test@example.com", "SOFT-BOUNCE")
        assert code // 100 == 4
        await town.goes_on()
        assert lying.messages == []
        assert not any(command.startswith(b"MAIL") for command in lying.commands)
        assert not await town.queue_is_empty()


async def test_a_host_that_closes_again_and_again_costs_nothing(town: Town) -> None:
    async with town.engine(retry={"delays": ["10ms"]}):
        town.sink.play("ehlo", "ok-then-close")
        for number in range(5):
            assert (await town.send("ann@out.test", f"to.a{number}@example.com", MAIL)).code == 250
        await town.sink.wait_until(lambda: town.sink.connections >= 5, timeout=20)
        await town.goes_on()
        assert town.sink.messages == []
        assert not await town.queue_is_empty()


async def test_a_dead_slow_destination_does_not_delay_the_others(town: Town) -> None:
    async with town.engine(retry=SLOW_RETRY):
        dead = await town.another_sink("127.0.0.5", "dead.test")
        dead.play("connect", "hang")
        dead_end = await town.towards("dead.test")

        async def flood(worker: int) -> None:
            async with town.client() as client:
                await client.ehlo()
                for _ in range(75):
                    answers = await client.message(b"ann@out.test", [dead_end.encode()], MAIL)
                    assert answers[-1].code == 250

        await asyncio.gather(*(flood(worker) for worker in range(4)))
        delays = []
        for number in range(10):
            began = time.monotonic()
            assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
            await town.sink.wait_for(number + 1)
            delays.append(time.monotonic() - began)
        assert max(delays) < 2
        assert dead.open <= town.settings.outbound.concurrency_per_site
        await town.goes_on()
        await dead.close()


async def _count(town: Town, status: str, count: int) -> bool:
    return [seen for seen, _, _ in await town.events("example.com")].count(status) >= count
