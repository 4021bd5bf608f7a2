"""What commands ask before they act: about all that would go, and about nothing that is not there."""

import asyncio
from pathlib import Path

import pytest
import typer

from tests.commandline import Cli
from tests.harness import House


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions, each answered with yes."""
    questions: list[str] = []
    monkeypatch.setattr(typer, "confirm", lambda question, **_: questions.append(question))
    return questions


async def test_a_drop_asks_about_every_delivery_of_a_message(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    house.sink.play("rcpt", "450")
    url = f"sqlite:///{tmp_path / 'forwarder.db'}"
    async with house.engine(database={"url": url}, retry={"delays": ["30m"]}):
        await house.host("example.com", {"*": "a@dest.test,b@dest.test,c@dest.test"})
        await house.send("ann@out.test", "info@example.com", b"Subject: x\r\n\r\nx\r\n")
        await house.wait_for_statuses(*["QUEUED"] * 3, *["SOFT-BOUNCE"] * 3)
        cli = Cli(tmp_path, capsys)
        cli.write(database=url)
        waiting = (await asyncio.to_thread(cli.json, "queue", "list"))["deliveries"]

        async def drop(*ids: str) -> str:
            status, output, errors = await asyncio.to_thread(cli, "queue", "drop", *ids)
            assert (status, errors) == (0, "")
            return output

        assert await drop(waiting[0]["id"]) == "1 delivery dropped\n"
        assert await drop(waiting[0]["message_id"], waiting[1]["id"]) == "2 deliveries dropped\n"
        assert "nothing in the queue" in await asyncio.to_thread(
            cli.fails, "queue", "drop", waiting[0]["message_id"], "--yes"
        )
        assert asked == [
            "Drop 1 delivery without telling the sender?",
            "Drop 2 deliveries without telling the sender?",
        ]


def test_nobody_is_asked_about_a_domain_that_is_not_hosted(hosted: Cli, asked: list[str]) -> None:
    assert hosted("domain", "remove", "exmaple.com") == (
        1,
        "",
        "forwarder: exmaple.com is not hosted here; forwarder domain list shows what is\n",
    )
    assert asked == []
    assert hosted("domain", "remove", "example.com")[0] == 0
    assert len(asked) == 1
