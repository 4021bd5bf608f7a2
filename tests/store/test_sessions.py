"""What connections are told holds for them, whatever stands before the server; where it does not, the start ends."""

import asyncio

import pytest
from sqlalchemy import text

from forwarder.node import NodeError
from forwarder.schema import check_schema, wait_for_store
from forwarder.store import sessions
from forwarder.store.engine import Database
from forwarder.store.faults import explain
from forwarder.store.trouble import StoreUnavailable
from tests.postgres import Server
from tests.store.pooler import Pooler

TOLD = {
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "8s",
    "lock_timeout": "8s",
    "idle_in_transaction_session_timeout": "10s",
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "jit": "off",
    "TimeZone": "UTC",
}


@pytest.mark.parametrize("lenient", [False, True], ids=["refuses", "leaves-out"])
async def test_behind_a_pooler_that_keeps_sessions_commits_are_durable(
    postgres: Server, postgres_url: str, lenient: bool
) -> None:
    assert postgres.sql("SHOW synchronous_commit") == "off"
    async with Pooler(postgres_url, lenient=lenient) as pooler:
        database = await Database.open(pooler.url)
        for act in (database.read, database.write):
            told = await act(
                lambda conn: {name: conn.execute(text(f"SHOW {name}")).scalar() for name in TOLD}
            )
            assert told == TOLD
        await database.close()


@pytest.mark.parametrize(
    ("before", "calls"), [("", 1), ("[::1]:1,", 2)], ids=["named-first", "behind-brackets"]
)
async def test_a_host_that_says_nothing_is_passed_over(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch, before: str, calls: int
) -> None:
    monkeypatch.setattr(sessions, "CONNECT_LIMIT", 3.0)
    called: list[asyncio.StreamWriter] = []
    dead = await asyncio.start_server(lambda _, writer: called.append(writer), "127.0.0.1", 0)
    port = dead.sockets[0].getsockname()[1]
    alive = f"127.0.0.1:{postgres.port}"
    database = await Database.open(
        postgres_url.replace(alive, f"{before}127.0.0.1:{port},{alive}") + "?target_session_attrs=read-write"
    )
    await database.ready()
    assert len(called) == calls
    # The next connection begins with who answered, until the others have had time to come back.
    work = [
        database.read(lambda conn: conn.execute(text("SELECT pg_sleep(0.01)")) and None) for _ in range(3)
    ]
    await asyncio.gather(*work)
    assert len(called) == calls
    await database.close()
    for writer in called:
        writer.close()
    dead.close()


@pytest.mark.parametrize(
    ("url", "in_turn"),
    [
        ("postgresql://u:p%40w@a/d?x=a,b", ["postgresql://u:p%40w@a/d?x=a,b"]),
        ("postgresql:///d", ["postgresql:///d"]),
        (
            "postgresql://u@a:1,b:2,c?x=y",
            [
                "postgresql://u@a:1,b:2,c?x=y",
                "postgresql://u@b:2,c,a:1?x=y",
                "postgresql://u@c,a:1,b:2?x=y",
            ],
        ),
        ("postgresql://u@[::1]:2/d", ["postgresql://u@[::1]:2/d"]),
        (
            "postgresql://u@[::1]:2,a:1/d?x=y",
            ["postgresql://u@/d?x=y&host=[::1]:2,a:1", "postgresql://u@/d?x=y&host=a:1,[::1]:2"],
        ),
        ("postgresql://a,[::1]", ["postgresql://?host=a,[::1]", "postgresql://?host=[::1],a"]),
        ("postgresql://u:p,q@a,b/d", ["postgresql://u:p,q@a,b/d", "postgresql://u:p,q@b,a/d"]),
    ],
)
def test_each_host_of_a_url_is_the_first_in_turn(url: str, in_turn: list[str]) -> None:
    assert sessions.turns(url) == in_turn


@pytest.mark.parametrize("links", [1, 2, 3])
async def test_a_pooler_that_shares_sessions_ends_the_start(postgres_url: str, links: int) -> None:
    async with Pooler(postgres_url, shared=links) as pooler:
        database = await Database.open(pooler.url)
        with pytest.raises(NodeError, match="set its pool_mode to session"):
            await wait_for_store(lambda: check_schema(database, pooler.url))
        await database.close()


async def test_what_a_pooler_does_not_take_is_said(postgres_url: str) -> None:
    async with Pooler(postgres_url) as pooler:
        database = await Database.open(pooler.url + "?search_path=public")
        with pytest.raises(StoreUnavailable) as caught:
            await database.ready()
        await database.close()
    found = explain(caught.value)
    assert "or a pooler before it, refuses the connection" in found.text
    assert found.passes
