"""What an event shows of a row, as SQL expressions made of the entries of a capture section.

The columns were looked up before; names and texts are quoted here.
"""

import json
from collections.abc import Mapping
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

    @property
    def with_partitions(self) -> tuple[str, ...]:
        return (self.name, *self.partitions)


Tables = Mapping[str, TableFacts]
"""Facts by the table's name in the configuration."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class Values:
    """Writes expressions for the entries of one section."""

    def __init__(self, capture: Capture, tables: Tables) -> None:
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
            case Fields(entries=entries):
                columns = ", ".join(
                    f"{self.value(each, row, facts)} AS {quoted(name)}" for name, each in entries.items()
                )
                return f"(SELECT row_to_json(x.*) FROM (SELECT {columns}) AS x)"
            case Lookup():
                return self._looked_up(entry, row, facts)

    def _looked_up(self, lookup: Lookup, row: str, facts: TableFacts) -> str:
        other = self._tables[lookup.table]
        alias = f"r{row[1:]}" if row[0] == "r" else "r"
        alias += "_"
        where = " AND ".join(
            f"{alias}.{quoted(name)} = {self._raw(entry, row, other.columns[name].type)}"
            for name, entry in lookup.where.items()
        )
        order = f" ORDER BY {alias}.{quoted(lookup.order)}" if lookup.order else ""
        limit = "" if lookup.many else " LIMIT 1"
        if isinstance(lookup.entry, Column):
            value = self.value(lookup.entry, alias, other)
            found = f"SELECT {value} FROM {other.name} AS {alias} WHERE {where}{order}{limit}"
        else:
            columns = ", ".join(
                f"{self.value(each, alias, other)} AS {quoted(name)}"
                for name, each in lookup.entry.entries.items()
            )
            found = (
                f"SELECT row_to_json(x.*) FROM (SELECT {columns} FROM {other.name} AS {alias} "
                f"WHERE {where}{order}{limit}) AS x"
            )
        return f"array_to_json(ARRAY({found}))" if lookup.many else f"({found})"

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
    return f"to_char({in_utc}, {literal(_FORMATS[timestamps])})"


def sql_value(value: object) -> str:
    """A number, a boolean or a text as SQL writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else literal(str(value))
