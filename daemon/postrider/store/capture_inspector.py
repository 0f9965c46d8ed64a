"""Holds a capture section against the live tables: what it names, and whether types fit together."""

import difflib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg

from postrider.domain.capture import Capture, Column, Entry, Fields, Lookup
from postrider.store.capture_sql import (
    Statements,
    create_statements,
)
from postrider.store.capture_values import ColumnFacts, TableFacts, sql_value
from postrider.store.database import Connection

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute AS a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_UNIQUE_KEYS = """
SELECT (SELECT array_agg(a.attname::text) FROM pg_attribute AS a
        WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])) AS columns
FROM pg_index AS i
WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
"""


class CaptureInspector:
    """Looks a section's tables up, and notes every mistake."""

    def __init__(self, connection: Connection, capture: Capture) -> None:
        self._connection = connection
        self._capture = capture
        self.tables: dict[str, TableFacts] = {}
        self.mistakes: list[str] = []

    async def statements(self) -> Statements | None:
        capture = self._capture
        oid = await self._look_up(capture.table, f"capture {capture.name}: table", "rp")
        if oid is None:
            return None
        for lookup in _lookups(capture):
            if lookup.table not in self.tables:
                await self._look_up(lookup.table, f"capture {capture.name}", "rpvmf")
        if self.mistakes:
            return None
        self._check_columns()
        if not self.mistakes:
            await self._check_key(oid)
            await self._check_values()
        if self.mistakes:
            return None
        statements = create_statements(capture, self.tables)
        await self._probe(statements)
        return statements

    async def _look_up(self, name: str, where: str, kinds: str) -> int | None:
        row = await self._connection.fetchrow(
            """SELECT c.oid, c.relkind::text AS kind, format('%I.%I', s.nspname, c.relname) AS name
               FROM pg_class AS c JOIN pg_namespace AS s ON s.oid = c.relnamespace
               WHERE c.oid = to_regclass($1)""",
            name,
        )
        if row is None:
            self.mistakes.append(f"{where}: there is no table {name}{await self._nearest_table(name)}")
            return None
        if row["kind"] not in kinds:
            self.mistakes.append(f"{where}: {name} is not a table, so it can't be captured")
            return None
        async with self._as_in_the_function():
            columns = await self._connection.fetch(_COLUMNS, row["oid"])
        self.tables[name] = TableFacts(
            row["name"],
            {
                each["attname"]: ColumnFacts(each["type"], await self._comparable(each["type"]))
                for each in columns
            },
        )
        oid: int = row["oid"]
        return oid

    @asynccontextmanager
    async def _as_in_the_function(self) -> AsyncIterator[None]:
        """Names mean what they mean in the trigger's function. An error leaves the transaction usable."""
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
            yield
            await self._connection.execute("SET LOCAL search_path TO DEFAULT")

    async def _nearest_table(self, name: str) -> str:
        rows = await self._connection.fetch(
            """SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class AS c
               JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p')
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'postrider')"""
        )
        nearest = difflib.get_close_matches(name, [row["name"] for row in rows], n=1, cutoff=0.5)
        return f"; did you mean {nearest[0]}?" if nearest else ""

    async def _comparable(self, type_name: str) -> bool:
        """Whether the type has an equality operator where the trigger's function looks for one."""
        try:
            async with self._as_in_the_function():
                await self._connection.execute(f"SELECT NULL::{type_name} IS DISTINCT FROM NULL::{type_name}")  # noqa: S608
                # Grouping also asks for the equality of what an array or a row consists of.
                await self._connection.execute(
                    f"SELECT x FROM (SELECT NULL::{type_name} AS x) AS t GROUP BY x"  # noqa: S608
                )
        except asyncpg.PostgresError:
            return False
        return True

    def _check_columns(self) -> None:
        capture, table = self._capture, self._capture.table
        path = f"capture {capture.name}"
        for name in capture.key:
            self._check(table, name, f"{path}: key")
        for derived in capture.derived:
            self._check(table, derived.column, f"{path}: derived {derived.type}")
        for label in ("object_id", "workspace", "columns", "actor", "related"):
            entry = getattr(capture, label)
            if entry is not None:
                self._check_entry(entry, table, f"{path}: {label}")

    def _check_entry(self, entry: Entry, table: str, path: str) -> None:
        match entry:
            case Column(name=name):
                self._check(table, name, path)
            case Fields(entries=entries):
                for name, each in entries.items():
                    self._check_entry(each, table, f"{path}.{name}")
            case Lookup():
                for name, each in entry.where.items():
                    self._check(entry.table, name, f"{path}: where")
                    self._check_entry(each, table, f"{path}: where.{name}")
                if entry.order is not None:
                    self._check(entry.table, entry.order, f"{path}: order")
                self._check_entry(entry.entry, entry.table, path)

    def _check(self, table: str, column: str, path: str) -> None:
        known = self.tables[table].columns
        if column not in known:
            nearest = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; it has {', '.join(known)}"
            self.mistakes.append(f"{path}: {table} has no column {column}{hint}")

    async def _probe(self, statements: Statements) -> None:
        """Let PostgreSQL read the function's statements before a CRM's transaction runs them."""
        for probe in statements.probes:
            try:
                async with self._as_in_the_function():
                    await self._connection.execute(probe)
            except asyncpg.InsufficientPrivilegeError:
                return  # `apply` says which right is missing
            except asyncpg.PostgresError as error:
                self.mistakes.append(f"capture {self._capture.name}: its columns don't fit together: {error}")
                return

    async def _check_key(self, oid: int) -> None:
        key = set(self._capture.key)
        rows = await self._connection.fetch(_UNIQUE_KEYS, oid)
        if not any(set(row["columns"] or ()) == key for row in rows):
            self.mistakes.append(
                f"capture {self._capture.name}: key: {self._capture.table} has no unique index on "
                f"{', '.join(self._capture.key)}; name its primary key"
            )

    async def _check_values(self) -> None:
        for derived in self._capture.derived:
            column = self.tables[self._capture.table].columns[derived.column]
            for value in derived.becomes:
                try:
                    async with self._as_in_the_function():
                        await self._connection.execute(f"SELECT NULL::{column.type} IN ({sql_value(value)})")
                except asyncpg.PostgresError as error:
                    self.mistakes.append(
                        f"capture {self._capture.name}: derived {derived.type}: {value!r} is no value of "
                        f"{derived.column} ({column.type}): {error}"
                    )


def _lookups(capture: Capture) -> Iterator[Lookup]:
    for entry in (capture.object_id, capture.workspace, capture.columns, capture.actor, capture.related):
        if entry is not None:
            yield from _lookups_in(entry)


def _lookups_in(entry: Entry) -> Iterator[Lookup]:
    if isinstance(entry, Fields):
        for each in entry.entries.values():
            yield from _lookups_in(each)
    elif isinstance(entry, Lookup):
        yield entry
        yield from _lookups_in(entry.entry)
        for each in entry.where.values():
            yield from _lookups_in(each)
