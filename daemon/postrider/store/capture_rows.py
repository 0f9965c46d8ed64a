"""The events of changed rows, as queries made of a capture section.

What the text is made of was checked before: the columns exist, and names are quoted here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from postrider.domain.capture import (
    Capture,
    Column,
    Constant,
    Derived,
    Entry,
    Fields,
    Lookup,
    Operation,
    local_columns,
)
from postrider.store.capture_values import Tables, Values, is_timestamp, literal, quoted, sql_value

EVENT_COLUMNS = "workspace_id, type, object_type, object_id, data, previous_attributes, actor, related"

_OPERATIONS: Mapping[str, Operation] = {
    "insert": "created",
    "update": "updated",
    "delete": "deleted",
    "truncate": "truncated",
}
_ARGUMENTS = 90
"""PostgreSQL takes at most 100 arguments of a function."""


def trigger_events(capture: Capture) -> list[str]:
    """The kinds of statements (insert, update, delete, truncate) that can make events."""
    on_insert = "created" in capture.events or any(each.on_insert for each in capture.derived)
    on_update = "updated" in capture.events or bool(capture.derived)
    return [
        event
        for event, wanted in (
            ("insert", on_insert),
            ("update", on_update),
            ("delete", "deleted" in capture.events),
            ("truncate", "truncated" in capture.events),
        )
        if wanted
    ]


def named_columns(capture: Capture) -> list[str]:
    """The columns of the captured table that its events depend on."""
    entries = (capture.object_id, capture.workspace, capture.columns, capture.actor, capture.related)
    columns = [*capture.key, *(derived.column for derived in capture.derived)]
    for entry in entries:
        if entry is not None:
            columns += local_columns(entry)
    return list(dict.fromkeys(columns))


class Rows:
    """Writes the queries of one section. Aliases: o is the row before, n the row after."""

    def __init__(self, capture: Capture, tables: Tables) -> None:
        self._capture = capture
        self._table = tables[capture.table]
        self._values = Values(capture, tables)

    def events(self, event: str, source: str) -> str | None:
        """The events of all rows of `source`; None if such a statement makes none."""
        capture = self._capture
        if event not in trigger_events(capture):
            return None
        if event == "truncate":
            return self._truncated()
        row = "o" if event == "delete" else "n"
        fields = ", ".join(
            f"{self._values.value(entry, row)} AS {quoted(name)}"
            for name, entry in capture.columns.entries.items()
        )
        event_type, types, happened = self._types(event)
        return f"""SELECT {self._workspace(row)} AS workspace_id, {event_type} AS type,
          {literal(capture.object_type)} AS object_type, {self._object_id(row)} AS object_id,
          row_to_json(d.*) AS data,
          {self._previous() if event == "update" else "NULL::json"} AS previous_attributes,
          {self._actor(row)} AS actor, {self._related(row)} AS related
        FROM {source}
          CROSS JOIN LATERAL (SELECT {fields}) AS d{types}
        WHERE {happened}"""  # noqa: S608

    def _truncated(self) -> str:
        """The one event of a TRUNCATE: no row is left to be told of, so what depends on one is left out."""
        capture = self._capture
        workspace, actor, related = (
            entry is not None and not any(local_columns(entry))
            for entry in (capture.workspace, capture.actor, capture.related)
        )
        return f"""SELECT {self._workspace("n") if workspace else "'default'"} AS workspace_id,
          {literal(capture.events["truncated"])} AS type, {literal(capture.object_type)} AS object_type,
          NULL::text AS object_id, '{{}}'::json AS data, NULL::json AS previous_attributes,
          {self._actor("n") if actor else "NULL::json"} AS actor,
          {self._related("n") if related else "NULL::json"} AS related"""

    def kept(self, image: str, alias: str) -> str:
        """A source with one row, read from the JSON in which it was kept."""
        columns = ", ".join(
            f"({image}->>{literal(name)})::{self._table.columns[name].type} AS {quoted(name)}"
            for name in named_columns(self._capture)
        )
        return f"(SELECT {columns}) AS {alias}"

    def same_key(self) -> str:
        return " AND ".join(f"o.{quoted(column)} = n.{quoted(column)}" for column in self._capture.key)

    def _workspace(self, row: str) -> str:
        workspace = self._capture.workspace
        if isinstance(workspace, Constant):
            return literal(str(workspace.value))
        return f"coalesce(nullif(({self._values.text(workspace, row)}), ''), 'default')"

    def _types(self, event: str) -> tuple[str, str, str]:
        """The event's type, a join that makes a row for each possible one, and whether it happened."""
        capture = self._capture
        own = capture.events.get(_OPERATIONS[event])
        derived = [
            each for each in capture.derived if event == "update" or (event == "insert" and each.on_insert)
        ]
        conditions = [(each, self._happened(each, event)) for each in derived]
        values = []
        if own is not None:
            happened = "true"
            if event == "update":
                happened = f"({self._news(capture.columns)})"
            replaced = [f" AND NOT ({condition})" for each, condition in conditions if each.instead]
            values.append((own, happened + "".join(replaced)))
        values += [(each.type, condition) for each, condition in conditions]
        if len(values) == 1:
            return literal(values[0][0]), "", values[0][1]
        # Conditions inside VALUES would be prepared anew for every row, which costs more than all the rest.
        rows = ", ".join(f"({number}, {literal(each)})" for number, (each, _) in enumerate(values))
        cases = " ".join(f"WHEN {number} THEN {condition}" for number, (_, condition) in enumerate(values))
        return (
            "e.type",
            f"\n          CROSS JOIN (VALUES {rows}) AS e(number, type)",
            f"CASE e.number {cases} END",
        )

    def _happened(self, derived: Derived, event: str) -> str:
        column = quoted(derived.column)
        values = [sql_value(value) for value in derived.values]
        is_now = {
            "changes": "true",
            "increases": f"coalesce({_rank(f'o.{column}', values)} < {_rank(f'n.{column}', values)}, false)",
            "set": f"n.{column} IS NOT NULL",
            "cleared": f"n.{column} IS NULL",
            "becomes": f"coalesce(n.{column} IN ({', '.join(values)}), false)",
        }[derived.when]
        if event == "insert":
            return is_now
        was_not = {
            "set": f"o.{column} IS NULL",
            "cleared": f"o.{column} IS NOT NULL",
        }.get(derived.when, "true")
        parts = [part for part in (self._differs(derived.column), was_not, is_now) if part != "true"]
        return " AND ".join(parts)

    def _differs(self, column: str) -> str:
        cast = "" if self._table.columns[column].comparable else "::text"
        return f"o.{quoted(column)}{cast} IS DISTINCT FROM n.{quoted(column)}{cast}"

    def _any_changed(self, columns: Iterable[str]) -> str:
        return " OR ".join(self._differs(column) for column in dict.fromkeys(columns)) or "false"

    def _news(self, entry: Entry) -> str:
        """Whether the event would show something else of an entry than before. Where a related row is gone,
        it would: that row may have been shown."""
        match entry:
            case Fields(entries=entries, if_set=if_set):
                parts = [self._news(each) for each in entries.values()]
                if if_set is not None:
                    parts.append(f"(o.{quoted(if_set)} IS NULL) <> (n.{quoted(if_set)} IS NULL)")
                return " OR ".join(part for part in dict.fromkeys(parts) if part != "false") or "false"
            case Lookup():
                changed = self._any_changed(local_columns(entry))
                old, new = (f"({self._values.value(entry, row)})::text" for row in ("o", "n"))
                return f"(({changed}) AND ({old} IS NULL OR {old} IS DISTINCT FROM {new}))"
            case Column(name=name):
                return self._shown_changed(entry, [name])
        return "false"

    def _key_text(self, row: str) -> str:
        columns = [f"{row}.{quoted(column)}::text" for column in self._capture.key]
        return columns[0] if len(columns) == 1 else " || ',' || ".join(columns)

    def _object_id(self, row: str) -> str:
        if self._capture.object_id is None:
            return self._key_text(row)
        return self._values.text(self._capture.object_id, row)

    def _previous(self) -> str:
        """What changed, as it was: written as text, because the names differ from row to row."""
        parts = []
        for name, entry in self._capture.columns.entries.items():
            columns = list(local_columns(entry))
            if columns:
                member = literal(json.dumps(name, ensure_ascii=False) + ":")
                parts.append(
                    f"CASE WHEN {self._shown_changed(entry, columns)} THEN {member} || "
                    f"coalesce(to_json({self._values.value(entry, 'o')})::text, 'null') END"
                )
        while len(parts) > _ARGUMENTS:
            parts = [
                f"nullif(concat_ws(',', {', '.join(parts[at : at + _ARGUMENTS])}), '')"
                for at in range(0, len(parts), _ARGUMENTS)
            ]
        if not parts:
            return "NULL::json"
        return f"('{{' || nullif(concat_ws(',', {', '.join(parts)}), '') || '}}')::json"

    def _shown_changed(self, entry: Entry, columns: Iterable[str]) -> str:
        """Whether what the event shows of an entry changed: another client may have the same name."""
        changed = self._any_changed(columns)
        if isinstance(entry, Column) and not is_timestamp(self._table.columns[entry.name].type):
            return changed
        old, new = (f"({self._values.value(entry, row)})::text" for row in ("o", "n"))
        return f"(({changed}) AND {old} IS DISTINCT FROM {new})"

    def _actor(self, row: str) -> str:
        entry = self._capture.actor
        if entry is None:
            return "NULL::json"
        if isinstance(entry, Fields) or (isinstance(entry, Lookup) and isinstance(entry.entry, Fields)):
            return f"({self._values.value(entry, row)})::json"
        value = self._values.value(entry, row)
        return f"CASE WHEN {value} IS NOT NULL THEN json_build_object('id', {value}) END"

    def _related(self, row: str) -> str:
        return (
            "NULL::json" if self._capture.related is None else self._values.value(self._capture.related, row)
        )


def _rank(column: str, values: Sequence[str]) -> str:
    """The place of a column's value among those; null if it is none of them."""
    return f"CASE {column} {' '.join(f'WHEN {value} THEN {place}' for place, value in enumerate(values))} END"
