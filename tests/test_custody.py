"""Keys that are lost, or of another installation: never replaced unasked, by nobody who comes to need them."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from forwarder import custody, domain_keys
from forwarder.cli import app
from forwarder.config import Settings
from forwarder.custody import check_keys
from forwarder.domain_keys import DomainKeys
from forwarder.keyring import RENEW, KeyringError, make_missing_keys, open_store_key
from forwarder.mail.seal import Signer
from forwarder.store import accounts, dkim_keys, domains
from forwarder.store.dkim_keys import DkimKey
from forwarder.store.domains import Domain
from forwarder.store.engine import Database
from forwarder.store.migrations import upgrade
from forwarder.store.vault import Vault, make_key, signer
from tests.harness import EngineProcess, House, put_keys

NOW = datetime(2026, 3, 4, 5, 6, 7, 123456, tzinfo=UTC)


class Installation:
    """A data_dir and a database that hosts what the test puts into it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.settings = Settings.model_validate(
            {"hostname": "mx.test", "data_dir": str(folder / "data"), "database": {"url": url}}
        )
        self.keys = self.settings.data_dir / "keys"
        self.database: Database

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Installation"]:
        await asyncio.to_thread(upgrade, self.settings.database.url)
        put_keys(self.settings)
        self.database = await Database.open(self.settings.database.url)
        try:
            yield self
        finally:
            await self.database.close()

    async def host(self, name: str) -> Domain:
        """A domain that may submit, with one key sealed by the store.key of now."""
        key = make_key(Vault(open_store_key(self.settings)), name, "fwd2", "ed25519")

        def work(conn: Connection) -> Domain:
            owner = accounts.by_email(conn, "a@x.org") or accounts.create(conn, "a@x.org", "default", NOW)
            made = domains.add(conn, owner.id, name, name, NOW, dkim_selector="fwd")
            dkim_keys.add(conn, made, key, NOW)
            told = {"is_active": True, "sending_ready": True, "broken_since": None, "notified_at": None}
            checked = domains.record_check(conn, made, NOW, **told)  # type: ignore[arg-type]
            assert checked is not None
            return checked

        return await self.database.write(work)

    async def key_of(self, name: str) -> DkimKey:
        domain = await self.domain(name)
        (key,) = await self.database.read(lambda conn: dkim_keys.list_keys(conn, domain.id))
        return key

    async def domain(self, name: str) -> Domain:
        found = await self.database.read(lambda conn: domains.get(conn, name))
        assert found is not None
        return found

    def on_disk(self) -> Mapping[str, bytes]:
        return {path.name: path.read_bytes() for path in self.keys.iterdir()} if self.keys.exists() else {}


@pytest.fixture
async def installation(tmp_path: Path, database_url: str) -> AsyncIterator[Installation]:
    async with Installation(tmp_path, database_url).opened() as opened:
        yield opened


async def test_a_fresh_installation_gets_its_keys_and_keeps_them(installation: Installation) -> None:
    await check_keys(installation.database, installation.settings)
    made = installation.on_disk()
    assert sorted(made) == ["dkim-fwd1.pem", "dkim-fwd2.pem", "srs", "store.key"]
    await installation.host("one.test")
    await check_keys(installation.database, installation.settings)
    assert installation.on_disk() == made


@pytest.mark.parametrize("lost", [("srs",), ("store.key",), ("dkim-fwd1.pem",), ("srs", "store.key"), ()])
async def test_keys_missing_beside_a_domain_are_refused_and_none_is_made(
    installation: Installation, lost: tuple[str, ...]
) -> None:
    await check_keys(installation.database, installation.settings)
    await installation.host("one.test")
    if lost:
        for name in lost:
            (installation.keys / name).unlink()
    else:
        shutil.rmtree(installation.keys)
    left = installation.on_disk()
    with pytest.raises(KeyringError) as caught:
        await check_keys(installation.database, installation.settings, may_renew=True)
    said = str(caught.value)
    assert all(name in said for name in lost or ("srs", "store.key", "dkim-fwd1.pem"))
    assert str(installation.keys) in said
    assert str(installation.settings.data_dir / RENEW) in said
    assert installation.on_disk() == left
    assert installation.keys.exists() is bool(left)


async def test_another_store_key_is_refused_with_the_domains_it_does_not_open(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.custody.PAGE", 1)
    await check_keys(installation.database, installation.settings)
    await installation.host("one.test")
    await installation.host("two.test")
    (installation.keys / "store.key").write_text("ab" * 32)
    await installation.host("three.test")  # opens, as domains do that were added since
    left = installation.on_disk()
    with pytest.raises(KeyringError, match=r"store\.key does not open the DKIM keys of one\.test and 1 more"):
        await check_keys(installation.database, installation.settings, may_renew=True)
    assert installation.on_disk() == left


async def test_a_start_opens_the_first_and_the_last_keys_and_all_when_one_does_not_open(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.custody.PAGE", 2)
    opened: list[str] = []
    opens = custody._opens

    def noting(vault: Vault, domain: str, key: DkimKey) -> bool:
        opened.append(domain)
        return opens(vault, domain, key)

    monkeypatch.setattr(custody, "_opens", noting)
    await check_keys(installation.database, installation.settings)
    names = [f"d{number}.test" for number in range(7)]
    for name in names:
        await installation.host(name)
    for thorough, expected in ((False, [*names[:2], *names[-2:]]), (True, names)):
        opened.clear()
        await check_keys(installation.database, installation.settings, thorough=thorough)
        assert opened == expected
    right = (installation.keys / "store.key").read_text()
    (installation.keys / "store.key").write_text("ab" * 32)
    await installation.host("other.test")
    (installation.keys / "store.key").write_text(right)
    with pytest.raises(KeyringError, match=r"does not open the DKIM keys of other\.test in"):
        await check_keys(installation.database, installation.settings)


async def test_a_person_may_say_that_they_are_lost(installation: Installation) -> None:
    await check_keys(installation.database, installation.settings)
    await installation.host("one.test")
    before = await installation.key_of("one.test")
    srs = (installation.keys / "srs").read_bytes()
    (installation.keys / "store.key").unlink()
    marker = installation.settings.data_dir / RENEW
    marker.touch()
    with pytest.raises(KeyringError):  # commands do not heed it
        await check_keys(installation.database, installation.settings)
    await check_keys(installation.database, installation.settings, may_renew=True)
    assert not marker.exists()
    assert (installation.keys / "srs").read_bytes() == srs
    after = await installation.key_of("one.test")
    assert (after.selector, after.algorithm) == (before.selector, before.algorithm)
    assert after.id != before.id  # other processes know keys by their ids
    assert after.public_record != before.public_record
    made = signer(Vault(open_store_key(installation.settings)), "one.test", after)
    assert made.selector == "fwd2"
    assert (await installation.domain("one.test")).sending_checked_at is None
    await check_keys(installation.database, installation.settings)


async def test_keys_that_open_are_not_made_anew(installation: Installation) -> None:
    await check_keys(installation.database, installation.settings)
    hosted = await installation.host("one.test")
    before = await installation.key_of("one.test")
    (installation.keys / "srs").unlink()
    (installation.settings.data_dir / RENEW).touch()
    await check_keys(installation.database, installation.settings, may_renew=True)
    assert (installation.keys / "srs").exists()
    assert await installation.key_of("one.test") == before
    assert await installation.domain("one.test") == hosted


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_engine_says_that_it_lacks_the_keys_of_its_domains_and_forwards_mail(
    house: House, processes: int
) -> None:
    process = EngineProcess(house, workers={"processes": processes})
    async with process:
        await house.host("example.com", {"*": "inbox@dest.test"})
    keys = house.settings.data_dir / "keys"
    kept = keys.rename(house.folder / "kept")
    keys.mkdir()
    put_keys(house.settings)
    message = b"Subject: x\r\n\r\nx\r\n"
    for told in ("lacks srs, store.key", "does not open the DKIM keys of example.com"):  # at each start
        async with process:
            assert (await house.send("ann@out.test", "info@example.com", message)).code == 250
        log = process.log()
        assert "the keys are not those of this database" in log
        assert told in log
        assert "Traceback" not in log
        assert "never retrieved" not in log
    shutil.rmtree(keys)
    kept.rename(keys)
    before = len(process.log())
    async with process:
        assert (await house.send("ann@out.test", "info@example.com", message)).code == 250
    assert "the keys are not those" not in process.log()[before:]


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command against an installation in ``tmp_path``: its status and what it said."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'hostname = "mx1.example.net"\ndata_dir = "{tmp_path / "data"}"\n[mx]\nlisten = []\n[api]\nlisten = ""\n'
        '[dns]\nnameservers = ["127.0.0.1:1"]\ntimeout = "100ms"\n'
    )

    def command(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app([*words, "--config", str(config)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return command


def test_check_tells_lost_keys_from_new_ones(run: Run, tmp_path: Path) -> None:
    def about_keys() -> tuple[str, str]:
        _, said = run("check", "--json")
        found = {finding["about"]: finding for finding in json.loads(said)["findings"]}
        return found["keys"]["grade"], found["keys"]["text"]

    assert about_keys()[0] == "fine"  # and makes them: nothing is hosted
    assert run("account", "create", "you@example.org")[0] == 0
    assert run("domain", "add", "example.com", "--account", "you@example.org")[0] == 0
    assert about_keys()[0] == "fine"
    store_key = tmp_path / "data" / "keys" / "store.key"
    right = store_key.read_bytes()
    store_key.write_text("ab" * 32)
    grade, text = about_keys()
    assert (grade, "does not open the DKIM keys of example.com" in text) == ("wrong", True)
    store_key.unlink()
    grade, text = about_keys()
    assert (grade, "lacks store.key" in text) == ("wrong", True)
    assert not store_key.exists()
    status, said = run("domain", "add", "example.org", "--account", "you@example.org")
    assert (status, "lacks store.key" in said) == (1, True)
    assert not store_key.exists()
    store_key.write_bytes(right)
    assert about_keys()[0] == "fine"


def test_check_cannot_tell_while_the_database_does_not_answer(run: Run, tmp_path: Path) -> None:
    make_missing_keys(Settings.model_validate({"hostname": "mx.test", "data_dir": str(tmp_path / "data")}))
    config = tmp_path / "config.toml"
    config.write_text(config.read_text() + '[database]\nurl = "postgresql://me@127.0.0.1:1/mail"\n')
    assert "✓ keys" in run("check")[1]
    (tmp_path / "data" / "keys" / "srs").unlink()
    said = run("check")[1]
    assert "· keys" in said
    assert "lacks srs; look again" in said


async def test_mail_of_a_former_owner_is_not_signed_as_the_domain_of_the_next(
    installation: Installation,
) -> None:
    """It waits for days perhaps; meanwhile the domain was removed, and somebody else added it."""
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    keys = DomainKeys(installation.database, Vault(open_store_key(installation.settings)))
    (signer,) = await keys.signers("one.test", made.added_at + timedelta(days=1))
    assert signer.domain == "one.test"
    assert (
        len(await keys.signers("one.test", made.added_at - timedelta(minutes=1))) == 1
    )  # the clocks of two nodes
    assert await keys.signers("one.test", made.added_at - timedelta(minutes=6)) == ()
    assert await keys.signers("nowhere.test", made.added_at) == ()


async def test_keys_are_loaded_when_they_are_new_and_one_that_does_not_open_is_left_out(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    clock = 0.0
    monkeypatch.setattr(domain_keys, "monotonic", lambda: clock)
    keys = DomainKeys(installation.database, Vault(open_store_key(installation.settings)))
    first = await keys.signers("one.test", made.added_at)
    assert len(first) == 1
    foreign = make_key(Vault(b"x" * 32), "one.test", "other", "ed25519")
    await installation.database.write(lambda conn: dkim_keys.add(conn, made, foreign, NOW))
    clock = 4.9
    assert await keys.signers("one.test", made.added_at) is first  # not asked for again yet
    assert "cannot be used" not in capsys.readouterr().out
    clock = 5.0
    second = await keys.signers("one.test", made.added_at)
    assert [signer.selector for signer in second] == ["fwd2"]
    assert "cannot be used" in capsys.readouterr().out
    clock = 10.0
    assert await keys.signers("one.test", made.added_at) is second  # asked for, and the same
    assert "cannot be used" not in capsys.readouterr().out


async def test_a_key_that_opens_and_is_none_is_left_out(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    vault = Vault(open_store_key(installation.settings))
    damaged = replace(
        make_key(vault, "one.test", "damaged", "ed25519"),
        private_key=vault.seal(b"no key", domain="one.test", selector="damaged"),
    )
    await installation.database.write(lambda conn: dkim_keys.add(conn, made, damaged, NOW))
    found = await DomainKeys(installation.database, vault).signers("one.test", made.added_at)
    assert [one.selector for one in found] == ["fwd2"]
    assert "cannot be used" in capsys.readouterr().out


async def test_the_keys_of_so_many_domains_are_kept(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_keys(installation.database, installation.settings)
    monkeypatch.setattr(domain_keys, "KEPT", 2)
    monkeypatch.setattr(domain_keys, "monotonic", lambda: 0.0)
    keys = DomainKeys(installation.database, Vault(open_store_key(installation.settings)))
    made = {name: await installation.host(name) for name in ("a.test", "b.test", "c.test")}
    seen = {name: await keys.signers(name, domain.added_at) for name, domain in made.items()}
    assert await keys.signers("c.test", NOW) is seen["c.test"]
    assert await keys.signers("b.test", NOW) is seen["b.test"]
    assert await keys.signers("a.test", NOW) is not seen["a.test"]  # loaded again


async def test_keys_that_many_messages_ask_for_at_once_are_loaded_once(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    loads: list[str] = []

    def counted(vault: Vault, domain: str, key: DkimKey) -> Signer:
        loads.append(key.selector)
        return signer(vault, domain, key)

    monkeypatch.setattr(domain_keys, "signer", counted)
    keys = DomainKeys(installation.database, Vault(open_store_key(installation.settings)))
    first = asyncio.create_task(keys.signers("one.test", made.added_at))
    others = [asyncio.create_task(keys.signers("one.test", made.added_at)) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()  # its session is gone
    found = await asyncio.gather(*others)
    assert [[one.selector for one in signers] for signers in found] == [["fwd2"]] * 20
    assert loads == ["fwd2"]


async def test_the_webhook_of_a_domain_that_is_gone_has_no_key(installation: Installation) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    keys = DomainKeys(installation.database, Vault(open_store_key(installation.settings)))
    assert await keys.webhook_key(made.id) == made.webhook_key
    assert await keys.webhook_key(made.id + 1) is None


async def test_what_signs_is_what_was_adopted_and_what_is_retired_need_not_open(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    vault = Vault(open_store_key(installation.settings))
    clock = 0.0
    monkeypatch.setattr(domain_keys, "monotonic", lambda: clock)
    keys = DomainKeys(installation.database, vault)

    async def signs_with() -> list[str]:
        nonlocal clock
        clock += 5.0
        return [signer.selector for signer in await keys.signers("one.test", made.added_at)]

    async def adopt(waiting: Sequence[DkimKey], days: int, *, published: bool) -> bool:
        now = NOW + timedelta(days=days)
        return await installation.database.write(
            lambda conn: dkim_keys.adopt(conn, made, waiting, now, published=published)
        )

    async def retired() -> list[str]:
        found = await installation.database.read(lambda conn: dkim_keys.retired_keys(conn, made.id))
        return [key.selector for key in found]

    async def propose(selector: str) -> Sequence[DkimKey]:
        key = make_key(vault, "one.test", selector, "ed25519")
        return await installation.database.write(lambda conn: dkim_keys.propose(conn, made, [key], NOW))

    first = await propose("b1")
    assert await signs_with() == ["fwd2"]
    assert await adopt(first, 0, published=True)
    assert not await adopt(first, 0, published=True)  # another look found them, too
    assert (await signs_with(), await retired()) == (["b1"], ["fwd2"])
    await check_keys(installation.database, installation.settings, thorough=True)
    assert (await installation.domain("one.test")).sending_checked_at == NOW
    assert await adopt(await propose("c1"), 7, published=False)
    assert (await signs_with(), await retired()) == (["c1"], ["b1", "fwd2"])
    assert (await installation.domain("one.test")).sending_checked_at is None
    assert await adopt(await propose("d1"), 8, published=True)
    assert (await signs_with(), await retired()) == (["d1"], ["b1", "c1"])


async def test_a_key_that_waits_and_does_not_open_is_made_anew_and_waits(installation: Installation) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    foreign = make_key(Vault(b"x" * 32), "one.test", "next1", "ed25519")
    await installation.database.write(lambda conn: dkim_keys.propose(conn, made, [foreign], NOW))
    (installation.settings.data_dir / "make-new-keys").touch()
    await check_keys(installation.database, installation.settings, may_renew=True)
    (waiting,) = await installation.database.read(lambda conn: dkim_keys.waiting_keys(conn, made.id))
    assert waiting.selector == "next1"
    assert waiting.public_record != foreign.public_record
    assert (await installation.key_of("one.test")).selector == "fwd2"
    assert (await installation.domain("one.test")).sending_checked_at == NOW


async def test_keys_one_of_which_was_made_anew_do_not_sign_before_that_one_is_found(
    installation: Installation,
) -> None:
    await check_keys(installation.database, installation.settings)
    made = await installation.host("one.test")
    vault = Vault(open_store_key(installation.settings))
    new = [make_key(vault, "one.test", f"next{n}", "ed25519") for n in (1, 2)]

    def work(conn: Connection) -> tuple[bool, list[str], list[str]]:
        waiting = dkim_keys.propose(conn, made, new, NOW)
        again = make_key(vault, "one.test", "next2", "ed25519")
        assert dkim_keys.replace(conn, made, waiting[1], again, NOW)
        adopted = dkim_keys.adopt(conn, made, waiting, NOW, published=True)
        signing = dkim_keys.list_keys(conn, made.id)
        return (
            adopted,
            [k.selector for k in signing],
            [k.selector for k in dkim_keys.waiting_keys(conn, made.id)],
        )

    assert await installation.database.write(work) == (False, ["fwd2"], ["next1", "next2"])
