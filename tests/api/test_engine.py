"""The API of a whole engine: what it changes is what mail does, within a second, and what mail did is in its logs."""

from typing import Any

import pytest

from tests.harness import House, wait_until


async def reply_to(house: House, recipient: str) -> int:
    """The code of the answer to one message for ``recipient``."""
    answer = await house.send(
        "gavin@hooli.test", recipient, b"From: Gavin <gavin@hooli.test>\r\nSubject: Hi\r\n\r\nhi\r\n"
    )
    return int(answer.code)


async def test_changes_through_the_api_are_in_force_for_mail_within_a_second(engine: House) -> None:
    async with engine.api() as api:
        added = await api.post("/v3/domains", json={"domain": "piedpiper.test"})
        assert added.status_code == 200, added.text
        fields: dict[str, Any] = {"alias": "richard", "forward": "inbox@dest.test"}
        assert (await api.delete("/v3/domains/piedpiper.test/aliases/*")).status_code == 200
        assert await reply_to(engine, "richard@piedpiper.test") == 550
        await api.post("/v3/domains/piedpiper.test/aliases", json=fields)
        await _until(engine, "richard@piedpiper.test", 250)
        await api.put("/v3/domains/piedpiper.test/aliases/richard", json={"is_active": False})
        await _until(engine, "richard@piedpiper.test", 550)
        await api.put("/v3/domains/piedpiper.test/aliases/richard", json={"is_active": True})
        await _until(engine, "richard@piedpiper.test", 250)
        await api.delete("/v3/domains/piedpiper.test")
        await _until(engine, "richard@piedpiper.test", 554)  # no longer a domain of ours: no relay


async def test_rules_are_in_force_for_mail_within_a_second(engine: House) -> None:
    rules = "/v3/domains/piedpiper.test/rules"
    config = {"regex": "sales.*", "scopes": ["recipient"], "forward": "inbox@dest.test"}
    async with engine.api() as api:
        assert (await api.post("/v3/domains", json={"domain": "piedpiper.test"})).status_code == 200
        assert (await api.delete("/v3/domains/piedpiper.test/rules-all")).status_code == 200
        assert await reply_to(engine, "sales-eu@piedpiper.test") == 550
        made = await api.post(rules, json={"type": "regex", "config": config})
        assert made.status_code == 200, made.text
        await _until(engine, "sales-eu@piedpiper.test", 250)
        assert await reply_to(engine, "presales@piedpiper.test") == 550
        one = f"{rules}/{made.json()['id']}"
        await api.put(one, json={"active": False})
        await _until(engine, "sales-eu@piedpiper.test", 550)
        catch_all = {"type": "alias", "config": {"alias": "*", "forward": "rest@dest.test"}}
        await api.post(rules, json=catch_all)
        await _until(
            engine, "sales-eu@piedpiper.test", 250
        )  # not the rule that is not active: the one after it
        await api.delete("/v3/domains/piedpiper.test/rules-all")
        await _until(engine, "sales-eu@piedpiper.test", 550)


async def _until(house: House, recipient: str, code: int) -> None:
    async def changed() -> bool:
        return await reply_to(house, recipient) == code

    await wait_until(changed, deadline=5, what=f"{code} for {recipient}")


async def test_what_mail_did_is_in_the_logs_of_domain_and_alias(engine: House) -> None:
    async with engine.api() as api:
        await api.post(
            "/v3/domains/example.com/aliases", json={"alias": "richard", "forward": "me@dest.test"}
        )
        await _until(engine, "richard@example.com", 250)
        await engine.wait_for_statuses("QUEUED", "DELIVERED", domain="example.com")
        (log,) = (await api.get("/v3/domains/example.com/logs/richard")).json()["logs"]
        assert (log["sender"], log["subject"], log["transport"]) == (
            {"email": "gavin@hooli.test", "name": "Gavin"},
            "Hi",
            "smtp",
        )
        assert log["recipient"]["email"] == "richard@example.com"
        assert log["forward"]["email"] == "me@dest.test"
        assert [event["status"] for event in log["events"]] == ["QUEUED", "DELIVERED"]
        assert all(event["local"] and event["server"] for event in log["events"])
        everything = (await api.get("/v3/domains/example.com/logs")).json()["logs"]
        assert [one["id"] for one in everything] == [log["id"]]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_an_engine_that_serves_is_live_and_ready(engine: House, path: str) -> None:
    async with engine.api() as api:
        answer = await api.get(path)
    assert answer.status_code == 200, answer.text
