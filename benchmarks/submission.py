"""Submission with AUTH over TLS, and log-ins a second with a cold and a warm cache.

The client is asyncio in this process, so it takes its share of the processors; the engine's own processor time is
what to compare. Each password check of a cold log-in costs what argon2id is meant to cost.
"""

import asyncio
import base64
import ssl
import time
from functools import cache

from benchmarks import machine, report
from benchmarks.bench import Bench
from benchmarks.engine import DOMAIN, Engine
from benchmarks.load import INBOUND_PORT, SETTLED
from benchmarks.sink import smtp_sink
from forwarder.net.tls import self_signed

SESSIONS = 20
USERS = 10
_PORT = INBOUND_PORT + 22
_PASSWORD = "benchmark-password-of-no-one"
_PLAN = "[plans.default]\nratelimit = 10000000\ndaily_send = 10000000\ncredentials = 1000\n"


async def submission(bench: Bench) -> list[report.Section]:
    """Messages, then log-ins."""
    certificate, key = self_signed(["mx.fwd.test"], bench.root)
    common = {
        "SUBMISSION__LISTEN_TLS": f'["127.0.0.1:{_PORT}"]',
        "SUBMISSION__REQUIRE_DNS": "false",
        "SUBMISSION__CONNECTIONS_PER_CLIENT": "0",
        "SUBMISSION__CONNECTIONS_PER_MINUTE": "0",
        "TLS__CERTIFICATE": str(certificate),
        "TLS__KEY": str(key),
        "DKIM__ALGORITHMS": '["rsa", "ed25519"]',
    }
    rows = []
    warm = Engine(bench.root / "submission", port=INBOUND_PORT + 20, settings=common, config=_PLAN)
    with bench.serving(warm):
        _add_users(warm)
        for name, count, reuse in (
            ("a connection, a handshake and a log-in a message", bench.times(1000), False),
            ("reused connections", bench.times(3000), True),
        ):
            bench.tell(f"submission: {name}")
            rows.append((name, *await _messages(warm, count, reuse=reuse)))
        bench.tell("log-ins, warm")
        logins = [("warm: the log-in is remembered", *await _logins(warm, bench.times(1000)))]
    cold = Engine(
        bench.root / "cold",
        port=INBOUND_PORT + 20,
        settings={**common, "SUBMISSION__LOGIN_CACHE": "0s"},
        config=_PLAN,
    )
    with bench.serving(cold):
        _add_users(cold)
        bench.tell("log-ins, cold")
        logins.append(("cold: argon2id every time", *await _logins(cold, bench.times(150))))
    return [
        report.Section(
            "Submission",
            f"4 KiB over TLS 1.3 from the first byte, AUTH PLAIN, signed twice by the customer's domain; {SESSIONS} "
            "sessions.",
            ("load", "messages/s", "CPU ms/message (engine)", "all arrived"),
            rows,
        ),
        report.Section(
            "Log-ins",
            "Each on a connection of its own, the TLS handshake included.",
            ("cache", "log-ins/s", "CPU ms/log-in (engine)"),
            logins,
        ),
    ]


def _add_users(engine: Engine) -> None:
    for n in range(USERS):
        answer = {"username": f"user{n}", "password": _PASSWORD}
        engine.call("POST", f"/domains/{DOMAIN}/credentials", answer)


async def _messages(engine: Engine, count: int, *, reuse: bool) -> tuple[str, str, str]:
    await _meet()
    numbers = iter(range(count))

    async def worker(user: int) -> None:
        client = None
        for _ in numbers:
            if client is None:
                client = await _logged_in(user)
            await client.send(user)
            if not reuse:
                client.close()
                client = None
        if client is not None:
            client.close()

    async with smtp_sink() as sink:
        cpu, began = machine.cpu_seconds(engine.roots()), time.monotonic()
        await asyncio.gather(*(worker(n % USERS) for n in range(SESSIONS)))
        complete = await sink.reach(count, patience=60)
        elapsed = time.monotonic() - began
        await asyncio.sleep(SETTLED)
        complete = complete and sink.taken == count
        spent = machine.cpu_seconds(engine.roots()) - cpu
    return f"{count / elapsed:.0f}", f"{spent / count * 1000:.2f}", "yes" if complete else "NO"


async def _meet() -> None:
    """Every process has met every user; without a cache it makes no difference."""
    for n in range(USERS * 4):
        (await _logged_in(n % USERS)).close()


async def _logins(engine: Engine, count: int) -> tuple[str, str]:
    numbers = iter(range(count))
    await _meet()
    cpu, began = machine.cpu_seconds(engine.roots()), time.monotonic()

    async def worker() -> None:
        for n in numbers:
            (await _logged_in(n % USERS)).close()

    await asyncio.gather(*(worker() for _ in range(SESSIONS)))
    elapsed = time.monotonic() - began
    spent = machine.cpu_seconds(engine.roots()) - cpu
    return f"{count / elapsed:.0f}", f"{spent / count * 1000:.2f}"


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def say(self, octets: bytes, code: bytes) -> None:
        self._writer.write(octets)
        while True:
            line = await self._reader.readline()
            if not line.startswith(code):
                raise RuntimeError(f"expected {code.decode()}, was told {line[:200]!r}")
            if line[3:4] != b"-":
                return

    async def send(self, user: int) -> None:
        sender = f"user{user}@{DOMAIN}".encode()
        envelope = b"MAIL FROM:<" + sender + b">\r\nRCPT TO:<someone@dest.test>\r\nDATA\r\n"
        self._writer.write(envelope)
        for code in (b"250", b"250", b"354"):
            await self.say(b"", code)
        head = b"From: <" + sender + b">\r\nTo: <someone@dest.test>\r\nSubject: submitted\r\n\r\n"
        await self.say(head + (b"z" * 70 + b"\r\n") * 55 + b".\r\n", b"250")

    def close(self) -> None:
        self._writer.write(b"QUIT\r\n")
        self._writer.close()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _logged_in(user: int) -> _Client:
    client = _Client(*await asyncio.open_connection("127.0.0.1", _PORT, ssl=_context()))
    await client.say(b"", b"220")
    await client.say(b"EHLO client.test\r\n", b"250")
    secret = base64.b64encode(f"\0user{user}@{DOMAIN}\0{_PASSWORD}".encode())
    await client.say(b"AUTH PLAIN " + secret + b"\r\n", b"235")
    return client
