"""``forwarder demo`` as a person runs it: it ends by itself, says what happened, and leaves nothing behind."""

import asyncio
import json
import os
import sys
from pathlib import Path


async def run(
    folder: Path, *arguments: str, to: int = asyncio.subprocess.PIPE
) -> tuple[int | None, str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FORWARDER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forwarder", "demo", *arguments),
        cwd=folder,
        env=environ
        | {"PYTHONPATH": str(Path(__file__).parent.parent), "TMPDIR": str(folder), "COLUMNS": "120"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=to,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return process.returncode, (output or b"").decode(), errors.decode()


async def test_it_shows_real_mail_and_its_log_and_ends_well(tmp_path: Path) -> None:
    status, output, errors = await run(tmp_path)
    assert (status, errors) == (0, "")
    assert "✗" not in output
    for word in ("richard@example.com", "SRS0=", "DELIVERED", "REFUSED", "forwarder account create"):
        assert word in output
    assert os.listdir(tmp_path) == []


async def test_a_reader_who_has_seen_enough_is_no_trouble(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status, _, errors = await run(tmp_path, to=writer)
    os.close(writer)
    assert (status, errors) == (0, "")
    assert os.listdir(tmp_path) == []


async def test_json_tells_the_same(tmp_path: Path) -> None:
    status, output, _ = await run(tmp_path, "--json")
    story = json.loads(output)
    assert status == 0
    assert story["ok"] is True
    assert [(sent["kind"], sent["code"]) for sent in story["sent"]] == [
        ("exact", 250),
        ("wildcard", 250),
        ("regular expression", 250),
        ("no alias", 550),
        ("submission", 250),
    ]
    assert sorted(tuple(received["to"]) for received in story["received"]) == [
        ("bob@inbox.example.net",),
        ("richard@inbox.example.net",),
        ("sales@inbox.example.net",),
        ("team+support@inbox.example.net",),
    ]
    submitted = next(r for r in story["received"] if r["to"] == ["bob@inbox.example.net"])
    assert (submitted["rsa"], submitted["ed25519"]) == (["example.com"], ["example.com"])
    assert submitted["reverse_path"] == "richard@example.com"
    assert sorted(log["events"][-1]["status"] for log in story["logs"]) == ["DELIVERED"] * 4 + ["REFUSED"]
