"""Captures in the database: compare the sections with the live tables, create and drop triggers, and read
what triggers set aside."""

import difflib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from postrider.domain.capture import Capture
from postrider.domain.errors import UsageError
from postrider.store.capture_inspector import CaptureInspector
from postrider.store.capture_sql import (
    TRIGGER_PREFIX,
    Statements,
    drop_statement,
)
from postrider.store.capture_values import TableFacts
from postrider.store.database import Connection, Database, DatabaseError

APPLY_LOCK_TIMEOUT = "5s"
"""How long `apply` waits for writers of a CRM's table; those who come meanwhile wait behind it."""

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
        async with _changing(self._database) as connection:
            steps = await _plan(connection, captures)
            sections = {capture.name: capture.section for capture in captures}
            for step in steps:
                await _execute(connection, step, sections.get(step.name, {}), now)
        return steps

    async def drop(self, names: Sequence[str] | None, now: datetime) -> list[Step]:
        """Remove captures and every trace of them, by name or all; return the steps."""
        async with _changing(self._database) as connection:
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

    async def forget_rejections(self, before: datetime) -> None:
        """Delete those that are older."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM postrider.capture_rejected WHERE at < $1", before)


@asynccontextmanager
async def _changing(database: Database) -> AsyncIterator[Connection]:
    """A transaction that changes triggers: it waits only shortly for the CRM, and says what it lacks."""
    async with database.transaction() as connection:
        try:
            await connection.execute(f"SET LOCAL lock_timeout = '{APPLY_LOCK_TIMEOUT}'")
            await connection.execute("LOCK TABLE postrider.capture IN SHARE ROW EXCLUSIVE MODE")
            yield connection
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
        inspector = CaptureInspector(connection, capture)
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
