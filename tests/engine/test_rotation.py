"""A domain's DKIM keys are renewed while its owner sends: each message verifies with what the DNS has at its time."""

import asyncio
import json
import os
import re
import sys
from typing import Any

import pytest

from forwarder import domain_keys
from tests.engine.town import Town
from tests.harness import as_environment


async def rotate(town: Town) -> Any:
    """What ``forwarder domain rotate example.com`` answers, beside the engine that runs."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FORWARDER_")}
    command = (sys.executable, "-m", "forwarder", "domain", "rotate", "example.com", "--json")
    ran = await asyncio.create_subprocess_exec(
        *command, env=environ | as_environment(town.values()), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await ran.communicate()
    assert ran.returncode == 0
    return json.loads(output)


async def signed_with(town: Town) -> list[str]:
    """The selectors in the signatures of a message that is submitted now; all of them verify."""
    count = len(town.sink.messages)
    async with town.client("submission") as client:
        await client.ehlo()
        await client.starttls()
        await client.ehlo()
        await client.login("ann@example.com", "a long password")
        text = b"From: ann@example.com\r\nSubject: %d\r\n\r\nx\r\n" % count
        answers = await client.message(b"ann@example.com", [b"info@dest.test"], text)
        assert answers[-1].code == 250
    message = (await town.sink.wait_for(count + 1))[-1]
    assert await town.verified(message, "example.com") == [True, True]
    fields = re.findall(rb"DKIM-Signature: (?:[^\r]|\r\n[ \t])*", message.content)
    return sorted(
        selector.decode()
        for field in fields
        if b"d=example.com;" in field
        for selector in re.findall(rb"\bs=([^;]+);", field)
    )


async def test_the_old_keys_sign_until_the_records_of_the_new_are_found(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_keys, "FRESH", 0.0)
    async with town.engine():
        await town.credential("ann@example.com", "a long password")
        assert await signed_with(town) == ["fwd1", "fwd2"]
        begun = await rotate(town)
        assert await signed_with(town) == ["fwd1", "fwd2"]
        first, second = begun["next"]
        town.dns.set(first["name"], "TXT", [first["value"]])
        assert (await rotate(town))["signs_with"] == ["fwd1", "fwd2"]
        town.dns.set(second["name"], "TXT", [second["value"]])
        turned = await rotate(town)
        new = [record["name"].partition(".")[0] for record in begun["next"]]
        assert (turned["signs_with"], turned["next"]) == (new, [])
        assert await signed_with(town) == new
        await town.goes_on()
