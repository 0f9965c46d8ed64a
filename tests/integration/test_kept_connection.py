"""The connection that a service keeps between uses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from postrider.store.database import Connection, Database, DatabaseUnavailable
from postrider.store.kept_connection import kept_connection


@asynccontextmanager
async def opened(dsn: str, pool_size: int = 3) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=pool_size)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def backend(connection: Connection) -> int:
    number: int = await connection.fetchval("SELECT pg_backend_pid()")
    return number


def test_it_is_the_same_for_each_use_and_nobody_elses_meanwhile(database_dsn: str) -> None:
    async def main() -> None:
        async with opened(database_dsn) as database:
            async with kept_connection(database) as kept:
                async with kept.connection() as connection:
                    first = await backend(connection)
                async with database.connection() as connection:
                    assert await backend(connection) != first
                async with kept.connection() as connection:
                    assert await backend(connection) == first
            async with database.connection() as connection, database.connection() as another:
                assert first in (await backend(connection), await backend(another))  # it was given back

    asyncio.run(main())


def test_a_pool_too_small_to_keep_one_lends_one_for_each_use(database_dsn: str) -> None:
    async def main() -> None:
        async with opened(database_dsn, pool_size=2) as database, kept_connection(database) as kept:
            async with kept.connection() as connection:
                await backend(connection)
            async with database.connection() as one, database.connection() as two:
                assert await backend(one) != await backend(two)

    asyncio.run(main())


def test_one_that_the_server_ended_is_replaced(database_dsn: str) -> None:
    async def main() -> None:
        async with opened(database_dsn) as database, kept_connection(database) as kept:
            async with kept.connection() as connection:
                first = await backend(connection)
            async with database.connection() as connection:
                await connection.execute("SELECT pg_terminate_backend($1, 5000)", first)
            async with kept.connection() as connection:
                assert await backend(connection) != first

    asyncio.run(main())


def test_one_that_breaks_under_way_tells_so_and_is_replaced(database_dsn: str) -> None:
    async def main() -> None:
        async with opened(database_dsn) as database, kept_connection(database) as kept:
            with pytest.raises(DatabaseUnavailable):
                async with kept.connection() as connection:
                    first = await backend(connection)
                    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            assert not database.available
            async with kept.connection() as connection:
                assert await backend(connection) != first
            assert database.available

    asyncio.run(main())


def test_it_is_of_the_new_pool_once_the_database_renewed_it(database_dsn: str) -> None:
    async def main() -> None:
        async with opened(database_dsn) as database:
            async with kept_connection(database) as kept:
                async with kept.connection() as connection:
                    first = await backend(connection)
                await database.renew()
                async with kept.connection() as connection:
                    assert await backend(connection) != first
            await asyncio.wait_for(database.close(), 2)

    asyncio.run(main())
