"""One connection of the recording sink: lines and content out of a stream, and the transaction under way."""

import asyncio
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One message as it arrived."""

    reverse_path: str
    recipients: tuple[str, ...]  # those answered 250
    content: bytes  # dots unstuffed, without the final dot line
    raw: bytes  # as on the wire, up to and with the final dot line
    mail_parameters: tuple[str, ...]
    tls: bool
    hello: str
    connection: int  # 1 for the first connection
    client: str


@dataclass(slots=True)
class Dialogue:
    """One connection: its streams and the transaction under way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    buffer: bytearray = field(default_factory=bytearray)
    tls: bool = False
    hello: str = ""
    reverse_path: str | None = None
    parameters: tuple[str, ...] = ()
    accepted: list[str] = field(default_factory=list)

    async def fill(self) -> bool:
        block = await self.reader.read(262_144)
        self.buffer += block
        return bool(block)

    async def line(self) -> bytes | None:
        start = 0
        while (end := self.buffer.find(b"\n", start)) < 0:
            start = len(self.buffer)
            if not await self.fill():
                return None
        line = bytes(self.buffer[: end + 1])
        del self.buffer[: end + 1]
        return line

    async def data(self) -> bytes | None:
        """Everything up to and with CRLF.CRLF, or None when the client went away."""
        if len(self.buffer) < 3 and not await self._at_least(3):
            return None
        if self.buffer.startswith(b".\r\n"):
            end = 3
        else:
            start = 0
            while (found := self.buffer.find(b"\r\n.\r\n", start)) < 0:
                start = max(0, len(self.buffer) - 4)
                if not await self.fill():
                    return None
            end = found + 5
        raw = bytes(self.buffer[:end])
        del self.buffer[:end]
        return raw

    async def _at_least(self, count: int) -> bool:
        while len(self.buffer) < count:
            if not await self.fill():
                return False
        return True

    def reset(self) -> None:
        self.reverse_path, self.parameters, self.accepted = None, (), []
