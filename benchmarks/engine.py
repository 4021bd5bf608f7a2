"""This engine, started as a user starts it: a configuration file, ``forwarder serve``, aliases through the API."""

import atexit
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import wait_for_port
from benchmarks.sink import SINK_PORT

ACCOUNT = "owner@owner.test"
DOMAIN = "fwd.test"


class Engine:
    """One engine in ``root``.

    ``settings`` are environment forms (``MX__LISTEN`` …) laid over the benchmark's configuration, which does the
    peer's job and no more: aliases, SRS, one RSA-2048 signature by the service, everything to one next hop.
    ``config`` is the text of config.toml, for what has no environment form. ``python`` is another interpreter of the
    same version to run it with.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int,
        name: str = "Forwarder",
        database_url: str = "",
        settings: Mapping[str, str] | None = None,
        config: str = "",
        python: str = sys.executable,
    ) -> None:
        self.root, self.port, self.name = root, port, name
        self.api_port = port + 1
        self.database_url = database_url
        self.key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._config = config
        self._python = python
        self._settings = {
            "HOSTNAME": "mx.fwd.test",
            "DATA_DIR": str(root / "data"),
            "DATABASE__URL": database_url or f"sqlite:///{root}/data/forwarder.db",
            "MX__LISTEN": json.dumps([f"127.0.0.1:{port}"]),
            "MX__CONNECTIONS_PER_CLIENT": "0",
            "MX__CONNECTIONS_PER_MINUTE": "0",
            "MX__SIZE_LIMIT": "50 MiB",
            "MX__JUNK_COMMANDS": "0",
            "SUBMISSION__LISTEN": "[]",
            "SUBMISSION__LISTEN_TLS": "[]",
            "API__RATE": "0",
            "API__LISTEN": f"127.0.0.1:{self.api_port}",
            "OUTBOUND__SMARTHOST": f"127.0.0.1:{SINK_PORT}",
            "OUTBOUND__ALLOW_PRIVATE_DESTINATIONS": "true",
            "SRS__DOMAIN": "mx.fwd.test",
            "DKIM__ALGORITHMS": '["rsa"]',
            "ARC__ENABLED": "false",
            "SCREENING__SPF": "false",
            "SCREENING__DKIM": "false",
            "SCREENING__DMARC": "false",
            **(settings or {}),
        }

    def start(self, *, fresh: bool = True) -> float:
        """Start and wait until mail is taken; returns the seconds that took. ``fresh`` begins with an empty store."""
        if fresh:
            shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "config.toml").write_text(self._config)
        if fresh:
            self._migrate()
        started = time.monotonic()
        atexit.register(self.stop)  # however a run is broken off
        with (self.root / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("serve"), env=self._environment(), stdout=log, stderr=log
            )
        wait_for_port(self.port, seconds=30)
        ready = time.monotonic() - started
        wait_for_port(self.api_port, seconds=30)
        if fresh:
            self._populate()
        return ready

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=40)
            self._process = None

    def roots(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def command(self, *words: str) -> Any:
        """One ``forwarder … --json`` against this engine's store."""
        done = subprocess.run(
            self._command(*words, "--json"), env=self._environment(), capture_output=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"forwarder {' '.join(words)}: {done.stderr.decode() or done.stdout.decode()}")
        return json.loads(done.stdout)

    def queued(self) -> int:
        return len(self.command("queue", "list").get("deliveries", []))

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """One request to the API with the account's key."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.api_port}/v3{path}", method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(f"api:{self.key}".encode()).decode())
        data = None
        if body is not None:
            request.add_header("Content-Type", "application/json")
            data = json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            return json.load(answer)

    def add_aliases(self, domain: str, pairs: Sequence[tuple[str, str]]) -> None:
        for start in range(0, len(pairs), 500):
            rows = [{"alias": alias, "forward": forward} for alias, forward in pairs[start : start + 500]]
            answer = self.call(
                "POST", f"/domains/{domain}/aliases/bulk", {"aliases": rows, "behavior": "update"}
            )
            if answer["failed"]:
                raise RuntimeError(f"the API refused aliases: {answer['failed'][:3]}")

    def _populate(self) -> None:
        self.key = self.command("account", "create", ACCOUNT)["api_key"]
        self.command("domain", "add", DOMAIN, "--account", ACCOUNT)
        pairs = [(f"alias{n}", f"user{n}@dest.test") for n in range(1, 1001)]
        pairs += [(f"{n}alias7", f"user{n}@dest.test") for n in range(1, 51)]
        self.add_aliases(DOMAIN, [*pairs, ("*", "catchall@dest.test")])

    def _migrate(self) -> None:
        self.command("migrate")

    def _command(self, *words: str) -> list[str]:
        return [self._python, "-m", "forwarder", *words, "--config", str(self.root / "config.toml")]

    def _environment(self) -> dict[str, str]:
        forms = {f"FORWARDER_{key}": value for key, value in self._settings.items()}
        if self._python != sys.executable:  # it has none of the packages
            forms["PYTHONPATH"] = sysconfig.get_path("platlib")
        return {**os.environ, **forms}
