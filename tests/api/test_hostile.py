"""Requests that are wrong, odd or hostile: every one gets a 4xx in JSON with a reason, and stores nothing."""

import asyncio
import gzip
import json
import resource
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from forwarder.store import aliases, domains
from tests.api.desk import Desk

JSON = {"Content-Type": "application/json"}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# --- the form of a body


async def test_a_body_beyond_the_limit_is_413_whether_announced_or_not(desk: Desk) -> None:
    large = json.dumps({"domain": "x" * 10_000_000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, pieces()):
        answer = await desk.http.post("/domains", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, 413)


@pytest.mark.parametrize("inside", ["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000])
async def test_deep_json_is_400(desk: Desk, inside: str) -> None:
    for content in (inside, f'{{"domain": "a.com", "x": {inside}}}'):
        answer = await desk.http.post("/domains", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


async def test_brackets_inside_a_text_are_no_depth(desk: Desk) -> None:
    content = json.dumps({"domain": "a.com", "note": "[" * 500 + '"' + "{" * 500})
    assert (await desk.http.post("/domains", content=content, headers=JSON)).status_code == 200


async def test_a_compressed_body_is_415_and_never_unpacked(desk: Desk) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        answer = await desk.http.post("/domains", content=bomb, headers=JSON | {"Content-Encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 415
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/octet-stream", "json", "nonsense/"]
)
async def test_another_content_type_is_415(desk: Desk, kind: str) -> None:
    answer = await desk.http.post("/domains", content=b'{"domain": "a.com"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "content",
    [
        b'{"domain": NaN}',
        b'{"domain": Infinity}',
        b'{"domain": "a.com", "domain": "b.com"}',
        b'{"domain": "a.com", "x": {"y": 1, "y": 2}}',
        b'["a.com"]',
        b'"a.com"',
        b"4",
        b"{",
        b"\xff\xfe{\x00}\x00",
        b'{"domain": "a\xff.com"}',
        b'{"domain": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
async def test_what_is_no_json_object_is_400(desk: Desk, content: bytes) -> None:
    answer = await desk.http.post("/domains", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    assert (await desk.get("/domains")).json()["total"] == 0


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nnonsense\r\n--b--"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="domain"'),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("application/x-www-form-urlencoded", b"domain=%FF%FE"),
        ("application/x-www-form-urlencoded", b"domain=a.com&domain=b.com"),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % n for n in range(1000))),
    ],
)
async def test_a_broken_form_is_400(desk: Desk, kind: str, content: bytes) -> None:
    answer = await desk.http.post("/domains", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text


# --- queries


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=1e9", 400),
        ("limit=1000000000", 200),
        ("limit=-5", 200),
        ("limit=99999999999999999999999999", 200),
        ("limit=x", 400),
        ("page=-1", 400),
        ("page=0", 400),
        ("page=99999999999999999999", 400),
        ("page=1000000000", 200),
        ("is_active=maybe", 400),
        ("q=%00", 400),
        ("q=%FF", 200),
        ("q=100%25_", 200),
        ("q=" + "x" * 1001, 400),
    ],
)
async def test_odd_queries_are_moved_inside_the_bounds_or_400(desk: Desk, query: str, status: int) -> None:
    await desk.domain()
    for path in ("/domains", "/domains/piedpiper.com/aliases"):
        answer = await desk.get(f"{path}?{query}")
        assert answer.status_code == status, answer.text
        if status == 200:
            assert 5 <= answer.json()["limit"] <= 100


@pytest.mark.parametrize(
    "cursor", ["x", "20201002014128.5ea8ee59fa894aa7a9141e9665985b46", "%00", "../..", "'--"]
)
async def test_a_cursor_that_is_none_is_400(desk: Desk, cursor: str) -> None:
    await desk.domain()
    answer = await desk.get(f"/domains/piedpiper.com/logs?next_cursor={cursor}")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["next_cursor"]


async def test_wildcards_in_a_prefix_are_letters(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"a_b": "x@gmail.com", "axb": "y@gmail.com"})
    listed = (await desk.get("/domains/piedpiper.com/aliases?alias=a_")).json()["aliases"]
    assert [alias["alias"] for alias in listed] == ["a_b"]


# --- fields

HOSTILE = [
    "a\r\nBcc: x@evil.org",
    "a%0d%0ab\n",
    "a\0b",
    "a\u2028b",
    "\ud800",
    "x" * 1_000_000,
    "../../x",
    "..",
    "",
    " ",
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
async def test_control_characters_surrogates_and_long_texts_are_refused(desk: Desk, value: str) -> None:
    await desk.domain("piedpiper.com", {})
    requests = [
        ("/domains", {"domain": value}),
        ("/domains", {"domain": f"{value}.com"}),
        ("/domains/piedpiper.com/aliases", {"alias": value or "\n", "forward": "a@gmail.com"}),
        ("/domains/piedpiper.com/aliases", {"alias": "a", "forward": f"{value}@gmail.com"}),
        ("/domains/piedpiper.com/aliases", {"alias": "a", "forward": f"https://example.com/{value}\n"}),
        ("/domains/piedpiper.com/credentials", {"username": value, "password": "abc123"}),
        ("/account/keys", {"name": value if value.strip() else ""}),
    ]
    if value not in ("../../x", "..", "", " "):
        requests.append(("/domains/piedpiper.com/credentials", {"username": "b", "password": value}))
    for path, fields in requests:
        if path == "/account/keys" and value in ("../../x", ".."):
            continue  # a name is only shown
        answer = await desk.http.post(path, content=json.dumps(fields), headers=JSON)
        assert answer.status_code == 400 or (answer.status_code == 413 and len(value) > 900_000), (
            path,
            fields,
        )
        assert "errors" in answer.json() or answer.status_code == 413
    assert (await desk.get("/domains")).json()["total"] == 1
    assert (await desk.get("/domains/piedpiper.com/aliases")).json()["total"] == 0
    assert (await desk.get("/domains/piedpiper.com/credentials")).json()["credentials"] == []


@pytest.mark.parametrize(
    "value",
    [
        "..",
        "../../x",
        "a/../b",
        "a..b.com",
        "-a.com",
        "127.0.0.1",
        "[127.0.0.1]",
        "localhost",
        "a b.com",
        "mx.forwarder.test",
    ],
)
async def test_a_domain_is_a_domain_name_and_nothing_else(desk: Desk, value: str, tmp_path: Path) -> None:
    before = _files(tmp_path)
    answer = await desk.post("/domains", {"domain": value})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["domain"])
    assert _files(tmp_path) == before


@pytest.mark.parametrize(
    "forward",
    [
        "<x@evil.org>@y.org",
        "a;b@y.org",
        "a(b@evil.org)@y.org",
        '"a\r b"@y.org',
        "a@y.org, <x@evil.org>",
        "@y.org",
        "a@",
        "a@y.org,,b@y.org",
        "a@[127.0.0.1]",
    ],
)
async def test_a_destination_that_could_be_read_in_two_ways_is_refused(desk: Desk, forward: str) -> None:
    await desk.domain("piedpiper.com", {})
    answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": "a", "forward": forward})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["forward"])


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("^(a+)+$", True),
        ("(a|a)*b", True),
        ("(.*a){20}", True),
        ("(?=x)", False),
        (r"(.)\1", False),
        ("(x{1,1000}){1,1000}", False),
        ("(" + "a" * 70_000 + ")", False),
        (r"(\C)", False),
        ("(unclosed", False),
        ("[z-a]", False),
    ],
)
async def test_expressions_beyond_linear_time_are_refused_with_a_reason(
    desk: Desk, pattern: str, taken: bool
) -> None:
    await desk.domain("piedpiper.com", {})
    answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": pattern, "forward": "a@gmail.com"})
    assert answer.status_code == (200 if taken else 400), answer.text
    if not taken:
        (reason,) = answer.json()["errors"]["alias"]
        assert len(reason) > 20
        assert reason.endswith(".")


URLS = [
    "http://127.0.0.1/x",
    "https://127.0.0.1/x",
    "https://[::1]/x",
    "https://[::ffff:127.0.0.1]/",
    "https://2130706433/",
    "https://127.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://10.1.2.3/",
    "https://0.0.0.0/",
    "https://localhost/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "https://user:password@example.com/",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", URLS)
async def test_webhooks_to_private_addresses_and_odd_schemes_are_refused(desk: Desk, url: str) -> None:
    await desk.domain("piedpiper.com", {})
    answer = await desk.put("/domains/piedpiper.com", {"webhook": url})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["webhook"])
    answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": "a", "forward": url})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["forward"])


async def test_all_field_errors_come_at_once_as_sentences(desk: Desk) -> None:
    fields = {"domain": 7, "notification_email": "x", "webhook": "file:///x", "whitelabel": "?"}
    answer = await desk.post("/domains", fields)
    errors = answer.json()["errors"]
    assert set(errors) == set(fields)
    for texts in errors.values():
        assert all(text[0].isupper() and text.endswith(".") for text in texts)
    answer = await desk.post("/domains", {})
    assert answer.json()["errors"] == {"domain": ["This field is required."]}


async def test_bulk_errors_name_the_entry_and_nothing_is_stored(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {})
    entries = [{"alias": "a", "forward": "a@gmail.com"}, {"alias": "(", "forward": "x"}, "nonsense", {}]
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": entries})
    assert set(answer.json()["errors"]) == {
        "aliases.1.alias",
        "aliases.1.forward",
        "aliases.2",
        "aliases.3.alias",
        "aliases.3.forward",
    }
    too_many = [{"alias": f"a{n}", "forward": "a@gmail.com"} for n in range(501)]
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": too_many})
    assert list(answer.json()["errors"]) == ["aliases"]
    assert (await desk.get("/domains/piedpiper.com/aliases")).json()["total"] == 0


async def test_bulk_add_refuses_the_whole_request_when_one_exists(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"b": "old@gmail.com"})
    entries = [{"alias": name, "forward": "new@gmail.com"} for name in "abc"]
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": entries})
    assert answer.status_code == 400
    body = answer.json()
    assert "already exist" in body["errors"]["aliases"][0]
    assert [alias["alias"] for alias in body["failed"]] == ["b"]
    assert (body["added"], body["updated"]) == ([], [])
    listed = (await desk.get("/domains/piedpiper.com/aliases")).json()["aliases"]
    assert [(alias["alias"], alias["forward"]) for alias in listed] == [("b", "old@gmail.com")]


async def test_a_destination_that_asks_for_a_group_the_pattern_lacks_is_refused(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"(.*)-x": "$1@gmail.com"})
    fields = {"alias": "(a)", "forward": "$2@gmail.com"}
    answer = await desk.post("/domains/piedpiper.com/aliases", fields)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["forward"])
    answer = await desk.put("/domains/piedpiper.com/aliases/(.*)-x", {"alias": "plain"})
    assert answer.status_code == 400
    listed = (await desk.get("/domains/piedpiper.com/aliases")).json()["aliases"]
    assert [alias["alias"] for alias in listed] == ["(.*)-x"]


async def test_an_alias_that_closes_a_circle_is_refused_and_not_stored(desk: Desk) -> None:
    await desk.domain("one.com", {"a": "b@two.com"})
    await desk.domain("two.com", {"c": "a@one.com"})
    for fields in (
        {"alias": "b", "forward": "a@one.com"},
        {"alias": "b", "forward": "x@gmail.com,c@two.com"},
        {"alias": "s", "forward": "S@two.com"},
        {"alias": "*", "forward": "anything@two.com"},
    ):
        answer = await desk.post("/domains/two.com/aliases", fields)
        assert answer.status_code == 400, fields
        assert "circle" in answer.json()["errors"]["forward"][0]
    answer = await desk.put("/domains/one.com/aliases/a", {"forward": "c@two.com"})
    assert answer.status_code == 400
    entries = [{"alias": "z", "forward": "z@gmail.com"}, {"alias": "b", "forward": "a@one.com"}]
    answer = await desk.post("/domains/two.com/aliases/bulk", {"aliases": entries})
    assert list(answer.json()["errors"]) == ["aliases.1.forward"]
    listed = (await desk.get("/domains/two.com/aliases")).json()["aliases"]
    assert [alias["alias"] for alias in listed] == ["c"]


async def test_a_star_that_would_lead_to_itself_comes_disabled(desk: Desk) -> None:
    answer = await desk.post("/domains", {"domain": desk.email.partition("@")[2]})
    (alias,) = answer.json()["domain"]["aliases"]
    assert alias.items() >= {"alias": "*", "is_active": False, "when_disabled": 550}.items()


async def test_destinations_of_an_alias_are_limited(store_url: str) -> None:
    async with Desk(store_url, plans={"default": {"destinations": 2}}) as desk:
        await desk.domain("piedpiper.com", {})
        for count, status in ((2, 200), (3, 400)):
            forward = ",".join(f"{n}@gmail.com" for n in range(count))
            answer = await desk.post(
                "/domains/piedpiper.com/aliases", {"alias": f"a{count}", "forward": forward}
            )
            assert answer.status_code == status
        assert answer.json()["errors"]["forward"][0].startswith("Your account is limited to 2 destinations")


async def test_an_expansion_bomb_is_refused_quickly(desk: Desk) -> None:
    await desk.domain("bomb.com", {})
    answer = await desk.post(
        "/domains/bomb.com/aliases",
        {"alias": "x", "forward": ",".join(f"a{n}@gmail.com" for n in range(5000))},
    )
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["forward"])
    entries = [
        {"alias": f"l{depth}n{n}", "forward": ",".join(f"l{depth + 1}n{m}@bomb.com" for m in range(10))}
        for depth in range(10)
        for n in range(10)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF)
    answer = await desk.post("/domains/bomb.com/aliases/bulk", {"aliases": entries})
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert answer.status_code in (200, 400)
    assert after.ru_utime - before.ru_utime < 3


# --- secrets, and trouble of ours


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
    stored = b"".join(path.read_bytes() for path in _files(tmp_path))
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
