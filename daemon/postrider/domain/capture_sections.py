"""Reads the capture sections of a configuration, and notes every mistake with its path."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from postrider.domain.capture import (
    OPERATIONS,
    Capture,
    Column,
    Constant,
    Derived,
    Entry,
    Fields,
    Lookup,
    Operation,
    Scalar,
    Setting,
    Timestamps,
    When,
)
from postrider.domain.matching import MAX_PATTERN_LENGTH

_IDENTIFIER = r'\s*(?:[A-Za-z_\u0080-\U0010ffff][\w$\u0080-\U0010ffff]*|"(?:[^"]|"")+")\s*'
_TABLE = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})?", re.ASCII)
"""As SQL writes it."""
_TABLE_EXAMPLE = 'a table, as in crm.deals or crm."My deals"'
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_.]*")
_OBJECT_TYPE = re.compile(r"(?=.{1,128}$)[a-zA-Z0-9_]+(?:\.[a-zA-Z0-9_]+)*")
"""No longer than `emit` takes it."""
_TYPE = re.compile(r"[a-zA-Z0-9_]+(?:\.[a-zA-Z0-9_]+)*")


def parse_captures(sections: Any) -> tuple[tuple[Capture, ...], list[str]]:
    """The captures of a configuration, and every mistake with its path."""
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        return (), ["capture: expected sections [[capture]]"]
    captures: list[Capture] = []
    mistakes: list[str] = []
    for index, section in enumerate(sections):
        reader = _Reader(f"capture[{index}]")
        capture = reader.capture(section)
        mistakes += reader.mistakes
        if capture is not None and not reader.mistakes:
            if any(capture.name == other.name for other in captures):
                mistakes.append(
                    f"capture[{index}].name: expected a name of its own, found a second {capture.name!r}"
                )
            captures.append(capture)
    return tuple(captures), mistakes


class _Reader:
    """Reads one section and notes every mistake."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.mistakes: list[str] = []

    def capture(self, section: Mapping[str, Any]) -> Capture | None:
        path = self.path
        self._known(
            section,
            path,
            "table object_type name key object_id workspace timestamps columns actor related events derived",
        )
        table = self._text(section, "table", path, _TABLE, _TABLE_EXAMPLE)
        object_type = self._text(section, "object_type", path, _OBJECT_TYPE, "an object type such as deal")
        default_name = (object_type or "").replace(".", "_").lower()
        name = section.get("name", default_name)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._expected(f"{path}.name", "up to 40 lower-case letters, digits and _", name)
        captured = Capture(
            name=str(name),
            table=table or "",
            object_type=object_type or "",
            key=self._key(section.get("key", "id"), f"{path}.key"),
            object_id=self._optional_entry(section, "object_id", path),
            workspace=self._optional_entry(section, "workspace", path) or Constant("default"),
            timestamps=self._timestamps(section.get("timestamps", "seconds"), f"{path}.timestamps"),
            columns=self._fields(section.get("columns"), f"{path}.columns"),
            actor=self._optional_entry(section, "actor", path),
            related=(self._fields(section["related"], f"{path}.related") if "related" in section else None),
            events=self._events(section.get("events", {}), object_type or "", f"{path}.events"),
            derived=self._all_derived(section.get("derived", []), f"{path}.derived"),
            section=section,
        )
        return captured if not self.mistakes else None

    def _entry(self, value: Any, path: str) -> Entry:
        if isinstance(value, str):
            return Column(value)
        if not isinstance(value, dict) or not value:
            self._expected(path, "a column, or a table that says what", value)
            return Constant(None)
        kinds: dict[str, Callable[[], Entry]] = {
            "value": lambda: self._constant(value, path),
            "json": lambda: self._json(value, path),
            "setting": lambda: self._setting(value, path),
            "table": lambda: self._lookup(value, path),
            "columns": lambda: self._object(value, path),
        }
        read = next((read for kind, read in kinds.items() if kind in value), None)
        return read() if read else self._column(value, path, "column timestamps")

    def _constant(self, value: Mapping[str, Any], path: str) -> Entry:
        self._known(value, path, "value")
        return Constant(value["value"])

    def _json(self, value: Mapping[str, Any], path: str) -> Entry:
        self._known(value, path, "json")
        try:
            return Constant(json.loads(value["json"]))
        except (TypeError, ValueError):
            self._expected(f"{path}.json", "JSON text such as 'null'", value["json"])
            return Constant(None)

    def _setting(self, value: Mapping[str, Any], path: str) -> Entry:
        self._known(value, path, "setting")
        return Setting(self._text(value, "setting", path, _SETTING, "a setting such as crm.user_id") or "")

    def _object(self, value: Mapping[str, Any], path: str) -> Entry:
        self._known(value, path, "columns if_set")
        return Fields(
            self._fields(value["columns"], f"{path}.columns").entries,
            self._text(value, "if_set", path) if "if_set" in value else None,
        )

    def _column(self, value: Mapping[str, Any], path: str, known: str) -> Column:
        self._known(value, path, known)
        timestamps = value.get("timestamps")
        return Column(
            self._text(value, "column", path) or "",
            self._timestamps(timestamps, f"{path}.timestamps") if timestamps is not None else None,
        )

    def _lookup(self, value: Mapping[str, Any], path: str) -> Entry:
        known = "table where many order keep_deleted columns column timestamps"
        self._known(value, path, known)
        where = value.get("where")
        if not isinstance(where, dict) or not where:
            self._expected(f"{path}.where", 'a table such as { id = "client_id" }', where)
            where = {}
        if ("columns" in value) == ("column" in value):
            self._expected(path, "either columns or column", "both or none")
            return Constant(None)
        entry = (
            self._fields(value["columns"], f"{path}.columns")
            if "columns" in value
            else self._column(value, path, known)
        )
        self._flags(value, path, "many", "keep_deleted")
        if value.get("many") and value.get("keep_deleted"):
            self._expected(f"{path}.keep_deleted", "a lookup of one row, so without many", True)
        return Lookup(
            table=self._text(value, "table", path, _TABLE, _TABLE_EXAMPLE) or "",
            where={name: self._entry(each, f"{path}.where.{name}") for name, each in where.items()},
            entry=entry,
            many=bool(value.get("many", False)),
            order=self._text(value, "order", path) if "order" in value else None,
            keep_deleted=bool(value.get("keep_deleted", False)),
        )

    def _fields(self, value: Any, path: str) -> Fields:
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return Fields({name: Column(name) for name in value})
        if not isinstance(value, dict) or not value:
            self._expected(path, "a list of columns, or a table from a name to a column", value)
            return Fields({})
        return Fields({name: self._entry(each, f"{path}.{name}") for name, each in value.items()})

    def _optional_entry(self, section: Mapping[str, Any], name: str, path: str) -> Entry | None:
        return self._entry(section[name], f"{path}.{name}") if name in section else None

    def _events(self, value: Any, object_type: str, path: str) -> dict[Operation, str]:
        if not isinstance(value, dict):
            self._expected(path, "a table such as { deleted = false }", value)
            return {}
        self._known(value, path, " ".join(OPERATIONS))
        events: dict[Operation, str] = {}
        for operation in OPERATIONS:
            chosen = value.get(operation, operation != "truncated")
            if chosen is True:
                events[operation] = f"{object_type}.{operation}"
            elif isinstance(chosen, str):
                events[operation] = self._type(chosen, f"{path}.{operation}")
            elif chosen is not False:
                self._expected(f"{path}.{operation}", "true, false or an event type", chosen)
        return events

    def _all_derived(self, value: Any, path: str) -> tuple[Derived, ...]:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._expected(path, "sections [[capture.derived]]", value)
            return ()
        return tuple(self._derived(each, f"{path}[{index}]") for index, each in enumerate(value))

    def _derived(self, value: Mapping[str, Any], path: str) -> Derived:
        self._known(value, path, "type column when becomes increases instead on_insert")
        self._flags(value, path, "instead", "on_insert")
        implied = next((each for each in ("becomes", "increases") if each in value), "changes")
        values: list[Scalar] = []
        if implied == "becomes":
            becomes = value["becomes"]
            values = self._scalars(becomes if isinstance(becomes, list) else [becomes], f"{path}.becomes")
        elif implied == "increases":
            values = self._scalars(value["increases"], f"{path}.increases", in_order=True)
            if value.get("on_insert") is True:
                self._expected(f"{path}.on_insert", "false, since a new row had no value before", True)
        when = value.get("when", implied)
        listed = {"becomes", "increases"}
        contradicts = listed <= set(value) or (implied != when and bool(listed & {implied, when}))
        if when not in get_args(When) or contradicts:
            self._expected(
                f"{path}.when", 'becomes = …, increases = […], or one of "changes", "set", "cleared"', when
            )
        return Derived(
            type=self._type(value.get("type"), f"{path}.type"),
            column=self._text(value, "column", path) or "",
            when=when,
            values=tuple(values),
            instead=bool(value.get("instead", False)),
            on_insert=bool(value.get("on_insert", False)),
        )

    def _scalars(self, value: Any, path: str, *, in_order: bool = False) -> list[Scalar]:
        fits = isinstance(value, list) and bool(value) and all(isinstance(each, Scalar) for each in value)
        if in_order and fits:
            fits = len(value) == len(set(value)) > 1
        if not fits:
            what = "two or more values, the lowest first" if in_order else "a value, or a list of them"
            self._expected(path, what, value)
            return []
        return list(value)

    def _key(self, value: Any, path: str) -> tuple[str, ...]:
        columns = [value] if isinstance(value, str) else value
        if not isinstance(columns, list) or not columns or not all(isinstance(each, str) for each in columns):
            self._expected(path, "a column, or a list of them", value)
            return ()
        return tuple(columns)

    def _timestamps(self, value: Any, path: str) -> Timestamps:
        if value not in get_args(Timestamps):
            self._expected(path, "one of " + ", ".join(f'"{each}"' for each in get_args(Timestamps)), value)
        return value  # type: ignore[no-any-return]

    def _type(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not _TYPE.fullmatch(value) or len(value) > MAX_PATTERN_LENGTH:
            self._expected(path, "an event type such as deal.won", value)
        return str(value)

    def _text(
        self,
        table: Mapping[str, Any],
        name: str,
        path: str,
        pattern: re.Pattern[str] | None = None,
        what: str = "a name",
    ) -> str | None:
        value = table.get(name)
        if isinstance(value, str) and value and (pattern is None or pattern.fullmatch(value)):
            return value
        self._expected(f"{path}.{name}", what, value)
        return None

    def _flags(self, table: Mapping[str, Any], path: str, *names: str) -> None:
        for name in names:
            if not isinstance(table.get(name, False), bool):
                self._expected(f"{path}.{name}", "true or false", table[name])

    def _known(self, table: Mapping[str, Any], path: str, known: str) -> None:
        for name in table:
            if name not in known.split():
                self.mistakes.append(f"{path}.{name}: unknown; known here: {', '.join(known.split())}")

    def _expected(self, path: str, what: str, found: Any) -> None:
        shown = "nothing" if found is None else repr(found)
        self.mistakes.append(f"{path}: expected {what}, found {shown[:60]}")
