"""The regular expressions of a domain: which one answers, and what that costs."""

import time

import pytest
import re2

from forwarder.mail import expressions
from forwarder.mail.expressions import RegexTable
from forwarder.mail.pattern import too_large_together


def test_an_expression_that_does_not_compile_matches_nothing() -> None:
    for others in (0, 10):
        patterns = ["(?=x)x", *(f"(f{number})" for number in range(others)), "(x)"]
        found = RegexTable(patterns).first("x")
        assert found is not None
        assert found[0] == len(patterns) - 1


HEAVY = ["(a+)+", "(a|a)*b", "(.*a){20}", "(.{0,100})+x{0,100}", "\\pL+[^x]{1,200}\\w{1,300}y"]


@pytest.mark.parametrize("pattern", HEAVY)
def test_one_heavy_expression_is_fast(pattern: str) -> None:
    table = RegexTable([pattern])
    table.first("a")
    best = min(_seconds(table, local) for local in ("a" * 64, "ab" * 32, "é" * 32) for _ in range(3))
    assert best < 0.005


def test_500_expressions_are_fast() -> None:
    table = RegexTable([f"{HEAVY[number % 3]}-{number}" for number in range(499)] + ["(last|final)-a+"])
    table.first("a")
    for local in ("a" * 64, "abcdefgh" * 8, "last-aaa", "e" * 31 + "é"):
        assert min(_seconds(table, local) for _ in range(3)) < 0.05
    found = table.first("last-aaa")
    assert found is not None
    assert (found[0], found[1].groups) == (499, ("last",))


def test_what_is_prepared_compiles_no_more_than_one_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    compile_one = re2.compile
    monkeypatch.setattr(re2, "compile", lambda *a, **k: compiled.append(a[0]) or compile_one(*a, **k))
    for count in (1, 3, 4, 30):
        table = RegexTable([f"([a-z]{{1,20}}{number})" for number in range(count)])
        for local, other in (("abc0", "é0"), ("é0", "abc0")):
            assert not table.ready(local)
            table.prepare(local)
            assert table.ready(local)
            assert table.ready("x" + local)
            if local == "abc0":
                assert not table.ready(other)
            compiled.clear()
            assert table.first("nobody" if local.isascii() else "é") is None
            assert (table.first(local) is not None) == local.isascii()
            assert len(compiled) <= 1
    assert RegexTable([]).ready("anybody")


def test_where_expressions_do_not_fit_together_all_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_SET_MEMORY", 1 << 12)
    table = RegexTable([f"([a-z]{{1,20}}{number})" for number in range(30)])
    table.prepare("a")
    monkeypatch.setattr(re2, "compile", None)
    found = table.first("abc29")
    assert found is not None
    assert found[0] == 29


@pytest.mark.parametrize("first", ["(plain)", "(schön|ſ)"])
def test_all_that_a_domain_may_have_are_asked_together(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = [first, *(f"(?:[ab]*a[ab]{{30}}c{number})" for number in range(6000))]
    assert not too_large_together(patterns)
    table = RegexTable(patterns)
    table.prepare("a")
    asked: list[int] = []
    searcher = RegexTable._searcher
    monkeypatch.setattr(
        RegexTable, "_searcher", lambda table, at, octets: asked.append(at) or searcher(table, at, octets)
    )
    assert table.first("ab" * 32) is None
    assert table.first("aab" * 15) is None
    assert asked == []
    found = table.first("b" * 20 + "a" + "ab" * 15 + "c4711")
    assert found is not None
    assert found[0] == 4712
    assert asked == [4712]
    assert (table.first("S") is not None) == (
        first != "(plain)"
    )  # a long s is an s to RE2, whatever its case


def test_expressions_that_are_asked_one_by_one_keep_little_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_SET_MEMORY", 1 << 12)
    table = RegexTable([f"(?:[ab]*a[ab]{{30}}d{number})" for number in range(1500)])
    table.prepare("a")
    before = _resident()
    for number in range(32):  # each takes an expression through some fifty states that no other did
        assert table.first(f"{number:05b}".replace("0", "a").replace("1", "b") * 12) is None
    assert _resident() - before < 64 << 20  # with memory for all states over 100 MiB


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _seconds(table: RegexTable, local: str) -> float:
    began = time.process_time()
    table.first(local)
    return time.process_time() - began


def test_a_set_that_runs_out_of_memory_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in (1 << 12, 1 << 14, 1 << 17):
        monkeypatch.setattr("forwarder.mail.expressions._SET_MEMORY", memory)
        table = RegexTable([f"(.*a.{{{number}}}b{number})" for number in range(30)] + ["(zz)"])
        text = "abbabaabbbabaababbabab" * 2 + "ab29"
        found = table.first("a" + "c" * 29 + "b29")
        assert found is not None
        assert found[0] == 29
        assert table.first(text + "x") is None
        found = table.first("zz")
        assert found is not None
        assert found[0] == 30
