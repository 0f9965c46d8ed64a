"""`postrider uninstall`, on a server of its own: roles are the whole server's."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from postrider.edges.resources import sql_dir
from postrider.store.migrations import read_schema
from tests.conftest import execute, on_database
from tests.integration.test_capture import SIMPLE, crm_of
from tests.support.cli import Cli
from tests.support.daemon_process import DaemonProcess, add_endpoint, query, write_config
from tests.support.migrating import migrate
from tests.support.own_server import own_server

ROLES = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'postrider%'"
SCHEMA = "SELECT count(*) FROM pg_namespace WHERE nspname = 'postrider'"


def number(dsn: str, statement: str) -> int:
    return int(query(dsn, statement)[0][0])


@pytest.fixture(scope="module")
def server_of_its_own() -> Iterator[str]:
    with own_server() as server:
        yield server.dsn


@pytest.fixture
def dsn(server_of_its_own: str) -> Iterator[str]:
    """A migrated database; the server's other ones have no Postrider."""

    async def build(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await migrate(connection, read_schema(sql_dir()))
        finally:
            await connection.close()

    execute(server_of_its_own, "DROP SCHEMA IF EXISTS postrider CASCADE", "CREATE DATABASE crm")
    crm = on_database(server_of_its_own, "crm")
    asyncio.run(build(crm))
    yield crm
    execute(server_of_its_own, "DROP DATABASE crm WITH (FORCE)")


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    return Cli(write_config(tmp_path, dsn))


CLIENT = (
    '{ id = { table = "crm.clients", where = { id = "client_id" }, column = "id", keep_deleted = true } }'
)


async def apply_capture(dsn: str) -> None:
    async with crm_of(dsn) as crm:
        await crm.apply(SIMPLE.replace('["id", "title", "price"]', CLIENT))
        await crm.connection.execute("INSERT INTO crm.deals (id) VALUES (1)")


def test_it_says_what_it_removes_and_leaves_the_tables_of_the_crm(dsn: str, cli: Cli) -> None:
    asyncio.run(apply_capture(dsn))
    add_endpoint(dsn, "https://example.com/h")
    execute(
        dsn, "DROP ROLE IF EXISTS crm_app", "CREATE ROLE crm_app LOGIN", "GRANT postrider_emitter TO crm_app"
    )
    said = cli("uninstall", exit_code=2)
    assert "needs a confirmation" in said
    for part in (
        "1 endpoints", "1 events, of which 1 wait", "_insert on crm.deals",
        "postrider_archive_deal on crm.clients", "the role postrider_emitter, with crm_app as its members",
    ):  # fmt: skip
        assert part in said
    assert number(dsn, SCHEMA) == 1
    assert "removed the schema postrider, 7 triggers and 6 roles" in cli("uninstall", "--yes")
    assert (number(dsn, SCHEMA), number(dsn, ROLES)) == (0, 0)
    execute(dsn, "INSERT INTO crm.deals (id) VALUES (2)")
    assert "nothing to do" not in cli("uninstall", "--yes")


def test_roles_that_another_database_uses_stay(dsn: str, cli: Cli, server_of_its_own: str) -> None:
    execute(
        server_of_its_own, "CREATE TABLE public.mine ()", "GRANT SELECT ON public.mine TO postrider_daemon"
    )
    done = cli.json("uninstall", "--yes")
    assert done["removed"]["kept"] == {"postrider_daemon": "1 object in database postgres"}
    assert cli.json("uninstall", "--yes") == {"found": None}
    execute(server_of_its_own, "DROP TABLE public.mine", "DROP ROLE postrider_daemon")


def test_what_people_made_of_it_is_named_and_not_dropped(dsn: str, cli: Cli) -> None:
    execute(dsn, "CREATE VIEW public.failing AS SELECT id FROM postrider.outbox")
    cli("uninstall", "--yes", exit_code=1)
    execute(dsn, "SELECT FROM public.failing")


def test_beside_a_daemon_it_removes_nothing(dsn: str, cli: Cli, tmp_path: Path) -> None:
    with DaemonProcess(write_config(tmp_path, dsn, "daemon")) as daemon:
        daemon.wait_for_log("daemon.started")
        cli("uninstall", "--yes", exit_code=1)
        assert number(dsn, SCHEMA) == 1
    cli("uninstall", "--yes")


def test_a_lock_in_the_way_is_waited_for(dsn: str, cli: Cli) -> None:
    async def beside_a_writer() -> None:
        writer = await asyncpg.connect(dsn)
        try:
            await writer.execute("BEGIN; SELECT postrider.emit('a.b', '{}')")
            removing = asyncio.create_task(asyncio.to_thread(cli, "uninstall", "--yes"))
            await asyncio.sleep(1)
            await writer.execute("COMMIT")
            assert "removed" in await removing
        finally:
            await writer.close()

    asyncio.run(beside_a_writer())
