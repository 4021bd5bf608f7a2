"""250 means on disk: what is durable when the client reads it, and what an error or a hasty client leaves behind."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from forwarder import failpoint
from forwarder.inbound import mx
from tests.engine.test_outage import begin, locked, temporary
from tests.engine.town import MAIL, Town
from tests.harness import EngineProcess, wait_until
from tests.postgres import Server


@pytest.mark.parametrize(
    "point", ["receive.before-enqueue", "writer.before-begin", "enqueue.before-logs", "writer.before-commit"]
)
async def test_an_error_before_the_commit_is_451_and_leaves_nothing(engine: Town, point: str) -> None:
    async with engine.client() as client:
        await begin(client, b"pair@example.com")
        failpoint.arm({"FORWARDER_TEST": "1", "FORWARDER_FAILPOINT": f"{point}:raise"})
        try:
            assert temporary(await client.say(MAIL + b".\r\n"))
        finally:
            failpoint.arm({})
        assert await engine.queue_is_empty()
        engine.forgive("FailpointError")
        assert (await client.message(b"ann@out.test", [b"pair@example.com"], MAIL))[-1].code == 250
    await engine.goes_on()
    await engine.settled()
    assert sorted(to for m in engine.sink.messages for to in m.recipients) == [
        "first@dest.test",
        "second@dest.test",
    ]


async def test_the_message_is_durable_before_the_client_reads_250(
    engine: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process reads from the file when the reply is about to be written; and how commits are made."""
    seen: list[tuple[int, ...]] = []

    def look(point: str) -> None:
        if point == "receive.before-reply":
            with contextlib.closing(sqlite3.connect(engine.settings.data_dir / "forwarder.db")) as other:
                counts = (
                    other.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                    for table in ("messages", "deliveries", "events")
                )
                seen.append(tuple(counts))

    monkeypatch.setattr(mx, "reach", look)
    assert (await engine.send("ann@out.test", "pair@example.com", MAIL)).code == 250
    assert seen == [(1, 2, 2)]
    pragma = await engine.database.write(
        lambda conn: [
            conn.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("synchronous", "journal_mode")
        ]
    )
    assert pragma == [2, "wal"]  # 2: FULL, an fsync for each commit
    await engine.goes_on()


async def test_postgresql_commits_are_synchronous(town: Town, postgres: Server) -> None:
    """The server of the tests says off; our connections insist."""
    async with town.engine(database={"url": postgres.database()}):
        assert postgres.sql("SHOW synchronous_commit") == "off"

        def setting(conn: Any) -> str:
            return str(conn.execute(text("SHOW synchronous_commit")).scalar_one())

        assert await town.database.write(setting) == "on"


@pytest.mark.parametrize("hurry", ["half-close", "idle timeout"])
async def test_a_slow_commit_is_not_cut_short(town: Town, hurry: str) -> None:
    async with town.engine(mx={"command_timeout": "300ms"}), town.client() as client:
        await begin(client)
        with locked(town):
            await client.send(MAIL + b".\r\n")
            if hurry == "half-close":
                await client.end_of_input()
            assert await client.silent(1)
        assert (await client.read()).code == 250
        await town.sink.wait_for(1)
        await town.goes_on()
        await town.settled()
        assert len(town.sink.messages) == 1


async def test_a_client_that_is_gone_before_the_reply_left_all_or_nothing(engine: Town) -> None:
    async with engine.client() as client:
        await begin(client, b"pair@example.com")
        with locked(engine):
            await client.send(MAIL + b".\r\n")
            await asyncio.to_thread(Path(engine.settings.data_dir).exists)
            await client.close()  # a reset, while the commit waits
    assert (await engine.send("ann@out.test", "pair@example.com", MAIL)).code == 250
    await engine.goes_on()
    await engine.settled()
    copies = sorted(to for m in engine.sink.messages for to in m.recipients)
    assert copies.count("first@dest.test") == copies.count("second@dest.test") in (1, 2)


async def test_what_was_acknowledged_outlives_a_log_that_is_removed_and_a_kill(town: Town) -> None:
    town.sink.play("mail", "450")
    async with EngineProcess(town, workers={"processes": 1, "lease": "1s"}) as process:
        await town.database.close()  # it has the log open, too
        assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
        (town.settings.data_dir / "forwarder.db-wal").unlink()

        async def noticed() -> bool:  # by its next sign of life
            async with town.api() as client:
                return (await client.get("/health/ready")).status_code == 503

        await wait_until(noticed)
        assert temporary(await town.send("ann@out.test", "info@example.com", MAIL))
        process.process.kill()
        await process.process.wait()
        assert "-wal beside it" in process.log()
        town.sink.behave()
        await process.start()
        (received,) = await town.sink.wait_for(1)
        assert received.content.endswith(MAIL)
        assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
        await town.sink.wait_for(2)
