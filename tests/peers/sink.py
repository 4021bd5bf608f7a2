"""A recording SMTP server that misbehaves on command; it plays the destination.

``async with Sink() as sink:`` listens on ``sink.host``:``sink.port`` (ephemeral, loopback). Every message that
arrived whole is in ``sink.messages``, with the exact bytes; ``await sink.wait_for(n)`` waits for the n-th. It is
written on raw streams and shares no code with the engine.

A part is played by the recipient's local part (for the phase ``mail``: by the reverse-path, also inside an SRS
address), spelled ``<part>-at-<phase>`` with an optional ``-<n>x`` (only the first n times for that address) and an
optional ``+anything``; or by ``sink.play(phase, part, times=n)``, which rules over every address.

Phases: connect, ehlo, helo, starttls, mail, rcpt, data, dot, rset, quit.  Parts:
    450, 550, …       that reply (421 also closes; 354 at data is nonsense and so refused)
    drop              close without a reply; ``drop-after-dot`` = ``drop-at-dot``: the message counts as received
    hang              no reply until the client goes away; ``hang-after-dot`` likewise received
    slow              the normal reply after ``sink.slowness`` seconds
    trickle           one octet of an unending line each 20 ms
    garbage           ``banana``
    endless           64 MiB of continuation lines        endless-line   64 MiB without a line end
    mixed             a multi-line reply that changes its code
    naming            (dot) 550 with the name of every recipient
    multi-line-550    550 in several lines with ESC, NUL, 0xFF and a bare CR; ``multi-line-550@`` plays it at rcpt
    450-then-close    that reply, then the connection is closed
    ok-then-close     the normal reply, then the connection is closed
    inject            (starttls) plaintext replies after the 220, in the same segment
    bad-handshake     (starttls) 220, then octets that are no TLS
"""

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.peers.dialogue import Dialogue, Received

__all__ = ["MULTI_LINE_550", "Received", "Sink"]

_BY_ADDRESS = re.compile(
    r"(?:^|=)(?P<part>[0-9a-z-]+?)-(?:at|after)-(?P<phase>[a-z]+)(?:-(?P<times>[0-9]+)x)?(?:\+[^=]*)?$"
)
_PATH = re.compile(rb"<([^>]*)>(.*)$", re.DOTALL)
MULTI_LINE_550 = (
    b"550-5.1.1 no \x1b[31mred\x1b[0m user\r\n550-5.1.1 nul\x00 high\xff cr\rmid\r\n550 5.1.1 end\r\n"
)


@dataclass(slots=True)
class _Play:
    part: str
    times: int | None


class _HangUp(Exception):
    """The part says: close now."""


class Sink:
    """See the module."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        pipelining: bool = True,
        size: int | None = None,
        eightbitmime: bool = True,
        smtputf8: bool = True,
        starttls: ssl.SSLContext | None = None,
        esmtp: bool = True,
        enhanced: bool = True,
        lenient_data: bool = False,  # 354 although no recipient was accepted (RFC 2920 3.1 allows for it)
    ) -> None:
        self.host = host
        self.port = port
        self.pipelining = pipelining
        self.size = size
        self.eightbitmime = eightbitmime
        self.smtputf8 = smtputf8
        self.starttls = starttls
        self.esmtp = esmtp
        self.enhanced = enhanced
        self.lenient_data = lenient_data
        self.empty_transactions: list[bytes] = []  # what came after such a 354
        self.slowness = 0.2
        self.messages: list[Received] = []
        self.commands: list[bytes] = []  # every command line of every connection, in order
        self.connections = 0  # accepted so far
        self.open = 0  # now
        self.handshakes = 0  # TLS
        self.refused: list[str] = []  # recipients not answered 250
        self.violations: list[str] = []  # what a client must not do: pipelining unannounced, bare LF, …
        self.trouble: list[BaseException] = []  # programming errors of this sink
        self._plays: dict[str, _Play] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    # --- use by tests

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def play(self, phase: str, part: str, times: int | None = None) -> None:
        """From now on (or only ``times`` times) this part at this phase, whatever the address."""
        self._plays[phase] = _Play(part, times)

    def behave(self) -> None:
        """End every part set with ``play``."""
        self._plays.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        """Until the condition, which may look at anything of this sink, holds."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"after {timeout} s: {len(self.messages)} messages, {self.connections} connections, "
                f"{self.open} open, refused {self.refused[-5:]}, last commands {self.commands[-5:]}"
            ) from None

    async def wait_for(self, count: int, timeout: float = 10) -> list[Received]:
        """Until that many messages have arrived in all."""
        await self.wait_until(lambda: len(self.messages) >= count, timeout)
        return self.messages

    async def wait_closed(self, timeout: float = 10) -> None:
        """Until no client is connected."""
        await self.wait_until(lambda: self.open == 0, timeout)

    # --- the dialogue

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        self._changed.set()
        dialogue = Dialogue(reader=reader, writer=writer, number=self.connections)
        try:
            await self._talk(dialogue)
        except (OSError, _HangUp, asyncio.CancelledError):
            self._changed.set()  # the client or the part ended it
        except Exception as exc:
            self.trouble.append(exc)
            raise
        finally:
            # abort, not close: a client that stopped reading must not keep us
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            self._tasks.discard(task)
            self.open -= 1
            self._changed.set()

    async def _talk(self, d: Dialogue) -> None:
        await self._answer(d, "connect", b"220 sink.test ESMTP\r\n")
        while (line := await d.line()) is not None:
            self.commands.append(line.rstrip(b"\r\n"))
            self._changed.set()
            self._look_for_violations(d, line)
            verb = line[:4].upper().strip()
            if verb == b"QUIT":
                await self._answer(d, "quit", b"221 2.0.0 bye\r\n")
                return
            await self._command(d, verb, line.rstrip(b"\r\n"))

    def _look_for_violations(self, d: Dialogue, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            self.violations.append(f"command ends in a bare LF: {line!r}")
        if d.buffer and not self.pipelining:
            self.violations.append(f"pipelined after {line!r}: {bytes(d.buffer[:80])!r}")
        if d.buffer and line[:4].upper() in (b"EHLO", b"HELO", b"DATA", b"QUIT", b"STAR"):
            self.violations.append(f"more octets after {line!r}: {bytes(d.buffer[:80])!r}")

    async def _command(self, d: Dialogue, verb: bytes, line: bytes) -> None:
        match verb:
            case b"EHLO" if self.esmtp:
                d.reset()
                d.hello = line[5:].decode("utf-8", "replace")
                await self._answer(d, "ehlo", self._features(d))
            case b"HELO":
                d.reset()
                d.hello = line[5:].decode("utf-8", "replace")
                await self._answer(d, "helo", b"250 sink.test\r\n")
            case b"STAR" if self.starttls is not None and not d.tls:
                await self._start_tls(d)
            case b"MAIL":
                await self._mail(d, line)
            case b"RCPT":
                await self._rcpt(d, line)
            case b"DATA":
                await self._data(d)
            case b"RSET":
                d.reset()
                await self._answer(d, "rset", b"250 2.0.0 ok\r\n")
            case b"NOOP":
                await self._say(d, b"250 2.0.0 ok\r\n")
            case _:
                await self._say(d, b"502 5.5.1 not here\r\n")

    def _features(self, d: Dialogue) -> bytes:
        offered = [b"sink.test"]
        offered += [b"PIPELINING"] if self.pipelining else []
        offered += [b"SIZE %d" % self.size] if self.size is not None else []
        offered += [b"8BITMIME"] if self.eightbitmime else []
        offered += [b"SMTPUTF8"] if self.smtputf8 else []
        offered += [b"STARTTLS"] if self.starttls is not None and not d.tls else []
        offered += [b"ENHANCEDSTATUSCODES"] if self.enhanced else []
        return b"".join(b"250-" + name + b"\r\n" for name in offered[:-1]) + b"250 " + offered[-1] + b"\r\n"

    async def _start_tls(self, d: Dialogue) -> None:
        part = self._part("starttls", "")
        ready = b"220 2.0.0 go ahead\r\n"
        if part == "inject":
            await self._say(d, ready + b"250 2.0.0 injected\r\n250 2.0.0 injected\r\n")
        elif part == "bad-handshake":
            await self._say(d, ready)
            await d.fill()
            await self._say(d, b"\x16\x03\x01 this is no TLS\r\n" * 4)
            raise _HangUp
        elif await self._perform(d, part, ready):
            return
        assert self.starttls is not None
        d.buffer.clear()
        d.reset()
        await d.writer.start_tls(self.starttls)
        d.tls = True
        self.handshakes += 1

    async def _mail(self, d: Dialogue, line: bytes) -> None:
        found = _PATH.search(line)
        if found is None or not line.upper().startswith(b"MAIL FROM:<"):
            self.violations.append(f"not a MAIL command: {line!r}")
            await self._say(d, b"501 5.5.4 syntax\r\n")
            return
        if d.reverse_path is not None:
            self.violations.append(f"nested MAIL: {line!r}")
            await self._say(d, b"503 5.5.1 nested MAIL\r\n")
            return
        path = found[1].decode("utf-8", "surrogateescape")
        if await self._perform(d, self._part("mail", path), b"250 2.1.0 ok\r\n"):
            return
        d.reverse_path = path
        d.parameters = tuple(found[2].decode("utf-8", "replace").split())

    async def _rcpt(self, d: Dialogue, line: bytes) -> None:
        found = _PATH.search(line)
        if found is None or not line.upper().startswith(b"RCPT TO:<"):
            self.violations.append(f"not a RCPT command: {line!r}")
            await self._say(d, b"501 5.5.4 syntax\r\n")
            return
        if d.reverse_path is None:
            await self._say(d, b"503 5.5.1 MAIL first\r\n")
            return
        path = found[1].decode("utf-8", "surrogateescape")
        if await self._perform(d, self._part("rcpt", path), b"250 2.1.5 ok\r\n"):
            self.refused.append(path)
            self._changed.set()
        else:
            d.accepted.append(path)

    async def _data(self, d: Dialogue) -> None:
        if not d.accepted and self.lenient_data:
            await self._say(d, b"354 go ahead\r\n")
            self.empty_transactions.append(await d.data() or b"")
            d.reset()
            await self._say(d, b"554 5.5.1 no valid recipients\r\n")
            return
        if not d.accepted:
            await self._say(d, b"554 5.5.1 no valid recipients\r\n")
            return
        if await self._perform(d, self._part("data", *d.accepted), b"354 go ahead\r\n"):
            return
        raw = await d.data()
        if raw is None:
            return
        content = raw[:-3]
        if b"\r\n." in content or content.startswith(b"."):
            content = (b"\r\n" + content).replace(b"\r\n..", b"\r\n.")[2:]
        part = self._part("dot", *d.accepted)
        message = Received(
            reverse_path=d.reverse_path or "",
            recipients=tuple(d.accepted),
            content=content,
            raw=raw,
            mail_parameters=d.parameters,
            tls=d.tls,
            hello=d.hello,
            connection=d.number,
            client=str(d.writer.get_extra_info("peername")),
        )
        d.reset()
        kept = part in ("", "drop", "hang", "slow", "trickle", "garbage", "ok-then-close")
        if kept:
            self.messages.append(message)
            self._changed.set()
        if part == "naming":
            await self._say(d, f"550 5.7.1 refused for {', '.join(message.recipients)}\r\n".encode())
            return
        await self._perform(d, part, b"250 2.0.0 ok %d.%d\r\n" % (d.number, len(self.messages)))

    # --- playing parts

    def _part(self, phase: str, *paths: str) -> str:
        play = self._plays.get(phase)
        if play is not None and play.times != 0:
            if play.times is not None:
                play.times -= 1
            return play.part
        for path in paths:
            local = path.rpartition("@")[0]
            if local == "multi-line-550" and phase == "rcpt":
                return "multi-line-550"
            found = _BY_ADDRESS.search(local)
            if found is None or found["phase"] != phase:
                continue
            self._counts[phase, path] += 1
            if found["times"] is None or self._counts[phase, path] <= int(found["times"]):
                return found["part"]
        return ""

    async def _answer(self, d: Dialogue, phase: str, normal: bytes) -> None:
        await self._perform(d, self._part(phase, ""), normal)

    async def _perform(self, d: Dialogue, part: str, normal: bytes) -> bool:
        """Play the part; False when the normal reply was given and the dialogue goes on as usual."""
        match part:
            case "":
                await self._say(d, normal)
                return False
            case "slow":
                await asyncio.sleep(self.slowness)
                await self._say(d, normal)
                return False
            case "drop":
                raise _HangUp
            case "hang":
                while await d.fill():
                    d.buffer.clear()
                raise _HangUp
            case "trickle":
                while True:
                    await self._say(d, b"2")
                    await asyncio.sleep(0.02)
            case "garbage":
                await self._say(d, b"banana\r\n")
            case "endless":
                for _ in range(1024):
                    await self._say(d, (normal[:3] + b"-" + b"x" * 58 + b"\r\n") * 1024)
            case "endless-line":
                for _ in range(1024):
                    await self._say(d, normal[:3] + b"-" + b"x" * 65_532)
            case "mixed":
                await self._say(d, b"250-one\r\n550 other\r\n")
            case "multi-line-550":
                await self._say(d, MULTI_LINE_550)
            case "ok-then-close":
                await self._say(d, normal)
                raise _HangUp
            case _:
                code = part.removesuffix("-then-close")
                enhanced = f"{code[0]}.7.0 " if self.enhanced else ""
                await self._say(d, f"{code} {enhanced}as told by the test\r\n".encode())
                if code in ("421", "521") or part.endswith("-then-close"):
                    raise _HangUp
        return True

    async def _say(self, d: Dialogue, octets: bytes) -> None:
        if d.writer.transport.is_closing():  # the client is gone; uvloop would raise RuntimeError
            raise _HangUp
        d.writer.write(octets)
        await d.writer.drain()
