"""Imports go one way, and each layer keeps to its business: the contracts of pyproject.toml hold, and what
they can't see."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemon" / "postrider"
SQL = re.compile(
    r"\bSELECT\s|\bINSERT INTO\b|\bUPDATE [\w.]+ (AS \w+ )?SET\b|\bDELETE FROM\b|\bLOCK TABLE\b|\bSET LOCAL\b"
    r"|\b(CREATE|ALTER|DROP) (TABLE|DATABASE|SCHEMA|FUNCTION|INDEX)\b|^\s*((UN)?LISTEN|NOTIFY) "
)
SPEAKS_SQL = ("store", "demo/crm.py")
"""The store; and what plays the CRM."""


def files(*parts: str) -> list[Path]:
    return sorted(path for part in parts for path in (PACKAGE / part).rglob("*.py"))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a module, less docstrings and such, each with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Expr):
                continue
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                yield child.lineno, child.value


def test_imports_go_downward_only() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", ["SELECT 1", "update: UPDATE x.y SET a", "\nDELETE FROM x", "NOTIFY x"])
def test_sql_is_known_when_it_is_seen(text: str) -> None:
    assert SQL.search(text)


def test_only_the_store_has_sql() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text.strip()[:60]}"
        for path in files(".")
        if not str(path.relative_to(PACKAGE)).startswith(SPEAKS_SQL)
        for line, text in texts(path)
        if SQL.search(text)
    ]
    assert not found


def test_the_domain_awaits_nothing_and_asks_no_clock() -> None:
    found = []
    for path in files("domain"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.AsyncFunctionDef() | ast.Await() | ast.Attribute(attr="now" | "utcnow" | "today"):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found
