"""Taking Postrider out of a database: what is there, and the removal of the schema and, where nothing else on
the server uses them, of the roles."""

from collections.abc import Sequence

import asyncpg

from postrider.domain.errors import PostriderError
from postrider.domain.installation import COUNTED_UP_TO, Installation
from postrider.store.capture_sql import TRIGGER_PREFIXES
from postrider.store.daemons import living_daemons
from postrider.store.database import Connection, DatabaseError

ROLES = (
    "postrider_emitter",
    "postrider_daemon",
    "postrider_owner",
    "postrider_writer",
    "postrider_prober",
    "postrider_capture",
)

_COUNTED = {
    "endpoints": "SELECT FROM postrider.endpoint WHERE state <> 'deleted'",
    "events": "SELECT FROM postrider.outbox",
    "events_under_way": "SELECT FROM postrider.pending",
    "deliveries": "SELECT FROM postrider.delivery",
    "deliveries_under_way": """SELECT FROM postrider.delivery
                               WHERE state IN ('waiting', 'retrying', 'sending')""",
    "attempts": "SELECT FROM postrider.attempt",
    "rows_set_aside": "SELECT FROM postrider.capture_rejected",
}
_COUNT = "SELECT count(*) FROM ({} LIMIT $1) AS counted"
_SIZE = """
SELECT count(*) FILTER (WHERE relkind IN ('r', 'p')) AS tables,
  pg_size_pretty(coalesce(sum(pg_total_relation_size(oid)) FILTER (WHERE relkind IN ('r', 'm')), 0)) AS size
FROM pg_class WHERE relnamespace = 'postrider'::regnamespace
"""
_TRIGGERS = """
SELECT format('%I on %s', t.tgname, t.tgrelid::regclass) AS trigger
FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE p.pronamespace = 'postrider'::regnamespace AND c.relnamespace <> 'postrider'::regnamespace
  AND NOT t.tgisinternal AND t.tgname::text ^@ ANY ($1::text[])
ORDER BY 1
"""
# What people made of the schema's tables, types and functions, and would be dropped with them.
_OTHERS = """
SELECT DISTINCT d.type || ' ' || d.identity AS object
FROM pg_depend AS p
  CROSS JOIN LATERAL pg_identify_object(p.refclassid, p.refobjid, 0) AS r
  CROSS JOIN LATERAL pg_identify_object(p.classid, p.objid, p.objsubid) AS d
WHERE p.deptype = 'n' AND r.schema = 'postrider' AND d.schema IS DISTINCT FROM 'postrider'
  AND d.identity !~ '(^|^for | on )postrider[.]'
  AND NOT (d.type = 'trigger' AND ltrim(d.identity, '"') ^@ ANY ($1::text[]))
ORDER BY 1
"""
_MEMBERS = """
SELECT r.rolname AS role,
  ARRAY(SELECT m.rolname::text FROM pg_auth_members AS a JOIN pg_roles AS m ON m.oid = a.member
        WHERE a.roleid = r.oid AND m.rolname <> ALL ($1::text[]) ORDER BY 1) AS members
FROM pg_roles AS r WHERE r.rolname = ANY ($1::text[]) ORDER BY array_position($1::text[], r.rolname::text)
"""


class Locked(DatabaseError):
    """A lock could not be had within a moment; the same call may succeed later."""


async def survey(connection: Connection) -> Installation | None:
    """What there is to remove, in a snapshot; None where there is no schema."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'postrider')"):
        return None
    size = await connection.fetchrow(_SIZE)
    assert size is not None
    return Installation(
        database=await connection.fetchval("SELECT current_database()"),
        tables=size["tables"],
        size=size["size"],
        counts={
            name: await connection.fetchval(_COUNT.format(rows), COUNTED_UP_TO + 1)
            for name, rows in _COUNTED.items()
        },
        triggers=await _column(connection, _TRIGGERS, TRIGGER_PREFIXES),
        roles={row["role"]: tuple(row["members"]) for row in await connection.fetch(_MEMBERS, list(ROLES))},
        others=await _column(connection, _OTHERS, TRIGGER_PREFIXES),
        daemons=await living_daemons(connection),
    )


async def remove(connection: Connection, lock_ms: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Drop the schema and the roles; return those dropped, and those kept with the reason. Raises
    PostriderError where a daemon has started, Locked, and DatabaseError; then the transaction is to be
    undone."""
    try:
        await connection.execute(
            f"SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = 0;"
            "LOCK TABLE postrider.daemon, postrider.migration IN ACCESS EXCLUSIVE MODE"
        )
        if started := await living_daemons(connection):
            raise PostriderError(f"a daemon has just started: {', '.join(started)}", "Stop it first.")
        await connection.execute("DROP SCHEMA postrider CASCADE")
    except asyncpg.LockNotAvailableError as error:
        raise Locked(str(error)) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise DatabaseError(
            f"a right is missing: {error}; the schema is still there",
            "Run it as a superuser: postrider uninstall --as postgres",
        ) from error
    return await _drop_roles(connection)


async def _drop_roles(connection: Connection) -> tuple[tuple[str, ...], dict[str, str]]:
    dropped, kept = [], {}
    for role in ROLES:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            continue
        try:
            async with connection.transaction():
                await connection.execute(f"DROP ROLE {role}")
            dropped.append(role)
        except asyncpg.DependentObjectsStillExistError as error:
            kept[role] = (error.detail or str(error)).replace("\n", "; ")
        except asyncpg.LockNotAvailableError as error:
            raise Locked(str(error)) from error
        except asyncpg.InsufficientPrivilegeError as error:
            kept[role] = str(error)
    return tuple(dropped), kept


async def _column(connection: Connection, query: str, *arguments: Sequence[str]) -> tuple[str, ...]:
    rows: Sequence[asyncpg.Record] = await connection.fetch(query, *arguments)
    return tuple(row[0] for row in rows)
