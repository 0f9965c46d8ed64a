"""Captures in the database: compare the sections with the live tables, create and drop triggers, and read
what triggers set aside."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from postrider.domain.capture import Capture, Column, Entry, Fields, Lookup
from postrider.domain.errors import UsageError
from postrider.store.capture_sql import (
    TRIGGER_PREFIX,
    ColumnFacts,
    Statements,
    TableFacts,
    create_statements,
    drop_statement,
    sql_value,
)
from postrider.store.database import Connection, Database, DatabaseError

APPLY_LOCK_TIMEOUT = "5s"
"""How long `apply` waits for writers of a CRM's table; those who come meanwhile wait behind it."""

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

_APPLIED = """
SELECT c.name, c.table_name, c.section::text AS section, c.checksum,
  (SELECT count(*) FROM pg_trigger AS t JOIN pg_class AS r ON r.oid = t.tgrelid
     JOIN pg_namespace AS s ON s.oid = r.relnamespace
   WHERE t.tgname IN ($1::text || c.name || '_insert', $1 || c.name || '_update', $1 || c.name || '_delete')
     AND t.tgenabled <> 'D' AND format('%I.%I', s.nspname, r.relname) = c.table_name) AS triggers,
  (SELECT md5(p.prosrc) FROM pg_proc AS p
   WHERE p.pronamespace = 'postrider'::regnamespace AND p.proname = 'capture_' || c.name) AS function_md5
FROM postrider.capture AS c ORDER BY c.name
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for one capture."""

    name: str
    table: str
    action: str
    """create, change, drop or keep."""
    event_types: tuple[str, ...]
    diff: tuple[str, ...]
    """The section's lines that differ, as `-` and `+`; or why an equal section has to be applied again."""
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row of which no event could be made."""

    id: int
    at: datetime
    capture: str
    operation: str
    object_id: str | None
    reason: str


class Captures:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def plan(self, captures: Sequence[Capture]) -> list[Step]:
        """Compare sections with what is applied. Raises UsageError with every mistake in the sections."""
        async with self._database.transaction() as connection:
            return await _plan(connection, captures)

    async def apply(self, captures: Sequence[Capture], now: datetime) -> list[Step]:
        """Do what `plan` says, all of it or nothing; return the steps."""
        async with self._changing() as connection:
            steps = await _plan(connection, captures)
            sections = {capture.name: capture.section for capture in captures}
            for step in steps:
                await _execute(connection, step, sections.get(step.name, {}), now)
        return steps

    async def drop(self, names: Sequence[str] | None, now: datetime) -> list[Step]:
        """Remove captures and every trace of them, by name or all; return the steps."""
        async with self._changing() as connection:
            applied = await connection.fetch(_APPLIED, TRIGGER_PREFIX)
            known = {row["name"] for row in applied}
            if names and (unknown := sorted(set(names) - known)):
                raise UsageError(
                    f"there is no capture {unknown[0]!r} in the database",
                    f"Applied are: {', '.join(sorted(known)) or 'none'}.",
                )
            steps = [_drop_step(row) for row in applied if not names or row["name"] in names]
            for step in steps:
                await _execute(connection, step, {}, now)
        return steps

    async def log_rejections(self, limit: int) -> list[Rejection]:
        """What was set aside and not yet told; it counts as told from now on."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """UPDATE postrider.capture_rejected SET logged = true
                   WHERE id IN (SELECT id FROM postrider.capture_rejected WHERE NOT logged
                                ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
                   RETURNING id, at, capture, operation, object_id, reason""",
                limit,
            )
        return sorted((Rejection(*row) for row in rows), key=lambda each: each.id)

    async def list_rejections(self, limit: int) -> list[Rejection]:
        """The latest rows that were set aside, newest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """SELECT id, at, capture, operation, object_id, reason FROM postrider.capture_rejected
                   ORDER BY id DESC LIMIT $1""",
                limit,
            )
        return [Rejection(*row) for row in rows]

    def _changing(self) -> "_Changing":
        return _Changing(self._database)


class _Changing:
    """A transaction that changes triggers: it waits only shortly for the CRM, and says what it lacks."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.transaction()

    async def __aenter__(self) -> Connection:
        connection = await self._transaction.__aenter__()
        await connection.execute(f"SET LOCAL lock_timeout = '{APPLY_LOCK_TIMEOUT}'")
        await connection.execute("LOCK TABLE postrider.capture IN SHARE ROW EXCLUSIVE MODE")
        return connection

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            await self._transaction.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except asyncpg.LockNotAvailableError as cause:
            raise DatabaseError(
                f"a table was busy for {APPLY_LOCK_TIMEOUT}; nothing was changed",
                "Try again when no long transaction writes to it.",
            ) from cause
        except asyncpg.InsufficientPrivilegeError as cause:
            raise DatabaseError(
                f"a right is missing: {cause}; nothing was changed",
                "Run it as the owner of the tables and of the schema postrider, by $POSTRIDER_DATABASE_DSN.",
            ) from cause


async def _plan(connection: Connection, captures: Sequence[Capture]) -> list[Step]:
    wanted = {}
    mistakes: list[str] = []
    for capture in captures:
        inspector = _Inspector(connection, capture)
        statements = await inspector.statements()
        mistakes += inspector.mistakes
        if statements is not None:
            wanted[capture.name] = (capture, inspector.tables[capture.table], statements)
    if mistakes:
        raise UsageError(
            "the [[capture]] sections don't fit the database:\n"
            + "\n".join(f"  {each}" for each in mistakes),
            "Mend the configuration, or the tables; nothing was changed.",
        )
    rows = await connection.fetch(_APPLIED, TRIGGER_PREFIX)
    applied = {row["name"]: row for row in rows}
    steps = [
        await _step(connection, capture, facts, statements, applied.get(name))
        for name, (capture, facts, statements) in wanted.items()
    ]
    return steps + [_drop_step(row) for row in rows if row["name"] not in wanted]


async def _step(
    connection: Connection,
    capture: Capture,
    facts: TableFacts,
    statements: Statements,
    row: asyncpg.Record | None,
) -> Step:
    types = tuple(capture.event_types)
    if row is None:
        return Step(capture.name, facts.name, "create", types, (), statements.create)
    body = await connection.fetchval("SELECT md5($1::text)", f"\n{statements.function_body}\n")
    triggers = sum(each.startswith("CREATE TRIGGER") for each in statements.create)
    diff = _diff(json.loads(row["section"]), capture.section)
    if row["checksum"] != statements.checksum:
        diff = diff or ["the tables, or Postrider, have changed since it was applied"]
    elif row["function_md5"] != body or row["triggers"] != triggers or row["table_name"] != facts.name:
        diff = ["its function or its triggers are missing, disabled or not as they were applied"]
    else:
        return Step(capture.name, facts.name, "keep", types, (), ())
    statements_again = (drop_statement(capture.name), *statements.create)
    return Step(capture.name, facts.name, "change", types, tuple(diff), statements_again)


def _drop_step(row: asyncpg.Record) -> Step:
    return Step(row["name"], row["table_name"], "drop", (), (), (drop_statement(row["name"]),))


def _diff(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    def lines(section: Mapping[str, object]) -> list[str]:
        return json.dumps(section, indent=2, ensure_ascii=False, default=str).splitlines()

    diff = difflib.unified_diff(lines(before), lines(after), n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


async def _execute(connection: Connection, step: Step, section: Mapping[str, object], now: datetime) -> None:
    for statement in step.statements:
        await connection.execute(statement)
    if step.action in ("create", "change"):
        await connection.execute(
            """INSERT INTO postrider.capture (name, table_name, section, checksum, applied_at)
               VALUES ($1, $2, $3::text::json, $4, $5)
               ON CONFLICT (name) DO UPDATE SET table_name = excluded.table_name, section = excluded.section,
                 checksum = excluded.checksum, applied_at = excluded.applied_at""",
            step.name,
            step.table,
            json.dumps(section, ensure_ascii=False, default=str),
            _checksum_of(step),
            now,
        )
    elif step.action == "drop":
        await connection.execute("DELETE FROM postrider.capture WHERE name = $1", step.name)
        await connection.execute("DELETE FROM postrider.capture_rejected WHERE capture = $1", step.name)


def _checksum_of(step: Step) -> str:
    created = tuple(each for each in step.statements if not each.startswith("DROP"))
    return Statements("", created).checksum


class _Inspector:
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
        return create_statements(capture, self.tables) if not self.mistakes else None

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
            async with self._connection.transaction():
                await self._connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
                await self._connection.execute(f"SELECT NULL::{type_name} IS DISTINCT FROM NULL::{type_name}")  # noqa: S608
                await self._connection.execute("SET LOCAL search_path TO DEFAULT")
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
                    async with self._connection.transaction():
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
