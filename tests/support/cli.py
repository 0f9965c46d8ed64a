"""`postrider` as people run it, in a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.forked import run_postrider


class Cli:
    def __init__(self, config: Path) -> None:
        self._config = config

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "postrider", *arguments, "--config", str(self._config)]

    def __call__(self, *arguments: str, exit_code: int = 0) -> str:
        """Run a command; return what it printed: stdout when it is done, stderr when it failed."""
        code, out, err = run_postrider([*arguments, "--config", str(self._config)])
        assert code == exit_code, out + err
        assert "Traceback" not in err
        return err if exit_code == 2 else out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))
