"""Where answers go: to no disk, nowhere, to a reader who left, to a narrow terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commandline import Cli

ROOT = Path(__file__).parent.parent
FULL = "> /dev/full"
CLOSED = ">&-"


def led(cli: Cli, to: str, *arguments: str, **environ: str) -> tuple[int, str]:
    """Exit status and standard error of a command whose standard output a shell leads there."""
    command = [sys.executable, "-m", "forwarder", *arguments]
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {to}', "sh", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"FORWARDER_CONFIG": str(cli.config)} | environ,
    )
    return done.returncode, done.stderr


RAN = "the command has run, but its answer cannot be written (No space left on device)"
UNWRITTEN = "standard output cannot be written (No space left on device)"
NOWHERE = "standard output is closed, so nothing was done; lead it somewhere, or to /dev/null"


@pytest.mark.parametrize(
    ("line", "to", "said"),
    [
        ("account list", FULL, RAN),
        ("account list --json", FULL, RAN),
        ("logs", FULL, UNWRITTEN),
        ("logs --json", FULL, RAN),
        ("--version", FULL, UNWRITTEN),
        ("account list", CLOSED, NOWHERE),
        ("account list --json", CLOSED, NOWHERE),
        ("logs --json", CLOSED, NOWHERE),
    ],
)
def test_an_answer_that_cannot_be_written_is_one_sentence(hosted: Cli, line: str, to: str, said: str) -> None:
    status, errors = led(hosted, to, *line.split())
    assert status == 1
    assert errors == (json.dumps({"error": said}) if "--json" in line else f"forwarder: {said}") + "\n"


def test_an_answer_that_nothing_buffers_is_told_of_too(hosted: Cli) -> None:
    for line, said in (("account list", RAN), ("--help", UNWRITTEN)):
        assert led(hosted, FULL, *line.split(), PYTHONUNBUFFERED="1") == (1, f"forwarder: {said}\n")


def test_a_secret_that_nobody_has_seen_is_replaced(hosted: Cli) -> None:
    status, errors = led(hosted, FULL, "account", "create", "second@example.org")
    assert status == 1
    assert errors.endswith("make another: forwarder account key add second@example.org\n")
    status, errors = led(hosted, FULL, "account", "key", "add", "second@example.org", "--json")
    (_, made) = hosted.json("account", "key", "list", "second@example.org")
    assert f"forwarder account key revoke second@example.org {made['id']}" in json.loads(errors)["error"]
    for command in ("add", "password"):
        status, errors = led(hosted, FULL, "credential", command, "example.com", "ann", "--json")
        assert status == 1
        assert "forwarder credential password example.com ann" in errors
    status, errors = led(hosted, FULL, "credential", "password", "example.com", "ann", "--password", "abc123")
    assert (status, "make another" in errors) == (1, False)  # it is known to who gave it


def test_nothing_is_made_where_nothing_can_be_shown(hosted: Cli) -> None:
    assert led(hosted, CLOSED, "account", "create", "second@example.org")[0] == 1
    assert [account["email"] for account in hosted.json("account", "list")] == ["you@example.org"]


def test_a_reader_who_left_is_no_trouble_but_for_a_secret(hosted: Cli) -> None:
    def unread(*arguments: str) -> tuple[int, str]:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "forwarder", *arguments, "--config", str(hosted.config)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        os.close(writer)
        return done.returncode, done.stderr

    for more in ([], ["--json"]):
        assert unread("account", "list", *more) == (0, "")
    status, errors = unread("account", "create", "second@example.org")
    assert (status, "(Broken pipe); nobody has seen the key" in errors) == (1, True)
