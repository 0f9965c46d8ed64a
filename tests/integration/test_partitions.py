"""Partitions: made ahead beside a CRM that writes, dropped when retention ends, by the database's clock."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from postrider.domain.model import EndpointState, endpoint_public_id
from postrider.edges.clock import Clock, SystemClock
from postrider.engine.partitions import PartitionKeeper, PartitionTuning, Retention
from postrider.store import partitions, retention
from postrider.store.database import Busy, Database
from postrider.store.partitions import PARTITIONED
from tests.conftest import execute
from tests.support.cli import Cli
from tests.support.daemon_process import add_endpoint, query, write_config

TODAY = datetime.now(UTC).date()
OLD = TODAY - timedelta(days=90)
RETENTION = Retention(30 * 86_400.0, 30 * 86_400.0)
EMIT = "SELECT postrider.emit('deal.updated', '{}'::json)"
DAYS_AHEAD = PartitionTuning().days_ahead
BOUND_S = 3.0
"""Six times the lock timeout: a slow machine, not a scan or a queue."""


def keeping(
    dsn: str,
    act: Callable[[PartitionKeeper], Awaitable[Any]],
    clock: Clock | None = None,
    tuning: PartitionTuning | None = None,
) -> Any:
    async def run() -> Any:
        database = Database(dsn, pool_size=3)
        await database.open()
        keeper = PartitionKeeper(
            database=database,
            retention=RETENTION,
            clock=clock or SystemClock(),
            tuning=tuning,
        )
        try:
            return await act(keeper)
        finally:
            await database.close()

    return asyncio.run(run())


async def _keep_until_done(keeper: PartitionKeeper) -> int:
    """Return how many passes it took."""
    passes = 1
    while not (await keeper.run_once()).complete:
        passes += 1
    return passes


def days(dsn: str, parent: str = "outbox") -> list[date]:
    return [row[0] for row in query(dsn, "SELECT postrider.partition_days($1)", parent)]


def old_day(dsn: str, *, state: str = "succeeded", endpoint_id: int = 7) -> None:
    """A day past retention, with partitions and one delivery of that state."""
    for parent in PARTITIONED:
        query(dsn, "SELECT postrider.create_partition($1, $2)", parent, OLD)
    query(
        dsn,
        """WITH event AS (INSERT INTO postrider.outbox (id, type, data)
                          VALUES (postrider.first_id_of($1), 'a.b', '{}') RETURNING id)
           INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, due, updated_at)
           SELECT id, $2, 'default', $3, now(), now() FROM event""",
        OLD,
        endpoint_id,
        state,
    )
    execute(dsn, "DELETE FROM postrider.pending")


def fill_default(dsn: str, day: date, rows: int) -> None:
    """Wide rows of a day without a partition."""
    execute(
        dsn,
        "ALTER TABLE postrider.outbox DISABLE TRIGGER USER",
        f"""INSERT INTO postrider.outbox (id, type, data)
            SELECT (left(postrider.first_id_of('{day}')::text, 24) || lpad(to_hex(n), 12, '0'))::uuid, 'a.b',
                   json_build_object('text', repeat('wide ', 100)) FROM generate_series(1, {rows}) AS n""",
        "ALTER TABLE postrider.outbox ENABLE TRIGGER USER",
    )


def test_a_week_of_partitions_is_made_a_few_at_a_time(database_dsn: str) -> None:
    assert keeping(database_dsn, _keep_until_done) > 2
    for parent in PARTITIONED:
        assert days(database_dsn, parent) == [TODAY + timedelta(days=n) for n in range(DAYS_AHEAD + 1)]


def test_two_daemons_that_make_the_same_partitions_disturb_each_other_not(database_dsn: str) -> None:
    async def at_once(keeper: PartitionKeeper) -> list[list[str]]:
        made: list[list[str]] = []

        async def make() -> None:
            while True:
                created = await keeper.create_ahead()
                made.append(created.names)
                if created.complete:
                    return

        await asyncio.gather(make(), make(), make())
        return made

    made = keeping(database_dsn, at_once)
    names = [name for each in made for name in each]
    assert len(names) == len(set(names)) == (DAYS_AHEAD - 2) * len(PARTITIONED)


def test_emit_does_not_wait_while_partitions_are_made_beside_a_filled_default(database_dsn: str) -> None:
    """No daemon ran for days: there are no partitions, and what came lies in the default one."""
    for parent in PARTITIONED:
        for day in days(database_dsn, parent):
            query(database_dsn, "SELECT postrider.drop_partition($1, $2)", parent, day)
    fill_default(database_dsn, TODAY, 60_000)
    large = "SELECT pg_relation_size('postrider.outbox_default') > 8 * 1024 * 1024"
    assert query(database_dsn, large)[0][0]

    async def beside_a_writer(keeper: PartitionKeeper) -> float:
        connection = await asyncpg.connect(database_dsn)
        done = asyncio.Event()

        async def write() -> float:
            slowest = 0.0
            while not done.is_set():
                started = time.monotonic()
                await connection.execute(EMIT)
                slowest = max(slowest, time.monotonic() - started)
            return slowest

        writing = asyncio.create_task(write())
        await _keep_until_done(keeper)
        done.set()
        slowest = await writing
        await connection.close()
        return slowest

    assert keeping(database_dsn, beside_a_writer) < BOUND_S
    # Today's events stay where they are; from the third day on there are partitions, and no guard is left.
    assert days(database_dsn) == [TODAY + timedelta(days=n) for n in range(3, DAYS_AHEAD + 1)]
    guards = "SELECT count(*) FROM pg_constraint WHERE conname = 'postrider_days_elsewhere'"
    assert query(database_dsn, guards)[0][0] == 0

    # The next hour there is nothing to prove, and nobody looks through the default partition again.
    execute(database_dsn, "DROP FUNCTION postrider.guard_default")

    async def again(keeper: PartitionKeeper) -> list[str]:
        return (await keeper.create_ahead()).names

    assert keeping(database_dsn, again) == []


def test_nothing_is_attached_beside_a_large_default_that_might_hold_the_day(database_dsn: str) -> None:
    """Not even by the function itself, which daemons of the last release call."""
    fill_default(database_dsn, OLD, 60_000)
    make = "SELECT postrider.create_partition('outbox', $1)"
    assert not query(database_dsn, make, TODAY + timedelta(days=6))[0][0]
    execute(database_dsn, "TRUNCATE postrider.outbox_default")
    assert query(database_dsn, make, TODAY + timedelta(days=6))[0][0]


def test_a_guard_that_a_dead_daemon_left_is_taken_away(database_dsn: str) -> None:
    day = TODAY + timedelta(days=5)
    query(database_dsn, "SELECT postrider.guard_default('outbox', $1, $2)", day, day + timedelta(days=3))
    insert = "INSERT INTO postrider.outbox (id, type, data) VALUES (postrider.first_id_of($1), 'a.b', '{}')"
    with pytest.raises(asyncpg.CheckViolationError):
        query(database_dsn, insert, day)

    async def make(keeper: PartitionKeeper) -> None:
        await keeper.create_ahead()

    keeping(database_dsn, make)
    query(database_dsn, insert, day)


def test_the_guard_goes_with_the_transaction_that_makes_the_partitions(database_dsn: str) -> None:
    """Whenever a daemon dies, there is either the guard or what it was for."""
    first, beyond = TODAY + timedelta(days=5), TODAY + timedelta(days=8)
    query(database_dsn, "SELECT postrider.guard_default('outbox', $1, $2)", first, beyond)
    query(database_dsn, "SELECT postrider.validate_default('outbox')")
    wanted = [first + timedelta(days=n) for n in range(3)]
    guards = "SELECT count(*) FROM pg_constraint WHERE conname = 'postrider_days_elsewhere'"

    async def cut_off() -> None:
        connection = await asyncpg.connect(database_dsn)
        await connection.execute("BEGIN")
        await connection.fetchval("SELECT postrider.create_unguarded('outbox', $1)", wanted)
        await connection.execute("ROLLBACK")
        await connection.close()

    asyncio.run(cut_off())
    assert query(database_dsn, guards)[0][0] == 1
    assert not set(wanted) & set(days(database_dsn))
    made = query(database_dsn, "SELECT postrider.create_unguarded('outbox', $1)", wanted)
    assert made[0][0] == wanted
    assert query(database_dsn, guards)[0][0] == 0
    assert set(wanted) <= set(days(database_dsn))


def test_check_tells_of_a_guard_that_a_dead_daemon_left(database_dsn: str, tmp_path: Path) -> None:
    first = TODAY + timedelta(days=4)
    query(database_dsn, "SELECT postrider.guard_default('outbox', $1, $2)", first, first + timedelta(days=1))
    cli = Cli(write_config(tmp_path, database_dsn))
    assert f"outbox takes no events from {first} on" in cli("check")
    with_days_gone = f"{TODAY} {first}"
    execute(
        database_dsn,
        f"""COMMENT ON CONSTRAINT postrider_days_elsewhere ON postrider.outbox_default
            IS '{with_days_gone}'""",
    )
    assert "fail  partitions" in cli("check", exit_code=1)


def test_a_guard_never_refuses_the_events_of_these_days(database_dsn: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="too near"):
        query(database_dsn, "SELECT postrider.guard_default('outbox', $1, $1)", TODAY + timedelta(days=2))


def test_a_lock_that_is_not_to_be_had_postpones_the_work(database_dsn: str) -> None:
    """A transaction reads the default partition, as a dump does; emit goes on beside it."""

    async def beside_a_reader(keeper: PartitionKeeper) -> None:
        reading, writing = [await asyncpg.connect(database_dsn) for _ in range(2)]
        try:
            transaction = reading.transaction()
            await transaction.start()
            await reading.execute("SELECT count(*) FROM postrider.outbox")
            with pytest.raises(Busy, match="create_partition of outbox"):
                await keeper.run_once()
            await writing.execute(EMIT)
            await transaction.rollback()
            await _keep_until_done(keeper)
        finally:
            await reading.close()
            await writing.close()

    keeping(database_dsn, beside_a_reader, tuning=PartitionTuning(lock_ms=100))
    assert len(days(database_dsn)) == DAYS_AHEAD + 1


@pytest.mark.parametrize("state", ["waiting", "retrying"])
def test_what_waits_for_a_disabled_endpoint_fails_when_retention_ends(database_dsn: str, state: str) -> None:
    endpoint_id = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    old_day(database_dsn, state=state, endpoint_id=endpoint_id)

    async def end(keeper: PartitionKeeper) -> Any:
        return await keeper.drop_before("delivery", timedelta(days=100)), await keeper.drop_before(
            "delivery", timedelta(days=30)
        )

    before, after = keeping(database_dsn, end)
    assert (before.names, before.ended) == ([], 0)
    assert (after.names, after.ended, after.kept) == ([f"delivery_{OLD:%Y%m%d}"], 1, [])


def test_it_says_why_such_a_delivery_failed(database_dsn: str) -> None:
    """Seen where another delivery keeps the partition."""
    disabled = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.DISABLED)
    paused = add_endpoint(database_dsn, "http://127.0.0.1:9/", state=EndpointState.PAUSED)
    old_day(database_dsn, state="waiting", endpoint_id=disabled)
    execute(
        database_dsn,
        f"""INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at)
            SELECT event_id, {paused}, 'default', 'waiting', now() FROM postrider.delivery""",
    )

    async def end(keeper: PartitionKeeper) -> Any:
        return await keeper.drop_before("outbox", timedelta(days=30))

    result = keeping(database_dsn, end)
    assert result.kept == [f"outbox_{OLD:%Y%m%d}"]
    assert [endpoint_public_id(each) for each in result.holders] == [endpoint_public_id(paused)]
    rows = query(database_dsn, "SELECT endpoint_id, state, reason FROM postrider.delivery")
    states = {row["endpoint_id"]: (row["state"], row["reason"]) for row in rows}
    assert states[paused] == ("waiting", None)
    assert states[disabled][0] == "failed"
    assert f"disabled since {TODAY:%Y-%m-%d}, and the retention of its event ended" in states[disabled][1]


def test_retention_goes_by_the_databases_clock(database_dsn: str) -> None:
    """A daemon whose clock is years ahead drops nothing that is young."""
    old_day(database_dsn)

    class Ahead(SystemClock):
        def now(self) -> datetime:
            return super().now() + timedelta(days=1000)

    keeping(database_dsn, _keep_until_done, Ahead())
    assert days(database_dsn) == [TODAY + timedelta(days=n) for n in range(DAYS_AHEAD + 1)]


def test_old_rows_of_the_default_partitions_and_their_keys_go(database_dsn: str) -> None:
    fill_default(database_dsn, OLD, 2 * retention.ROWS + 10)
    execute(
        database_dsn,
        """INSERT INTO postrider.idempotency SELECT 'default', id::text, id FROM postrider.outbox_default""",
        "INSERT INTO postrider.idempotency VALUES ('default', 'young', postrider.new_event_id())",
    )
    keeping(database_dsn, _keep_until_done)
    assert query(database_dsn, "SELECT count(*) FROM postrider.outbox_default")[0][0] == 0
    assert [row["key"] for row in query(database_dsn, "SELECT key FROM postrider.idempotency")] == ["young"]


def test_deliveries_in_the_default_partition_stay_as_long_as_their_event(database_dsn: str) -> None:
    """Else `--recover` would send again, to who had it, what is kept for another endpoint."""
    fill_default(database_dsn, OLD, 1)
    execute(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at)
           SELECT id, endpoint, 'default', state, now() FROM postrider.outbox,
             (VALUES (1, 'succeeded'), (2, 'waiting')) AS given (endpoint, state)""",
    )
    left = "SELECT count(*) FROM postrider.delivery"
    keeping(database_dsn, _keep_until_done)
    assert query(database_dsn, left)[0][0] == 2
    execute(database_dsn, "UPDATE postrider.delivery SET state = 'failed'")
    keeping(database_dsn, _keep_until_done)
    assert query(database_dsn, left)[0][0] == 0


def test_whether_a_day_is_settled_is_read_from_indexes_that_are_empty(database_dsn: str) -> None:
    old_day(database_dsn)
    execute(
        database_dsn,
        f"""INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, updated_at)
            SELECT (left(postrider.first_id_of('{OLD}')::text, 24) || lpad(to_hex(n), 12, '0'))::uuid,
                   n, 'default', 'succeeded', now() FROM generate_series(1, 20000) AS n""",
        "ANALYZE postrider.delivery",
    )

    async def explain(_: PartitionKeeper) -> int:
        database = Database(database_dsn, pool_size=1)
        await database.open()
        async with database.connection() as connection:
            literal = partitions._UNSETTLED.replace("$1", f"'{OLD}'::date")
            rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) {literal}")
        await database.close()
        plan = json.loads(rows[0][0])[0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    assert keeping(database_dsn, explain) < 50


def test_events_of_a_workspace_are_listed_by_an_index(database_dsn: str) -> None:
    day = TODAY + timedelta(days=5)
    query(database_dsn, "SELECT postrider.create_partition('outbox', $1)", day)
    indexes = query(
        database_dsn,
        "SELECT pg_get_indexdef(indexrelid) AS definition FROM pg_index WHERE indrelid = $1::text::regclass",
        f"postrider.outbox_{day:%Y%m%d}",
    )
    assert any("(workspace_id, id)" in row["definition"] for row in indexes)
