"""Time and chance come from `edges` alone: whatever the engine decides can be repeated with a moved clock."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import postrider

PACKAGE = Path(postrider.__file__).parent
FORBIDDEN_MODULES = {"random", "secrets", "time"}
SAMPLE_CRM = "demo/crm.py"
"""Its users do what they like."""
FORBIDDEN_CALLS = {
    "os.urandom",
    "uuid.uuid1",
    "uuid.uuid4",
    "uuid1",
    "uuid4",
    "datetime.now",
    "datetime.today",
    "datetime.utcnow",
    "date.today",
}
OF_A_LOOP = ("loop.time", "loop().time", ".call_later", ".call_at")


def sources() -> list[Path]:
    layers = ("cli", "admin", "demo", "operations", "app", "engine", "store", "domain")
    found = {path for layer in layers for path in (PACKAGE / layer).rglob("*.py")}
    assert len(found) > 50
    return sorted(found - {PACKAGE / SAMPLE_CRM})


def misuses(tree: ast.Module) -> Iterator[str]:
    """What takes the time, waits, or draws by itself; each with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {each.name}" for each in names if _forbidden(each.name))
            case ast.ImportFrom(module=str(module)) if _forbidden(module):
                yield f"{node.lineno}: from {module}"
            case ast.Call(func=function):
                name = ast.unparse(function)
                asleep = name == "asyncio.sleep" and ast.unparse(node.args[0]) != "0"
                if asleep or name in FORBIDDEN_CALLS or name.endswith(OF_A_LOOP):
                    yield f"{node.lineno}: {ast.unparse(node)}"


def _forbidden(module: str) -> bool:
    return module.partition(".")[0] in FORBIDDEN_MODULES


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_time_and_chance_come_from_the_edges(path: Path) -> None:
    assert list(misuses(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from time import monotonic",
        "import secrets as chance",
        "from random import random",
        "async def f():\n    await asyncio.sleep(0.1)",
        "datetime.now(UTC)",
        "uuid.uuid4()",
        "os.urandom(12)",
        "loop.call_later(1, f)",
        "asyncio.get_running_loop().time()",
    ],
)
def test_what_would_be_neither_is_found(code: str) -> None:
    assert len(list(misuses(ast.parse(code)))) == 1


def test_letting_others_have_a_turn_takes_no_time() -> None:
    assert list(misuses(ast.parse("async def f():\n    await asyncio.sleep(0)"))) == []
