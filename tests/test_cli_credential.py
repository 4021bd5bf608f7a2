"""``forwarder credential``: log-ins are listed, get other passwords and end."""

import re
import sys
from pathlib import Path

import pytest

from forwarder.mail.address import parse_address
from forwarder.store import credentials, passwords
from forwarder.store.credentials import Login
from forwarder.store.engine import Database
from tests.commandline import Cli


def login(folder: Path, address: str) -> Login | None:
    """What submission finds for a log-in name."""
    import asyncio

    async def look() -> Login | None:
        database = await Database.open(f"sqlite:///{folder / 'data' / 'forwarder.db'}")
        path = parse_address(address)
        try:
            return await database.read(lambda conn: credentials.for_login(conn, path.key, path.domain))
        finally:
            await database.close()

    return asyncio.run(look())


def is_password(folder: Path, address: str, password: str) -> bool:
    found = login(folder, address)
    return found is not None and passwords.verify(found.credential.password_hash, password)


def test_credentials_are_listed_without_their_passwords(hosted: Cli) -> None:
    assert hosted.json("credential", "list", "example.com") == []
    assert "No credential yet" in hosted("credential", "list", "example.com")[1]
    hosted.json("credential", "add", "example.com", "Richard", "--password", "hunter2hunter2")
    hosted.json("credential", "add", "example.com", "printer", "--limited")
    listed = hosted.json("credential", "list", "example.com")
    assert [(row["username"], row["is_limited"], row["usage"]) for row in listed] == [
        ("richard", False, 0),
        ("printer", True, 0),
    ]
    assert not any("password" in row for row in listed)
    output = hosted("credential", "list", "example.com")[1]
    assert "printer" in output
    assert "argon2" not in output


def test_a_password_is_changed(hosted: Cli, tmp_path: Path) -> None:
    hosted.json("credential", "add", "example.com", "richard", "--password", "hunter2hunter2")
    given = hosted.json("credential", "password", "example.com", "RICHARD", "--password", "another")
    assert given == {"login": "richard@example.com"}
    assert is_password(tmp_path, "richard@example.com", "another")
    made = hosted.json("credential", "password", "example.com", "richard")
    assert is_password(tmp_path, "richard@example.com", made["password"])
    assert not is_password(tmp_path, "richard@example.com", "another")


def test_a_credential_is_removed(hosted: Cli, tmp_path: Path) -> None:
    hosted.json("credential", "add", "example.com", "richard")
    assert hosted.json("credential", "remove", "example.com", "Richard") == {
        "removed": "richard",
        "domain": "example.com",
    }
    assert login(tmp_path, "richard@example.com") is None
    for command in ("remove", "password"):
        assert "credential list" in hosted.fails("credential", command, "example.com", "richard")


def test_a_password_is_asked_for_unseen_and_never_with_json(
    hosted: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    typed = ["hunter2hunter2", "hunter3hunter3", "hunter2hunter2", "hunter2hunter2", ""]

    def prompt(text: str, *, hide_input: bool = False, **_more: object) -> str:
        asked.append(hide_input)
        return typed.pop(0)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    made = hosted.json("credential", "add", "example.com", "printer")
    assert (asked, len(made["password"])) == ([], 24)
    status, output, errors = hosted("credential", "add", "example.com", "richard")
    assert (status, "hunter2" in output, errors) == (0, False, "The two do not match.\n")
    assert asked == [True] * 4
    assert is_password(tmp_path, "richard@example.com", "hunter2hunter2")
    status, output, errors = hosted(
        "credential", "add", "example.com", "ann"
    )  # nothing is not asked for twice
    assert (status, "with the password" in output, errors, typed) == (0, True, "", [])


def test_credentials_have_the_limits_of_the_plan(hosted: Cli) -> None:
    hosted.write(more="[plans.default]\ncredentials = 1\n")
    hosted.json("credential", "add", "example.com", "richard")
    assert "[plans]" in hosted.fails("credential", "add", "example.com", "printer")


@pytest.mark.parametrize("password", ["12345", "x" * 257, "two\nlines"])
def test_a_password_is_what_the_api_takes(hosted: Cli, password: str) -> None:
    hosted.json("credential", "add", "example.com", "printer")
    for command, username in (("add", "richard"), ("password", "printer")):
        said = hosted.fails("credential", command, "example.com", username, "--password", password)
        assert "this password cannot be" in said
        assert password not in said
    assert len(hosted.json("credential", "list", "example.com")) == 1


def test_a_username_is_what_log_ins_look_up(hosted: Cli, tmp_path: Path) -> None:
    assert hosted.json("credential", "add", "example.com", '"A b"')["login"] == '"a b"@example.com'
    assert login(tmp_path, '"a B"@example.com') is not None
    hosted.json("credential", "add", "example.com", "JOSÉ")
    assert login(tmp_path, "jose\u0301@example.com") is not None
    assert "before the @" in hosted.fails("credential", "add", "example.com", "richard@example.com")
    assert [row["username"] for row in hosted.json("credential", "list", "example.com")] == ["a b", "josé"]
    hosted.json("credential", "remove", "example.com", "a b")
    hosted.json("credential", "remove", "example.com", "JOSE\u0301")


def test_a_password_that_is_made_is_shown_to_a_person_once(hosted: Cli, tmp_path: Path) -> None:
    said = hosted("credential", "add", "example.com", "richard")[1]
    found = re.search(r"Log in as richard@example\.com with the password (\S+)\n", said)
    assert found is not None
    assert is_password(tmp_path, "richard@example.com", found[1])
    assert "port 587 with STARTTLS" in said
    said = hosted("credential", "password", "example.com", "richard")[1]
    again = re.search(r"with the password (\S+)\n", said)
    assert again is not None
    assert again[1] != found[1]
    assert is_password(tmp_path, "richard@example.com", again[1])
    given = hosted("credential", "password", "example.com", "richard", "--password", "hunter2hunter2")[1]
    assert "Log in as richard@example.com\n" in given
    assert "hunter2" not in given
