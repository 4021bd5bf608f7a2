"""Accounts, domains, aliases, credentials and keys in the store, on SQLite and PostgreSQL."""

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, func, select

from forwarder.store import accounts, aliases, credentials, dkim_keys, domains, tables
from forwarder.store.conflict import AlreadyExists, LimitReached, Missing, TooLarge
from forwarder.store.domains import Domain
from forwarder.store.engine import Database
from forwarder.store.migrations import upgrade
from forwarder.store.passwords import hash_password, outdated, verify
from forwarder.store.vault import Vault, WrongKey, make_keys, signer
from tests.store.conftest import machine_steps

NOW = datetime(2026, 3, 4, 5, 6, 7, 123456, tzinfo=UTC)
T = TypeVar("T")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    upgrade(database_url)
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


async def domain_in(database: Database, name: str = "one.com") -> Domain:
    def work(conn: Connection) -> Domain:
        owner = accounts.by_email(conn, "a@x.org") or accounts.create(conn, "a@x.org", "default", NOW)
        return domains.add(conn, owner.id, name, name, NOW, dkim_selector="fwd")

    return await database.write(work)


async def version(database: Database) -> int:
    query = select(func.coalesce(func.max(tables.changes.c.version), 0))
    return await database.read(lambda conn: int(conn.execute(query).scalar_one()))


async def test_a_key_opens_its_account_until_it_is_revoked(database: Database) -> None:
    made = await database.write(lambda conn: accounts.create(conn, "Me@X.org", "default", NOW))
    assert (made.email, made.plan, made.created_at) == ("me@x.org", "default", NOW)
    with pytest.raises(AlreadyExists, match="email"):
        await database.write(lambda conn: accounts.create(conn, "me@x.ORG", "default", NOW))
    key = accounts.new_key()
    assert accounts.key_digest(key.secret) == key.digest
    assert key.secret.startswith(key.prefix)
    stored = await database.write(
        lambda conn: accounts.add_key(conn, made.id, "ci", key.digest, key.prefix, NOW)
    )
    found = await database.read(lambda conn: accounts.by_key_digest(conn, key.digest))
    assert found == (made, stored)
    await database.write(lambda conn: accounts.key_used(conn, stored.id, NOW))
    with pytest.raises(AlreadyExists, match="name"):
        await database.write(lambda conn: accounts.add_key(conn, made.id, "ci", "0" * 64, "x", NOW))
    with pytest.raises(LimitReached):
        await database.write(lambda conn: accounts.add_key(conn, made.id, "b", "0" * 64, "x", NOW, limit=1))
    assert not await database.write(lambda conn: accounts.revoke_key(conn, made.id + 1, stored.id, NOW))
    assert await database.write(lambda conn: accounts.revoke_key(conn, made.id, stored.id, NOW))
    assert not await database.write(lambda conn: accounts.revoke_key(conn, made.id, stored.id, NOW))
    assert await database.read(lambda conn: accounts.by_key_digest(conn, key.digest)) is None
    (listed,) = await database.read(lambda conn: accounts.list_keys(conn, made.id))
    assert (listed.revoked_at, listed.last_used_at) == (NOW, NOW)
    assert await database.write(lambda conn: accounts.set_plan(conn, made.id, "large"))
    assert (await database.read(accounts.list_accounts))[0].plan == "large"


async def test_of_revoked_keys_the_last_twenty_stay(database: Database) -> None:
    def work(conn: Connection) -> tuple[list[str], list[str]]:
        one, other = (accounts.create(conn, f"{name}@x.org", "default", NOW) for name in ("one", "other"))
        for owner, count in ((other, 1), (one, 30)):
            accounts.add_key(conn, owner.id, "in force", f"{owner.id}", "x", NOW)
            for number in range(count):
                later = NOW + timedelta(minutes=number)
                made = accounts.add_key(conn, owner.id, str(number), f"{owner.id} {number}", "x", NOW)
                assert accounts.revoke_key(conn, owner.id, made.id, later)
        ours, theirs = (accounts.list_keys(conn, owner.id) for owner in (one, other))
        return [key.name for key in ours], [key.name for key in theirs]

    ours, theirs = await database.write(work)
    assert ours == ["in force", *map(str, range(10, 30))]
    assert theirs == ["in force", "0"]


def test_new_keys_differ_and_hold_256_random_bits() -> None:
    secrets = {accounts.new_key().secret for _ in range(100)}
    assert len(secrets) == 100
    assert min(map(len, secrets)) >= 43


async def test_domains_are_unique_over_all_accounts_and_removed_with_all_they_have(
    database: Database,
) -> None:
    domain = await domain_in(database)
    await database.write(lambda conn: accounts.create(conn, "b@x.org", "default", NOW))
    other = await database.read(lambda conn: accounts.by_email(conn, "b@x.org"))
    assert other is not None
    with pytest.raises(AlreadyExists, match="domain"):
        await database.write(
            lambda conn: domains.add(conn, other.id, "one.com", "one.com", NOW, dkim_selector="fwd")
        )
    assert await database.read(lambda conn: domains.get(conn, "one.com", account_id=other.id)) is None
    assert await database.read(lambda conn: domains.get(conn, "one.com")) == domain
    new_key = dkim_keys.NewDkimKey(selector="fwd1", algorithm="rsa", private_key=b"s", public_record="p")

    def fill(conn: Connection) -> None:
        aliases.add(conn, domain, "*", "x@y.org", NOW)
        credentials.add(conn, domain, "me", "hash", NOW)
        dkim_keys.add(conn, domain, new_key, NOW)

    await database.write(fill)
    assert await database.write(lambda conn: domains.remove(conn, domain, NOW))
    assert not await database.write(lambda conn: domains.remove(conn, domain, NOW))
    for table in (tables.domains, tables.aliases, tables.credentials, tables.dkim_keys):
        left = select(func.count()).select_from(table)
        assert await database.read(lambda conn, left=left: conn.execute(left).scalar_one()) == 0


@pytest.mark.parametrize("wanted", ["b\xfc", "B\xdc", "bu\u0308", "BU\u0308CHER.com", "XN--B"])
async def test_a_domain_is_found_by_whatever_it_may_be_written_like(database: Database, wanted: str) -> None:
    def work(conn: Connection) -> Sequence[Domain]:
        owner = accounts.create(conn, "a@x.org", "default", NOW)
        domains.add(conn, owner.id, "xn--bcher-kva.com", "b\xfccher.com", NOW, dkim_selector="fwd")
        return domains.list_domains(conn, owner.id, starts_with=wanted)[0]

    assert [found.name for found in await database.write(work)] == ["xn--bcher-kva.com"]


async def test_domains_are_listed_by_prefix_activity_and_page(database: Database) -> None:
    names = ("piedpiper.com", "hooli.com", "pied_x.com", "xn--pid-bma.com")
    made = [await domain_in(database, name) for name in names]
    first = made[0]
    active: dict[str, Any] = {"sending_ready": False, "broken_since": None, "notified_at": None}
    await database.write(lambda conn: domains.record_check(conn, first, NOW, is_active=True, **active))

    async def listed(**wanted: Any) -> tuple[list[str], int]:
        rows, total = await database.read(lambda conn: domains.list_domains(conn, first.account_id, **wanted))
        return [row.name for row in rows], total

    assert await listed() == (list(names), 4)
    assert await listed(starts_with="PIED") == (["piedpiper.com", "pied_x.com"], 2)
    assert await listed(starts_with="pied_") == (["pied_x.com"], 1)
    assert await listed(is_active=True) == (["piedpiper.com"], 1)
    assert await listed(limit=2, offset=2) == (list(names[2:]), 4)
    assert await database.read(lambda conn: domains.count(conn, first.account_id)) == 4
    with pytest.raises(LimitReached):
        await database.write(
            lambda conn: domains.add(
                conn, first.account_id, "new.com", "new.com", NOW, dkim_selector="fwd", limit=4
            )
        )


async def test_a_check_of_a_domain_that_was_checked_meanwhile_is_not_written(database: Database) -> None:
    domain = await domain_in(database)
    right: dict[str, Any] = {"is_active": True, "sending_ready": True}
    wrong: dict[str, Any] = {"is_active": False, "sending_ready": False}
    more: dict[str, Any] = {"broken_since": None, "notified_at": None}
    other = await database.write(lambda conn: domains.record_check(conn, domain, NOW, **right, **more))
    assert other is not None
    assert await database.write(lambda conn: domains.record_check(conn, domain, NOW, **wrong, **more)) is None
    assert await database.read(lambda conn: domains.by_id(conn, domain.id)) == other
    await database.write(lambda conn: domains.set_notified(conn, domain.id, NOW))
    assert await database.write(lambda conn: domains.record_check(conn, other, NOW, **wrong, **more)) is None


async def test_every_change_of_what_a_domain_does_is_announced(database: Database) -> None:
    domain = await domain_in(database)
    await database.write(lambda conn: aliases.add(conn, domain, "a", "x@y.org", NOW))
    alias = await database.read(lambda conn: aliases.get(conn, domain.id, "a"))
    assert alias is not None
    changes: list[Callable[[Connection], Any]] = [
        lambda conn: aliases.add(conn, domain, "b", "x@y.org", NOW),
        lambda conn: aliases.update_alias(conn, domain, alias, NOW, forward="z@y.org"),
        lambda conn: aliases.bulk(conn, domain, [("c", "x@y.org")], NOW, update_existing=False),
        lambda conn: aliases.remove(conn, domain, alias, NOW),
        lambda conn: credentials.add(conn, domain, "me", "hash", NOW),
        lambda conn: credentials.update_credential(conn, domain, "me", NOW, password_hash="other"),
        lambda conn: credentials.remove(conn, domain, "me", NOW),
        lambda conn: domains.update_domain(conn, domain, NOW, webhook="https://x.org/"),
        lambda conn: domains.record_check(
            conn, domain, NOW, is_active=True, sending_ready=True, broken_since=None, notified_at=None
        ),
        lambda conn: domains.remove(conn, domain, NOW),
    ]
    seen = await version(database)
    for change in changes:
        await database.write(change)
        now = await version(database)
        assert now > seen
        seen = now


async def test_a_check_is_announced_when_it_changes_what_is_done_with_mail(database: Database) -> None:
    domain = await domain_in(database)
    before = await version(database)

    async def checked(*, active: bool) -> int:
        nonlocal domain
        more: dict[str, Any] = {"sending_ready": False, "broken_since": None, "notified_at": None}
        found = await database.write(
            lambda conn: domains.record_check(conn, domain, NOW, is_active=active, **more)
        )
        assert found is not None
        domain = found
        return await version(database)

    assert await checked(active=False) == before
    assert await checked(active=True) == before + 1
    assert await checked(active=True) == before + 1
    assert await checked(active=False) == before + 2


async def test_what_fails_is_not_announced(database: Database) -> None:
    domain = await domain_in(database)
    await database.write(lambda conn: aliases.add(conn, domain, "a", "x@y.org", NOW))
    before = await version(database)
    with pytest.raises(AlreadyExists):
        await database.write(lambda conn: aliases.add(conn, domain, "a", "x@y.org", NOW))
    assert await version(database) == before


async def test_aliases_are_found_by_pattern_and_by_id(database: Database) -> None:
    domain, other = await domain_in(database), await domain_in(database, "two.com")
    made = await database.write(lambda conn: aliases.add(conn, domain, "a", "x@y.org", NOW))

    async def find(where: Domain, name: str) -> aliases.Alias | None:
        return await database.read(lambda conn: aliases.find(conn, where.id, name))

    for name in ("a", "A", " a"):
        assert await find(domain, name) == made
    assert await find(domain, str(made.id)) == made
    for where, name in ((other, "a"), (other, str(made.id)), (domain, "9" * 30), (domain, "١")):
        assert await find(where, name) is None
    named = await database.write(lambda conn: aliases.add(conn, domain, str(made.id), "z@y.org", NOW))
    assert await find(domain, str(made.id)) == named


async def test_alias_changes_on_what_is_gone_are_missing(database: Database) -> None:
    domain = await domain_in(database)
    alias = await database.write(lambda conn: aliases.add(conn, domain, "a", "x@y.org", NOW))
    assert await database.write(lambda conn: aliases.remove(conn, domain, alias, NOW))
    assert not await database.write(lambda conn: aliases.remove(conn, domain, alias, NOW))
    with pytest.raises(Missing, match="alias"):
        await database.write(lambda conn: aliases.update_alias(conn, domain, alias, NOW, forward="z@y.org"))
    await database.write(lambda conn: domains.remove(conn, domain, NOW))
    with pytest.raises(Missing, match="domain"):
        await database.write(lambda conn: aliases.add(conn, domain, "b", "x@y.org", NOW))
    with pytest.raises(Missing, match="credential"):
        await database.write(
            lambda conn: credentials.update_credential(conn, domain, "me", NOW, password_hash="h")
        )


async def test_the_first_aliases_of_many_domains_in_one_statement(database: Database) -> None:
    made = [await domain_in(database, f"d{number}.com") for number in range(3)]
    for domain, count in zip(made, (0, 2, 5), strict=True):
        entries = [(f"a{number}", "x@y.z") for number in range(count)]
        await database.write(
            lambda conn, domain=domain, entries=entries: aliases.bulk(
                conn, domain, entries, NOW, update_existing=False
            )
        )

    async def shown(room: int) -> list[list[str]]:
        wanted = [domain.id for domain in made]
        found = await database.read(lambda conn: aliases.first_of_each(conn, wanted, 3, room=room))
        return [[alias.pattern for alias in found[domain.id]] for domain in made]

    assert await shown(1000) == await shown(25) == [[], ["a0", "a1"], ["a0", "a1", "a2"]]
    assert await shown(24) == await shown(20) == [[], ["a0", "a1"], ["a0", "a1"]]  # "x@y.z" is five
    assert await shown(4) == [[], [], []]
    assert await database.read(lambda conn: aliases.first_of_each(conn, [], 3, room=1000)) == {}


async def test_the_first_aliases_cost_the_same_however_many_a_domain_has(database: Database) -> None:
    """What is touched of each domain is what is shown of it, and as much to find where that ends."""
    made = [await domain_in(database, name) for name in ("large.com", "larger.com")]
    for domain in made:
        entries = [(f"a{number}", "x@y.z") for number in range(3000)]
        await database.write(
            lambda conn, domain=domain, entries=entries: aliases.bulk(
                conn, domain, entries, NOW, update_existing=False
            )
        )
    wanted = [domain.id for domain in made]
    if database.dialect == "postgresql":
        plan = await database.read(lambda conn: _explained(conn, wanted))
        assert 0 < _rows_touched(plan) <= 2 * 2 * 50, plan
    else:
        steps = await database.read(
            lambda conn: machine_steps(conn, lambda: aliases.first_of_each(conn, wanted, 50, room=10_000))
        )
        # Of SQLite's machine: an alias that is passed takes some ten, one that is shown some fifty.
        assert 0 < steps < 100_000


def _explained(conn: Connection, domain_ids: list[int]) -> str:
    query = aliases._first_of_each(domain_ids, 50, 10_000).compile(
        dialect=conn.dialect, compile_kwargs={"literal_binds": True}
    )
    return "\n".join(conn.exec_driver_sql(f"EXPLAIN ANALYZE {query}").scalars())


def _rows_touched(plan: str) -> int:
    touched = re.findall(r" on aliases.*actual .* rows=([0-9.]+) loops=([0-9]+)", plan)
    return sum(round(float(rows) * int(loops)) for rows, loops in touched)


async def test_bulk_adds_updates_and_counts(database: Database) -> None:
    domain = await domain_in(database)
    await database.write(lambda conn: aliases.add(conn, domain, "a", "old@y.org", NOW))
    await database.write(lambda conn: aliases.add(conn, domain, "z", "old@y.org", NOW))
    entries = [("b", "1@y.org"), ("z", "5@y.org"), ("a", "2@y.org"), ("c", "3@y.org"), ("b", "4@y.org")]
    refused = await database.write(
        lambda conn: aliases.bulk(conn, domain, [("a", "2@y.org")], NOW, update_existing=False)
    )
    assert [alias.forward for alias in refused.failed] == ["old@y.org"]
    done = await database.write(lambda conn: aliases.bulk(conn, domain, entries, NOW, update_existing=True))
    assert [(alias.pattern, alias.forward) for alias in done.added] == [("b", "4@y.org"), ("c", "3@y.org")]
    assert [(alias.pattern, alias.forward) for alias in done.updated] == [("z", "5@y.org"), ("a", "2@y.org")]
    stored, _ = await database.read(lambda conn: aliases.list_aliases(conn, domain.id))
    assert list(stored) == sorted([*done.added, *done.updated], key=lambda alias: alias.id)
    with pytest.raises(LimitReached):
        await database.write(
            lambda conn: aliases.bulk(conn, domain, [("d", "x@y.org")], NOW, update_existing=True, limit=4)
        )
    many = [(f"m{number}", "x@y.org") for number in range(500)]
    done = await database.write(lambda conn: aliases.bulk(conn, domain, many, NOW, update_existing=True))
    assert [alias.pattern for alias in done.added] == [pattern for pattern, _ in many]
    assert sorted(alias.id for alias in done.added) == [alias.id for alias in done.added]
    assert await database.read(lambda conn: aliases.count(conn, domain.id)) == 504
    twice = [("n", "1@y.org"), ("a", "x@y.org"), ("n", "2@y.org"), ("o", "3@y.org")]
    done = await database.write(lambda conn: aliases.bulk(conn, domain, twice, NOW, update_existing=False))
    assert [(alias.pattern, alias.forward) for alias in done.added] == [("n", "1@y.org"), ("o", "3@y.org")]
    assert [(alias.pattern, alias.forward) for alias in done.failed] == [("n", "1@y.org"), ("a", "2@y.org")]


async def test_what_is_looked_for_is_found_beyond_ascii_too(database: Database) -> None:
    domain = await domain_in(database)
    await database.write(lambda conn: aliases.add(conn, domain, "uu", "\xc9a@y.org", NOW))
    for wanted in ("\xc9", "\xc9A", "UU"):
        found, total = await database.read(
            lambda conn, wanted=wanted: aliases.list_aliases(conn, domain.id, starts_with=wanted)
        )
        assert (len(found), total) == (1, 1), wanted


@pytest.mark.parametrize(
    "wanted", ["J\xd6", "jo\u0308s", "JO\u0308S", "stra\xdfe", "STRASSE", "(\xd6l|", "k@Y", "U+2@y.org,k"]
)
async def test_an_alias_is_found_by_whatever_it_may_be_written_like(database: Database, wanted: str) -> None:
    domain = await domain_in(database)
    for pattern, forward in (
        ("j\xf6s", "x@y.org"),
        ("strasse", "x@y.org"),
        ("(\xd6l|x)", "j@y.org,u+2@y.org,k@y.org"),
    ):
        await database.write(lambda conn, one=(pattern, forward): aliases.add(conn, domain, *one, NOW))
    either, total = await database.read(
        lambda conn: aliases.list_aliases(conn, domain.id, starts_with=wanted)
    )
    assert (len(either), total) == (1, 1)
    by_name, _ = await database.read(
        lambda conn: aliases.list_aliases(conn, domain.id, pattern_starts_with=wanted)
    )
    assert len(by_name) == ("@" not in wanted)
    holding, _ = await database.read(lambda conn: aliases.list_aliases(conn, domain.id, contains=wanted))
    assert list(holding) == list(either)


async def test_a_rank_ends_with_the_regular_expression_it_was_of(database: Database) -> None:
    domain = await domain_in(database)
    made = await database.write(lambda conn: aliases.add(conn, domain, "(foo)", "x@y.org", NOW, rank=3.5))
    for pattern, rank in (("(fo+)", 3.5), ("plain", None), ("(foo)", None)):
        made = await database.write(
            lambda conn, made=made, pattern=pattern: aliases.update_alias(
                conn, domain, made, NOW, pattern=pattern
            )
        )
        assert made.rank == rank, pattern


async def test_credentials_are_found_for_a_login_with_domain_and_account(database: Database) -> None:
    domain = await domain_in(database)
    made = await database.write(lambda conn: credentials.add(conn, domain, "Me", "hash", NOW))
    assert (made.username, made.usage, made.is_limited) == ("me", 0, False)
    with pytest.raises(AlreadyExists, match="username"):
        await database.write(lambda conn: credentials.add(conn, domain, "ME", "hash", NOW))
    with pytest.raises(LimitReached):
        await database.write(lambda conn: credentials.add(conn, domain, "b", "hash", NOW, limit=1))
    login = await database.read(lambda conn: credentials.for_login(conn, "mE", "one.com"))
    assert login is not None
    assert (login.credential, login.domain, login.account_plan, login.account_locked) == (
        made,
        domain,
        "default",
        False,
    )
    for username, name in (("other", "one.com"), ("me", "two.com")):
        assert await database.read(lambda conn, u=username, n=name: credentials.for_login(conn, u, n)) is None
    later = NOW + timedelta(hours=1)
    await database.write(lambda conn: credentials.used(conn, made.id, later, messages=2))
    changed = await database.write(
        lambda conn: credentials.update_credential(conn, domain, "me", later, password_hash="new")
    )
    assert changed == replace(made, usage=2, last_used_at=later, changed_at=later, password_hash="new")
    assert await database.read(lambda conn: credentials.list_credentials(conn, domain.id)) == [changed]
    assert await database.write(lambda conn: credentials.remove(conn, domain, "ME", NOW))
    assert not await database.write(lambda conn: credentials.remove(conn, domain, "me", NOW))


async def test_a_password_hashed_anew_does_not_come_back_when_it_was_changed_meanwhile(
    database: Database,
) -> None:
    """Whoever changes it because somebody knows it is not to be undone by that somebody's log-in under way."""
    domain = await domain_in(database)
    known = await database.write(lambda conn: credentials.add(conn, domain, "me", "known", NOW))
    changed = await database.write(
        lambda conn: credentials.update_credential(conn, domain, "me", NOW, password_hash="changed")
    )
    for credential, renewed in ((known, False), (changed, True)):
        took = await database.write(
            partial(credentials.renew_hash, credential=credential, password_hash="hashed anew")
        )
        stored = await database.read(lambda conn: credentials.get(conn, domain.id, "me"))
        assert stored == replace(changed, password_hash="hashed anew" if renewed else "changed")
        assert took is renewed


async def test_domains_due_for_a_check(database: Database) -> None:
    names = ("never.com", "old.com", "fresh.com", "young.com", "broken.com", "skewed.com", "ahead.com")
    made = {name: await domain_in(database, name) for name in names}

    async def record(name: str, at: datetime, *, active: bool, broken: bool = False) -> None:
        await database.write(
            lambda conn: domains.record_check(
                conn,
                made[name],
                at,
                is_active=active,
                sending_ready=False,
                broken_since=at if broken else None,
                notified_at=None,
            )
        )

    await record("old.com", NOW - timedelta(hours=13), active=True)
    await record("fresh.com", NOW - timedelta(minutes=20), active=True)
    await record("young.com", NOW - timedelta(minutes=20), active=False)
    await record("broken.com", NOW, active=False, broken=True)
    await record("skewed.com", NOW + timedelta(hours=12), active=True)
    await record("ahead.com", NOW + timedelta(days=3650), active=True)  # by a clock that was wrong

    async def due() -> list[str]:
        rows = await database.read(
            lambda conn: domains.due_for_check(
                conn,
                before=NOW - timedelta(hours=12),
                beyond=NOW + timedelta(hours=12),
                young_since=NOW - timedelta(days=7),
                young_before=NOW - timedelta(minutes=10),
                limit=10,
            )
        )
        return [row.name for row in rows]

    assert await due() == ["never.com", "old.com", "young.com", "broken.com", "ahead.com"]
    await database.write(lambda conn: domains.set_notified(conn, made["broken.com"].id, NOW))
    assert await due() == ["never.com", "old.com", "young.com", "ahead.com"]


async def test_keys_of_domains_are_sealed_and_open_only_in_their_place(database: Database) -> None:
    domain = await domain_in(database)
    vault = Vault(bytes(32))
    made = make_keys(vault, domain.name, "fwd")
    assert [(key.selector, key.algorithm) for key in made] == [("fwd1", "rsa"), ("fwd2", "ed25519")]
    for key in made:
        await database.write(lambda conn, key=key: dkim_keys.add(conn, domain, key, NOW))
    with pytest.raises(AlreadyExists, match="selector"):
        await database.write(lambda conn: dkim_keys.add(conn, domain, made[0], NOW))
    stored = await database.read(lambda conn: dkim_keys.list_keys(conn, domain.id))
    assert [key.public_record for key in stored] == [key.public_record for key in made]
    assert b"PRIVATE KEY" not in stored[0].private_key
    loaded = signer(vault, domain.name, stored[0])
    assert (loaded.domain, loaded.selector, loaded.algorithm) == ("one.com", "fwd1", "rsa-sha256")
    for wrong_vault, name in ((Vault(b"x" * 32), "one.com"), (vault, "two.com")):
        with pytest.raises(WrongKey):
            signer(wrong_vault, name, stored[0])
    with pytest.raises(WrongKey):
        vault.open(b"", domain="one.com", selector="fwd1")


def test_passwords_verify_against_argon2id_hashes() -> None:
    made = hash_password("abc123")
    assert made.startswith("$argon2id$")
    assert verify(made, "abc123")
    assert not verify(made, "abc124")
    assert not verify("nonsense", "abc123")
    assert not outdated(made)


async def test_the_regular_expressions_of_a_domain_are_bounded_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = await domain_in(database)
    other = await domain_in(database, "two.com")
    # RE2 counts 2,003 instructions in x{1,1000}.
    monkeypatch.setattr("forwarder.mail.pattern.MAX_PROGRAMS", 2200)

    def add(pattern: str, to: Domain = domain) -> Callable[[Connection], aliases.Alias]:
        return lambda conn: aliases.add(conn, to, pattern, "a@x.org", NOW)

    first = await database.write(add("x{1,1000}"))
    small = await database.write(add("(a|b)"))
    for change in (
        add("y{1,1000}"),
        lambda conn: aliases.update_alias(conn, domain, small, NOW, pattern="y{1,1000}"),
        lambda conn: aliases.bulk(
            conn, domain, [("new", "a@x.org"), ("y{1,1000}", "a@x.org")], NOW, update_existing=True
        ),
    ):
        with pytest.raises(TooLarge, match="too large together"):
            await database.write(change)
    # Other domains, other kinds, and changes that add nothing are as free as before.
    await database.write(add("y{1,1000}", other))
    await database.write(add("name"))
    await database.write(lambda conn: aliases.update_alias(conn, domain, first, NOW, forward="b@x.org"))
    await database.write(lambda conn: aliases.update_alias(conn, domain, first, NOW, pattern="y{1,1000}"))
    found, _ = await database.read(lambda conn: aliases.list_aliases(conn, domain.id))
    assert [alias.pattern for alias in found] == ["y{1,1000}", "(a|b)", "name"]


async def test_a_text_is_looked_for_within_patterns_and_destinations(database: Database) -> None:
    domain = await domain_in(database)
    named = {"sales%": "ann@x.org", "Größe": "https://h.org/A_B?c=d", "info": "bob@y.org"}

    def work(conn: Connection) -> None:
        for pattern, forward in named.items():
            aliases.add(conn, domain, pattern, forward, NOW)

    await database.write(work)
    for text, patterns in {
        "%": ["sales%"],
        "a_b": ["Größe"],
        "S%": ["sales%"],
        "röß": ["Größe"],
        "/": ["Größe"],
        ".ORG": list(named),
        "ann@y": [],
    }.items():
        found, total = await database.read(
            lambda conn, text=text: aliases.list_aliases(conn, domain.id, contains=text)
        )
        assert ([each.pattern for each in found], total) == (patterns, len(patterns)), text


async def test_a_long_text_is_looked_for_in_long_destinations_at_once(database: Database) -> None:
    domain = await domain_in(database)
    long = ",".join(f"https://h{number}.org/{'a' * 1950}" for number in range(12))

    def work(conn: Connection) -> None:
        for number in range(100):
            aliases.add(conn, domain, f"a{number}", long, NOW)

    await database.write(work)
    began = time.process_time()
    found, total = await database.read(
        lambda conn: aliases.list_aliases(conn, domain.id, contains="a" * 900 + "b")
    )
    assert (found, total) == ([], 0)
    assert time.process_time() - began < 1  # letter by letter, from each place, some 4 s
