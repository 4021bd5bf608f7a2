"""The program of docs/from-improvmx.md, run against a service that answers as ImprovMX documents it."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.harness import House

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "from-improvmx.md"
MANY = [{"id": 100 + n, "alias": f"many{n}", "forward": f"m{n}@example.org"} for n in range(4)]
THERE: dict[str, dict[str, Any]] = {
    "moved.test": {
        "aliases": [
            {"id": 9, "alias": "b(.+)", "forward": "late@example.org"},
            {"id": 4, "alias": "(b.+)", "forward": "early@example.org"},
            {"id": 11, "alias": "bad", "forward": "nowhere"},
            {"id": 12, "alias": "hook", "forward": "https://hook.example/x,c@example.org"},
        ],
        "credentials": ["richard"],
    },
    "caught.test": {
        "aliases": [*MANY, {"id": 1, "alias": "*", "forward": "all@example.org"}],
        "credentials": [],
    },
}


class Service(BaseHTTPRequestHandler):
    """Two entries a page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        page = int(parse_qs(asked.query)["page"][0])
        _, _, *words = asked.path.split("/")
        value: dict[str, Any]
        if words == ["domains"]:
            found = [{"domain": name, "notification_email": None, "webhook": None} for name in THERE]
            value = {"domains": found[2 * page - 2 : 2 * page], "total": len(found), "page": page}
        elif words[2] == "aliases":
            listed = THERE[words[1]]["aliases"]
            value = {"aliases": listed[2 * page - 2 : 2 * page], "total": len(listed), "page": page}
        else:
            names = THERE[words[1]]["credentials"]
            value = {"credentials": [{"username": name, "usage": 0, "created": 1} for name in names]}
        body = json.dumps(value | {"success": True}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v3"
        server.shutdown()
        thread.join()


async def test_the_program_moves_a_customer_over(tmp_path: Path, service: str) -> None:
    [program] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    async with House(tmp_path) as house, house.engine(), house.api() as nobody:
        assert (await nobody.get("/v3/domains")).status_code == 401
        key = await house.account()
        given = {"FROM_URL": service, "FROM_KEY": "sk", "TO_KEY": key, "PATH": os.environ["PATH"]}
        given["TO_URL"] = f"http://127.0.0.1:{house.api_port}/v3"

        async def run() -> list[str]:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", program],
                env=given,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout.splitlines()

        first = await run()
        async with house.api() as api:
            moved = (await api.get("/v3/domains/moved.test/aliases")).json()["aliases"]
            caught = (await api.get("/v3/domains/caught.test/aliases")).json()["aliases"]
            logins = (await api.get("/v3/domains/moved.test/credentials")).json()["credentials"]
        # Without the `*` that a new domain comes with, and in the order in which they were made there.
        assert [one["alias"] for one in moved] == ["(b.+)", "b(.+)", "hook"]
        assert moved[2]["forward"] == "https://hook.example/x,c@example.org"
        assert {one["alias"]: one["forward"] for one in caught} == {
            "*": "all@example.org",
            "many0": "m0@example.org",
            "many1": "m1@example.org",
            "many2": "m2@example.org",
            "many3": "m3@example.org",
        }
        assert [one["username"] for one in logins] == ["richard"]
        assert re.match(r"moved\.test: alias not copied: .*'forward': 'nowhere'", first[0])
        assert first[1] == "moved.test: 3 of 4 aliases copied"
        assert re.fullmatch(r"moved\.test: richard has the new password [\w-]{20}", first[2])
        assert first[3:] == ["caught.test: 5 of 5 aliases copied"]
        assert await run() == [first[0], first[1], first[3]]  # again: nothing is doubled, no password is new
