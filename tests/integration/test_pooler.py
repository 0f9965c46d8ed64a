"""Behind PgBouncer in transaction mode sessions are shared, and take none of a session's settings."""

import asyncio
from pathlib import Path

import asyncpg

from tests.conftest import execute
from tests.integration.test_capture import SIMPLE, crm_of
from tests.integration.test_capture_set_aside import locked
from tests.integration.test_search_path import caught, traps
from tests.support.cli import Cli
from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    assert_settled,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.logins import login, user_of
from tests.support.pooler import transaction_pooler
from tests.support.receiver_process import ReceiverProcess

TRAPPED_AGGREGATE = (
    """CREATE FUNCTION public.json_gathered(json, record) RETURNS json LANGUAGE plpgsql AS $$
       BEGIN
         INSERT INTO public.caught VALUES (current_user, 'json_agg');
         RETURN '[]'::pg_catalog.json;
       END $$""",
    "CREATE AGGREGATE public.json_agg(record) (SFUNC = public.json_gathered, STYPE = json, INITCOND = '[]')",
)


async def set_rows_aside(dsn: str) -> None:
    async with crm_of(dsn) as crm:
        await crm.apply(SIMPLE)
        async with locked(dsn, "postrider.outbox"):
            await crm.connection.execute("INSERT INTO crm.deals (id) SELECT generate_series(1, 5)")
        await crm.connection.execute("INSERT INTO crm.deals (id, title) VALUES (6, repeat('x', 2000000))")


def test_search_path_is_pinned_behind_a_pooler_too(database_dsn: str, tmp_path: Path) -> None:
    """The role's own setting is hostile, and so is what another client leaves in the shared sessions."""
    hostile = "public, pg_catalog"
    with (
        login(database_dsn, "GRANT CREATE ON SCHEMA public TO {login}") as neighbour,
        login(database_dsn, member_of=["postrider_daemon"]) as daemon_dsn,
        transaction_pooler(daemon_dsn, tmp_path) as pooled_dsn,
        ReceiverProcess(SECRET) as receiver,
    ):
        execute(neighbour, *traps(), *TRAPPED_AGGREGATE)
        asyncio.run(set_rows_aside(database_dsn))
        execute(database_dsn, f"ALTER ROLE {user_of(daemon_dsn)} SET search_path = {hostile}")

        async def leak() -> None:
            for _ in range(4):
                connection = await asyncpg.connect(pooled_dsn, statement_cache_size=0)
                await connection.execute(f"SET search_path = {hostile}")
                await connection.close()

        asyncio.run(leak())
        add_endpoint(database_dsn, receiver.url("/a"))
        config = write_config(tmp_path, pooled_dsn)
        with DaemonProcess(config) as daemon:
            daemon.wait_for_log("listener.polling")
            daemon.wait_for_log("partitions.created")
            daemon.wait_for_log("capture.recovered")
            receiver.wait_for(5)
            left = "SELECT attempts > 0 AS postponed FROM postrider.capture_rejected"
            wait_until(lambda: bool(query(database_dsn, left)[0]["postponed"]), "a postponed row")
            emit(database_dsn, 20)
            receiver.wait_for(25)
            assert_settled(database_dsn)
            assert query(database_dsn, "SELECT pooled FROM postrider.daemon")[0]["pooled"]
            cli = Cli(config)
            cli("status")
            assert "is set aside" in cli("check", "--no-endpoints", exit_code=1)
            cli("event", "list")
            cli("emit", "deal.updated", "--data", "{}")
            receiver.wait_for(26)
            assert daemon.terminate() == 0
        assert [each for each in caught(database_dsn) if each[0] == user_of(daemon_dsn)] == []


def test_the_schema_can_be_made_through_a_pooler(empty_database_dsn: str, tmp_path: Path) -> None:
    with transaction_pooler(empty_database_dsn, tmp_path) as pooled_dsn:
        cli = Cli(write_config(tmp_path, pooled_dsn))
        assert "applied 0001_outbox" in cli("migrate")
        assert "nothing to do" in cli("migrate")
