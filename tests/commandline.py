"""The command line in this process, as tests type into it."""

import json
from pathlib import Path
from typing import Any

import pytest

from forwarder.cli import app


class Cli:
    """Runs commands in this process against a configuration of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = folder / "config.toml"
        self.capsys = capsys
        self.write(database="")

    def write(self, *, database: str = "", more: str = "") -> None:
        folder = self.config.parent
        self.config.write_text(
            f'hostname = "mx1.example.net"\ndata_dir = "{folder / "data"}"\n'
            f'[database]\nurl = "{database}"\n[mx]\nlisten = ["127.0.0.1:0"]\n[api]\nlisten = "127.0.0.1:0"\n'
            f'[dns]\nnameservers = ["127.0.0.1:1"]\ntimeout = "200ms"\n{more}'
        )

    def __call__(self, *arguments: str, config: bool = True) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        given = [*arguments, *(("--config", str(self.config)) if config else ())]
        with pytest.raises(SystemExit) as ended:
            app(given)
        shown = self.capsys.readouterr()
        status = ended.value.code
        return int(status or 0), shown.out, shown.err

    def json(self, *arguments: str) -> Any:
        status, output, errors = self(*arguments, "--json")
        assert (status, errors) == (0, ""), errors
        return json.loads(output)

    def fails(self, *arguments: str) -> str:
        """The sentence of a command that fails, the same in JSON."""
        status, output, errors = self(*arguments)
        assert status == 1
        assert errors.startswith("forwarder: ")
        assert "Traceback" not in errors
        status, output, in_json = self(*arguments, "--json")
        assert (status, output) == (1, "")
        assert json.loads(in_json)["error"]
        return errors
