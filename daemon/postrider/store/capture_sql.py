"""The trigger of a capture section, as SQL text: one INSERT into the outbox for each statement of the CRM.

What the text is made of was checked before: the columns exist, and names are quoted here.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
from postrider.domain.model import MAX_DATA_BYTES
from postrider.store.capture_values import Tables, Values, is_timestamp, literal, quoted, sql_value

TRIGGER_PREFIX = "postrider_capture_"
LOCK_TIMEOUT = "1s"
"""How long a CRM's statement waits at most for a lock that a change of Postrider's schema holds."""

_SETTINGS = (
    "SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601' SET TimeZone = 'UTC' SET bytea_output = 'hex'"
)
"""An event says the same whatever the CRM's session has set."""

_OPERATIONS: Mapping[str, Operation] = {"insert": "created", "update": "updated", "delete": "deleted"}
_ONE_OLD, _ONE_NEW = "unnest(ARRAY[pair.o]) AS o", "unnest(ARRAY[pair.n]) AS n"
_ARGUMENTS = 90
"""PostgreSQL takes at most 100 arguments of a function."""


@dataclass(frozen=True, slots=True)
class Statements:
    """What creates a capture, in order, and what its function says."""

    function_body: str
    create: tuple[str, ...]
    probes: tuple[str, ...] = ()
    """The function's statements over the whole tables, to be explained: types that don't fit are found so."""

    @property
    def checksum(self) -> str:
        return hashlib.sha256("\n".join(self.create).encode()).hexdigest()


def function_name(capture_name: str) -> str:
    return f"postrider.{quoted(f'capture_{capture_name}')}"


def drop_statement(capture_name: str) -> str:
    """Drop the function, and with it its triggers, also those of a table that was renamed."""
    return f"DROP FUNCTION IF EXISTS {function_name(capture_name)}() CASCADE"


def create_statements(capture: Capture, tables: Tables) -> Statements:
    """The function and the triggers of a capture."""
    writer = _Writer(capture, tables)
    body = writer.function_body()
    function = function_name(capture.name)
    table = tables[capture.table].name
    transitions = {
        "insert": "NEW TABLE AS new_rows",
        "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
        "delete": "OLD TABLE AS old_rows",
    }
    create = [
        # The CRM's user may write to the outbox only through this function, hence SECURITY DEFINER.
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"SET search_path = pg_catalog, pg_temp SET lock_timeout = '{LOCK_TIMEOUT}'\n{_SETTINGS}\n"
        f"AS {_dollar_quoted(body)}",
        f"REVOKE ALL ON FUNCTION {function}() FROM PUBLIC",
    ]
    for event in _trigger_events(capture):
        trigger = quoted(f"{TRIGGER_PREFIX}{capture.name}_{event}")
        create.append(
            f"CREATE TRIGGER {trigger} AFTER {event.upper()} ON {table} REFERENCING {transitions[event]} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()"
        )
    return Statements(body, tuple(create), writer.probes())


def _trigger_events(capture: Capture) -> list[str]:
    on_insert = "created" in capture.events or any(each.on_insert for each in capture.derived)
    on_update = "updated" in capture.events or bool(capture.derived)
    return [
        event
        for event, wanted in (
            ("insert", on_insert),
            ("update", on_update),
            ("delete", "deleted" in capture.events),
        )
        if wanted
    ]


def _dollar_quoted(body: str) -> str:
    tag = "$postrider$"
    while tag in body:
        tag = tag[:-1] + "_$"
    return f"{tag}\n{body}\n{tag}"


class _Writer:
    def __init__(self, capture: Capture, tables: Tables) -> None:
        self._capture = capture
        self._table = tables[capture.table]
        self._values = Values(capture, tables)

    def function_body(self) -> str:
        """Set by set; and where that fails, row by row, so that one bad row costs no other its event."""
        name = literal(self._capture.name)
        key = f"coalesce({self._key_text('(pair.n)')}, {self._key_text('(pair.o)')})"
        same_key, table = self._same_key(), self._table.name
        none, old, new = (f"{row}::{table}" for row in ("NULL", "(o.*)", "(n.*)"))
        pairs = " FULL JOIN ".join(("old_rows AS o", f"new_rows AS n ON {same_key}"))
        return f"""#variable_conflict use_column
DECLARE
  largest integer;
  rows    text;
  pair    record;
BEGIN
  BEGIN
    IF TG_OP = 'INSERT' THEN
      {self._insert("insert", "new_rows AS n")}
    ELSIF TG_OP = 'DELETE' THEN
      {self._insert("delete", "old_rows AS o")}
    ELSE
      {self._insert("update", f"old_rows AS o JOIN new_rows AS n ON {same_key}")}
      IF EXISTS (SELECT FROM {pairs} WHERE {self._no_key("o")}) THEN
        RAISE EXCEPTION 'a row got another key: it is told as deleted and created';
      END IF;
    END IF;
    IF largest > {MAX_DATA_BYTES} THEN
      RAISE program_limit_exceeded;
    END IF;
  EXCEPTION WHEN OTHERS THEN
    rows := CASE TG_OP WHEN 'INSERT' THEN {literal(f"SELECT {none} AS o, {new} AS n FROM new_rows AS n")}
                       WHEN 'DELETE' THEN {literal(f"SELECT {old} AS o, {none} AS n FROM old_rows AS o")}
                       ELSE {literal(f"SELECT {old} AS o, {new} AS n FROM {pairs}")} END;
    FOR pair IN EXECUTE rows LOOP
      BEGIN
        largest := 0;
        IF pair.o IS NULL THEN
          {self._insert("insert", _ONE_NEW)}
        ELSIF pair.n IS NULL THEN
          {self._insert("delete", _ONE_OLD)}
        ELSE
          {self._insert("update", f"{_ONE_OLD} CROSS JOIN {_ONE_NEW}")}
        END IF;
        IF largest > {MAX_DATA_BYTES} THEN
          RAISE EXCEPTION 'the event has % bytes; the limit is {MAX_DATA_BYTES}', largest;
        END IF;
      EXCEPTION WHEN OTHERS THEN
        INSERT INTO postrider.capture_rejected (capture, operation, object_id, reason)
          VALUES ({name}, TG_OP, {key}, SQLERRM);
        RAISE LOG 'postrider: the capture % set a row aside: %', {name}, SQLERRM;
      END;
    END LOOP;
  END;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  -- Not even setting aside worked; the CRM's transaction goes on all the same.
  RAISE LOG 'postrider: the capture % lost the events of a statement: %', {name}, SQLERRM;
  RETURN NULL;
END"""

    def probes(self) -> tuple[str, ...]:
        source = f"{self._table.name} AS o JOIN {self._table.name} AS n ON {self._same_key()}"
        return tuple(
            "EXPLAIN "
            + self._insert(event, source).replace("SELECT max(bytes) INTO largest", "SELECT max(bytes)")
            for event in _trigger_events(self._capture)
        )

    def _insert(self, event: str, source: str) -> str:
        capture = self._capture
        if event not in _trigger_events(capture):
            return "NULL;"
        row = "o" if event == "delete" else "n"
        fields = ", ".join(
            f"{self._values.value(entry, row)} AS {quoted(name)}"
            for name, entry in capture.columns.entries.items()
        )
        event_type, types, happened = self._types(event)
        return f"""WITH written AS (
        INSERT INTO postrider.outbox (workspace_id, type, object_type, object_id, data, previous_attributes,
                                      actor, related)
        SELECT {self._workspace(row)}, {event_type}, {literal(capture.object_type)}, {self._object_id(row)},
               row_to_json(d.*), {self._previous() if event == "update" else "NULL::json"},
               {self._actor(row)}, {self._related(row)}
        FROM {source}
          CROSS JOIN LATERAL (SELECT {fields}) AS d{types}
        WHERE {happened}
        RETURNING octet_length(data::text) + coalesce(octet_length(previous_attributes::text), 0)
          + coalesce(octet_length(actor::text), 0) + coalesce(octet_length(related::text), 0) AS bytes
      )
      SELECT max(bytes) INTO largest FROM written;"""

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
                happened = f"({self._any_changed(local_columns(capture.columns))})"
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
        is_now = {
            "changes": "true",
            "set": f"n.{column} IS NOT NULL",
            "cleared": f"n.{column} IS NULL",
            "becomes": "coalesce("
            + f"n.{column} IN ({', '.join(sql_value(value) for value in derived.becomes)}), false)",
        }[derived.when]
        if event == "insert":
            return is_now
        was_not = {
            "changes": "true",
            "set": f"o.{column} IS NULL",
            "cleared": f"o.{column} IS NOT NULL",
            "becomes": "true",
        }[derived.when]
        parts = [part for part in (self._differs(derived.column), was_not, is_now) if part != "true"]
        return " AND ".join(parts)

    def _differs(self, column: str) -> str:
        cast = "" if self._table.columns[column].comparable else "::text"
        return f"o.{quoted(column)}{cast} IS DISTINCT FROM n.{quoted(column)}{cast}"

    def _any_changed(self, columns: Iterable[str]) -> str:
        return " OR ".join(self._differs(column) for column in dict.fromkeys(columns)) or "false"

    def _same_key(self) -> str:
        return " AND ".join(f"o.{quoted(column)} = n.{quoted(column)}" for column in self._capture.key)

    def _no_key(self, row: str) -> str:
        return f"{row}.{quoted(self._capture.key[0])} IS NULL"

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
        return f"({changed}) AND {old} IS DISTINCT FROM {new}"

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
