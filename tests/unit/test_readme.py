"""What the README names is there: files, modules and commands."""

import re
from pathlib import Path

import click
import pytest

from postrider.cli import cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PATHS = sorted(set(re.findall(r"`([a-z_]+/[\w./]+)`", TEXT)))
COMMANDS = sorted(set(re.findall(r"(?:`|^)postrider ((?:[a-z-]+)(?: [a-z-]+)?)", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("path", PATHS)
def test_a_file_or_module_that_is_named_exists(path: str) -> None:
    places = (ROOT / path, ROOT / "daemon/postrider" / path, ROOT / "daemon/postrider" / f"{path}.py")
    assert any(each.exists() for each in places)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_that_is_named_exists(words: str) -> None:
    command: click.Command | None = cli
    for word in words.split():
        if not isinstance(command, click.Group):
            return  # an argument
        command = command.get_command(click.Context(command), word)
        assert command is not None


def test_something_is_named() -> None:
    assert len(PATHS) > 30
    assert len(COMMANDS) > 20
