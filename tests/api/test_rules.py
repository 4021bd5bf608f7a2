"""Rules: the aliases of a domain under newer paths; what a rule says is what mail meets."""

from typing import Any

import pytest

from forwarder.mail import pattern
from forwarder.mail.address import Path
from forwarder.mail.aliases import Match
from forwarder.store.directory import Directory
from tests.api.desk import NOW_MS, Desk, together

RULES = "/domains/piedpiper.com/rules"


def alias_rule(alias: str, forward: str = "inbox@gmail.com", **more: Any) -> dict[str, Any]:
    return {"type": "alias", "config": {"alias": alias, "forward": forward}, **more}


def regex_rule(expression: str, forward: str = "inbox@gmail.com", **more: Any) -> dict[str, Any]:
    config = {"regex": expression, "scopes": ["recipient"], "forward": forward}
    return {"type": "regex", "config": config, **more}


async def made(desk: Desk, fields: dict[str, Any]) -> dict[str, Any]:
    answer = await desk.post(RULES, fields)
    assert answer.status_code == 200, answer.text
    rule: dict[str, Any] = answer.json()["rule"]
    return rule


async def destinations(desk: Desk, local: str) -> list[str] | None:
    """Where mail for a local part goes now; None: nobody answers."""
    rules = await Directory(desk.database).confirmed(Path(local=local, domain="piedpiper.com"))
    assert rules is not None
    found = rules.resolve(local)
    return [str(one) for one in found.destinations] if isinstance(found, Match) else None


async def refused(desk: Desk, fields: dict[str, Any]) -> dict[str, list[str]]:
    answer = await desk.post(RULES, fields)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["success"], body["code"]) == (False, 400)
    errors: dict[str, list[str]] = body["errors"]
    return errors


# --- the rule object


async def test_a_rule_has_id_type_config_rank_active_and_created(desk: Desk) -> None:
    await desk.domain(aliases={})
    answer = await desk.post(RULES, alias_rule("hello", active=True))
    rule = {
        "id": "2",  # 1 was the * of the new domain
        "type": "alias",
        "config": {"alias": "hello", "forward": "inbox@gmail.com"},
        "rank": 0.0,
        "active": True,
        "created": NOW_MS,
    }
    assert answer.json() == {
        **rule,
        "rule": rule,
        "success": True,
    }  # the official command line reads the outer ones
    assert (await desk.get(f"{RULES}/2")).json() == {**rule, "rule": rule, "success": True}
    assert (await desk.get(RULES)).json() == {
        "rules": [rule],
        "limit": 50,
        "page": 1,
        "total": 1,
        "success": True,
    }


async def test_a_regex_rule_comes_back_as_it_was_written(desk: Desk) -> None:
    await desk.domain(aliases={})
    for expression in ("sales", "sales.*", "(contact|support)", "(?:a)|(?:b)", "(a)|(b)"):
        rule = await made(desk, regex_rule(expression))
        assert rule["type"] == "regex"
        assert rule["config"] == {"regex": expression, "scopes": ["recipient"], "forward": "inbox@gmail.com"}


async def test_aliases_are_rules_and_rules_are_aliases(desk: Desk) -> None:
    await desk.domain(aliases={"richard": "r@gmail.com", "(a|b)": "ab@gmail.com"})
    shown = (await desk.get(RULES)).json()["rules"]
    assert [(one["type"], one["config"]["alias"]) for one in shown] == [
        ("alias", "richard"),
        ("alias", "(a|b)"),
    ]
    rule = await made(desk, alias_rule("jared"))
    alias = (await desk.get("/domains/piedpiper.com/aliases/jared")).json()["alias"]
    assert str(alias["id"]) == rule["id"]
    assert (await desk.delete(f"{RULES}/{rule['id']}")).json() == {"success": True}
    assert (await desk.get("/domains/piedpiper.com/aliases/jared")).status_code == 404
    assert (await desk.delete(f"{RULES}/{rule['id']}")).status_code == 404


async def test_rules_are_listed_by_page_and_searched(desk: Desk) -> None:
    await desk.domain(aliases={f"name{number}": f"box{number}@gmail.com" for number in range(7)})
    page = (await desk.get(f"{RULES}?limit=5&page=2")).json()
    assert [one["config"]["alias"] for one in page["rules"]] == ["name5", "name6"]
    assert (page["limit"], page["page"], page["total"]) == (5, 2, 7)
    for text in ("AME3", "ox3@"):
        found = (await desk.get(RULES, params={"search": text})).json()
        assert [one["config"]["alias"] for one in found["rules"]] == ["name3"]
    assert (await desk.get(RULES, params={"search": "%"})).json()["total"] == 0


async def test_a_page_of_rules_compiles_no_expression_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.domain(aliases={})
    await made(desk, regex_rule("listed.*"))
    before = (await desk.get(RULES)).json()
    pattern.compile_regex.cache_clear()  # as other expressions, more than it holds, do

    def compiled(*given: Any, **more: Any) -> Any:
        raise AssertionError(f"compiled again: {given}")

    monkeypatch.setattr(pattern.re2, "compile", compiled)
    assert (await desk.get(RULES)).json() == before


async def test_all_rules_go_at_once(desk: Desk) -> None:
    await desk.domain(aliases={"a": "a@gmail.com", "b": "b@gmail.com"})
    assert (await desk.delete("/domains/piedpiper.com/rules-all")).json() == {"success": True}
    assert (await desk.get(RULES)).json()["total"] == 0
    assert (await desk.get("/domains/piedpiper.com/aliases")).json()["total"] == 0
    assert await destinations(desk, "a") is None
    assert (await desk.delete("/domains/piedpiper.com/rules-all")).json() == {"success": True}


# --- what a rule does to mail


async def test_a_regex_rule_matches_the_whole_of_what_stands_before_the_at(desk: Desk) -> None:
    await desk.domain(aliases={})
    await made(desk, regex_rule("sales.*", "sales@gmail.com"))
    assert await destinations(desk, "Sales-EU") == ["sales@gmail.com"]
    assert await destinations(desk, "presales") is None
    await made(desk, regex_rule("(x+)-(y)", "$2@gmail.com"))
    assert await destinations(desk, "xx-y") == ["y@gmail.com"]


async def test_rank_is_the_order_in_which_rules_are_asked(desk: Desk) -> None:
    await desk.domain(aliases={})
    first = await made(desk, regex_rule("a.*", "first@gmail.com"))
    second = await made(desk, regex_rule(".*b", "second@gmail.com"))
    for fields in (
        alias_rule("*"),
        alias_rule("a*"),
        alias_rule("a-*"),
        alias_rule("acb", "exact@gmail.com"),
    ):
        await made(desk, fields)
    shown = (await desk.get(RULES)).json()["rules"]
    ordered = [next(iter(one["config"].values())) for one in sorted(shown, key=lambda one: one["rank"])]
    assert ordered == ["acb", "a.*", ".*b", "a-*", "a*", "*"]
    assert await destinations(desk, "acb") == ["exact@gmail.com"]
    assert await destinations(desk, "aab") == ["first@gmail.com"]
    whole = await made(desk, regex_rule("other", rank=5))
    assert (whole["rank"], type(whole["rank"])) == (5.0, float)  # as in every later answer

    moved = await desk.put(f"{RULES}/{second['id']}", {"rank": first["rank"] / 2})
    assert moved.json()["rank"] == first["rank"] / 2
    assert await destinations(desk, "aab") == ["second@gmail.com"]
    await made(desk, regex_rule("aa.", "third@gmail.com", rank=0.25))
    assert await destinations(desk, "aab") == ["third@gmail.com"]


async def test_a_rank_that_would_say_what_is_not_so_is_refused(desk: Desk) -> None:
    await desk.domain(aliases={})
    for fields in (alias_rule("a", rank=3), alias_rule("a-*", rank=3), alias_rule("*", rank=0.5)):
        assert "asked before" in (await refused(desk, fields))["rank"][0]
    for rank in (0, 1e12, 1e300):
        assert (
            "above 0 and below 1000000000000" in (await refused(desk, regex_rule("a", rank=rank)))["rank"][0]
        )
    for wrong in (-1, True, "high", [1]):
        assert set(await refused(desk, regex_rule("a", rank=wrong))) == {"rank"}
    rule = await made(desk, alias_rule("a", rank=0))  # where it stands anyhow
    assert (await desk.put(f"{RULES}/{rule['id']}", {"rank": 2})).status_code == 400


async def test_a_rule_that_is_not_active_is_as_if_it_were_not_there(desk: Desk) -> None:
    await desk.domain(aliases={"*": "rest@gmail.com"})
    rule = await made(desk, alias_rule("offers", "trash@gmail.com"))
    assert await destinations(desk, "offers") == ["trash@gmail.com"]
    assert (await desk.put(f"{RULES}/{rule['id']}", {"active": False})).json()["active"] is False
    assert await destinations(desk, "offers") == ["rest@gmail.com"]
    alias = (await desk.get("/domains/piedpiper.com/aliases/offers")).json()["alias"]
    assert (alias["is_active"], alias["when_disabled"]) == (False, None)
    assert (await desk.put(f"{RULES}/{rule['id']}", {"active": True})).json()["active"] is True
    assert await destinations(desk, "offers") == ["trash@gmail.com"]
    await made(desk, alias_rule("never", active=False))
    assert await destinations(desk, "never") == ["rest@gmail.com"]


async def test_an_alias_disabled_as_an_alias_still_answers_for_itself(desk: Desk) -> None:
    await desk.domain(aliases={"*": "rest@gmail.com"})
    rule = await made(desk, alias_rule("offers", active=False))
    changed = await desk.put("/domains/piedpiper.com/aliases/offers", {"when_disabled": 421})
    assert changed.json()["alias"]["when_disabled"] == 421
    assert await destinations(desk, "offers") == []
    same = await desk.put(f"{RULES}/{rule['id']}", {"active": False})  # as it was read: nothing changes
    assert same.status_code == 200
    assert await destinations(desk, "offers") == []
    for is_active in (True, False):
        await desk.put("/domains/piedpiper.com/aliases/offers", {"is_active": is_active})
    assert await destinations(desk, "offers") == []


# --- changes


async def test_what_is_not_given_stays(desk: Desk) -> None:
    await desk.domain(aliases={})
    rule = await made(desk, regex_rule("sales.*", "a@gmail.com", rank=7.5))
    one = f"{RULES}/{rule['id']}"
    changed = (await desk.put(one, {"config": {"forward": "b@gmail.com"}})).json()["rule"]
    assert changed == rule | {"config": rule["config"] | {"forward": "b@gmail.com"}}
    again = await desk.put(one, changed)  # the whole object back
    assert again.json()["rule"] == changed
    changed = (await desk.put(one, {"config": {"regex": "buy.*"}})).json()["rule"]
    assert changed["config"]["regex"] == "buy.*"
    turned = await desk.put(one, {"type": "alias", "config": {"alias": "buy"}})
    assert turned.json()["config"] == {"alias": "buy", "forward": "b@gmail.com"}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, "config"),
        ({"config": {"alias": "x"}}, "config.alias"),
        ({"type": "alias"}, "config.alias"),
        ({"type": "alias", "config": {"regex": "x"}}, "config.regex"),
        ({"type": "cel"}, "type"),
        ({"config": {"forward": None}}, "config.forward"),
        ({"config": {"forward": "nobody"}}, "config.forward"),
        ({"config": {"regex": "(taken)"}}, "config.regex"),
        ({"config": {"regex": "("}}, "config.regex"),
        ({"config": {"scopes": ["recipient", "subject"]}}, "config.scopes"),
        ({"config": {"forward": "$1@gmail.com"}}, "config.forward"),
        ({"active": "perhaps"}, "active"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_and_changes_nothing(
    desk: Desk, fields: dict[str, Any], wrong: str
) -> None:
    await desk.domain(aliases={})
    await made(desk, regex_rule("(taken)"))
    rule = await made(desk, regex_rule("sales.*"))
    answer = await desk.put(f"{RULES}/{rule['id']}", fields)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert wrong in answer.json()["errors"]
    assert (await desk.get(f"{RULES}/{rule['id']}")).json()["rule"] == rule


# --- what is refused


async def test_rules_that_could_not_act_are_refused_with_the_reason(desk: Desk) -> None:
    await desk.domain(aliases={})
    cel = {"type": "cel", "config": {"expression": "subject.contains('finance')", "forward": "a@gmail.com"}}
    assert "not available here" in (await refused(desk, cel))["type"][0]
    for scopes in (["subject"], ["recipient", "body"], ["sender"], ["nose"], [3]):
        fields = regex_rule("x") | {"config": regex_rule("x")["config"] | {"scopes": scopes}}
        assert "recipient only" in (await refused(desk, fields))["config.scopes"][0]
    one = regex_rule("x") | {"config": regex_rule("x")["config"] | {"scopes": "recipient"}}
    assert set(await refused(desk, one)) == {"config.scopes"}
    assert "before the @" in (await refused(desk, regex_rule(r".*@piedpiper\.com")))["config.regex"][0]
    # The parentheses that go around an expression are not its own to close.
    assert set(await refused(desk, regex_rule("a)|(b"))) == {"config.regex"}
    assert set(await refused(desk, regex_rule("a", rank=-1))) == {"rank"}
    nothing = {"type": "alias", "config": {"alias": "a", "forward": None}}
    assert "cannot discard" in (await refused(desk, nothing))["config.forward"][0]
    assert (await desk.get(RULES)).json()["total"] == 0


async def test_all_that_is_wrong_is_said_at_once(desk: Desk) -> None:
    await desk.domain(aliases={})
    fields = {"type": "regex", "config": {"regex": "(?=x)", "scopes": []}, "active": "perhaps", "rank": "x"}
    errors = await refused(desk, fields)
    assert set(errors) == {"config.regex", "config.scopes", "config.forward", "active", "rank"}
    assert await refused(desk, {}) == {
        "type": ["This field is required."],
        "config": ["This field is required."],
    }
    assert set(await refused(desk, {"type": "alias", "config": "x"})) == {"config"}
    assert set(await refused(desk, {"type": "alias", "config": {}})) == {"config.alias", "config.forward"}
    assert set(await refused(desk, {"type": ["alias"], "config": []})) == {"type"}
    long = await refused(desk, regex_rule("x" * 147))
    assert long == {"config.regex": ["This is longer than 146 characters."]}


async def test_duplicates_limits_and_circles_are_those_of_aliases(store_url: str) -> None:
    async with Desk(store_url, plans={"default": {"aliases": 3}}) as desk:
        await desk.domain(aliases={"a": "b@piedpiper.com"})
        assert "already exists" in (await refused(desk, alias_rule("A")))["config.alias"][0]
        assert "circle" in (await refused(desk, alias_rule("b", "a@piedpiper.com")))["config.forward"][0]
        await made(desk, regex_rule("x.*"))
        assert "already exists" in (await refused(desk, regex_rule("x.*")))["config.regex"][0]
        await made(desk, alias_rule("c"))
        assert "limited to 3 aliases" in (await refused(desk, alias_rule("d")))["config.alias"][0]


@pytest.mark.usefixtures("unhurried")
async def test_fifty_at_once_make_one_rule_and_lose_nothing_else(either_store_url: str) -> None:
    async with Desk(either_store_url) as desk:
        await desk.domain(aliases={})
        answers = await together(*[desk.post(RULES, regex_rule("sales.*", rank=2.5)) for _ in range(50)])
        assert sorted(one.status_code for one in answers) == [200] + [400] * 49
        (rule,) = (await desk.get(RULES)).json()["rules"]
        assert rule["rank"] == 2.5
        other = await made(desk, regex_rule("other.*"))
        changes = [desk.put(f"{RULES}/{other['id']}", {"config": {"regex": "sales.*"}}) for _ in range(10)]
        changes += [desk.put(f"{RULES}/{rule['id']}", {"active": number % 2 == 0}) for number in range(10)]
        statuses = [one.status_code for one in await together(*changes)]
        assert statuses == [400] * 10 + [200] * 10
        assert (await desk.get(f"{RULES}/{other['id']}")).json()["rule"] == other


@pytest.mark.parametrize("name", ["0", "-1", "9" * 30, "richard", "%00", "1.0", "%D9%A1", "*"])
async def test_a_rule_that_is_not_there_is_not_found(desk: Desk, name: str) -> None:
    await desk.domain(aliases={"richard": "r@gmail.com"})
    for answer in (
        await desk.get(f"{RULES}/{name}"),
        await desk.put(f"{RULES}/{name}", {"active": False}),
        await desk.delete(f"{RULES}/{name}"),
    ):
        assert answer.status_code == 404
        assert answer.json()["code"] == 404
        assert "not found" in answer.json()["error"]
