"""Numbered migrations: each applied once, in its own transaction, under an advisory lock, with a checksum."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from postrider.domain.errors import UsageError
from postrider.store.database import Connection, DatabaseError, translated_errors

LOCK_CLASS = 1886352244
"""First key of every advisory lock of Postrider ('post' as a number); the second is a daemon's id, or 0."""

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS postrider;
CREATE TABLE IF NOT EXISTS postrider.migration (
  number     integer PRIMARY KEY,
  name       text NOT NULL,
  checksum   text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
"""


class SchemaError(DatabaseError):
    """The schema in the database is not the one this program works with."""


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


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
    connection: Connection, migrations: list[Migration], to: int | None = None
) -> list[Migration]:
    """Apply what is missing up to number `to` (None: all); return what was applied.

    Raises SchemaError if an applied migration was edited, or the database is newer than the program.
    """
    target = len(migrations) if to is None else to
    if not 0 < target <= len(migrations):
        raise UsageError(f"there is no migration {target}", f"Choose a number from 1 to {len(migrations)}.")
    applied_now = []
    with translated_errors():
        try:
            async with connection.transaction():
                await _lock(connection)
                await connection.execute(_BOOTSTRAP)
            for migration in migrations[:target]:
                async with connection.transaction():
                    await _lock(connection)
                    applied = await _applied(connection)
                    _compare(applied, migrations)
                    if migration.number in applied:
                        continue
                    await connection.execute(migration.sql)
                    await connection.execute(
                        "INSERT INTO postrider.migration (number, name, checksum) VALUES ($1, $2, $3)",
                        migration.number,
                        migration.name,
                        migration.checksum,
                    )
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
    """The number of the applied schema; raises SchemaError unless it is the program's own."""
    with translated_errors():
        try:
            applied = await _applied(connection)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            applied = {}
    _compare(applied, migrations)
    if len(applied) < len(migrations):
        raise SchemaError(
            f"the database has schema {len(applied)}; this Postrider needs {len(migrations)}",
            "Run `postrider migrate`.",
        )
    return len(applied)


async def _lock(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock($1, 0)", LOCK_CLASS)


async def _applied(connection: Connection) -> dict[int, tuple[str, str]]:
    rows = await connection.fetch("SELECT number, name, checksum FROM postrider.migration")
    return {row["number"]: (row["name"], row["checksum"]) for row in rows}


def _compare(applied: dict[int, tuple[str, str]], migrations: list[Migration]) -> None:
    known = {migration.number: migration for migration in migrations}
    for number, (name, checksum) in sorted(applied.items()):
        if number not in known:
            raise SchemaError(
                f"the database has schema {max(applied)}, newer than this Postrider ({len(migrations)})",
                "Upgrade Postrider on this host to the version that migrated the database.",
            )
        if known[number].checksum != checksum:
            raise SchemaError(
                f"migration {number:04}_{name} was edited after it had been applied",
                "Restore the file as it was released, and put the change into a new migration.",
            )
