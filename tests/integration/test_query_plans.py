"""Plan guards: the hot statements read by key, however many rows there are."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from postrider.domain.model import DeliveryState
from postrider.store import deliveries, missed, outbox, status
from postrider.store.database import Database
from postrider.store.delivery_search import DeliveryFilter, reach_statement, search_statement
from tests.support.daemon_process import query

HOT = {
    "claim": (
        outbox._claim_statement(128, outbox._TAKEN),
        "1, '00000000-0000-0000-0000-000000000000'::uuid, 4711, 1000000",
    ),
    "read": (outbox._READ, "ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[]"),
    "record first": (
        deliveries._RECORD_FIRST,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::float8[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::bigint[], ARRAY[]::bigint[],"
        " ARRAY[]::integer[], ARRAY[]::integer[], ARRAY[]::bigint[], ARRAY[]::integer[], ARRAY[]::integer[],"
        " now()",
    ),
    "record later": (
        deliveries._RECORD_LATER,
        "1, ARRAY[]::uuid[], ARRAY[]::bigint[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::smallint[],"
        " ARRAY[]::timestamptz[], ARRAY[]::text[], ARRAY[]::float8[], ARRAY[]::real[], ARRAY[]::real[],"
        " ARRAY[]::smallint[], ARRAY[]::text[], ARRAY[]::text[], now()",
    ),
    "claim waiting": (
        deliveries._CLAIM_WAITING,
        "1, ARRAY[7]::bigint[], ARRAY[100], ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[],"
        " 'ffffffff-0000-7000-8000-000000000000'::uuid, 1000000, 1000000, now(), ARRAY['default']",
    ),
    "recorded": (
        deliveries._RECORDED,
        "ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[], ARRAY['default']",
    ),
    "owned": (deliveries._OWNED, "1"),
    "release": (
        deliveries._RELEASE,
        "1, ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[], ARRAY[7]::bigint[], ARRAY['default']",
    ),
    "missed: of an event": (
        missed._OF_EVENT,
        "'default', '019a8f6e-0000-7000-8000-000000000000'::uuid, ARRAY['deal.updated']",
    ),
    "missed: events": (
        missed._EVENTS,
        "'default', '019a8f6e-0000-7000-8000-000000000000'::uuid,"
        " 'ffffffff-0000-7000-8000-000000000000'::uuid, 1000",
    ),
    "missed: fates": (missed._FATES, "7, ARRAY['019a8f6e-0000-7000-8000-000000000000']::uuid[]"),
    "promote due": (deliveries._PROMOTE_DUE, "now(), 100"),
    "waiting endpoints": (f"{deliveries._WAITING_AFTER} LIMIT 500", "-1"),
    "next due": ("SELECT min(due) FROM postrider.delivery WHERE state = 'retrying'", ""),
    "backlog": (outbox.BACKLOG, ""),
    "status: queued": (status._QUEUED, ""),
    "status: progress": (status._PROGRESS, "'019a8f6e-0000-7000-8000-000000000000'::uuid"),
    "totals: waiting": (status._ALL_WAITING, ""),
    "totals: retrying": (status._ALL_RETRYING, ""),
    "status: paused": (status._PAUSED, ""),
    "status: deliveries": (status._DELIVERIES, ""),
    "status: oldest waiting": (status._OLDEST_WAITING, ""),
    "status: retrying": (status._RETRYING, ""),
    "status: endpoints": (status._ENDPOINTS, "ARRAY[7]"),
}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_scans_no_table(database_dsn: str, name: str) -> None:
    query(
        database_dsn,
        "INSERT INTO postrider.outbox (type, data) SELECT 'a.b', '{}' FROM generate_series(1, 3000)",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.delivery
             (event_id, endpoint_id, workspace_id, state, attempts, due, updated_at)
           SELECT id, 7, 'default', CASE WHEN random() < 0.1 THEN 'waiting'
                                         WHEN random() < 0.1 THEN 'retrying' ELSE 'succeeded' END,
                  1, now(), now() FROM postrider.outbox""",
    )
    statement, arguments = HOT[name]

    async def explain() -> Any:
        database = Database(database_dsn, pool_size=1)
        await database.open()
        async with database.connection() as connection:
            await connection.execute("ANALYZE")
            text = re.sub(r"\$(\d+)", lambda match: arguments_list[int(match[1]) - 1], statement)
            rows = await connection.fetch(f"EXPLAIN {text}")
        await database.close()
        return "\n".join(row[0] for row in rows)

    arguments_list = [part.strip() for part in arguments.split(",")]
    plan = asyncio.run(explain())
    assert not re.search(r"Seq Scan on (pending|outbox|delivery)(?!_default)", plan), plan


NOW = datetime.now(UTC)
TODAY = f"{NOW:%Y%m%d}"
"""Other days have no rows, which are best read by a scan."""
CHOSEN = {
    "all": DeliveryFilter(),
    "endpoint": DeliveryFilter(endpoint_id=7),
    "endpoint, waiting": DeliveryFilter(endpoint_id=7, state=DeliveryState.WAITING),
    "endpoint, failed": DeliveryFilter(endpoint_id=7, state=DeliveryState.FAILED),
    "endpoint, succeeded": DeliveryFilter(endpoint_id=7, state=DeliveryState.SUCCEEDED),
    "workspace": DeliveryFilter(workspace_id="ws_1"),
    "event": DeliveryFilter(event_id=UUID("019a8f6e-0000-7000-8000-000000000000")),
    "window of time": DeliveryFilter(since=NOW - timedelta(hours=2), until=NOW, state=DeliveryState.FAILED),
    "type": DeliveryFilter(type_pattern="deal.*"),
    "status": DeliveryFilter(http_status=range(500, 600)),
    "workspace, type, status": DeliveryFilter(
        workspace_id="ws_1", type_pattern="a.b", http_status=range(503, 504), since=NOW - timedelta(days=1)
    ),
}


@pytest.fixture
def many_deliveries(database_dsn: str) -> str:
    query(
        database_dsn,
        "INSERT INTO postrider.outbox (type, data, workspace_id) "
        "SELECT 'a.b', '{}', 'ws_' || n % 100 FROM generate_series(1, 5000) AS n",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, attempts, updated_at)
           SELECT id, 7, workspace_id, CASE WHEN random() < 0.05 THEN 'waiting'
                                            WHEN random() < 0.05 THEN 'failed' ELSE 'succeeded' END, 1, now()
           FROM postrider.outbox""",
    )
    query(
        database_dsn,
        """INSERT INTO postrider.attempt
             (event_id, endpoint_id, workspace_id, number, started_at, duration_ms, status)
           SELECT event_id, endpoint_id, workspace_id, 1, now(), 1, 503 FROM postrider.delivery""",
    )
    # As every partition has it that was not made by the first migrations.
    query(database_dsn, f"CREATE INDEX ON postrider.outbox_{TODAY} (workspace_id, id)")
    query(database_dsn, "ANALYZE")
    return database_dsn


def plan_of(dsn: str, statement: str, parameters: Sequence[object]) -> str:
    return "\n".join(row[0] for row in query(dsn, f"EXPLAIN {statement}", *parameters))


@pytest.mark.parametrize("newest_first", [True, False])
def test_a_list_of_deliveries_scans_no_table(many_deliveries: str, newest_first: bool) -> None:
    after = (UUID("019a8f6e-0000-7000-8000-000000000000"), 7)
    for name, chosen in CHOSEN.items():
        for beyond in (None, after):
            for statement, parameters in (
                search_statement(chosen, after=beyond, newest_first=newest_first, limit=10, look_at_most=100),
                reach_statement(chosen, after=beyond, newest_first=newest_first, look_at_most=100),
            ):
                plan = plan_of(many_deliveries, statement, parameters)
                assert not re.search(rf"Seq Scan on \w+_{TODAY}", plan), f"{name}\n{plan}"


def test_a_list_of_events_scans_no_table(many_deliveries: str) -> None:
    for workspace, type_, object_id in (
        (None, None, None),
        ("ws_1", None, None),
        (None, "a.b", None),
        ("ws_1", None, "dl_1"),
        (None, None, "dl_1"),
    ):
        for newest_first in (True, False):
            statement = outbox.events_statement(newest_first=newest_first, look_at_most=100)
            plan = plan_of(many_deliveries, statement, [workspace, None, None, type_, None, object_id, 10])
            assert not re.search(rf"Seq Scan on \w+_{TODAY}", plan), plan
