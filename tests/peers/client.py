"""A raw SMTP dialogue client: it says the octets it is given and reads replies; no engine code.

    async with Client("127.0.0.1", port) as client:      # the greeting is client.greeting
        code, text = await client.say(b"MAIL FROM:<a@example.com>\r\n")

``say`` neither checks nor completes anything, so every malformation can be said. A closed connection raises
``Closed``; no answer in time raises ``TimeoutError``.
"""

import asyncio
import base64
import ssl
from collections.abc import Sequence
from typing import NamedTuple, Self


class Answer(NamedTuple):
    """One reply; ``text`` holds the lines without their codes, joined by newlines."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Closed(Exception):
    """The server hung up instead of answering."""


class Client:
    """One connection; ``tls``: TLS from the first octet."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10,
        local_address: str = "",
    ) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout
        self.greeting = Answer(0, "")
        self._tls = tls
        self._local_address = local_address
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> Answer:
        self._reader, self._writer = await asyncio.open_connection(
            self.host,
            self.port,
            ssl=self._tls,
            server_hostname="" if self._tls is not None else None,
            local_addr=(self._local_address, 0) if self._local_address else None,
            limit=1 << 20,
        )
        try:
            self.greeting = await self.read()
        except BaseException:
            await self.close()
            raise
        return self.greeting

    async def close(self) -> None:
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except (OSError, ssl.SSLError):
            return

    async def send(self, octets: bytes) -> None:
        """Say without waiting for an answer; one call is one segment when it fits."""
        self._writer.write(octets)
        async with asyncio.timeout(self.timeout):
            await self._writer.drain()

    async def read(self, timeout: float | None = None) -> Answer:
        """The next reply."""
        lines = []
        async with asyncio.timeout(self.timeout if timeout is None else timeout):
            while True:
                try:
                    line = await self._reader.readuntil(b"\n")
                except (asyncio.IncompleteReadError, OSError) as exc:
                    raise Closed(f"connection closed after {lines!r}") from exc
                lines.append(line[4:].rstrip(b"\r\n").decode("utf-8", "replace"))
                if line[3:4] != b"-":
                    return Answer(int(line[:3]), "\n".join(lines))

    async def say(self, octets: bytes) -> Answer:
        await self.send(octets)
        return await self.read()

    async def silent(self, seconds: float) -> bool:
        """No octet comes within that time."""
        try:
            await self.read(seconds)
        except TimeoutError:
            return True
        except Closed:
            return False
        return False

    async def closed(self, timeout: float | None = None) -> bool:
        """The server closes within the timeout; what it still says is dropped."""
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                while await self._reader.read(65_536):
                    continue
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    async def end_of_input(self) -> None:
        """Half-close: nothing more comes from us."""
        self._writer.write_eof()

    async def ehlo(self, name: bytes = b"client.test") -> Answer:
        return await self.say(b"EHLO " + name + b"\r\n")

    async def starttls(self, context: ssl.SSLContext | None = None) -> Answer:
        """STARTTLS, handshake (any certificate unless a context says otherwise); EHLO is up to the caller."""
        answer = await self.say(b"STARTTLS\r\n")
        if answer.code == 220:
            await self.handshake(context)
        return answer

    async def handshake(self, context: ssl.SSLContext | None = None) -> None:
        """Only the handshake, for those who said STARTTLS themselves."""
        async with asyncio.timeout(self.timeout):
            await self._writer.start_tls(context or any_certificate(), server_hostname="server.test")

    def shown_certificate(self) -> bytes:
        """What the server showed in the handshake, in DER."""
        shown: bytes = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown

    async def login(self, username: str, password: str) -> Answer:
        """AUTH PLAIN."""
        secret = base64.b64encode(f"\0{username}\0{password}".encode())
        return await self.say(b"AUTH PLAIN " + secret + b"\r\n")

    async def message(
        self,
        reverse_path: bytes,
        recipients: Sequence[bytes],
        content: bytes,
        *,
        parameters: bytes = b"",
        stuff: bool = True,
    ) -> list[Answer]:
        """MAIL, each RCPT, DATA, the content: all answers; stops at the first step that is refused.

        ``content`` is whole lines; with ``stuff`` its leading dots are doubled. RCPT is judged as a whole: DATA
        is said when one recipient at least was accepted.
        """
        answers = [await self.say(b"MAIL FROM:<" + reverse_path + b">" + parameters + b"\r\n")]
        if answers[-1].code != 250:
            return answers
        for recipient in recipients:
            answers.append(await self.say(b"RCPT TO:<" + recipient + b">\r\n"))  # noqa: PERF401
        if all(answer.code // 100 != 2 for answer in answers[1:]):
            return answers
        answers.append(await self.say(b"DATA\r\n"))
        if answers[-1].code == 354:
            if stuff:
                content = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
            answers.append(await self.say(content + b".\r\n"))
        return answers


async def send(
    host: str,
    port: int,
    reverse_path: bytes,
    recipients: Sequence[bytes],
    content: bytes,
    *,
    hello: bytes = b"client.test",
    local_address: str = "",
) -> Answer:
    """One message over a connection of its own; the last answer."""
    async with Client(host, port, local_address=local_address) as client:
        await client.ehlo(hello)
        answers = await client.message(reverse_path, recipients, content)
        await client.send(b"QUIT\r\n")
        return answers[-1]


def any_certificate() -> ssl.SSLContext:
    """A client context that believes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
