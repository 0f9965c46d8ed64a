"""Processes forked from one that has imported what they need: imports are most of a short process' time."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "pytest",  # each process imports what its parent was started with
    "tests.support.receiver",
    *(f"postrider.cli.{name}" for name in ("check", "dialect", "emit", "endpoint", "event", "status")),
    *(f"postrider.cli.{name}" for name in ("capture", "delivery", "migrate", "common")),
    "postrider.edges.network",
    "rich.table",
])  # fmt: skip


def run_postrider(arguments: Sequence[str]) -> tuple[int, str, str]:
    """The command in a process of its own: its exit code, and what it wrote to stdout and stderr."""
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = CONTEXT.Process(target=_postrider, args=(arguments, dict(os.environ), out, err))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, out.read_text(), err.read_text()


def _postrider(arguments: Sequence[str], environ: Mapping[str, str], out: Path, err: Path) -> None:
    from postrider.cli import main

    os.environ.clear()
    os.environ.update(environ)
    for number, (path, mode) in enumerate(
        [(Path(os.devnull), os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT), (err, os.O_WRONLY | os.O_CREAT)]
    ):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["postrider", *arguments]
    main()
