"""What deploy/ says, held against what the engine needs: read, and its health check run."""

import json
import os
import re
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from forwarder.config import Settings
from forwarder.node import BOOT_ID
from forwarder.supervisor import PATIENCE

DEPLOY = Path(__file__).parent.parent / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The last stage of the Dockerfile: each instruction and its words, lines joined and comments left out."""
    text = (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines()[1:] if line]


def test_the_data_folder_of_the_image_is_its_users_before_it_is_a_volume() -> None:
    found = instructions()
    words = dict(found)
    data = f"{words['WORKDIR']}/{Settings(hostname='mx.test').data_dir}"
    assert words["VOLUME"] == data
    made = next(at for at, (kind, said) in enumerate(found) if kind == "RUN" and f"-m 700 {data}" in said)
    said = found[made][1]
    assert said.index("useradd") < said.index(f"install -d -o {words['USER']} -g {words['USER']}")
    order = [kind for kind, _ in found]
    assert made < order.index("USER")  # only root may give a folder away
    assert made < order.index("VOLUME")  # what is changed in a volume after its declaration is lost


def test_the_containers_mount_their_volume_where_the_image_has_its_data() -> None:
    compose = (DEPLOY / "compose.yaml").read_text()
    assert f'volumes: ["engine:{dict(instructions())["VOLUME"]}"]' in compose
    assert "\n    user:" not in compose  # another than the image's could not write there


def test_the_password_that_the_containers_ask_for_means_itself_in_a_url() -> None:
    """Others than / and @ do not: a # or ? ends it, and %41 is an A."""
    compose = (DEPLOY / "compose.yaml").read_text()
    assert (
        "postgresql://forwarder:${POSTGRES_PASSWORD:?a password of letters and digits}@database/" in compose
    )


def test_every_command_of_compose_finds_the_variables_it_asks_for() -> None:
    """Each reads the whole file, `exec` too: what was given to `up` alone is not there any more."""
    lines = (DEPLOY / "compose.yaml").read_text().splitlines()
    asked = {name for line in lines if "#" not in line for name in re.findall(r"\$\{(\w+)", line)}
    (written,) = [line for line in lines if line.endswith("> deploy/.env)")]
    assert set(re.findall(r"([A-Z_]+)=", written)) == asked
    shown = "\n".join([*lines, (DEPLOY.parent / "README.md").read_text()])
    assert not re.search(r"\w=\S+ docker compose", shown)
    for ignored in (".gitignore", ".dockerignore"):  # it holds a password
        assert [line for line in (DEPLOY.parent / ignored).read_text().splitlines() if line.endswith(".env")]


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_engine_and_no_proxy(answer: int, status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    command = json.loads(dict(instructions())["HEALTHCHECK"].partition(" CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        done = subprocess.run(
            [sys.executable, *(part.replace("8080", str(server.server_port)) for part in command[1:])],
            env=os.environ
            | {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1", "no_proxy": ""},
            stderr=subprocess.DEVNULL,
        )
        server.shutdown()
        thread.join()
    assert done.returncode == status


def test_the_unit_gives_the_engine_the_time_it_takes_to_start_and_to_end() -> None:
    unit = (DEPLOY / "forwarder.service").read_text().splitlines()
    assert "TimeoutStartSec=infinity" in unit  # it may wait for a database for hours
    (to_stop,) = [line for line in unit if line.startswith("TimeoutStopSec=")]
    assert int(re.sub(r"\D", "", to_stop)) > PATIENCE
    (in_containers,) = re.findall(r"stop_grace_period: (\d+)s", (DEPLOY / "compose.yaml").read_text())
    assert int(in_containers) > PATIENCE


def test_who_installs_by_the_readme_does_what_the_unit_says() -> None:
    """Under the umask that the steps are for, and in their order."""
    head = (DEPLOY / "forwarder.service").read_text().partition("[Unit]")[0]
    steps = [line.removeprefix("#   ") for line in head.splitlines() if line.startswith("#   ")]
    readme = (DEPLOY.parent / "README.md").read_text().splitlines()
    found = [next(at for at, line in enumerate(readme) if line.startswith(step)) for step in steps]
    assert found == sorted(found)
    assert steps[0] == "umask 022"


def says(*version: int, optimised: bool = True, venv: bool = True) -> dict[str, Any]:
    return {"version": list(version), "optimised": optimised, "venv": venv}


@pytest.mark.parametrize(
    ("first", "distributions", "taken"),
    [
        (says(3, 12), says(3, 11), "python3"),  # whoever optimised his own has chosen it
        (says(3, 12, optimised=False), says(3, 11), "/usr/bin/python3"),
        (says(3, 10), says(3, 11), "/usr/bin/python3"),
        (None, says(3, 13), "/usr/bin/python3"),
        (says(3, 12, optimised=False), says(3, 9), "python3"),
        (says(3, 12, optimised=False), says(3, 11, venv=False), "python3"),  # Debian without python3-venv
        (says(3, 12, optimised=False), None, "python3"),
        (None, None, "python3"),  # make says what is missing
    ],
)
def test_make_takes_the_distributions_python_before_one_that_nobody_optimised(
    first: dict[str, Any] | None, distributions: dict[str, Any] | None, taken: str
) -> None:
    script = runpy.run_path(str(DEPLOY / "interpreter.py"))
    assert script["chosen"](first, distributions) == taken


def test_an_interpreter_is_asked_what_it_is_and_one_that_is_not_there_is_none(tmp_path: Path) -> None:
    script = runpy.run_path(str(DEPLOY / "interpreter.py"))
    assert script["asked"](sys.executable)["version"] == list(sys.version_info[:2])
    assert script["asked"](str(tmp_path / "python3")) is None
    # of itself; a virtual environment is as its Python was built
    (tmp_path / "python3").symlink_to(sys.executable)
    assert script["asked"](str(tmp_path / "python3")) == script["asked"](sys.executable)


def test_what_make_would_take_can_run_the_engine() -> None:
    root = DEPLOY.parent
    said = subprocess.run(
        [sys.executable, "deploy/interpreter.py"], cwd=root, capture_output=True, text=True, check=True
    )
    python = said.stdout.strip()
    assert (python in said.stderr) is (python != "python3")
    # as the Makefile has it, where .venv is not made yet
    shown = subprocess.run(
        ["make", "--dry-run", "VENV=not-made", "not-made/bin/python"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{python} -m venv not-made" in shown.stdout


def test_the_unit_shows_the_engine_what_it_reads_of_the_machine() -> None:
    """Without it two machines of one image may take each other's deliveries, and /metrics lacks the process."""
    unit = (DEPLOY / "forwarder.service").read_text().splitlines()
    assert BOOT_ID.parts[:3] == ("/", "proc", "sys")
    assert not [line for line in unit if line.startswith("ProcSubset=")]
