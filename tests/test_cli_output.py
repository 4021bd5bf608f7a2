"""Where answers go: to no disk, nowhere, to a reader who left, to a narrow terminal."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from forwarder.commands.answer import console, table
from forwarder.commands.logs import _print
from forwarder.mail.event import Status, Transport
from forwarder.store.journal import Event, LogEntry
from tests.commandline import Cli
from tests.harness import House

ROOT = Path(__file__).parent.parent
FULL = "> /dev/full"
CLOSED = ">&-"
WORKER = ("--index", "0", "--of", "2", "--id", "x", "--origin", "x", "--text-from", "0")


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


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_command_needs_no_standard_error(hosted: Cli, more: list[str]) -> None:
    """Some that start programs leave all but the output closed."""
    assert led(hosted, "<&- 2>&-", "account", "create", "second@example.org", *more)[0] == 0
    assert len(hosted.json("account", "list")) == 2
    assert led(hosted, "<&- 2>&-", "domain", "show", "nobody.test", *more)[0] == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_is_opened_in_the_place_of_a_stream_that_is_closed(closed: str) -> None:
    """What a child says on standard error would be written to it, be it the database."""
    child = "import os, sys; sys.exit(os.open(os.devnull, os.O_RDONLY) < 3)"
    script = (
        "import os, sys; from forwarder.commands.output import fill_closed; fill_closed(); "
        f"os.execv(sys.executable, [sys.executable, '-c', {child!r}])"
    )
    done = subprocess.run(["/bin/sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", script])
    assert done.returncode == 0


@pytest.mark.parametrize("whence", ["<&-", "< /dev/null"])
def test_where_nobody_answers_a_question_is_not_agreed_to(hosted: Cli, whence: str) -> None:
    said = "forwarder: nothing was done, for nobody has said yes; where nobody can, add --yes\n"
    assert led(hosted, whence, "domain", "remove", "example.com") == (1, said)
    assert led(hosted, whence, "credential", "add", "example.com", "richard") == (
        0,
        "",
    )  # with one that is made
    assert [one["username"] for one in hosted.json("credential", "list", "example.com")] == ["richard"]


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


async def test_a_narrow_terminal_shows_whole_addresses_and_a_held_delivery_is_told_of(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    house.sink.play("rcpt", "450")
    url = f"sqlite:///{tmp_path / 'forwarder.db'}"
    async with house.engine(database={"url": url}, retry={"delays": ["30m"]}):
        await house.host("example.com", {"*": "a.rather.long.name.of.a.mailbox@dest.test"})
        await house.send("somebody.with.a.long.name@out.test", "info@example.com", b"Subject: x\r\n\r\nx\r\n")
        await house.wait_for_statuses("QUEUED", "SOFT-BOUNCE")
        cli = Cli(tmp_path, capsys)
        cli.write(database=url)

        async def said(*arguments: str) -> str:
            status, output, errors = await asyncio.to_thread(cli, "queue", *arguments)
            assert (status, errors) == (0, "")
            return output

        monkeypatch.setenv("TERM", "dumb")  # 80 columns and no colours
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        id_, *_ = (output := await said("list")).split()
        first, second, third, fourth, *_ = output.splitlines()
        assert re.fullmatch(r"[0-9a-f]{32}  queued  1 attempt, next \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", first)
        assert second.rstrip() == "    somebody.with.a.long.name@out.test ->"
        assert third.rstrip() == "    a.rather.long.name.of.a.mailbox@dest.test"
        assert fourth.rstrip() == "    4.7.0 as told by the test"
        assert await said("retry", id_) == "1 delivery due now\n"
        await house.wait_for_statuses("QUEUED", "SOFT-BOUNCE", "SOFT-BOUNCE")
        assert await said("release", id_) == "0 deliveries due now; one that is not held stays as it is\n"
        assert await said("hold", id_) == "1 delivery held\n"
        assert (await said("list")).splitlines()[0].rstrip() == f"{id_}  held  2 attempts"
        for ids in (id_, "--all"):
            held = "0 deliveries due now; 1 held, which `forwarder queue release` makes due\n"
            assert await said("retry", ids) == held
        assert (await said("hold", id_)).startswith("0 deliveries held; one that is held")


def test_a_table_at_a_terminal_shows_every_destination_whole(
    hosted: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ",".join(f"somebody.with.a.long.name.{number}@example.org" for number in range(5))
    hosted.json("alias", "add", "example.com", "everybody", forward)
    monkeypatch.setenv("TERM", "dumb")  # 80 columns and no colours
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for command in ("alias list", "domain show"):
        status, output, errors = hosted(*command.split(), "example.com")
        assert (status, errors) == (0, "")
        lines = output.splitlines()
        at = next(number for number, line in enumerate(lines) if "everybody" in line)
        column = slice(lines[at].index("somebody"), lines[at].index("  yes"))
        assert "".join(line[column].strip() for line in lines[at : at + 5]).startswith(forward)
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_while_modules_load_is_no_traceback(tmp_path: Path, ignored: bool) -> None:
    """The first module that the commands need stands for all: it is interrupted while it loads."""
    told = f"import os, signal, sys\nos.kill(os.getpid(), signal.SIGINT)\nsys.exit('{tmp_path} goes on')\n"
    (tmp_path / "typer.py").write_text(told)
    # Whoever runs the tests, in the background say, may have it ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "forwarder", "account", "list"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(tmp_path)},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    ended = (1, f"{tmp_path} goes on\n") if ignored else (-signal.SIGINT, "")
    assert (done.returncode, done.stderr) == ended


@pytest.mark.parametrize(
    ("module", "words", "goes_on"),
    [
        ("typer", ("forwarder", "serve"), True),
        ("typer", ("forwarder", "logs", "--follow"), False),  # whose terminal is gone
        ("pydantic", ("forwarder.worker", *WORKER), True),
    ],
)
def test_a_request_to_reload_does_not_end_what_is_only_starting(
    tmp_path: Path, module: str, words: tuple[str, ...], goes_on: bool
) -> None:
    told = f"import os, signal, sys\nos.kill(os.getpid(), signal.SIGHUP)\nsys.exit('{tmp_path} goes on')\n"
    (tmp_path / f"{module}.py").write_text(told)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
    try:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    ended = (1, f"{tmp_path} goes on\n") if goes_on else (-signal.SIGHUP, "")
    assert (done.returncode, done.stderr) == ended


def test_a_long_table_is_drawn_at_once_a_line_for_each_row() -> None:
    drawn = io.StringIO()
    out = Console(file=drawn, width=20, highlight=False)
    rows: list[tuple[object, ...]] = [(f"[b]domain{n}.example", n % 2 == 0, None) for n in range(10_000)]
    rows[1] = ("中文.example", True, "a\nb")
    began = time.process_time()
    table(out, ("domain", "right", "said"), rows, empty="none")
    assert time.process_time() - began < 1
    head, first, second, *rest = drawn.getvalue().splitlines()
    assert head == "domain                 right  said"
    assert first == "[b]domain0.example     yes    -"
    assert second == "中文.example           yes    a b"  # two columns for each of its first two letters
    assert len(rest) == 9_998
    assert rest[-1] == "[b]domain9999.example  no     -"


def test_the_groups_of_an_address_are_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    """They would else stand in the records that people paste."""
    console().print("AAAA 2001:db8:a:100::25", markup=False)
    console().print("[bold]AAAA[/] 2001:db8:a:100::25")
    table(console(), ("to",), [("[IPv6:2001:db8:a:100::25]",)], empty="none")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "AAAA 2001:db8:a:100::25",
        "AAAA 2001:db8:a:100::25",
        "to",
        "[IPv6:2001:db8:a:100::25]",
    ]


def test_times_say_their_zone_and_a_step_of_another_day_its_date() -> None:
    """All we keep is UTC, and the machine's own zone may be another; mail may wait for days."""
    came = datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC)
    steps = ((came, Status.QUEUED, 250), (came + timedelta(hours=4), Status.DELIVERED, 250))
    events = tuple(
        Event(
            id=str(n),
            created_at=at,
            status=status,
            code=code,
            message="fine",
            local=None,
            server=None,
            recipient=None,
        )
        for n, (at, status, code) in enumerate(steps)
    )
    nothing = dict.fromkeys(("domain_id", "alias", "hostname", "message_id", "subject", "sender_name"))
    entry = LogEntry(
        id="0" * 32,
        created_at=came,
        transport=Transport.SMTP,
        sender_email="a@a.example",
        recipient_email="b@b.example",
        recipient_name=None,
        forward_email=None,
        events=events,
        **nothing,
    )
    drawn = io.StringIO()
    _print(entry, Console(file=drawn, width=100), False)
    assert drawn.getvalue().splitlines() == [
        "2026-03-01 23:59:58Z  a@a.example -> b@b.example",
        "    23:59:58 QUEUED      250 fine",
        "    2026-03-02 03:59:58Z DELIVERED   250 fine",
    ]


def test_an_empty_log_is_told_from_one_without_a_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(tmp_path, capsys)
    assert cli("logs") == (0, "Nothing is logged yet.\n", "")
    assert cli("logs", "--failures") == (0, "Nothing in the log matches.\n", "")
