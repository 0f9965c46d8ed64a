"""The programs of `node/`, with the npm packages that they need."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import Lines, RegistryUnreachableError, npm_install

_SOURCES = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def node_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the programs of `node/` and their packages from the npm registry."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copytree(_SOURCES, directory, dirs_exist_ok=True)
    try:
        npm_install(directory)
    except RegistryUnreachableError as error:
        pytest.skip(str(error))
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
