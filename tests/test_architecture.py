"""The shape of the house: who imports whom, how long files and functions are, what purity means."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for package in ("forwarder", "api")
    for path in (ROOT / package).rglob("*.py")
    if "__pycache__" not in path.parts
)
MIGRATIONS = ROOT / "forwarder" / "store" / "migrations"

# A room may import itself, the rooms named here and, except for the pure ones, the cellar.
CELLAR = {  # imports nothing of ours
    "forwarder.failpoint",  # named points at which a test may let a process die
    "forwarder.clock",
    "forwarder.tally",  # the counters of all rooms, and where their numbers stand
    "forwarder.errands",  # work that those share who ask for it at the same moment
}
RULE: dict[str, set[str]] = {
    "forwarder.mail": set(),
    "forwarder.config": {"forwarder.mail"},
    "forwarder.store": {"forwarder.mail", "forwarder.config"},
    "forwarder.net": {"forwarder.mail", "forwarder.config"},
    "forwarder.inbound": {"forwarder.mail", "forwarder.config", "forwarder.store", "forwarder.net"},
    "forwarder.outbound": {"forwarder.mail", "forwarder.config", "forwarder.store", "forwarder.net"},
    "api": {"forwarder.mail", "forwarder.config", "forwarder.store", "forwarder.net"},
}
MAIL_MAY_USE = {"idna", "cryptography", "re2"}
IMPURE = {
    "asyncio",
    "socket",
    "ssl",
    "select",
    "selectors",
    "time",
    "random",
    "secrets",
    "threading",
    "subprocess",
}
IMPURE |= {"multiprocessing", "sqlite3", "urllib.request", "http", "smtplib", "logging"}
IMPURE_CALLS = {"now", "utcnow", "today", "urandom", "getrandom", "token_bytes", "uuid1", "uuid4"}
FORBIDDEN_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "models",
    "services",
    "base",
    "manager",
    "managers",
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    return next((room for room in RULE if within(module, room)), None)


def where(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 20


def test_a_room_imports_only_from_the_rooms_it_may() -> None:
    faults = []
    for path in FILES:
        room = room_of(module_name(path))
        if room is None:
            continue
        for line, imported in imports(path):
            ours = within(imported, "forwarder") or within(imported, "api")
            allowed = {room, *RULE[room], *(CELLAR if RULE[room] else ())}
            bare = imported in ("forwarder", "forwarder.__version__")
            if ours and not bare and not any(within(imported, other) for other in allowed):
                faults.append(f"{where(path, line)} imports {imported}")
    assert faults == []


def test_nobody_imports_the_roof() -> None:
    roof = {"forwarder.serve", "forwarder.cli", "forwarder.commands", "forwarder.__main__"}
    faults = [
        f"{where(path, line)} imports {imported}"
        for path in FILES
        for line, imported in imports(path)
        if room_of(module_name(path)) is not None and any(within(imported, top) for top in roof)
    ]
    assert faults == []


def test_mail_is_pure() -> None:
    faults = []
    for path in FILES:
        if not within(module_name(path), "forwarder.mail"):
            continue
        for line, imported in imports(path):
            top = imported.split(".")[0]
            foreign = top != "forwarder" and top not in MAIL_MAY_USE and top not in sys.stdlib_module_names
            if foreign or any(within(imported, impure) for impure in IMPURE):
                faults.append(f"{where(path, line)} imports {imported}")
        faults.extend(
            f"{where(path, node.lineno)} calls {node.func.attr}()"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in IMPURE_CALLS
        )
    assert faults == []


def test_sql_is_written_only_in_the_store() -> None:
    """Others hand ``store`` functions to ``Database.read`` and ``write``, and may name the type of what those get."""
    faults = [
        f"{where(path, line)} imports {imported}"
        for path in FILES
        for line, imported in imports(path)
        if imported != "sqlalchemy.Connection"
        and imported.split(".")[0] in {"sqlalchemy", "sqlite3", "asyncpg", "alembic"}
        and not within(module_name(path), "forwarder.store")
    ]
    assert faults == []


def test_user_written_patterns_never_meet_the_standard_re() -> None:
    """RE2 is spoken in three rooms (two for patterns of users, one for our own), and what any of them compiles with
    the standard library is no pattern of a user."""
    faults = [
        f"{where(path, line)} imports {imported}"
        for path in FILES
        for line, imported in imports(path)
        if imported.split(".")[0] == "re2"
        and module_name(path)
        not in {"forwarder.mail.pattern", "forwarder.mail.expressions", "forwarder.mail.scan"}
    ]
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re"):
                continue
            for argument in node.args[:1]:
                names = {part.id for part in ast.walk(argument) if isinstance(part, ast.Name)}
                if names & {"pattern", "alias", "wildcard"}:
                    faults.append(f"{where(path, node.lineno)} gives {names} to re")
    assert faults == []


@pytest.mark.parametrize("path", FILES, ids=where)
def test_a_file_opens_with_its_manual(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
        pytest.fail("even an empty room says what it is for")
    assert ast.get_docstring(tree(path)), "no module docstring"


def test_files_and_functions_keep_their_bounds() -> None:
    faults = []
    for path in FILES:
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > 400:
            faults.append(f"{where(path)} has {length} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and MIGRATIONS not in path.parents:
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 80:
                    faults.append(f"{where(path, node.lineno)} {node.name} has {size} lines")
    assert faults == []


def test_no_room_without_a_noun() -> None:
    named = [
        where(path) for path in FILES if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parent.parts}
    ]
    assert named == []


def test_no_except_that_swallows_everything() -> None:
    faults = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                only_pass = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                if node.type is None or only_pass:
                    faults.append(where(path, node.lineno))
    assert faults == []


def test_a_log_event_is_a_sentence() -> None:
    """The dialect that ``forwarder.diagnostics`` describes; what varies stands in fields."""
    faults = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            told = node.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}
            if told and isinstance(node.func.value, ast.Name) and node.func.value.id in {"log", "_log"}:
                event = ast.unparse(node.args[0]).strip("\"'")
                if " " not in event or event.endswith(".") or event.startswith("f"):
                    faults.append(f"{where(path, node.lineno)} says {event}")
    assert faults == []


def test_nothing_is_left_for_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")
    faults = [
        where(path, number)
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert faults == []
