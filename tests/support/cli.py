"""`postrider` as people run it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Cli:
    def __init__(self, config: Path) -> None:
        self._config = config

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "postrider", *arguments, "--config", str(self._config)]

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        """Run a command; return what it printed: stdout when it is done, stderr when it failed."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if exit_code == 2 else done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))
