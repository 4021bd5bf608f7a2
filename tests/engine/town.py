"""A house with neighbours: who sends, who receives, who is always well; and what must hold after every test.

``Town.sink`` plays the destinations at ``dest.test``, ``Town.origin`` receives what goes back to senders at
``out.test``, ``Town.well`` is a destination (``well.test``) that never misbehaves. ``example.com`` is hosted from the
start with the aliases of ``ALIASES``: mail to ``to.<part>@example.com`` goes to ``<part>@dest.test``, so that the
part the sink plays is chosen by the recipient.

``goes_on`` is what every test ends with: the engine lives, nothing was logged as an error, and the next normal message
is delivered.
"""

import asyncio
import base64
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import asyncpg
import dkim
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from forwarder.clock import utc_now
from forwarder.keyring import open_keyring
from forwarder.mail.seal import public_record
from forwarder.store import aliases, dkim_keys, domains
from tests.harness import House, wait_until
from tests.peers.client import Client
from tests.peers.sink import Received, Sink

ALIASES = {
    "*": "inbox@dest.test",
    "well": "well@well.test",
    r"to\.(.+)": "$1@dest.test",
    "pair": "first@dest.test, second@dest.test",
}
MAIL = (
    b"From: Ann <ann@out.test>\r\nTo: info@example.com\r\nSubject: hello\r\nMessage-ID: <1@out.test>\r\n"
    b"\r\nhello\r\n"
)


class _VerifyKey:
    """What dkimpy wants of PyNaCl, which is not installed: the curve by OpenSSL, everything else stays dkimpy's."""

    def __init__(self, key: bytes, encoder: object) -> None:
        self._key = Ed25519PublicKey.from_public_bytes(base64.b64decode(key))

    def verify(self, message: bytes, signature: bytes) -> None:
        self._key.verify(signature, message)


dkim.nacl = SimpleNamespace(
    signing=SimpleNamespace(VerifyKey=_VerifyKey),
    encoding=SimpleNamespace(Base64Encoder=None),
    exceptions=SimpleNamespace(ValueError=ValueError, BadSignatureError=InvalidSignature),
)


class Town(House):
    """See the module."""

    def __init__(self, folder: Path, furnished: Path, api_key: str) -> None:
        super().__init__(folder)
        shutil.copytree(furnished, folder / "data")
        self.api_key = api_key
        self.origin: Sink
        self.well: Sink
        self._probes = 0
        self._forgiven: list[str] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.origin = await self.another_sink("127.0.0.3", "out.test")
        self.well = await self.another_sink("127.0.0.9", "well.test")
        return self

    async def another_sink(self, host: str, domain: str, **features: Any) -> Sink:
        """A destination on an address of its own; all share the port."""
        sink = Sink(host=host, port=self.sink.port, **features)
        await self._stack.enter_async_context(sink)
        self.dns.mail_host(domain, host)
        return sink

    async def alias(
        self, pattern: str, forward: str, *, domain: str = "example.com", when_disabled: int | None = None
    ) -> None:
        """One more alias; ``when_disabled``: it is switched off and answers so."""
        hosted = await self.domain(domain)
        await self.database.write(
            lambda conn: aliases.add(
                conn,
                hosted,
                pattern,
                forward,
                utc_now(),
                is_active=when_disabled is None,
                when_disabled=when_disabled or 550,
            )
        )
        if self.running is not None:  # else: in force within a second; until then * may answer
            await self.running.directory.catch_up()

    async def leads_here(self, domain: str) -> None:
        """The MX records of a domain are found to lead here."""
        hosted = await self.domain(domain)
        await self.database.write(
            lambda conn: domains.record_check(
                conn,
                hosted,
                utc_now(),
                is_active=True,
                sending_ready=False,
                broken_since=None,
                notified_at=None,
            )
        )

    async def towards(self, domain: str) -> str:
        """An address whose mail goes to a person at that domain."""
        await self.alias(f"for.{domain}", f"person@{domain}")
        return f"for.{domain}@example.com"

    @asynccontextmanager
    async def logged_in(self, login: str) -> AsyncIterator[Client]:
        """A client of the submission listener that has logged in, over TLS, with a new credential."""
        await self.credential(login, "a long password")
        async with self.client("submission") as client:
            await client.ehlo()
            await client.starttls()
            await client.ehlo()
            assert (await client.login(login, "a long password")).code == 235
            yield client

    async def events_for(self, recipient: str) -> list[tuple[str, int, str]]:
        """(status, code, message) of the events of one alias, oldest first."""
        logs = [entry for entry in await self.logs("example.com") if entry.recipient_email == recipient]
        return [(str(e.status), e.code, e.message) for entry in reversed(logs) for e in entry.events]

    async def wait_for_event(self, recipient: str, status: str) -> tuple[str, int, str]:
        """The first event of that status at that alias."""

        async def look() -> list[tuple[str, int, str]]:
            return [event for event in await self.events_for(recipient) if event[0] == status]

        found = await wait_until(look, what=f"{status} of {recipient}")
        return found[0]

    @asynccontextmanager
    async def hand_on(self, url: str) -> AsyncIterator[Any]:
        """A connection to PostgreSQL, as somebody has it who looks, or changes things, by hand."""
        conn = await asyncpg.connect(url)
        try:
            yield conn
        finally:
            conn.terminate()

    # --- what must hold

    @property
    def errors(self) -> list[dict[str, Any]]:
        """What the engine logged as an error, asyncio's unretrieved exceptions among it."""
        said = [json.loads(line) for line in self.log.getvalue().splitlines()]
        found = [line for line in said if line["level"] in ("error", "critical")]
        return [line for line in found if not any(word in str(line) for word in self._forgiven)]

    def forgive(self, word: str) -> None:
        """Errors with this word are what the test asked for; there must be one by now."""
        assert any(word in str(line) for line in self.errors), f"nothing was logged about {word}"
        self._forgiven.append(word)

    async def goes_on(self) -> None:
        """The engine lives, no error was logged, and the next normal message is delivered."""
        self._probes += 1
        subject = b"Subject: probe %d\r\n\r\nx\r\n" % self._probes
        answer = await self.send("probe@out.test", "well@example.com", subject)
        assert answer.code == 250, answer
        await self.well.wait_until(lambda: any(m.content.endswith(subject) for m in self.well.messages))
        assert self.running is not None
        tasks = self.running.health().tasks
        assert all(tasks.values()), tasks
        assert self.errors == [], self.errors
        assert [*self.sink.violations, *self.origin.violations, *self.well.violations] == []
        assert [*self.sink.trouble, *self.origin.trouble, *self.well.trouble] == []

    async def settled(self) -> None:
        """Until nothing is left in the queue."""
        await wait_until(self.queue_is_empty, what="the queue to be empty")

    async def refused_events(self) -> list[tuple[int, str]]:
        """Code and text of every REFUSED event; what is written behind the reply is waited for."""
        assert self.running is not None
        await self.running.journal.flush()
        return [(code, text) for status, code, text in await self.events() if status == "REFUSED"]

    # --- signatures, as another implementation sees them

    async def published(self, domain: str = "mx.test") -> Mapping[bytes, bytes]:
        """The TXT records of the keys of the service, or of a domain hosted here."""
        if domain == "mx.test":
            return {
                f"{signer.selector}._domainkey.{domain}.".encode(): public_record(signer.key).encode()
                for signer in open_keyring(self.settings).service
            }
        hosted = await self.domain(domain)
        keys = await self.database.read(lambda conn: dkim_keys.list_keys(conn, hosted.id))
        return {f"{key.selector}._domainkey.{domain}.".encode(): key.public_record.encode() for key in keys}

    async def verified(self, message: Received, domain: str = "mx.test") -> list[bool]:
        """The verdict of dkimpy on each DKIM signature of that domain, topmost first."""
        records = await self.published(domain)

        def verify() -> list[bool]:
            checker = dkim.DKIM(message.content)
            values = [value for name, value in checker.headers if name.lower() == b"dkim-signature"]
            theirs = re.compile(rb"\bd=" + re.escape(domain.encode()) + rb";")
            return [
                checker.verify(idx=place, dnsfunc=lambda name, timeout=5: records.get(name))
                for place, value in enumerate(values)
                if theirs.search(value)
            ]

        return await asyncio.to_thread(verify)

    async def sealed(self, message: Received) -> bytes:
        """dkimpy's word on the ARC chain: ``pass``, ``fail`` or ``none``."""
        records = await self.published()

        def verify() -> bytes:
            chain, _, _ = dkim.ARC(message.content).verify(dnsfunc=lambda name, timeout=5: records.get(name))
            return chain

        return await asyncio.to_thread(verify)


def head_of(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[0] + b"\r\n"


def names_of(head: bytes) -> list[str]:
    """The names of the fields of a head, in order."""
    return [
        line.partition(b":")[0].decode("ascii")
        for line in head.split(b"\r\n")
        if line and line[:1] not in (b" ", b"\t")
    ]


def codes(answers: Sequence[Any]) -> list[int]:
    return [answer.code for answer in answers]
