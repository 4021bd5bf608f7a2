"""A bare server that answers each line, in a process of its own: what it is late by, any process here is late by."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.machine import running


@asynccontextmanager
async def bare_server() -> AsyncIterator[int]:
    """Run this module beside the engine; its port."""
    async with running(sys.executable, "-m", "benchmarks.echo", stdout=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(await process.stdout.readline())


async def _serve() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while await reader.readline():
            writer.write(b"250 here\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
