"""The files of sql/functions: `migrate` applies again what has changed, and nothing but a body changes."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.database import Connection, DatabaseError
from postrider.store.migrations import OutdatedProgram, Schema, SchemaError, check_schema, read_schema
from postrider.store.patience import Patience
from postrider.store.sql_functions import FunctionFile
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import query, write_config
from tests.support.functions import functions_of
from tests.support.logins import login, user_of
from tests.support.migrating import migrate

SCHEMA = read_schema(sql_dir())
EMIT = "postrider.emit(text,json,json,text,text,text,json,json,timestamp with time zone,text)"


def edited(schema: Schema = SCHEMA) -> Schema:
    """A program whose emit() refuses data that is too large with another code."""
    return Schema(
        schema.migrations,
        tuple(
            replace(each, sql=each.sql.replace("'program_limit_exceeded'", "'2F001'"))
            if each.name == "emit"
            else each
            for each in schema.functions
        ),
    )


def run(dsn: str, call: Callable[[Connection], Awaitable[Any]]) -> Any:
    async def story() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await call(connection)
        finally:
            await connection.close()

    return asyncio.run(story())


def migrated(dsn: str, schema: Schema) -> list[str]:
    return [
        str(each) for each in run(dsn, lambda c: migrate(c, schema, patience=Patience(tries=2, pause_s=0.1)))
    ]


async def until_it_waits(
    connection: Connection, waiting: asyncpg.Connection, task: "asyncio.Task[Any]"
) -> None:
    """For a lock."""
    while not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", waiting.get_server_pid()
    ):
        assert not task.done()
        await asyncio.sleep(0)


def test_every_function_of_the_schema_stands_in_one_file(database_dsn: str) -> None:
    in_files = [(name, each.name) for each in SCHEMA.functions for name in dict.fromkeys(each.functions)]
    in_schema = {name.partition("(")[0].removeprefix("postrider.") for name in functions_of(database_dsn)}
    assert sorted(name for name, _ in in_files) == sorted(in_schema)


def test_an_edited_function_is_told_and_applied_once(database_dsn: str) -> None:
    with pytest.raises(SchemaError, match="not this Postrider's: functions/emit\n") as caught:
        run(database_dsn, lambda c: check_schema(c, edited()))
    assert caught.value.hint == "Run `postrider migrate`."
    assert migrated(database_dsn, edited()) == ["functions/emit"]
    assert run(database_dsn, lambda c: check_schema(c, edited())) == SCHEMA.number
    with pytest.raises(asyncpg.PostgresError) as refused:
        execute(database_dsn, "SELECT postrider.emit('a', json_build_object('a', repeat('a', 2000000)))")
    assert refused.value.sqlstate == "2F001"
    assert migrated(database_dsn, edited()) == []


def test_owner_rights_and_settings_stay_and_so_do_other_functions(database_dsn: str) -> None:
    with login(database_dsn, "GRANT EXECUTE ON FUNCTION postrider.nearest_event_type TO {login}") as stranger:
        execute(database_dsn, f"REVOKE EXECUTE ON FUNCTION {EMIT} FROM postrider_emitter")
        before = functions_of(database_dsn)
        migrated(database_dsn, edited())
        after = functions_of(database_dsn)
        assert user_of(stranger) in str(after["postrider.nearest_event_type(text)"]["rights"])
    assert before[EMIT].pop("definition") != after[EMIT].pop("definition")
    assert before == after


def test_commands_and_check_ask_for_migrate_which_says_what_it_applied(
    database_dsn: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, database_dsn)
    shutil.copytree(sql_dir(), tmp_path / "sql")
    for each in edited().functions:
        (tmp_path / "sql" / f"{each}.sql").write_text(each.sql)
    newer = Cli(config, program=("tests.support.other_sql", str(tmp_path / "sql")))
    for said in (newer("check", "--no-endpoints", exit_code=1), newer.fails("status")):
        assert "functions/emit" in said
        assert "Run `postrider migrate`" in said
    assert newer("migrate") == "applied functions/emit\n"
    assert newer("migrate") == "nothing to do: the schema is current\n"
    newer("status")


def test_an_older_program_goes_on_and_puts_nothing_back(database_dsn: str) -> None:
    more = replace(SCHEMA.migrations[-1], name="more", sql="SELECT 1", number=SCHEMA.number + 1)
    newer = edited(replace(SCHEMA, migrations=(*SCHEMA.migrations, more)))
    assert migrated(database_dsn, newer) == [str(more), "functions/emit"]
    before = functions_of(database_dsn)
    assert run(database_dsn, lambda c: check_schema(c, SCHEMA)) == newer.number
    with pytest.raises(OutdatedProgram):
        migrated(database_dsn, SCHEMA)
    assert functions_of(database_dsn) == before


def test_an_older_program_that_waited_for_a_newer_one_puts_nothing_back(database_dsn: str) -> None:
    async def story() -> None:
        newer, older = [await asyncpg.connect(database_dsn) for _ in range(2)]
        transaction = newer.transaction()
        await transaction.start()
        await newer.execute("LOCK TABLE postrider.migration IN SHARE ROW EXCLUSIVE MODE")
        patience = Patience(lock_ms=20_000, tries=1)
        waiting = asyncio.create_task(migrate(older, edited(), patience=patience))
        await until_it_waits(newer, older, waiting)
        await newer.execute(
            "INSERT INTO postrider.migration (number, name, checksum) VALUES ($1, 'more', '')",
            SCHEMA.number + 1,
        )
        await transaction.commit()
        with pytest.raises(OutdatedProgram):
            await waiting
        await newer.close()
        await older.close()

    before = functions_of(database_dsn)
    asyncio.run(story())
    assert functions_of(database_dsn) == before


def test_functions_wait_for_the_last_migration(empty_database_dsn: str) -> None:
    run(empty_database_dsn, lambda c: migrate(c, edited(), SCHEMA.number - 1))
    assert "2F001" not in str(functions_of(empty_database_dsn)[EMIT])
    run(empty_database_dsn, lambda c: migrate(c, edited(), SCHEMA.number))
    assert "2F001" in str(functions_of(empty_database_dsn)[EMIT])


def test_two_hosts_at_once_apply_it_once(database_dsn: str) -> None:
    async def story() -> list[int]:
        connections = [await asyncpg.connect(database_dsn) for _ in range(3)]
        try:
            done = await asyncio.gather(*(migrate(connection, edited()) for connection in connections))
            return [len(each) for each in done]
        finally:
            for connection in connections:
                await connection.close()

    assert sorted(asyncio.run(story())) == [0, 0, 1]


def test_a_file_that_fails_leaves_nothing_of_any(database_dsn: str) -> None:
    before = functions_of(database_dsn)
    broken = Schema(
        SCHEMA.migrations, (*edited().functions, FunctionFile("zz", "CREATE OR REPLACE FUNCTION nowhere"))
    )
    with pytest.raises(asyncpg.PostgresSyntaxError):
        migrated(database_dsn, broken)
    assert functions_of(database_dsn) == before
    assert run(database_dsn, lambda c: check_schema(c, SCHEMA)) == SCHEMA.number


def test_it_waits_for_no_transaction_that_emitted_and_sessions_call_the_new_one(database_dsn: str) -> None:
    async def story() -> str | None:
        crm, migrating = [await asyncpg.connect(database_dsn) for _ in range(2)]
        emitting = await crm.prepare("SELECT postrider.emit('a', $1::json)")
        transaction = crm.transaction()
        await transaction.start()
        await emitting.fetchval("{}")
        await migrate(migrating, edited(), patience=Patience(tries=1))
        await transaction.commit()
        try:
            await emitting.fetchval(f'{{"a": "{"a" * 2_000_000}"}}')
        except asyncpg.PostgresError as error:
            return error.sqlstate
        finally:
            await crm.close()
            await migrating.close()
        return None

    assert asyncio.run(story()) == "2F001"


def test_a_grant_at_the_same_moment_is_waited_for_and_kept(database_dsn: str) -> None:
    async def story() -> None:
        granting, migrating = [await asyncpg.connect(database_dsn) for _ in range(2)]
        transaction = granting.transaction()
        await transaction.start()
        await granting.execute(f"GRANT EXECUTE ON FUNCTION {EMIT} TO postrider_owner")
        held_up = asyncio.create_task(
            migrate(migrating, edited(), patience=Patience(lock_ms=20_000, tries=3, pause_s=0.1))
        )
        await until_it_waits(granting, migrating, held_up)
        await transaction.commit()
        assert [str(each) for each in await held_up] == ["functions/emit"]
        await granting.close()
        await migrating.close()

    asyncio.run(story())
    assert "postrider_owner=X" in str(functions_of(database_dsn)[EMIT]["rights"])


ROLES = "postrider_owner, postrider_writer, postrider_capture, postrider_prober"
CREATOR = "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {login}', current_database()); END $$"


@pytest.mark.usefixtures("template_database")  # so that the roles exist
def test_who_migrated_and_left_the_roles_is_told_to_join_the_one_that_owns_the_function(
    empty_database_dsn: str,
) -> None:
    with login(empty_database_dsn, CREATOR, f"GRANT {ROLES} TO {{login}}") as dsn:
        migrated(dsn, SCHEMA)
        execute(empty_database_dsn, f"REVOKE {ROLES} FROM {user_of(dsn)}")
        before = functions_of(dsn)
        with pytest.raises(DatabaseError, match="may not replace functions of postrider_writer") as caught:
            migrated(dsn, edited())
        assert f"GRANT postrider_writer TO {user_of(dsn)};" in caught.value.hint
        assert functions_of(dsn) == before
        execute(empty_database_dsn, f"GRANT postrider_writer TO {user_of(dsn)}")
        assert migrated(dsn, edited()) == ["functions/emit"]
        assert functions_of(dsn)[EMIT]["owner"] == "postrider_writer"


@pytest.mark.usefixtures("template_database")
def test_who_left_the_roles_before_an_upgrade_is_told_to_join_them_all_at_once(
    empty_database_dsn: str,
) -> None:
    with login(empty_database_dsn, CREATOR, f"GRANT {ROLES} TO {{login}}") as dsn:
        run(dsn, lambda c: migrate(c, SCHEMA, 19))
        execute(empty_database_dsn, f"REVOKE {ROLES} FROM {user_of(dsn)}")
        with pytest.raises(DatabaseError, match="is not a member of the role postrider_owner") as caught:
            migrated(dsn, SCHEMA)
        granted = caught.value.hint.partition("GRANT ")[2].partition(";")[0]
        assert granted == f"{ROLES} TO {user_of(dsn)}"
        execute(empty_database_dsn, f"GRANT {granted}")
        assert "functions/partition" in migrated(dsn, SCHEMA)


def test_another_than_who_migrated_before_is_told_to_be_a_superuser(database_dsn: str) -> None:
    rights = (
        "GRANT CREATE ON SCHEMA postrider TO {login}",
        "GRANT ALL ON ALL TABLES IN SCHEMA postrider TO {login}",
    )
    with login(database_dsn, *rights, member_of=ROLES.split(", ")) as dsn:
        with pytest.raises(DatabaseError, match="may not replace functions of") as caught:
            migrated(dsn, edited())
        assert "superuser" in caught.value.hint


def test_the_daemons_login_may_see_whether_functions_are_current(database_dsn: str) -> None:
    with login(database_dsn, member_of=["postrider_daemon"]) as dsn:
        assert run(dsn, lambda c: check_schema(c, SCHEMA)) == SCHEMA.number
        assert query(dsn, "SELECT has_table_privilege('postrider.sql_function', 'INSERT')")[0][0] is False


@pytest.mark.parametrize(
    "call",
    [
        "create_partition({}, current_date)",
        "drop_partition({}, current_date)",
        "guard_default({}, current_date + 10, current_date + 11)",
        "validate_default({})",
        "unguard_default({})",
        "create_unguarded({}, ARRAY[current_date])",
    ],
)
def test_functions_for_partitions_touch_no_other_table(database_dsn: str, call: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="no partitioned table endpoint"):
        execute(database_dsn, f"SELECT postrider.{call.format(repr('endpoint'))}")
