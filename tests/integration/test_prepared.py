"""With `database.notify = false` the CRM's transactions can be prepared, beside whatever daemons."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postrider.edges.config import load_config
from postrider.store.database import Connection
from tests.integration.test_capture import SIMPLE, crm_of
from tests.support.daemon_process import SECRET, add_endpoint, write_config
from tests.support.own_server import OwnServer, own_server
from tests.support.receiver_process import ReceiverProcess
from tests.support.stage import Stage, eventually, staged

IDLE = "SELECT coalesce(bool_or(idle), false) FROM postrider.daemon"
NOTIFY = "SELECT notify FROM postrider.setting"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server(max_prepared_transactions="4") as server:
        server.restart("fast")
        yield server


@asynccontextmanager
async def idle_daemon(dsn: str, directory: Path, name: str = "a", **database: Any) -> AsyncIterator[Stage]:
    (directory / name).mkdir()
    async with staged(dsn, directory / name, database=database) as stage:
        await eventually(lambda: asyncio.sleep(0, stage.daemon.services.dispatcher._idle), True)
        yield stage


async def prepare_event(
    connection: Connection, statement: str = "SELECT postrider.emit('a.b', '{}')"
) -> None:
    await connection.execute(f"BEGIN; {statement}; PREPARE TRANSACTION 'postrider-test'")
    await connection.execute("COMMIT PREPARED 'postrider-test'")


async def test_a_prepared_event_is_delivered_within_the_poll(server: OwnServer, tmp_path: Path) -> None:
    with ReceiverProcess(SECRET) as receiver:
        await asyncio.to_thread(add_endpoint, server.dsn, receiver.url())
        async with idle_daemon(server.dsn, tmp_path, notify=False) as stage:
            await prepare_event(stage.connection)
            # A daemon that is notified polls once a second.
            await eventually(stage.pending, 0, timeout=0.7)
            await stage.wait_for_states("succeeded")
            assert not await stage.connection.fetchval(IDLE)


async def test_beside_a_daemon_that_is_notified_it_can_not_be_prepared(
    server: OwnServer, tmp_path: Path
) -> None:
    async with idle_daemon(server.dsn, tmp_path, notify=True) as stage:
        assert await stage.connection.fetchval(IDLE)
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
            await prepare_event(stage.connection)


async def test_a_daemon_of_an_earlier_release_says_that_it_is_idle_in_vain(
    server: OwnServer, tmp_path: Path
) -> None:
    async with idle_daemon(server.dsn, tmp_path, notify=False) as stage:
        await stage.connection.execute("UPDATE postrider.daemon SET idle = true")
        await prepare_event(stage.connection)


async def test_one_daemon_that_says_no_is_enough_and_the_database_remembers(
    server: OwnServer, tmp_path: Path
) -> None:
    async with (
        idle_daemon(server.dsn, tmp_path, "strict", notify=False) as strict,
        idle_daemon(server.dsn, tmp_path, "lax", notify=True),
    ):
        await prepare_event(strict.connection)
    async with idle_daemon(server.dsn, tmp_path, "silent") as silent:
        await prepare_event(silent.connection)
    async with idle_daemon(server.dsn, tmp_path, "willing", notify=True) as willing:
        assert await willing.connection.fetchval(NOTIFY)


async def test_a_reload_changes_it(server: OwnServer, tmp_path: Path) -> None:
    async with idle_daemon(server.dsn, tmp_path, notify=True) as stage:
        file = write_config(tmp_path, server.dsn, "reloaded", database={"notify": False})
        reload = asyncio.create_task(stage.daemon.reload(load_config(file, {})))
        await eventually(lambda: stage.connection.fetchval(NOTIFY), False)
        await eventually(lambda: stage.connection.fetchval(IDLE), False)
        await prepare_event(stage.connection)
        reload.cancel()


async def test_a_captured_change_can_be_prepared(server: OwnServer, tmp_path: Path) -> None:
    async with crm_of(server.dsn) as crm:
        await crm.apply(SIMPLE)
        async with idle_daemon(server.dsn, tmp_path, notify=False) as stage:
            await prepare_event(stage.connection, "INSERT INTO crm.deals (id) VALUES (1)")
