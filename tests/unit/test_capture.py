"""Capture sections: every mistake is told with its path."""

import tomllib
from pathlib import Path

import pytest

from postrider.domain.capture import Column, Constant, Fields, Lookup
from postrider.domain.capture_sections import parse_captures
from postrider.edges.config import parse_config
from postrider.edges.resources import config_dir

SECTION: dict[str, object] = {"table": "crm.deals", "object_type": "deal", "columns": ["id", "title"]}
MISTAKES = {
    'tabel = "x"': "capture[0].tabel: unknown; known here: table, object_type",
    "table = 5": "capture[0].table: expected a table, as in crm.deals",
    'table = "crm.My deals"': 'capture[0].table: expected a table, as in crm.deals or crm."My',
    "table = 'crm.\"My deals'": "capture[0].table: expected a table",
    'table = ""': "capture[0].table: expected a table",
    'columns.a = { table = "t t", where = { a = "b" }, column = "c" }': "capture[0].columns.a.table:",
    "events = { truncated = 1 }": "capture[0].events.truncated: expected true, false or an event type",
    'object_type = "a b"': "capture[0].object_type: expected an object type such as deal, found 'a b'",
    'name = "Deal!"': "capture[0].name: expected up to 40 lower-case letters",
    "key = []": "capture[0].key: expected a column, or a list of them",
    "columns = []": "capture[0].columns: expected a list of columns",
    "columns.a = 5": "capture[0].columns.a: expected a column, or a table that says what",
    'columns.a = { colum = "x" }': "capture[0].columns.a.colum: unknown",
    'columns.a = { table = "t", column = "c" }': "capture[0].columns.a.where: expected a table such as",
    'columns.a = { table = "t", where = { a = "b" } }': "capture[0].columns.a: expected either columns",
    'columns.a = { setting = "user id" }': "capture[0].columns.a.setting: expected a setting such",
    'columns.a = { json = "nul" }': "capture[0].columns.a.json: expected JSON text",
    'columns.a = { value = 1, column = "x" }': "capture[0].columns.a.column: unknown",
    'timestamps = "iso"': 'capture[0].timestamps: expected one of "seconds"',
    "events = { created = 5 }": "capture[0].events.created: expected true, false or an event type",
    "events = { create = false }": "capture[0].events.create: unknown; known here: created, updated, deleted",
    'derived = [{ type = "deal.won" }]': "capture[0].derived[0].column: expected a name, found nothing",
    'derived = [{ type = "deal won", column = "s" }]': "capture[0].derived[0].type: expected an event type",
    'derived = [{ type = "d.w", column = "s", when = "becomes" }]': "capture[0].derived[0].when: expected",
    'derived = [{ type = "d.w", column = "s", becomes = [] }]': "capture[0].derived[0].becomes: expected",
    'derived = [{ type = "d.w", column = "s", instead = "yes" }]': "capture[0].derived[0].instead: expected",
    'derived = [{ type = "d.w", column = "s", increases = ["a"] }]': "capture[0].derived[0].increases: exp",
    'derived = [{ type = "d.w", column = "s", increases = [1, 1] }]': "capture[0].derived[0].increases: exp",
    'derived = [{ type = "d.w", column = "s", when = "increases" }]': "capture[0].derived[0].when: expected",
    'derived = [{ type = "d.w", column = "s", increases = [1, 2], becomes = 2 }]': (
        "capture[0].derived[0].when: expected becomes = …, increases = […], or one of"
    ),
    'derived = [{ type = "d.w", column = "s", increases = [1, 2], on_insert = true }]': (
        "capture[0].derived[0].on_insert: expected false, since a new row had no value before"
    ),
    'columns.a = { columns = ["x"], if_set = 5 }': "capture[0].columns.a.if_set: expected a name, found 5",
    'columns.a = { table = "t", where = { a = "b" }, column = "c", many = true, keep_deleted = true }': (
        "capture[0].columns.a.keep_deleted: expected a lookup of one row"
    ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_with_its_path(line: str) -> None:
    section = dict(SECTION)
    if line.startswith("columns."):
        del section["columns"]
    captures, mistakes = parse_captures([{**section, **tomllib.loads(line)}])
    assert not captures
    assert any(mistake.startswith(MISTAKES[line]) for mistake in mistakes), mistakes


def test_all_mistakes_are_told_at_once() -> None:
    _, mistakes = parse_captures([{"table": "a"}, {"object_type": "deal", "key": 5}])
    assert {mistake.split(":")[0] for mistake in mistakes} == {
        "capture[0].object_type",
        "capture[0].columns",
        "capture[0].name",
        "capture[1].table",
        "capture[1].key",
        "capture[1].columns",
    }
    assert parse_captures({"table": "a"}) == ((), ["capture: expected sections [[capture]]"])


def test_two_sections_of_one_name_are_refused() -> None:
    _, mistakes = parse_captures([SECTION, SECTION])
    assert mistakes == ["capture[1].name: expected a name of its own, found a second 'deal'"]


def test_entries() -> None:
    text = """
    a = "x"
    b = { json = "null" }
    c = { columns = { d = { column = "at", timestamps = "unix" } } }
    e = { table = "t", where = { id = "x" }, column = "y", many = true }
    f = { if_set = "at", columns = ["x"] }
    g = { table = "t", where = { id = "x" }, column = "y", keep_deleted = true }
    """
    (capture,), mistakes = parse_captures([{**SECTION, "columns": tomllib.loads(text)}])
    assert not mistakes
    assert capture.columns == Fields(
        {
            "a": Column("x"),
            "b": Constant(None),
            "c": Fields({"d": Column("at", "unix")}),
            "e": Lookup("t", {"id": Column("x")}, Column("y"), many=True),
            "f": Fields({"x": Column("x")}, if_set="at"),
            "g": Lookup("t", {"id": Column("x")}, Column("y"), keep_deleted=True),
        }
    )
    assert capture.event_types == ["deal.created", "deal.updated", "deal.deleted"]


@pytest.mark.parametrize("path", sorted((config_dir() / "crms").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_examples_are_valid(path: Path) -> None:
    config = parse_config(tomllib.loads(path.read_text()), str(path))
    assert config.dialect.default == path.stem
    assert config.capture
