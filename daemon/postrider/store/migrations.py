"""Numbered migrations: each applied once, in its own transaction, under a lock, with a checksum.

A migration never makes the CRM wait for long, see `patience`. One that begins with `-- concurrently` only
makes indexes, by CREATE INDEX CONCURRENTLY IF NOT EXISTS, outside of a transaction: what was cut off leaves
an invalid index, which is dropped before the next try. That, and noting it as applied once all are valid, is
done under the lock: two hosts may be at it at once, and one may die. After the last one come the functions,
see `sql_functions`.

A program works with a schema that is newer than its own unless one of the migrations that it does not know
says that it breaks it: `-- breaks: N` in the file, kept in the database, are programs that know no migration
after N. The rule: no migration breaks the previous release, so that daemons are upgraded one by one; what
only it needs is taken away one release later.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg

from postrider.domain.errors import UsageError
from postrider.store import sql_functions
from postrider.store.database import Connection, DatabaseError, is_pooled, translated_errors
from postrider.store.foreign_code import hold
from postrider.store.patience import PATIENCE, Patience, Sleep, Unfinished, begin, patiently
from postrider.store.script import Script
from postrider.store.sql_functions import FunctionFile, read_functions

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

_INDEXES = """
SELECT c.relname AS name, i.indisvalid AND i.indisready AS valid
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE c.relname = ANY ($1::text[])
  AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'postrider')
"""


class SchemaError(DatabaseError):
    """The schema in the database is not the one this program works with."""


class OutdatedProgram(SchemaError):
    """The schema is newer than this program, and does not work with it: only an upgrade helps."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Migration(Script):
    number: int

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"

    @property
    def concurrently(self) -> bool:
        return self.sql.startswith(_CONCURRENTLY)

    @property
    def breaks(self) -> int | None:
        """Programs that know no migration after this one don't work any more; None: all do."""
        match = _BREAKS.search(self.sql)
        return int(match[1]) if match else _RELEASED_BREAKS.get(self.number)


@dataclass(frozen=True, slots=True)
class Schema:
    """What this program makes of the schema `postrider`."""

    migrations: tuple[Migration, ...]
    functions: tuple[FunctionFile, ...] = ()

    @property
    def number(self) -> int:
        """Of the last migration."""
        return len(self.migrations)


class Applied(NamedTuple):
    """A migration as the database remembers it."""

    name: str
    checksum: str
    breaks: int | None


def read_schema(directory: Path) -> Schema:
    """The files NNNN_name.sql of `directory`, in order, numbered from 1 without a gap, and those of its
    functions/."""
    migrations = tuple(
        Migration(match[2], path.read_text(), int(match[1]))
        for path in sorted(directory.glob("*.sql"))
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", path.name))
    )
    assert [m.number for m in migrations] == list(range(1, len(migrations) + 1)), "a migration is missing"
    return Schema(migrations, read_functions(directory / "functions"))


async def migrate(
    connection: Connection,
    schema: Schema,
    to: int | None = None,
    *,
    sleep: Sleep,
    patience: Patience = PATIENCE,
) -> list[Migration | FunctionFile]:
    """Apply what is missing up to number `to` (None: all), and after the last migration the functions that
    have changed; return what was applied.

    `connection` should have no command timeout: a statement may take as long as it needs. Raises SchemaError
    if an applied migration was edited, OutdatedProgram if the database is newer than the program;
    DatabaseError, with the sessions in the way, if a lock can't be had.
    """
    target = schema.number if to is None else to
    if not 0 < target <= schema.number:
        raise UsageError(f"there is no migration {target}", f"Choose a number from 1 to {schema.number}.")
    applied_now: list[Migration | FunctionFile] = []
    with translated_errors():
        try:
            await patiently(connection, sleep, patience, partial(_bootstrap, connection, patience))
            for migration in schema.migrations[:target]:
                apply = _apply_concurrently if migration.concurrently else _apply
                act = partial(apply, connection, schema, migration, patience)
                if await patiently(connection, sleep, patience, act):
                    applied_now.append(migration)
            if schema.functions and target == schema.number:
                replace = partial(_replace_functions, connection, schema, patience)
                applied_now += await patiently(connection, sleep, patience, replace)
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseError(
                f"migrate lacks a right: {error}",
                error.hint
                or "Run it as a user who may create a schema in this database and create roles: "
                "POSTRIDER_DATABASE_DSN=… postrider migrate",
            ) from error
    return applied_now


async def check_schema(connection: Connection, schema: Schema) -> int:
    """The number of the applied schema; raises SchemaError unless the program works with it."""
    with translated_errors():
        applied = await applied_migrations(connection)
    _compare(applied, schema)
    for number, migration in sorted(applied.items()):
        if number > schema.number and migration.breaks is not None and migration.breaks >= schema.number:
            raise OutdatedProgram(
                f"this Postrider is too old for the database: it knows schema {schema.number}, "
                f"the database has {max(applied)}, and {number:04}_{migration.name} broke programs that know "
                f"no more than {migration.breaks}",
                "Upgrade Postrider on this host, and start it again. To migrate does not help.",
            )
    if len(applied) < schema.number:
        raise SchemaError(
            f"the database has schema {len(applied)}; this Postrider needs {schema.number}",
            "Run `postrider migrate`.",
        )
    if schema.functions and max(applied) == schema.number:
        with translated_errors():
            outdated = await sql_functions.outdated(connection, schema.functions)
        if outdated:
            raise SchemaError(
                f"functions in the database are not this Postrider's: {', '.join(map(str, outdated))}",
                "Run `postrider migrate`.",
            )
    return max(applied)


async def applied_migrations(connection: Connection) -> dict[int, Applied]:
    """By their numbers; none where there is no schema."""
    try:
        return await _applied(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return {}


async def _bootstrap(connection: Connection, patience: Patience) -> None:
    async with connection.transaction():
        await begin(connection, patience)
        if await connection.fetchval("SELECT to_regclass('postrider.migration') IS NULL"):
            await connection.execute(_BOOTSTRAP)


async def _apply(connection: Connection, schema: Schema, migration: Migration, patience: Patience) -> bool:
    """Apply a migration in a transaction; False if it was applied before."""
    async with connection.transaction():
        await begin(connection, patience)
        if await _is_applied(connection, schema, migration) or await _is_applied_by_now(
            connection, schema, migration
        ):
            return False
        await connection.execute(migration.sql)
        await _note(connection, migration)
    return True


async def _apply_concurrently(
    connection: Connection, schema: Schema, migration: Migration, patience: Patience
) -> bool:
    """Apply a migration that runs outside of a transaction; False if it was applied before."""
    names = _INDEX.findall(migration.sql)
    async with connection.transaction():
        await begin(connection, patience)
        if await _is_applied(connection, schema, migration) or await _is_applied_by_now(
            connection, schema, migration
        ):
            return False
        for row in await connection.fetch(_INDEXES, names):
            if not row["valid"]:
                # Whoever still builds it holds a lock that this waits for; if he has done meanwhile, he finds
                # it gone before he can note it, and begins again.
                try:
                    await connection.execute(f"DROP INDEX postrider.{row['name']}")
                except asyncpg.InternalServerError as error:  # "tuple concurrently updated"
                    raise Unfinished from error
    async with _bounded(connection, patience):
        for statement in migration.sql.split(";\n"):
            if statement.strip():
                await connection.execute(statement)
    async with connection.transaction():
        await begin(connection, patience)
        if await _is_applied_by_now(connection, schema, migration):
            return False
        valid = {row["name"] for row in await connection.fetch(_INDEXES, names) if row["valid"]}
        if valid != set(names):
            raise Unfinished
        await _note(connection, migration)
    return True


async def _replace_functions(
    connection: Connection, schema: Schema, patience: Patience
) -> list[FunctionFile]:
    """Replace the functions that have changed; return their files."""
    async with connection.transaction():
        await begin(connection, patience)
        await hold(connection, "sql_function", to="read")
        if not await sql_functions.outdated(connection, schema.functions):
            return []
        await _exclude_others(connection)
        await hold(connection, "sql_function", to="write")
        await _applied_to(connection, schema)  # a newer program may have been here while this one waited
        outdated = await sql_functions.outdated(connection, schema.functions)
        await sql_functions.apply(connection, outdated)
    return outdated


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


async def _is_applied(connection: Connection, schema: Schema, migration: Migration) -> bool:
    return migration.number in await _applied_to(connection, schema)


async def _is_applied_by_now(connection: Connection, schema: Schema, migration: Migration) -> bool:
    """The same, once no other host is at it, up to the end of the transaction."""
    await _exclude_others(connection)
    return await _is_applied(connection, schema, migration)


async def _exclude_others(connection: Connection) -> None:
    # An advisory lock has no owner: any login could hold it. This one takes a right.
    await hold(connection, "migration", to="write")


async def _applied_to(connection: Connection, schema: Schema) -> dict[int, Applied]:
    """What is applied; raises OutdatedProgram where that is more than the program knows."""
    await hold(connection, "migration", to="read")
    applied = await _applied(connection)
    _compare(applied, schema)
    if len(applied) > schema.number:
        raise OutdatedProgram(
            f"the database has schema {max(applied)}, newer than this Postrider ({schema.number})",
            "Upgrade Postrider on this host to the version that migrated the database.",
        )
    return applied


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


def _compare(applied: dict[int, Applied], schema: Schema) -> None:
    """Raises SchemaError if a migration that the program knows was edited."""
    for migration in schema.migrations:
        known = applied.get(migration.number)
        if known is not None and known.checksum != migration.checksum:
            raise SchemaError(
                f"migration {migration.number:04}_{known.name} was edited after it had been applied",
                "Restore the file as it was released, and put the change into a new migration.",
            )
