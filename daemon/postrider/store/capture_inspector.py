"""Holds a capture section against the live tables: what it names, and whether types fit together."""

import difflib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import asyncpg

from postrider.domain.capture import Capture, Column, Entry, Fields, Lookup, local_columns, lookups
from postrider.store.capture_deleted import kept_tables
from postrider.store.capture_rows import named_columns
from postrider.store.capture_sql import CAPTURE_ROLE, Statements, create_statements
from postrider.store.capture_values import ColumnFacts, TableFacts, quoted, sql_value
from postrider.store.database import Connection, DatabaseError

_TABLE = """
SELECT c.oid, c.relkind::text AS kind, format('%I.%I', s.nspname, c.relname) AS name, s.nspname AS schema,
  c.relrowsecurity AS row_security, c.relispartition AS is_partition,
  EXISTS (SELECT FROM pg_constraint AS f WHERE f.contype = 'f' AND f.conrelid = c.oid AND f.confrelid = c.oid
          AND f.confdeltype = 'c') AS deletes_itself,
  has_schema_privilege(s.oid, 'USAGE') AS reachable,
  format('GRANT USAGE ON SCHEMA %I TO %I', s.nspname, current_user) AS reach
FROM (SELECT CASE cardinality(i) WHEN 1 THEN 'public' ELSE i[cardinality(i) - 1] END AS schema,
             i[cardinality(i)] AS name FROM parse_ident($1) AS i) AS named
  JOIN pg_namespace AS s ON s.nspname = named.schema
  JOIN pg_class AS c ON c.relnamespace = s.oid AND c.relname = named.name
"""

_PARTITIONS = """
SELECT format('%I.%I', s.nspname, c.relname) AS name, c.relkind = 'f' AS is_foreign
FROM pg_partition_tree($1::text::regclass) AS t JOIN pg_class AS c ON c.oid = t.relid
  JOIN pg_namespace AS s ON s.oid = c.relnamespace
WHERE t.level > 0 ORDER BY 1
"""

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, s.nspname AS schema
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
  JOIN pg_namespace AS s ON s.oid = t.typnamespace
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_LACKING = """
SELECT g.place - 1 AS place FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
  AS g (schema, relation, attribute, place)
WHERE NOT CASE WHEN g.relation IS NULL THEN has_schema_privilege('postrider_capture', g.schema, 'USAGE')
               ELSE has_column_privilege('postrider_capture', g.relation, g.attribute, 'SELECT') END
"""

_UNIQUE_KEYS = """
SELECT (SELECT array_agg(a.attname::text) FROM pg_attribute AS a
        WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])) AS columns
FROM pg_index AS i
WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """A right of postrider_capture: to use a schema, or to read a column of a table in it."""

    schema: str
    relation: str | None = None
    """Qualified and quoted."""
    column: str | None = None

    def __str__(self) -> str:
        if self.relation is None:
            return f"USAGE ON SCHEMA {quoted(self.schema)}"
        return f"SELECT ({quoted(self.column or '')}) ON {self.relation}"

    @property
    def statement(self) -> str:
        return f"GRANT {self} TO {CAPTURE_ROLE}"


class CaptureInspector:
    """Looks a section's tables up, and notes every mistake.

    It runs nothing that a table's owner can define but by `postrider.evaluate`.
    """

    def __init__(self, connection: Connection, capture: Capture) -> None:
        self._connection = connection
        self.capture = capture
        self.tables: dict[str, TableFacts] = {}
        self.mistakes: list[str] = []
        self.warnings: list[str] = []
        self.closed: dict[str, None] = {}
        """Grants without which tables can't be looked at."""
        self.grants: tuple[Grant, ...] = ()
        self.lacking: tuple[Grant, ...] = ()
        """Those of `grants` that the role does not have."""
        self.refused: tuple[Grant, ...] = ()
        """Those of `lacking` that this user may not give."""
        self._secured: set[str] = set()
        """Tables with row security. It holds for what is looked up, not for the rows of a trigger."""

    @property
    def triggered(self) -> list[str]:
        """The tables that get triggers."""
        tables = (self.tables[self.capture.table], *kept_tables(self.capture, self.tables).values())
        return list(dict.fromkeys(name for facts in tables for name in facts.with_partitions))

    async def statements(self) -> Statements | None:
        """What creates the capture; None if there are mistakes. Names mean, from here to the end of the
        transaction, what they mean in the capture's functions."""
        await self._connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        capture = self.capture
        oid = await self._look_up(capture.table, f"capture {capture.name}: table", "captured")
        if oid is None:
            return None
        await self._find_partitions(capture.table)
        self._warn_of_truncate()
        for lookup in lookups(capture):
            if lookup.table not in self.tables:
                await self._look_up(lookup.table, f"capture {capture.name}", "looked up")
            if lookup.keep_deleted and lookup.table in self.tables:
                await self._find_partitions(lookup.table)
            if lookup.table in self._secured:
                self.mistakes.append(
                    f"capture {capture.name}: {lookup.table} has row security, which hides its rows from "
                    f"{CAPTURE_ROLE}: no event could be made; look up a table without"
                )
        if self.mistakes:
            return None
        self._check_columns()
        if not self.mistakes:
            await self._check_key(oid)
        if self.mistakes:
            return None
        self.grants = self._needed_grants()
        self.lacking = await self._lacking_grants()
        async with self._undone():
            await self._try_to_grant()
            await self._find_comparable()
            await self._check_values()
            statements = create_statements(capture, self.tables)
            await self._probe(statements)
        return None if self.mistakes else statements

    async def _look_up(self, name: str, where: str, to_be: str) -> int | None:
        row = await self._connection.fetchrow(_TABLE, name)
        if row is None:
            self.mistakes.append(f"{where}: there is no table {name}{await self._nearest_table(name)}")
            return None
        if row["kind"] not in ("r", "p"):
            # A view would run what its owner makes of it later.
            self.mistakes.append(f"{where}: {name} is not a table, so it can't be {to_be}")
            return None
        if not row["reachable"]:
            self.mistakes.append(f"{where}: {name} can't be looked at; let its owner run: {row['reach']}")
            self.closed[row["reach"]] = None
            return None
        if row["is_partition"] and name == self.capture.table:
            self.warnings.append(f"{name} is a partition: what is written through its parent tells nothing")
        if row["row_security"]:
            self._secured.add(name)
        columns = await self._connection.fetch(_COLUMNS, row["oid"])
        self.tables[name] = TableFacts(
            row["name"],
            row["schema"],
            {each["attname"]: ColumnFacts(each["type"], each["schema"]) for each in columns},
            deletes_itself=row["deletes_itself"],
        )
        oid: int = row["oid"]
        return oid

    async def _find_partitions(self, name: str) -> None:
        """A write straight to a partition fires the triggers of that alone, so each has its own."""
        rows = await self._connection.fetch(_PARTITIONS, self.tables[name].name)
        for row in rows:
            if row["is_foreign"]:
                # PostgreSQL refuses to write to it through a parent whose triggers see whole statements.
                self.mistakes.append(
                    f"capture {self.capture.name}: {row['name']}, a partition of {name}, is a foreign table: "
                    "what the CRM writes to it would fail"
                )
        self.tables[name] = replace(self.tables[name], partitions=tuple(row["name"] for row in rows))

    def _warn_of_truncate(self) -> None:
        capture = self.capture
        if capture.ignores_truncate:
            self.warnings.append(
                f"TRUNCATE of {capture.table} tells nothing; events = {{ truncated = true }} makes it one "
                f"event, {capture.object_type}.truncated, and false says that nothing is meant"
            )
        elif "truncated" in capture.events and any(local_columns(capture.workspace)):
            self.warnings.append(
                f"{capture.events['truncated']} goes to the workspace default: no row is left to name another"
            )

    def _needed_grants(self) -> tuple[Grant, ...]:
        """What postrider_capture has to be allowed for this section's events to be made."""
        own = self.tables[self.capture.table]
        schemas = [own.columns[name].schema for name in named_columns(self.capture)]
        columns = []
        for lookup in lookups(self.capture):
            table = self.tables[lookup.table]
            schemas.append(table.schema)
            read = lookup.columns
            schemas += [table.columns[name].schema for name in read]
            columns += [Grant(table.schema, table.name, name) for name in read]
        wanted = [Grant(schema) for schema in schemas if schema != "pg_catalog"] + columns
        return tuple(dict.fromkeys(wanted))

    async def _lacking_grants(self) -> tuple[Grant, ...]:
        rows = await self._connection.fetch(
            _LACKING,
            [each.schema for each in self.grants],
            [each.relation for each in self.grants],
            [each.column for each in self.grants],
        )
        return tuple(self.grants[row["place"]] for row in rows)

    @asynccontextmanager
    async def _undone(self) -> AsyncIterator[None]:
        """A part of the transaction that leaves nothing, and lets an error inside end just itself."""
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    async def _try_to_grant(self) -> None:
        """Before `apply` the role may read nothing yet. What this user may not grant is noted."""
        for grant in self.lacking:
            with suppress(asyncpg.InsufficientPrivilegeError):
                async with self._connection.transaction():
                    await self._connection.execute(grant.statement)
        if self.lacking:
            self.refused = await self._lacking_grants()

    async def _plan(self, query: str) -> None:
        """Let PostgreSQL read a query. It may run what the tables' owner defined, so it does with few rights,
        and leaves nothing: not even a trigger that waits for the end of the transaction."""
        async with self._undone():
            await self._connection.fetch("SELECT line FROM postrider.evaluate($1) AS plan (line text)", query)

    def _not_readable(self, error: asyncpg.PostgresError) -> DatabaseError:
        lacking = "; ".join(each.statement for each in self.lacking)
        return DatabaseError(
            f"capture {self.capture.name}: a right is missing: {error}; nothing was changed",
            f"Let the owner of the tables run: {lacking}." if lacking else "Let the tables' owner grant it.",
        )

    async def _nearest_table(self, name: str) -> str:
        rows = await self._connection.fetch(
            """SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class AS c
               JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p')
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'postrider')"""
        )
        nearest = difflib.get_close_matches(name, [row["name"] for row in rows], n=1, cutoff=0.5)
        return f"; did you mean {nearest[0]}?" if nearest else ""

    async def _find_comparable(self) -> None:
        """Which columns have an equality operator where the trigger's function looks for one."""
        name = self.capture.table
        facts = self.tables[name]
        columns = dict(facts.columns)
        for column in named_columns(self.capture):
            try:
                # Grouping also asks for the equality of what an array or a row consists of.
                await self._plan(
                    "EXPLAIN SELECT x IS DISTINCT FROM x "  # noqa: S608
                    f"FROM (SELECT NULL::{columns[column].type} AS x OFFSET 0) AS t GROUP BY x"
                )
            except asyncpg.InsufficientPrivilegeError as error:
                raise self._not_readable(error) from error
            except asyncpg.PostgresError:
                continue
            columns[column] = replace(columns[column], comparable=True)
        self.tables[name] = replace(facts, columns=columns)

    def _check_columns(self) -> None:
        capture, table = self.capture, self.capture.table
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
            case Fields(entries=entries, if_set=if_set):
                if if_set is not None:
                    self._check(table, if_set, f"{path}: if_set")
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
                await self._plan(probe)
            except asyncpg.InsufficientPrivilegeError as error:
                if self.lacking:
                    return  # `apply` grants it, or says that it may not
                raise self._not_readable(error) from error
            except asyncpg.PostgresError as error:
                self.mistakes.append(f"capture {self.capture.name}: its columns don't fit together: {error}")
                return

    async def _check_key(self, oid: int) -> None:
        key = set(self.capture.key)
        rows = await self._connection.fetch(_UNIQUE_KEYS, oid)
        if not any(set(row["columns"] or ()) == key for row in rows):
            self.mistakes.append(
                f"capture {self.capture.name}: key: {self.capture.table} has no unique index on "
                f"{', '.join(self.capture.key)}; name its primary key"
            )

    async def _check_values(self) -> None:
        for derived in self.capture.derived:
            column = self.tables[self.capture.table].columns[derived.column]
            for value in derived.values:
                try:
                    await self._plan(f"EXPLAIN SELECT NULL::{column.type} IN ({sql_value(value)})")
                except asyncpg.InsufficientPrivilegeError as error:
                    raise self._not_readable(error) from error
                except asyncpg.PostgresError as error:
                    self.mistakes.append(
                        f"capture {self.capture.name}: derived {derived.type}: {value!r} is no value of "
                        f"{derived.column} ({column.type}): {error}"
                    )
