"""Leases that nobody here knows of are looked for again and again, whatever a look finds."""

import asyncio
from typing import Any

import pytest

from forwarder.outbound import strays
from forwarder.outbound.strays import Strays
from forwarder.store.trouble import StoreUnavailable


async def test_a_look_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strays, "_LOOK", 0.0)
    troubles: list[Exception] = [RuntimeError("nobody foresaw it"), StoreUnavailable("it is away")]
    looked = asyncio.Event()

    class Failing:
        async def leases(self) -> dict[str, int]:
            if troubles:
                raise troubles.pop()
            looked.set()
            return {}

    queue: Any = Failing()
    looking = asyncio.create_task(Strays(queue, holding=tuple).run())
    async with asyncio.timeout(30):
        await looked.wait()
    assert not looking.done()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert "".join(capsys.readouterr()).count("a look for strays failed") == 1
