"""Numbered migrations: each applied once, in its own transaction, under a lock, with a checksum.

A migration never makes the CRM wait for long: it gives up a lock that it does not get within a moment, lets
the writers who queued behind it pass, and tries again. One that begins with `-- concurrently` only makes
indexes, by CREATE INDEX CONCURRENTLY IF NOT EXISTS, outside of a transaction: what was cut off leaves an
invalid index, which is dropped before the next try. That, and noting it as applied once all are valid, is
done under the lock: two hosts may be at it at once, and one may die.

A program works with a schema that is newer than its own unless one of the migrations that it does not know
says that it breaks it: `-- breaks: N` in the file, kept in the database, are programs that know no migration
after N. The rule: no migration breaks the previous release, so that daemons are upgraded one by one; what
only it needs is taken away one release later.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import asyncpg

from postrider.domain.errors import UsageError
from postrider.store.database import Connection, DatabaseError, is_pooled, pin, translated_errors

_CONCURRENTLY = "-- concurrently\n"
_BREAKS = re.compile(r"^-- breaks: (\d+)$", re.MULTILINE)
_RELEASED_BREAKS = {7: 6}
"""Of migrations that were released before their files could say it."""
_INDEX = re.compile(r"^CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+) ON postrider\.", re.MULTILINE)

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS postrider;
CREATE TABLE IF NOT EXISTS postrider.migration (
  number     integer PRIMARY KEY,
  name       text NOT NULL,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
"""

# Whoever has held a lock on a table of Postrider's for as long as somebody waited for it; the longest first.
# What another user's session does may not be shown to this one.
_IN_THE_WAY = """
SELECT a.pid, a.usename, a.application_name, host(a.client_addr) AS host, a.state, a.xact_start,
       string_agg(DISTINCT c.relname, ', ') AS relations
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid JOIN pg_class AS c ON c.oid = l.relation
WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND c.relkind IN ('r', 'p') AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
  AND coalesce(a.xact_start < clock_timestamp() - $1 * interval '1 ms', true)
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY a.xact_start NULLS LAST LIMIT 5
"""

_INDEXES = """
SELECT c.relname AS name, i.indisvalid AND i.indisready AS valid
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE c.relname = ANY ($1::text[])
  AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
"""

T = TypeVar("T")


class _Unfinished(Exception):
    """Another session builds the same index, was cut off while it did, or has just finished it."""


class SchemaError(DatabaseError):
    """The schema in the database is not the one this program works with."""


class OutdatedProgram(SchemaError):
    """The schema is newer than this program, and does not work with it: only an upgrade helps."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a migration may stand in the way of others, and how often it tries."""

    lock_ms: int = 500
    """So long it waits for a lock, and everybody who comes later waits behind it."""
    tries: int = 20
    pause_s: float = 1.0
    concurrent_lock_ms: int = 20_000
    """What runs concurrently waits for old transactions, with nobody behind it."""


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def concurrently(self) -> bool:
        return self.sql.startswith(_CONCURRENTLY)

    @property
    def breaks(self) -> int | None:
        """Programs that know no migration after this one don't work any more; None: all do."""
        match = _BREAKS.search(self.sql)
        return int(match[1]) if match else _RELEASED_BREAKS.get(self.number)


class Applied(NamedTuple):
    """A migration as the database remembers it."""

    name: str
    checksum: str
    breaks: int | None


def read_migrations(directory: Path) -> list[Migration]:
    """The files NNNN_name.sql of `directory`, in order, numbered from 1 without a gap."""
    migrations = [
        Migration(int(match[1]), match[2], path.read_text())
        for path in sorted(directory.glob("*.sql"))
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", path.name))
    ]
    assert [m.number for m in migrations] == list(range(1, len(migrations) + 1)), "a migration is missing"
    return migrations


async def migrate(
    connection: Connection,
    migrations: list[Migration],
    to: int | None = None,
    *,
    patience: Patience = PATIENCE,
) -> list[Migration]:
    """Apply what is missing up to number `to` (None: all); return what was applied.

    `connection` should have no command timeout: a statement may take as long as it needs. Raises SchemaError
    if an applied migration was edited, OutdatedProgram if the database is newer than the program;
    DatabaseError, with the sessions in the way, if a lock can't be had.
    """
    target = len(migrations) if to is None else to
    if not 0 < target <= len(migrations):
        raise UsageError(f"there is no migration {target}", f"Choose a number from 1 to {len(migrations)}.")
    applied_now = []
    with translated_errors():
        try:
            await _patiently(connection, patience, partial(_bootstrap, connection, patience))
            for migration in migrations[:target]:
                apply = _apply_concurrently if migration.concurrently else _apply
                act = partial(apply, connection, migrations, migration, patience)
                if await _patiently(connection, patience, act):
                    applied_now.append(migration)
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseError(
                f"migrate lacks a right: {error}",
                error.hint
                or "Run it as a user who may create a schema in this database and create roles: "
                "POSTRIDER_DATABASE_DSN=… postrider migrate",
            ) from error
    return applied_now


async def check_schema(connection: Connection, migrations: list[Migration]) -> int:
    """The number of the applied schema; raises SchemaError unless the program works with it."""
    with translated_errors():
        applied = await applied_migrations(connection)
    _compare(applied, migrations)
    for number, migration in sorted(applied.items()):
        if number > len(migrations) and migration.breaks is not None and migration.breaks >= len(migrations):
            raise OutdatedProgram(
                f"this Postrider is too old for the database: it knows schema {len(migrations)}, "
                f"the database has {max(applied)}, and {number:04}_{migration.name} broke programs that know "
                f"no more than {migration.breaks}",
                "Upgrade Postrider on this host, and start it again. To migrate does not help.",
            )
    if len(applied) < len(migrations):
        raise SchemaError(
            f"the database has schema {len(applied)}; this Postrider needs {len(migrations)}",
            "Run `postrider migrate`.",
        )
    return max(applied)


async def applied_migrations(connection: Connection) -> dict[int, Applied]:
    """By their numbers; none where there is no schema."""
    try:
        return await _applied(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return {}


async def _patiently(connection: Connection, patience: Patience, act: Callable[[], Awaitable[T]]) -> T:
    """Act again while a lock can't be had, with pauses in which those who waited behind it go on."""
    for _ in range(patience.tries - 1):
        try:
            return await act()
        except (
            asyncpg.LockNotAvailableError,
            asyncpg.DeadlockDetectedError,
            asyncpg.UniqueViolationError,  # another session made the same schema at this moment
            asyncpg.DuplicateTableError,  # or the same index
            _Unfinished,
        ):
            await asyncio.sleep(patience.pause_s)
    try:
        return await act()
    except (asyncpg.LockNotAvailableError, _Unfinished) as error:
        raise await _explain(connection, patience) from error


async def _explain(connection: Connection, patience: Patience) -> DatabaseError:
    async with connection.transaction():
        await pin(connection)
        rows = await connection.fetch(_IN_THE_WAY, patience.lock_ms)
    message = f"migrate could not get a lock in {patience.tries} tries; nothing of this migration was applied"
    if not rows:
        return DatabaseError(message, "Try again when fewer sessions write.")
    pids = " or ".join(f"SELECT pg_terminate_backend({row['pid']})" for row in rows)
    return DatabaseError(
        f"{message}. In the way:\n" + "\n".join(f"  {_session(row)}" for row in rows),
        f"End those transactions, by their application or by {pids}, then run `postrider migrate` again.",
    )


def _session(row: asyncpg.Record) -> str:
    since = f"since {row['xact_start']:%Y-%m-%d %H:%M:%S} UTC" if row["xact_start"] else "of another user"
    place = f" from {row['host']}" if row["host"] else ""
    return (
        f"session {row['pid']}: user {row['usename']}{place}, "
        f"application {row['application_name'] or 'unnamed'!r}, {row['state'] or 'in an unknown state'}, "
        f"in a transaction {since}, with locks on {row['relations']}"
    )


async def _bootstrap(connection: Connection, patience: Patience) -> None:
    async with connection.transaction():
        await _begin(connection, patience)
        if await connection.fetchval("SELECT to_regclass('postrider.migration') IS NULL"):
            await connection.execute(_BOOTSTRAP)


async def _apply(
    connection: Connection, migrations: list[Migration], migration: Migration, patience: Patience
) -> bool:
    """Apply a migration in a transaction; False if it was applied before."""
    async with connection.transaction():
        await _begin(connection, patience)
        if await _is_applied(connection, migrations, migration) or await _is_applied_by_now(
            connection, migrations, migration
        ):
            return False
        await connection.execute(migration.sql)
        await _note(connection, migration)
    return True


async def _apply_concurrently(
    connection: Connection, migrations: list[Migration], migration: Migration, patience: Patience
) -> bool:
    """Apply a migration that runs outside of a transaction; False if it was applied before."""
    if await _is_applied(connection, migrations, migration):
        return False
    names = _INDEX.findall(migration.sql)
    async with connection.transaction():
        await _begin(connection, patience)
        if await _is_applied_by_now(connection, migrations, migration):
            return False
        for row in await connection.fetch(_INDEXES, names):
            if not row["valid"]:
                # Whoever still builds it holds a lock that this waits for; if he has done meanwhile, he finds
                # it gone before he can note it, and begins again.
                try:
                    await connection.execute(f"DROP INDEX postrider.{row['name']}")
                except asyncpg.InternalServerError as error:  # "tuple concurrently updated"
                    raise _Unfinished from error
    async with _bounded(connection, patience):
        for statement in migration.sql.split(";\n"):
            if statement.strip():
                await connection.execute(statement)
    async with connection.transaction():
        await _begin(connection, patience)
        if await _is_applied_by_now(connection, migrations, migration):
            return False
        valid = {row["name"] for row in await connection.fetch(_INDEXES, names) if row["valid"]}
        if valid != set(names):
            raise _Unfinished
        await _note(connection, migration)
    return True


@asynccontextmanager
async def _bounded(connection: Connection, patience: Patience) -> AsyncIterator[None]:
    """The bounds of statements that can't be in a transaction. Behind a pooler there are none: what is set
    there stays in a session that others use, and is not known to be the one of the next statement."""
    if await is_pooled(connection):
        yield
        return
    await connection.execute(f"SET lock_timeout = {patience.concurrent_lock_ms}; SET statement_timeout = 0")
    try:
        yield
    finally:
        await connection.execute("RESET lock_timeout; RESET statement_timeout")


async def _begin(connection: Connection, patience: Patience) -> None:
    await pin(connection)
    await connection.execute(f"SET LOCAL lock_timeout = {patience.lock_ms}; SET LOCAL statement_timeout = 0")


async def _is_applied(connection: Connection, migrations: list[Migration], migration: Migration) -> bool:
    applied = await _applied(connection)
    _compare(applied, migrations)
    if len(applied) > len(migrations):
        raise OutdatedProgram(
            f"the database has schema {max(applied)}, newer than this Postrider ({len(migrations)})",
            "Upgrade Postrider on this host to the version that migrated the database.",
        )
    return migration.number in applied


async def _is_applied_by_now(
    connection: Connection, migrations: list[Migration], migration: Migration
) -> bool:
    """The same, once no other host is at it, up to the end of the transaction."""
    # An advisory lock has no owner: any login could hold it. This one takes a right.
    await connection.execute("LOCK TABLE postrider.migration IN SHARE ROW EXCLUSIVE MODE")
    return await _is_applied(connection, migrations, migration)


async def _note(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO postrider.migration (number, name, checksum) VALUES ($1, $2, $3)",
        migration.number,
        migration.name,
        migration.checksum,
    )
    if migration.breaks is not None and migration.number not in _RELEASED_BREAKS:
        await connection.execute(
            "UPDATE postrider.migration SET breaks = $2 WHERE number = $1", migration.number, migration.breaks
        )


async def _applied(connection: Connection) -> dict[int, Applied]:
    # The column is not there before the migration that makes it.
    rows = await connection.fetch(
        """SELECT number, name, checksum, (to_jsonb(m) ->> 'breaks')::integer AS breaks
           FROM postrider.migration AS m"""
    )
    return {row["number"]: Applied(row["name"], row["checksum"], row["breaks"]) for row in rows}


def _compare(applied: dict[int, Applied], migrations: list[Migration]) -> None:
    """Raises SchemaError if a migration that the program knows was edited."""
    for migration in migrations:
        known = applied.get(migration.number)
        if known is not None and known.checksum != migration.checksum:
            raise SchemaError(
                f"migration {migration.number:04}_{known.name} was edited after it had been applied",
                "Restore the file as it was released, and put the change into a new migration.",
            )
