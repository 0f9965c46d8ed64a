"""`postrider` as people run it, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.daemon_process import ROOT


class Cli:
    def __init__(
        self, config: Path, *, within: Sequence[str] = (), program: Sequence[str] = ("postrider",)
    ) -> None:
        """`within`: a command that runs it; `program`: the module, and what goes before the command."""
        self.config = config
        self._start = [*within, sys.executable, "-m", *program]

    def command(self, *arguments: str) -> list[str]:
        return [*self._start, *arguments, "--config", str(self.config)]

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        """Run a command; return what it printed: stdout when it is done, stderr when it failed."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if exit_code == 2 else done.stdout

    def fails(self, *arguments: str, exit_code: int = 1) -> str:
        """Run a command that ends with that code; return what it printed on stderr."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == exit_code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))
