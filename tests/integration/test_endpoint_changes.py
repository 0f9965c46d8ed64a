"""Memory follows the endpoints of the database by what changed, whatever happens to the database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from postrider.domain.model import EndpointState
from postrider.domain.promises import RetrySettings
from postrider.domain.sealing import Sealer
from postrider.edges.clock import SystemClock
from postrider.edges.dialect_files import load_dialects
from postrider.engine.dialect_rules import DialectRules
from postrider.engine.endpoints import EndpointSnapshot
from postrider.engine.signals import Signal
from postrider.store import endpoints
from postrider.store.database import Connection, Database
from postrider.store.endpoint_changes import PAGE
from tests.support.daemon_process import SECRET, add_endpoint
from tests.support.lanes import kept_lanes
from tests.support.stage import staged

MANY = 30_000


async def add_many(connection: Connection, count: int) -> None:
    """Endpoints 1 to `count`, each in a workspace of its own."""
    await connection.execute(
        """INSERT INTO postrider.endpoint (id, workspace_id, url, patterns, dialect, created_at, updated_at)
           SELECT n, 'ws_' || n, 'http://127.0.0.1/' || n, '{*}', 'standard', now(), now()
           FROM generate_series(1, $1::int) AS n""",
        count,
    )
    await connection.execute(
        """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
           SELECT id, workspace_id, now(), '\\x00' || convert_to($1, 'UTF8') FROM postrider.endpoint""",
        SECRET,
    )


class Memory:
    """What a daemon keeps of endpoints, and the database that it keeps it of."""

    def __init__(self, database: Database, connection: Connection) -> None:
        clock = SystemClock()
        self.connection = connection
        kept = kept_lanes(database, clock)
        self.lanes = kept.lanes
        self.read_anew = Signal()
        self.snapshot = EndpointSnapshot(
            database=database,
            sealer=Sealer(),
            rules=DialectRules(load_dialects([]), RetrySettings(None, None, 432_000.0)),
            changed=Signal(),
            on_change=kept.keeper.update,
            read_anew=self.read_anew,
            clock=clock,
        )

    async def claim_version(self) -> Any:
        """What a claim made now tells of the endpoints."""
        return await self.connection.fetchval("SELECT version FROM postrider.endpoint_revision")

    def known(self, workspace_id: str) -> list[str]:
        return [endpoint.url for endpoint in self.snapshot.match(workspace_id, "deal.updated")]


@asynccontextmanager
async def memory_of(dsn: str) -> AsyncIterator[Memory]:
    database = Database(dsn, pool_size=2)
    await database.open()
    connection = await asyncpg.connect(dsn)
    try:
        yield Memory(database, connection)
    finally:
        await connection.close()
        await database.close()


def run(dsn: str, story: Callable[[Memory], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with memory_of(dsn) as memory:
            await story(memory)

    asyncio.run(whole())


def test_one_changed_endpoint_among_many_is_one_row_read_and_one_lane_touched(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, MANY)
        assert await memory.snapshot.run_once() == MANY
        untouched = memory.lanes.lane(6)
        assert untouched is not None
        before = untouched.endpoint
        await memory.connection.execute(
            "UPDATE postrider.endpoint SET url = 'http://127.0.0.1/new' WHERE id = 5"
        )
        assert await memory.snapshot.run_once() == 1
        assert memory.known("ws_5") == ["http://127.0.0.1/new"]
        lane = memory.lanes.lane(5)
        assert lane is not None
        assert lane.endpoint.url == "http://127.0.0.1/new"
        assert untouched.endpoint is before
        assert await memory.snapshot.run_once() == 0

    run(database_dsn, story)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE postrider.endpoint SET rate = 5 WHERE id = 3",
        "UPDATE postrider.endpoint SET state = 'paused' WHERE id = 3",
        "UPDATE postrider.endpoint_secret SET sealed = '\\x0061' WHERE endpoint_id = 3",
        "DELETE FROM postrider.endpoint_secret WHERE endpoint_id = 3",
        """INSERT INTO postrider.endpoint_secret (endpoint_id, workspace_id, created_at, sealed)
           VALUES (3, 'ws_3', now() + interval '1 s', '\\x0061')""",
    ],
)
def test_whatever_changes_of_an_endpoint_is_taken_over(database_dsn: str, change: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 5)
        await memory.snapshot.run_once()
        before = {each: memory.lanes.lane(each).endpoint for each in range(1, 6)}  # type: ignore[union-attr]
        await memory.connection.execute(change)
        assert await memory.snapshot.run_once() == 1
        after = {each: memory.lanes.lane(each).endpoint for each in range(1, 6)}  # type: ignore[union-attr]
        assert [each for each in before if after[each] != before[each]] == [3]

    run(database_dsn, story)


def test_a_change_of_many_in_one_statement_is_taken_over_by_pages(database_dsn: str) -> None:
    count = 3 * PAGE + 1

    async def story(memory: Memory) -> None:
        await add_many(memory.connection, count)
        await memory.snapshot.run_once()
        await memory.connection.execute("UPDATE postrider.endpoint SET url = url || '/new'")
        assert await memory.snapshot.run_once() == count
        assert all(memory.known(f"ws_{n}") == [f"http://127.0.0.1/{n}/new"] for n in range(1, count + 1))

    run(database_dsn, story)


def test_many_changes_in_one_transaction_have_one_version(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 2)
        before = await memory.connection.fetchrow("SELECT * FROM postrider.endpoint_revision")
        assert before is not None
        async with memory.connection.transaction():
            for _ in range(3):
                await memory.connection.execute("UPDATE postrider.endpoint SET url = url || '/' WHERE id = 1")
        after = await memory.connection.fetchrow("SELECT * FROM postrider.endpoint_revision")
        assert after is not None
        assert after["revision"] == before["revision"] + 1
        assert after["recent"] == [before["version"], *before["recent"]]

    run(database_dsn, story)


def test_only_what_was_read_whole_is_told_of_as_read_anew(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 2)
        await memory.snapshot.run_once()
        assert memory.read_anew
        memory.read_anew.clear()
        await memory.connection.execute("UPDATE postrider.endpoint SET url = url || '/new'")
        assert await memory.snapshot.run_once() == 2
        assert not memory.read_anew
        memory.snapshot.configure(Sealer())
        assert await memory.snapshot.run_once() == 2
        assert memory.read_anew

    run(database_dsn, story)


@pytest.mark.parametrize("by_hand", [False, True], ids=["deleted", "row removed by hand"])
def test_an_endpoint_that_is_deleted_leaves_memory(database_dsn: str, by_hand: bool) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 3)
        await memory.snapshot.run_once()
        if by_hand:
            await memory.connection.execute("DELETE FROM postrider.endpoint WHERE id = 2")
        else:
            await endpoints.delete(memory.connection, "ws_2", 2, datetime.now(UTC))
        await memory.snapshot.run_once()
        assert memory.known("ws_2") == []
        assert memory.lanes.lane(2) is None
        assert "endpoints=2" in repr(memory.snapshot)

    run(database_dsn, story)


def test_after_more_changes_than_the_database_remembers_all_is_read_anew(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 3)
        await memory.snapshot.run_once()
        for _ in range(64):
            await memory.connection.execute("UPDATE postrider.endpoint SET url = url || 'x' WHERE id = 1")
        assert await memory.snapshot.run_once() == 1
        for _ in range(65):
            await memory.connection.execute("UPDATE postrider.endpoint SET url = url || 'y' WHERE id = 1")
        assert await memory.snapshot.run_once() == 3
        assert memory.known("ws_1") == ["http://127.0.0.1/1" + "x" * 64 + "y" * 65]

    run(database_dsn, story)


def test_changes_of_two_writers_at_a_time_are_all_taken_over(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 2)
        await memory.snapshot.run_once()
        slow = await asyncpg.connect(database_dsn)
        try:
            transaction = slow.transaction()
            await transaction.start()
            await slow.execute("UPDATE postrider.endpoint SET url = url || '/slow' WHERE id = 1")
            quick = asyncio.create_task(
                memory.connection.execute("UPDATE postrider.endpoint SET url = url || '/quick' WHERE id = 2")
            )
            await memory.snapshot.run_once()
            assert memory.known("ws_2") == ["http://127.0.0.1/2"]
            await transaction.commit()
            await quick
        finally:
            await slow.close()
        await memory.snapshot.reach(await memory.claim_version())
        assert memory.known("ws_1") == ["http://127.0.0.1/1/slow"]
        assert memory.known("ws_2") == ["http://127.0.0.1/2/quick"]

    run(database_dsn, story)


TABLES = ("endpoint", "endpoint_secret", "endpoint_revision")


async def keep(connection: Connection) -> None:
    for table in TABLES:
        await connection.execute(f"CREATE TABLE kept_{table} AS TABLE postrider.{table}")


async def undo(connection: Connection) -> None:
    """Put back what the tables held, as a crash does: no trigger is run."""
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for table in TABLES:
            await connection.execute(f"DELETE FROM postrider.{table}")
            await connection.execute(f"INSERT INTO postrider.{table} SELECT * FROM kept_{table}")


@pytest.mark.parametrize("again", [False, True], ids=["undone", "undone, and its revision given to another"])
def test_a_change_that_was_undone_after_it_was_known_is_noticed(database_dsn: str, again: bool) -> None:
    async def story(memory: Memory) -> None:
        connection = memory.connection
        await add_many(connection, 3)
        await memory.snapshot.run_once()
        await keep(connection)
        await connection.execute("UPDATE postrider.endpoint SET patterns = '{nothing}' WHERE id = 1")
        await connection.execute(
            """INSERT INTO postrider.endpoint
                 (id, workspace_id, url, patterns, dialect, created_at, updated_at)
               VALUES (9, 'ws_9', 'http://127.0.0.1/9', '{*}', 'standard', now(), now())"""
        )
        await memory.snapshot.reach(await memory.claim_version())
        assert (memory.known("ws_1"), memory.known("ws_9")) == ([], ["http://127.0.0.1/9"])
        await undo(connection)
        expected = "http://127.0.0.1/2"
        if again:
            for _ in range(2):
                await connection.execute("UPDATE postrider.endpoint SET url = url || '/new' WHERE id = 2")
            expected += "/new/new"
        await memory.snapshot.reach(await memory.claim_version())
        assert memory.known("ws_1") == ["http://127.0.0.1/1"]
        assert memory.known("ws_2") == [expected]
        assert memory.known("ws_9") == []
        assert memory.lanes.lane(9) is None

    run(database_dsn, story)


def test_a_load_that_is_interrupted_is_made_anew(database_dsn: str) -> None:
    async def story(memory: Memory) -> None:
        await add_many(memory.connection, 2 * PAGE)
        await memory.snapshot.run_once()
        await memory.connection.execute("UPDATE postrider.endpoint SET url = url || '/new'")
        load = asyncio.create_task(memory.snapshot.run_once())
        while memory.known("ws_1") != ["http://127.0.0.1/1/new"]:
            await asyncio.sleep(0)
        load.cancel()
        await asyncio.wait([load])
        assert load.cancelled()
        assert await memory.snapshot.run_once() == 2 * PAGE
        assert memory.known(f"ws_{2 * PAGE}") == [f"http://127.0.0.1/{2 * PAGE}/new"]

    run(database_dsn, story)


def test_a_reload_reads_all_endpoints_anew(database_dsn: str, tmp_path: Path) -> None:
    endpoint_id = add_endpoint(database_dsn, "http://127.0.0.1/a", state=EndpointState.ACTIVE)

    async def story() -> None:
        async with staged(database_dsn, tmp_path) as stage:
            with capture_logs() as logs:
                reload = asyncio.create_task(stage.daemon.reload(stage.daemon.config))
                while not any(line["event"] == "subscriptions.loaded" for line in logs):
                    await asyncio.sleep(0.01)
                reload.cancel()
            assert [line["complete"] for line in logs if line["event"] == "subscriptions.loaded"] == [True]
            assert stage.daemon.services.lanes.lane(endpoint_id) is not None

    asyncio.run(story())
