"""Secrets stay secret, and trouble of ours is a 503 that says nothing of it."""

import asyncio
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from api import auth
from forwarder.store import aliases, domains
from forwarder.store.migrations import upgrade
from forwarder.store.trouble import StoreUnavailable
from tests.api.desk import Desk, files, together
from tests.harness import wait_until
from tests.postgres import Server


async def test_keys_are_shown_once_and_stored_as_digests_only(desk: Desk, tmp_path: Path) -> None:
    made = (await desk.post("/account/keys", {"name": "ci"})).json()
    key = made["api_key"]
    assert len(key) >= 40
    async with desk.client(key) as client:
        assert (await client.get("/account")).status_code == 200
    listed = await desk.get("/account/keys")
    assert key not in listed.text
    assert [one["name"] for one in listed.json()["keys"]] == ["first", "ci"]
    await desk.database.close()
    stored = b"".join(path.read_bytes() for path in files(tmp_path))
    assert key.encode() not in stored
    assert desk.key.encode() not in stored


async def test_a_revoked_key_is_like_no_key_at_once(desk: Desk) -> None:
    made = (await desk.post("/account/keys", {"name": "ci"})).json()
    async with desk.client(made["api_key"]) as client, desk.client(None) as nobody:
        assert (await client.get("/account")).status_code == 200
        assert (await desk.delete(f"/account/keys/{made['key']['id']}")).status_code == 200
        revoked, without = await client.get("/account"), await nobody.get("/account")
    assert (revoked.status_code, revoked.json()) == (401, without.json())
    assert (await desk.delete(f"/account/keys/{made['key']['id']}")).status_code == 404
    again = await desk.post("/account/keys", {"name": "ci"})
    assert again.status_code == 200  # the name of a revoked key is free
    assert (await desk.post("/account/keys", {"name": "ci"})).status_code == 400


async def test_passwords_are_stored_as_argon2id_and_appear_nowhere(desk: Desk, tmp_path: Path) -> None:
    from forwarder.store.passwords import verify

    await desk.domain()
    fields = {"username": "bighead", "password": "a secret nobody knows"}
    answer = await desk.post("/domains/piedpiper.com/credentials", fields)
    assert "secret" not in answer.text
    await desk.database.close()
    with sqlite3.connect(tmp_path / "api.db") as store:
        (stored,) = store.execute("SELECT password_hash FROM credentials").fetchone()
    assert stored.startswith("$argon2id$")
    assert verify(stored, "a secret nobody knows")
    assert not verify(stored, "a secret nobody know")


async def test_a_fault_nobody_foresaw_is_503_without_details(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("postgresql://user:hunter2@host SELECT secret")

    monkeypatch.setattr(domains, "list_domains", broken)
    answer = await desk.get("/domains")
    assert (answer.status_code, answer.json()["code"]) == (503, 503)
    for leak in ("hunter2", "SELECT", "RuntimeError", "Traceback"):
        assert leak not in answer.text
    assert answer.headers["retry-after"]


async def test_a_store_that_is_locked_is_503_within_ten_seconds(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.domain()
    locked = sqlite3.connect(tmp_path / "api.db", isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    started = asyncio.get_running_loop().time()
    try:
        answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": "a", "forward": "a@gmail.com"})
    finally:
        locked.execute("ROLLBACK")
        locked.close()
    assert asyncio.get_running_loop().time() - started < 10
    assert (answer.status_code, answer.json()["code"]) == (503, 503)
    assert "locked" not in answer.text
    assert (await desk.get("/domains")).status_code == 200


async def test_a_change_that_fails_half_way_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(aliases, "add", broken)
        assert (await desk.post("/domains", {"domain": "piedpiper.com"})).status_code == 503
    assert (await desk.get("/domains")).json()["total"] == 0
    await desk.domain("piedpiper.com")


async def test_a_key_whose_use_cannot_be_noted_is_as_good_as_any(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading can work while writing waits."""

    async def away(_work: Any) -> None:
        raise StoreUnavailable("away")

    async def never(_work: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(auth, "_NOTE_PATIENCE", 0.05)
    for trouble in (away, never):
        with monkeypatch.context() as patched:
            patched.setattr(desk.database, "change", trouble)
            assert (await desk.get("/account")).status_code == 200
    keys = (await desk.get("/account/keys")).json()["keys"]
    assert keys[0]["last_used"] is not None


async def test_a_database_that_is_gone_is_503_and_all_is_well_when_it_is_back() -> None:
    server = await asyncio.to_thread(Server.start)
    try:
        url = await asyncio.to_thread(server.database)
        await asyncio.to_thread(upgrade, url)
        async with Desk(url) as desk:
            await desk.domain()
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            started = asyncio.get_running_loop().time()
            fields = {"alias": "a", "forward": "a@gmail.com"}
            answers = await together(
                desk.get("/domains"),
                desk.post("/domains/piedpiper.com/aliases", fields),
                desk.get("/account"),
            )
            assert asyncio.get_running_loop().time() - started < 10
            for answer in answers:
                assert (answer.status_code, answer.json()["code"]) == (503, 503)
                for leak in ("127.0.0.1", "postgres", "asyncpg", "Traceback", "connect"):
                    assert leak not in answer.text
            ready = await desk.get("http://api.test/health/ready")
            assert (ready.status_code, ready.json()["troubles"]) == (503, ["store"])
            assert (await desk.get("http://api.test/health/live")).status_code == 200
            await asyncio.to_thread(server.restart)

            async def answers_again() -> bool:
                return (await desk.get("/domains")).status_code == 200

            await wait_until(answers_again, deadline=30)
            assert (await desk.post("/domains/piedpiper.com/aliases", fields)).status_code == 200
    finally:
        await asyncio.to_thread(server.remove)
