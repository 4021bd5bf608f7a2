"""With ``require_confirmed_destinations`` an address gets nothing before its owner pressed the button, then it does."""

import re
from typing import Any

import httpx
import pytest

from tests.engine.town import MAIL, Town
from tests.harness import ACCOUNT

ON: dict[str, Any] = {
    "require_confirmed_destinations": True,
    "api": {"public_url": "https://forward.example/mail/"},
}
ASKED = b"Subject: May mail for "
LINK = re.compile(rb"\r\nhttps://forward\.example/mail(/confirm/[\w-]{43})\r\n")


async def link_for(town: Town, address: str) -> str:
    """The path of the link in the one mail that asked this address."""
    await town.sink.wait_until(
        lambda: any(m.recipients == (address,) and ASKED in m.content for m in town.sink.messages)
    )
    (mail,) = [m for m in town.sink.messages if m.recipients == (address,) and ASKED in m.content]
    assert mail.reverse_path == ""
    assert b"\r\nFrom: Forwarder <postmaster@mx.test>\r\n" in mail.content
    assert b"\r\nAuto-Submitted: auto-generated\r\n" in mail.content
    found = LINK.search(mail.content)
    assert found is not None
    return found[1].decode()


def forwarded(town: Town) -> list[str]:
    return sorted(to for m in town.sink.messages if m.content.endswith(MAIL) for to in m.recipients)


async def test_nothing_is_forwarded_until_the_owner_confirms(town: Town, database_url: str) -> None:
    town.dns.mail_host("example.org", town.sink.host)
    async with town.engine(database={"url": database_url}, **ON):
        town.api_key = ""  # of the database that has no account yet
        await town.host("example.com", {})
        async with (
            town.api() as api,
            httpx.AsyncClient(base_url=str(api.base_url), trust_env=False) as person,
        ):
            await _told(town, api)
            path = await link_for(town, "new@dest.test")
            answer = await town.send("ann@out.test", "info@example.com", MAIL)
            assert (answer.code, answer.text[:5]) == (450, "4.2.1")
            assert "has not been confirmed" in answer.text
            for _ in range(2):  # whatever looks at links in mail
                shown = await person.get(path)
                assert shown.status_code == 200
                assert "new@dest.test" in shown.text
                assert '<form method="post"><button' in shown.text
                assert "://" not in shown.text  # nothing from elsewhere
                assert shown.headers["content-security-policy"].startswith("default-src 'none'")
            await person.head(path)
            assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 450
            confirmed = await person.post(path)
            assert (confirmed.status_code, "Confirmed" in confirmed.text) == (200, True)
            assert (await town.send("ann@out.test", "info@example.com", MAIL)).code == 250
            assert (await town.send("ann@out.test", "two@example.com", MAIL)).code == 250
            await town.settled()
            assert forwarded(town) == ["new@dest.test", "new@dest.test"]
            for again in (await person.get(path), await person.post(path)):
                assert again.status_code == 404
                assert "This link is not valid" in again.text
            forged = await person.post("/confirm/" + "A" * 43)
            assert (forged.status_code, forged.text) == (404, again.text)
        assert [code for code, _ in await town.refused_events()] == [450, 450]
        assert path.removeprefix("/confirm/") not in town.log.getvalue()
        assert town.errors == []


async def _told(town: Town, api: httpx.AsyncClient) -> None:
    """Aliases to an address that has to confirm, one of them to another one too."""
    for alias, forward in (("info", "new@dest.test"), ("two", "new@dest.test,other@dest.test")):
        made = await api.post("/v3/domains/example.com/aliases", json={"alias": alias, "forward": forward})
        assert made.status_code == 200, made.text
        assert set(made.json()["alias"]) >= {"alias", "forward", "id"}


async def test_the_accounts_own_address_is_asked_too(town: Town) -> None:
    town.dns.mail_host("example.org", town.sink.host)
    async with town.engine(**ON):
        async with town.api() as api:
            assert (await api.post("/v3/domains", json={"domain": "fresh.test"})).status_code == 200
            path = await link_for(town, ACCOUNT)
            assert (await town.send("ann@out.test", "any@fresh.test", MAIL)).code == 450
            assert (await api.post(path)).status_code == 200
        assert (await town.send("ann@out.test", "any@fresh.test", MAIL)).code == 250
        await town.settled()
        assert forwarded(town) == [ACCOUNT]


async def test_an_address_that_a_capture_makes_gets_its_mail_by_the_way_that_is_confirmed(town: Town) -> None:
    async with town.engine(**ON):
        await town.host("own.test", {})
        async with town.api() as api:
            body = {"alias": "boss", "forward": "me@dest.test"}
            assert (await api.post("/v3/domains/own.test/aliases", json=body)).status_code == 200
            assert (await api.post(await link_for(town, "me@dest.test"))).status_code == 200
        await town.alias("(me|you)", "$1@dest.test,boss@own.test")
        for recipient in ("me@example.com", "you@example.com"):
            assert (await town.send("ann@out.test", recipient, MAIL)).code == 250
        await town.settled()
        assert forwarded(town) == ["me@dest.test", "me@dest.test"]
        assert await town.refused_events() == []
        logs = await town.logs("example.com")
        assert sorted((log.recipient_email, log.forward_email, log.events[-1].code) for log in logs) == [
            ("me@example.com", "me@dest.test", 250),
            ("you@example.com", "me@dest.test", 250),
            ("you@example.com", "you@dest.test", 550),
        ]


async def test_a_submitted_message_reaches_nobody_who_has_not_confirmed(town: Town) -> None:
    async with town.engine(**ON):
        async with town.logged_in("ann@example.com") as client:
            *_, answer = await client.message(b"ann@example.com", [b"info@example.com"], MAIL)
        assert answer.code == 450
        assert forwarded(town) == []


async def test_pages_are_bounded_and_trouble_is_said(town: Town) -> None:
    sections = ON | {"api": ON["api"] | {"failures_per_minute": 5}}
    async with town.engine(**sections), town.api() as api:
        codes = [(await api.get("/confirm/x")).status_code for _ in range(8)]
        assert codes[0] == 404
        assert codes[-1] == 429


@pytest.mark.parametrize("token", ["a" * 5000, "%00", "%C3%BC", "..%2f"])
async def test_odd_tokens_are_no_links(town: Town, token: str) -> None:
    async with town.engine(**ON), town.api() as api:
        for answer in (await api.get(f"/confirm/{token}"), await api.post(f"/confirm/{token}")):
            assert answer.status_code == 404
        assert town.errors == []


async def test_switched_off_nobody_is_asked_and_there_is_no_page(engine: Town) -> None:
    async with engine.api() as api:
        await _told(engine, api)
        page = await api.get("/confirm/" + "A" * 43)
        assert (page.status_code, page.headers["content-type"]) == (404, "application/json")
    await engine.running.directory.catch_up()  # type: ignore[union-attr]
    assert (await engine.send("ann@out.test", "info@example.com", MAIL)).code == 250
    await engine.settled()
    assert not any(ASKED in m.content for m in engine.sink.messages)
    await engine.goes_on()
