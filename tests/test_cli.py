"""The commands as a person types them: what they print, their JSON, their exit status."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.cli import app
from forwarder.net.tls import self_signed
from tests.commandline import Cli
from tests.harness import House

ROOT = Path(__file__).parent.parent


def test_help_is_quick_and_lists_every_command() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "forwarder", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0
    for name in (
        *("serve", "demo", "check", "migrate", "account", "domain"),
        *("alias", "credential", "route", "queue", "logs"),
    ):
        assert f"  {name} " in done.stdout
    assert seconds < 1.5  # 0.1 s on an idle machine; heavy rooms would take longer than this


def test_every_command_takes_json_and_config() -> None:
    import typer.main

    def walk(command: Any, path: str) -> None:
        if hasattr(command, "commands"):
            for name, nested in command.commands.items():
                walk(nested, f"{path} {name}")
            return
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, path
        assert "--config" in options or path == " demo", path

    walk(typer.main.get_command(app), "")


def test_account_create_prints_the_key_once_and_stores_its_hash(cli: Cli, tmp_path: Path) -> None:
    made = cli.json("account", "create", "You@Example.org")
    assert set(made) == {"email", "api_key"}
    assert made["email"].lower() == "you@example.org"
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("forwarder.db*"))
    assert made["api_key"].encode() not in stored
    (listed,) = cli.json("account", "list")
    assert listed["email"] == "you@example.org"
    status, output, _ = cli("account", "create", "second@example.org")
    assert status == 0
    assert "fwd_" in output


def test_what_cannot_be_is_a_sentence(cli: Cli) -> None:
    cli.json("account", "create", "you@example.org")
    assert "already exists" in cli.fails("account", "create", "you@example.org")
    assert "needs a local part" in cli.fails("account", "create", "no-address")
    assert "no plan" in cli.fails("account", "create", "b@example.org", "--plan", "gold")
    assert "forwarder account create" in cli.fails(
        "domain", "add", "example.com", "--account", "x@example.org"
    )
    assert "not hosted here" in cli.fails("domain", "show", "example.com")
    cli.fails("domain", "add", "../../x", "--account", "you@example.org")
    assert "forwarder logs" in cli.fails("queue", "show", "0" * 32)


@pytest.mark.parametrize(
    "command",
    [
        ("queue", "show", "\udcff.test"),
        ("queue", "drop", "0" * 32, "\udcff.test", "--yes"),
        ("queue", "list", "--domain", "\udcff.test"),
        ("logs", "--domain", "\udcff.test"),
        ("alias", "add", "example.com", "\udcff", "p@dest.test"),
        ("domain", "show", "\udcff.test"),
        ("route", "\udcff@example.com"),
    ],
)
def test_an_argument_that_is_not_text(hosted: Cli, command: tuple[str, ...]) -> None:
    status, output, errors = hosted(*command)
    assert (status, output) == (2, "")
    assert errors.startswith(r"forwarder: '\udcff")
    assert "is not UTF-8" in errors


def test_a_domain_is_added_shown_and_removed_under_either_form_of_its_name(hosted: Cli) -> None:
    assert "already exists" in hosted.fails("domain", "add", "EXAMPLE.com", "--account", "you@example.org")
    (listed,) = hosted.json("domain", "list")
    assert listed["domain"] == "example.com"
    shown = hosted.json("domain", "show", "example.com")
    assert (shown["account"], shown["aliases"], shown["credentials"]) == ("you@example.org", [], [])
    made = hosted.json("domain", "add", "bücher.example", "--account", "you@example.org")
    assert made["domain"] == "xn--bcher-kva.example"
    assert hosted.json("domain", "remove", "bücher.example", "--yes") == {"removed": "xn--bcher-kva.example"}
    assert len(hosted.json("domain", "list")) == 1


def test_the_records_to_paste(hosted: Cli) -> None:
    records = {record["purpose"]: record for record in hosted.json("domain", "dns", "example.com")["records"]}
    assert records["mx"] == {
        "purpose": "mx",
        "type": "MX",
        "name": "example.com",
        "value": "mx1.example.net",
        "priority": 10,
    }
    assert records["spf"]["value"] == "v=spf1 include:mx1.example.net ~all"
    assert records["dkim1"]["name"] == "fwd1._domainkey.example.com"
    assert records["dkim1"]["value"].startswith("v=DKIM1; k=rsa; p=")
    assert records["dkim2"]["value"].startswith("v=DKIM1; k=ed25519; p=")
    assert records["dmarc"]["name"] == "_dmarc.example.com"
    aliased = hosted.json("domain", "dns", "example.com", "--cname")
    target = next(record for record in aliased["records"] if record["purpose"] == "dkim1")
    assert (target["type"], target["value"]) == ("CNAME", "fwd1._domainkey.example.com.mx1.example.net")
    assert aliased["key_zone"][0]["name"] == target["value"]
    assert aliased["key_zone"][0]["value"] == records["dkim1"]["value"]
    status, output, _ = hosted("domain", "dns", "example.com")
    assert status == 0
    assert "example.com.  IN MX  10 mx1.example.net." in output
    (line,) = [line for line in output.splitlines() if line.startswith("fwd1._domainkey.example.com.")]
    assert line.count('"') == 4  # an RSA key is longer than one string of a TXT record
    and_last = output.partition("Once for this server")[2]
    assert 'mx1.example.net.  IN TXT  "v=spf1 a -all"' in and_last
    assert "fwd2._domainkey.mx1.example.net.  IN TXT" in and_last
    assert "(PTR)" in and_last
    assert "  mx1.example.net\n" in and_last
    assert "where those CNAMEs lead" not in output
    _, _, ours = hosted("domain", "dns", "example.com", "--cname")[1].partition("where those CNAMEs lead")
    assert f"{target['value']}.  IN TXT" in ours


def test_an_alias_is_added_once_and_only_if_it_can_be_one(hosted: Cli) -> None:
    made = hosted.json("alias", "add", "example.com", "Richard", "person@dest.test, other@dest.test")
    assert (made["alias"], made["forward"]) == ("richard", "person@dest.test,other@dest.test")
    hosted.json("alias", "add", "example.com", "*", "all@dest.test")
    assert [a["alias"] for a in hosted.json("alias", "list", "example.com")] == ["richard", "*"]
    assert "already exists" in hosted.fails("alias", "add", "example.com", "richard", "x@dest.test")
    hosted.fails("alias", "add", "example.com", "(?=x)", "x@dest.test")
    hosted.fails("alias", "add", "example.com", "bad", "not an address")
    hosted.fails("alias", "add", "example.com", "hook", "https://127.0.0.1/")
    assert "percent-encoded" in hosted.fails("alias", "add", "example.com", "a%0d%0ab", "x@dest.test")
    assert "invisible" in hosted.fails("alias", "add", "example.com", "hidden", "x\u200b@dest.test")
    hosted.fails("alias", "add", "example.com", "(a)", "$2@dest.test")
    hosted.fails("alias", "add", "example.com", "circle", "circle@example.com")
    assert len(hosted.json("alias", "list", "example.com")) == 2
    hosted.json("alias", "remove", "example.com", "richard")
    assert "no alias" in hosted.fails("alias", "remove", "example.com", "richard")
    assert [a["alias"] for a in hosted.json("alias", "list", "example.com")] == ["*"]


def test_an_alias_is_led_elsewhere_without_being_removed(hosted: Cli) -> None:
    made = hosted.json("alias", "add", "example.com", "(sales|info)-.*", "old@dest.test")
    named = {"id": made["id"], "domain": "example.com", "alias": "(sales|info)-.*"}
    changed = hosted.json("alias", "change", "example.com", "(sales|info)-.*", " $1@dest.test, new@dest.test")
    assert changed == {**named, "forward": "$1@dest.test,new@dest.test", "is_active": True}
    assert [way["destination"] for way in hosted.json("route", "info-x@example.com")["destinations"]] == [
        "info@dest.test",
        "new@dest.test",
    ]
    off = hosted.json("alias", "change", "example.com", str(made["id"]), "--off")
    assert off == {**changed, "is_active": False}
    route = hosted.json("route", "info-x@example.com")
    assert (route["accepted"], route["trouble"]) == (False, "DISABLED_REFUSE")
    assert hosted("alias", "change", "example.com", str(made["id"]), "--off")[1].endswith(", but is off\n")
    both = hosted.json("alias", "change", "example.com", str(made["id"]), "last@dest.test", "--on")
    assert both == {**named, "forward": "last@dest.test", "is_active": True}
    assert [row["forward"] for row in hosted.json("alias", "list", "example.com")] == ["last@dest.test"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (("richard",), "say what to change"),
        (("nobody", "x@dest.test"), "example.com has no alias nobody; forwarder alias list example.com"),
        (("richard", "not an address"), "this forward cannot be"),
        (("richard", ""), "destination is missing"),
        (("richard", " ", "--off"), "destination is missing"),
        (("richard", "$1@dest.test"), "$1"),
        (("richard", "richard@example.com"), "circle"),
        (("richard", "https://127.0.0.1/"), "this forward cannot be"),
    ],
)
def test_an_alias_stays_as_it_was_where_the_change_cannot_be(
    hosted: Cli, wanted: tuple[str, ...], said: str
) -> None:
    hosted.json("alias", "add", "example.com", "richard", "person@dest.test")
    assert said in hosted.fails("alias", "change", "example.com", *wanted)
    assert [(row["forward"], row["is_active"]) for row in hosted.json("alias", "list", "example.com")] == [
        ("person@dest.test", True)
    ]


def test_an_alias_that_the_api_would_not_take_is_not_added(hosted: Cli) -> None:
    """Whoever reads it there could not send it back."""
    hosted.write(more="[plans.default]\ndestinations = 1000\n")
    forward = ",".join(f"{'a' * 50}{number}@{'x' * 60}.test" for number in range(1000))
    assert "longer than 100000" in hosted.fails("alias", "add", "example.com", "everybody", forward)
    hosted.write(more="[plans.default]\ndestinations = 1\n")
    forward = "one@dest.test,two@dest.test"
    assert "limited to 1 destinations" in hosted.fails("alias", "add", "example.com", "both", forward)


def test_an_alias_is_found_by_the_name_that_made_it(hosted: Cli) -> None:
    made = hosted.json("alias", "add", "example.com", "straße", "you@example.org")
    assert made["alias"] == "strasse"
    removed = hosted.json("alias", "remove", "example.com", "straße")
    assert removed == {"removed": "strasse", "domain": "example.com"}


def test_a_domain_is_named_as_it_is_stored_however_it_was_typed(hosted: Cli) -> None:
    added = hosted.json("alias", "add", "EXAMPLE.com", "shouted", "you@example.org")
    assert added["domain"] == "example.com"
    removed = hosted.json("alias", "remove", "Example.COM", "shouted")
    assert removed == {"removed": "shouted", "domain": "example.com"}
    hosted.json("credential", "add", "Example.COM", "richard")
    removed = hosted.json("credential", "remove", "Example.COM", "richard")
    assert removed == {"removed": "richard", "domain": "example.com"}
    # ``domain dns`` prints names with the dot that a zone has.
    assert hosted.json("domain", "show", "Example.com.")["domain"] == "example.com"
    made = hosted.json("domain", "add", "bücher.example.", "--account", "you@example.org")
    assert made["domain"] == "xn--bcher-kva.example"
    assert "not well formed" in hosted.fails("domain", "show", "example.com..")


def test_an_alias_is_found_by_any_writing_of_its_name(hosted: Cli) -> None:
    composed, apart = "j\u00fcrgen", "ju\u0308rgen"  # programs write the same letter either way
    hosted.json("alias", "add", "example.com", apart, "you@example.org")
    assert "already exists" in hosted.fails("alias", "add", "example.com", apart, "you@example.org")
    removed = hosted.json("alias", "remove", "example.com", apart)
    assert removed == {"removed": composed, "domain": "example.com"}


def test_what_is_unconfirmed_is_shown(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted.json("alias", "add", "example.com", "old", "old@dest.test,https://hook.test/x")
    assert "nobody need confirm" in hosted.fails("alias", "ask", "example.com")
    assert "unconfirmed" not in hosted.json("alias", "list", "example.com")[0]
    monkeypatch.setenv("FORWARDER_REQUIRE_CONFIRMED_DESTINATIONS", "true")
    hosted.json("alias", "add", "example.com", "new", "former@dest.test")
    hosted.json("alias", "change", "example.com", "new", "new@dest.test")
    listed = hosted.json("alias", "list", "example.com")
    assert [row["unconfirmed"] for row in listed] == [["old@dest.test"], ["new@dest.test"]]
    assert "new@dest.test" in hosted("alias", "list", "example.com")[1]
    both = ["old@dest.test", "new@dest.test"]
    assert hosted.json("alias", "ask", "example.com") == {"asked": ["old@dest.test"], "unconfirmed": both}
    assert hosted.json("alias", "ask", "example.com") == {"asked": [], "unconfirmed": both}
    assert "asked before" in hosted("alias", "ask", "example.com")[1]
    route = hosted.json("route", "new@example.com")
    assert (route["accepted"], route["trouble"]) == (False, "UNCONFIRMED")
    assert route["unconfirmed"] == ["new@dest.test"]
    assert hosted.json("route", "old@example.com")["destinations"][0]["destination"] == "https://hook.test/x"
    subjects = [entry["subject"] for entry in hosted.json("logs")]
    assert subjects == ["May mail for example.com be forwarded to you?"] * 3


def test_check_says_that_links_must_lead_somewhere(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> dict[str, str]:
        _, output, _ = hosted("check", "--json")
        found = [one for one in json.loads(output)["findings"] if one["about"] == "confirmation"]
        return found[0] if found else {}

    assert finding() == {}
    monkeypatch.setenv("FORWARDER_REQUIRE_CONFIRMED_DESTINATIONS", "true")
    assert finding()["grade"] == "wrong"
    assert "public_url" in finding()["text"]
    monkeypatch.setenv("FORWARDER_API__PUBLIC_URL", "https://forward.example")
    assert finding()["grade"] == "fine"


def test_route_explains(hosted: Cli) -> None:
    hosted.json("alias", "add", "example.com", "(contact|support)", "team+$1@dest.test")
    found = hosted.json("route", "support@example.com")
    assert found["accepted"] is True
    assert [d["destination"] for d in found["destinations"]] == ["team+support@dest.test"]
    assert found["destinations"][0]["alias"] == "(contact|support)"
    assert found["steps"] == [
        "support@example.com: the regular expression (contact|support) answers; it leads to team+support@dest.test"
    ]
    status, output, _ = hosted("route", "support@example.com")
    assert status == 0
    assert "team+support@dest.test" in output
    assert "(contact|support)" in output
    unknown = hosted.json("route", "nobody@example.com")
    assert (unknown["accepted"], unknown["trouble"]) == (False, "UNKNOWN")
    assert hosted.json("route", "a@elsewhere.test")["trouble"] == "NOT_HOSTED"


def test_a_credential_gets_a_password(hosted: Cli, tmp_path: Path) -> None:
    made = hosted.json("credential", "add", "example.com", "richard")
    assert made["login"] == "richard@example.com"
    assert len(made["password"]) >= 20
    _, output, _ = hosted("credential", "add", "example.com", "printer")
    assert "Server mx1.example.net: port 587 with STARTTLS, or port 465 with TLS." in output
    assert "does not listen there without a certificate: set [tls]" in output
    given = hosted.json("credential", "add", "example.com", "other", "--password", "hunter2hunter2")
    assert given == {"login": "other@example.com"}
    assert "already exists" in hosted.fails("credential", "add", "example.com", "richard")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("forwarder.db*"))
    assert b"hunter2" not in stored
    assert made["password"].encode() not in stored
    assert b"$argon2id$" in stored


def test_check_says_what_is_wrong_and_what_to_do(hosted: Cli) -> None:
    status, output, _ = hosted("check", "--json")
    found = json.loads(output)
    assert status == 1  # the DNS cannot be asked in this test
    assert found["ok"] is False
    about = {finding["about"]: finding for finding in found["findings"]}
    assert about["configuration"]["grade"] == "fine"
    assert about["keys"]["grade"] == "fine"
    assert about["database"]["grade"] == "fine"
    assert about["mx1.example.net"]["grade"] == "wrong"
    status, output, _ = hosted("check")
    assert status == 1
    assert "must be mended" in output


def test_migrate_says_what_the_schema_was(cli: Cli) -> None:
    assert cli.json("migrate") == {"before": "empty", "now": "current"}
    assert cli.json("migrate") == {"before": "current", "now": "current"}
    assert cli("migrate")[1] == "The database was up to date already.\n"
    (cli.config.parent / "data" / "forwarder.db").unlink()
    assert cli("migrate")[1] == "The database is up to date.\n"


def test_a_database_that_is_away_is_a_sentence_without_its_password(cli: Cli) -> None:
    cli.write(database="postgresql://me:hunter2@127.0.0.1:1/mail")
    said = cli.fails("account", "list")
    assert "does not answer: Connection refused" in said
    assert "hunter2" not in said


def test_wrong_use_ends_with_status_two(cli: Cli) -> None:
    assert cli("account", "create")[0] == 2
    assert cli("no-such-command", config=False)[0] == 2
    cli.config.write_text("hostnam = 'a'")
    status, _, errors = cli("account", "list")
    assert status == 2
    assert "did you mean hostname" in errors


def test_config_falls_back_to_the_working_directory(cli: Cli) -> None:
    status, output, _ = cli("account", "list", "--json", config=False)  # ./config.toml
    assert (status, json.loads(output)) == (0, [])


async def test_queue_and_logs_of_a_running_engine(
    house: House, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    house.sink.play("rcpt", "450")
    async with house.engine(database={"url": database_url}, retry={"delays": ["30m"]}):
        await house.host("example.com", {"*": "inbox@dest.test"})
        await house.send(
            "ann@out.test", "info@example.com", b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\nx\r\n"
        )
        await house.wait_for_statuses("QUEUED", "SOFT-BOUNCE")
        cli = Cli(tmp_path, capsys)
        cli.write(database=database_url)

        def run(work: Callable[[], Any]) -> Any:
            return asyncio.to_thread(work)

        listed = await run(lambda: cli.json("queue", "list"))
        (waiting,) = listed["deliveries"]
        assert (waiting["destination"], waiting["attempts"]) == ("inbox@dest.test", 1)
        assert listed["counts"]["queued"] == 1
        assert "None of the 1" in (await run(lambda: cli("queue", "list", "--state", "held")))[1]
        shown = (await run(lambda: cli("queue", "list")))[1]
        assert "inbox@dest.test" in shown
        assert "1 queued" in shown
        for domain, number in (("DEST.test", 1), ("dest.test", 1), ("other.test", 0), ("127.0.0.1", 0)):
            shown = await run(lambda name=domain: cli.json("queue", "list", "--domain", name))
            assert len(shown["deliveries"]) == number
        assert "None of the 1" in (await run(lambda: cli("queue", "list", "--domain", "other.test")))[1]
        (shown,) = await run(lambda: cli.json("queue", "show", waiting["message_id"]))
        assert shown["id"] == waiting["id"]
        assert "inbox@dest.test" in (await run(lambda: cli("queue", "show", waiting["id"])))[1]
        assert await run(lambda: cli.json("queue", "hold", waiting["id"])) == {"changed": 1}
        assert "stays as it is" in (await run(lambda: cli("queue", "hold", waiting["id"])))[1]
        for state, number in (("held", 1), ("queued", 0), ("leased", 0)):
            shown = await run(lambda state=state: cli.json("queue", "list", "--state", state))
            assert (len(shown["deliveries"]), shown["counts"]["held"]) == (number, 1)
        held = await run(lambda: cli.json("queue", "list", "--state", "held"))
        assert [one["next_attempt_at"] for one in held["deliveries"]] == [None]
        house.sink.behave()
        assert await run(lambda: cli.json("queue", "release", waiting["id"])) == {"changed": 1}
        await house.sink.wait_for(1)
        await house.wait_for_statuses("QUEUED", "SOFT-BOUNCE", "DELIVERED")
        (entry,) = await run(lambda: cli.json("logs", "--domain", "example.com"))
        assert [event["status"] for event in entry["events"]] == ["QUEUED", "SOFT-BOUNCE", "DELIVERED"]
        assert entry["subject"] == "grüße"
        arrived, _, left = entry["events"]
        assert (arrived["local"], left["server"]) == ("mx.test", "mx.test")
        _, output, _ = await run(lambda: cli("logs"))
        assert "SOFT-BOUNCE" in output
        house.sink.play("rcpt", "450")
        await house.send("ann@out.test", "info@example.com", b"Subject: y\r\n\r\nx\r\n")
        await house.wait_for_statuses(*("QUEUED", "SOFT-BOUNCE", "DELIVERED"), "QUEUED", "SOFT-BOUNCE")
        (again,) = (await run(lambda: cli.json("queue", "list")))["deliveries"]
        assert await run(lambda: cli.json("queue", "retry", "--all")) == {"changed": 1}
        await house.wait_for_statuses(
            *("QUEUED", "SOFT-BOUNCE", "DELIVERED"), *("QUEUED", "SOFT-BOUNCE", "SOFT-BOUNCE")
        )
        assert await run(lambda: cli.json("queue", "drop", again["id"], "--yes")) == {"changed": 1}
        assert (await run(lambda: cli.json("queue", "list")))["deliveries"] == []
        assert "The queue is empty" in (await run(lambda: cli("queue", "list", "--state", "held")))[1]
        assert (await house.statuses())[-1] == "HARD-BOUNCE"


@pytest.mark.parametrize(
    "command",
    [
        ("retry",),
        ("hold",),
        ("release",),
        ("drop", "--yes"),
        ("retry", "--all", "x"),
        ("list", "--state", "done"),
    ],
)
def test_nothing_is_done_to_a_queue_of_which_nothing_is_named(cli: Cli, command: tuple[str, ...]) -> None:
    status, output, errors = cli("queue", *command)
    assert (status, output) == (2, "")
    assert re.match("forwarder: (name the ids|either --all or ids|done is no state)", errors)


@pytest.mark.parametrize("verb", ["retry", "hold", "release", "drop"])
def test_whoever_names_what_is_not_in_the_queue_is_told(cli: Cli, verb: str) -> None:
    agreed = ["--yes"] if verb == "drop" else []
    for ids, named in (
        (["example.com"], "example.com"),
        (["x", "y"], "x or the other"),
        (["0" * 32, "x", "y"], "0" * 32 + " or the 2 others"),
    ):
        assert f"nothing in the queue has the id {named};" in cli.fails("queue", verb, *ids, *agreed)


@pytest.mark.parametrize("command", [("domain", "remove", "example.com"), ("queue", "drop", "0" * 32)])
def test_json_agrees_to_nothing(hosted: Cli, command: tuple[str, ...]) -> None:
    status, output, errors = hosted(*command, "--json")
    assert (status, output) == (2, "")
    assert "--yes" in json.loads(errors)["error"]
    assert len(hosted.json("domain", "list")) == 1
    status, output, errors = hosted(*command, "--json", "--yes")
    # The queue is empty: agreed to, it finds nothing to drop.
    assert (status, bool(output), bool(errors)) == (
        (1, False, True) if "queue" in command else (0, True, False)
    )


def test_brackets_in_names_are_no_markup(hosted: Cli) -> None:
    status, output, errors = hosted("account", "create", '"[/x]"@example.org')
    assert (status, errors) == (0, "")
    assert '"[/x]"@example.org' in output
    assert "fwd_" in output
    status, output, errors = hosted("credential", "add", "example.com", '"[/x]"')
    assert (status, errors) == (0, "")
    assert '"[/x]"@example.com' in output


@pytest.mark.parametrize("command", [("account", "list"), ("migrate",), ("route", "a@example.com")])
def test_a_data_dir_that_cannot_be_made_is_a_sentence(cli: Cli, command: tuple[str, ...]) -> None:
    (cli.config.parent / "data").touch()
    assert "data_dir must be writable" in cli.fails(*command)


def test_check_survives_a_data_dir_that_cannot_be_made(cli: Cli) -> None:
    (cli.config.parent / "data").touch()
    status, output, errors = cli("check")
    assert (status, errors) == (1, "")
    assert "✗ database the file of the database" in output


@pytest.mark.parametrize("command", [("migrate",), ("queue", "list")])
def test_a_file_of_the_database_that_cannot_be_used_is_told_with_the_reason(
    cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    cli.write(database=f"sqlite:///{tmp_path}")
    assert f"cannot be used (Is a directory: {tmp_path.name})" in cli.fails(*command)


def test_check_looks_at_the_certificate(hosted: Cli) -> None:
    hosted.write(more='[tls]\ncertificate = "none.pem"\nkey = "none.key"\n')
    status, output, _ = hosted("check")
    assert status == 1
    assert "✗ tls none.pem" in output


@pytest.mark.parametrize(
    ("names", "hours", "grade", "said"),
    [
        (["mx1.example.net"], 2000, "fine", "can be used until"),
        (["other.example.org", "*.example.net"], 2000, "fine", "can be used until"),
        (["mx1.example.net"], -0.5, "wrong", "ended on"),
        (["mx1.example.net"], 48, "advice", "ends on"),
        (["example.net", "*.mx1.example.net"], 2000, "advice", "not for mx1.example.net"),
    ],
)
def test_check_looks_at_what_mail_programs_look_at_in_a_certificate(
    hosted: Cli, tmp_path: Path, names: list[str], hours: float, grade: str, said: str
) -> None:
    certificate, key = self_signed(names, tmp_path, valid_for=timedelta(hours=hours))
    nobody = "[submission]\nlisten = []\nlisten_tls = []\n"
    hosted.write(more=f'{nobody}[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    _, output, _ = hosted("check", "--json")
    (found,) = [one for one in json.loads(output)["findings"] if one["about"] == "tls"]
    assert (found["grade"], said in found["text"]) == (grade, True), found


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", []),
        ('[dkim]\nalgorithms = ["ed25519"]\n', ["advice"]),
        ('[dkim]\nalgorithms = ["ed25519"]\n[arc]\nenabled = false\n', []),
    ],
)
def test_check_says_that_nothing_is_sealed_without_rsa(hosted: Cli, more: str, told: list[str]) -> None:
    hosted.write(more=more)
    _, output, _ = hosted("check", "--json")
    assert [one["grade"] for one in json.loads(output)["findings"] if one["about"] == "arc"] == told


async def test_check_looks_at_the_records_of_the_server_itself(hosted: Cli) -> None:
    import asyncio

    from tests.peers.dns_server import DnsServer

    own = (await asyncio.to_thread(hosted.json, "domain", "dns", "example.com"))["server"]
    async with DnsServer() as dns:
        written = hosted.config.read_text().replace("127.0.0.1:1", dns.address).replace("200ms", "5s")
        hosted.config.write_text(written)

        async def found() -> dict[str, tuple[str, str]]:
            _, output, _ = await asyncio.to_thread(hosted, "check", "--json")
            return {one["about"]: (one["grade"], one["text"]) for one in json.loads(output)["findings"]}

        wanted = {
            "mx1.example.net SPF": "mx1.example.net: v=spf1 a -all",
            "fwd1._domainkey.mx1.example.net DKIM": "v=DKIM1; k=rsa; p=",
            "fwd2._domainkey.mx1.example.net DKIM": "v=DKIM1; k=ed25519; p=",
        }
        before = await found()
        for about, text in wanted.items():
            grade, said = before[about]
            assert grade == "advice"
            assert text in said
        for record in own:
            if record["type"] == "TXT":
                dns.set(record["name"], "TXT", [record["value"]])
        after = await found()
        assert {about: after[about] for about in wanted} == dict.fromkeys(wanted, ("fine", "is right"))
        dns.set("mx1.example.net", "TXT", ["v=spf1 a -all", "v=spf1 -all"])  # RFC 7208 4.5: two are none
        assert (await found())["mx1.example.net SPF"][0] == "advice"
        dns.set("mx1.example.net", "A", ["192.0.2.7", "192.0.2.8"])
        dns.set("mx1.example.net", "TXT", ["v=spf1 ip4:192.0.2.8 -all"])  # one machine of two, as it happens
        grade, said = (await found())["mx1.example.net SPF"]
        assert (grade, said.partition(",")[0]) == ("advice", "does not let 192.0.2.7 send")
        dns.set("mx1.example.net", "TXT", ["v=spf1 a -all"])
        assert (await found())["mx1.example.net SPF"] == ("fine", "is right")


async def test_check_looks_at_many_domains_side_by_side(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name server that is slow with each of ten thousand domains would hold a command up for hours."""
    import asyncio

    import api.findings
    from forwarder.commands.checking import AT_ONCE

    names = ["example.com", *(f"d{number}.example" for number in range(4))]
    for name in names[1:]:
        await asyncio.to_thread(hosted.json, "domain", "add", name, "--account", "you@example.org")
    assert len(names) <= AT_ONCE
    look, all_of_them = api.findings.look, asyncio.Barrier(len(names))

    async def together(*given: Any) -> Any:
        await asyncio.wait_for(all_of_them.wait(), 20)
        return await look(*given)

    monkeypatch.setattr(api.findings, "look", together)
    _, output, _ = await asyncio.to_thread(hosted, "check", "--json")
    about = [one["about"] for one in json.loads(output)["findings"]]
    assert [one.removesuffix(" MX") for one in about if one.endswith(" MX")] == names


def test_what_is_piped_is_not_cut(hosted: Cli) -> None:
    """Somebody may look for it with grep."""
    forward = ",".join(f"somebody.with.a.long.name.{number}@example.org" for number in range(20))
    assert hosted("alias", "add", "example.com", "everybody-who-has-to-know-of-it", forward)[0] == 0
    output = hosted("alias", "list", "example.com")[1]
    assert f"everybody-who-has-to-know-of-it  {forward}  yes" in output


def test_an_encoding_without_our_marks_is_no_traceback(hosted: Cli) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forwarder", "check", "--config", str(hosted.config)],
        capture_output=True,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "iso-8859-1"},
    )
    assert (done.returncode, done.stderr) == (1, b"")
    lines = done.stdout.decode("iso-8859-1").splitlines()
    assert lines[0].startswith("+ configuration is valid")
    assert lines[1].startswith("· ")  # it has that one
    assert [line for line in lines if line.startswith("! mx1.example.net ")]
    assert lines[-1] == "What is marked ! must be mended."


def test_wrong_use_is_json_too() -> None:
    for arguments in (["nope", "--json"], ["queue", "list", "--limit", "0", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "forwarder", *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert json.loads(done.stderr)["error"]


def test_the_log_of_an_alias_is_that_of_its_domain(hosted: Cli) -> None:
    status, output, errors = hosted("logs", "--alias", "info")
    assert (status, output) == (2, "")
    assert errors.startswith("forwarder: --alias needs --domain")
    assert hosted("logs", "--alias", "info", "--domain", "example.com")[0] == 0


def test_the_log_of_an_alias_is_found_by_its_name_and_its_id(
    hosted: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forwarder.store.journal import Journal, LogEntry

    asked: list[str | None] = []

    async def page(_self: Journal, *_: object, alias: str | None, **__: object) -> list[LogEntry]:
        asked.append(alias)
        return []

    monkeypatch.setattr(Journal, "page", page)
    made = hosted.json("alias", "add", "example.com", "straße", "you@example.org")
    for named in ("straße", str(made["id"]), "Gone"):
        hosted("logs", "--domain", "example.com", "--alias", named)
    assert asked == ["strasse", "strasse", "gone"]


def test_follow_shows_what_is_there_once(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import fields

    from forwarder.commands import logs
    from forwarder.store.journal import Event, Journal, LogEntry

    def entry(number: int) -> LogEntry:
        values: dict[str, Any] = {field.name: None for field in fields(LogEntry)}
        nothing: dict[str, Any] = {field.name: None for field in fields(Event)}
        event = Event(**nothing)
        return LogEntry(**(values | {"id": f"{number:032x}", "events": (event,)}))

    monkeypatch.setattr(logs, "_print", lambda one, _out, _as_json: print(int(one.id, 16)))
    rounds = 0

    async def page(_self: Journal, *_domain: object, limit: int, **_more: object) -> list[LogEntry]:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt
        return [entry(number) for number in range(60, 0, -1)][:limit]

    pauses: list[float] = []
    sleep = asyncio.sleep

    async def rest(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(Journal, "page", page)
    monkeypatch.setattr(asyncio, "sleep", rest)
    monkeypatch.setattr(logs, "POLL", 0.75)
    status, output, errors = hosted("logs", "--follow", "--limit", "5")
    assert output.split() == ["56", "57", "58", "59", "60"]
    assert (status, errors) == (0, "")  # who stops it by Ctrl-C has done nothing wrong
    assert pauses.count(0.75) == 2


def test_follow_begins_with_an_empty_log(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from forwarder.commands import logs
    from forwarder.store.journal import Journal

    rounds = 0

    async def page(_self: Journal, *_domain: object, **_more: object) -> list[object]:
        nonlocal rounds
        rounds += 1
        if rounds == 4:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(Journal, "page", page)
    monkeypatch.setattr(logs, "POLL", 0.0)
    assert hosted("logs", "--follow") == (0, "", "")
    assert rounds == 4


def test_follow_shows_a_burst_and_the_steps_of_mail_that_waited(
    hosted: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 entries, number 5 waits in the queue; then 250 come at once, and number 5 is tried once more."""
    from dataclasses import fields
    from datetime import UTC, datetime

    from forwarder.commands import logs
    from forwarder.store import admin
    from forwarder.store.journal import Event, Journal, LogEntry

    nothing: dict[str, Any] = {field.name: None for field in fields(Event)}
    old, new = (
        Event(**(nothing | {"created_at": datetime(year, 1, 1, tzinfo=UTC)})) for year in (2020, 9999)
    )
    written = {f"{number:032x}": [old] for number in range(1, 1001)}
    fifth = f"{5:032x}"

    def entry(id_: str) -> LogEntry:
        values: dict[str, Any] = {field.name: None for field in fields(LogEntry)}
        return LogEntry(**(values | {"id": id_, "events": tuple(written[id_])}))

    async def page(
        _self: Journal, *_: object, limit: int, after: str = "g", ids: Any = None, **__: object
    ) -> list[LogEntry]:
        wanted = [id_ for id_ in sorted(written, reverse=True) if id_ < after and (ids is None or id_ in ids)]
        return [entry(id_) for id_ in wanted[:limit]]

    looks = 0

    def moving(_conn: object, *, limit: int) -> dict[str, tuple[str, int]]:
        nonlocal looks
        looks += 1
        if looks == 3:
            written.update({f"{number:032x}": [new] for number in range(1001, 1251)})
            written[fifth].append(new)
        if looks == 5:
            raise KeyboardInterrupt
        return {fifth: ("queued", 1 if looks < 3 else 2)}

    monkeypatch.setattr(logs, "_print", lambda one, _out, _as_json: print(int(one.id, 16)))
    monkeypatch.setattr(logs, "POLL", 0.0)
    monkeypatch.setattr(Journal, "page", page)
    monkeypatch.setattr(admin, "moving", moving)
    _, output, _ = hosted("logs", "--follow", "--limit", "1")
    assert [int(number) for number in output.split()] == [1000, 5, *range(1001, 1251)]


async def test_follow_goes_on_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import fields
    from datetime import UTC, datetime, timedelta
    from types import SimpleNamespace

    from forwarder.commands import logs
    from forwarder.store.journal import Event, LogEntry

    now = began = datetime(2026, 11, 29, 12, tzinfo=UTC)

    def entry(id_: str, at: datetime) -> LogEntry:
        event: dict[str, Any] = {field.name: None for field in fields(Event)}
        values: dict[str, Any] = {field.name: None for field in fields(LogEntry)}
        return LogEntry(**(values | {"id": id_, "events": (Event(**(event | {"created_at": at})),)}))

    written = [entry("old", began - timedelta(hours=2))]

    async def ask(**_: object) -> list[LogEntry]:
        return written

    async def read(_: object) -> dict[str, object]:
        nonlocal now
        now = began - timedelta(hours=1)
        written.append(entry("new", now - timedelta(milliseconds=100)))
        return {}

    monkeypatch.setattr(logs, "POLL", 0.0)
    monkeypatch.setattr(logs, "utc_now", lambda: now)
    grown = logs._grown(SimpleNamespace(read=read), ask, {}, began)  # type: ignore[arg-type]
    assert (await asyncio.wait_for(anext(grown), 5)).id == "new"


def test_follow_passes_over_the_oldest_of_a_burst_that_is_too_large(
    hosted: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forwarder.commands import logs

    asked: list[str] = []

    async def page(*, limit: int, after: str = "999") -> list[SimpleNamespace]:
        asked.append(after)
        return [
            SimpleNamespace(id=f"{number:03}") for number in range(int(after) - 1, int(after) - 1 - limit, -1)
        ]

    monkeypatch.setattr(logs, "PAGE", 10)
    monkeypatch.setattr(logs, "NEWEST", 30)
    found = asyncio.run(logs._newest(page, {"001": 1}))
    assert [entry.id for entry in found] == [f"{number:03}" for number in range(998, 968, -1)]
    asked.clear()
    assert len(asyncio.run(logs._newest(page, {"980": 1}))) == 20
    assert asked == ["999", "989"]  # the second has one that is known


def test_a_long_queue_is_made_due_in_bites_to_its_end(hosted: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from forwarder.store import admin

    asked = []

    def bite(_conn: object, *, after: str, limit: int, **_more: object) -> list[str]:
        asked.append(after)
        first = int(after or "0")
        return [f"{number:04}" for number in range(first + 1, min(first + limit, 2003) + 1)]

    monkeypatch.setattr(admin, "retry_next", bite)
    assert hosted.json("queue", "retry", "--all") == {"changed": 2003}
    assert asked == ["", "1000", "2000"]
