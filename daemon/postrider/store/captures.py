"""Captures in the database: compare the sections with the live tables, create and drop triggers."""

import difflib
import json
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import asyncpg

from postrider.domain.capture import Capture
from postrider.domain.capture_steps import Step
from postrider.domain.errors import UsageError
from postrider.store.capture_guard import demand_own_functions
from postrider.store.capture_inspector import CaptureInspector
from postrider.store.capture_rights import demand_rights
from postrider.store.capture_sql import CAPTURE_ROLE, Statements, drop_statements
from postrider.store.database import Connection, DatabaseError

APPLY_LOCK_TIMEOUT = "5s"
"""How long `apply` waits for writers of a CRM's table; those who come meanwhile wait behind it."""

_APPLIED = """
SELECT c.name, c.table_name, c.section::text AS section, c.checksum, c.grants,
  ARRAY(SELECT format('%I.%I', s.nspname, r.relname) FROM pg_trigger AS t
     JOIN pg_class AS r ON r.oid = t.tgrelid JOIN pg_namespace AS s ON s.oid = r.relnamespace
     JOIN pg_proc AS p ON p.oid = t.tgfoid
   WHERE p.pronamespace = 'postrider'::regnamespace
     AND p.proname IN ('capture_' || c.name, 'begun_' || c.name) AND t.tgenabled IN ('O', 'A')
     AND t.tgparentid = 0) AS triggers,
  f.bodies, f.owners, f.confined
FROM postrider.capture AS c CROSS JOIN LATERAL (
  SELECT array_agg(p.prosrc ORDER BY p.proname, p.pronargs) AS bodies,
    string_agg(DISTINCT o.rolname, ', ') AS owners,
    bool_and(CASE WHEN p.proname ^@ 'begun_' THEN NOT p.prosecdef ELSE p.prosecdef
             AND p.proconfig @> '{"search_path=pg_catalog, pg_temp",row_security=off}' END) AS confined
  FROM pg_proc AS p JOIN pg_roles AS o ON o.oid = p.proowner
  WHERE p.pronamespace = 'postrider'::regnamespace
    AND p.proname IN ('capture_' || c.name, 'begun_' || c.name)) AS f
ORDER BY c.name
"""

_MISSING_RIGHT = """
SELECT current_user AS name,
  format('GRANT EXECUTE ON FUNCTION postrider.evaluate TO %I', current_user) AS grant
WHERE NOT has_function_privilege('postrider.evaluate(text,json)', 'EXECUTE')
"""


async def plan(connection: Connection, captures: Sequence[Capture]) -> list[Step]:
    """Compare sections with what is applied. Raises UsageError with every mistake in the sections."""
    return await _steps(connection, await _wanted(connection, captures))


async def apply(connection: Connection, captures: Sequence[Capture], now: datetime) -> list[Step]:
    """Do what `plan` says; return the steps. What it raises has to undo the transaction."""
    async with _changing(connection):
        wanted = await _wanted(connection, captures)
        await demand_rights(connection, [inspector for inspector, _ in wanted.values()])
        steps = await _steps(connection, wanted)
        for step in steps:
            await _execute(connection, step)
            if step.action in ("create", "change"):
                await _note(connection, step, now)
    return steps


async def drop(connection: Connection, names: Sequence[str] | None) -> list[Step]:
    """Remove captures, those of `names` or, with None, all; return the steps. What they set aside stays, and
    becomes events when a capture of that name is applied again. What it raises has to undo the
    transaction."""
    async with _changing(connection):
        await demand_rights(connection, ())
        applied = await connection.fetch(_APPLIED)
        known = {row["name"] for row in applied}
        if names is not None and (unknown := sorted(set(names) - known)):
            raise UsageError(
                f"there is no capture {unknown[0]!r} in the database",
                f"Applied are: {', '.join(sorted(known)) or 'none'}.",
            )
        going = [row for row in applied if names is None or row["name"] in names]
        kept = {grant for row in applied if row not in going for grant in row["grants"]}
        steps = [_drop_step(row, kept) for row in going]
        for step in steps:
            await _execute(connection, step)
    return steps


@asynccontextmanager
async def _changing(connection: Connection) -> AsyncIterator[None]:
    """The part of a transaction that changes triggers: it waits only shortly for the CRM, and says what it
    lacks."""
    try:
        await connection.execute(f"SET LOCAL lock_timeout = '{APPLY_LOCK_TIMEOUT}'")
        await connection.execute("LOCK TABLE postrider.capture IN SHARE ROW EXCLUSIVE MODE")
        yield
    except asyncpg.LockNotAvailableError as cause:
        raise DatabaseError(
            f"a table was busy for {APPLY_LOCK_TIMEOUT}; nothing was changed",
            "Try again when no long transaction writes to it.",
        ) from cause
    except asyncpg.InsufficientPrivilegeError as cause:
        raise DatabaseError(
            f"a right is missing: {cause}; nothing was changed",
            "Run it as a superuser (--as postgres), or by $POSTRIDER_DATABASE_DSN as the tables' owner.",
        ) from cause


Plan = Mapping[str, tuple[CaptureInspector, Statements]]
"""By the name of the capture."""


async def _wanted(connection: Connection, captures: Sequence[Capture]) -> Plan:
    """What creates the captures. Raises UsageError with every mistake in the sections."""
    await demand_own_functions(connection)
    if flaw := await connection.fetchval("SELECT postrider.role_flaw($1)", CAPTURE_ROLE):
        raise UsageError(
            f"the role {CAPTURE_ROLE} {flaw}: what a table's owner defines would run with its rights",
            "Take that from the role, as in ALTER ROLE … NOLOGIN NOSUPERUSER, or REVOKE.",
        )
    missing = await connection.fetchrow(_MISSING_RIGHT)
    if missing is not None:
        raise DatabaseError(
            f"{missing['name']} may not call postrider.evaluate(), by which tables are looked at; "
            "nothing was changed",
            f"Let a superuser, or the owner of the schema postrider, run: {missing['grant']};",
        )
    wanted: dict[str, tuple[CaptureInspector, Statements]] = {}
    mistakes: list[str] = []
    closed: dict[str, None] = {}
    for capture in captures:
        inspector = CaptureInspector(connection, capture)
        statements = await inspector.statements()
        mistakes += inspector.mistakes
        closed |= inspector.closed
        if statements is not None:
            wanted[capture.name] = (inspector, statements)
    if mistakes:
        raise UsageError(
            "the [[capture]] sections don't fit the database:\n"
            + "\n".join(f"  {each}" for each in mistakes),
            f"Let the owner of the schema run: {'; '.join(closed)};"
            if closed
            else "Mend the configuration, or the tables; nothing was changed.",
        )
    return wanted


async def _steps(connection: Connection, wanted: Plan) -> list[Step]:
    """What makes the database as it is wanted."""
    rows = await connection.fetch(_APPLIED)
    applied = {row["name"]: row for row in rows}
    kept = {str(grant) for inspector, _ in wanted.values() for grant in inspector.grants}
    steps = [
        _step(inspector, statements, applied.get(name), kept)
        for name, (inspector, statements) in wanted.items()
    ]
    return steps + [_drop_step(row, kept) for row in rows if row["name"] not in wanted]


def _step(
    inspector: CaptureInspector, statements: Statements, row: asyncpg.Record | None, kept: Set[str]
) -> Step:
    capture, facts = inspector.capture, inspector.tables[inspector.capture.table]
    grants = tuple(str(grant) for grant in inspector.grants)
    create = (*(grant.statement for grant in inspector.lacking), *statements.create)

    def step(action: str, diff: Sequence[str] = (), todo: tuple[str, ...] = ()) -> Step:
        types = tuple(capture.event_types)
        return Step(
            capture.name,
            facts.name,
            action,
            types,
            tuple(diff),
            todo,
            grants,
            statements.checksum,
            None if row is None else json.loads(row["section"]),
            capture.section,
            tuple(inspector.warnings),
        )

    if row is None:
        return step("create", (), create)
    bodies = [f"\n{body}\n" for body in statements.function_bodies]
    triggers = sum(each.startswith("CREATE TRIGGER") for each in statements.create)
    diff = _diff(json.loads(row["section"]), capture.section)
    diff += [
        f"{each}, a partition, has no triggers: what is written straight to it tells nothing"
        for each in facts.partitions
        if each not in row["triggers"]
    ]
    if row["owners"] not in (None, CAPTURE_ROLE):
        diff.append(f"its functions run with the rights of {row['owners']}, not with those of {CAPTURE_ROLE}")
    elif row["checksum"] != statements.checksum:
        diff = diff or ["the tables, or Postrider, have changed since it was applied"]
    elif (
        row["bodies"] != bodies
        or not row["confined"]
        or len(row["triggers"]) != triggers
        or row["table_name"] != facts.name
    ):
        diff = diff or ["its functions or its triggers are missing, disabled or not as they were applied"]
    diff += [f"{CAPTURE_ROLE} lacks {grant}" for grant in inspector.lacking]
    if not diff:
        return step("keep")
    return step("change", diff, (*_undo(row, kept), *create))


def _drop_step(row: asyncpg.Record, kept: Set[str]) -> Step:
    section = json.loads(row["section"])
    return Step(row["name"], row["table_name"], "drop", (), (), _undo(row, kept), (), "", section)


def _undo(row: asyncpg.Record, kept: Set[str]) -> tuple[str, ...]:
    """`kept`: grants that captures need afterwards."""
    gone = (grant for grant in row["grants"] if grant not in kept)
    return (*drop_statements(row["name"]), *(f"REVOKE {grant} FROM {CAPTURE_ROLE}" for grant in gone))


def _diff(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    def lines(section: Mapping[str, object]) -> list[str]:
        return json.dumps(section, indent=2, ensure_ascii=False, default=str).splitlines()

    diff = difflib.unified_diff(lines(before), lines(after), n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


async def _execute(connection: Connection, step: Step) -> None:
    for statement in step.statements:
        if statement.startswith(("REVOKE SELECT", "REVOKE USAGE")):
            # The table may be gone, and the right with it.
            with suppress(
                asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError
            ):
                async with connection.transaction():
                    await connection.execute(statement)
        else:
            await connection.execute(statement)
    if step.action == "drop":
        await connection.execute("DELETE FROM postrider.capture WHERE name = $1", step.name)


async def _note(connection: Connection, step: Step, now: datetime) -> None:
    """Keep what is applied, for the next comparison."""
    await connection.execute(
        """INSERT INTO postrider.capture (name, table_name, section, checksum, grants, applied_at)
           VALUES ($1, $2, $3::text::json, $4, $5, $6)
           ON CONFLICT (name) DO UPDATE SET table_name = excluded.table_name, section = excluded.section,
             checksum = excluded.checksum, grants = excluded.grants, applied_at = excluded.applied_at""",
        step.name,
        step.table,
        json.dumps(step.section, ensure_ascii=False, default=str),
        step.checksum,
        list(step.grants),
        now,
    )
