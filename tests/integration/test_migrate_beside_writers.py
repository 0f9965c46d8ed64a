"""postrider migrate beside a CRM that writes: it keeps nobody waiting, and says who is in its way."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.database import DatabaseError
from postrider.store.migrations import Migration, Schema, read_schema
from postrider.store.patience import Patience
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import query, write_config
from tests.support.logins import login, user_of
from tests.support.migrating import migrate
from tests.support.pooler import transaction_pooler

SCHEMA = read_schema(sql_dir())
MIGRATIONS = SCHEMA.migrations
EMIT = "SELECT postrider.emit('deal.updated', '{}'::json)"
PATIENCE = Patience(tries=3, pause_s=0.3)
BOUND_S = 3.0
"""Six times the lock timeout: a slow machine, not a queue behind a transaction that stays open."""


async def _emit_until(connection: asyncpg.Connection, stop: asyncio.Event) -> float:
    """Emit over and over; return how long the slowest took, in seconds."""
    slowest = 0.0
    while not stop.is_set():
        started = time.monotonic()
        await connection.execute(EMIT)
        slowest = max(slowest, time.monotonic() - started)
        await asyncio.sleep(0.01)
    return slowest


def test_emit_never_waits_longer_than_a_moment_for_migrate(empty_database_dsn: str) -> None:
    """One transaction has emitted and stays open; another session goes on emitting."""

    async def story() -> None:
        migrating, idling, writing = [
            await asyncpg.connect(
                empty_database_dsn, server_settings={"application_name": name}, command_timeout=60
            )
            for name in ("migrating", "crm worker 7", "writing")
        ]
        await migrate(migrating, Schema(MIGRATIONS[:4]))
        forgotten = idling.transaction()
        await forgotten.start()
        await idling.execute(EMIT)
        stop = asyncio.Event()
        slowest = asyncio.create_task(_emit_until(writing, stop))
        with pytest.raises(DatabaseError) as caught:
            await migrate(migrating, Schema(MIGRATIONS[:7]), patience=PATIENCE)
        assert f"session {idling.get_server_pid()}" in caught.value.message
        assert "'crm worker 7'" in caught.value.message
        assert "idle in transaction" in caught.value.message
        assert "outbox" in caught.value.message
        assert f"pg_terminate_backend({idling.get_server_pid()})" in caught.value.hint
        await forgotten.rollback()
        assert await migrate(migrating, Schema(MIGRATIONS[:7])) == list(MIGRATIONS[4:7])
        stop.set()
        assert await slowest < BOUND_S
        for connection in (migrating, idling, writing):
            await connection.close()

    asyncio.run(story())


def test_the_command_fails_with_the_session_in_the_way_and_succeeds_once_it_is_gone(
    empty_database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(write_config(tmp_path, empty_database_dsn))
    cli("migrate", "--to", "4")

    async def beside(exit_code: int) -> str:
        idling = await asyncpg.connect(empty_database_dsn)
        transaction = idling.transaction()
        await transaction.start()
        await idling.execute(EMIT)
        done = await asyncio.create_subprocess_exec(
            *cli.command("migrate"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await done.communicate()
        assert done.returncode == exit_code
        await transaction.rollback()
        await idling.close()
        return errors.decode()

    said = asyncio.run(beside(1))
    assert "In the way" in said
    assert "idle in transaction" in said
    assert "postrider migrate" in said
    cli("migrate")


def test_a_login_without_rights_can_not_hold_migrate_up(empty_database_dsn: str) -> None:
    """It takes the advisory lock that migrate once waited for, without end."""

    async def story(stranger_dsn: str) -> None:
        stranger = await asyncpg.connect(stranger_dsn)
        await stranger.execute("SELECT pg_advisory_lock(1886352244, 0)")
        migrating = await asyncpg.connect(empty_database_dsn)
        try:
            async with asyncio.timeout(60):
                assert await migrate(migrating, SCHEMA) == [*MIGRATIONS, *SCHEMA.functions]
        finally:
            await migrating.close()
            await stranger.close()

    with login(empty_database_dsn) as stranger_dsn:
        asyncio.run(story(stranger_dsn))


def test_migrate_waits_with_a_bound_for_another_one_and_names_it(database_dsn: str) -> None:
    async def story() -> None:
        other = await asyncpg.connect(database_dsn, server_settings={"application_name": "other host"})
        mine = await asyncpg.connect(database_dsn)
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE postrider.migration IN SHARE ROW EXCLUSIVE MODE")
        more = Schema((*MIGRATIONS, Migration("more", "SELECT 1", SCHEMA.number + 1)))
        with pytest.raises(DatabaseError, match="'other host'"):
            await migrate(mine, more, patience=PATIENCE)
        await transaction.rollback()
        assert len(await migrate(mine, more, patience=PATIENCE)) == 1
        await other.close()
        await mine.close()

    asyncio.run(story())


def test_a_concurrent_migration_that_was_cut_off_is_made_good(database_dsn: str) -> None:
    """An index that was being built when the connection went away stays there, invalid."""
    execute(
        database_dsn,
        "DELETE FROM postrider.migration WHERE name = 'idempotency_by_event'",
        """UPDATE pg_catalog.pg_index SET indisvalid = false
           WHERE indexrelid = 'postrider.idempotency_event'::regclass""",
    )

    async def story() -> None:
        connection = await asyncpg.connect(database_dsn)
        applied = await migrate(connection, SCHEMA)
        await connection.close()
        assert [migration.name for migration in applied] == ["idempotency_by_event"]

    asyncio.run(story())
    valid = query(
        database_dsn,
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'postrider.idempotency_event'::regclass",
    )
    assert [row[0] for row in valid] == [True]


INDEX = (
    "SELECT indexrelid, indisvalid FROM pg_index WHERE indexrelid = 'postrider.idempotency_event'::regclass"
)
UNNOTED = "DELETE FROM postrider.migration WHERE name = 'idempotency_by_event'"


def migrated_now(dsn: str, schema: Schema = SCHEMA) -> list[str]:
    async def story() -> list[str]:
        connection = await asyncpg.connect(dsn)
        try:
            return [each.name for each in await migrate(connection, schema, patience=PATIENCE)]
        finally:
            await connection.close()

    return asyncio.run(story())


def test_an_index_that_another_host_has_finished_is_left_to_it(database_dsn: str) -> None:
    """It was about to note that: who dropped the index now and died would leave the migration without it."""
    execute(database_dsn, UNNOTED)
    before = query(database_dsn, INDEX)
    assert migrated_now(database_dsn) == ["idempotency_by_event"]
    assert query(database_dsn, INDEX) == before


def test_a_migration_is_not_noted_without_its_index(database_dsn: str) -> None:
    """Another session drops it, or is cut off while it makes it anew."""
    execute(database_dsn, UNNOTED)
    spoiling = tuple(
        replace(each, sql=f"{each.sql}DROP INDEX postrider.idempotency_event;\n")
        if each.name == "idempotency_by_event"
        else each
        for each in MIGRATIONS
    )
    with pytest.raises(DatabaseError):
        migrated_now(database_dsn, Schema(spoiling))
    assert not query(database_dsn, "SELECT FROM postrider.migration WHERE name = $1", "idempotency_by_event")
    assert migrated_now(database_dsn) == ["idempotency_by_event"]
    assert [row["indisvalid"] for row in query(database_dsn, INDEX)] == [True]


def test_hosts_that_migrate_at_once_all_end_with_the_index(database_dsn: str) -> None:
    async def story() -> list[int]:
        connections = [await asyncpg.connect(database_dsn) for _ in range(3)]
        try:
            patience = Patience(tries=30, pause_s=0.1)
            return [
                len(each)
                for each in await asyncio.gather(
                    *(migrate(connection, SCHEMA, patience=patience) for connection in connections)
                )
            ]
        finally:
            for connection in connections:
                await connection.close()

    for round_ in range(3):
        execute(database_dsn, UNNOTED)
        if round_ != 1:
            execute(database_dsn, "DROP INDEX postrider.idempotency_event")
        assert sum(asyncio.run(story())) == 1
        assert [row["indisvalid"] for row in query(database_dsn, INDEX)] == [True]


def test_behind_a_pooler_nothing_is_set_in_a_session_that_others_share(
    database_dsn: str, tmp_path: Path
) -> None:
    """An index is made outside of a transaction, where a setting would stay."""
    execute(
        database_dsn,
        UNNOTED,
        "DROP INDEX postrider.idempotency_event",
        "CREATE SEQUENCE public.set_ms",
        """CREATE FUNCTION public.look() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM setval('public.set_ms', 1 + setting::bigint)
             FROM pg_settings WHERE name = 'lock_timeout';
           END $$""",
        "CREATE EVENT TRIGGER look ON ddl_command_start WHEN TAG IN ('CREATE INDEX') "
        "EXECUTE FUNCTION public.look()",
    )
    with (
        login(database_dsn, "ALTER ROLE {login} SUPERUSER") as superuser_dsn,
        transaction_pooler(superuser_dsn, tmp_path) as pooled_dsn,
    ):
        Cli(write_config(tmp_path, pooled_dsn))("migrate")
    seen = query(database_dsn, "SELECT last_value, is_called FROM public.set_ms")[0]
    assert (seen["last_value"], seen["is_called"]) == (1, True)
    assert [row["indisvalid"] for row in query(database_dsn, INDEX)] == [True]


def test_who_has_nothing_to_do_needs_no_right_to_change_the_schema(database_dsn: str) -> None:
    async def story(daemon_dsn: str) -> None:
        connection = await asyncpg.connect(daemon_dsn)
        assert await migrate(connection, SCHEMA) == []
        await connection.close()

    with login(database_dsn, member_of=["postrider_daemon"]) as daemon_dsn:
        assert user_of(daemon_dsn) != user_of(database_dsn)
        asyncio.run(story(daemon_dsn))
