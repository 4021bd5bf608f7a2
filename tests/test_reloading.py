"""What the systemd unit runs at a reload, run against an engine."""

import asyncio
import os
import shlex
import socket
import sys
from pathlib import Path

import pytest

from tests.free_ports import free_port
from tests.harness import EngineProcess, House, as_environment, wait_until

UNIT = Path(__file__).parent.parent / "deploy" / "forwarder.service"


class Unit:
    """The commands of the unit, with the engine of a test in the place of the one that is installed."""

    def __init__(self, engine: EngineProcess, file: Path) -> None:
        self._engine = engine
        self._file = file
        lines = UNIT.read_text().splitlines()
        self._commands = [line.partition("=")[2] for line in lines if line.startswith("ExecReload=")]

    async def reload(self) -> tuple[int, str]:
        """As systemd does it: one command after the other, up to the first that fails; its status, and what it said."""
        values = self._engine.values
        environ = {key: value for key, value in os.environ.items() if not key.startswith("FORWARDER_")}
        for command in self._commands:
            words = shlex.split(
                command.replace("/opt/forwarder/bin/forwarder", f"{sys.executable} -m forwarder")
                .replace("/etc/forwarder/config.toml", str(self._file))
                .replace("$MAINPID", str(self._engine.process.pid))
            )
            run = await asyncio.create_subprocess_exec(
                *words,
                env=environ | as_environment(values),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await run.communicate()
            if run.returncode:
                return run.returncode, said.decode()
        return 0, ""


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_reload_of_what_cannot_be_used_fails_and_is_not_begun(
    house: House, tmp_path: Path, processes: int
) -> None:
    file = tmp_path / "config.toml"
    engine = EngineProcess(house, environ={"FORWARDER_CONFIG": str(file)}, workers={"processes": processes})
    tls, _ = engine.values.pop("tls"), engine.values["api"].pop("listen")  # the environment would win
    old, port = f"127.0.0.1:{free_port()}", free_port()
    good = f'[api]\nlisten = "{old}"\n[tls]\ncertificate = "{tls["certificate"]}"\nkey = "{tls["key"]}"\n'
    unit = Unit(engine, file)
    with socket.create_server(("127.0.0.1", port)) as taken:
        mistakes = {
            good + '[mx]\nsize_limit = "much"\n': (2, "size_limit"),
            good + "[mx]\nsise_limit = 1\n": (2, "sise_limit"),
            good.replace(old, f"127.0.0.1:{port}"): (1, f"cannot listen on 127.0.0.1:{port}"),
            good.replace(tls["key"], "/nowhere/k.pem"): (1, "/nowhere/k.pem"),
            good + '[dkim]\nselector = "other"\n': (1, "dkim-other1.pem"),
        }
        file.write_text(good)
        async with engine:
            for text, (status, reason) in mistakes.items():
                file.write_text(text)
                code, said = await unit.reload()
                assert (code, said.startswith("forwarder: "), reason in said) == (status, True, True), said
            taken.close()
            file.write_text(good.replace(old, f"127.0.0.1:{port}"))
            assert await unit.reload() == (0, "")
            await wait_until(lambda: engine.log().count("in force") == processes)
            assert await unit.reload() == (0, "")  # its own ports are no mistake
            await wait_until(lambda: engine.log().count("is unchanged") == processes)
            assert "stays" not in engine.log()


async def test_a_data_dir_in_which_no_engine_runs_is_no_reload(house: House, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    engine = EngineProcess(house)
    async with engine:
        engine.values["data_dir"] = str(tmp_path / "elsewhere")
        code, said = await Unit(engine, file).reload()
    assert (code, "changed by a restart" in said) == (1, True)
