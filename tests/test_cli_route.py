"""``forwarder route`` for the addresses of the server itself."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path as File
from typing import Any

import pytest
from sqlalchemy import Connection

from forwarder.mail.address import Path, parse_address
from forwarder.mail.srs import Srs
from forwarder.store import aliases, domains
from forwarder.store.engine import Database
from tests.commandline import Cli


@pytest.fixture
def bounces(hosted: Cli, tmp_path: File) -> Srs:
    """What the server rewrites with."""
    hosted.json("domain", "dns", "example.com")
    secret = (tmp_path / "data" / "keys" / "srs").read_bytes().strip()
    return Srs([secret], domain="mx1.example.net")


def lead_here(folder: File, name: str = "example.com") -> None:
    """The MX record of a domain is found to lead here: only then are its aliases heeded for mail of our own."""

    async def record() -> None:
        database = await Database.open(f"sqlite:///{folder / 'data' / 'forwarder.db'}")
        now = datetime.now(UTC)

        def found(conn: Connection) -> None:
            domain = domains.get(conn, name)
            assert domain is not None
            domains.record_check(
                conn,
                domain,
                now,
                is_active=True,
                sending_ready=False,
                broken_since=None,
                notified_at=None,
            )

        try:
            await database.write(found)
        finally:
            await database.close()

    asyncio.run(record())


def route(cli: Cli, address: Path | str) -> Any:
    return cli.json("route", str(address))


def test_an_srs_address_leads_to_the_sender(hosted: Cli, bounces: Srs) -> None:
    address = bounces.forward(parse_address("ann@sender.test"), now=datetime.now(UTC))
    found = route(hosted, address)
    assert (found["recipient"], found["accepted"], found["trouble"]) == (str(address), True, None)
    assert found["destinations"] == [{"destination": "ann@sender.test", "alias": None, "domain": None}]
    assert found["steps"] == [
        f"{address}: an SRS address of this server; it leads to ann@sender.test",
        "ann@sender.test: it is delivered there",
    ]
    assert "ann@sender.test" in hosted("route", str(address))[1]


def test_what_is_inside_an_srs_address_goes_through_its_aliases(
    hosted: Cli, bounces: Srs, tmp_path: File
) -> None:
    hosted.json("alias", "add", "example.com", "richard", "person@dest.test")
    address = bounces.forward(parse_address("richard@example.com"), now=datetime.now(UTC))
    assert [d["destination"] for d in route(hosted, address)["destinations"]] == ["richard@example.com"]
    lead_here(tmp_path)
    found = route(hosted, address)
    assert [d["destination"] for d in found["destinations"]] == ["person@dest.test"]
    assert len(found["steps"]) == 2
    nobody = route(hosted, bounces.forward(parse_address("bob@example.com"), now=datetime.now(UTC)))
    assert (nobody["accepted"], nobody["trouble"]) == (False, "UNKNOWN")


def test_an_srs_address_that_is_not_to_be_trusted_says_why(hosted: Cli, bounces: Srs) -> None:
    sender = parse_address("ann@sender.test")
    other = Srs([b"another secret of 16 octets"], domain="mx1.example.net")
    old = bounces.forward(sender, now=datetime.now(UTC) - timedelta(days=40))
    for address, trouble in ((other.forward(sender, now=datetime.now(UTC)), "FORGED"), (old, "EXPIRED")):
        found = route(hosted, address)
        assert (found["accepted"], found["trouble"], found["destinations"]) == (False, trouble, [])
    assert "too old" in hosted("route", str(old))[1]


def test_a_capture_that_makes_no_address(hosted: Cli) -> None:
    hosted.json("alias", "add", "example.com", "opt(a)?", "p$1@dest.test,always@dest.test")
    assert len(route(hosted, "opta@example.com")["destinations"]) == 2
    found = route(hosted, "opt@example.com")
    assert (found["accepted"], found["trouble"], found["destinations"]) == (False, "UNKNOWN", [])
    why = "no alias answers, or what the pattern of the one that does captured makes no address"
    assert found["steps"] == [f"opt@example.com: {why}"]
    assert why in " ".join(hosted("route", "opt@example.com")[1].split())


def test_the_postmaster_of_the_server(hosted: Cli, tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_here(tmp_path)
    assert route(hosted, "postmaster@mx1.example.net")["trouble"] == "NOT_HOSTED"
    monkeypatch.setenv("FORWARDER_POSTMASTER", "root@example.com")
    hosted.json("alias", "add", "example.com", "root", "person@dest.test")
    found = route(hosted, "Postmaster@mx1.example.net")
    assert [d["destination"] for d in found["destinations"]] == ["person@dest.test"]
    assert "the postmaster of this server; it leads to root@example.com" in found["steps"][0]
    alone = route(hosted, "Postmaster")  # RFC 5321 4.1.1.3: the one address without a domain
    assert (alone["recipient"], alone["destinations"]) == ("postmaster", found["destinations"])
    hosted.json("alias", "add", "example.com", "top", "postmaster@mx1.example.net")
    found = route(hosted, "top@example.com")
    assert [d["destination"] for d in found["destinations"]] == ["person@dest.test"]
    assert found["steps"][1].startswith("postmaster@mx1.example.net: the alias postmaster answers")
    assert route(hosted, "postmaster@example.com")["trouble"] == "UNKNOWN"
    assert route(hosted, "root@mx1.example.net")["trouble"] == "NOT_HOSTED"


def test_the_postmaster_can_be_asked_about_without_keys(
    hosted: Cli, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDER_POSTMASTER", "root@else.test")
    (tmp_path / "data" / "keys" / "srs").unlink()
    assert route(hosted, "postmaster@mx1.example.net")["accepted"] is True
    assert "srs" in hosted.fails("route", "SRS0=aaaaaaaa=AA=x.org=a@mx1.example.net")


def test_where_aliases_of_two_accounts_lead_is_shown_once(hosted: Cli, tmp_path: File) -> None:
    hosted.json("account", "create", "other@example.org")
    hosted.json("domain", "add", "theirs.test", "--account", "other@example.org")
    lead_here(tmp_path, "theirs.test")
    for domain, alias, forward in (
        ("theirs.test", "boss", "Person@dest.test"),
        ("example.com", "mine", "person@dest.test"),
        ("example.com", "both", "mine@example.com,boss@theirs.test"),
    ):
        hosted.json("alias", "add", domain, alias, forward)
    found = route(hosted, "both@example.com")
    assert found["destinations"] == [
        {"destination": "person@dest.test", "alias": "both", "domain": "example.com"}
    ]
    assert len(found["steps"]) == 3


def test_what_an_alias_discards_is_accepted_and_goes_nowhere(hosted: Cli, tmp_path: File) -> None:
    async def disabled() -> None:
        database = await Database.open(f"sqlite:///{tmp_path / 'data' / 'forwarder.db'}")

        def add(conn: Connection) -> None:
            domain = domains.get(conn, "example.com")
            assert domain is not None
            now = datetime.now(UTC)
            aliases.add(conn, domain, "old", "ann@dest.test", now, is_active=False, when_disabled=250)

        try:
            await database.write(add)
        finally:
            await database.close()

    asyncio.run(disabled())
    found = route(hosted, "old@example.com")
    assert (found["accepted"], found["trouble"], found["destinations"]) == (True, "DISCARD", [])
    assert not route(hosted, "nobody@example.com")["accepted"]
