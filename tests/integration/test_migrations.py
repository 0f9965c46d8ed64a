"""postrider migrate: safe to run twice and at once, and refuses what it does not know."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.database import Connection, DatabaseError
from postrider.store.migrations import Schema, SchemaError, check_schema, read_schema
from tests.conftest import execute
from tests.support.migrating import migrate

SCHEMA = read_schema(sql_dir())
MIGRATIONS = SCHEMA.migrations


def with_connection(dsn: str, call: Callable[[Connection], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await call(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_a_second_run_has_nothing_to_do(empty_database_dsn: str) -> None:
    everything = [*MIGRATIONS, *SCHEMA.functions]
    assert with_connection(empty_database_dsn, lambda c: migrate(c, SCHEMA)) == everything
    assert with_connection(empty_database_dsn, lambda c: migrate(c, SCHEMA)) == []
    assert with_connection(empty_database_dsn, lambda c: check_schema(c, SCHEMA)) == len(MIGRATIONS)


def test_two_runs_at_once_apply_each_migration_and_function_once(empty_database_dsn: str) -> None:
    async def run() -> list[str]:
        first, second = [await asyncpg.connect(empty_database_dsn) for _ in range(2)]
        try:
            applied = await asyncio.gather(migrate(first, SCHEMA), migrate(second, SCHEMA))
        finally:
            await first.close()
            await second.close()
        return [str(script) for each in applied for script in each]

    assert sorted(asyncio.run(run())) == sorted(map(str, [*MIGRATIONS, *SCHEMA.functions]))


def test_it_stops_where_it_is_told_to(empty_database_dsn: str) -> None:
    assert len(with_connection(empty_database_dsn, lambda c: migrate(c, SCHEMA, to=1))) == 1
    with pytest.raises(SchemaError, match="this Postrider needs") as caught:
        with_connection(empty_database_dsn, lambda c: check_schema(c, SCHEMA))
    assert "postrider migrate" in caught.value.hint


def test_a_failing_migration_leaves_nothing_of_itself(empty_database_dsn: str) -> None:
    broken = Schema((MIGRATIONS[0], replace(MIGRATIONS[1], sql=MIGRATIONS[1].sql + "; SELECT 1/0;")))
    with pytest.raises(asyncpg.DivisionByZeroError):
        with_connection(empty_database_dsn, lambda c: migrate(c, broken))
    applied = with_connection(empty_database_dsn, lambda c: migrate(c, SCHEMA))
    assert applied == [*MIGRATIONS[1:], *SCHEMA.functions]


def test_an_edited_migration_is_refused(database_dsn: str) -> None:
    edited = Schema((replace(MIGRATIONS[0], sql=MIGRATIONS[0].sql + "-- later thought"), *MIGRATIONS[1:]))
    with pytest.raises(SchemaError, match=r"0001_outbox was edited") as caught:
        with_connection(database_dsn, lambda c: migrate(c, edited))
    assert "new migration" in caught.value.hint


def test_a_newer_database_is_refused(database_dsn: str) -> None:
    with pytest.raises(SchemaError, match="newer than this Postrider") as caught:
        with_connection(database_dsn, lambda c: migrate(c, Schema(MIGRATIONS[:-1], SCHEMA.functions)))
    assert "Upgrade" in caught.value.hint


def test_a_user_without_rights_is_told_what_is_missing(empty_database_dsn: str, server_dsn: str) -> None:
    async def run(connection: Connection) -> None:
        await connection.execute("SET ROLE postrider_migration_test")
        await migrate(connection, SCHEMA)

    execute(
        server_dsn, "DROP ROLE IF EXISTS postrider_migration_test", "CREATE ROLE postrider_migration_test"
    )
    try:
        with pytest.raises(DatabaseError, match="permission denied") as caught:
            with_connection(empty_database_dsn, run)
        assert "may create a schema" in caught.value.hint
    finally:
        execute(server_dsn, "DROP ROLE postrider_migration_test")


def test_who_migrates_may_be_no_superuser_but_has_to_belong_to_the_roles(
    database_dsn: str, empty_database_dsn: str, server_dsn: str
) -> None:
    assert database_dsn, "so that the roles exist"
    role, roles = (
        "postrider_migrating_test",
        "postrider_owner, postrider_writer, postrider_capture, postrider_prober",
    )

    async def run(connection: Connection) -> str:
        await connection.execute(f"SET ROLE {role}")
        await migrate(connection, SCHEMA)
        await connection.execute("SELECT postrider.create_partition('outbox', current_date + 40)")
        return str(await connection.fetchval("SELECT postrider.emit('deal.updated', '{}')"))

    execute(server_dsn, f"DROP ROLE IF EXISTS {role}", f"CREATE ROLE {role}")
    try:
        execute(
            empty_database_dsn,
            "DO $$ BEGIN EXECUTE format("
            f"'GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$",
        )
        with pytest.raises(DatabaseError, match="is not a member of the role postrider_owner") as caught:
            with_connection(empty_database_dsn, run)
        assert f"GRANT postrider_owner TO {role}" in caught.value.hint
        execute(server_dsn, f"GRANT {roles} TO {role}")
        assert with_connection(empty_database_dsn, run).startswith("evt_")
    finally:
        execute(empty_database_dsn, f"DROP OWNED BY {role} CASCADE")
        execute(server_dsn, f"DROP ROLE {role}")


def test_files_are_numbered_without_a_gap() -> None:
    names = sorted(path.name for path in sql_dir().glob("[0-9]*.sql"))
    assert [int(re.match(r"\d{4}", name)[0]) for name in names] == list(range(1, len(names) + 1))  # type: ignore[index]
