"""Fields that are wrong, odd or hostile: refused with a sentence under their name, and nothing is stored."""

import json
import resource
from pathlib import Path

import pytest

from forwarder.store import rule_sets
from tests.api.desk import Desk, files

JSON = {"Content-Type": "application/json"}

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
    "value", ["a%0d%0ab", "a%0Ab", "a%00b", "a%7fb", "a\u200bb", "a\u00adb", "a\u202eb", "\ufeffab"]
)
async def test_what_is_not_what_it_looks_like_is_refused(desk: Desk, value: str) -> None:
    await desk.domain("piedpiper.com", {})
    for method, path, fields in (
        ("POST", "/aliases", {"alias": value, "forward": "a@gmail.com"}),
        ("POST", "/aliases", {"alias": f"({value}|c)", "forward": "a@gmail.com"}),
        ("POST", "/aliases", {"alias": "a", "forward": f"a@gmail.com, {value}@gmail.com"}),
        ("POST", "/aliases", {"alias": "a", "forward": f"https://example.com/{value}"}),
        ("POST", "/aliases/bulk", {"aliases": [{"alias": value, "forward": "a@gmail.com"}]}),
        ("PUT", "", {"webhook": f"https://example.com/?a={value}"}),
        ("PUT", "", {"notification_email": f"{value}@gmail.com"}),
        ("POST", "/credentials", {"username": value, "password": "abc123"}),
        ("POST", "/account/keys", {"name": value}),
    ):
        where = path if path.startswith("/account") else f"/domains/piedpiper.com{path}"
        answer = await desk.http.request(method, where, json=fields)
        assert answer.status_code == 400, (where, fields, answer.text)
        assert answer.json()["errors"]
    assert (await desk.get("/domains/piedpiper.com/aliases")).json()["total"] == 0


async def test_other_percent_signs_and_a_password_are_taken(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {})
    for alias, forward in (
        ("100%", "50%off@gmail.com"),
        ("a%0g", "https://example.com/%20a%2Cb?c=%E2%9C%93"),
        ("persian", "\u0646\u200c\u0646@gmail.com"),  # which writes words with it
    ):
        answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": alias, "forward": forward})
        assert answer.status_code == 200, answer.text
    secret = {"username": "a", "password": "abc%0d%0a"}
    assert (await desk.post("/domains/piedpiper.com/credentials", secret)).status_code == 200


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
    before = files(tmp_path)
    answer = await desk.post("/domains", {"domain": value})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["domain"])
    assert files(tmp_path) == before


async def test_the_servers_own_names_are_nobodys_to_add(store_url: str) -> None:
    sections = {"srs": {"domain": "bounces.forwarder.test"}, "dkim": {"domain": "sign.forwarder.test"}}
    async with Desk(store_url, **sections) as desk:
        for own in ("mx.forwarder.test", "bounces.forwarder.test", "sign.forwarder.test"):
            for name in (own, f"shop.{own}"):
                answer = await desk.post("/domains", {"domain": name})
                assert (answer.status_code, list(answer.json()["errors"])) == (400, ["domain"])
        for name in ("forwarder.test", "xmx.forwarder.test"):
            assert (await desk.post("/domains", {"domain": name})).status_code == 200


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
        assert all((text[0].isupper() or text[0] == chr(34)) and text.endswith(".") for text in texts)
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


async def test_bulk_add_lists_what_exists_as_failed_beside_what_it_added(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"b": "old@gmail.com"})
    entries = [{"alias": name, "forward": "new@gmail.com"} for name in "abc"]
    for fields in (
        {"aliases": entries},
        {"aliases": [*entries[:2], {"alias": "d", "forward": "new@gmail.com"}]},
    ):
        answer = await desk.post("/domains/piedpiper.com/aliases/bulk", fields)
        assert (answer.status_code, answer.json()["success"]) == (200, True)
    body = answer.json()
    assert [alias["alias"] for alias in body["added"]] == ["d"]
    assert [(alias["alias"], alias["forward"]) for alias in body["failed"]] == [
        ("a", "new@gmail.com"),
        ("b", "old@gmail.com"),
    ]
    assert body["updated"] == []
    listed = (await desk.get("/domains/piedpiper.com/aliases")).json()["aliases"]
    assert [(alias["alias"], alias["forward"]) for alias in listed] == [
        ("b", "old@gmail.com"),
        ("a", "new@gmail.com"),
        ("c", "new@gmail.com"),
        ("d", "new@gmail.com"),
    ]


@pytest.mark.parametrize("behavior", [{}, {"behavior": "add"}, {"behavior": ""}])
async def test_bulk_add_fails_when_every_alias_exists(desk: Desk, behavior: dict[str, str]) -> None:
    await desk.domain("piedpiper.com", {"a": "old@gmail.com", "b": "old@gmail.com"})
    entries = [{"alias": name, "forward": "new@gmail.com"} for name in "ab"]
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": entries, **behavior})
    assert answer.status_code == 400
    body = answer.json()
    assert body["success"] is False
    assert "already exist" in body["errors"]["aliases"][0]
    assert [alias["alias"] for alias in body["failed"]] == ["a", "b"]
    assert (body["added"], body["updated"]) == ([], [])
    listed = (await desk.get("/domains/piedpiper.com/aliases")).json()["aliases"]
    assert {alias["forward"] for alias in listed} == {"old@gmail.com"}


async def test_a_destination_that_asks_for_a_group_the_pattern_lacks_is_refused(desk: Desk) -> None:
    await desk.domain("piedpiper.com", {"(.*)-x": "$1@gmail.com"})
    fields = {"alias": "(a)", "forward": "$2@gmail.com"}
    answer = await desk.post("/domains/piedpiper.com/aliases", fields)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["forward"])
    answer = await desk.put("/domains/piedpiper.com/aliases/(.*)-x", {"alias": "plain"})
    assert answer.status_code == 400
    listed = (await desk.get("/domains/piedpiper.com/aliases")).json()["aliases"]
    assert [alias["alias"] for alias in listed] == ["(.*)-x"]


@pytest.mark.parametrize("together", [256, 0], ids=["small", "too large to be read whole"])
async def test_an_alias_that_closes_a_circle_is_refused_and_not_stored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(rule_sets, "TOGETHER", together)
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


@pytest.mark.parametrize("written", ["piedpiper.com.", "PiedPiper.com.", "PIEDPIPER.COM"])
async def test_a_domain_is_found_under_every_name_it_could_be_added_by(desk: Desk, written: str) -> None:
    assert (await desk.post("/domains", {"domain": written})).json()["domain"]["domain"] == "piedpiper.com"
    for path in ("", "/aliases", "/rules", "/logs", "/credentials"):
        assert (await desk.get(f"/domains/{written}{path}")).status_code == 200
    assert (await desk.get("/domains/piedpiper.com..")).status_code == 404


@pytest.mark.parametrize(
    ("forward", "begins"),
    [
        ("a;b@y.org", '"a;b@y.org" is not an address: '),
        ("nobody", '"nobody" is not an address: '),
        ("jörg", '"jörg" is not an address: '),
        ("jörg" * 30, f'"{"jörg" * 19}j…" is not an address: '),  # 97 octets of it, without half a letter
        ("https://h.example/ü", '"https://h.example/ü": characters beyond ASCII'),
        ("ftp://y.org", '"ftp://y.org": a URL begins with https://'),
        ("https://localhost/x", '"localhost" is a local name'),
        ("a$1@y.org", '"a$1@y.org" asks for $1, which "richard" does not capture'),
        ("a@$1", '"a@$1" lets the sender choose the domain'),
    ],
)
async def test_a_sentence_repeats_what_was_sent_letter_by_letter(
    desk: Desk, forward: str, begins: str
) -> None:
    await desk.domain()
    answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": "richard", "forward": forward})
    assert answer.json()["errors"]["forward"][0].startswith(begins)


@pytest.mark.parametrize(
    ("forward", "ends"),
    [
        ("a@y.org;b@y.org", "is not well formed; destinations are separated by commas."),
        ("a@y.org b@y.org", "is not well formed; destinations are separated by commas."),
        ("https://h.example/x?ids=1,2", "and a domain; a comma in a URL is written %2C."),
        ("https://h.example/x,", "between commas is empty; a comma in a URL is written %2C."),
        ("a@y.org,nobody", '"nobody" is not an address: an address needs a local part, an @ and a domain.'),
        ("https://h.example:0/x", "a port is a number from 1 to 65535."),
        ("https://h.example:/x", "a port is a number from 1 to 65535."),
    ],
)
async def test_a_sentence_says_how_destinations_are_written(desk: Desk, forward: str, ends: str) -> None:
    await desk.domain()
    answer = await desk.post("/domains/piedpiper.com/aliases", {"alias": "richard", "forward": forward})
    (sentence,) = answer.json()["errors"]["forward"]
    assert sentence.endswith(ends), sentence


@pytest.mark.parametrize("email", ["ops@y.org,b@y.org", "Ops <ops@y.org>", "ops"])
async def test_notices_go_to_one_address(desk: Desk, email: str) -> None:
    answer = await desk.post("/domains", {"domain": "piedpiper.com", "notification_email": email})
    (sentence,) = answer.json()["errors"]["notification_email"]
    assert sentence.endswith("; one address alone is wanted, such as richard@example.com."), sentence


async def test_a_webhook_stays_as_it_was_written(desk: Desk) -> None:
    await desk.domain()
    url = "https://h.example/a,b?x=1,2"
    answer = await desk.put("/domains/piedpiper.com", {"webhook": url})
    assert answer.json()["domain"]["webhook"] == url


@pytest.mark.parametrize("wrong", ["9" * 5000, "\u0662\u0665\u0660", "0250", "2e2"])
async def test_when_disabled_is_one_of_three_numbers(desk: Desk, wrong: str) -> None:
    await desk.domain()
    fields = {"alias": "a", "forward": "a@gmail.com", "when_disabled": wrong}
    answer = await desk.post("/domains/piedpiper.com/aliases", fields)
    assert answer.status_code == 400
    assert "int" not in str(answer.json()["errors"]["when_disabled"])
    fields["when_disabled"] = "250"
    assert (await desk.post("/domains/piedpiper.com/aliases", fields)).status_code == 200


async def test_a_domain_or_webhook_of_another_form_is_told_which_form_is_wanted(desk: Desk) -> None:
    for name in ("http://piedpiper.com", "a@piedpiper.com", "pied_piper.com", "x/y", ""):
        answer = await desk.post("/domains", {"domain": name})
        assert "such as example.com" in answer.json()["errors"]["domain"][0]
    for webhook in ("hook", "a@gmail.com", "example.com/hook"):
        answer = await desk.post("/domains", {"domain": "piedpiper.com", "webhook": webhook})
        assert answer.json()["errors"]["webhook"] == ["This must be a URL such as https://example.com/hook."]


async def test_what_is_empty_is_called_empty(desk: Desk) -> None:
    await desk.domain()
    answer = await desk.post("/account/keys", {"name": ""})
    assert answer.json()["errors"] == {"name": ["This cannot be empty."]}
    answer = await desk.post("/domains/piedpiper.com/aliases/bulk", {"aliases": []})
    assert answer.json()["errors"] == {"aliases": ["This cannot be empty."]}


async def test_a_name_is_more_than_blanks(desk: Desk) -> None:
    answer = await desk.post("/account/keys", {"name": "  "})
    assert (answer.status_code, answer.json()["errors"]) == (400, {"name": ["This cannot be blank."]})
