"""The service that leaves no secret in clear text."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from postrider.domain.sealing import Sealer
from postrider.edges.clock import SystemClock
from postrider.edges.randomness import random_bytes
from postrider.engine.secret_sealer import SecretSealer, SecretSealerTuning
from postrider.engine.signals import Signal
from postrider.store.database import Connection, Database, DatabaseError
from tests.support.daemon_process import SECRET, add_endpoint
from tests.support.stage import eventually

OPEN = r"SELECT count(*) FROM postrider.endpoint_secret WHERE substr(sealed, 1, 1) = '\x00'"


@asynccontextmanager
async def service(dsn: str, sealer: Sealer) -> AsyncIterator[tuple[SecretSealer, Signal, Connection]]:
    database = Database(dsn, pool_size=1)
    await database.open()
    connection = await asyncpg.connect(dsn)
    due = Signal()
    try:
        yield (
            SecretSealer(
                database=database,
                sealer=sealer,
                due=due,
                clock=SystemClock(),
                tuning=SecretSealerTuning(batch=2),
            ),
            due,
            connection,
        )
    finally:
        await connection.close()
        await database.close()


def test_it_seals_all_there_is_in_batches(database_dsn: str) -> None:
    for number in range(5):
        add_endpoint(database_dsn, f"http://127.0.0.1:9/{number}", secret=SECRET)

    async def story() -> None:
        async with service(database_dsn, Sealer(bytes(32), random_bytes)) as (secret_sealer, _, connection):
            assert await connection.fetchval(OPEN) == 5
            assert await secret_sealer.run_once() == 5
            assert await connection.fetchval(OPEN) == 0
            assert await secret_sealer.run_once() == 0

    asyncio.run(story())


def test_without_a_key_all_stays_as_it_is(database_dsn: str) -> None:
    add_endpoint(database_dsn, "http://127.0.0.1:9/", secret=SECRET)

    async def story() -> None:
        async with service(database_dsn, Sealer()) as (secret_sealer, _, connection):
            assert await secret_sealer.run_once() == 0
            assert await connection.fetchval(OPEN) == 1

    asyncio.run(story())


def test_what_could_not_be_sealed_stays_due(database_dsn: str) -> None:
    add_endpoint(database_dsn, "http://127.0.0.1:9/", secret=SECRET)

    async def story() -> None:
        async with service(database_dsn, Sealer(bytes(32), random_bytes)) as (secret_sealer, due, connection):
            await connection.execute("ALTER TABLE postrider.endpoint_secret RENAME TO elsewhere")
            due.set()
            with pytest.raises(DatabaseError):
                await secret_sealer.run_once()
            assert due
            await connection.execute("ALTER TABLE postrider.elsewhere RENAME TO endpoint_secret")
            running = asyncio.create_task(secret_sealer.run())

            async def left() -> int:
                count: int = await connection.fetchval(OPEN)
                return count

            await eventually(left, 0)
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(story())
