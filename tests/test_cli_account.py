"""``forwarder account``: keys that replace others, locks, plans; and that running processes heed them."""

import asyncio
import re
from pathlib import Path

import pytest

from forwarder.store import accounts
from tests.api.desk import NOW, Desk
from tests.commandline import Cli

PLANS = "[plans.small]\ndomains = 1\napi = 2\n"


def test_a_lost_key_is_replaced(cli: Cli, tmp_path: Path) -> None:
    first = cli.json("account", "create", "you@example.org")["api_key"]
    made = cli.json("account", "key", "add", "You@example.org", "--name", "laptop")
    assert (made["email"], made["name"]) == ("you@example.org", "laptop")
    assert made["api_key"] != first
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("forwarder.db*"))
    assert made["api_key"].encode() not in stored
    assert accounts.key_digest(made["api_key"]).encode() in stored
    listed = cli.json("account", "key", "list", "you@example.org")
    assert [key["name"] for key in listed] == ["first", "laptop"]
    assert first.startswith(listed[0]["prefix"])
    assert made["api_key"] not in str(listed)
    revoked = cli.json("account", "key", "revoke", "you@example.org", "first")
    assert revoked["prefix"] == listed[0]["prefix"]
    listed = cli.json("account", "key", "list", "you@example.org")
    assert [key["revoked_at"] is None for key in listed] == [False, True]


def test_a_key_is_shown_to_a_person_once(cli: Cli, tmp_path: Path) -> None:
    created = cli("account", "create", "you@example.org")[1]
    further = cli("account", "key", "add", "you@example.org")[1]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("forwarder.db*"))
    listed = cli.json("account", "key", "list", "you@example.org")
    for said, row in zip((created, further), listed, strict=True):
        (key,) = re.findall(rf"^  ({re.escape(row['prefix'])}\S+)$", said, re.MULTILINE)
        assert accounts.key_digest(key).encode() in stored
    assert "shown this once" in created
    assert "shown this once" in further
    assert "forwarder domain add example.com --account you@example.org" in created


def test_a_key_is_revoked_by_what_the_list_shows(cli: Cli) -> None:
    cli.json("account", "create", "you@example.org")
    cli.json("account", "create", "other@example.org")
    for shown in ("id", "name", "prefix"):
        made = cli.json("account", "key", "add", "you@example.org")
        (listed,) = (
            key for key in cli.json("account", "key", "list", "you@example.org") if key["id"] == made["id"]
        )
        assert "no key" in cli.fails("account", "key", "revoke", "other@example.org", str(listed[shown]))
        cli.json("account", "key", "revoke", "you@example.org", str(listed[shown]))
        assert "in force" in cli.fails("account", "key", "revoke", "you@example.org", str(listed[shown]))


def test_an_address_that_no_alias_can_lead_to_is_no_account(cli: Cli) -> None:
    for address in ('"a,b"@example.org', "b$1@example.org", "${x}@example.org"):
        assert "cannot hold a comma or $" in cli.fails("account", "create", address)
    assert cli.json("account", "list") == []


def test_a_key_without_a_name_is_called_by_its_beginning(cli: Cli, tmp_path: Path) -> None:
    cli.json("account", "create", "you@example.org")
    made = cli.json("account", "key", "add", "you@example.org")
    listed = cli.json("account", "key", "list", "you@example.org")[1]
    assert made["name"] == listed["name"] == listed["prefix"]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("forwarder.db*"))
    assert made["api_key"].encode() not in stored


def test_what_means_several_keys_revokes_none_of_them(cli: Cli) -> None:
    cli.json("account", "create", "you@example.org")
    (first,) = cli.json("account", "key", "list", "you@example.org")
    named = cli.json("account", "key", "add", "you@example.org", "--name", first["prefix"])
    said = cli.fails("account", "key", "revoke", "you@example.org", first["prefix"])
    assert f"several keys; write {first['id']} or {named['id']}" in said
    listed = cli.json("account", "key", "list", "you@example.org")
    assert [key["revoked_at"] for key in listed] == [None, None]
    cli.json("account", "key", "revoke", "you@example.org", str(named["id"]))
    assert cli.json("account", "key", "revoke", "you@example.org", first["prefix"])["revoked"] == first["id"]


def test_a_key_is_shown_to_people_once(cli: Cli) -> None:
    cli.json("account", "create", "you@example.org")
    status, output, _ = cli("account", "key", "add", "you@example.org", "--name", "[/x]")
    (secret,) = re.findall(r"fwd_\S{40,}", output)
    assert status == 0
    _, output, _ = cli("account", "key", "list", "you@example.org")
    assert "[/x]" in output
    assert secret[:10] in output
    assert secret not in output


def test_keys_have_the_limits_of_the_plan_and_of_the_api(cli: Cli) -> None:
    cli.write(more=PLANS)
    cli.json("account", "create", "you@example.org", "--plan", "small")
    assert "control character" in cli.fails("account", "key", "add", "you@example.org", "--name", "a\nb")
    assert "already exists" in cli.fails("account", "key", "add", "you@example.org", "--name", "first")
    cli.json("account", "key", "add", "you@example.org")
    assert "limited to 2" in cli.fails("account", "key", "add", "you@example.org")


def test_nobody_has_no_keys(cli: Cli) -> None:
    for command in (("key", "add"), ("key", "list"), ("lock",), ("unlock",)):
        assert "there is no account" in cli.fails("account", *command, "x@example.org")


def test_an_account_gets_another_plan(cli: Cli) -> None:
    cli.write(more=PLANS)
    cli.json("account", "create", "you@example.org")
    assert cli.json("account", "plan", "you@example.org", "small")["plan"] == "small"
    assert cli.json("account", "list")[0]["plan"] == "small"
    cli.json("domain", "add", "example.com", "--account", "you@example.org")
    assert "limited to 1" in cli.fails("domain", "add", "example.org", "--account", "you@example.org")
    assert "small" in cli.fails("account", "plan", "you@example.org", "gold")


def test_a_lock_is_listed_until_it_is_lifted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.json("account", "create", "you@example.org")
    locked = cli.json("account", "lock", "you@example.org", "--reason", "spam.")
    monkeypatch.setattr("forwarder.commands.account.utc_now", lambda: NOW)
    again = cli.json("account", "lock", "you@example.org", "--reason", "more spam")
    assert (again["locked_at"], again["lock_reason"]) == (locked["locked_at"], "more spam")
    (listed,) = cli.json("account", "list")
    assert (listed["locked_at"], listed["lock_reason"]) == (locked["locked_at"], "more spam")
    assert cli("account", "lock", "you@example.org", "--reason", "a\nb")[0] == 2
    cli.json("account", "unlock", "you@example.org")
    (listed,) = cli.json("account", "list")
    assert (listed["locked_at"], listed["lock_reason"]) == (None, None)


async def test_a_running_api_heeds_locks_and_keys(cli: Cli, tmp_path: Path) -> None:
    await asyncio.to_thread(cli.json, "account", "create", "you@example.org")
    async with Desk(f"sqlite:///{tmp_path / 'data' / 'forwarder.db'}") as desk:

        async def run(*arguments: str) -> dict[str, str]:
            done: dict[str, str] = await asyncio.to_thread(cli.json, "account", *arguments)
            return done

        assert (await desk.get("/domains")).status_code == 200
        await run("lock", desk.email, "--reason", "unpaid.")
        refused = await desk.post("/domains", {"domain": "piedpiper.com"})
        assert (refused.status_code, refused.json()["error"]) == (403, "Your account is locked: unpaid.")
        assert (await desk.get("/domains")).status_code == 200
        await run("unlock", desk.email)
        assert (await desk.post("/domains", {"domain": "piedpiper.com"})).status_code == 200
        added = await run("key", "add", desk.email)
        async with desk.client(added["api_key"]) as client:
            assert (await client.get("/domains")).status_code == 200
            await run("key", "revoke", desk.email, str(added["id"]))
            assert (await client.get("/domains")).status_code == 401
