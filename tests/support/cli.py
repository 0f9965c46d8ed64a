"""`postrider` as people run it, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.daemon_process import ROOT
from tests.support.forked import run_postrider

_PROGRAM = ("postrider",)


class Cli:
    def __init__(
        self, config: Path, *, within: Sequence[str] = (), program: Sequence[str] = _PROGRAM
    ) -> None:
        """`within`: a command that runs it; `program`: the module, and what goes before the command."""
        self.config = config
        self._start = [*within, sys.executable, "-m", *program]
        self._ordinary = not within and program == _PROGRAM

    def command(self, *arguments: str) -> list[str]:
        return [*self._start, *arguments, "--config", str(self.config)]

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        """Run a command; return what it printed: stdout when it is done, stderr when it failed."""
        out, err = self._run(arguments, exit_code)
        return err if exit_code == 2 else out

    def fails(self, *arguments: str, exit_code: int = 1) -> str:
        """Run a command that ends with that code; return what it printed on stderr."""
        return self._run(arguments, exit_code)[1]

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def _run(self, arguments: Sequence[str], exit_code: int) -> tuple[str, str]:
        if self._ordinary:
            code, out, err = run_postrider([*arguments, "--config", str(self.config)])
        else:
            done = subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == exit_code, out + err
        assert "Traceback" not in err
        return out, err
