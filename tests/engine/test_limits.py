"""Bounds of sessions: what is too long, too much, too slow or too often is told and ends; others notice nothing."""

import asyncio
import time
from pathlib import Path

from tests.engine.town import MAIL, Town
from tests.harness import wait_until
from tests.peers.client import Client


def resident() -> int:
    """Octets of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def of_size(octets: int) -> bytes:
    """A message of exactly so many octets, in lines of 80."""
    head = b"Subject: x\r\n\r\n"
    lines, rest = divmod(octets - len(head), 80)
    return head + (b"y" * 78 + b"\r\n") * (lines - 1) + b"z" * (78 + rest) + b"\r\n"


async def test_lines_of_text(engine: Town) -> None:
    for length in (998, 999, 1000, 1_000_000, 10_000_000):
        async with engine.client() as client:
            await client.ehlo()
            content = MAIL + b"y" * length + b"\r\n"
            answers = await client.message(b"ann@out.test", [b"info@example.com"], content)
            assert str(answers[-1]).startswith("250 2.0.0" if length == 998 else "500 5.5.2"), length
            # The session is usable.
            assert (await client.message(b"ann@out.test", [b"well@example.com"], MAIL))[-1].code == 250
    await engine.goes_on()
    await engine.settled()
    assert len(engine.sink.messages) == 1


async def test_lines_of_commands(engine: Town) -> None:
    for length in (512, 998, 2049, 10_000_000):
        async with engine.client() as client:
            await client.ehlo()
            before = resident()
            answer = await client.say(b"NOOP " + b"x" * (length - 7) + b"\r\n")
            assert str(answer).startswith("250" if length < 1000 else "500 5.5.2"), length
            # The line itself is made in this process as well, and may be there twice for a moment.
            assert resident() - before < 8 * 1024 * 1024 + 2 * length
            assert (await client.message(b"ann@out.test", [b"well@example.com"], MAIL))[-1].code == 250
    await engine.goes_on()


async def test_announced_and_real_sizes(town: Town) -> None:
    async with town.engine(mx={"size_limit": "64 KiB"}):
        async with town.client() as client:
            assert "SIZE 65536" in (await client.ehlo()).text.split("\n")
            for size, reply in (
                (b"65537", "552 5.3.4"),
                (b"-1", "501 5.5.4"),
                (b"9" * 60, "552 5.3.4"),
                (b"", "501 5.5.4"),
                (b"1e3", "501 5.5.4"),
            ):
                answer = await client.say(b"MAIL FROM:<ann@out.test> SIZE=" + size + b"\r\n")
                # Twenty digits are all that RFC 1870 allows for.
                assert str(answer).startswith((reply, "501 5.5.4")), (size, answer)
            for octets, code in ((65_536, 250), (65_537, 552), (300_000, 552), (3_000_000, 552)):
                content = of_size(octets)
                answers = await client.message(b"ann@out.test", [b"info@example.com"], content)
                assert answers[-1].code == code, (octets, len(content), answers[-1])
                if code == 552:
                    assert answers[-1].text.startswith("5.3.4")
        await town.goes_on()
        await town.settled()
        assert len(town.sink.messages) == 1


async def test_a_client_that_only_makes_noise_is_sent_away_and_others_are_served(engine: Town) -> None:
    await engine.host("strict.example", {"info": "person@dest.test"})
    noises = {
        "NOOP": (b"NOOP\r\n", 100),
        "RSET": (b"RSET\r\n", 100),
        "bad commands": (b"BANANA\r\n", 20),
        "unknown recipients": (b"RCPT TO:<nobody@strict.example>\r\n", 20),
        "a flood in one go": (b"NOOP\r\n" * 20_000, 100),
    }
    for name, (noise, bound) in noises.items():
        async with engine.client() as client:
            await client.ehlo()
            await client.say(b"MAIL FROM:<ann@out.test>\r\n")
            answers = 0
            await client.send(noise * (150 if "flood" not in name else 1))
            while (answer := await client.read()).code != 421:
                answers += 1
            assert answer.text.startswith("4.7.0"), name
            assert answers <= bound, name
            assert await client.closed(), name
    await engine.goes_on()


async def test_connections_at_once_and_each_minute(town: Town) -> None:
    async with town.engine(mx={"connections_per_client": 5, "connections_per_minute": 12}):
        async with asyncio.timeout(20):
            clients = [town.client() for _ in range(6)]
            for client in clients:
                await client.open()
            assert [client.greeting.code for client in clients] == [220] * 5 + [421]
            assert clients[-1].greeting.text.startswith("4.7.0")
            other = Client("127.0.0.1", town.mx_port, local_address="127.0.0.20")
            await other.open()
            await other.ehlo()
            answers = await other.message(b"ann@out.test", [b"info@example.com"], MAIL)
            assert answers[-1].code == 250
            await other.close()
            for client in clients:
                await client.close()
            assert town.running is not None
            servers = town.running._servers
            await wait_until(lambda: sum(server.sessions for server in servers) == 0)
            codes = []
            for _ in range(8):
                async with town.client() as client:
                    codes.append(client.greeting.code)
            assert codes[:6] == [220] * 6
            assert codes[-1] == 421
            await town.sink.wait_for(1)
            assert town.errors == []


async def test_slow_clients_are_told_and_honest_slow_data_arrives(town: Town) -> None:
    slow = {"command_timeout": "1s", "data_timeout": "1s", "connections_per_client": 0}
    async with town.engine(mx=slow):
        lazy = [town.client() for _ in range(100)]
        await asyncio.gather(*(client.open() for client in lazy))

        trickling = [asyncio.create_task(client.read(5)) for client in lazy]
        for client in lazy:
            await client.send(b"EHL")

        async with town.client() as steady:
            await steady.ehlo()
            await steady.say(b"MAIL FROM:<ann@out.test>\r\n")
            await steady.say(b"RCPT TO:<info@example.com>\r\n")
            await steady.say(b"DATA\r\n")
            delays = []
            for number in range(15):  # three seconds of data, three times the timeout
                await steady.send(b"X-Line: %d\r\n" % number)
                began = time.monotonic()
                assert (await town.send("bob@out.test", "well@example.com", MAIL)).code == 250
                delays.append(time.monotonic() - began)
                assert await steady.silent(0.2)
            assert (await steady.say(b"\r\nx\r\n.\r\n")).code == 250
        assert sorted(delays)[13] < 2
        answers = await asyncio.gather(*trickling)
        assert all(str(answer).startswith("421 4.4.2") for answer in answers)
        for client in lazy:
            assert await client.closed()
            await client.close()
        (message,) = await town.sink.wait_for(1)
        assert b"X-Line: 14\r\n\r\nx\r\n" in message.content
        await town.goes_on()


async def test_handshakes_that_stall_keep_nobody_out(engine: Town) -> None:
    stalled = [await asyncio.open_connection("127.0.0.1", engine.port("submission-tls")) for _ in range(100)]
    for _, writer in stalled[:50]:
        writer.write(b"\x16\x03\x01")
    await engine.goes_on()
    for _, writer in stalled:
        writer.transport.abort()
