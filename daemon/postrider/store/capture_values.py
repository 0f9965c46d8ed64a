"""What an event shows of a row, as SQL expressions made of the entries of a capture section.

The columns were looked up before; names and texts are quoted here.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from postrider.domain.capture import (
    Capture,
    Column,
    Constant,
    Entry,
    Fields,
    Lookup,
    Setting,
    Timestamps,
)

_FORMATS: Mapping[Timestamps, str] = {
    "seconds": 'YYYY-MM-DD"T"HH24:MI:SS"Z"',
    "milliseconds": 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"',
    "microseconds": 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"',
    "long_date": "FMMonth FMDD, YYYY",
}


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    type: str
    """As format_type writes it."""
    schema: str
    """Where the type is, or the type of an array's elements."""
    comparable: bool = False
    """It has an equality operator."""


@dataclass(frozen=True, slots=True)
class TableFacts:
    name: str
    """Qualified and quoted."""
    schema: str
    columns: Mapping[str, ColumnFacts]
    partitions: tuple[str, ...] = ()
    """Also those of partitions. A statement on one fires no trigger of the table."""
    deletes_itself: bool = False
    """The deletion of a row cascades to others of the table."""

    @property
    def with_partitions(self) -> tuple[str, ...]:
        return (self.name, *self.partitions)


Tables = Mapping[str, TableFacts]
"""Facts by the table's name in the configuration."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def deleted_source(capture: Capture, lookup: Lookup, table: TableFacts) -> str:
    """What tells rows that are kept for a lookup from others."""
    return f"{capture.name}: {table.name} ({', '.join(sorted(lookup.where))})"


def key_of_deleted(values: Iterable[tuple[str, str]]) -> str:
    """By what such a row is found: a number made of the values, so that an index can hold it. `values`: each
    with its type."""
    shown = ", ".join(_same_if_equal(value, type_name) for value, type_name in values)
    return f"hashtextextended(ARRAY[{shown}]::text, 0)"


def _same_if_equal(value: str, type_name: str) -> str:
    """A text that is the same for equal values, also of different types: 7 and 7.00, or 'a' and 'a  ' where
    one is padded. By casts of PostgreSQL's own alone."""
    family = type_name.partition("(")[0]
    if family in ("smallint", "integer", "bigint", "numeric"):
        return f"trim_scale({value}::numeric)::text"
    if family == "character":
        return f"{value}::text"
    return f"format('%s', {value})"


class Values:
    """Writes expressions for the entries of one section."""

    def __init__(self, capture: Capture, tables: Tables) -> None:
        self._capture = capture
        self._timestamps = capture.timestamps
        self._tables = tables
        self._table = tables[capture.table]

    def value(self, entry: Entry, row: str, table: TableFacts | None = None) -> str:
        """What an event shows of an entry; `row` is an alias of a row of `table` (None: the captured one)."""
        facts = table or self._table
        match entry:
            case Column(name=name, timestamps=timestamps):
                return _formatted(
                    f"{row}.{quoted(name)}", facts.columns[name].type, timestamps or self._timestamps
                )
            case Constant(value=value):
                return f"{literal(json.dumps(value, ensure_ascii=False))}::json"
            case Setting(name=name):
                return f"nullif(current_setting({literal(name)}, true), '')"
            case Fields(entries=entries, if_set=if_set):
                columns = ", ".join(
                    f"{self.value(each, row, facts)} AS {quoted(name)}" for name, each in entries.items()
                )
                condition = "" if if_set is None else f" WHERE {row}.{quoted(if_set)} IS NOT NULL"
                return f"(SELECT row_to_json(x.*) FROM (SELECT {columns}{condition}) AS x)"
            case Lookup():
                return self._looked_up(entry, row, facts)

    def _looked_up(self, lookup: Lookup, row: str, facts: TableFacts) -> str:
        other = self._tables[lookup.table]
        alias = f"r{row[1:]}" if row[0] == "r" else "r"
        alias += "_"
        equal = {
            name: self._raw(entry, row, other.columns[name].type) for name, entry in lookup.where.items()
        }
        where = " AND ".join(f"{alias}.{quoted(name)} = {value}" for name, value in equal.items())
        source = self._with_deleted(lookup, other, facts, equal) if lookup.keep_deleted else other.name
        order = f" ORDER BY {alias}.{quoted(lookup.order)}" if lookup.order else ""
        limit = "" if lookup.many else " LIMIT 1"
        if isinstance(lookup.entry, Column):
            value = self.value(lookup.entry, alias, other)
            found = f"SELECT {value} FROM {source} AS {alias} WHERE {where}{order}{limit}"
        else:
            columns = ", ".join(
                f"{self.value(each, alias, other)} AS {quoted(name)}"
                for name, each in lookup.entry.entries.items()
            )
            found = (
                f"SELECT row_to_json(x.*) FROM (SELECT {columns} FROM {source} AS {alias} "
                f"WHERE {where}{order}{limit}) AS x"
            )
        return f"array_to_json(ARRAY({found}))" if lookup.many else f"({found})"

    def _with_deleted(
        self, lookup: Lookup, other: TableFacts, facts: TableFacts, equal: Mapping[str, str]
    ) -> str:
        """The rows of a table and, after them, the one that this transaction deleted last."""
        live = ", ".join(map(quoted, lookup.columns))
        kept = ", ".join(
            f"(g.image->>{literal(name)})::{other.columns[name].type}" for name in lookup.columns
        )
        key = key_of_deleted(
            (equal[name], facts.columns[entry.name].type)
            if isinstance(entry, Column)
            else (f"({equal[name]})::{other.columns[name].type}", other.columns[name].type)
            for name, entry in sorted(lookup.where.items())
        )
        return f"""(SELECT {live} FROM {other.name} UNION ALL
          (SELECT {kept} FROM postrider.capture_deleted AS g
           WHERE g.transaction = pg_current_xact_id_if_assigned()
             AND g.source = {literal(deleted_source(self._capture, lookup, other))} AND g.key = {key}
           ORDER BY g.id DESC LIMIT 1))"""

    def _raw(self, entry: Entry, row: str, type_name: str) -> str:
        """An expression to compare with a column of that type: not as it is written in an event."""
        if isinstance(entry, Column):
            return f"{row}.{quoted(entry.name)}"
        if isinstance(entry, Constant):
            return sql_value(entry.value)
        return f"({self.value(entry, row)})::{type_name}"

    def text(self, entry: Entry, row: str) -> str:
        """The same as text."""
        if isinstance(entry, Constant):
            return literal(str(entry.value))
        return f"({self.value(entry, row)})::text"


def is_timestamp(type_name: str) -> bool:
    """Whether a type, as format_type writes it, is a timestamp with or without time zone."""
    return type_name.startswith("timestamp") and not type_name.endswith("[]")


def _formatted(column: str, type_name: str, timestamps: Timestamps) -> str:
    if not is_timestamp(type_name):
        return column
    if timestamps == "unix":
        return f"floor(extract(epoch FROM {column}))::bigint"
    in_utc = f"{column} AT TIME ZONE 'UTC'" if type_name.endswith("with time zone") else column
    if timestamps == "relative":
        days = f"(now() AT TIME ZONE 'UTC')::date - ({in_utc})::date"
        return (
            f"CASE WHEN NOT isfinite({in_utc}) THEN NULL ELSE CASE {days} WHEN 0 THEN 'Today' "
            f"WHEN 1 THEN 'Yesterday' ELSE to_char({in_utc}, {literal(_FORMATS['long_date'])}) END END"
        )
    return f"to_char({in_utc}, {literal(_FORMATS[timestamps])})"


def sql_value(value: object) -> str:
    """A number, a boolean or a text as SQL writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else literal(str(value))
