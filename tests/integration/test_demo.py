"""postrider demo: as a person runs it, without a terminal, twice in a row."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

DEMO = [sys.executable, "-m", "postrider", "demo"]
FirstRun = tuple[Path, dict[str, Any]]


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary_directory() as path:
        yield path


@pytest.fixture(scope="module")
def first_run() -> Iterator[FirstRun]:
    """Where a demo ran before, and its counts. Each dialect has a database of its own there."""
    with temporary_directory() as path:
        yield path / "demo", run("--data", path / "demo")


@contextmanager
def temporary_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="postrider-demo-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)


def run(*options: object) -> dict[str, Any]:
    command = [*DEMO, "--seconds", "2", "--json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("dialect", ["nodestash", "heffl", "workestra", "stover", "nutshell"])
def test_each_dialects_crm_is_captured_and_verified(first_run: FirstRun, dialect: str) -> None:
    counts = run("--data", first_run[0], "--dialect", dialect, "--rate", "50")
    assert counts["emitted"] > 10
    assert counts["succeeded"] > 5
    assert (counts["lost"], counts["bad_signatures"], counts["set_aside"]) == (0, 0, 0)


def test_it_delivers_everything_twice_in_a_row(first_run: FirstRun) -> None:
    for counts in (first_run[1], run("--data", first_run[0])):
        assert counts["emitted"] > 10
        assert counts["succeeded"] > 10
        assert (counts["lost"], counts["bad_signatures"]) == (0, 0)


def test_ctrl_c_ends_it_cleanly_with_a_summary_and_a_second_one_is_refused_till_then(
    first_run: FirstRun,
) -> None:
    command = [*DEMO, "--data", str(first_run[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "delivered" in line:
                break
        second = subprocess.run([*command, "--seconds", "1"], capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "0 lost" in stdout
    assert second.returncode == 2
    assert "another demo runs" in second.stderr


def test_fresh_starts_over(first_run: FirstRun) -> None:
    (first_run[0] / "data" / "stale").touch()
    run("--data", first_run[0], "--fresh")
    assert not (first_run[0] / "data" / "stale").exists()


def test_a_directory_with_other_things_is_left_alone(directory: Path) -> None:
    (directory / "thesis.txt").write_text("my only copy")
    command = [*DEMO, "--data", str(directory), "--fresh", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert (directory / "thesis.txt").exists()
